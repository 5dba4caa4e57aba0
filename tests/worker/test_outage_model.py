"""Outages against poison messages: courier, breakers and outcomes together, through simulated days.

The queue is a stand-in in memory that keeps the order of the real one (`test_the_stand_in_keeps_the_order_of_the_queue`
runs both); time passes only when a rule says so. After each step both guarantees are checked:
- while nobody is served, no message that could be delivered ends in ERROR;
- a message that always fails neither holds up the others nor lives for ever.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from support.memory_queue import MemoryQueue, Row
from support.workers import Clock, StepWorker

from zithara_worker.delivery.breaker import GROUPS, MAX_PAUSE_SECONDS
from zithara_worker.delivery.courier import Courier
from zithara_worker.delivery.pace import RateLimit
from zithara_worker.messages import Evidence, Outcome, OutcomeKind, Rejection, Request, Target
from zithara_worker.monitor.counters import WorkerMetrics
from zithara_worker.monitor.registry import MinuteCounters
from zithara_worker.queue.settle import Settlement
from zithara_worker.sandbox.shop import Shop
from zithara_worker.settings.sections import RetrySettings
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER, TOPIC_WEBHOOK, TOPICS
from zithara_worker.worker.building import TARGETS
from zithara_worker.worker.outcomes import Outcomes, TopicState

MINUTE, HOUR = 60.0, 3600.0
#: A healthy message whose path serves is delivered within so long: two probes at their slowest, and some.
PATIENCE = 15 * MINUTE

REQUESTS = {
    TOPIC_ORDER: Request(target=Target.API, method="POST", path="/order", json={}),
    TOPIC_CUSTOMER: Request(target=Target.API, method="POST", path="/customer", json={}),
    TOPIC_CART: Request(target=Target.API, method="POST", path="/cart", json={}),
    TOPIC_WEBHOOK: Request(target=Target.WEBHOOK, method="POST", path="https://h.example/", json={}, idempotent=False),
}


def failure(reason: str, status: int | None = None) -> Outcome:
    return Outcome(kind=OutcomeKind.RETRY, reason=reason, http_status=status, evidence=Evidence.PATH)


SERVED = Outcome(kind=OutcomeKind.DELIVERED, http_status=200, evidence=Evidence.SERVED)
ANSWERS = {
    "403": failure("http_403", 403),
    "500": failure("http_500", 500),
    "502 page": failure("http_502", 502),
    "302": failure("http_302", 302),
    "timeout": failure("timeout"),
    "429": Outcome(
        kind=OutcomeKind.RELEASED, reason="throttled", http_status=429, retry_after_seconds=20, evidence=Evidence.NONE
    ),
    "no connection": Outcome(kind=OutcomeKind.RETRY, reason="connect_error", evidence=Evidence.HOST),
    "no token": Outcome(kind=OutcomeKind.RELEASED, reason="token_unavailable", evidence=Evidence.HOST),
}
OWN_FAULTS = ("403", "500", "502 page", "timeout", "429")
PATH_FAULTS = ("403", "500", "302", "timeout")
HOST_FAULTS = (*PATH_FAULTS, "no connection", "no token")


class World:
    """One process for some topics, and what it talks to."""

    def __init__(self, topics: Sequence[str], *, limit: int, concurrency: int = 4) -> None:
        self.now = 1_000.0
        self.faults: dict[str, str] = {}
        self.sent = 0
        self._concurrency = concurrency
        self._numbers = itertools.count()
        self.queues = [MemoryQueue(number, topic, lambda: self.now) for number, topic in enumerate(topics)]
        stopping = threading.Event()
        self.courier = Courier(
            api=self,
            rate_limit=RateLimit(None, seconds_each=0.0, clock=lambda: self.now, wait=stopping.wait),
            stopping=stopping,
            clock=lambda: self.now,
            targets={gate for topic in topics for gate in TARGETS[topic]},
        )
        self.topics = {queue.queue_id: TopicState(queue, TARGETS[queue.topic]) for queue in self.queues}  # type: ignore[arg-type]
        self.outcomes = Outcomes(
            self.topics,
            courier=self.courier,
            create=lambda event: Rejection(code="unused", detail="no order is absent here"),
            policy=RetrySettings(limit=limit),
            jitter=lambda: 0.0,
            monotonic=lambda: self.now,
            minute_counters=MinuteCounters(lambda: 0.0),
            metrics=WorkerMetrics(monotonic=lambda: self.now, utc=lambda: self.now),
        )
        self._fresh_first = dict.fromkeys(topics, True)
        self._being_sent: Row | None = None

    def publish(self, topic: str, *, fault: str | None = None, group: str | None = None) -> Row:
        queue = next(queue for queue in self.queues if queue.topic == topic)
        number = len(queue.rows)
        row = Row(number, topic, group or f"group:{next(self._numbers)}", fault, self.now)
        queue.rows.append(row)
        return row

    def send(self, request: Request, message: str, **_: Any) -> Outcome:
        """The API, the webhook's receiver and what is between."""
        assert self._being_sent is not None
        self.sent += 1
        self.now += 0.001
        gates = TARGETS[self._being_sent.topic]
        fault = next((self.faults[gate] for gate in gates if gate in self.faults), self._being_sent.fault)
        return ANSWERS[fault] if fault else SERVED

    def pass_time(self, seconds: float) -> None:
        """Works while there is something to do, and lets time pass up to what comes next."""
        until = self.now + seconds
        while True:
            for _ in range(100_000):
                if sum(self._turn(queue) for queue in self.queues) == 0:
                    break
            else:
                raise AssertionError("the worker never rests")
            if self.now >= until:
                return
            self.now = min([until, *self._next_events()])

    def _next_events(self) -> list[float]:
        events = [row.not_before for queue in self.queues for row in queue.rows if row.status == "pending"]
        openings = [self.courier.next_opening_seconds(gate) for queue in self.queues for gate in TARGETS[queue.topic]]
        return [
            moment + 0.001
            for moment in [*(each for each in events if each), *(self.now + each for each in openings if each > 0)]
            if moment > self.now
        ]

    def _turn(self, queue: MemoryQueue) -> bool:
        """One turn of the loop for one queue; whether it sent anything."""
        room, limited = self._concurrency, False
        for gate in TARGETS[queue.topic]:
            allowance = self.courier.allowance(gate)
            limited = limited or allowance is not None
            room = room if allowance is None else min(room, allowance)
        before = self.sent
        claimed = queue.claim(room, fresh_first=limited and self._fresh_first[queue.topic]) if room else []
        if limited and claimed:
            self._fresh_first[queue.topic] = not self._fresh_first[queue.topic]
        results = []
        for message, _ in claimed:
            self._being_sent = queue.rows[message.message_id]
            self.now += 0.001
            results.append((message, self.courier.deliver(message, REQUESTS[queue.topic])))
        self.outcomes.settled(self.topics[queue.queue_id], queue.settle(self.outcomes.decide(results)), 0.0)
        self.outcomes.catch_up(())
        return self.sent > before

    def rows(self, *, poison: bool) -> list[Row]:
        return [row for queue in self.queues for row in queue.rows if (row.fault is not None) is poison]

    def is_down(self, topic: str) -> bool:
        return any(gate in self.faults for gate in TARGETS[topic])


class Outages(RuleBasedStateMachine):
    @initialize(topics=st.sampled_from([TOPICS, (TOPIC_ORDER,), (TOPIC_WEBHOOK,)]), limit=st.sampled_from([1, 8]))
    def begin(self, topics: tuple[str, ...], limit: int) -> None:
        self.limit = limit
        self.world = World(topics, limit=limit)
        #: Topic -> since when its path serves
        self.up_since = dict.fromkeys(topics, self.world.now)

    def _topic(self, number: int) -> str:
        return self.world.queues[number % len(self.world.queues)].topic

    @rule(number=st.integers(0, 3), count=st.sampled_from([1, 1, 2, 30]))
    def customers_buy(self, number: int, count: int) -> None:
        for _ in range(count):
            self.world.publish(self._topic(number))

    @rule(number=st.integers(0, 3), fault=st.sampled_from(OWN_FAULTS), count=st.sampled_from([1, 1, 3, 5]))
    def poison_comes(self, number: int, fault: str, count: int) -> None:
        for _ in range(count):
            self.world.publish(self._topic(number), fault=fault)

    @precondition(lambda self: not self.world.faults)
    @rule(number=st.integers(0, 3), fault=st.sampled_from(HOST_FAULTS))
    def a_host_goes_down(self, number: int, fault: str) -> None:
        self._rest()
        self.world.faults[TARGETS[self._topic(number)][0]] = fault

    @precondition(lambda self: not self.world.faults)
    @rule(number=st.integers(0, 3), fault=st.sampled_from(PATH_FAULTS))
    def a_path_goes_down(self, number: int, fault: str) -> None:
        self._rest()
        self.world.faults[TARGETS[self._topic(number)][-1]] = fault

    @precondition(lambda self: self.world.faults)
    @rule()
    def it_serves_again(self) -> None:
        self._rest()
        down = [topic for topic in self.up_since if self.world.is_down(topic)]
        self.world.faults.clear()
        self.up_since.update(dict.fromkeys(down, self.world.now))

    @rule(seconds=st.sampled_from([1.0, 20.0, 90.0, 10 * MINUTE, HOUR, 7 * HOUR]))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)
        self._check()

    def _rest(self) -> None:
        """States last for more than a minute: what serves others and stops within the minute in which a message is
        tried, each time that it is, cannot be told from a message that always fails (docs/reliability.md)."""
        self.world.pass_time(90.0)
        self._check()

    def _check(self) -> None:
        now = self.world.now
        for row in self.world.rows(poison=False):
            assert row.status != "error", row
            if row.status == "pending" and not self.world.is_down(row.topic):
                # Each poison message that nobody knows yet may take a probe, and the turn of one that waits.
                unknown = sum(each.topic == row.topic and each.attempts < 2 for each in self.world.rows(poison=True))
                patience = PATIENCE + unknown * 2 * MAX_PAUSE_SECONDS
                assert now - max(row.published_at, self.up_since[row.topic]) < patience, (now, row, unknown)

    def teardown(self) -> None:
        """Everything serves, and one healthy message comes each hour: enough for every poison message to end."""
        if not hasattr(self, "world"):
            return
        self.world.faults.clear()
        self.up_since = dict.fromkeys(self.up_since, self.world.now)
        for _ in range(48 + 24 * self.limit):
            if all(row.status == "error" for row in self.world.rows(poison=True)):
                break
            for queue in self.world.queues:
                self.world.publish(queue.topic)
            self.world.pass_time(HOUR)
            self._check()
        self.world.pass_time(2 * HOUR)
        self._check()
        assert {row.status for row in self.world.rows(poison=False)} <= {"delivered"}
        assert {row.status for row in self.world.rows(poison=True)} <= {"error"}, self.world.rows(poison=True)


# --- the cases that showed a hole, each by itself


@pytest.mark.parametrize("limit", [1, 8])
@pytest.mark.parametrize("fault", PATH_FAULTS)
@pytest.mark.parametrize("count", [1, 2, 6])
def test_an_outage_of_a_day_costs_nobody_anything_and_is_over_within_minutes(
    limit: int, fault: str, count: int
) -> None:
    world = World((TOPIC_ORDER,), limit=limit)
    world.publish(TOPIC_ORDER)
    world.pass_time(1)
    world.faults["/order"] = fault
    met = [world.publish(TOPIC_ORDER) for _ in range(count)]
    world.pass_time(24 * HOUR)
    assert {row.status for row in met} == {"pending"}
    if count >= GROUPS:
        assert {row.attempts for row in met} == {0}
    world.faults.clear()
    world.pass_time(MAX_PAUSE_SECONDS + 1)
    assert {row.status for row in met} == {"delivered"}


@pytest.mark.parametrize("limit", [1, 8])
@pytest.mark.parametrize("fault", OWN_FAULTS)
def test_a_poison_message_among_others_ends_in_error_by_its_own_attempts(limit: int, fault: str) -> None:
    world = World((TOPIC_ORDER,), limit=limit)
    poison = world.publish(TOPIC_ORDER, fault=fault)
    healthy = []
    for _ in range(12 * 60):
        healthy.append(world.publish(TOPIC_ORDER))
        world.pass_time(MINUTE)
        assert healthy[-1].status == "delivered"
    # The end itself is an attempt, too, which the stand-in does not count.
    assert (poison.status, poison.attempts + 1) == ("error", limit if fault == "429" else max(limit, 2))


@pytest.mark.parametrize("limit", [1, 8])
@pytest.mark.parametrize("count", [3, 16])
def test_many_poison_messages_in_a_quiet_shop_do_not_live_for_ever(limit: int, count: int) -> None:
    world = World((TOPIC_ORDER,), limit=limit)
    poison = [world.publish(TOPIC_ORDER, fault="500") for _ in range(count)]
    world.pass_time(HOUR)
    for hour in range(2 * count + 2 * limit):
        healthy = world.publish(TOPIC_ORDER)
        world.pass_time(HOUR)
        if hour >= 2 * count:
            assert healthy.status == "delivered"
    assert {row.status for row in poison} == {"error"}


def test_a_poison_message_ends_though_nobody_buys_any_more_after_it_was_proven_to_be_one() -> None:
    world = World((TOPIC_ORDER,), limit=8)
    poison = world.publish(TOPIC_ORDER, fault="500")
    for _ in range(60):
        world.publish(TOPIC_ORDER)
    world.pass_time(24 * HOUR)
    assert poison.status == "error"


def test_attempts_that_announced_an_outage_are_given_back_when_it_is_recognised() -> None:
    world = World((TOPIC_ORDER,), limit=1)
    world.publish(TOPIC_ORDER)
    world.pass_time(1)
    world.faults["/order"] = "500"
    met = []
    for attempts in ([1], [1, 1], [0, 0, 0]):
        met.append(world.publish(TOPIC_ORDER))
        world.pass_time(1)
        assert [row.attempts for row in met] == [row.trials for row in met] == attempts


def test_a_message_that_failed_once_and_meets_a_second_outage_is_no_poison() -> None:
    world = World((TOPIC_ORDER,), limit=1)
    world.faults["/order"] = "500"
    met = world.publish(TOPIC_ORDER)
    world.pass_time(1)
    world.faults.clear()
    world.publish(TOPIC_ORDER)
    world.pass_time(1)
    assert met.status == "delivered", "tried at once, while others are known to be served"


def test_the_stand_in_keeps_the_order_of_the_queue(shop: Shop) -> None:
    """Fresh messages and those that wait take turns; what is released goes behind what waits already."""
    groups = [f"order:O{number}" for number in range(6)]
    for number in range(6):
        shop.publish_order(f"O{number}")
    clock = Clock()
    worker = StepWorker(shop, clock)
    released = Outcome(kind=OutcomeKind.RELEASED, reason="test")
    real: list[list[str]] = []
    for limit in (2, *[1] * 8):
        messages = worker.claim(limit)
        real.append([message.group_key for message in messages])
        for message in messages:
            clock.pass_by(1)
            worker.queue.settle([Settlement(message=message, outcome=released)])
    now = [0.0]
    stand_in = MemoryQueue(0, TOPIC_ORDER, lambda: now[0])
    stand_in.rows = [Row(number, TOPIC_ORDER, group) for number, group in enumerate(groups)]
    fresh_first = real[1][0] not in real[0]
    expected: list[list[str]] = []
    for limit in (2, *[1] * 8):
        messages = [message for message, _ in stand_in.claim(limit, fresh_first=fresh_first)]
        fresh_first = fresh_first if limit > 1 else not fresh_first
        expected.append([message.group_key for message in messages])
        for message in messages:
            now[0] += 1
            stand_in.settle([Settlement(message=message, outcome=released)])
    assert real == expected


TestOutages = Outages.TestCase
TestOutages.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
