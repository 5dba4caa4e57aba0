from __future__ import annotations

import logging
import threading
from dataclasses import replace
from functools import partial

import pytest
from courier_doubles import CART, DELIVERED, DOWN, WEBHOOK, Api, FleetTurns, message, unlimited
from support.clock import Clock
from support.waiting import together

from zithara_worker import reasons
from zithara_worker.delivery.breaker import FIRST_WINDOW, BreakerState
from zithara_worker.delivery.courier import Courier
from zithara_worker.delivery.pace import FIRST_THROTTLE_SECONDS, turns_of
from zithara_worker.messages import Evidence, Outcome, OutcomeKind
from zithara_worker.reasons import CREDENTIALS_REFUSED, LEASE_LOST, THROTTLED

THROTTLE = Outcome(kind=OutcomeKind.RELEASED, reason=THROTTLED, http_status=429, retry_after_seconds=20.0)
REFUSED = Outcome(kind=OutcomeKind.RELEASED, reason=CREDENTIALS_REFUSED, detail="HTTP 401", evidence=Evidence.HOST)
NO_CONNECTION = Outcome(kind=OutcomeKind.RETRY, reason="connect_error", detail="refused", evidence=Evidence.HOST)
REJECTED = Outcome(kind=OutcomeKind.FAILED, reason="http_422", http_status=422, evidence=Evidence.SERVED)
NOT_FOUND = Outcome(kind=OutcomeKind.RETRY, reason="order_not_found_yet", http_status=404, evidence=Evidence.SERVED)
NOT_SENT = Outcome(kind=OutcomeKind.FAILED, reason="insecure_url")


@pytest.fixture
def api() -> Api:
    return Api()


def courier_of(api: Api, clock: Clock, *, rate: float = 0, stopping: threading.Event | None = None) -> Courier:
    stopping = stopping or threading.Event()
    return Courier(
        api=api,
        rate_limit=FleetTurns(clock, rate=rate, burst=1).limit(stopping.wait)
        if rate
        else unlimited(clock, stopping.wait),
        stopping=stopping,
        clock=clock,
        targets=("api", "/cart", "webhook"),
    )


@pytest.fixture
def courier(api: Api, clock: Clock) -> Courier:
    return courier_of(api, clock)


def seen(outcome: Outcome) -> tuple[OutcomeKind, str]:
    return outcome.kind, outcome.reason


def take_down(courier: Courier, api: Api) -> list[Outcome]:
    """Three groups fail; a success before that shows that they might have been served."""
    api.answer = DOWN
    outcomes = [courier.deliver(message(number), CART) for number in (11, 12, 13)]
    api.keys.clear()
    return outcomes


def test_a_message_is_sent_under_its_own_key(courier: Courier, api: Api) -> None:
    assert courier.deliver(message(7), CART) is DELIVERED
    assert api.keys == ["zithara_cart_queue-1007"]


def test_a_message_whose_lease_has_ended_is_not_sent(courier: Courier, api: Api, clock: Clock) -> None:
    assert seen(courier.deliver(message(valid_until=clock.now), CART)) == (OutcomeKind.LEASE_LOST, LEASE_LOST)
    assert api.keys == []


def test_a_lease_that_ends_while_waiting_for_the_rate_limit_counts(api: Api, clock: Clock) -> None:
    def wait(seconds: float) -> bool:
        clock.now += seconds
        return False

    rate_limit = FleetTurns(clock, rate=0.1, burst=1).limit(wait)
    courier = Courier(api=api, rate_limit=rate_limit, stopping=threading.Event(), clock=clock, targets=("api", "/cart"))
    courier.deliver(message(1), CART)

    assert courier.deliver(message(2, valid_until=clock.now + 9), CART).kind is OutcomeKind.LEASE_LOST
    assert api.keys == ["zithara_cart_queue-1001"]


def test_a_lease_that_ends_while_a_connection_is_made_counts_and_leaves_the_probe_to_others(
    courier: Courier, api: Api, clock: Clock
) -> None:
    take_down(courier, api)
    clock.now += 5

    def sleep_over_the_lease() -> None:
        clock.now += 61

    api.before_sending = sleep_over_the_lease

    outcome = courier.deliver(message(valid_until=clock.now + 60), CART)

    assert seen(outcome) == (OutcomeKind.LEASE_LOST, LEASE_LOST)
    assert (api.keys, courier.allowance("/cart")) == ([], 1)


def test_how_long_the_oldest_request_takes_counts_no_wait_for_the_rate_limit(api: Api, clock: Clock) -> None:
    told: list[float] = []

    def wait(seconds: float) -> bool:
        told.append(courier.oldest_seconds)
        clock.now += seconds
        return False

    def answer() -> Outcome:
        clock.now += 1
        if len(api.keys) == 2:
            courier.deliver(message(3), CART)
        told.append(courier.oldest_seconds)
        if len(api.keys) == 4:
            raise RuntimeError("a defect")
        return DELIVERED

    api.answer = answer
    rate_limit = FleetTurns(clock, rate=0.01, burst=1).limit(wait)
    courier = Courier(api=api, rate_limit=rate_limit, stopping=threading.Event(), clock=clock, targets=("api", "/cart"))
    courier.deliver(message(1), CART)
    courier.deliver(message(2), CART)
    with pytest.raises(RuntimeError, match="a defect"):
        courier.deliver(message(4), CART)

    each = turns_of(0.01, 1).seconds_each
    # The first alone; the second, and during it the third; the fourth.
    assert told == pytest.approx([1, 0, 1, each + 1, each + 1, 0, 1])
    assert courier.oldest_seconds == 0


# --- outages


def test_the_failure_that_opens_the_breaker_costs_no_attempt(courier: Courier, api: Api) -> None:
    outcomes = take_down(courier, api)

    assert [seen(outcome) for outcome in outcomes] == [(OutcomeKind.RETRY, "http_503")] * 2 + [
        (OutcomeKind.RELEASED, reasons.OUTAGE)
    ]
    assert outcomes[-1].detail == "http_503: busy"
    assert outcomes[-1].http_status == 503
    assert courier.is_open("/cart")


def test_nothing_is_sent_during_an_outage(courier: Courier, api: Api) -> None:
    take_down(courier, api)

    assert seen(courier.deliver(message(), CART)) == (OutcomeKind.RELEASED, reasons.OUTAGE)
    assert api.keys == []
    assert (courier.allowance("/cart"), courier.next_opening_seconds("/cart")) == (0, 5.0)


def test_an_outage_of_the_api_does_not_stop_webhooks(courier: Courier, api: Api) -> None:
    take_down(courier, api)
    api.answer = DELIVERED

    assert courier.deliver(message(), WEBHOOK) is DELIVERED
    assert (courier.allowance("webhook"), courier.is_open("webhook")) == (None, False)


def test_failures_of_messages_under_way_when_the_breaker_opened_cost_no_attempt(api: Api, clock: Clock) -> None:
    courier = courier_of(api, clock)
    both_sending = threading.Barrier(11)
    api.answer = lambda: (both_sending.wait(5), DOWN)[1]

    outcomes = together(partial(courier.deliver, message(n), CART) for n in range(11))

    kinds = [outcome.kind for outcome in outcomes]
    # It opens when as many have failed as are still under way; each result is judged after the breaker has heard it.
    assert kinds.count(OutcomeKind.RETRY) <= 5
    assert kinds.count(OutcomeKind.RELEASED) >= 6


def test_a_probe_that_gets_through_ends_the_outage(courier: Courier, api: Api, clock: Clock) -> None:
    take_down(courier, api)
    clock.now += 5
    assert courier.allowance("/cart") == 1
    api.answer = DELIVERED

    assert courier.deliver(message(), CART) is DELIVERED
    assert (courier.allowance("/cart"), courier.is_open("/cart")) == (2, False)


def test_a_probe_that_fails_costs_no_attempt(courier: Courier, api: Api, clock: Clock) -> None:
    take_down(courier, api)
    clock.now += 5

    assert seen(courier.deliver(message(), CART)) == (OutcomeKind.RELEASED, reasons.OUTAGE)
    assert courier.next_opening_seconds("/cart") == 10


def test_a_message_that_the_api_refuses_for_what_is_in_it_ends_the_outage(
    courier: Courier, api: Api, clock: Clock
) -> None:
    take_down(courier, api)
    clock.now += 5
    api.answer = REJECTED

    assert courier.deliver(message(), CART) is REJECTED
    assert not courier.is_open("/cart")


def test_a_wish_for_peace_is_no_evidence(courier: Courier, api: Api, clock: Clock) -> None:
    take_down(courier, api)
    clock.now += 5
    api.answer = THROTTLE
    courier.deliver(message(), CART)
    clock.now += 20

    assert courier.is_open("/cart")
    assert courier.allowance("/cart") == 1


@pytest.mark.parametrize("answer", [DOWN, NO_CONNECTION, REFUSED, THROTTLE, NOT_SENT], ids=lambda each: each.reason)
@pytest.mark.parametrize("outage", [DOWN, NO_CONNECTION], ids=["of the path", "of the host"])
def test_whatever_a_probe_meets_the_next_one_goes_all_the_same(
    courier: Courier, api: Api, clock: Clock, outage: Outcome, answer: Outcome
) -> None:
    """A probe that is never over would keep the outage for ever. The host's and the path's are told apart."""
    api.answer = outage
    for number in range(11, 16):
        courier.deliver(message(number), CART)
    assert courier.is_open("/cart" if outage is DOWN else "api")
    clock.now += 5
    api.answer = answer
    courier.deliver(message(1), CART)
    clock.now += 300
    api.answer = DELIVERED
    assert courier.deliver(message(2), CART) is DELIVERED


def test_a_probe_that_was_never_sent_is_left_to_the_next_message(courier: Courier, api: Api, clock: Clock) -> None:
    take_down(courier, api)
    clock.now += 5
    api.answer = NOT_SENT

    assert courier.deliver(message(), CART) is NOT_SENT
    assert (courier.is_open("/cart"), courier.allowance("/cart")) == (True, 1)


def test_a_probe_that_meets_a_defect_is_left_to_the_next_message(courier: Courier, api: Api, clock: Clock) -> None:
    take_down(courier, api)
    clock.now += 5

    def break_down() -> Outcome:
        raise KeyError("defect")

    api.answer = break_down
    with pytest.raises(KeyError):
        courier.deliver(message(), CART)
    assert courier.allowance("/cart") == 1


def test_failures_that_are_the_messages_own_never_open_the_breaker(courier: Courier, api: Api) -> None:
    for answer in (REJECTED, NOT_FOUND, NOT_SENT):
        api.answer = answer
        assert [courier.deliver(message(number), CART) for number in range(20)] == [answer] * 20
    assert courier.allowance("/cart") is None


def test_an_outage_of_one_path_leaves_the_host_and_its_other_paths_alone(courier: Courier, api: Api) -> None:
    take_down(courier, api)
    assert (courier.is_open("/cart"), courier.is_open("api")) == (True, False)


def test_connections_that_fail_cost_no_attempt_and_shut_the_whole_host(courier: Courier, api: Api) -> None:
    api.answer = NO_CONNECTION
    outcomes = [courier.deliver(message(), CART) for _ in range(5)]
    assert {outcome.kind for outcome in outcomes} == {OutcomeKind.RELEASED}
    # Until that is known, a message is not sent again at once.
    assert [outcome.retry_after_seconds for outcome in outcomes] == [5.0] * 4 + [None]
    assert (courier.is_open("api"), courier.is_open("/cart")) == (True, False)


def test_any_answer_shows_that_the_host_is_there_again(courier: Courier, api: Api, clock: Clock) -> None:
    api.answer = NO_CONNECTION
    for _ in range(5):
        courier.deliver(message(), CART)
    clock.now += 5
    api.answer = DOWN
    courier.deliver(message(), CART)
    assert (courier.is_open("api"), courier.is_open("/cart")) == (False, False)


def test_refused_credentials_stop_sending_at_once_and_say_so(courier: Courier, api: Api) -> None:
    api.answer = REFUSED

    assert seen(courier.deliver(message(), CART)) == (OutcomeKind.RELEASED, reasons.OUTAGE)
    assert courier.allowance("api") == 0
    assert courier.states()["api"].breaker.why == "credentials refused (HTTP 401)"


# --- witnesses


def fails_after(courier: Courier, api: Api, clock: Clock, *, seconds: float, failed_at: float | None, by: int) -> bool:
    """Whether a failure of message 1 is witnessed: message `by` was served `seconds` before."""
    api.answer = DELIVERED
    courier.deliver(message(by), CART)
    clock.now += seconds
    api.answer = DOWN
    return courier.deliver(message(1, failed_at=failed_at), CART).witnessed


def test_a_failure_is_witnessed_if_another_group_was_served_a_moment_ago(
    courier: Courier, api: Api, clock: Clock
) -> None:
    assert fails_after(courier, api, clock, seconds=59, failed_at=None, by=2)
    assert fails_after(courier, api, clock, seconds=59, failed_at=clock.now - 1, by=2)


def test_neither_an_old_success_nor_one_before_the_last_failure_nor_ones_own_is_a_witness(
    courier: Courier, api: Api, clock: Clock
) -> None:
    assert not fails_after(courier, api, clock, seconds=61, failed_at=None, by=2)
    assert not fails_after(courier, api, clock, seconds=30, failed_at=clock.now + 1, by=2)
    clock.now += 3600
    assert not fails_after(courier, api, clock, seconds=1, failed_at=None, by=1)


def test_groups_that_failed_before_others_were_served_do_not_open_the_breaker_again(
    courier: Courier, api: Api, clock: Clock
) -> None:
    for _ in range(2):
        take_down(courier, api)
    clock.now += 5
    api.answer = DELIVERED
    courier.deliver(message(1), CART)
    api.answer = DOWN
    for _ in range(3):
        clock.now += 1
        # Their failure before this one came sometimes before, sometimes after that success.
        for number, failed_at in ((11, 100.0), (12, 100.0), (13, 100.0), (11, 105.5), (12, 105.5), (13, 105.5)):
            courier.deliver(message(number, failed_at=failed_at), CART)
    assert not courier.is_open("/cart")
    for number in (21, 22, 23):
        courier.deliver(message(number), CART)
    assert courier.is_open("/cart")


def test_an_outage_is_told_at_its_edges_only(
    courier: Courier, api: Api, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    take_down(courier, api)
    for _ in range(3):
        courier.deliver(message(), CART)
        clock.now += courier.next_opening_seconds("/cart")
        courier.deliver(message(), CART)
    clock.now += courier.next_opening_seconds("/cart")
    api.answer = DELIVERED
    courier.deliver(message(), CART)
    courier.deliver(message(), CART)

    assert [getattr(record, "event", None) for record in caplog.records] == ["breaker_opened", "breaker_closed"]


# --- throttling


def test_a_throttled_host_is_left_alone_for_as_long_as_it_asked(courier: Courier, api: Api, clock: Clock) -> None:
    api.answer = THROTTLE
    assert courier.deliver(message(), CART) is THROTTLE
    api.answer = DELIVERED
    api.keys.clear()

    assert (courier.allowance("/cart"), courier.next_opening_seconds("/cart")) == (0, 20.0)
    assert seen(courier.deliver(message(), CART)) == (OutcomeKind.RELEASED, THROTTLED)
    assert courier.deliver(message(), WEBHOOK) is DELIVERED
    assert len(api.keys) == 1
    clock.now += 20
    assert courier.allowance("/cart") == 2
    assert courier.deliver(message(), CART) is DELIVERED


def test_a_group_that_is_always_answered_429_stops_nobody_and_pays_with_every_third(
    courier: Courier, api: Api, clock: Clock
) -> None:
    outcomes = []
    for _ in range(6):
        api.answer = THROTTLE
        outcomes.append(courier.deliver(message(1), CART))
        clock.now += courier.next_opening_seconds("/cart")
        api.answer = DELIVERED
        clock.now += 1
        assert courier.deliver(message(2), CART) is DELIVERED
        clock.now += 1
    assert [outcome.kind.value for outcome in outcomes] == ["released"] * 2 + ["retry"] + ["released"] * 2 + ["retry"]
    assert {outcome.retry_after_seconds for outcome in outcomes} == {20.0}
    assert outcomes[2].witnessed


def test_pauses_without_a_wish_for_how_long_grow_until_somebody_is_served(
    courier: Courier, api: Api, clock: Clock
) -> None:
    throttle = replace(THROTTLE, retry_after_seconds=None)
    pauses = []
    for answer in (throttle, throttle, DELIVERED, throttle):
        api.answer = answer
        courier.deliver(message(1), CART)
        pauses.append(courier.next_opening_seconds("/cart"))
        clock.now += pauses[-1]
    assert pauses == [FIRST_THROTTLE_SECONDS, FIRST_THROTTLE_SECONDS * 2, 0.0, FIRST_THROTTLE_SECONDS]


def test_nothing_is_claimed_up_to_the_end_of_a_pause(courier: Courier, api: Api, clock: Clock) -> None:
    api.answer = THROTTLE
    courier.deliver(message(1), CART)
    clock.now += 19.5
    assert courier.allowance("/cart") == 0
    clock.now += 0.5
    assert courier.allowance("/cart") == FIRST_WINDOW


def test_another_host_behind_a_gate_begins_anew(courier: Courier, api: Api) -> None:
    api.answer = NO_CONNECTION
    for _ in range(5):
        courier.deliver(message(), WEBHOOK)
    assert courier.is_open("webhook")
    courier.forget("webhook")
    assert not courier.is_open("webhook")


def test_throttling_is_no_outage(courier: Courier, api: Api, clock: Clock) -> None:
    api.answer = THROTTLE
    for _ in range(10):
        courier.deliver(message(), CART)
        clock.now += 20
    assert not courier.is_open("/cart")


# --- shutdown, status


def test_a_message_that_waits_for_the_rate_limit_is_released_at_shutdown(api: Api, clock: Clock) -> None:
    courier = courier_of(api, clock, rate=0.001)
    courier.deliver(message(1), CART)
    outcomes: list[Outcome] = []
    waiting = threading.Thread(target=lambda: outcomes.append(courier.deliver(message(2), CART)))
    waiting.start()

    courier.shutdown()

    waiting.join(5)
    assert [seen(outcome) for outcome in outcomes] == [(OutcomeKind.RELEASED, reasons.SHUTDOWN)]
    assert api.keys == ["zithara_cart_queue-1001"]


def test_after_shutdown_nothing_is_sent(courier: Courier, api: Api) -> None:
    courier.shutdown()
    assert seen(courier.deliver(message(), CART)) == (OutcomeKind.RELEASED, reasons.SHUTDOWN)
    assert api.keys == []


def test_states_tell_what_is_open_and_what_is_paused(courier: Courier, api: Api, clock: Clock) -> None:
    take_down(courier, api)
    api.answer = THROTTLE
    courier.deliver(message(), WEBHOOK)
    clock.now += 1

    states = courier.states()

    assert set(states) == {"api", "/cart", "webhook"}
    assert states["/cart"].breaker.state is BreakerState.OPEN
    assert states["/cart"].breaker.why == "busy"
    assert states["/cart"].throttled_seconds == 0
    assert states["webhook"].breaker.state is BreakerState.CLOSED
    assert states["webhook"].throttled_seconds == 19
