"""The database's clock jumps: leases are written by it and measured by the worker's own clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support.workers import LEASE_SECONDS, Clock, MakeWorker, StepWorker, failures_of, groups_of, settings_of

from zithara_worker.database.session import Database
from zithara_worker.messages import OutcomeKind
from zithara_worker.queue.statuses import Status
from zithara_worker.sandbox.shop import Shop

JUMP_SECONDS = 70.0


@pytest.fixture
def database_clock(clock: Clock) -> Clock:
    """The clock of every session; `clock` stays that of the workers."""
    server = Clock()
    server.now = clock.now
    return server


@pytest.fixture
def start(shop: Shop, database_clock: Clock, make_worker: MakeWorker) -> Iterator[Callable[[str], StepWorker]]:
    def start(worker_id: str) -> StepWorker:
        return make_worker(worker_id, database=Database(settings_of(shop), clock=database_clock, sleep=lambda _: None))

    yield start


@pytest.fixture
def worker(start: Callable[[str], StepWorker]) -> StepWorker:
    return start("worker-a")


@pytest.fixture
def other(start: Callable[[str], StepWorker]) -> StepWorker:
    return start("worker-b")


def test_a_worker_alone_keeps_what_it_holds_when_the_clock_jumps_forward(
    shop: Shop, database_clock: Clock, worker: StepWorker
) -> None:
    for name in "AAB":
        shop.publish_order(name)
    held = worker.claim()
    assert len(held) == 2
    database_clock.pass_by(JUMP_SECONDS)

    assert worker.claim() == [], "its own leases look expired, and it has them in hand"
    assert worker.renew() == []
    settled = worker.deliver(held)

    assert settled.lost == [] and len(settled.done) == 2
    assert len(worker.drain()) == 1
    assert shop.statuses() == [Status.COMPLETE] * 3
    assert {row.number_of_trials for row in shop.rows()} == {0} and failures_of(shop) == {}


def test_what_another_worker_takes_over_after_a_jump_is_settled_by_that_one_alone(
    shop: Shop, database_clock: Clock, worker: StepWorker, other: StepWorker
) -> None:
    for name in "AAB":
        shop.publish_order(name)
    held = worker.claim()
    database_clock.pass_by(JUMP_SECONDS)

    [suspect] = other.claim()
    [lost] = [message for message in held if message.id == suspect.id]
    assert worker.renew() == [lost] and lost.lease.valid_until == 0.0, "a request that has not left never leaves"
    settled = worker.deliver(held)

    assert settled.lost == [lost] and len(settled.done) == 1
    assert shop.row(suspect.id).status == Status.IN_PROGRESS
    assert other.deliver([suspect]).lost == []
    assert len(worker.drain()) == 1
    assert shop.statuses() == [Status.COMPLETE] * 3 and groups_of(shop) == {} and failures_of(shop) == {}


@pytest.mark.parametrize("jump", [JUMP_SECONDS, -JUMP_SECONDS])
def test_a_lease_is_kept_over_a_jump_in_either_direction_once_it_has_been_renewed(
    shop: Shop, database_clock: Clock, worker: StepWorker, other: StepWorker, jump: float
) -> None:
    shop.publish_order("A")
    held = worker.claim()
    database_clock.pass_by(jump)
    assert worker.renew() == []
    database_clock.pass_by(LEASE_SECONDS - 1)
    assert other.claim() == []
    database_clock.pass_by(2)
    assert [message.id for message in other.claim()] == [held[0].id]


def test_a_clock_set_back_delays_a_retry_and_loses_nothing(
    shop: Shop, database_clock: Clock, worker: StepWorker
) -> None:
    shop.publish_order("A")
    newer = shop.publish_order("A")
    [message] = worker.claim()
    worker.settle((message, OutcomeKind.RETRY), delay=30)
    database_clock.pass_by(-JUMP_SECONDS)
    assert worker.claim() == []
    database_clock.pass_by(JUMP_SECONDS + 31)
    assert worker.drain() == [message.message_id, newer.message_id]
