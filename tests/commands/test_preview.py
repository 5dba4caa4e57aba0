"""`preview`: the request a stored body would become, as one value."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from support.shops import SHOP

from zithara_worker.commands.preview import preview_body, preview_lines
from zithara_worker.processors import ShopContext
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_WEBHOOK

BASE_URL = "https://pos-api.zithara.com/v1"
CUSTOMER = {"platform_customer_id": "301", "email": "c301@example.com", "phone_number": "9876543210"}


@pytest.fixture
def shop() -> ShopContext:
    return replace(SHOP, config_ids=None)


def stored(message: Any) -> str:
    return json.dumps(json.dumps(message))


@pytest.mark.parametrize("base_url", [BASE_URL, BASE_URL + "/"])
def test_an_api_request_is_shown_whole_and_with_its_token_masked(shop: ShopContext, base_url: str) -> None:
    assert preview_body(TOPIC_CUSTOMER, stored(CUSTOMER), shop=shop, base_url=base_url) == {
        "method": "POST",
        "url": "https://pos-api.zithara.com/v1/customer",
        "headers": {"Content-Type": "application/json", "Accept": "application/json", "Authorization": "***"},
        "json": CUSTOMER,
        "group": "customer:301",
    }


def test_a_webhook_is_shown_with_its_own_url_and_event(shop: ShopContext) -> None:
    message = {"config_id": 8, "event_type": "customer_login", "payload": {"customer_id": "411"}}
    shown = preview_body(TOPIC_WEBHOOK, stored(message), shop=shop, base_url=BASE_URL)
    assert shown["url"] == "https://hooks.example.com/zithara"
    assert shown["headers"]["X-Webhook-Event"] == "customer_login"
    assert shown["headers"]["Authorization"] == "***"
    assert shown["group"] == "customer:411"


def test_a_skip_shows_its_reason_alone(shop: ShopContext) -> None:
    cart = {"customer": [], "cart_item": [], "cart": {"platform_cart_id": "7"}}
    assert preview_body(TOPIC_CART, stored(cart), shop=shop, base_url=BASE_URL) == {"skip": "cart_without_items"}
    webhook = {"event_type": "visitor_init", "payload": {"ip_address": "203.0.113.7"}}
    silent = replace(shop, webhook_url=None)
    assert preview_body(TOPIC_WEBHOOK, stored(webhook), shop=silent, base_url=BASE_URL) == {"skip": "no_webhook_url"}


@pytest.mark.parametrize(
    ("topic", "body", "code"),
    [
        (TOPIC_CUSTOMER, "{broken", "not_json"),
        (TOPIC_CUSTOMER, "{}", "missing_field"),
        ("some.other.topic", "{}", "unknown_topic"),
    ],
)
def test_an_error_shows_its_code_and_detail_alone(shop: ShopContext, topic: str, body: str, code: str) -> None:
    shown = preview_body(topic, body, shop=shop, base_url=BASE_URL)
    assert set(shown) == {"error"}
    assert shown["error"]["code"] == code
    assert shown["error"]["detail"]


def test_each_line_has_its_own_answer_as_soon_as_it_is_read(shop: ShopContext) -> None:
    read = []

    def lines() -> Iterator[str]:
        visitor = stored({"event_type": "visitor_init", "payload": {"ip_address": "203.0.113.7"}})
        for line in (visitor + "\n", "\n", "nonsense\r\n", visitor):
            read.append(line)
            yield line

    answers = preview_lines(TOPIC_WEBHOOK, lines(), shop=shop, base_url=BASE_URL)
    assert read == []
    assert next(answers)["group"] == "message:1"
    assert len(read) == 1
    empty, broken, last = answers
    assert empty["error"]["code"] == "empty_message"
    assert broken["error"]["code"] == "not_json"
    assert last["group"] == "message:4"


def test_every_answer_is_one_line_of_json(shop: ShopContext) -> None:
    for body in (stored(CUSTOMER), "nonsense", stored({**CUSTOMER, "first_name": "प्रिया\u2028"})):
        assert "\n" not in json.dumps(preview_body(TOPIC_CUSTOMER, body, shop=shop, base_url=BASE_URL), allow_nan=False)


def test_a_preview_needs_neither_database_driver_nor_http_client() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('pymysql', 'httpx', 'tenacity')))\n"
        f"sys.argv[1:] = ['preview', '{TOPIC_CUSTOMER}']\n"
        "from zithara_worker.commands import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=stored(CUSTOMER), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["group"] == "customer:301"
