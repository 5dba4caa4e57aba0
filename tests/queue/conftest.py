"""Workers of this room: any number on one shop, on one clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support.workers import Clock, StepWorker

from zithara_worker.sandbox.shop import Shop


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_worker(shop: Shop, clock: Clock) -> Iterator[Callable[..., StepWorker]]:
    """make_worker("worker-b", topic=...): options go to StepWorker and MessageQueue; closed after the test."""
    made: list[StepWorker] = []

    def make(worker_id: str = "worker-a", *, on: Shop = shop, **options: object) -> StepWorker:
        made.append(StepWorker(on, clock, worker_id=worker_id, **options))  # type: ignore[arg-type]  # passed through
        return made[-1]

    yield make
    for worker in made:
        worker.close()


@pytest.fixture
def worker(make_worker: Callable[..., StepWorker]) -> StepWorker:
    return make_worker()


@pytest.fixture
def other(make_worker: Callable[..., StepWorker]) -> StepWorker:
    """A second worker on the same queue."""
    return make_worker("worker-b")
