"""Long lines: many messages of one group, many rows that are not pending, many heads at once, rows locked by others."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.workers import (
    Clock,
    MakeWorker,
    StepWorker,
    group_is_body,
    groups_of,
    locked_by_somebody,
    settings_of,
)

from zithara_worker.database.session import Database
from zithara_worker.errors import DatabaseUnavailable
from zithara_worker.messages import Event, Message, OutcomeKind
from zithara_worker.processors import outline, supersedes
from zithara_worker.queue import backlog, bodies, reader
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER


def groups(messages: list[Message]) -> list[str]:
    return [message.group_key for message in messages]


def claimed_within(worker: StepWorker, claims: int, limit: int = 10) -> list[str]:
    """The groups that so many claims in a row bring, with one poll before them: what the loop does without waiting."""
    worker.poll()
    found: list[str] = []
    for _ in range(claims):
        found += groups(worker.take(limit))
    return found


@pytest.fixture
def named(make_worker: MakeWorker) -> StepWorker:
    """A worker for bodies that are the names of their groups."""
    return make_worker(identify=group_is_body)


@pytest.fixture
def small_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of the backlog, a hundred times smaller."""
    monkeypatch.setattr(backlog, "GROUP_LIMIT", 10)
    monkeypatch.setattr(backlog, "BACKLOG_LIMIT", 1000)


# --- many messages of one group --------------------------------------------------------------------------------


def test_thousands_of_messages_of_a_waiting_group_stop_nobody_behind_them(
    shop: Shop, index: bool, named: StepWorker, small_backlog: None
) -> None:
    shop.publish_bodies(TOPIC_ORDER, ["poison"])
    named.settle((named.claim()[0], OutcomeKind.RETRY), delay=3600)
    shop.publish_bodies(TOPIC_ORDER, ["poison"] * 5000 + ["free"])
    assert claimed_within(named, claims=10) == ["free"]
    assert len(named.queue._backlog) == 5001
    assert len(named.queue._backlog._known) <= 10, "the others are message ids only"


def test_a_long_group_is_delivered_in_order_and_what_php_took_of_it_is_left_out(
    shop: Shop, named: StepWorker, small_backlog: None
) -> None:
    shop.publish_bodies(TOPIC_ORDER, ["a"] * 60)
    named.look()
    first = named.take(10)
    ids = [row.message_id for row in shop.rows()]
    shop.query("UPDATE {prefix}queue_message_status SET status = 4 WHERE message_id IN %s", (ids[20:35],))
    named.deliver(first)
    assert [first[0].message_id, *named.drain()] == ids[:20] + ids[35:]
    assert len(named.queue._backlog) == 0


def test_a_late_message_finds_its_place_in_a_long_group(shop: Shop, named: StepWorker, small_backlog: None) -> None:
    with shop.transaction() as checkout:
        late = checkout.publish_body(TOPIC_ORDER, "a")
        for _ in range(30):
            shop.publish_body(TOPIC_ORDER, "a")
        [held] = named.claim()
    named.look()
    named.deliver([held])
    assert named.drain()[0] == late.message_id


def test_a_cart_with_thousands_of_snapshots_is_drained_in_few_requests_and_little_memory(
    shop: Shop, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "GROUP_LIMIT", 500)
    worker = make_worker(topic=TOPIC_CART, supersedes=supersedes, outline=outline)
    body = shop.body(shop.publish_cart("7").message_id)
    shop.publish_bodies(TOPIC_CART, [str(body)] * 2999)
    requests = 0
    while messages := worker.claim():
        requests += 1
        assert len(worker.queue._backlog._known) <= 500
        assert sum(each.length for each in worker.queue._bodies.decoded.values()) <= bodies.KEPT_BYTES
        worker.deliver(messages)
    assert requests <= 7
    assert shop.status_counts() == {4: 3000}


# --- fair shares, and rows that somebody has locked -------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 10])
def test_heads_that_are_due_and_fresh_ones_share_every_few_claims(shop: Shop, named: StepWorker, limit: int) -> None:
    """What dead workers held is claimed apart, one at a time."""
    shop.publish_bodies(TOPIC_ORDER, [f"due-{number}" for number in range(60)])
    named.settle(*((message, OutcomeKind.RELEASED) for message in named.claim()))
    shop.publish_bodies(TOPIC_ORDER, [f"fresh-{number}" for number in range(60)])
    claimed = claimed_within(named, claims=40 // limit, limit=limit)
    kinds = [group.split("-")[0] for group in claimed]
    assert min(kinds.count("due"), kinds.count("fresh")) >= 10


@pytest.mark.assumes_skip_locked
@pytest.mark.parametrize("waited", [True, False], ids=["a head that is due", "a fresh head"])
def test_a_head_whose_row_somebody_has_locked_stops_nothing_else(
    shop: Shop, clock: Clock, worker: StepWorker, waited: bool
) -> None:
    locked = [shop.publish_order(f"locked-{number}") for number in range(3)]
    if waited:
        worker.settle(*((message, OutcomeKind.RELEASED) for message in worker.claim()))
    for number in range(5):
        shop.publish_order(f"free-{number}")
    with locked_by_somebody(shop, *(each.relation_id for each in locked)):
        worker.look()
        claimed: list[Message] = []
        for _ in range(12):
            claimed += worker.take(1)
            assert worker.queue.made_progress or len(claimed) == 5, "the loop would wait for the next poll"
    assert sorted(groups(claimed)) == [f"order:free-{number}" for number in range(5)]
    worker.deliver(claimed)
    clock.pass_by(2)
    assert sorted(groups(worker.claim())) == [f"order:locked-{number}" for number in range(3)]


# --- ids and rows -------------------------------------------------------------------------------------------------


def skip_ids(shop: Shop, count: int) -> None:
    """The next message gets an id so much higher: other queues of the shop took the ids between."""
    [(newest,)] = shop.query("SELECT COALESCE(MAX(id), 1) FROM {prefix}queue_message")
    shop.query("SET SESSION insert_id = %s", (newest + count,))


def test_a_late_commit_is_seen_before_a_newer_message_however_many_ids_other_queues_have_taken(
    shop: Shop, worker: StepWorker
) -> None:
    with shop.transaction() as checkout:
        late = checkout.publish_order("1")
        skip_ids(shop, 1_000_000)
        shop.publish_order("2")
        worker.poll()
        worker.deliver(worker.take(10))
    shop.publish_order("1", is_update=True)
    worker.poll()
    assert [message.message_id for message in worker.take(10)] == [late.message_id]


def test_a_late_commit_is_looked_for_in_rows_of_this_queue_and_not_for_longer_than_some_seconds(
    shop: Shop, clock: Clock, worker: StepWorker
) -> None:
    for _ in range(3):
        shop.publish_order("1")
        worker.drain()
        clock.pass_by(reader.LATELY_SECONDS)
        worker.poll()
    assert worker.queue._reader._cursor_lately() == worker.queue._reader._cursor


def test_a_sweep_finds_one_row_among_ids_that_are_far_apart_at_once(
    shop: Shop, index: bool, worker: StepWorker
) -> None:
    published = []
    for number in range(6):
        published.append(shop.publish_order(str(number)))
        skip_ids(shop, 10_000_000)
    worker.drain()
    shop.query("UPDATE {prefix}queue_message_status SET status = 5 WHERE id = %s", (published[2].relation_id,))
    worker.poll()
    worker.queue.sweep()
    worker.queue.sweep()
    assert [message.message_id for message in worker.take(10)] == [published[2].message_id]


def test_a_sweep_comes_round_while_messages_keep_coming(
    shop: Shop, index: bool, named: StepWorker, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """Ten new messages come for each one that a sweep reads."""
    monkeypatch.setattr(reader, "SLICE_ROWS", 10)
    shop.publish_bodies(TOPIC_ORDER, [f"old-{number}" for number in range(50)])
    named.drain()
    for _ in range(5):
        named.queue.sweep()
    [(first,)] = shop.query("SELECT MIN(id) FROM {prefix}queue_message_status")
    shop.query("UPDATE {prefix}queue_message_status SET status = 5 WHERE id = %s", (first,))
    for number in range(12):
        shop.publish_bodies(TOPIC_ORDER, [f"new-{number}-{each}" for each in range(100)])
        clock.pass_by(11)
        named.poll()
        while messages := named.take(200):
            if "old-0" in groups(messages):
                return
            named.deliver(messages)
        named.queue.sweep()
    pytest.fail("the sweep has not come round")


def test_what_an_operator_puts_back_goes_before_a_backlog(shop: Shop, named: StepWorker) -> None:
    shop.publish_bodies(TOPIC_ORDER, ["old"])
    named.drain()
    shop.publish_bodies(TOPIC_ORDER, [f"new-{number}" for number in range(2000)])
    named.poll()
    named.deliver(named.take(10))
    shop.query("UPDATE {prefix}queue_message_status SET status = 5 ORDER BY id LIMIT 1")
    named.queue.sweep()
    assert "old" in groups(named.take(10))


def test_a_first_read_over_completed_rows_goes_on_where_it_stopped(
    shop: Shop, index: bool, named: StepWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "SLICE_ROWS", 100)
    shop.publish_bodies(TOPIC_ORDER, ["old"] * 3000 + ["free"])
    shop.query("UPDATE {prefix}queue_message_status SET status = 4 ORDER BY id LIMIT 3000")
    named.poll()
    read: list[int] = []
    for _ in range(6):
        if messages := named.take(10):
            assert groups(messages) == ["free"]
            break
        assert named.queue.made_progress and named.queue.may_have_work
        read.append(int(named.queue._reader._cursor or 0))
    else:
        pytest.fail("it has not got through")
    assert read == sorted(set(read))
    assert bool(read) is not index


# --- another session ----------------------------------------------------------------------------------------------


def test_messages_that_got_the_ids_of_vanished_ones_are_delivered_with_their_own_bodies(
    shop: Shop, worker: StepWorker
) -> None:
    """A failover to a replica that lacked the last transactions."""
    shop.publish_order("KEPT")
    worker.drain()
    for number in range(10):
        shop.publish_order(f"VANISHED-{number}")
    worker.poll()
    worker.deliver(worker.take(1))
    assert len(worker.queue._backlog) == 9, "the others have been read"
    shop.query("DELETE FROM {prefix}zithara_message_group")
    shop.query("DELETE FROM {prefix}queue_message_status WHERE message_id > 1")
    shop.query("DELETE FROM {prefix}queue_message WHERE id > 1")
    for table in ("queue_message", "queue_message_status"):
        shop.query(f"ALTER TABLE {{prefix}}{table} AUTO_INCREMENT = 2")
    worker.database.close()
    for number in range(10):
        shop.publish_order(f"NEW-{number}")
    worker.poll()
    taken = worker.take(20)
    assert sorted(groups(taken)) == sorted(f"order:NEW-{number}" for number in range(10))
    for message in taken:
        content = worker.contents[message.id]
        assert isinstance(content, Event)
        assert f"order:{content.payload['order']['increment_id']}" == message.group_key


# --- bytes --------------------------------------------------------------------------------------------------------


def lengths(worker: StepWorker) -> int:
    return sum(each.length for each in worker.queue._bodies.decoded.values())


def test_large_bodies_are_neither_read_nor_held_together(
    shop: Shop, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits a thousand times smaller, and forty bodies of which each is a fifth of the room."""
    for module, name in ((bodies, "READ_BYTES"), (reader, "IDENTIFIED_BYTES"), (bodies, "KEPT_BYTES")):
        monkeypatch.setattr(module, name, getattr(module, name) // 1000)
    monkeypatch.setattr(bodies, "BYTES_IN_HAND", 4000)
    decoded: list[int] = []

    def counting(topic: str, message_id: int, body: str) -> tuple[str, Event]:
        decoded.append(len(body))
        return group_is_body(topic, message_id, body)

    worker = make_worker(identify=counting)
    shop.publish_bodies(TOPIC_ORDER, [f"{number:800}" for number in range(40)])
    seen = 0
    for _ in range(100):
        worker.poll()
        decoded.clear()
        messages = worker.queue.claim(100, room=4000)
        assert sum(decoded) <= 2000 + 800 + 4000
        assert sum(800 for _ in messages) <= 4000
        assert lengths(worker) <= 1000
        seen += len(messages)
        worker.deliver([message for message, _ in messages])
        if seen == 40:
            return
    pytest.fail("not all were delivered")


class Asking(Database):
    """Remembers how many bodies each statement asked for; the first `failing` statements fail."""

    def __init__(self, shop: Shop, *, failing: int = 0) -> None:
        super().__init__(settings_of(shop), sleep=lambda _: None)
        self.asked: list[int] = []
        self.failing = failing

    def rows(self, statement: str, /, **parameters: Any) -> list[dict[str, Any]]:
        if statement == "bodies":
            self.asked.append(len(parameters["message_ids"]))
            if len(self.asked) <= self.failing:
                raise DatabaseUnavailable("no answer within 20 s")
        return super().rows(statement, **parameters)


def test_a_statement_asks_for_few_bodies_where_these_are_large(
    shop: Shop, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server reads a whole body to tell its length."""
    monkeypatch.setattr(bodies, "MEASURED_BYTES", 1600)
    monkeypatch.setattr(bodies, "READ_BYTES", 400)
    database = Asking(shop)
    worker = make_worker(identify=group_is_body, database=database)
    shop.publish_bodies(TOPIC_ORDER, [f"{number:800}" for number in range(40)])
    worker.poll()
    delivered = 0
    while delivered < 40:
        messages = [each.message for each in worker.queue.claim(100, room=800)]
        assert messages
        worker.deliver(messages)
        delivered += len(messages)
    assert database.asked[0] == 40
    assert max(database.asked[1:]) <= 2


def test_a_statement_that_takes_too_long_asks_for_fewer_bodies_the_next_time(
    shop: Shop, make_worker: MakeWorker
) -> None:
    database = Asking(shop, failing=2)
    worker = make_worker(identify=group_is_body, database=database)
    shop.publish_bodies(TOPIC_ORDER, [f"{number}" for number in range(100)])
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            worker.claim()
    assert len(worker.claim()) == 100
    # Small bodies: soon as many as before.
    assert database.asked == [100, 25, 6, 12, 24, 48, 10]


def test_a_body_larger_than_the_room_is_taken_alone_and_holds_nobody_up(
    shop: Shop, named: StepWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "BYTES_IN_HAND", 4000)
    shop.publish_bodies(TOPIC_ORDER, [f"{'huge-1':10000}", f"{'huge-2':10000}", "small-1", "small-2"])
    named.poll()
    assert sorted(groups([each.message for each in named.queue.claim(10, room=4000)])) == [
        "huge-1",
        "small-1",
        "small-2",
    ]
    assert named.queue.claim(10, room=4000, large=False) == []
    assert groups([each.message for each in named.queue.claim(10, room=4000)]) == ["huge-2"]


def test_a_body_for_which_there_is_no_room_is_the_next_one_taken(shop: Shop, named: StepWorker) -> None:
    shop.publish_bodies(TOPIC_ORDER, ["first", f"{'second':3000}", "third"])
    named.poll()
    assert groups([each.message for each in named.queue.claim(10, room=2000)]) == ["first"]
    assert named.queue.short_of_room
    assert groups([each.message for each in named.queue.claim(10, room=4000)]) == ["second", "third"]


def test_coalescing_by_outlines_reads_one_body_of_a_line_again_and_no_more(shop: Shop, make_worker: MakeWorker) -> None:
    read: list[int] = []

    def counting(topic: str, message_id: int, body: str) -> tuple[str, Event]:
        read.append(message_id)
        return "cart", Event(topic=topic, payload=json.loads(body))

    worker = make_worker(topic=TOPIC_CART, identify=counting, supersedes=supersedes, outline=outline)
    shop.publish_bodies(TOPIC_CART, ["{}"] * 300)
    [message] = worker.claim()
    assert len(message.supersedes) == 299
    assert len(read) == 301
    worker.deliver([message])
    assert groups_of(shop) == {}


def test_a_body_that_was_read_under_an_id_is_not_taken_for_that_of_the_next_message_with_the_id(
    shop: Shop, worker: StepWorker
) -> None:
    """The queue's tables are emptied while the worker has messages in memory."""
    for group in ("A", "B"):
        shop.publish_order(group)
    worker.look()
    assert worker.take(1)[0].group_key == "order:A"
    for table in ("queue_message_status", "queue_message"):
        shop.query(f"DELETE FROM {{prefix}}{table}")
        shop.query(f"ALTER TABLE {{prefix}}{table} AUTO_INCREMENT = 2")
    worker.poll()
    shop.publish_order("C")
    assert [message.group_key for message in worker.claim()] == ["order:C"]
