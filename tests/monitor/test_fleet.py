"""The read model of the fleet: what stands in the shop's database, added up."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict

import pytest
from support.fleet import counted, register
from support.workers import Clock, StepWorker

from zithara_worker.database.session import Database
from zithara_worker.errors import ShopError
from zithara_worker.messages import Outcome, OutcomeKind
from zithara_worker.monitor import fleet
from zithara_worker.monitor.conditions import Level, conditions
from zithara_worker.monitor.fleet import RABBITMQ, RELAY, FleetStatus, RelayedQueue, TopicStatus, read_fleet
from zithara_worker.monitor.registry import MinuteCounters
from zithara_worker.queue.operator import pause
from zithara_worker.sandbox.api import FakeZithara, Reply
from zithara_worker.sandbox.publisher import stored_body
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER, TOPICS


def topic(found: FleetStatus, name: str) -> TopicStatus:
    return next(each for each in found.topics if each.topic == name)


@pytest.mark.usefixtures("index")
def test_messages_are_counted_by_status_with_the_age_of_the_oldest(shop: Shop, database: Database) -> None:
    shop.publish_bodies(TOPIC_ORDER, [stored_body({"order_id": str(n)}) for n in range(8)])
    for id, code in ((1, 3), (2, 4), (3, 4), (4, 5), (5, 6)):
        shop.query("UPDATE {prefix}queue_message_status SET status = %s WHERE id = %s", (code, id))
    shop.make_older(minutes=10, relation_ids=[6])
    found = topic(read_fleet(database, {}, full=True), TOPIC_ORDER)
    assert (found.new, found.in_progress, found.retry, found.error, found.complete) == (3, 1, 1, 1, 2)
    assert found.oldest_new_seconds is not None and 600 <= found.oldest_new_seconds < 660
    assert topic(read_fleet(database, {}), TOPIC_ORDER).complete is None
    assert topic(read_fleet(database, {}), TOPIC_CART).new == 0


def test_counting_reads_no_completed_rows(shop: Shop, index: bool, database: Database) -> None:
    shop.publish_bodies(TOPIC_ORDER, [stored_body({"order_id": str(n)}) for n in range(2000)])
    shop.query("UPDATE {prefix}queue_message_status SET status = 4 WHERE id > 10")
    assert database.has_pending_index is index
    key = "ZITHARA_QUEUE_ID_STATUS_MESSAGE_ID" if index else "STATUS_UPDATED_AT"
    with shop.connect() as reading, reading.cursor() as cursor:
        statement = database.text("queue_counts_indexed" if index else "queue_counts")
        cursor.execute("EXPLAIN " + statement, {"queue_ids": [1, 2, 3, 4]})
        assert any(key in str(row) for row in cursor.fetchall())
        cursor.execute("FLUSH STATUS")
        cursor.execute(statement, {"queue_ids": [1, 2, 3, 4]})
        cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
        assert sum(int(value) for _, value in cursor.fetchall()) < 200


def test_a_shop_without_magentos_index_on_the_status_is_read_all_the_same(shop: Shop, database: Database) -> None:
    shop.query("ALTER TABLE {prefix}queue_message_status DROP INDEX QUEUE_MESSAGE_STATUS_STATUS_UPDATED_AT")
    shop.publish_order()
    assert topic(read_fleet(database, {}), TOPIC_ORDER).new == 1


def test_waiting_groups_tell_when_the_next_is_due(
    shop: Shop, api: FakeZithara, database: Database, consume: Callable[[], None]
) -> None:
    shop.publish_order()
    shop.query(
        "INSERT INTO {prefix}zithara_message_group (queue_id, group_key, id, message_id, not_before) "
        "SELECT queue_id, 'order:1', id, message_id, NOW(3) + INTERVAL 90 SECOND FROM {prefix}queue_message_status"
    )
    found = topic(read_fleet(database, {}), TOPIC_ORDER)
    assert found.groups_waiting == 1
    assert found.retry_due_seconds is not None and 80 < found.retry_due_seconds <= 90


def test_a_worker_is_shown_with_what_it_holds(shop: Shop, database: Database) -> None:
    with closing(StepWorker(shop, Clock(), worker_id="shop1-7-abcd")) as worker:
        shop.publish_order("000000101")
        shop.publish_order("000000102")
        worker.poll()
        assert len(worker.take(10)) == 2
    state = {"api": {"breaker": "open", "why": "http_503", "next_probe_seconds": 12.0, "throttled_seconds": 0}}
    register(database, in_flight=2, state=state)
    found = read_fleet(database, {})
    (shown,) = found.workers
    assert (shown.host, shown.pid, shown.alive, shown.registered, shown.held) == (
        "shop1",
        7,
        True,
        True,
        {TOPIC_ORDER: 2},
    )
    assert topic(found, TOPIC_ORDER).groups_in_flight == 2
    (report,) = shown.target_reports
    assert (report.target, report.breaker, report.why, report.next_probe_seconds) == ("api", "open", "http_503", 12.0)


def test_workers_that_die_at_each_start_do_not_hide_a_living_one(
    shop: Shop, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "WORKERS", 2)
    for number in range(3):
        register(database, f"shop1-9-dead{number}")
    shop.query("UPDATE {prefix}zithara_worker SET last_seen_at = NOW(3) - INTERVAL 1 HOUR")
    register(database, "shop1-7-living")
    found = read_fleet(database, {})
    assert [worker.id for worker in found.alive] == ["shop1-7-living"] and len(found.workers) == 2


def test_a_dead_worker_and_one_without_a_row_are_told(shop: Shop, database: Database) -> None:
    register(database, "shop1-7-dead")
    shop.query("UPDATE {prefix}zithara_worker SET last_seen_at = NOW(3) - INTERVAL 5 MINUTE")
    shop.query(
        "INSERT INTO {prefix}zithara_message_group (queue_id, group_key, id, message_id, worker_id, lease_until) "
        "VALUES (1, 'order:1', 1, 1, 'shop2-9-gone', NOW(3) - INTERVAL 1 MINUTE)"
    )
    found = read_fleet(database, {})
    assert found.alive == []
    assert {worker.id: worker.registered for worker in found.workers} == {"shop1-7-dead": True, "shop2-9-gone": False}
    gone = found.workers[1]
    assert (gone.host, gone.held, 60 <= gone.last_seen_seconds < 70) == ("shop2", {TOPIC_ORDER: 1}, True)
    assert topic(found, TOPIC_ORDER).leases_expired == 1


def test_a_worker_without_a_row_lives_as_long_as_one_of_its_leases(shop: Shop, database: Database) -> None:
    shop.query(
        "INSERT INTO {prefix}zithara_message_group (queue_id, group_key, id, message_id, worker_id, lease_until) "
        "VALUES (1, 'order:1', 1, 1, 'shop2-9-gone', NOW(3) - INTERVAL 1 MINUTE), "
        "(3, 'cart:1', 2, 2, 'shop2-9-gone', NOW(3) + INTERVAL 1 MINUTE), "
        "(99, 'x', 3, 3, 'shop2-9-gone', NOW(3) - INTERVAL 1 MINUTE)"
    )
    (worker,) = read_fleet(database, {}).workers
    assert (worker.alive, worker.registered, worker.last_seen_seconds, worker.started_utc) == (True, False, 0.0, None)
    assert sorted(worker.held.values()) == [1, 1, 1] and "queue 99" in worker.held


def test_rates_are_those_of_all_workers_together(shop: Shop, database: Database) -> None:
    register(database, "a", minutes=counted({OutcomeKind.DELIVERED: 30, OutcomeKind.RETRY: 10}))
    register(database, "b", minutes=counted({OutcomeKind.DELIVERED: 60, OutcomeKind.SKIPPED: 0}))
    shop.query("UPDATE {prefix}zithara_worker SET started_at = NOW(3) - INTERVAL 1 HOUR WHERE id = 'a'")
    found = read_fleet(database, {})
    rates = topic(found, TOPIC_ORDER).rates
    assert rates.failure_rate == 0.1
    assert 90 / 5 <= rates.done_per_minute <= 90 / 4
    assert rates.p50_ms == 75.0
    assert topic(found, TOPIC_CUSTOMER).rates.failure_rate is None
    assert sum(minute.done for minute in found.history) == 90
    assert sum(minute.retried for minute in found.history) == 10


def test_what_a_stopped_worker_did_goes_on_counting_for_an_hour(shop: Shop, database: Database) -> None:
    registry = register(database, "old", minutes=counted({OutcomeKind.DELIVERED: 1}))
    registry.stopped(counted({OutcomeKind.DELIVERED: 30}))
    register(database, "new", minutes=counted({OutcomeKind.DELIVERED: 10}))
    found = read_fleet(database, {})
    assert [worker.id for worker in found.workers] == ["new"]
    assert sum(minute.done for minute in found.history) == 40
    assert topic(found, TOPIC_ORDER).workers == 1

    age = "UPDATE {prefix}zithara_worker SET last_seen_at = last_seen_at - INTERVAL 59 MINUTE"
    shop.query(age)
    registry.remove_stale()
    assert shop.query("SELECT COUNT(*) FROM {prefix}zithara_worker") == [(2,)]
    shop.query(age)
    registry.remove_stale()
    assert shop.query("SELECT id FROM {prefix}zithara_worker") == [("new",)], "that of a dead one is kept for a day"


def test_what_was_not_sent_within_the_hour_is_told_by_reason(shop: Shop, database: Database) -> None:
    counters = MinuteCounters(time.time)
    for reason in ("overtaken", "unchanged", "unchanged"):
        counters.count(TOPIC_CART, Outcome(kind=OutcomeKind.SKIPPED, reason=reason))
    hour_ago = {str(int(time.time() // 60) - 61): counters.minutes().popitem()[1]}
    register(database, "a", minutes=counters.minutes() | hour_ago)
    found = topic(read_fleet(database, {}), TOPIC_CART)
    assert list(found.skipped.items()) == [("unchanged", 2), ("overtaken", 1)]
    assert not topic(read_fleet(database, {}), TOPIC_ORDER).skipped


def test_a_living_worker_tells_which_topics_it_does_not_compare(shop: Shop, database: Database) -> None:
    register(database, "a", state={"api": {"breaker": "closed"}, "uncompared": [TOPIC_CART]})
    register(database, "b", state={"uncompared": "another version"})
    found = read_fleet(database, {})
    assert [each.topic for each in found.topics if each.uncompared] == [TOPIC_CART]
    assert [each.targets for each in found.workers] == [{"api": {"breaker": "closed"}}, {}]
    assert "sent, because others deliver" in " ".join(map(str, conditions(found)))
    shop.query("UPDATE {prefix}zithara_worker SET last_seen_at = NOW(3) - INTERVAL 5 MINUTE")
    assert not any(each.uncompared for each in read_fleet(database, {}).topics)


def test_relays_are_apart_from_workers_and_tell_what_waits_in_rabbitmq(shop: Shop, database: Database) -> None:
    counters = MinuteCounters(time.time)
    counters.count_relayed(TOPIC_ORDER, 30)
    counters.count_relayed(TOPIC_ORDER, 12)
    counters.count(TOPIC_ORDER, Outcome(kind=OutcomeKind.DELIVERED))
    queues = {
        TOPIC_ORDER: asdict(RelayedQueue(state="active", waiting=7, consumers=1)),
        TOPIC_CART: asdict(RelayedQueue(state="waiting", why="no queue")),
    }
    register(database, "shop1-8-a", role=RELAY, state={RABBITMQ: queues}, minutes=counters.minutes())
    register(database, "shop1-9-b", role=RELAY, state={RABBITMQ: {TOPIC_ORDER: "another version", TOPIC_CART: {}}})
    found = read_fleet(database, {})
    assert (found.alive, found.workers, [relay.id for relay in found.relays]) == ([], (), ["shop1-8-a", "shop1-9-b"])
    order, cart = topic(found, TOPIC_ORDER), topic(found, TOPIC_CART)
    assert (order.workers, order.relays, order.relay_missing, order.rabbitmq) == (0, 2, False, 7)
    assert (cart.relays, cart.rabbitmq) == (2, None)
    assert sum(minute.relayed for minute in order.history) == 42 and sum(minute.done for minute in order.history) == 1
    assert order.rates.relayed_per_minute > 0
    assert found.relays[0].rabbitmq[TOPIC_CART].why == "no queue" and not found.relays[0].targets
    told = [str(each) for each in conditions(found) if "RabbitMQ" in each.text]
    assert told == [f"relay shop1 7 takes nothing of {TOPIC_CART} from RabbitMQ at present: it is waiting: no queue"]

    shop.query("UPDATE {prefix}zithara_worker SET last_seen_at = NOW(3) - INTERVAL 1 MINUTE WHERE id = 'shop1-8-a'")
    assert topic(read_fleet(database, {}), TOPIC_ORDER).rabbitmq is None, "of a dead relay"
    shop.query("UPDATE {prefix}zithara_worker SET last_seen_at = NOW(3) - INTERVAL 1 MINUTE")
    found = read_fleet(database, {})
    assert topic(found, TOPIC_ORDER).relay_missing
    assert [each for each in conditions(found) if "the relay of" in each.text and each.level is Level.CRITICAL]


def test_messages_kept_aside_are_counted_once_each(shop: Shop, database: Database) -> None:
    for piece in (0, 1):
        shop.query(
            "INSERT INTO {prefix}zithara_relay_aside (id, piece, pieces, queue_name, topic_name, message_id, length, "
            "reason_code, detail, kept_at, content) VALUES ('a', %s, 2, 'q', %s, 'm', 9, 'x', '', NOW(3), 'y')",
            (piece, TOPIC_ORDER),
        )
    found = read_fleet(database, {})
    assert (topic(found, TOPIC_ORDER).aside, topic(found, TOPIC_CART).aside) == (1, 0)
    assert [each for each in conditions(found) if each.text.startswith(f"1 message of {TOPIC_ORDER} from RabbitMQ")]


def test_the_backlog_drains_at_the_present_rate(shop: Shop, database: Database) -> None:
    shop.publish_bodies(TOPIC_ORDER, [stored_body({"order_id": str(n)}) for n in range(40)])
    assert topic(read_fleet(database, {}), TOPIC_ORDER).drain_seconds is None
    register(database, minutes=counted({OutcomeKind.DELIVERED: 40}))
    shop.query("UPDATE {prefix}zithara_worker SET started_at = NOW(3) - INTERVAL 1 HOUR")
    found = topic(read_fleet(database, {}), TOPIC_ORDER)
    assert found.drain_seconds is not None and 200 < found.drain_seconds <= 301
    assert topic(read_fleet(database, {}), TOPIC_CART).drain_seconds == 0
    pause(database, [TOPIC_ORDER], by="anna@shop1", reason="import", audit=lambda lines: None)
    paused = topic(read_fleet(database, {}), TOPIC_ORDER)
    assert paused.drain_seconds is None and paused.pause is not None and paused.pause.paused_by == "anna@shop1"


def test_nothing_promises_an_end_to_a_backlog_while_nothing_flows(shop: Shop, database: Database) -> None:
    shop.publish_bodies(TOPIC_ORDER, [stored_body({"order_id": "1"})])
    (now, counts), *_ = counted({OutcomeKind.DELIVERED: 40}).items()
    register(database, minutes={str(int(now) - 3): counts})
    found = topic(read_fleet(database, {}), TOPIC_ORDER)
    assert found.rates.done_per_minute > 0 and found.drain_seconds is None, "what flowed was three minutes ago"
    is_open = {"breaker": "open"}
    for state in ({}, {"/cart": is_open}):
        register(database, minutes={now: counts}, state=state)
        assert topic(read_fleet(database, {}), TOPIC_ORDER).drain_seconds is not None
    stopped = ({"api": is_open}, {"/order": is_open}, {"shop_disabled": True}, {"audit_problem": "full"})
    for state in (*stopped, {"turn_problem": "INSERT denied"}):
        register(database, minutes={now: counts}, state=state)
        assert topic(read_fleet(database, {}), TOPIC_ORDER).drain_seconds is None, f"nothing is delivered: {state}"
    register(database, minutes={now: counts})
    shop.query("UPDATE {prefix}zithara_worker SET last_seen_at = NOW(3) - INTERVAL 1 MINUTE")
    assert topic(read_fleet(database, {}), TOPIC_ORDER).drain_seconds is None, "the worker is dead"


def test_counters_of_another_version_are_left_out(database: Database) -> None:
    now = str(int(time.time() // 60))
    register(database, "a", minutes={now: {TOPIC_ORDER: {"outcomes": [1], "buckets": [1, 2]}, "x": 7}, "y": None})
    register(database, "b", minutes=counted({OutcomeKind.DELIVERED: 3}))
    assert sum(minute.done for minute in read_fleet(database, {}).history) == 3


def test_a_worker_that_ended_in_order_is_gone_and_its_failures_are_counted(
    shop: Shop, api: FakeZithara, database: Database, consume: Callable[[], None]
) -> None:
    api.responder = lambda request: Reply.error(400) if request.path.endswith("/customer") else None
    shop.publish_samples()
    consume()
    found = read_fleet(database, {})
    assert topic(found, TOPIC_CUSTOMER).error == 1
    assert found.workers == ()  # it took its row along


def test_a_topic_without_a_queue_is_told_and_without_any_is_an_error(shop: Shop, database: Database) -> None:
    shop.query("DELETE FROM {prefix}queue WHERE name = 'zithara_cart_queue'")
    found = read_fleet(database, {})
    assert topic(found, TOPIC_CART).queue is None
    shop.query("DELETE FROM {prefix}queue")
    with pytest.raises(ShopError, match="zithara-worker install"):
        read_fleet(database, {})


def test_a_topic_is_served_by_the_workers_that_were_seen_lately(shop: Shop, database: Database) -> None:
    """Each topic has a process of its own, and that of the orders was killed: its row stays, the others go on."""
    for number, topic in enumerate(TOPICS):
        register(database, topic)
        shop.query(
            "UPDATE {prefix}zithara_worker SET topics = %s, last_seen_at = UTC_TIMESTAMP(3) - INTERVAL %s SECOND "
            "WHERE id = %s",
            (topic, 40 if topic == TOPIC_ORDER else 2 * number, topic),
        )
    register(database, "several")
    shop.query("UPDATE {prefix}zithara_worker SET topics = %s WHERE id = 'several'", (f"{TOPIC_CART},other",))
    seen = read_fleet(database, {})
    assert {each.topic: each.workers for each in seen.topics} == {
        topic: {TOPIC_ORDER: 0, TOPIC_CART: 2}.get(topic, 1) for topic in TOPICS
    }
    assert [worker.id for worker in seen.workers if not worker.alive] == [TOPIC_ORDER]


def test_a_queue_of_another_name_is_found_as_configured(shop: Shop, database: Database) -> None:
    shop.query("UPDATE {prefix}queue SET name = 'renamed' WHERE name = 'zithara_cart_queue'")
    assert topic(read_fleet(database, {}), TOPIC_CART).queue is None
    assert topic(read_fleet(database, {TOPIC_CART: "renamed"}), TOPIC_CART).queue == "renamed"
