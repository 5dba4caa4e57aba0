"""The protocol as a state machine: whatever the order of the steps, nothing is lost and no group runs backwards.

Real MariaDB, real statements, one step at a time: publishers (also in long transactions), three workers, PHP consumers,
Magento's cron, an operator with his real commands, a group whose messages the API never takes, a clock that only the
machine moves, and a clock of the database that jumps.

What order means here. Of two messages of a group, the older (by message id) has been dealt with before the newer one is
delivered, if the older one was visible no later than the newer one. Nothing is promised
- for messages that PHP has selected, put back or been handed by Magento's cron: PHP knows no groups;
- for messages that an operator has retried with --force;
- for what is held while the database's clock jumps: other workers may take it for left behind;
- for snapshots whose replacement arrived without our knowing it and was given up later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.workers import LEASE_SECONDS, Clock, StepWorker, settings_of

from zithara_worker.database.session import Database
from zithara_worker.errors import DatabaseUnavailable
from zithara_worker.messages import Message, OutcomeKind
from zithara_worker.processors import supersedes
from zithara_worker.queue import operator
from zithara_worker.queue.held import Held
from zithara_worker.queue.reader import LATELY_SECONDS
from zithara_worker.queue.statuses import Status
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.php_consumer import PhpConsumer, Selected
from zithara_worker.sandbox.publisher import Published, Publisher
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CUSTOMER, TOPIC_ORDER

TOPICS = (TOPIC_ORDER, TOPIC_CUSTOMER)
#: What is sent of the last one always fails.
GROUPS = ("A", "B", "P")
POISON = "P"
ATTEMPTS = 3
JUMP_SECONDS = 70.0
SLOTS = (0, 1, 2)
EXAMPLES, STEPS = 25, 30
#: Any moment that stays the same
BEGINNING = 1_790_000_000.0
OURS = ("zithara_message_group", "zithara_delivery_failure")
FINAL = (Status.COMPLETE, Status.ERROR)


@dataclass
class Fate:
    """What the machine knows of one message."""

    published: Published
    topic: str
    group: str
    #: When it became visible, in steps of all commits
    visible_at: int
    deliveries: int = 0
    skipped: bool = False
    failed: bool = False
    superseded: bool = False
    php_handled: bool = False
    #: We have written COMPLETE, so PHP must not handle it any more
    settled: bool = False
    deleted: bool = False
    #: We have written ERROR, with a reason
    recorded: bool = False
    discarded: bool = False
    retried: bool = False
    #: Somebody without groups has had it: its place in the order is not promised any more
    excused: bool = False


@dataclass
class Hand:
    """One running worker and what it holds."""

    worker_id: str
    database: Database
    queues: dict[str, StepWorker]
    held: dict[int, Message] = field(default_factory=dict)
    sent: set[int] = field(default_factory=set)
    must_sweep: bool = False


@dataclass
class Checkout:
    context: Any
    publisher: Publisher
    opened_at: float
    messages: list[tuple[Published, str, str]] = field(default_factory=list)


@dataclass
class PhpSide:
    consumer: PhpConsumer
    selected: Selected | None = None
    taken: bool = False


class Protocol(RuleBasedStateMachine):
    shop: Shop

    def __init__(self) -> None:
        super().__init__()
        # Ids and times begin anew, so that an example runs the same way whenever it is run again.
        self.shop.query("SET SESSION foreign_key_checks = 0")
        for table in (*OURS, "queue_lock", "queue_message", "queue_message_status"):
            self.shop.query(f"TRUNCATE {{prefix}}{table}")
        self.shop.query("SET SESSION foreign_key_checks = 1")
        self.clock = Clock()
        self.clock.now = BEGINNING
        self.ahead = 0.0
        self.fates: dict[int, Fate] = {}
        self.commits = 0
        self.workers_started = 0
        self.hands = {slot: self._start_worker() for slot in SLOTS}
        self.checkouts: list[Checkout] = []
        self.php = {topic: PhpSide(self.shop.php_consumer(topic)) for topic in TOPICS}
        self.freed_by_cron: set[int] = set()
        #: Claims (worker, relation id, claim) that the database's clock has put in doubt
        self.doubtful: set[tuple[str, int, int]] = set()
        self.operator = Database(settings_of(self.shop), clock=self._database_clock, sleep=lambda _: None)
        self._tell_the_time()

    def _database_clock(self) -> float:
        return self.clock() + self.ahead

    def _tell_the_time(self) -> None:
        connections = [self.shop.operator, *(side.consumer._connection for side in self.php.values())]
        connections += [checkout.publisher.publishing_connection() for checkout in self.checkouts]
        for connection in connections:
            with connection.cursor() as cursor:
                cursor.execute("SET SESSION timestamp = %s", (self._database_clock(),))

    def teardown(self) -> None:
        self.operator.close()
        for hand in self.hands.values():
            hand.database.close()
        for checkout in self.checkouts:
            checkout.publisher.publishing_connection().rollback()
            checkout.context.__exit__(None, None, None)
        for side in self.php.values():
            side.consumer._connection.close()

    def _start_worker(self) -> Hand:
        self.workers_started += 1
        worker_id = f"worker-{self.workers_started}"
        database = Database(settings_of(self.shop), clock=self._database_clock, sleep=lambda _: None)
        held = Held(worker_id=worker_id, lease_seconds=LEASE_SECONDS, clock=self.clock)
        queues = {
            topic: StepWorker(
                self.shop,
                self.clock,
                worker_id=worker_id,
                topic=topic,
                database=database,
                held=held,
                attempt_limit=ATTEMPTS,
                supersedes=supersedes if topic == TOPIC_CUSTOMER else None,
            )
            for topic in TOPICS
        }
        return Hand(worker_id, database, queues)

    # --- the shop ------------------------------------------------------------------------------------------------

    @initialize(groups=st.lists(st.sampled_from(GROUPS), min_size=2, max_size=5))
    def begin_with_a_backlog(self, groups: list[str]) -> None:
        for group in groups:
            for topic in TOPICS:
                self._note(self._publish(self.shop, topic, group, address=False), topic, group)

    @rule(topic=st.sampled_from(TOPICS), group=st.sampled_from(GROUPS), address=st.booleans())
    def publish(self, topic: str, group: str, address: bool) -> None:
        self._note(self._publish(self.shop, topic, group, address=address), topic, group)

    @precondition(lambda self: len(self.checkouts) < 2)
    @rule(
        topic=st.sampled_from(TOPICS),
        group=st.sampled_from(GROUPS),
        address=st.booleans(),
        meanwhile=st.sampled_from([None, *GROUPS]),
    )
    def publish_in_a_long_transaction(self, topic: str, group: str, address: bool, meanwhile: str | None) -> None:
        context = self.shop.transaction()
        checkout = Checkout(context, context.__enter__(), self.clock())
        self.checkouts.append(checkout)
        self._tell_the_time()
        checkout.messages.append((self._publish(checkout.publisher, topic, group, address=address), topic, group))
        if meanwhile:
            self.publish(topic=topic, group=meanwhile, address=False)

    @precondition(lambda self: self.checkouts)
    @rule(last=st.booleans(), rolled_back=st.sampled_from([False] * 5 + [True]), followed=st.booleans())
    def end_a_transaction(self, last: bool, rolled_back: bool, followed: bool) -> None:
        checkout = self.checkouts.pop(-1 if last else 0)
        if rolled_back:
            checkout.publisher.publishing_connection().rollback()
        checkout.context.__exit__(None, None, None)
        if rolled_back:
            return
        for published, topic, group in checkout.messages:
            self._note(published, topic, group)
            if followed:
                self.publish(topic=topic, group=group, address=False)
        if self.clock() - checkout.opened_at >= LATELY_SECONDS:
            for hand in self.hands.values():  # a poll interval later, the sweep has been there
                hand.must_sweep = True

    def _publish(self, publisher: Publisher, topic: str, group: str, *, address: bool) -> Published:
        if topic == TOPIC_ORDER:
            return publisher.publish_order(group)
        attributes = {
            "mobilenumber": "1",
            "loyalty_tier": "x",
            **({"address_data": {"city": "Pune"}} if address else {}),
        }
        return publisher.publish_customer(group, custom_attributes=attributes)

    def _note(self, published: Published, topic: str, group: str) -> None:
        self.commits += 1
        self.fates[published.relation_id] = Fate(published, topic, group, self.commits)

    @rule(seconds=st.sampled_from([1, 6, LEASE_SECONDS + 1]))
    def time_passes(self, seconds: float) -> None:
        self.clock.pass_by(seconds)
        self._tell_the_time()

    @rule(seconds=st.sampled_from([JUMP_SECONDS, -JUMP_SECONDS]))
    def the_databases_clock_jumps(self, seconds: float) -> None:
        self.ahead += seconds
        for hand in self.hands.values():
            for message in hand.held.values():
                self.doubtful.add((hand.worker_id, message.id, message.claim))
                for id in (message.id, *(older.id for older in message.supersedes)):
                    self.fates[id].excused = True
        self._tell_the_time()

    # --- workers ---------------------------------------------------------------------------------------------------

    @rule(
        slot=st.sampled_from(SLOTS),
        limit=st.integers(1, 5),
        sweep=st.sampled_from([False, False, True]),
        answer_lost=st.sampled_from([False] * 7 + [True]),
        send=st.booleans(),
    )
    def claim(self, slot: int, limit: int, sweep: bool, answer_lost: bool, send: bool) -> None:
        hand = self.hands[slot]
        for one in hand.queues.values():
            if sweep or hand.must_sweep:
                one.look()
            else:
                one.poll()
        hand.must_sweep = False
        for one in hand.queues.values():
            if answer_lost:
                self._lose_answer(hand)
            try:
                messages = one.take(limit)
            except DatabaseUnavailable:
                one.leases.renew()
                continue
            finally:
                self._hear_answers_again(hand)
            for message in messages:
                assert message.id not in hand.held, f"{hand.worker_id} claims {message.id}, which it holds"
                groups = {(each.topic, each.group_key) for each in hand.held.values()}
                assert (message.topic, message.group_key) not in groups, f"{message} is claimed beside one of its group"
                hand.held[message.id] = message
                hand.sent.discard(message.id)
        if send:
            self.deliver(slot=slot, count=10)

    @rule(slot=st.sampled_from(SLOTS), count=st.integers(1, 10))
    def deliver(self, slot: int, count: int) -> None:
        hand = self.hands[slot]
        for message in list(hand.held.values())[:count]:
            if hand.queues[message.topic].rejects(message) or message.lease.valid_until <= self.clock():
                continue  # the courier does not send it
            self._check_order(message)
            self.fates[message.id].deliveries += 1
            hand.sent.add(message.id)

    @rule(
        slot=st.sampled_from(SLOTS),
        count=st.sampled_from([1, 2, 10]),
        kind=st.sampled_from([OutcomeKind.RETRY, OutcomeKind.FAILED, OutcomeKind.RELEASED, OutcomeKind.SKIPPED]),
        unheard=st.sampled_from([False] * 4 + [True]),
        delay=st.sampled_from([0.0, 0.0, 5.0]),
        answer_lost=st.sampled_from([False] * 4 + [True]),
    )
    def settle(self, slot: int, count: int, kind: OutcomeKind, unheard: bool, delay: float, answer_lost: bool) -> None:
        """What was sent was delivered, unless its answer was `unheard`: then it is what the others are."""
        hand = self.hands[slot]
        for topic, one in hand.queues.items():
            outcomes = [
                (message, self._outcome(hand, message, kind, unheard))
                for message in list(hand.held.values())
                if message.topic == topic
            ][:count]
            if not outcomes:
                continue
            if answer_lost:
                self._lose_answer(hand)
            try:
                settled = one.settle(*outcomes, delay=delay)
            except DatabaseUnavailable:
                settled = one.settle(*outcomes, delay=delay, in_doubt=True)
            finally:
                self._hear_answers_again(hand)
            assert len(settled.done) + len(settled.lost) == len(outcomes)
            for each in settled.done:
                self._note_settled(hand, each.message, each.outcome.kind)
            for message, _ in outcomes:
                del hand.held[message.id]
                hand.sent.discard(message.id)

    def _outcome(self, hand: Hand, message: Message, kind: OutcomeKind, unheard: bool) -> OutcomeKind:
        if hand.queues[message.topic].rejects(message):
            return OutcomeKind.FAILED
        if message.id in hand.sent and self.fates[message.id].group == POISON:
            return OutcomeKind.FAILED if message.attempts + 1 >= ATTEMPTS else OutcomeKind.RETRY
        if message.id in hand.sent:
            return (OutcomeKind.RETRY if kind is OutcomeKind.SKIPPED else kind) if unheard else OutcomeKind.DELIVERED
        if message.lease.valid_until <= self.clock():
            return OutcomeKind.LEASE_LOST
        return kind

    def _note_settled(self, hand: Hand, message: Message, kind: OutcomeKind) -> None:
        fate = self.fates[message.id]
        older = [self.fates[each.id] for each in message.supersedes]
        fate.settled = fate.settled or kind in (OutcomeKind.DELIVERED, OutcomeKind.SKIPPED)
        if kind is OutcomeKind.DELIVERED:
            for each in older:
                each.superseded = True
        elif kind is OutcomeKind.SKIPPED:
            fate.skipped = True
        elif kind is OutcomeKind.FAILED:
            fate.failed = fate.recorded = True
            attempts = self.shop.query(
                "SELECT attempts, reason_code FROM {prefix}zithara_delivery_failure WHERE id = %s", (message.id,)
            )
            assert attempts == [(message.attempts + 1, "test")], f"{fate} ended in ERROR, and of it is told {attempts}"
        if kind in (OutcomeKind.FAILED, OutcomeKind.SKIPPED) and fate.deliveries:
            for each in older:
                each.excused = True

    @rule(slot=st.sampled_from(SLOTS))
    def renew(self, slot: int) -> None:
        hand = self.hands[slot]
        next(iter(hand.queues.values())).renew()

    @rule(slot=st.sampled_from(SLOTS))
    def crash(self, slot: int) -> None:
        self.hands[slot].database.close()
        self.hands[slot] = self._start_worker()

    @staticmethod
    def _lose_answer(hand: Hand) -> None:
        """The next COMMIT is done, and nobody hears of it."""
        connection = hand.database._open()
        commit = connection.commit

        def unanswered() -> None:
            commit()
            connection.close()
            raise OSError("connection lost")

        connection.commit = unanswered

    @staticmethod
    def _hear_answers_again(hand: Hand) -> None:
        connection = hand.database._connection
        if connection is not None:
            connection.__dict__.pop("commit", None)

    # --- PHP, cron, operator -----------------------------------------------------------------------------------------

    @rule(topic=st.sampled_from(TOPICS), again=st.booleans())
    def php_selects(self, topic: str, again: bool) -> None:
        side = self.php[topic]
        if side.taken or (side.selected and not again):
            return
        side.selected = side.consumer.select()

    @rule(topic=st.sampled_from(TOPICS))
    def php_takes(self, topic: str) -> None:
        side = self.php[topic]
        if side.selected is None or side.taken or self.fates[side.selected.relation_id].deleted:
            return
        side.taken = side.consumer.take(side.selected)
        if side.taken:
            self.fates[side.selected.relation_id].excused = True
        else:
            side.selected = None

    @rule(topic=st.sampled_from(TOPICS), way=st.sampled_from(["complete", "complete", "reject", "requeue"]))
    def php_finishes(self, topic: str, way: str) -> None:
        side = self.php[topic]
        if side.selected is None or not side.taken:
            return
        fate = self.fates[side.selected.relation_id]
        if way == "requeue":
            side.consumer.requeue(side.selected)
        elif not side.consumer.lock(side.selected):
            side.consumer.complete(side.selected)
            assert self._accounted_for(fate), f"PHP was told that {fate} is done"
        else:
            assert not fate.settled, f"PHP handles {fate}, which is done"
            fate.php_handled = fate.php_handled or way == "complete"
            fate.failed = fate.failed or way == "reject"
            (side.consumer.complete if way == "complete" else side.consumer.reject)(side.selected)
        side.selected, side.taken = None, False

    @precondition(lambda self: not self.checkouts)  # Magento's DELETE would wait for them, and we for it
    @rule()
    def cron_frees_what_is_in_progress_for_a_day(self) -> None:
        php_holds = {side.selected.relation_id for side in self.php.values() if side.selected and side.taken}
        rows = [row.relation_id for row in self.shop.rows() if row.status == Status.IN_PROGRESS]
        freed = [id for id in rows if id not in php_holds][:1]
        self.shop.make_older(minutes=3000, relation_ids=freed)
        assert self.shop.run_cleanup_cron()["retried"] == len(freed)
        for id in freed:
            self.fates[id].excused = True
        self.freed_by_cron.update(freed)

    @precondition(lambda self: not self.checkouts)  # Magento's DELETE would wait for them, and we for it
    @rule(status=st.sampled_from(FINAL))
    def cron_deletes_what_is_old(self, status: Status) -> None:
        selected = {side.selected.relation_id for side in self.php.values() if side.selected}
        old = [row.relation_id for row in self.shop.rows() if row.status == status and row.relation_id not in selected]
        self.shop.make_older(minutes=20_000, relation_ids=old[:1])
        assert self.shop.run_cleanup_cron()["deleted"] == len(old[:1])
        for id in old[:1]:
            self.fates[id].deleted = True

    def _given_up(self, *, discarded: bool) -> list[Fate]:
        """What is in ERROR, and what an operator has discarded, in order."""
        wanted = {row.relation_id for row in self.shop.rows() if row.status == Status.ERROR}
        if discarded:
            wanted |= {id for id, fate in self.fates.items() if fate.discarded and not fate.deleted}
        return [self.fates[id] for id in sorted(wanted)]

    @rule(last=st.booleans(), force=st.booleans())
    def operator_retries_a_failed_message(self, last: bool, force: bool) -> None:
        for fate in self._given_up(discarded=True)[-1 if last else 0 :][:1]:
            ids = [fate.published.relation_id]
            done = operator.retry(self.operator, ids, by="me", force=force, audit=lambda lines: None)
            if done.retried:
                fate.recorded = fate.discarded = False
                fate.retried = True
                fate.excused = fate.excused or force

    @rule(last=st.booleans())
    def operator_discards_a_failed_message(self, last: bool) -> None:
        for fate in self._given_up(discarded=False)[-1 if last else 0 :][:1]:
            ids = [fate.published.relation_id]
            assert operator.discard(self.operator, ids, by="me", note="", audit=lambda lines: None).discarded
            fate.recorded, fate.discarded = False, True

    # --- what must hold ------------------------------------------------------------------------------------------

    def _check_order(self, message: Message) -> None:
        """Called at the moment of a delivery."""
        mine = self.fates[message.id]
        status = {row.relation_id: row.status for row in self.shop.rows()}
        replaced = {older.id for older in message.supersedes}
        for id, other in self.fates.items():
            if id == message.id or (other.topic, other.group) != (mine.topic, mine.group):
                continue
            if other.excused or mine.excused or other.deleted:
                continue
            if id < message.id and other.visible_at < mine.visible_at:
                assert status[id] in FINAL or id in replaced, f"{mine} overtakes {other}, status {status[id]}"
            if id > message.id and mine.visible_at < other.visible_at:
                # What the operator put before a newer one that failed goes first, and the newer one after it again.
                passed = other.settled if mine.retried else bool(other.deliveries)
                assert not passed, f"{mine} is delivered after {other}"

    @staticmethod
    def _accounted_for(fate: Fate) -> bool:
        delivered = bool(fate.deliveries) and fate.group != POISON
        return delivered or fate.skipped or fate.superseded or fate.php_handled or fate.discarded

    @invariant()
    def nothing_is_lost(self) -> None:
        status = {row.relation_id: Status(row.status) for row in self.shop.rows()}
        for id, fate in self.fates.items():
            assert (id in status) != fate.deleted, f"{fate} is gone"
            if status.get(id) is Status.COMPLETE:
                assert self._accounted_for(fate), f"{fate} is complete and nothing says why"
            if status.get(id) is Status.ERROR:
                assert fate.failed, f"{fate} failed and nothing says why"

    @invariant()
    def what_we_gave_up_has_its_reason(self) -> None:
        wanted = {id for id, fate in self.fates.items() if fate.recorded and not fate.deleted}
        told = {id for (id,) in self.shop.query("SELECT id FROM {prefix}zithara_delivery_failure")}
        assert wanted <= told, f"{[self.fates[id] for id in wanted - told]} lost their reasons"

    @invariant()
    def rows_in_progress_and_leases_are_the_same(self) -> None:
        php_holds = {side.selected.relation_id for side in self.php.values() if side.selected and side.taken}
        in_progress = {row.relation_id for row in self.shop.rows() if row.status == Status.IN_PROGRESS}
        leased = {
            id for (id,) in self.shop.query("SELECT id FROM {prefix}zithara_message_group WHERE worker_id IS NOT NULL")
        }
        assert in_progress - php_holds <= leased, "IN_PROGRESS without a lease"
        assert leased - in_progress <= self.freed_by_cron, "a lease on a message that is not IN_PROGRESS"

    @invariant()
    def one_message_of_a_group_is_in_flight(self) -> None:
        live = [
            (self.fates[message.id].topic, self.fates[message.id].group)
            for hand in self.hands.values()
            for message in hand.held.values()
            if message.lease.valid_until > self.clock()
            and (hand.worker_id, message.id, message.claim) not in self.doubtful
        ]
        assert len(live) == len(set(live)), live


@pytest.fixture(scope="module")
def one_shop(mariadb: MariaDbServer) -> Iterator[Shop]:
    with Shop(mariadb) as shop:
        yield shop


def test_the_protocol_keeps_its_promises_whatever_happens_in_whatever_order(one_shop: Shop) -> None:
    Protocol.shop = one_shop
    run_state_machine_as_test(
        Protocol,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
