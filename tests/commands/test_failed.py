"""What `failed list`, `failed show` and `failed export` give."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

from zithara_worker.commands.failed import as_record, export_records, full_record
from zithara_worker.commands.failed_selection import Choice, age, selection_of
from zithara_worker.commands.prospects import Prospects
from zithara_worker.commands.root import Context
from zithara_worker.database.session import Database
from zithara_worker.queue import failures
from zithara_worker.queue.failures import Selection
from zithara_worker.queue.queues import QueueRow
from zithara_worker.queue.statuses import Status
from zithara_worker.sandbox.api import FakeZithara, Reply
from zithara_worker.sandbox.publisher import Published, stored_body
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_ORDER

Consume = Callable[[], None]
Shown = Callable[..., dict[str, Any]]


@pytest.fixture
def shown(worker_config: Callable[..., Path], database: Database, everything: Selection) -> Shown:
    """shown(published, unmasked=False): what `failed show` tells of it."""
    prospects = Prospects(Context(worker_config()), database)

    def show(message: Published, *, unmasked: bool = False) -> dict[str, Any]:
        (found,), _ = failures.find(database, everything.queue_ids, [message.message_id])
        return full_record(database, found, prospects=prospects, base_url="https://api.example/v1", unmasked=unmasked)

    return show


def put_to_error(shop: Shop, message: Published) -> None:
    """As a PHP consumer does."""
    shop.query("UPDATE {prefix}queue_message_status SET status = 6 WHERE id = %s", [message.relation_id])


def test_show_tells_what_a_retry_would_do(shop: Shop, consume: Consume, refused: set[str], shown: Shown) -> None:
    def retry_of(message: Published) -> tuple[str, bool | None]:
        """What a retry does, and whether Zithara has accepted newer of the entity."""
        record = shown(message)
        return record["retry"], record["accepted"] and record["accepted"]["is_newer"]

    alone = shop.publish_body(TOPIC_ORDER, stored_body({"order": {"increment_id": "9"}, "items": []}))
    refused |= {"000000777", "000000778"}
    refused_old = shop.publish_order("000000777", grand_total=1.0)
    failed_alone = shop.publish_order("000000778", grand_total=1.0)
    by_php = [shop.publish_cart("7001", total_price=1), shop.publish_cart("7002", total_price=1)]
    consume()
    assert retry_of(failed_alone) == ("sent", None)
    assert retry_of(alone) == ("rejected", None)

    refused.clear()
    shop.publish_order("000000777", grand_total=2.0)
    shop.publish_cart("7001", total_price=2)
    consume()
    assert retry_of(refused_old) == ("needs_force", True)
    for message in by_php:
        put_to_error(shop, message)
    assert retry_of(by_php[0]) == ("overtaken", True)
    assert retry_of(by_php[1]) == ("unchanged", False)
    shop.query("UPDATE {prefix}quote SET is_active = 0 WHERE entity_id = 7002")
    shop.query("DELETE FROM {prefix}zithara_delivery WHERE group_key = 'cart:7002'")
    assert retry_of(by_php[1]) == ("cart_inactive", None)


def test_a_failed_message_is_listed_with_what_the_api_said(
    shop: Shop, database: Database, consume: Consume, refused: set[str], everything: Selection
) -> None:
    refused.add("000000777")
    shop.publish_order("000000776")
    message_id = shop.publish_order("000000777").message_id
    consume()
    (found,), total = failures.newest(database, everything, limit=10)
    assert total == 1
    value = as_record(found)
    assert (value["id"], value["reason"], value["http_status"], value["attempts"]) == (message_id, "http_400", 400, 1)
    assert value["group"] == "order:000000777" and "bad" in value["detail"]
    assert [attempt["reason"] for attempt in value["history"]] == ["http_400"]


def test_show_has_the_request_of_now_masked_unless_asked(
    shop: Shop, api: FakeZithara, consume: Consume, refused: set[str], shown: Shown
) -> None:
    refused.add("000000777")
    published = shop.publish_order("000000777")
    later = shop.publish_order("000000777")
    shop.publish_order("000000778")
    consume()

    masked, plain = shown(published), shown(published, unmasked=True)
    assert masked["request"]["method"] == "POST" and masked["request"]["url"] == "https://api.example/v1/order"
    name = f"zithara_order_queue-{published.message_id}"
    [sent] = [each for each in api.requests() if each.message == name]
    assert masked["request"]["headers"]["Idempotency-Key"] == sent.headers["idempotency-key"]
    assert sent.headers["idempotency-key"].startswith(f"{name}-")
    assert masked["request"]["json"]["order"]["platform_order_id"] == "000000777"
    assert [(each["id"], each["status"]) for each in masked["later"]] == [(later.message_id, "ERROR")]
    customer = plain["request"]["json"]["customer"]
    assert "@" in customer["email"]
    for value in (customer["email"], customer["phone_number"], customer["first_name"]):
        assert value not in json.dumps(masked["request"], ensure_ascii=False)
    assert plain["request"]["headers"]["Authorization"] == "***"


def test_what_show_does_not_know_to_be_harmless_is_masked(
    shop: Shop, api: FakeZithara, database: Database, consume: Consume, everything: Selection, shown: Shown
) -> None:
    attributes = {"date_of_birth": "1990-01-02", "company_name": "Rao & Co", "landmark": "by the lake"}
    said = {"status": 422, "message": "Rao & Co (asha@example.com) is refused", "customerName": "Asha"}
    api.responder = lambda request: Reply.of(422, said) if "/customer" in request.path else None
    published = shop.publish_customer("5", first_name="Rao & Co", custom_attributes=attributes)
    consume()
    (found,), _ = failures.newest(database, everything, limit=10)
    stored = {**said, "message": "*** (a***@***) is refused", "customerName": "***"}
    assert json.loads(found.detail.removeprefix("HTTP 422: ")) == stored

    record = shown(published)
    assert record["detail"] == as_record(found)["detail"] == found.detail
    request = record["request"]["json"]
    assert request["custom_attributes"] == dict.fromkeys(attributes, "***")
    assert request["platform_customer_id"] == "5"


def test_an_export_has_what_is_needed_to_publish_the_message_again(
    shop: Shop, database: Database, consume: Consume, refused: set[str], everything: Selection
) -> None:
    refused.add("000000777")
    published = shop.publish_order("000000777")
    consume()
    (record,) = export_records(database, failures.matching(database, everything))
    assert (record["id"], record["topic"], record["reason"]) == (published.message_id, TOPIC_ORDER, "http_400")
    assert record["body"] == shop.body(published.message_id)
    assert json.loads(json.dumps(record)) == record


def test_a_body_beyond_max_allowed_packet_is_exported_whole(
    shop: Shop, database: Database, everything: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = stored_body({"order_id": "1", "note": "प्रिया" * 300})
    shop.publish_body(TOPIC_ORDER, body)
    shop.query("UPDATE {prefix}queue_message_status SET status = 6")
    monkeypatch.setattr(failures, "READ_BYTES", 100)
    monkeypatch.setattr(failures, "_PIECE", 333)
    (record,) = export_records(database, failures.matching(database, everything))
    assert record["body"] == body


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("2h", 7200), ("1.5h", 5400), ("7d", 604_800), ("30", 30)]
)
def test_an_age_is_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert age(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "2w", "-1h", "1h30m"])
def test_what_is_no_age_is_refused_with_the_units_there_are(text: str) -> None:
    with pytest.raises(click.BadParameter, match="write 90s, 15m, 2h or 7d"):
        age(text)


def test_each_option_selects_by_what_it_names() -> None:
    choice = Choice(topics=(), reasons=("http_400",), group="order:1", older_than=60.0, newer_than=3600.0)
    queues = [QueueRow(7, "zithara_order_queue", TOPIC_ORDER)]
    waiting = selection_of(queues, choice, waiting=True)
    assert waiting == Selection(
        queue_ids=[7],
        statuses=(Status.ERROR, Status.RETRY_REQUIRED),
        reasons=("http_400",),
        group_key="order:1",
        older_than_seconds=60.0,
        newer_than_seconds=3600.0,
    )
    assert selection_of(queues, choice) == replace(waiting, statuses=(Status.ERROR,))
