"""What this process has counted since it started, for /metrics: counters and distributions, updated once a batch.

Does not need prometheus-client: `prometheus` gives the values their names. Labels are looked up in ordinary
dictionaries, which costs about a microsecond a message.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from zithara_worker.messages import Message, OutcomeKind
from zithara_worker.queue.settle import Settled

#: Upper bounds of the distributions: of requests, deliveries and statements in seconds, of batches in messages.
RESPONSE_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
DELIVERY_SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
STATEMENT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
BATCH_MESSAGES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)


class Distribution:
    """Counts observations by upper bound; the last count is of those above all bounds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


def _distributions(bounds: Sequence[float]) -> Callable[[], defaultdict[Any, Distribution]]:
    """Makes a dictionary that creates the distribution of a label when it is first looked up."""
    return partial(defaultdict, partial(Distribution, bounds))


@dataclass(slots=True)
class MetricValues:
    """The counts at one moment. Keys are the labels: topic; topic and outcome; topic and reason; endpoint and status
    class."""

    deliveries: Counter[tuple[str, str]] = field(default_factory=Counter)
    retries: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    skips: Counter[tuple[str, str]] = field(default_factory=Counter)
    coalesced: Counter[str] = field(default_factory=Counter)
    leases_lost: Counter[str] = field(default_factory=Counter)
    relayed: Counter[str] = field(default_factory=Counter)
    in_flight: Counter[str] = field(default_factory=Counter)
    last_settled_at: dict[str, float] = field(default_factory=dict)
    delivery_seconds: dict[str, Distribution] = field(default_factory=_distributions(DELIVERY_SECONDS))
    response_seconds: dict[tuple[str, str], Distribution] = field(default_factory=_distributions(RESPONSE_SECONDS))
    claim_seconds: dict[str, Distribution] = field(default_factory=_distributions(STATEMENT_SECONDS))
    settle_seconds: dict[str, Distribution] = field(default_factory=_distributions(STATEMENT_SECONDS))
    claim_messages: dict[str, Distribution] = field(default_factory=_distributions(BATCH_MESSAGES))
    settle_messages: dict[str, Distribution] = field(default_factory=_distributions(BATCH_MESSAGES))


class WorkerMetrics:
    """Counts what the loops of this process do: a reload starts another loop, and the counters continue. `monotonic`,
    `utc`: seconds."""

    def __init__(self, *, monotonic: Callable[[], float], utc: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._utc = utc
        self._lock = threading.Lock()
        self._claimed_at: dict[int, float] = {}
        self._values = MetricValues()

    def begin(self, topics: Sequence[str]) -> None:
        """A loop over these topics begins, with nothing claimed. Their counters exist from now on, as zero."""
        with self._lock:
            self._claimed_at.clear()
            values = self._values
            for topic in topics:
                values.in_flight[topic] = 0
                values.coalesced[topic] += 0
                values.leases_lost[topic] += 0
                for kind in OutcomeKind:
                    if kind is not OutcomeKind.LEASE_LOST:
                        values.deliveries[topic, kind.value] += 0

    def claimed(self, topic: str, messages: Sequence[Message], seconds: float) -> None:
        now = self._monotonic()
        with self._lock:
            values = self._values
            values.claim_seconds[topic].observe(seconds)
            if not messages:
                return
            values.claim_messages[topic].observe(len(messages))
            values.in_flight[topic] += len(messages)
            for message in messages:
                self._claimed_at[message.id] = now

    def settled(self, topic: str, settled: Settled, seconds: float) -> None:
        now, utc = self._monotonic(), self._utc()
        kinds: defaultdict[OutcomeKind, int] = defaultdict(int)
        with self._lock:
            values = self._values
            durations = values.delivery_seconds[topic]
            for each in settled.done:
                outcome, kind = each.outcome, each.outcome.kind
                kinds[kind] += 1
                claimed_at = self._claimed_at.pop(each.message.id, None)
                if kind is OutcomeKind.DELIVERED:
                    if claimed_at is not None:
                        durations.observe(now - claimed_at)
                    if each.message.supersedes:
                        values.coalesced[topic] += len(each.message.supersedes)
                elif kind is OutcomeKind.RETRY:
                    values.retries[topic, outcome.reason] += 1
                elif kind is OutcomeKind.FAILED:
                    values.failures[topic, outcome.reason] += 1
                elif kind is OutcomeKind.SKIPPED:
                    values.skips[topic, outcome.reason] += 1
                if outcome.duration_ms is not None:
                    place = (outcome.endpoint, _status_class(outcome.http_status))
                    values.response_seconds[place].observe(outcome.duration_ms / 1000)
            for message in settled.lost:
                self._claimed_at.pop(message.id, None)
            for kind, count in kinds.items():
                values.deliveries[topic, kind.value] += count
            values.leases_lost[topic] += len(settled.lost)
            values.in_flight[topic] -= len(settled.done) + len(settled.lost)
            values.last_settled_at[topic] = utc
            values.settle_seconds[topic].observe(seconds)
            values.settle_messages[topic].observe(len(settled.done) + len(settled.lost))

    def relayed(self, topic: str, messages: int) -> None:
        """A relay has written so many messages into the queue; 0 lets the counter exist."""
        with self._lock:
            self._values.relayed[topic] += messages

    def values(self) -> MetricValues:
        """A copy that does not change."""
        with self._lock:
            return deepcopy(self._values)


def _status_class(status: int | None) -> str:
    return "none" if status is None else f"{status // 100}xx"
