"""The messages of one entity are found in slices of bounded cost, whatever the queue holds."""

from __future__ import annotations

import json

import pytest

from zithara_worker.database.session import Database
from zithara_worker.processors.groups import entity_key
from zithara_worker.queue import failures
from zithara_worker.queue import search as module
from zithara_worker.queue.queues import find_queues
from zithara_worker.queue.search import Slice, search
from zithara_worker.sandbox.publisher import stored_body
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CUSTOMER, TOPIC_ORDER


def rows_read(database: Database) -> int:
    """Rows and index entries that the session has read so far."""
    with database._open().cursor() as cursor:
        cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
        return sum(int(value) for _, value in cursor.fetchall())


def queue_id(database: Database, topic: str) -> int:
    return find_queues(database, [topic], {})[0].queue_id


def ids(slices: list[Slice]) -> list[int]:
    return [id for part in slices for id in sorted((each.message_id for each in part.found), reverse=True)]


def test_an_entitys_messages_are_found_newest_first_and_no_others(shop: Shop, database: Database) -> None:
    wanted = []
    for number in range(30):
        wanted += [shop.publish_customer("42", first_name=f"n{number}").message_id]
        shop.publish_customer("142")
        shop.publish_customer("7", first_name="42")
    shop.publish(TOPIC_CUSTOMER, {"platform_customer_id": 42})
    wanted.append(shop.publish_body(TOPIC_CUSTOMER, json.dumps({"platform_customer_id": "42"})).message_id)
    slices = list(search(database, queue_id(database, TOPIC_CUSTOMER), "customer:42"))
    assert ids(slices) == [wanted[-1], wanted[-1] - 1, *reversed(wanted[:-1])]
    assert [part.rows for part in slices] == [20, 72] and slices[-1].lowest == 1


@pytest.mark.parametrize("name", ["A/1", 'quo"ted', "back\\slash", "ऑर्डर", "sha256:x", "#7-b_1.2"])
def test_a_name_that_php_escapes_is_found_too(shop: Shop, database: Database, name: str) -> None:
    published = shop.publish_order(name)
    shop.publish_order("000000101")
    found = search(database, queue_id(database, TOPIC_ORDER), entity_key("order", name) or "")
    assert ids(list(found)) == [published.message_id]


def test_only_messages_of_the_window_are_looked_at(shop: Shop, database: Database) -> None:
    published = [shop.publish_order("A").message_id for _ in range(10)]
    queue = queue_id(database, TOPIC_ORDER)
    assert ids(list(search(database, queue, "order:A", above=published[6]))) == published[:6:-1]
    slices = list(search(database, queue, "order:A", rows=4))
    assert ids(slices) == published[:5:-1] and sum(part.rows for part in slices) == 4
    before = database.statements_sent
    assert list(search(database, queue, f"message:{published[0]}")) == [] and database.statements_sent == before


def test_a_statement_reads_a_bounded_number_of_rows(
    shop: Shop, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", 100)
    shop.publish_bodies(TOPIC_ORDER, [stored_body({"order": {"increment_id": f"{n:09}"}}) for n in range(1000)])
    queue = queue_id(database, TOPIC_ORDER)
    slices, costs = [], []
    before = rows_read(database)
    for part in search(database, queue, "order:000000003"):
        slices.append(part._replace(found=iter(list(part.found))))
        costs.append(rows_read(database) - before)
        before = rows_read(database)
    assert len(ids(slices)) == 1 and sum(part.rows for part in slices) == 1000
    assert max(part.rows for part in slices) == 100
    assert max(costs) < 500


def test_few_bodies_are_in_memory_at_once(shop: Shop, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "BODIES", 2)
    for _ in range(6):
        shop.publish_order("A")
    (part,) = search(database, queue_id(database, TOPIC_ORDER), "order:A")
    before = database.statements_sent
    assert [database.statements_sent - before for _ in part.found] == [1, 1, 2, 2, 3, 3]


def test_where_bodies_are_large_a_statement_reads_fewer(
    shop: Shop, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MEASURED_BYTES", 50_000)
    shop.publish_order("A")
    for _ in range(40):
        shop.publish_order("B", note="x" * 10_000)
    slices = list(search(database, queue_id(database, TOPIC_ORDER), "order:A"))
    assert ids(slices) == [1]
    assert [part.rows for part in slices][1:5] == [4, 4, 4, 4] and sum(part.rows for part in slices) == 41
