"""What this worker counts for its monitoring, since it started: plain numbers, once a batch, in the loop's thread.

Knows neither Prometheus nor HTTP: `exposition` gives the numbers their names. Labels are looked up here in ordinary
dictionaries, which costs a message about a microsecond from claim to settle.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from zithara_worker.messages import Message, OutcomeKind
from zithara_worker.queue.settle import Settled

Key = TypeVar("Key")

#: Upper bounds: of what crosses a network, of what a database does, seconds; of batches, messages.
RESPONSE_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
DELIVERY_SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
STATEMENT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
BATCH_MESSAGES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)


class Distribution:
    """Counts of observations by upper bound; the last one, without a bound, takes the rest."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def copy(self) -> Distribution:
        copied = Distribution(self.bounds)
        copied.counts, copied.total = list(self.counts), self.total
        return copied


@dataclass(slots=True)
class Numbers:
    """All of it at one moment. Keys are the labels: topic; topic and outcome; topic and reason; endpoint and class."""

    deliveries: Counter[tuple[str, str]] = field(default_factory=Counter)
    retries: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    coalesced: Counter[str] = field(default_factory=Counter)
    leases_lost: Counter[str] = field(default_factory=Counter)
    in_flight: Counter[str] = field(default_factory=Counter)
    last_settled_at: dict[str, float] = field(default_factory=dict)
    delivery_seconds: dict[str, Distribution] = field(default_factory=dict)
    response_seconds: dict[tuple[str, str], Distribution] = field(default_factory=dict)
    claim_seconds: dict[str, Distribution] = field(default_factory=dict)
    settle_seconds: dict[str, Distribution] = field(default_factory=dict)
    claim_messages: dict[str, Distribution] = field(default_factory=dict)
    settle_messages: dict[str, Distribution] = field(default_factory=dict)


class WorkerMetrics:
    """Observes a loop, and the next one after a reload: counters go on. `monotonic`, `utc`: seconds."""

    def __init__(self, *, monotonic: Callable[[], float], utc: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._utc = utc
        self._lock = threading.Lock()
        self._claimed_at: dict[int, float] = {}
        self._numbers = Numbers()

    def expect(self, topics: Sequence[str]) -> None:
        """A loop over these topics begins with nothing in hand; their counters exist from now on, as zero."""
        with self._lock:
            self._claimed_at.clear()
            numbers = self._numbers
            for topic in topics:
                numbers.in_flight[topic] = 0
                numbers.coalesced[topic] += 0
                numbers.leases_lost[topic] += 0
                for kind in OutcomeKind:
                    if kind is not OutcomeKind.LEASE_LOST:
                        numbers.deliveries[topic, kind.value] += 0

    def claimed(self, topic: str, messages: Sequence[Message], seconds: float) -> None:
        now = self._monotonic()
        with self._lock:
            numbers = self._numbers
            _at(numbers.claim_seconds, topic, STATEMENT_SECONDS).observe(seconds)
            if not messages:
                return
            _at(numbers.claim_messages, topic, BATCH_MESSAGES).observe(len(messages))
            numbers.in_flight[topic] += len(messages)
            for message in messages:
                self._claimed_at[message.id] = now

    def settled(self, topic: str, settled: Settled, seconds: float) -> None:
        now, utc = self._monotonic(), self._utc()
        kinds: defaultdict[OutcomeKind, int] = defaultdict(int)
        with self._lock:
            numbers = self._numbers
            durations = _at(numbers.delivery_seconds, topic, DELIVERY_SECONDS)
            for each in settled.done:
                outcome, kind = each.outcome, each.outcome.kind
                kinds[kind] += 1
                claimed_at = self._claimed_at.pop(each.message.id, None)
                if kind is OutcomeKind.DELIVERED:
                    if claimed_at is not None:
                        durations.observe(now - claimed_at)
                    if each.message.supersedes:
                        numbers.coalesced[topic] += len(each.message.supersedes)
                elif kind is OutcomeKind.RETRY:
                    numbers.retries[topic, outcome.reason] += 1
                elif kind is OutcomeKind.FAILED:
                    numbers.failures[topic, outcome.reason] += 1
                if outcome.duration_ms is not None:
                    place = (outcome.endpoint, _status_class(outcome.http_status))
                    _at(numbers.response_seconds, place, RESPONSE_SECONDS).observe(outcome.duration_ms / 1000)
            for message in settled.lost:
                self._claimed_at.pop(message.id, None)
            for kind, count in kinds.items():
                numbers.deliveries[topic, kind.value] += count
            numbers.leases_lost[topic] += len(settled.lost)
            numbers.in_flight[topic] -= len(settled.done) + len(settled.lost)
            numbers.last_settled_at[topic] = utc
            _at(numbers.settle_seconds, topic, STATEMENT_SECONDS).observe(seconds)
            _at(numbers.settle_messages, topic, BATCH_MESSAGES).observe(len(settled.done) + len(settled.lost))

    def numbers(self) -> Numbers:
        """A copy that changes no more."""
        with self._lock:
            now = self._numbers
            return Numbers(
                deliveries=now.deliveries.copy(),
                retries=now.retries.copy(),
                failures=now.failures.copy(),
                coalesced=now.coalesced.copy(),
                leases_lost=now.leases_lost.copy(),
                in_flight=now.in_flight.copy(),
                last_settled_at=dict(now.last_settled_at),
                delivery_seconds={place: each.copy() for place, each in now.delivery_seconds.items()},
                response_seconds={place: each.copy() for place, each in now.response_seconds.items()},
                claim_seconds={place: each.copy() for place, each in now.claim_seconds.items()},
                settle_seconds={place: each.copy() for place, each in now.settle_seconds.items()},
                claim_messages={place: each.copy() for place, each in now.claim_messages.items()},
                settle_messages={place: each.copy() for place, each in now.settle_messages.items()},
            )


def _at(distributions: dict[Key, Distribution], place: Key, bounds: Sequence[float]) -> Distribution:
    found = distributions.get(place)
    if found is None:
        found = distributions[place] = Distribution(bounds)
    return found


def _status_class(status: int | None) -> str:
    return "none" if status is None else f"{status // 100}xx"
