"""What `status` says of queues, rates and workers, and how it is drawn."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.workers import Clock, StepWorker

from zithara_worker.commands.rendering import fit, plain_length, printable, sparkline, table
from zithara_worker.commands.status import picture, report
from zithara_worker.database.session import Database
from zithara_worker.errors import ShopError
from zithara_worker.messages import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER, TOPICS, Outcome, OutcomeKind
from zithara_worker.monitor.fleet import BUCKETS_MS
from zithara_worker.monitor.registry import Identity, MinuteCounters, Registry
from zithara_worker.monitor.status import FleetStatus, TopicStatus, as_json, percentile, status
from zithara_worker.queue.operator import pause
from zithara_worker.sandbox.api import FakeZithara, Reply
from zithara_worker.sandbox.publisher import stored_body
from zithara_worker.sandbox.shop import Shop


def topic(found: FleetStatus, name: str) -> TopicStatus:
    return next(each for each in found.topics if each.topic == name)


def register(database: Database, worker_id: str = "shop1-7-abcd", **told: Any) -> Registry:
    registry = Registry(database, Identity(id=worker_id, host="shop1", pid=7, version="1.0", topics=TOPICS))
    registry.seen(**{"in_flight": 0, "metrics_address": None, "state": {}, "minutes": {}, **told})
    return registry


def minutes(outcomes: dict[OutcomeKind, int], *, topic: str = TOPIC_ORDER, ms: float = 75.0) -> dict[str, Any]:
    counters = MinuteCounters(time.time)
    for kind, number in outcomes.items():
        for _ in range(number):
            counters.count(topic, Outcome(kind=kind, duration_ms=ms))
    return counters.minutes()


@pytest.mark.parametrize("indexed", [False, True])
def test_messages_are_counted_by_status_with_the_age_of_the_oldest(
    shop: Shop, database: Database, indexed: bool
) -> None:
    if indexed:
        shop.run_script("optional_index.sql")
    shop.publish_bodies(TOPIC_ORDER, [stored_body({"order_id": str(n)}) for n in range(8)])
    for id, code in ((1, 3), (2, 4), (3, 4), (4, 5), (5, 6)):
        shop.query("UPDATE {prefix}queue_message_status SET status = %s WHERE id = %s", (code, id))
    shop.make_older(minutes=10, relation_ids=[6])
    found = topic(status(database, {}, full=True), TOPIC_ORDER)
    assert (found.new, found.in_progress, found.retry, found.error, found.complete) == (3, 1, 1, 1, 2)
    assert found.oldest_new_seconds is not None and 600 <= found.oldest_new_seconds < 660
    assert topic(status(database, {}), TOPIC_ORDER).complete is None
    assert topic(status(database, {}), TOPIC_CART).new == 0


@pytest.mark.parametrize(
    ("indexed", "key"), [(False, "STATUS_UPDATED_AT"), (True, "ZITHARA_QUEUE_ID_STATUS_MESSAGE_ID")]
)
def test_counting_reads_no_completed_rows(shop: Shop, database: Database, indexed: bool, key: str) -> None:
    if indexed:
        shop.run_script("optional_index.sql")
    shop.publish_bodies(TOPIC_ORDER, [stored_body({"order_id": str(n)}) for n in range(2000)])
    shop.query("UPDATE {prefix}queue_message_status SET status = 4 WHERE id > 10")
    assert database.has_pending_index is indexed
    reading = shop.connect()
    try:
        with reading.cursor() as cursor:
            statement = database.text("queue_counts_indexed" if indexed else "queue_counts")
            cursor.execute("EXPLAIN " + statement, {"queue_ids": [1, 2, 3, 4]})
            assert any(key in str(row) for row in cursor.fetchall())
            cursor.execute("FLUSH STATUS")
            cursor.execute(statement, {"queue_ids": [1, 2, 3, 4]})
            cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
            assert sum(int(value) for _, value in cursor.fetchall()) < 200
    finally:
        reading.close()


def test_a_shop_without_magentos_index_on_the_status_is_read_all_the_same(shop: Shop, database: Database) -> None:
    shop.query("ALTER TABLE {prefix}queue_message_status DROP INDEX QUEUE_MESSAGE_STATUS_STATUS_UPDATED_AT")
    shop.publish_order()
    assert topic(status(database, {}), TOPIC_ORDER).new == 1


def test_messages_in_progress_without_a_lease_are_told_after_a_while(shop: Shop, database: Database) -> None:
    shop.publish_order()
    shop.query("UPDATE {prefix}queue_message_status SET status = 3")
    assert not any("doctor" in line for line in report(status(database, {}), width=80))
    shop.make_older(minutes=5)
    assert any("1 in progress that no worker here holds" in line for line in report(status(database, {}), width=80))


def test_waiting_groups_tell_when_the_next_is_due(
    shop: Shop, api: FakeZithara, database: Database, consume: Callable[[], None]
) -> None:
    shop.publish_order()
    shop.query(
        "INSERT INTO {prefix}zithara_message_group (queue_id, group_key, id, message_id, not_before) "
        "SELECT queue_id, 'order:1', id, message_id, NOW(3) + INTERVAL 90 SECOND FROM {prefix}queue_message_status"
    )
    found = topic(status(database, {}), TOPIC_ORDER)
    assert found.groups_waiting == 1
    assert found.retry_due_seconds is not None and 80 < found.retry_due_seconds <= 90


def test_a_worker_is_shown_with_what_it_holds(shop: Shop, database: Database) -> None:
    worker = StepWorker(shop, Clock(), worker_id="shop1-7-abcd")
    try:
        shop.publish_order("000000101")
        shop.publish_order("000000102")
        worker.pulse()
        assert len(worker.take(10)) == 2
    finally:
        worker.database.close()
    state = {"api": {"breaker": "open", "why": "http_503", "next_probe_seconds": 12.0, "throttled_seconds": 0}}
    register(database, in_flight=2, state=state)
    found = status(database, {})
    (shown,) = found.workers
    assert (shown.host, shown.pid, shown.alive, shown.registered, shown.held) == (
        "shop1",
        7,
        True,
        True,
        {TOPIC_ORDER: 2},
    )
    assert topic(found, TOPIC_ORDER).groups_in_flight == 2
    assert any("api open (http_503), probe in 12s" in line for line in report(found, width=80))


def test_a_dead_worker_and_one_without_a_row_are_told(shop: Shop, database: Database) -> None:
    register(database, "shop1-7-dead")
    shop.query("UPDATE {prefix}zithara_worker SET last_seen_at = NOW(3) - INTERVAL 5 MINUTE")
    shop.query(
        "INSERT INTO {prefix}zithara_message_group (queue_id, group_key, id, message_id, worker_id, lease_until) "
        "VALUES (1, 'order:1', 1, 1, 'shop2-9-gone', NOW(3) - INTERVAL 1 MINUTE)"
    )
    found = status(database, {})
    assert found.alive == []
    assert {worker.id: worker.registered for worker in found.workers} == {"shop1-7-dead": True, "shop2-9-gone": False}
    assert topic(found, TOPIC_ORDER).leases_expired == 1


def test_rates_are_those_of_all_workers_together(shop: Shop, database: Database) -> None:
    register(database, "a", minutes=minutes({OutcomeKind.DELIVERED: 30, OutcomeKind.RETRY: 10}))
    register(database, "b", minutes=minutes({OutcomeKind.DELIVERED: 60, OutcomeKind.SKIPPED: 0}))
    shop.query("UPDATE {prefix}zithara_worker SET started_at = NOW(3) - INTERVAL 1 HOUR")
    found = status(database, {})
    rates = topic(found, TOPIC_ORDER).rates
    assert rates.failure_rate == 0.1
    assert 90 / 5 <= rates.done_per_minute <= 90 / 4
    assert rates.p50_ms == 75.0
    assert topic(found, TOPIC_CUSTOMER).rates.failure_rate is None
    assert sum(minute.done for minute in found.history) == 90
    assert sum(minute.retried for minute in found.history) == 10


def test_the_backlog_drains_at_the_present_rate(shop: Shop, database: Database) -> None:
    shop.publish_bodies(TOPIC_ORDER, [stored_body({"order_id": str(n)}) for n in range(40)])
    assert topic(status(database, {}), TOPIC_ORDER).drain_seconds is None
    register(database, minutes=minutes({OutcomeKind.DELIVERED: 40}))
    shop.query("UPDATE {prefix}zithara_worker SET started_at = NOW(3) - INTERVAL 1 HOUR")
    found = topic(status(database, {}), TOPIC_ORDER)
    assert found.drain_seconds is not None and 200 < found.drain_seconds <= 301
    assert topic(status(database, {}), TOPIC_CART).drain_seconds == 0
    pause(database, [TOPIC_ORDER], by="anna@shop1", reason="import", audit=lambda lines: None)
    paused = topic(status(database, {}), TOPIC_ORDER)
    assert paused.drain_seconds is None and paused.pause is not None and paused.pause.paused_by == "anna@shop1"


def test_counters_of_another_version_are_left_out(database: Database) -> None:
    now = str(int(time.time() // 60))
    register(database, "a", minutes={now: {TOPIC_ORDER: {"outcomes": [1], "buckets": [1, 2]}, "x": 7}, "y": None})
    register(database, "b", minutes=minutes({OutcomeKind.DELIVERED: 3}))
    assert sum(minute.done for minute in status(database, {}).history) == 3


def test_a_worker_that_ended_in_order_is_gone_and_its_failures_are_counted(
    shop: Shop, api: FakeZithara, database: Database, consume: Callable[[], None]
) -> None:
    api.responder = lambda request: Reply.error(400) if request.path.endswith("/customer") else None
    shop.publish_samples()
    consume()
    found = status(database, {})
    assert topic(found, TOPIC_CUSTOMER).error == 1
    assert found.workers == ()  # it took its row along


def test_a_topic_without_a_queue_is_told_and_without_any_is_an_error(shop: Shop, database: Database) -> None:
    shop.query("DELETE FROM {prefix}queue WHERE name = 'zithara_cart_queue'")
    found = status(database, {})
    assert topic(found, TOPIC_CART).queue is None
    assert any("no queue for it" in line for line in report(found, width=80))
    shop.query("DELETE FROM {prefix}queue")
    with pytest.raises(ShopError, match="zithara-worker install"):
        status(database, {})


def test_json_says_what_the_table_says(shop: Shop, database: Database) -> None:
    shop.publish_samples()
    register(database, minutes=minutes({OutcomeKind.DELIVERED: 5}))
    pause(database, [TOPIC_ORDER], by="anna@shop1", reason="import", audit=lambda lines: None)
    value = json.loads(json.dumps(as_json(status(database, {}))))
    orders = next(each for each in value["topics"] if each["topic"] == TOPIC_ORDER)
    assert (orders["new"], orders["paused"], orders["pause"]["reason"]) == (2, True, "import")
    assert value["total"]["new"] == len(shop.rows()) and value["total"]["workers_alive"] == 1
    assert [minute["done"] for minute in value["total"]["history"]] == [5]
    assert value["workers"][0]["started_at"].endswith("Z")


# ---------------------------------------------------------------- how it looks


def test_a_report_fits_80_columns_and_a_wide_one_shows_more(shop: Shop, database: Database) -> None:
    shop.publish_bodies(TOPIC_ORDER, [stored_body({"order_id": str(n)}) for n in range(3)])
    shop.make_older(minutes=3000)
    trouble = {OutcomeKind.DELIVERED: 500, OutcomeKind.FAILED: 77}
    register(database, "shop1-7-abcd", minutes=minutes(trouble, ms=1234.5), in_flight=123)
    found = status(database, {}, full=False)
    narrow, wide = report(found, width=80), report(found, width=120)
    assert max(plain_length(line) for line in narrow) <= 80
    assert "P99" not in "".join(narrow) and "P99" in "".join(wide)


def test_a_picture_fits_its_window_whatever_its_size(shop: Shop, database: Database) -> None:
    for number in range(9):
        register(database, f"shop1-{number}-abcd")
    found = status(database, {})
    for rows in (5, 10, 24, 60):
        lines = picture(found, "", columns=80, rows=rows, plain=False)
        assert len(lines) == rows and "q quit" in lines[-1]
    assert "enlarge" in "".join(picture(found, "", columns=80, rows=12, plain=False))
    assert "gone away" in picture(found, "server has gone away", columns=80, rows=24, plain=False)[0]
    assert len(picture(None, "server has gone away", columns=80, rows=24, plain=False)) == 24


def test_colours_can_be_refused(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    found = status(database, {})
    assert "\x1b[" in "".join(report(found, width=80))
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in "".join(report(found, width=80))


def test_percentiles_go_by_straight_lines_within_a_bucket() -> None:
    buckets = [0] * (len(BUCKETS_MS) + 1)
    assert percentile(buckets, 0.5) is None
    buckets[4] = 10  # 50 to 100 ms
    assert percentile(buckets, 0.5) == 75.0
    buckets[-1] = 90  # above 30 s
    assert percentile(buckets, 0.95) == 30000.0


def test_sparklines_show_nothing_little_and_most() -> None:
    assert sparkline([0, 1, 50, 100]) == " ▁▄█"
    assert sparkline([0, 1, 50, 100], plain=True) == " _=#"
    assert sparkline([0, 0]) == "  "


def test_what_a_server_wrote_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in printable("red \x1b[31m\x9b31m\r\n")
    assert printable("abcdef", width=4) == "abc…"


def test_a_styled_line_is_cut_by_its_columns() -> None:
    assert plain_length(fit("\x1b[31mabcdef\x1b[0mgh", 3)) == 3
    assert fit("\x1b[31mabc\x1b[0m", 3) == "\x1b[31mabc\x1b[0m"


def test_columns_are_aligned_under_their_heads() -> None:
    assert table(("A", "NUMBER"), [("long name", "1"), ("b", "\x1b[31m12\x1b[0m")]) == [
        "A          NUMBER",
        "long name       1",
        "b              \x1b[31m12\x1b[0m",
    ]
