from __future__ import annotations

import threading

import pytest
from courier_doubles import FleetTurns, unlimited
from hypothesis import given
from hypothesis import strategies as st
from support.clock import Clock
from support.waiting import eventually

from zithara_worker.delivery.pace import (
    AHEAD_SECONDS,
    DATABASE_AWAY_SECONDS,
    LAPSE_SECONDS,
    LAPSED_TURNS,
    LIMITING_SECONDS,
    Pause,
    RateLimit,
    Throttle,
)
from zithara_worker.errors import DatabaseUnavailable


class Waits(list[float]):
    """Passes the time it is asked to wait, unless told to stop."""

    def __init__(self, clock: Clock, *, stop: bool = False) -> None:
        super().__init__()
        self.clock = clock
        self.stop = stop

    def __call__(self, seconds: float) -> bool:
        self.append(seconds)
        if not self.stop:
            self.clock.now += seconds
        return self.stop


def test_a_rate_of_zero_is_no_limit(clock: Clock) -> None:
    waits = Waits(clock)
    limit = unlimited(clock, waits)
    assert all(limit.take() for _ in range(1000))
    assert waits == [] and not limit.is_limiting


def test_turns_follow_each_other_at_the_rate(clock: Clock) -> None:
    waits = Waits(clock)
    limit = FleetTurns(clock, rate=10).limit(waits)
    assert all(limit.take() for _ in range(5))
    assert waits == pytest.approx([0.1] * 4)
    assert limit.is_limiting
    clock.now += LIMITING_SECONDS
    assert not limit.is_limiting


def test_after_an_idle_time_a_burst_goes_at_once_and_no_more(clock: Clock) -> None:
    waits = Waits(clock)
    limit = FleetTurns(clock, rate=10, burst=5).limit(waits)
    clock.now += 3600
    # Four: one less than the burst, since turns may be used late.
    assert all(limit.take() for _ in range(6))
    assert waits == pytest.approx([0.1, 0.1])


def test_the_workers_of_a_fleet_share_the_turns(clock: Clock) -> None:
    waits = Waits(clock)
    fleet = FleetTurns(clock, rate=10)
    one, other = fleet.limit(waits), fleet.limit(waits)
    assert [one.take(), other.take(), one.take(), other.take()] == [True] * 4
    assert sum(waits) == pytest.approx(0.3)


@given(
    rate=st.sampled_from([0.4, 1.0, 7.5, 40.0, 300.0]),
    burst=st.sampled_from([0, 1, 2, 10, 400]),
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.0, 0.0, 0.05, 0.7, 4.0]), st.floats(0, LAPSE_SECONDS)),
        max_size=120,
    ),
)
def test_no_second_gets_more_than_rate_and_burst(
    rate: float, burst: int, steps: list[tuple[int, float, float]]
) -> None:
    clock = Clock()
    late = 0.0

    def wait(seconds: float) -> bool:
        clock.now += seconds + late
        return False

    fleet = FleetTurns(clock, rate=rate, burst=burst)
    workers = [fleet.limit(wait) for _ in range(3)]
    sent: list[float] = []
    for worker, pause, late in steps:  # noqa: B007 - `wait` reads it
        clock.now += pause
        assert workers[worker].take()
        sent.append(clock.now)
    most = rate + (burst or max(1.0, rate))
    assert all(sum(start <= each < start + 1 for each in sent) <= most + 1e-6 for start in sent)


def test_a_turn_that_was_not_used_in_time_lapses(clock: Clock) -> None:
    waits = Waits(clock)
    fleet = FleetTurns(clock, rate=10)

    def oversleep(seconds: float) -> bool:
        waits(seconds + (LAPSE_SECONDS + 0.01 if len(waits) == 0 else 0))
        return False

    limit = fleet.limit(oversleep)
    assert limit.take() and limit.take()
    assert len(fleet.calls) == 3, "the second was too late for its turn and took another"


def test_a_host_that_is_always_late_sends_all_the_same(clock: Clock) -> None:
    def oversleep(seconds: float) -> bool:
        clock.now += seconds + 2 * LAPSE_SECONDS
        return False

    fleet = FleetTurns(clock, rate=1)
    limit = fleet.limit(oversleep)
    limit.take()
    fleet.calls.clear()
    assert limit.take()
    assert len(fleet.calls) == LAPSED_TURNS + 1


def test_a_busy_worker_spares_statements_and_an_idle_one_takes_a_turn_at_a_time(clock: Clock) -> None:
    fleet = FleetTurns(clock, rate=1000)
    limit = fleet.limit(Waits(clock))
    assert all(limit.take() for _ in range(1000))
    assert len(fleet.calls) < 40 and max(fleet.calls) == AHEAD_SECONDS * 1000
    clock.now += 60
    fleet.calls.clear()
    limit.take()
    assert fleet.calls == [1]


def test_nothing_is_sent_while_the_database_does_not_answer(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    waits = Waits(clock)
    fleet = FleetTurns(clock, rate=10)
    away = 2

    def reserve(count: int) -> tuple[float, int]:
        nonlocal away
        away -= 1
        if away >= 0:
            raise DatabaseUnavailable("gone")
        return fleet.reserve(count)

    assert RateLimit(reserve, seconds_each=0.1, clock=clock, wait=waits).take()
    assert waits == [DATABASE_AWAY_SECONDS] * 2
    assert [getattr(record, "event", "") for record in caplog.records] == ["rate_limit_unknown"] * 2


@pytest.mark.parametrize("away", [False, True], ids=["turns", "database away"])
def test_one_thread_waits_with_a_turn_and_a_stop_ends_all_waits_without_another_statement(
    clock: Clock, away: bool
) -> None:
    stopping = threading.Event()
    fleet = FleetTurns(clock, rate=0.001, burst=1)
    fleet.reserve(1)

    def reserve(count: int) -> tuple[float, int]:
        reserved = fleet.reserve(count)
        if away:
            raise DatabaseUnavailable("gone")
        return reserved

    limit = RateLimit(reserve, seconds_each=1000.0, clock=clock, wait=lambda _: stopping.wait(20))
    fleet.calls.clear()
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(limit.take())) for _ in range(8)]
    for thread in threads:
        thread.start()
    eventually(lambda: limit.is_limiting)

    stopping.set()

    for thread in threads:
        thread.join(5)
    assert results == [False] * 8
    assert fleet.calls == [1], "turns that nobody uses would hold up the fleet after a reload or the worker's death"


def test_the_pace_is_limited_for_as_long_as_a_request_waits(clock: Clock) -> None:
    told: list[bool] = []

    def wait(seconds: float) -> bool:
        clock.now += seconds / 2
        told.append(limit.is_limiting)
        clock.now += seconds / 2
        return False

    limit = FleetTurns(clock, rate=1 / (4 * LIMITING_SECONDS)).limit(wait)
    assert limit.take() and limit.take()
    assert told == [True]


def refused(
    throttle: Throttle, group: str, seconds: float | None = None, *, others_served_at: float | None = None
) -> Pause:
    return throttle.refused(group, seconds, others_served_at=others_served_at)


def test_a_throttle_pauses_for_as_long_as_it_was_asked(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    assert throttle.remaining_seconds() == 0
    assert refused(throttle, "a", 30.0).seconds == 30
    clock.now += 29
    assert throttle.remaining_seconds() == 1
    clock.now += 2
    assert throttle.remaining_seconds() == 0


def test_the_longest_of_several_pauses_holds(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    refused(throttle, "a", 30.0)
    refused(throttle, "b", 10.0)
    assert refused(throttle, "c").seconds == 30


def test_one_group_alone_is_believed_for_five_minutes_and_two_for_as_long_as_they_say(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    assert refused(throttle, "a", 7200.0).seconds == 300
    assert refused(throttle, "a", 7200.0).seconds == 300
    assert refused(throttle, "b", 7200.0).seconds == 7200


def test_a_path_that_does_not_say_how_long_is_left_alone_for_longer_each_time(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    pauses = []
    for _ in range(8):
        pauses.append(refused(throttle, "a").seconds)
        clock.now += pauses[-1]
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300]

    throttle.relax("b")

    assert refused(throttle, "a").seconds == 5


def test_threads_throttled_together_are_one_event(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    assert {refused(throttle, f"group {number}").seconds for number in range(64)} == {5}
    clock.now += 5
    assert refused(throttle, "a").seconds == 10


def test_a_group_refused_again_after_others_were_served_pauses_nobody_but_itself(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    refused(throttle, "a", 20.0)
    found = []
    for _ in range(5):
        clock.now += 20
        throttle.relax("b")
        found.append(refused(throttle, "a", 20.0, others_served_at=clock.now - 1))
        assert throttle.remaining_seconds() == 0
    # Every third costs an attempt; the first one of all was no more than a wish for peace.
    assert [pause.times for pause in found] == [2, 3, 1, 2, 3]
    assert {pause.seconds for pause in found} == {0}


def test_a_group_that_was_served_begins_anew(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    refused(throttle, "a", 20.0)
    clock.now += 20
    throttle.relax("a")
    assert refused(throttle, "a", 20.0, others_served_at=clock.now - 1).seconds == 20
