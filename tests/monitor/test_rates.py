"""What a worker counts by minute, and what is read from the counts of all."""

from __future__ import annotations

from typing import Any

import pytest

from zithara_worker.messages import Outcome, OutcomeKind
from zithara_worker.monitor.rates import (
    BUCKETS_MS,
    NO_REQUESTS,
    Minute,
    drain_seconds,
    history,
    rates,
    read_minutes,
    total,
)
from zithara_worker.monitor.registry import MinuteCounters
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER

NOW = 600_030.0


def minute(**counts: Any) -> Minute:
    return Minute(minute=10_000, **counts)


def counts(**outcomes: int) -> dict[str, Any]:
    return {"outcomes": outcomes, "superseded": 1, "buckets": [*NO_REQUESTS[:-1], sum(outcomes.values())]}


@pytest.mark.parametrize("kind", OutcomeKind)
def test_older_snapshots_count_as_superseded_once_the_newest_was_delivered(kind: OutcomeKind) -> None:
    counters = MinuteCounters(lambda: 600.0)
    counters.count(TOPIC_CART, Outcome(kind=kind), superseded=3)
    counts = counters.minutes()["10"][TOPIC_CART]
    assert counts["outcomes"] == {kind.value: 1}
    assert counts["superseded"] == (3 if kind is OutcomeKind.DELIVERED else 0)


def test_what_a_worker_counts_is_read_again() -> None:
    counters = MinuteCounters(lambda: NOW)
    for kind in (OutcomeKind.DELIVERED, OutcomeKind.SKIPPED, OutcomeKind.RETRY, OutcomeKind.FAILED):
        counters.count(TOPIC_CART, Outcome(kind=kind, duration_ms=75.0), superseded=3)
    counters.count(TOPIC_CART, Outcome(kind=OutcomeKind.RELEASED))
    (read,) = read_minutes([counters.minutes()])[TOPIC_CART]
    assert (read.minute, read.answered, read.superseded, read.retried, read.failed) == (10_000, 2, 3, 1, 1)
    assert (read.done, read.failure_rate, sum(read.buckets), read.percentile_ms(0.5)) == (5, 0.5, 4, 75.0)


def test_what_was_not_sent_is_counted_by_reason_and_added_up() -> None:
    counters = MinuteCounters(lambda: NOW)
    for reason in ("unchanged", "unchanged", "overtaken"):
        counters.count(TOPIC_CART, Outcome(kind=OutcomeKind.SKIPPED, reason=reason))
    counters.count(TOPIC_CART, Outcome(kind=OutcomeKind.FAILED, reason="http_400"))
    written = counters.minutes()
    counters.count(TOPIC_CART, Outcome(kind=OutcomeKind.SKIPPED, reason="unchanged"))
    of_another_version = {"10000": {TOPIC_CART: {"outcomes": {"skipped": 1}, "skipped": {"unchanged": "1", "x": 5}}}}
    before_this_version = {"10000": {TOPIC_CART: {"outcomes": {"skipped": 1}}}}
    read = read_minutes([written, of_another_version, before_this_version])[TOPIC_CART]
    assert total(read).skipped == {"unchanged": 2, "overtaken": 1, "x": 5}
    assert history(read, NOW)[-1].answered == 5


def test_minutes_of_all_workers_are_added_up_and_what_another_version_wrote_is_left_out() -> None:
    found = read_minutes(
        [
            {"10000": {TOPIC_ORDER: counts(delivered=3, retry=1)}},
            {"10000": {TOPIC_ORDER: counts(delivered=2, skipped=1, failed=1), "x": 7}, "9999": "other", "x": {}},
            {"10000": {TOPIC_ORDER: {"outcomes": {"delivered": 9, "retry": "1"}, "buckets": [1], "superseded": None}}},
            {"10000": {TOPIC_ORDER: {"outcomes": [1]}}},
        ]
    )
    assert found.keys() == {TOPIC_ORDER}
    all_of_it = total(found[TOPIC_ORDER], minute=10_000)
    assert all_of_it == minute(answered=15, superseded=2, retried=1, failed=1, buckets=(*NO_REQUESTS[:-1], 8))


def test_the_history_is_the_last_hour_with_this_minute() -> None:
    newest, oldest, old, future = (Minute(minute=10_000 + offset, retried=1) for offset in (0, -59, -60, 1))
    hour = history([newest, newest, oldest, old, future], NOW)
    assert [each.minute for each in hour] == list(range(9_941, 10_001))
    assert [each.retried for each in hour] == [1, *[0] * 58, 2]


@pytest.mark.parametrize(
    ("age", "per_minute"),
    [(3600.0, 40 / 4.5), (90.0, 40 / 1.5), (5.0, 40.0)],
    ids=["five minutes, of this one the half", "since the oldest worker started", "never less than a minute"],
)
def test_rates_are_those_of_the_last_five_minutes(age: float, per_minute: float) -> None:
    minutes = [Minute(minute=number, answered=10) for number in (10_000, 9_999, 9_998, 9_996)]
    before = Minute(minute=9_995, answered=1000, failed=7)
    found = rates(history([*minutes, before], NOW), NOW, NOW - age)
    assert found.done_per_minute == round(per_minute, 2)
    assert (found.failure_rate, found.p50_ms) == (0.0, None)


def test_percentiles_go_by_straight_lines_within_a_bucket() -> None:
    assert minute().percentile_ms(0.5) is None
    some = [0] * len(NO_REQUESTS)
    some[4] = 10  # 50 to 100 ms
    assert minute(buckets=tuple(some)).percentile_ms(0.5) == 75.0
    some[-1] = 90  # above 30 s
    assert minute(buckets=tuple(some)).percentile_ms(0.95) == 30_000.0
    assert minute(buckets=(4, *NO_REQUESTS[1:])).percentile_ms(0.5) == 2.5
    assert minute(buckets=(*NO_REQUESTS[:-2], 5, 0)).percentile_ms(1.0) == BUCKETS_MS[-1]


def buckets(**requests: int) -> tuple[int, ...]:
    """`under_100=3`: three requests in the bucket below 100 ms."""
    return (*(requests.get(f"under_{bound}", 0) for bound in BUCKETS_MS), 0)


def test_percentiles_count_the_requests_of_the_buckets_below() -> None:
    some = minute(buckets=buckets(under_100=10, under_2500=30))
    assert some.percentile_ms(0.25) == 100.0, "of the lower bucket, whose end is just reached"
    assert some.percentile_ms(0.5) == 1500.0
    assert minute(buckets=buckets(under_100=3)).percentile_ms(0.5) == 75.0
    assert minute(buckets=buckets(under_5=3)).percentile_ms(0.25) == 1.2


def test_rates_have_three_percentiles_and_a_rounded_failure_rate() -> None:
    busy = Minute(minute=10_000, answered=2, retried=1, buckets=buckets(under_100=90, under_1000=8, under_30000=2))
    found = rates(history([busy], NOW), NOW, NOW - 3600)
    assert (found.p50_ms, found.p95_ms, found.p99_ms) == (77.8, 812.5, 20_000.0)
    assert found.failure_rate == 0.3333


def test_nothing_is_added_up_to_nothing() -> None:
    assert total([], minute=10_000) == minute()
    assert (minute().failure_rate, minute().done) == (None, 0)


@pytest.mark.parametrize(
    ("backlog", "rate", "seconds"), [(0, 0.0, 0.0), (0, 5.0, 0.0), (40, 8.0, 300.0), (1, 0.5, 120.0), (40, 0.0, None)]
)
def test_a_backlog_drains_at_the_present_rate(backlog: int, rate: float, seconds: float | None) -> None:
    assert drain_seconds(backlog, rate) == seconds
