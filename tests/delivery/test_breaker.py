from __future__ import annotations

import pytest
from support.clock import Clock
from support.waiting import together

from zithara_worker.delivery.breaker import FIRST_WINDOW, BreakerState, BreakerStatus, CircuitBreaker, Permit


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(clock=clock)


def fail(breaker: CircuitBreaker, group: str | None) -> bool:
    permit = breaker.admit()
    assert permit is not None
    return breaker.record_failure(permit, "busy", group=group)


def lose_connection(breaker: CircuitBreaker, *, for_all: bool = False) -> bool:
    permit = breaker.admit()
    assert permit is not None
    return breaker.record_unreachable(permit, "refused", for_all=for_all)


def succeed(breaker: CircuitBreaker) -> bool:
    assert breaker.admit() is not None
    return breaker.record_success()


def open_it(breaker: CircuitBreaker) -> None:
    assert [fail(breaker, group) for group in "abc"] == [False, False, True]


def probe(breaker: CircuitBreaker) -> Permit:
    permit = breaker.admit()
    assert permit is Permit.PROBE
    return permit


# --- what opens it


def test_three_groups_that_fail_with_no_success_between_open_it(breaker: CircuitBreaker) -> None:
    open_it(breaker)
    assert breaker.is_open


def test_one_group_never_opens_it_however_often_it_fails(breaker: CircuitBreaker) -> None:
    assert not any(fail(breaker, group) for group in "ab" * 50)


def test_groups_that_failed_before_while_others_were_served_never_open_it(breaker: CircuitBreaker) -> None:
    assert not any(fail(breaker, group) for group in [None, "a", "b", None, None])
    assert fail(breaker, "c")


def test_a_success_ends_the_row(breaker: CircuitBreaker) -> None:
    for _ in range(3):
        assert not any(fail(breaker, group) for group in "ab")
        succeed(breaker)
    assert not breaker.is_open


def test_it_stays_closed_while_more_requests_are_under_way_than_have_failed(breaker: CircuitBreaker) -> None:
    """Any of them may still be served: with sixteen at once, three failures in a row are an ordinary thing."""
    permits = [breaker.admit() for _ in range(16)]
    opened = [
        breaker.record_failure(permit, "busy", group=str(number)) for number, permit in enumerate(permits) if permit
    ]
    assert opened.index(True) == 8 and opened.count(True) == 1


def test_whatever_became_of_a_message_it_is_under_way_no_longer(breaker: CircuitBreaker) -> None:
    """If one were counted for ever, so many more failures would be needed to notice an outage."""
    for _ in range(10):
        succeed(breaker)
        lose_connection(breaker)
        breaker.give_back(breaker.admit() or Permit.PROBE)
        breaker.learn_nothing(breaker.admit() or Permit.PROBE, "refused")
        fail(breaker, None)
    succeed(breaker)
    open_it(breaker)


def test_connections_that_fail_open_it_at_the_fifth_in_a_row_whoever_made_them(breaker: CircuitBreaker) -> None:
    assert [lose_connection(breaker) for _ in range(4)] == [False] * 4
    assert not fail(breaker, "a"), "a connection was made: the row begins again"
    assert [lose_connection(breaker) for _ in range(4)] == [False] * 4
    succeed(breaker)
    assert [lose_connection(breaker) for _ in range(5)] == [False] * 4 + [True]


def test_without_an_access_token_it_opens_at_once(breaker: CircuitBreaker, clock: Clock) -> None:
    assert lose_connection(breaker, for_all=True)
    assert breaker.next_opening_seconds() == 5
    clock.now += 5
    assert not lose_connection(breaker, for_all=True)
    assert breaker.next_opening_seconds() == 10


# --- closed, open, half-open


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
    permits = together([breaker.admit] * 16)
    assert sorted(permits, key=str) == sorted([Permit.PROBE] + [None] * 15, key=str)


def test_a_probe_that_is_served_closes_it_for_a_few_at_first_and_more_with_each_success(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    open_it(breaker)
    clock.now += 5
    probe(breaker)

    assert breaker.record_success() is True
    assert not breaker.is_open
    widths = [breaker.allowance()]
    while breaker.allowance() is not None:
        assert succeed(breaker) is False
        widths.append(breaker.allowance())
    assert widths == [2, 4, 8, 16, 32, 64, 128, None]


def test_after_a_pause_that_was_asked_for_a_few_go_first(breaker: CircuitBreaker) -> None:
    breaker.narrow()
    assert breaker.allowance() == FIRST_WINDOW


def test_probes_that_fail_double_the_pause_to_five_minutes(breaker: CircuitBreaker, clock: Clock) -> None:
    open_it(breaker)
    pauses = []
    for _ in range(9):
        pauses.append(breaker.next_opening_seconds())
        clock.now += pauses[-1]
        assert breaker.record_failure(probe(breaker), "busy", group="a") is False
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, 300]


def test_a_probe_that_did_not_get_as_far_is_over_all_the_same(breaker: CircuitBreaker, clock: Clock) -> None:
    open_it(breaker)
    clock.now += 5
    breaker.learn_nothing(probe(breaker), "refused")
    assert breaker.next_opening_seconds() == 10


def test_the_next_outage_begins_with_a_short_pause(breaker: CircuitBreaker, clock: Clock) -> None:
    open_it(breaker)
    clock.now += 5
    breaker.record_failure(probe(breaker), "busy", group="a")
    clock.now += 10
    probe(breaker)
    breaker.record_success()

    open_it(breaker)

    assert breaker.next_opening_seconds() == 5


def test_failures_of_what_was_under_way_neither_prolong_the_pause_nor_end_the_probe(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    early = breaker.admit()
    assert early is not None
    for group in "abcd":
        fail(breaker, group) if not breaker.is_open else None
    breaker.record_failure(early, "busy", group="e")
    assert breaker.next_opening_seconds() == 5
    clock.now += 5
    probe(breaker)
    breaker.record_failure(Permit.NORMAL, "busy", group="f")
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


def test_its_status_tells_why(breaker: CircuitBreaker, clock: Clock) -> None:
    assert breaker.status() == BreakerStatus(state=BreakerState.CLOSED, why="")
    open_it(breaker)
    clock.now += 2
    assert breaker.status() == BreakerStatus(state=BreakerState.OPEN, why="busy")
    clock.now += 4
    assert breaker.status() == BreakerStatus(state=BreakerState.HALF_OPEN, why="busy")
    breaker.record_failure(probe(breaker), "busier", group="a")
    assert breaker.status() == BreakerStatus(state=BreakerState.OPEN, why="busier")
    clock.now += 100
    probe(breaker)
    assert breaker.status().state is BreakerState.HALF_OPEN
    breaker.record_success()
    assert breaker.status() == BreakerStatus(state=BreakerState.CLOSED, why="")
