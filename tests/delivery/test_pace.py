from __future__ import annotations

import threading

import pytest
from courier_doubles import Clock

from zithara_worker.delivery.pace import Pause, Throttle, TokenBucket


@pytest.fixture
def clock() -> Clock:
    return Clock()


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
    bucket = TokenBucket(rate=0, burst=0, clock=clock, wait=waits)
    assert all(bucket.take() for _ in range(1000))
    assert waits == []


def test_a_burst_goes_at_once_and_the_rest_at_the_rate(clock: Clock) -> None:
    waits = Waits(clock)
    bucket = TokenBucket(rate=10, burst=3, clock=clock, wait=waits)
    assert all(bucket.take() for _ in range(8))
    assert waits == pytest.approx([0.1] * 5)


def test_without_a_burst_one_second_s_worth_goes_at_once(clock: Clock) -> None:
    waits = Waits(clock)
    bucket = TokenBucket(rate=4, burst=0, clock=clock, wait=waits)
    assert all(bucket.take() for _ in range(5))
    assert len(waits) == 1


def test_a_rate_below_one_lets_one_go_at_once(clock: Clock) -> None:
    waits = Waits(clock)
    bucket = TokenBucket(rate=0.5, burst=0, clock=clock, wait=waits)
    assert bucket.take() and bucket.take()
    assert waits == pytest.approx([2.0])


def test_idle_time_does_not_add_up_beyond_the_burst(clock: Clock) -> None:
    waits = Waits(clock)
    bucket = TokenBucket(rate=10, burst=2, clock=clock, wait=waits)
    clock.now += 3600
    assert all(bucket.take() for _ in range(3))
    assert waits == pytest.approx([0.1])


def test_callers_wait_behind_each_other(clock: Clock) -> None:
    asked: list[float] = []

    def wait(seconds: float) -> bool:
        asked.append(seconds)
        return False

    bucket = TokenBucket(rate=10, burst=1, clock=clock, wait=wait)
    assert all(bucket.take() for _ in range(4))
    assert asked == pytest.approx([0.1, 0.2, 0.3])


def test_who_is_stopped_gives_the_turn_back(clock: Clock) -> None:
    waits = Waits(clock, stop=True)
    bucket = TokenBucket(rate=1, burst=1, clock=clock, wait=waits)
    assert bucket.take() is True
    assert [bucket.take() for _ in range(3)] == [False] * 3
    assert waits == pytest.approx([1.0] * 3)


def test_stopping_wakes_every_waiting_thread(clock: Clock) -> None:
    stopping = threading.Event()
    bucket = TokenBucket(rate=0.001, burst=1, clock=clock, wait=stopping.wait)
    bucket.take()
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(bucket.take())) for _ in range(8)]
    for thread in threads:
        thread.start()

    stopping.set()

    for thread in threads:
        thread.join(5)
    assert results == [False] * 8


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
