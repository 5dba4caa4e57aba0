from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from queue import SimpleQueue

import pytest
from courier_doubles import CART, DELIVERED, message

from zithara_worker import reasons
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
    held.go_on.set()
    results.take(5)


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


def test_draining_takes_back_what_has_not_begun(make_pool: MakePool, results: Results, held: Held) -> None:
    pool = make_pool(2, held)
    for number in range(6):
        pool.submit(message(number), CART)
    begun = held.wait_for(2)

    drained = {each.id for each in pool.drain()}

    assert begun | drained == set(range(6)) and not begun & drained
    held.go_on.set()
    assert {number for number, _ in results.take(2)} == begun
    pool.submit(message(9), CART)
    assert results.take(1)[0][0] == 9


def test_stopping_waits_for_what_is_under_way_and_sends_nothing_more(
    make_pool: MakePool, results: Results, held: Held
) -> None:
    pool = make_pool(2, held)
    for number in range(5):
        pool.submit(message(number), CART)
    begun = held.wait_for(2)
    pool.stop(0)

    held.go_on.set()
    pool.stop(5)

    assert results.take(2) == [(number, DELIVERED) for number in sorted(begun)]
    assert results.empty() and held.begun.empty()


def test_stopping_ends_the_threads(make_pool: MakePool) -> None:
    before = threading.active_count()
    pool = make_pool(8, lambda message, request: DELIVERED)
    assert threading.active_count() == before + 8
    pool.stop(5)
    assert threading.active_count() == before
