"""Failed messages: selected, counted and read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest

from zithara_worker.database.session import Database
from zithara_worker.queue import failures, operator, search
from zithara_worker.queue.failures import Selection
from zithara_worker.queue.queues import find_queues
from zithara_worker.sandbox.publisher import stored_body
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CUSTOMER, TOPIC_ORDER, TOPICS

Consume = Callable[[], None]


def test_the_newest_come_first_and_the_rest_is_counted(
    shop: Shop, database: Database, consume: Consume, refused: set[str], everything: Selection
) -> None:
    refused.add("00000077")
    ids = [shop.publish_order(f"00000077{n}").message_id for n in range(5)]
    consume()
    found, total = failures.newest(database, everything, limit=2)
    assert ([each.message_id for each in found], total) == ([ids[4], ids[3]], 5)


def test_the_newest_are_counted_by_topic_and_reason_without_reading_all(
    shop: Shop, database: Database, consume: Consume, refused: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused.add("00000077")
    orders = [shop.publish_order(f"00000077{n}") for n in range(3)]
    broken = shop.publish_body(TOPIC_CUSTOMER, "{nonsense")
    consume()
    queues = find_queues(database, TOPICS, {})
    found = [(each.topic, each.messages, each.newest_id) for each in failures.newest_by_reason(database, queues)]
    assert sorted(found) == [(TOPIC_CUSTOMER, 1, broken.message_id), (TOPIC_ORDER, 3, orders[-1].message_id)]
    shop.make_older(minutes=5, relation_ids=[broken.relation_id])
    monkeypatch.setattr(failures, "SUMMARISED", 3)
    assert [(each.topic, each.messages) for each in failures.newest_by_reason(database, queues)] == [(TOPIC_ORDER, 3)]


def test_a_selection_goes_by_topic_reason_group_and_age(
    shop: Shop, database: Database, consume: Consume, refused: set[str], everything: Selection
) -> None:
    refused.add("000000777")
    order = shop.publish_order("000000777").relation_id
    broken = shop.publish_body(TOPIC_CUSTOMER, "{nonsense").relation_id
    consume()
    shop.query(
        "UPDATE {prefix}zithara_delivery_failure SET last_failed_at = NOW(3) - INTERVAL 2 HOUR WHERE id = %s", (order,)
    )
    (orders,) = (queue.queue_id for queue in find_queues(database, [TOPIC_ORDER], {}))

    def chosen(**changes: Any) -> list[int]:
        return failures.matching(database, replace(everything, **changes))

    assert chosen() == [order, broken]
    assert chosen(queue_ids=[orders]) == [order]
    assert chosen(reasons=["not_json"]) == [broken]
    assert chosen(group_key="order:000000777") == [order]
    assert chosen(older_than_seconds=3600) == [order]
    assert chosen(newer_than_seconds=3600) == [broken]


def test_failed_messages_are_counted_by_topic_and_reason(
    shop: Shop, database: Database, consume: Consume, refused: set[str], everything: Selection
) -> None:
    refused.add("00000077")
    orders = [shop.publish_order(f"00000077{n}") for n in range(2)]
    consume()
    shop.query("UPDATE {prefix}zithara_delivery_failure SET first_failed_at = NOW(3) - INTERVAL 2 HOUR LIMIT 1")
    broken = [shop.publish_body(topic, "{nonsense") for topic in (TOPIC_ORDER, TOPIC_CUSTOMER)]
    consume()
    queues = find_queues(database, TOPICS, {})
    found = failures.summary(database, failures.matching(database, everything), queues)
    assert [(each.topic, each.reason, each.messages, each.newest_id) for each in found] == [
        (TOPIC_ORDER, "http_400", 2, orders[1].message_id),
        (TOPIC_ORDER, "not_json", 1, broken[0].message_id),
        (TOPIC_CUSTOMER, "not_json", 1, broken[1].message_id),
    ]
    ages = [datetime.now(timezone.utc).timestamp() - each.since_utc for each in found]
    assert 7190 < ages[0] < 7300 and ages[1] < 60


def test_a_long_selection_is_counted_in_parts(
    shop: Shop, database: Database, everything: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.publish_bodies(TOPIC_ORDER, [stored_body({"order_id": str(n)}) for n in range(25)])
    shop.query("UPDATE {prefix}queue_message_status SET status = 6")
    monkeypatch.setattr(failures, "PAGE", 7)
    (found,) = failures.summary(database, failures.matching(database, everything), find_queues(database, TOPICS, {}))
    ((newest,),) = shop.query("SELECT MAX(id) FROM {prefix}queue_message")
    assert (found.reason, found.messages, found.newest_id) == ("unrecorded", 25, newest)


def test_failures_of_messages_that_magento_has_deleted_are_not_listed_and_are_forgotten(
    shop: Shop, database: Database, consume: Consume, refused: set[str], everything: Selection
) -> None:
    refused.add("00000077")
    shop.publish_order("000000776")
    kept = shop.publish_order("000000777")
    consume()
    shop.make_older(minutes=8 * 1440, relation_ids=[kept.relation_id - 1])
    assert shop.run_cleanup_cron()["deleted"] == 1
    found, total = failures.newest(database, everything, limit=10)
    assert ([each.message_id for each in found], total) == ([kept.message_id], 1)
    failures.forget_deleted(database)
    assert shop.query("SELECT id FROM {prefix}zithara_delivery_failure") == [(kept.relation_id,)]


def test_the_bodies_of_one_statement_have_a_bounded_number_of_bytes_together(
    shop: Shop, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "READ_BYTES", 1000)
    small, large = stored_body({"note": "x" * 300}), stored_body({"note": "x" * 700})
    published = [shop.publish_body(TOPIC_ORDER, body).message_id for body in (small, large, large)]
    list(failures.bodies(database, published[:1]))
    before = database.statements_sent
    assert [body for _, _, body in failures.bodies(database, published)] == [small, large, large]
    assert database.statements_sent - before == 3, "the large ones each by itself"


def test_bodies_of_a_column_that_is_no_text_are_read_as_text_and_name_their_group(
    shop: Shop, database: Database, everything: Selection, audit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some installations have made queue_message.body a BLOB; the driver returns its values as bytes."""
    shop.query("ALTER TABLE {prefix}queue_message MODIFY body LONGBLOB NULL")
    small = stored_body({"platform_customer_id": "301"})
    customer = json.dumps({"platform_customer_id": "302", "first_name": "प" * 200}, ensure_ascii=False)
    large = json.dumps(customer, ensure_ascii=False)
    published = [shop.publish_body(TOPIC_CUSTOMER, body) for body in (small, large)]
    later = shop.publish_body(TOPIC_CUSTOMER, small)
    shop.query("UPDATE {prefix}queue_message_status SET status = 6")
    monkeypatch.setattr(failures, "READ_BYTES", 300)
    monkeypatch.setattr(failures, "_PIECE", 100)
    ids = [each.relation_id for each in published]
    assert [body for _, _, body in failures.with_bodies(database, ids)] == [small, large]
    first = failures.by_ids(database, ids)[0]
    assert [each.message_id for each in search.later(database, first, "customer:301")] == [later.message_id]
    operator.retry(database, ids, by="anna@shop1", force=False, audit=audit)
    groups = shop.query("SELECT group_key FROM {prefix}zithara_message_group ORDER BY group_key")
    assert groups == [("customer:301",), ("customer:302",)]
