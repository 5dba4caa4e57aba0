from __future__ import annotations

import logging
import threading

import pytest
from courier_doubles import CART, DELIVERED, DOWN, WEBHOOK, Api, Clock, message

from zithara_worker.delivery import reasons
from zithara_worker.delivery.breaker import BreakerState
from zithara_worker.delivery.courier import Courier
from zithara_worker.delivery.rate import TokenBucket
from zithara_worker.messages import Outcome, OutcomeKind, Target
from zithara_worker.zithara.reasons import CREDENTIALS_REFUSED, LEASE_LOST, THROTTLED

THROTTLE = Outcome(kind=OutcomeKind.RELEASED, reason=THROTTLED, http_status=429, retry_after_seconds=20.0)
REFUSED = Outcome(kind=OutcomeKind.RELEASED, reason=CREDENTIALS_REFUSED, http_status=401, outage=True)
REJECTED = Outcome(kind=OutcomeKind.FAILED, reason="http_422", http_status=422)
NOT_SENT = Outcome(kind=OutcomeKind.FAILED, reason="insecure_url")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def api() -> Api:
    return Api()


def courier_of(api: Api, clock: Clock, *, rate: float = 0, stopping: threading.Event | None = None) -> Courier:
    stopping = stopping or threading.Event()
    return Courier(
        api=api,
        bucket=TokenBucket(rate=rate, burst=1, clock=clock, wait=stopping.wait),
        stopping=stopping,
        clock=clock,
    )


@pytest.fixture
def courier(api: Api, clock: Clock) -> Courier:
    return courier_of(api, clock)


def seen(outcome: Outcome) -> tuple[OutcomeKind, str]:
    return outcome.kind, outcome.reason


def take_down(courier: Courier, api: Api) -> list[Outcome]:
    api.answer = DOWN
    outcomes = [courier.deliver(message(), CART) for _ in range(5)]
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

    bucket = TokenBucket(rate=0.1, burst=1, clock=clock, wait=wait)
    courier = Courier(api=api, bucket=bucket, stopping=threading.Event(), clock=clock)
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
    assert (api.keys, courier.allowance(Target.API)) == ([], 1)


# --- outages


def test_the_failure_that_opens_the_breaker_costs_no_attempt(courier: Courier, api: Api) -> None:
    outcomes = take_down(courier, api)

    assert [seen(outcome) for outcome in outcomes] == [(OutcomeKind.RETRY, "http_503")] * 4 + [
        (OutcomeKind.RELEASED, reasons.OUTAGE)
    ]
    assert outcomes[-1].detail == "http_503: busy"
    assert outcomes[-1].http_status == 503
    assert courier.is_open(Target.API)


def test_nothing_is_sent_during_an_outage(courier: Courier, api: Api) -> None:
    take_down(courier, api)

    assert seen(courier.deliver(message(), CART)) == (OutcomeKind.RELEASED, reasons.OUTAGE)
    assert api.keys == []
    assert (courier.allowance(Target.API), courier.next_opening_seconds(Target.API)) == (0, 5.0)


def test_an_outage_of_the_api_does_not_stop_webhooks(courier: Courier, api: Api) -> None:
    take_down(courier, api)
    api.answer = DELIVERED

    assert courier.deliver(message(), WEBHOOK) is DELIVERED
    assert (courier.allowance(Target.WEBHOOK), courier.is_open(Target.WEBHOOK)) == (None, False)


def test_failures_of_messages_under_way_when_the_breaker_opened_cost_no_attempt(api: Api, clock: Clock) -> None:
    courier = courier_of(api, clock)
    both_sending = threading.Barrier(11)
    api.answer = lambda: (both_sending.wait(5), DOWN)[1]
    outcomes: list[Outcome] = []
    threads = [
        threading.Thread(target=lambda n=n: outcomes.append(courier.deliver(message(n), CART))) for n in range(11)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    kinds = [outcome.kind for outcome in outcomes]
    # Each result is judged after the breaker has heard it, so at most the four before the opening count.
    assert kinds.count(OutcomeKind.RETRY) <= 4
    assert kinds.count(OutcomeKind.RELEASED) >= 7


def test_a_probe_that_gets_through_ends_the_outage(courier: Courier, api: Api, clock: Clock) -> None:
    take_down(courier, api)
    clock.now += 5
    assert courier.allowance(Target.API) == 1
    api.answer = DELIVERED

    assert courier.deliver(message(), CART) is DELIVERED
    assert (courier.allowance(Target.API), courier.is_open(Target.API)) == (None, False)


def test_a_probe_that_fails_costs_no_attempt(courier: Courier, api: Api, clock: Clock) -> None:
    take_down(courier, api)
    clock.now += 5

    assert seen(courier.deliver(message(), CART)) == (OutcomeKind.RELEASED, reasons.OUTAGE)
    assert courier.next_opening_seconds(Target.API) == 10


@pytest.mark.parametrize("answer", [REJECTED, THROTTLE], ids=lambda answer: answer.reason)
def test_any_answer_of_the_host_ends_the_outage(courier: Courier, api: Api, clock: Clock, answer: Outcome) -> None:
    take_down(courier, api)
    clock.now += 5
    api.answer = answer

    assert courier.deliver(message(), CART) is answer
    assert not courier.is_open(Target.API)


def test_a_probe_that_was_never_sent_is_left_to_the_next_message(courier: Courier, api: Api, clock: Clock) -> None:
    take_down(courier, api)
    clock.now += 5
    api.answer = NOT_SENT

    assert courier.deliver(message(), CART) is NOT_SENT
    assert (courier.is_open(Target.API), courier.allowance(Target.API)) == (True, 1)


def test_a_probe_that_meets_a_defect_is_left_to_the_next_message(courier: Courier, api: Api, clock: Clock) -> None:
    take_down(courier, api)
    clock.now += 5

    def break_down() -> Outcome:
        raise KeyError("defect")

    api.answer = break_down
    with pytest.raises(KeyError):
        courier.deliver(message(), CART)
    assert courier.allowance(Target.API) == 1


def test_failures_that_are_the_messages_own_never_open_the_breaker(courier: Courier, api: Api) -> None:
    not_found = Outcome(kind=OutcomeKind.RETRY, reason="order_not_found_yet", http_status=404)
    for answer in (REJECTED, not_found, NOT_SENT):
        api.answer = answer
        assert [courier.deliver(message(), CART) for _ in range(20)] == [answer] * 20
    assert courier.allowance(Target.API) is None


def test_refused_credentials_stop_sending_at_once(courier: Courier, api: Api) -> None:
    api.answer = REFUSED

    assert courier.deliver(message(), CART) is REFUSED
    assert courier.allowance(Target.API) == 0


def test_an_outage_is_told_at_its_edges_only(
    courier: Courier, api: Api, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    take_down(courier, api)
    for _ in range(3):
        courier.deliver(message(), CART)
        clock.now += courier.next_opening_seconds(Target.API)
        courier.deliver(message(), CART)
    clock.now += courier.next_opening_seconds(Target.API)
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

    assert (courier.allowance(Target.API), courier.next_opening_seconds(Target.API)) == (0, 20.0)
    assert seen(courier.deliver(message(), CART)) == (OutcomeKind.RELEASED, THROTTLED)
    assert courier.deliver(message(), WEBHOOK) is DELIVERED
    assert len(api.keys) == 1
    clock.now += 20
    assert courier.allowance(Target.API) is None
    assert courier.deliver(message(), CART) is DELIVERED


def test_throttling_is_no_outage(courier: Courier, api: Api, clock: Clock) -> None:
    api.answer = THROTTLE
    for _ in range(10):
        courier.deliver(message(), CART)
        clock.now += 20
    assert not courier.is_open(Target.API)


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

    assert set(states) == set(Target)
    assert states[Target.API].breaker.state is BreakerState.OPEN
    assert states[Target.API].breaker.next_probe_in == 4
    assert states[Target.API].throttled_seconds == 0
    assert states[Target.WEBHOOK].breaker.state is BreakerState.CLOSED
    assert states[Target.WEBHOOK].throttled_seconds == 19


def test_every_reason_is_documented() -> None:
    assert {value for name, value in vars(reasons).items() if name.isupper() and isinstance(value, str)} == set(
        reasons.REASONS
    )
