"""The protocol as a state machine: whatever the order of the steps, nothing is lost and no group runs backwards.

Real MariaDB, real statements, one step at a time: publishers (also in long transactions), three workers, PHP consumers,
Magento's cron, an operator with his real commands, a group whose messages the API never takes, a clock that only the
machine moves, and a clock of the database that jumps. Requests that nobody heard of are processed at once, late or
never; message ids begin again.

What the delivery ledger promises: whatever is complete has reached the CRM, and nothing older stands there in its
place, unless the ledger says that reconcile has to look at the entity; what it takes for unchanged is what the CRM
holds, and nothing is on its way that could change that; what it takes for overtaken is told by something newer; and
what it could know to be overtaken is not sent.

What order means here. Of two messages of a group, the older (by message id) has been dealt with before the newer one is
delivered, if the older one was visible no later than the newer one. Nothing is promised
- for messages that PHP has selected, put back or been handed by Magento's cron: PHP knows no groups;
- for messages that an operator has retried with --force;
- for what is held while the database's clock jumps: other workers may take it for left behind;
- for snapshots whose replacement arrived without our knowing it and was given up later.
Nor what the CRM holds where PHP, an operator with --force or a request that was processed late had the last word.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
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
from support.crm import ITEMS, Crm, How, News
from support.workers import LEASE_SECONDS, Clock, StepWorker, settings_of

from zithara_worker.database.session import Database
from zithara_worker.errors import DatabaseUnavailable
from zithara_worker.messages import Accepted, Event, Evidence, Message, Outcome, OutcomeKind, Request
from zithara_worker.processors import ShopContext, process, supersedes
from zithara_worker.queue import operator
from zithara_worker.queue.held import Held
from zithara_worker.queue.ledger import DOUBT_SECONDS
from zithara_worker.queue.ledger_others import INTERVAL
from zithara_worker.queue.ledger_rules import Rules
from zithara_worker.queue.reader import LATELY_SECONDS
from zithara_worker.queue.settle import Settlement
from zithara_worker.queue.statuses import Status
from zithara_worker.reasons import OVERTAKEN, UNCHANGED
from zithara_worker.sandbox import examples
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.php_consumer import PhpConsumer, Selected
from zithara_worker.sandbox.publisher import Published, Publisher, php_json_encode
from zithara_worker.sandbox.shop import Shop
from zithara_worker.settings.values import Secret
from zithara_worker.topics import TOPIC_CUSTOMER, TOPIC_ORDER
from zithara_worker.worker.ledger_duties import OTHERS_SECONDS, LedgerDuties
from zithara_worker.worker.relevance import Relevance
from zithara_worker.zithara.api import request_digest

TOPICS = (TOPIC_ORDER, TOPIC_CUSTOMER)
#: What is sent of the last one always fails.
GROUPS = ("A", "B", "P")
POISON = "P"
ATTEMPTS = 3
JUMP_SECONDS = 70.0
SLOTS = (0, 1, 2)
EXAMPLES, STEPS = int(os.environ.get("ZITHARA_TEST_EXAMPLES", "25")), 30
#: Any moment that stays the same
BEGINNING = 1_790_000_000.0
#: What messages tell; few, so that the same is told again.
CONTENTS = (1, 2)
DAY = 86_400.0
OURS = ("zithara_message_group", "zithara_delivery_failure")
MAGENTOS = ("queue_lock", "queue_message", "queue_message_status")
CONTEXT = ShopContext(
    webhook_url=None,
    active_config_id=1,
    config_ids=None,
    invented_phone="send",
    now_utc=datetime.fromtimestamp(BEGINNING, timezone.utc),
)
FINAL = (Status.COMPLETE, Status.ERROR)


@dataclass
class Fate:
    """What the machine knows of one message."""

    published: Published
    topic: str
    group: str
    news: News
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
    #: An operator wants it sent behind newer ones, too
    forced: bool = False


@dataclass
class Hand:
    """One running worker and what it holds."""

    worker_id: str
    database: Database
    queues: dict[str, StepWorker]
    relevance: Relevance
    duties: LedgerDuties
    held: dict[int, Message] = field(default_factory=dict)
    sent: set[int] = field(default_factory=set)
    #: Sent, and the answer will not come
    unanswered: set[int] = field(default_factory=set)
    #: Outcomes of what need not be sent
    judged: dict[int, Outcome] = field(default_factory=dict)
    must_sweep: bool = False


@dataclass
class Checkout:
    context: Any
    publisher: Publisher
    opened_at: float
    messages: list[tuple[Published, str, News]] = field(default_factory=list)


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
        self._truncate(*OURS, *MAGENTOS, "zithara_delivery", "zithara_ledger")
        self.clock = Clock()
        self.clock.now = BEGINNING
        self.ahead = 0.0
        self.fates: dict[int, Fate] = {}
        self.commits = 0
        self.published = 0
        self.crm = Crm()
        #: Entities of which an operator wanted a message to be sent, and when
        self.asked_for: dict[tuple[str, str], float] = {}
        #: Whether the database's clock has ever gone back: then what was published later may look earlier
        self.went_back = False
        self.workers_started = 0
        self.hands = {slot: self._start_worker() for slot in SLOTS}
        self.checkouts: list[Checkout] = []
        self.php = {topic: PhpSide(self.shop.php_consumer(topic)) for topic in TOPICS}
        #: PHP died with these in hand
        self.orphans: set[int] = set()
        self.freed_by_cron: set[int] = set()
        #: Claims (worker, relation id, claim) that the database's clock has put in doubt
        self.doubtful: set[tuple[str, int, int]] = set()
        root = settings_of(self.shop, user="root", password=Secret(""))
        self.operator = Database(root, clock=self._database_clock, sleep=lambda _: None)
        self._tell_the_time()

    def _truncate(self, *tables: str) -> None:
        self.shop.query("SET SESSION foreign_key_checks = 0")
        for table in tables:
            self.shop.query(f"TRUNCATE {{prefix}}{table}")
        self.shop.query("SET SESSION foreign_key_checks = 1")

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
                destination="a" * 64,
            )
            for topic in TOPICS
        }
        rules = Rules(digest=request_digest, unchanged_for=DAY)
        relevance = Relevance(dict.fromkeys(TOPICS, rules), look_at_carts=None, utc=self.clock)
        duties = LedgerDuties(
            database,
            {one.queue_id: topic for topic, one in queues.items()},
            relevance=relevance,
            monotonic=self.clock,
        )
        hand = Hand(worker_id, database, queues, relevance, duties)
        while not duties.look_at_others():
            pass
        self._poll_ledger(hand)
        return hand

    @staticmethod
    def _poll_ledger(hand: Hand) -> None:
        """What the loop does with each poll, before it claims."""
        rows = hand.database.rows("poll", queue_ids=[one.queue_id for one in hand.queues.values()])
        hand.duties.polled({int(row["queue_id"]): int(row["newest"] or 0) for row in rows})

    # --- the shop ------------------------------------------------------------------------------------------------

    @initialize(groups=st.lists(st.sampled_from(GROUPS), min_size=2, max_size=5))
    def begin_with_a_backlog(self, groups: list[str]) -> None:
        for group in groups:
            for topic in TOPICS:
                self._note(*self._publish(self.shop, topic, group, content=1, full=topic == TOPIC_ORDER))

    @rule(
        topic=st.sampled_from(TOPICS),
        group=st.sampled_from(GROUPS),
        content=st.sampled_from(CONTENTS),
        full=st.booleans(),
        delivered_by=st.sampled_from([None, *SLOTS]),
    )
    def publish(self, topic: str, group: str, content: int, full: bool, delivered_by: int | None) -> None:
        """`full`: an order's create, a customer with an address. `delivered_by`: the worker that has it at once."""
        self._note(*self._publish(self.shop, topic, group, content=content, full=full))
        if delivered_by is not None:
            self.a_worker_works(slot=delivered_by)

    def _publish_by_hand(self, topic: str, group: str, *, content: int) -> None:
        payload, news = self._payload(topic, group, content=content, full=True)
        (message_id,) = operator.publish(self.operator, topic, [php_json_encode(payload)], {})
        [(id,)] = self.shop.query("SELECT id FROM {prefix}queue_message_status WHERE message_id = %s", (message_id,))
        self._note(Published(id, message_id), topic, news)
        self.asked_for[news.entity] = self.clock()

    @precondition(lambda self: len(self.checkouts) < 2)
    @rule(
        topic=st.sampled_from(TOPICS),
        group=st.sampled_from(GROUPS),
        content=st.sampled_from(CONTENTS),
        full=st.booleans(),
        meanwhile=st.sampled_from([None, *GROUPS]),
    )
    def publish_in_a_long_transaction(
        self, topic: str, group: str, content: int, full: bool, meanwhile: str | None
    ) -> None:
        context = self.shop.transaction()
        checkout = Checkout(context, context.__enter__(), self.clock())
        self.checkouts.append(checkout)
        self._tell_the_time()
        checkout.messages.append(self._publish(checkout.publisher, topic, group, content=content, full=full))
        if meanwhile:
            self._note(*self._publish(self.shop, topic, meanwhile, content=content, full=False))

    @precondition(lambda self: self.checkouts)
    @rule(last=st.booleans(), rolled_back=st.sampled_from([False] * 5 + [True]), followed=st.booleans())
    def end_a_transaction(self, last: bool, rolled_back: bool, followed: bool) -> None:
        checkout = self.checkouts.pop(-1 if last else 0)
        if rolled_back:
            checkout.publisher.publishing_connection().rollback()
        checkout.context.__exit__(None, None, None)
        if rolled_back:
            return
        for published, topic, news in checkout.messages:
            self._note(published, topic, news)
            if followed:
                self._note(*self._publish(self.shop, topic, news.entity[1], content=1, full=False))
        if self.clock() - checkout.opened_at >= LATELY_SECONDS:
            for hand in self.hands.values():  # a poll interval later, the sweep has been there
                hand.must_sweep = True

    def _publish(
        self, publisher: Publisher, topic: str, group: str, *, content: int, full: bool
    ) -> tuple[Published, str, News]:
        payload, news = self._payload(topic, group, content=content, full=full)
        return publisher.publish(topic, payload), topic, news

    def _payload(self, topic: str, group: str, *, content: int, full: bool) -> tuple[dict[str, Any], News]:
        self.published += 1
        if topic == TOPIC_ORDER:
            # Saved in this second or in the one before, as the orders of one second are.
            saved_at = datetime.fromtimestamp(BEGINNING + self.published // 2, timezone.utc)
            payload = examples.order(
                group, is_update=not full, subtotal=float(content), updated_at=f"{saved_at:%Y-%m-%d %H:%M:%S}"
            )
            tells = {"order": content, **({ITEMS: content} if full else {})}
        else:
            attributes: dict[str, Any] = {"mobilenumber": "1", "loyalty_tier": "x"}
            if full:
                attributes["address_data"] = {"city": f"City {content}"}
            payload = examples.customer(group, last_name=f"Iyer {content}", custom_attributes=attributes)
            tells = {"name": content, **({"address": content} if full else {})}
        return payload, News(number=self.published, entity=(topic, group), tells=tells)

    def _note(self, published: Published, topic: str, news: News) -> None:
        self.commits += 1
        self.fates[published.relation_id] = Fate(published, topic, news.entity[1], news, self.commits)

    @precondition(
        lambda self: (
            len(self.fates) > len(GROUPS)
            and not self.checkouts
            and not any(hand.held for hand in self.hands.values())
            and not any(side.selected for side in self.php.values())
        )
    )
    @rule()
    def ids_begin_again(self) -> None:
        """The shop's tables are emptied, and the workers run on."""
        self._truncate(*OURS, *MAGENTOS)
        self.fates, self.orphans, self.freed_by_cron = {}, set(), set()
        self.crm.forget_recorded()
        self.time_passes(seconds=1)
        for hand in self.hands.values():
            self._poll_ledger(hand)
            for one in hand.queues.values():
                one.poll()

    @rule(seconds=st.sampled_from([1, 6, LEASE_SECONDS + 1, DOUBT_SECONDS + 1]))
    def time_passes(self, seconds: float) -> None:
        self.clock.pass_by(seconds)
        self._tell_the_time()

    @rule(seconds=st.sampled_from([JUMP_SECONDS, -JUMP_SECONDS]))
    def the_databases_clock_jumps(self, seconds: float) -> None:
        self.ahead += seconds
        self.went_back = self.went_back or seconds < 0
        # Nothing is promised of what is under way; and the ten minutes that a request may take are the database's.
        self.crm.on_their_way.clear()
        self.asked_for.clear()
        for hand in self.hands.values():
            for message in hand.held.values():
                self.doubtful.add((hand.worker_id, message.id, message.claim))
                for id in (message.id, *(older.id for older in message.supersedes)):
                    self.fates[id].excused = True
        self._tell_the_time()

    # --- workers ---------------------------------------------------------------------------------------------------

    @rule(slot=st.sampled_from(SLOTS))
    def a_worker_works(self, slot: int) -> None:
        self.claim(slot=slot, limit=10, sweep=True, answer_lost=False, send=True)
        self.settle(slot=slot, count=10, kind=OutcomeKind.RELEASED, unheard=False, delay=0.0, answer_lost=False)

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
                for known in (hand.sent, hand.unanswered):
                    known.discard(message.id)
            requests = [(message, self._request(one, message)) for message in messages if not one.rejects(message)]
            hand.judged |= hand.relevance.outcomes(requests)
        if send:
            self.deliver(slot=slot, count=10, fate="arrives")

    @staticmethod
    def _request(one: StepWorker, message: Message) -> Request:
        content = one.contents[message.id]
        assert isinstance(content, Event)
        request = process(content, CONTEXT)
        assert isinstance(request, Request)
        return request

    @rule(
        slot=st.sampled_from(SLOTS),
        count=st.integers(1, 10),
        fate=st.sampled_from(["arrives", "arrives", "arrives late", "is lost"]),
    )
    def deliver(self, slot: int, count: int, fate: str) -> None:
        hand = self.hands[slot]
        for message in list(hand.held.values())[:count]:
            if hand.queues[message.topic].rejects(message) or message.lease.valid_until <= self.clock():
                continue  # the courier does not send it
            if message.id in hand.judged:
                continue
            self._check_order(message)
            self._check_news(hand, message)
            mine = self.fates[message.id]
            mine.deliveries += 1
            hand.sent.add(message.id)
            if fate != "arrives":
                hand.unanswered.add(message.id)
            if mine.group == POISON or fate == "is lost":
                continue
            if fate == "arrives late":
                self.crm.on_their_way.append((mine.news, self.clock() + DOUBT_SECONDS))
            elif mine.forced:
                self.crm.process(mine.news, How.FORCED)
            else:
                doubtful = self._held_in_a_jump(hand, message) or self._looks_later(message)
                self.crm.process(mine.news, How.LATE if doubtful else How.SENT)

    @precondition(lambda self: self.crm.on_their_way)
    @rule(last=st.booleans())
    def a_request_is_processed_late(self, last: bool) -> None:
        self.crm.process_late(last=last, now=self.clock())

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
            settlements = [
                Settlement(message=message, outcome=self._outcome(hand, message, kind, unheard), delay_seconds=delay)
                for message in list(hand.held.values())
                if message.topic == topic
            ][:count]
            if not settlements:
                continue
            if answer_lost:
                self._lose_answer(hand)
            try:
                settled = one.queue.settle(settlements)
            except DatabaseUnavailable:
                settled = one.queue.settle(settlements, in_doubt=True)
            finally:
                self._hear_answers_again(hand)
            assert len(settled.done) + len(settled.lost) == len(settlements)
            for each in settled.done:
                self._note_settled(hand, each.message, each.outcome)
            for each in settlements:
                del hand.held[each.message.id]
                hand.judged.pop(each.message.id, None)
                for known in (hand.sent, hand.unanswered):
                    known.discard(each.message.id)

    def _outcome(self, hand: Hand, message: Message, kind: OutcomeKind, unheard: bool) -> Outcome:
        one = hand.queues[message.topic]
        if message.id in hand.judged:
            return hand.judged[message.id]
        if one.rejects(message):
            return one.outcome(OutcomeKind.FAILED)
        if message.id not in hand.sent:
            lost = message.lease.valid_until <= self.clock()
            return one.outcome(OutcomeKind.LEASE_LOST if lost else kind)
        if self.fates[message.id].group == POISON:
            failed = message.attempts + 1 >= ATTEMPTS
            return Outcome(
                kind=OutcomeKind.FAILED if failed else OutcomeKind.RETRY, reason="test", evidence=Evidence.PATH
            )
        if unheard or message.id in hand.unanswered:
            given_up = OutcomeKind.RETRY if kind is OutcomeKind.SKIPPED else kind
            return Outcome(kind=given_up, reason="test", evidence=Evidence.PATH)
        request = self._request(one, message)
        assert request.entity is not None
        accepted = Accepted(entity=request.entity, request=request_digest(request), content="c" * 64)
        return Outcome(kind=OutcomeKind.DELIVERED, accepted=accepted)

    def _note_settled(self, hand: Hand, message: Message, outcome: Outcome) -> None:
        kind, fate = outcome.kind, self.fates[message.id]
        older = [self.fates[each.id] for each in message.supersedes]
        fate.settled = fate.settled or kind in (OutcomeKind.DELIVERED, OutcomeKind.SKIPPED)
        if kind is OutcomeKind.DELIVERED or outcome.reason == UNCHANGED:
            self.crm.note_complete(fate.news)
            self.crm.note_recorded(fate.news)
            for each in older:
                each.superseded = True
                self.crm.note_complete(each.news)
        if kind is OutcomeKind.SKIPPED:
            fate.skipped = True
            self._check_unsent(fate.news, outcome.reason)
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

    @rule(
        topic=st.sampled_from(TOPICS),
        act=st.sampled_from(["select", "select again", "take", "complete", "reject", "requeue", "take and die"]),
    )
    def php_acts(self, topic: str, act: str) -> None:
        side = self.php[topic]
        if act in ("select", "take and die") and side.selected is None:
            side.selected = side.consumer.select()
        if act == "select again" and not side.taken:
            side.selected = side.consumer.select()
        if act in ("take", "take and die") and not side.taken:
            self._php_takes(side)
        if act in ("complete", "reject", "requeue", "take and die") and side.taken:
            self._php_finishes(side, act)

    def _php_takes(self, side: PhpSide) -> None:
        if side.selected is None or self.fates[side.selected.relation_id].deleted:
            return
        side.taken = side.consumer.take(side.selected)
        if side.taken:
            self.fates[side.selected.relation_id].excused = True
            self._look_at_others()
        else:
            side.selected = None

    def _php_finishes(self, side: PhpSide, way: str) -> None:
        assert side.selected is not None
        fate = self.fates[side.selected.relation_id]
        if way == "take and die":
            self.orphans.add(side.selected.relation_id)
        elif way == "requeue":
            side.consumer.requeue(side.selected)
        elif not side.consumer.lock(side.selected):
            side.consumer.complete(side.selected)
            assert self._accounted_for(fate), f"PHP was told that {fate} is done"
        else:
            assert not fate.settled, f"PHP handles {fate}, which is done"
            fate.php_handled = fate.php_handled or way == "complete"
            if way == "complete" and fate.group != POISON:
                self.crm.process(fate.news, How.PHP)
            fate.failed = fate.failed or way == "reject"
            (side.consumer.complete if way == "complete" else side.consumer.reject)(side.selected)
            # Nothing is promised until the workers have looked.
            self._look_at_others()
        side.selected, side.taken = None, False

    def _look_at_others(self) -> None:
        """What each worker does every few seconds."""
        self.time_passes(seconds=INTERVAL + 1)
        for hand in self.hands.values():
            while not hand.duties.look_at_others():
                pass

    @rule(
        topic=st.sampled_from(TOPICS),
        group=st.sampled_from(GROUPS),
        content=st.sampled_from(CONTENTS),
        full=st.booleans(),
        newer=st.lists(st.tuples(st.sampled_from(CONTENTS), st.booleans()), min_size=1, max_size=2),
        back=st.booleans(),
    )
    def php_dies_with_a_message(
        self, topic: str, group: str, content: int, full: bool, newer: list[tuple[int, bool]], back: bool
    ) -> None:
        """And newer ones are published and delivered, before the cron puts it `back`."""
        published, _, news = self._publish(self.shop, topic, group, content=content, full=full)
        self.shop.query(
            "UPDATE {prefix}queue_message_status SET status = 3, updated_at = NOW() - INTERVAL 1 HOUR WHERE id = %s",
            (published.relation_id,),
        )
        self._note(published, topic, news)
        self.fates[published.relation_id].excused = True
        self.orphans.add(published.relation_id)
        for newer_content, newer_full in newer:
            self._note(*self._publish(self.shop, topic, group, content=newer_content, full=newer_full))
            self.a_worker_works(slot=0)
        if back and not self.checkouts:
            self._cron_frees_what_is_in_progress_for_a_day()
            self.a_worker_works(slot=1)

    @precondition(lambda self: not self.checkouts)  # Magento's DELETE would wait for them, and we for it
    @rule(what=st.sampled_from([Status.IN_PROGRESS, Status.IN_PROGRESS, *FINAL]))
    def cron_works(self, what: Status) -> None:
        if what is Status.IN_PROGRESS:
            self._cron_frees_what_is_in_progress_for_a_day()
        else:
            self._cron_deletes_what_is_old(what)

    def _cron_frees_what_is_in_progress_for_a_day(self) -> None:
        php_holds = {side.selected.relation_id for side in self.php.values() if side.selected and side.taken}
        rows = [row.relation_id for row in self.shop.rows() if row.status == Status.IN_PROGRESS]
        # What a PHP consumer died with last comes first.
        freed = [id for id in sorted(rows, key=lambda id: (id not in self.orphans, -id)) if id not in php_holds][:1]
        self.shop.make_older(minutes=3000, relation_ids=freed)
        assert self.shop.run_cleanup_cron()["retried"] == len(freed)
        for id in freed:
            self.fates[id].excused = True
        self.freed_by_cron.update(freed)
        self.orphans.difference_update(freed)
        # A day later. Of PHP consumers nothing was seen since.
        self.time_passes(seconds=OTHERS_SECONDS)
        self._look_at_others()

    def _cron_deletes_what_is_old(self, status: Status) -> None:
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

    @rule(
        act=st.sampled_from(["retry", "retry", "force", "discard", "publish"]),
        last=st.booleans(),
        topic=st.sampled_from(TOPICS),
        group=st.sampled_from(GROUPS),
        content=st.sampled_from(CONTENTS),
    )
    def the_operator_acts(self, act: str, last: bool, topic: str, group: str, content: int) -> None:
        if act == "publish":
            self._publish_by_hand(topic, group, content=content)
        elif act == "discard":
            self._discard(last=last)
        else:
            self._retry(last=last, force=act == "force")

    def _retry(self, *, last: bool, force: bool) -> None:
        for fate in self._given_up(discarded=True)[-1 if last else 0 :][:1]:
            ids = [fate.published.relation_id]
            done = operator.retry(self.operator, ids, by="me", force=force, audit=lambda lines: None)
            if done.retried:
                fate.recorded = fate.discarded = False
                fate.retried = True
                fate.excused = fate.excused or force
                fate.forced = fate.forced or force
                self.asked_for[fate.news.entity] = self.clock()
                if force:
                    self.crm.forget_recorded(fate.news.entity)

    def _discard(self, *, last: bool) -> None:
        for fate in self._given_up(discarded=False)[-1 if last else 0 :][:1]:
            ids = [fate.published.relation_id]
            assert operator.discard(
                self.operator, ids, by="me", note="", audit=lambda lines: None, content=lambda topic, body: ""
            ).discarded
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

    def _check_news(self, hand: Hand, message: Message) -> None:
        """Called at the moment of a delivery: what is known to be overtaken is not sent."""
        mine = self.fates[message.id]
        if mine.forced or message.topic in hand.relevance.unrecorded or self._held_in_a_jump(hand, message):
            return
        if not self._looks_later(message):
            assert not self.crm.is_overtaken(mine.news), f"{mine} goes over {self.crm.recorded[mine.news.entity]}"

    def _held_in_a_jump(self, hand: Hand, message: Message) -> bool:
        return (hand.worker_id, message.id, message.claim) in self.doubtful

    def _looks_later(self, message: Message) -> bool:
        """Whether the database's clock went back between the publication of this message and that of a newer one."""
        if message.known is None or message.status_before != Status.NEW:
            return False
        return self.went_back and message.updated_at_before > message.known.published_at

    def _check_unsent(self, news: News, reason: str) -> None:
        """Called at the moment of a settlement."""
        now = self.clock()
        if reason == OVERTAKEN:
            assert not self.crm.not_newer(news), f"{news} is overtaken, and nothing newer tells its news"
        elif reason == UNCHANGED:
            differing = self.crm.differing(news)
            assert not differing, f"{news} is unchanged, and the CRM holds {self.crm.holds.get(news.entity)}"
            assert not self.crm.may_arrive(news.entity, now=now), f"{news} is unchanged, and older data is on its way"
            asked_at = self.asked_for.get(news.entity, now - DOUBT_SECONDS)
            assert now - asked_at >= DOUBT_SECONDS, f"{news} is unchanged, and an operator wanted it to be sent"

    @invariant()
    def the_crm_holds_what_is_complete_or_something_newer(self) -> None:
        status = {self.fates[row.relation_id].news.number: row.status for row in self.shop.rows()}
        stale = set(self.shop.query("SELECT topic_name, group_key FROM {prefix}zithara_delivery WHERE stale"))

        def excused(by: News) -> bool:
            topic, group = by.entity
            key = f"{'order' if topic == TOPIC_ORDER else 'customer'}:{group}"
            return status.get(by.number, Status.COMPLETE) != Status.COMPLETE or (topic, key) in stale

        assert not (found := list(self.crm.outdated(excused))), found

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
        assert in_progress - php_holds - self.orphans <= leased, "IN_PROGRESS without a lease"
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
