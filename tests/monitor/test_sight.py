"""What the page and the queue metrics look at is what stands in the database, read seldom and never waited for."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.waiting import eventually
from support.workers import settings_of

from zithara_worker.database.session import Database
from zithara_worker.errors import DatabaseUnavailable
from zithara_worker.messages import TOPIC_CART, TOPIC_ORDER, TOPICS
from zithara_worker.monitor import sight as looking
from zithara_worker.monitor.fleet import BUCKETS_MS
from zithara_worker.monitor.sight import Minute, Watch, look, percentile, summed
from zithara_worker.queue.statuses import Status
from zithara_worker.sandbox.shop import Shop

BUCKETS = [0] * (len(BUCKETS_MS) + 1)


@pytest.fixture
def database(shop: Shop) -> Iterator[Database]:
    opened = Database(settings_of(shop))
    yield opened
    opened.close()


def counts(**outcomes: int) -> dict[str, Any]:
    return {"outcomes": outcomes, "superseded": 1, "buckets": [*BUCKETS[:-1], sum(outcomes.values())]}


def add_worker(shop: Shop, worker_id: str, minutes: Any) -> None:
    state = json.dumps({"api": {"breaker": "open", "why": "http_503"}, "other": "version", "webhook": {"why": ""}})
    shop.query(
        "INSERT INTO {prefix}zithara_worker (id, host, pid, version, topics, started_at, last_seen_at, "
        "metrics_address, in_flight, state, minutes) VALUES (%s, 'shop1', 7, '0.1', %s, "
        "UTC_TIMESTAMP(3) - INTERVAL 1 HOUR, UTC_TIMESTAMP(3), '127.0.0.1:9209', 3, %s, %s)",
        (worker_id, TOPIC_ORDER, state, json.dumps(minutes)),
    )


@pytest.mark.parametrize("index", [False, True], ids=["Magento's indexes", "with the optional index"])
def test_queues_are_counted_without_completed_messages(shop: Shop, database: Database, index: bool) -> None:
    if index:
        shop.run_script("optional_index.sql")
    published = [shop.publish_order(f"00000000{number}") for number in range(5)]
    for each, status in zip(published, (2, 2, 4, 5, 6), strict=True):
        shop.query(
            "UPDATE {prefix}queue_message_status SET status = %s WHERE message_id = %s", (status, each.message_id)
        )
    shop.make_older(minutes=10)
    shop.query(
        "INSERT INTO {prefix}zithara_topic_control VALUES (%s, 'anna@shop1', UTC_TIMESTAMP(3), 'stocktaking')",
        (TOPIC_CART,),
    )
    seen = {queue.topic: queue for queue in look(database, {}).queues}
    assert tuple(seen) == TOPICS
    order, cart = seen[TOPIC_ORDER], seen[TOPIC_CART]
    expected = {Status.NEW: 2, Status.IN_PROGRESS: 0, Status.RETRY_REQUIRED: 1, Status.ERROR: 1}
    assert (order.counts, order.pending) == (expected, 3)
    assert 600 <= order.oldest_ages[Status.NEW] < 700 and Status.IN_PROGRESS not in order.oldest_ages
    assert (cart.pending, cart.oldest_ages, cart.paused_by, cart.pause_reason) == (0, {}, "anna@shop1", "stocktaking")


def test_fleet_is_added_up_and_what_another_version_wrote_is_left_out(shop: Shop, database: Database) -> None:
    add_worker(shop, "a", {"100": {TOPIC_ORDER: counts(delivered=3, retry=1)}})
    add_worker(shop, "b", {"100": {TOPIC_ORDER: counts(delivered=2, skipped=1, failed=1)}, "101": "other", "x": {}})
    add_worker(shop, "c", {"102": {TOPIC_ORDER: {"outcomes": {"delivered": 9}, "buckets": [1], "superseded": 0}}})
    seen = look(database, {})
    assert [worker.id for worker in seen.workers] == ["a", "b", "c"]
    assert (
        seen.workers[0].breakers == {"api": "open"}
        and seen.workers[0].why == {"api": "http_503"}
        and 3600 <= seen.workers[0].age_seconds < 3700
    )
    assert seen.minutes.keys() == {(100, TOPIC_ORDER)}
    both = seen.minutes[100, TOPIC_ORDER]
    assert (both.done, both.superseded, both.retried, both.failed) == (6, 2, 1, 1)
    assert both.failure_share == 0.25 and sum(both.buckets) == 8


def test_a_topic_is_served_by_the_workers_that_were_seen_lately(shop: Shop, database: Database) -> None:
    """Each topic has a process of its own, and that of the orders was killed: its row stays, the others go on."""
    for number, topic in enumerate(TOPICS):
        add_worker(shop, topic, {})
        shop.query(
            "UPDATE {prefix}zithara_worker SET topics = %s, last_seen_at = UTC_TIMESTAMP(3) - INTERVAL %s SECOND "
            "WHERE id = %s",
            (topic, 40 if topic == TOPIC_ORDER else 2 * number, topic),
        )
    add_worker(shop, "several", {})
    shop.query("UPDATE {prefix}zithara_worker SET topics = %s WHERE id = 'several'", (f"{TOPIC_CART},other",))
    seen = look(database, {})
    assert {queue.topic: queue.workers for queue in seen.queues} == {
        topic: {TOPIC_ORDER: 0, TOPIC_CART: 2}.get(topic, 1) for topic in TOPICS
    }
    assert [worker.id for worker in seen.workers if not worker.alive] == [TOPIC_ORDER]


def test_a_queue_that_the_shop_does_not_have_is_left_out(shop: Shop, database: Database) -> None:
    shop.query("UPDATE {prefix}queue SET name = 'renamed' WHERE name = 'zithara_cart_queue'")
    assert TOPIC_CART not in {queue.topic for queue in look(database, {}).queues}
    assert {queue.topic for queue in look(database, {TOPIC_CART: "renamed"}).queues} == set(TOPICS)


def test_percentiles_spread_evenly_within_a_bucket() -> None:
    buckets = list(BUCKETS)
    buckets[4] = 10  # 50 to 100 ms
    assert percentile(buckets, 0.5) == 75.0
    assert percentile(BUCKETS, 0.5) is None and percentile((), 0.5) is None
    assert percentile([*BUCKETS[:-1], 1], 0.5) == BUCKETS_MS[-1]


def test_minutes_are_summed() -> None:
    both = summed([Minute(done=1, buckets=(1, 2)), Minute(retried=1, buckets=(0, 5))])
    assert (both.done, both.retried, both.buckets, both.failure_share) == (1, 1, (1, 7), 0.5)
    assert summed([]).failure_share is None


# ---------------------------------------------------------------- the watch


@contextmanager
def watching(open_database: Callable[[], Database], overrides: Any, **clock: Any) -> Iterator[Watch]:
    watch = Watch(open_database, lambda: overrides, monotonic=clock.get("monotonic", lambda: 1000.0))
    watch.start()
    try:
        yield watch
    finally:
        watch.close()


class Counted(Database):
    looks = 0

    def close(self) -> None:
        super().close()
        Counted.looks += 1


def test_database_is_looked_at_every_ten_seconds_at_most(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counted, "looks", 0)
    now = [1000.0]
    shop.publish_order()
    with watching(lambda: Counted(settings_of(shop)), {}, monotonic=lambda: now[0]) as watch:
        eventually(lambda: watch.latest()[0] is not None)
        for _ in range(5):
            assert watch.latest()[1] is None
        assert Counted.looks == 1
        assert list(watch.backlog().values()) == [{topic: int(topic == TOPIC_ORDER) for topic in TOPICS}]
        shop.publish_order("000000102")
        now[0] += looking.LOOK_SECONDS
        seen, _ = watch.latest()
        assert seen is not None and seen.queues[0].pending == 2 and Counted.looks == 2


def test_last_sight_stays_while_the_database_is_away(shop: Shop) -> None:
    now = [1000.0]
    settings = [settings_of(shop)]
    with watching(lambda: Database(settings[0]), {}, monotonic=lambda: now[0]) as watch:
        eventually(lambda: watch.latest()[0] is not None)
        settings[0] = settings_of(shop, unix_socket="/nowhere/mysqld.sock")
        now[0] += looking.LOOK_SECONDS
        seen, problem = watch.latest()
        assert seen is not None and problem is not None and "database not available" in problem


def test_nobody_waits_for_a_database_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, shop: Shop) -> None:
    monkeypatch.setattr(looking, "PATIENCE_SECONDS", 0.05)
    gate = threading.Event()

    def hangs(database: Database, overrides: Any) -> Any:
        gate.wait(10)
        raise DatabaseUnavailable("at last")

    monkeypatch.setattr(looking, "look", hangs)
    with watching(lambda: Database(settings_of(shop)), {}) as watch:
        assert watch.latest() == (None, "nothing was looked at yet")
        assert not gate.is_set()
        gate.set()
        assert eventually(lambda: watch.latest()[1] == "at last")


def test_queues_that_nobody_knows_yet_are_told() -> None:
    with watching(lambda: pytest.fail("no session is wanted"), None) as watch:
        assert eventually(lambda: watch.latest()[1] == "the database is not available yet")
