from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from queue import SimpleQueue

import pytest
from courier_doubles import CART, DELIVERED, message

from zithara_worker.delivery import reasons
from zithara_worker.delivery.threads import DeliveryPool
from zithara_worker.messages import Message, Outcome, OutcomeKind, Request


class Results(SimpleQueue[tuple[Message, Outcome]]):
    def add(self, message: Message, outcome: Outcome) -> None:
        self.put((message, outcome))

    def take(self, count: int) -> list[tuple[int, Outcome]]:
        """So many results by message, in the order of the messages; fails after 5 seconds without one."""
        got = [self.get(timeout=5) for _ in range(count)]
        return sorted(((message.id, outcome) for message, outcome in got), key=lambda item: item[0])


class Held:
    """A delivery that tells when it has begun, and ends when the test says so."""

    def __init__(self) -> None:
        self.begun: SimpleQueue[int] = SimpleQueue()
        self.go_on = threading.Event()

    def __call__(self, message: Message, request: Request) -> Outcome:
        self.begun.put(message.id)
        assert self.go_on.wait(10)
        return DELIVERED

    def wait_for(self, count: int) -> set[int]:
        return {self.begun.get(timeout=5) for _ in range(count)}


MakePool = Callable[..., DeliveryPool]


@pytest.fixture
def results() -> Results:
    return Results()


@pytest.fixture
def make_pool(results: Results) -> Iterator[MakePool]:
    with ExitStack() as pools:

        def make(size: int, deliver: Callable[[Message, Request], Outcome]) -> DeliveryPool:
            pool = DeliveryPool(size, deliver, results.add)
            pools.callback(lambda: pool.stop(5))
            return pool

        yield make


@pytest.fixture
def held() -> Iterator[Held]:
    delivery = Held()
    yield delivery
    delivery.go_on.set()


def test_every_message_comes_back_with_its_outcome(make_pool: MakePool, results: Results) -> None:
    def deliver(message: Message, request: Request) -> Outcome:
        return Outcome(kind=OutcomeKind.DELIVERED, detail=f"{message.id}{request.path}")

    pool = make_pool(4, deliver)
    for number in range(500):
        pool.submit(message(number), CART)

    assert [(number, outcome.detail) for number, outcome in results.take(500)] == [
        (number, f"{number}/cart") for number in range(500)
    ]


def test_as_many_are_under_way_as_there_are_threads(make_pool: MakePool, results: Results, held: Held) -> None:
    pool = make_pool(3, held)
    for number in range(5):
        pool.submit(message(number), CART)

    held.wait_for(3)
    assert held.begun.empty()
    assert pool.in_flight == 5
    held.go_on.set()
    results.take(5)


def test_in_flight_is_zero_only_when_every_result_has_been_passed_on(held: Held) -> None:
    pool: DeliveryPool
    counts: list[int] = []
    passed_on = threading.Event()

    def on_result(message: Message, outcome: Outcome) -> None:
        counts.append(pool.in_flight)
        passed_on.set()

    pool = DeliveryPool(1, held, on_result)
    assert pool.in_flight == 0
    pool.submit(message(), CART)
    assert pool.in_flight == 1
    held.go_on.set()
    assert passed_on.wait(5)
    pool.stop(5)

    assert counts == [1]
    assert pool.in_flight == 0


def test_a_defect_costs_an_attempt_and_no_thread(
    make_pool: MakePool, results: Results, caplog: pytest.LogCaptureFixture
) -> None:
    def deliver(message: Message, request: Request) -> Outcome:
        if message.id % 2:
            raise KeyError("oops")
        return DELIVERED

    pool = make_pool(1, deliver)
    for number in range(6):
        pool.submit(message(number), CART)

    outcomes = [outcome for _, outcome in results.take(6)]
    assert outcomes[::2] == [DELIVERED] * 3
    assert {(outcome.kind, outcome.reason) for outcome in outcomes[1::2]} == {
        (OutcomeKind.RETRY, reasons.INTERNAL_ERROR)
    }
    assert "KeyError" in outcomes[1].detail
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 3 and all(record.exc_info for record in errors)


def test_a_result_that_cannot_be_passed_on_costs_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    passed_on = threading.Event()

    def on_result(message: Message, outcome: Outcome) -> None:
        if message.id == 1:
            raise OSError("nobody there")
        passed_on.set()

    pool = DeliveryPool(1, lambda message, request: DELIVERED, on_result)
    pool.submit(message(1), CART)
    pool.submit(message(2), CART)

    assert passed_on.wait(5)
    assert pool.stop(5) == []
    assert (pool.in_flight, "nobody there" in caplog.text) == (0, True)


def test_draining_takes_back_what_has_not_begun(make_pool: MakePool, results: Results, held: Held) -> None:
    pool = make_pool(2, held)
    for number in range(6):
        pool.submit(message(number), CART)
    begun = held.wait_for(2)

    drained = {each.id for each in pool.drain()}

    assert begun | drained == set(range(6)) and not begun & drained
    assert pool.in_flight == 2
    held.go_on.set()
    assert {number for number, _ in results.take(2)} == begun
    pool.submit(message(9), CART)
    assert results.take(1)[0][0] == 9


def test_stopping_releases_what_has_not_begun_and_waits_for_the_rest(
    make_pool: MakePool, results: Results, held: Held
) -> None:
    pool = make_pool(2, held)
    for number in range(5):
        pool.submit(message(number), CART)
    begun = held.wait_for(2)
    late: list[list[Message]] = []
    stopping = threading.Thread(target=lambda: late.append(pool.stop(10)))
    stopping.start()

    released = results.take(3)
    held.go_on.set()
    stopping.join(5)

    assert {(outcome.kind, outcome.reason) for _, outcome in released} == {(OutcomeKind.RELEASED, reasons.SHUTDOWN)}
    assert results.take(2) == [(number, DELIVERED) for number in sorted(begun)]
    assert late == [[]]
    assert pool.in_flight == 0


def test_what_takes_too_long_is_given_up_and_gives_no_result(make_pool: MakePool, results: Results, held: Held) -> None:
    pool = make_pool(2, held)
    for number in range(3):
        pool.submit(message(number), CART)
    begun = held.wait_for(2)

    late = pool.stop(0.05)

    assert {each.id for each in late} == begun
    assert pool.in_flight == 0
    assert len(results.take(1)) == 1
    held.go_on.set()
    assert pool.stop(5) == []
    assert results.empty()


def test_a_message_submitted_after_stopping_is_released(make_pool: MakePool, results: Results) -> None:
    pool = make_pool(1, lambda message, request: DELIVERED)
    pool.stop(5)

    pool.submit(message(4), CART)

    ((number, outcome),) = results.take(1)
    assert (number, outcome.reason, pool.in_flight) == (4, reasons.SHUTDOWN, 0)


def test_stopping_ends_the_threads(make_pool: MakePool) -> None:
    before = threading.active_count()
    pool = make_pool(8, lambda message, request: DELIVERED)
    assert threading.active_count() == before + 8
    pool.stop(5)
    assert threading.active_count() == before
