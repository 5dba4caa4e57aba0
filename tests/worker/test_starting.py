"""The shop's latest settings in the requests. What is started and what is not: test_loop."""

from __future__ import annotations

from dataclasses import replace

import pytest

from zithara_worker.messages import Event, Request
from zithara_worker.sandbox import examples
from zithara_worker.settings.sections import ZitharaSettings
from zithara_worker.shop.configuration import ShopConfiguration
from zithara_worker.topics import TOPIC_ORDER, TOPIC_WEBHOOK
from zithara_worker.worker.starting import RequestFactory

SHOP = ShopConfiguration(
    enabled=True,
    active_config_id=1,
    config_ids=frozenset({1}),
    event_types=(),
    webhook_url="https://first.example/hook",
    new_messages_lifetime_minutes=10_080,
)
WEBHOOK = Event(topic=TOPIC_WEBHOOK, payload=examples.webhook())


@pytest.fixture
def moved() -> list[str]:
    return []


def factory(moved: list[str], **settings: str) -> RequestFactory:
    return RequestFactory(
        ZitharaSettings(**settings), SHOP, utc=lambda: 1_700_000_000.0, on_webhook_url=lambda: moved.append("moved")
    )


def url_of(requests: RequestFactory) -> str:
    request = requests.process(WEBHOOK)
    assert isinstance(request, Request), request
    return request.path


def test_webhooks_go_to_the_url_that_the_shop_has_now_and_a_new_one_is_told_once(moved: list[str]) -> None:
    requests = factory(moved)
    requests.use(replace(SHOP, active_config_id=1))
    assert (url_of(requests), moved) == ("https://first.example/hook", [])
    requests.use(replace(SHOP, webhook_url="https://second.example/hook"))
    assert (url_of(requests), moved) == ("https://second.example/hook", ["moved"])
    requests.use(replace(SHOP, webhook_url="https://second.example/hook"))
    assert moved == ["moved"]


def test_a_url_of_the_worker_s_own_settings_stands_above_the_shop_s(moved: list[str]) -> None:
    assert url_of(factory(moved, webhook_url="https://own.example/hook")) == "https://own.example/hook"


def test_the_create_of_an_update_is_sent_as_one(moved: list[str]) -> None:
    update = Event(topic=TOPIC_ORDER, payload=examples.order(is_update=True))
    requests = factory(moved)
    created = requests.create(update)
    assert isinstance(created, Request) and created.method == "POST"
    assert created == requests.process(replace(update, payload={**update.payload, "is_update": False}))
