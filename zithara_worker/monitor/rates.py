"""What the workers did in each minute: rates, failure rates, percentiles of response times, drain time. Pure.

The counts come from the column `minutes` of zithara_worker, which `registry.MinuteCounters` fills.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zithara_worker.messages import OutcomeKind

#: Upper bounds of the response-time buckets, milliseconds; the last bucket has none.
BUCKETS_MS = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000)
NO_REQUESTS = (0,) * (len(BUCKETS_MS) + 1)
#: Minutes of history that a worker writes and that are shown.
HISTORY_MINUTES = 60
#: Minutes, the current one included, over which rates and response times are taken.
RATE_MINUTES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Minute:
    """What the fleet did in one minute, or in several minutes added up by `total`. `minute`: since the epoch."""

    minute: int
    #: Delivered and skipped messages
    answered: int = 0
    #: Messages that are complete without a request, by reason; `answered` counts them too
    skipped: Mapping[str, int] = field(default_factory=dict)
    #: Older snapshots that were completed with a delivered one
    superseded: int = 0
    retried: int = 0
    failed: int = 0
    #: Messages that relays wrote into the queue
    relayed: int = 0
    #: Requests by response time; see BUCKETS_MS
    buckets: tuple[int, ...] = NO_REQUESTS

    @property
    def done(self) -> int:
        return self.answered + self.superseded

    @property
    def failure_rate(self) -> float | None:
        """Share of attempts that failed, for now or for good; None without attempts."""
        failures = self.retried + self.failed
        attempts = self.answered + failures
        return round(failures / attempts, 4) if attempts else None

    def percentile_ms(self, share: float) -> float | None:
        """The response time that `share` (0 to 1) of the requests did not exceed; None without requests.

        Interpolates within a bucket: 10 requests of 50 to 100 ms have a median of 75. A request in the last bucket,
        which has no upper bound, counts with its lower bound.
        """
        if not any(self.buckets):
            return None
        wanted = share * sum(self.buckets)
        below = 0
        low = 0
        for high, requests in zip(BUCKETS_MS, self.buckets, strict=False):
            if requests and below + requests >= wanted:
                return round(low + (high - low) * (wanted - below) / requests, 1)
            below += requests
            low = high
        return float(low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Of the last RATE_MINUTES. `done`: delivered, skipped and superseded messages; `relayed`: taken from RabbitMQ."""

    done_per_minute: float
    relayed_per_minute: float
    failure_rate: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


def total(minutes: Iterable[Minute], *, minute: int = 0) -> Minute:
    """All of them added up, as `minute`."""
    found = list(minutes)
    return Minute(
        minute=minute,
        answered=sum(each.answered for each in found),
        skipped=sum((Counter(each.skipped) for each in found), Counter()),
        superseded=sum(each.superseded for each in found),
        retried=sum(each.retried for each in found),
        failed=sum(each.failed for each in found),
        relayed=sum(each.relayed for each in found),
        buckets=tuple(map(sum, zip(NO_REQUESTS, *(each.buckets for each in found), strict=True))),
    )


def history(minutes: Iterable[Minute], now: float) -> tuple[Minute, ...]:
    """The last HISTORY_MINUTES, oldest first, each added up over topics and workers."""
    newest = int(now // 60)
    by_minute: dict[int, list[Minute]] = {minute: [] for minute in range(newest - HISTORY_MINUTES + 1, newest + 1)}
    for each in minutes:
        if each.minute in by_minute:
            by_minute[each.minute].append(each)
    return tuple(total(found, minute=minute) for minute, found in by_minute.items())


def rates(hour: Sequence[Minute], now: float, started_utc: float) -> Rates:
    """`hour`: of `history`. `started_utc`: when the oldest worker started; the time before it does not count, but less
    than a minute counts as one: two messages in five seconds are no 24 a minute."""
    seconds = max(60.0, min((RATE_MINUTES - 1) * 60 + now % 60, now - started_utc))
    recent = total(hour[-RATE_MINUTES:])
    return Rates(
        done_per_minute=round(recent.done * 60 / seconds, 2),
        relayed_per_minute=round(recent.relayed * 60 / seconds, 2),
        failure_rate=recent.failure_rate,
        p50_ms=recent.percentile_ms(0.50),
        p95_ms=recent.percentile_ms(0.95),
        p99_ms=recent.percentile_ms(0.99),
    )


def drain_seconds(backlog: int, done_per_minute: float) -> float | None:
    """How long the backlog takes at this rate; None when nothing is being delivered."""
    if backlog == 0:
        return 0.0
    return backlog / done_per_minute * 60 if done_per_minute > 0 else None


def read_minutes(of_workers: Iterable[Mapping[str, Any]]) -> dict[str, list[Minute]]:
    """Topic -> what each worker did in each minute.

    `of_workers`: what `MinuteCounters.minutes` wrote. A worker of another version may have written something else:
    what cannot be understood is left out, as are response times in other buckets.
    """
    found: defaultdict[str, list[Minute]] = defaultdict(list)
    for minutes in of_workers:
        for minute, topics in minutes.items():
            if not minute.isdecimal() or not isinstance(topics, dict):
                continue
            for topic, counts in topics.items():
                if isinstance(counts, dict):
                    found[topic].append(_minute(int(minute), counts))
    return found


def _minute(minute: int, counts: Mapping[str, Any]) -> Minute:
    number_of = _counts(counts.get("outcomes")).get
    buckets = counts.get("buckets")
    return Minute(
        minute=minute,
        answered=number_of(OutcomeKind.DELIVERED.value, 0) + number_of(OutcomeKind.SKIPPED.value, 0),
        skipped=_counts(counts.get("skipped")),
        superseded=_number(counts.get("superseded")),
        retried=number_of(OutcomeKind.RETRY.value, 0),
        failed=number_of(OutcomeKind.FAILED.value, 0),
        relayed=_number(counts.get("relayed")),
        buckets=tuple(map(_number, buckets))
        if isinstance(buckets, list) and len(buckets) == len(NO_REQUESTS)
        else NO_REQUESTS,
    )


def _counts(value: Any) -> dict[str, int]:
    """What is a number in an object of counts; nothing of what is no object."""
    return (
        {name: number for name, number in value.items() if isinstance(number, int)} if isinstance(value, dict) else {}
    )


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
