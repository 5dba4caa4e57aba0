from __future__ import annotations

import threading

import pytest
from courier_doubles import Clock

from zithara_worker.delivery.breaker import BreakerState, CircuitBreaker, Permit


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(clock=clock)


def open_it(breaker: CircuitBreaker) -> None:
    assert [breaker.record_failure(Permit.NORMAL) for _ in range(5)] == [False] * 4 + [True]


def probe(breaker: CircuitBreaker) -> Permit:
    permit = breaker.admit()
    assert permit is Permit.PROBE
    return permit


def test_it_opens_at_the_fifth_failure_in_a_row_and_says_so_once(breaker: CircuitBreaker) -> None:
    open_it(breaker)
    assert breaker.is_open
    assert breaker.record_failure(Permit.NORMAL) is False


def test_a_success_ends_the_row(breaker: CircuitBreaker) -> None:
    for _ in range(3):
        for _ in range(4):
            breaker.record_failure(Permit.NORMAL)
        breaker.record_success()
    assert not breaker.is_open


def test_closed_it_lets_everything_pass(breaker: CircuitBreaker) -> None:
    assert (breaker.allowance(), breaker.next_opening_seconds(), breaker.admit()) == (None, 0.0, Permit.NORMAL)


def test_open_it_lets_nothing_pass_until_its_pause_is_over(breaker: CircuitBreaker, clock: Clock) -> None:
    open_it(breaker)
    clock.now += 4
    assert (breaker.allowance(), breaker.admit(), breaker.next_opening_seconds()) == (0, None, 1.0)


def test_then_one_probe_may_go_and_no_other(breaker: CircuitBreaker, clock: Clock) -> None:
    open_it(breaker)
    clock.now += 5
    assert (breaker.allowance(), breaker.next_opening_seconds()) == (1, 0.0)

    probe(breaker)

    assert (breaker.allowance(), breaker.admit()) == (0, None)
    assert breaker.next_opening_seconds() > 0


def test_of_many_threads_one_gets_the_probe(breaker: CircuitBreaker, clock: Clock) -> None:
    open_it(breaker)
    clock.now += 5
    permits: list[Permit | None] = []
    barrier = threading.Barrier(16)

    def ask() -> None:
        barrier.wait()
        permits.append(breaker.admit())

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(permits, key=str) == sorted([Permit.PROBE] + [None] * 15, key=str)


def test_a_probe_that_succeeds_closes_it(breaker: CircuitBreaker, clock: Clock) -> None:
    open_it(breaker)
    clock.now += 5
    probe(breaker)

    assert breaker.record_success() is True
    assert breaker.record_success() is False
    assert (breaker.is_open, breaker.admit()) == (False, Permit.NORMAL)


def test_probes_that_fail_double_the_pause_to_five_minutes(breaker: CircuitBreaker, clock: Clock) -> None:
    open_it(breaker)
    pauses = []
    for _ in range(9):
        pauses.append(breaker.next_opening_seconds())
        clock.now += pauses[-1]
        assert breaker.record_failure(probe(breaker)) is False
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, 300]


def test_the_next_outage_begins_with_a_short_pause(breaker: CircuitBreaker, clock: Clock) -> None:
    open_it(breaker)
    clock.now += 5
    breaker.record_failure(probe(breaker))
    clock.now += 10
    probe(breaker)
    breaker.record_success()

    open_it(breaker)

    assert breaker.next_opening_seconds() == 5


def test_failures_of_what_was_under_way_do_not_prolong_the_pause(breaker: CircuitBreaker, clock: Clock) -> None:
    open_it(breaker)
    clock.now += 3
    for _ in range(60):
        breaker.record_failure(Permit.NORMAL)
    assert breaker.next_opening_seconds() == 2


def test_they_do_not_end_the_probe_either(breaker: CircuitBreaker, clock: Clock) -> None:
    open_it(breaker)
    clock.now += 5
    probe(breaker)
    breaker.record_failure(Permit.NORMAL)
    assert breaker.allowance() == 0


def test_a_success_of_what_was_under_way_closes_it(breaker: CircuitBreaker) -> None:
    open_it(breaker)
    assert breaker.record_success() is True
    assert not breaker.is_open


def test_a_probe_given_back_can_be_taken_again(breaker: CircuitBreaker, clock: Clock) -> None:
    open_it(breaker)
    clock.now += 5
    breaker.give_back(probe(breaker))
    probe(breaker)


def test_a_permit_of_before_the_outage_given_back_frees_no_probe(breaker: CircuitBreaker, clock: Clock) -> None:
    open_it(breaker)
    clock.now += 5
    probe(breaker)
    breaker.give_back(Permit.NORMAL)
    assert breaker.admit() is None


def test_refused_credentials_open_it_at_once(breaker: CircuitBreaker, clock: Clock) -> None:
    assert breaker.trip(Permit.NORMAL) is True
    assert breaker.trip(Permit.NORMAL) is False
    assert breaker.next_opening_seconds() == 5
    clock.now += 5
    assert breaker.trip(probe(breaker)) is False
    assert breaker.next_opening_seconds() == 10


def test_its_status_can_be_read(breaker: CircuitBreaker, clock: Clock) -> None:
    status = breaker.status()
    assert (status.state, status.since, status.next_probe_in) == (BreakerState.CLOSED, 100.0, None)

    clock.now = 200.0
    open_it(breaker)
    clock.now += 2
    status = breaker.status()
    assert (status.state, status.since, status.next_probe_in) == (BreakerState.OPEN, 200.0, 3.0)
    assert status.failures_in_a_row == 5

    clock.now += 4
    status = breaker.status()
    assert (status.state, status.next_probe_in) == (BreakerState.HALF_OPEN, 0.0)
    probe(breaker)
    status = breaker.status()
    assert (status.state, status.next_probe_in) == (BreakerState.HALF_OPEN, None)

    clock.now = 300.0
    breaker.record_success()
    status = breaker.status()
    assert (status.state, status.since, status.failures_in_a_row) == (BreakerState.CLOSED, 300.0, 0)
