"""What tests of operators' commands share: a session of the worker's own user, and a worker that empties the queues."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.workers import settings_of

from zithara_worker import Settings, Worker
from zithara_worker.app import Limits
from zithara_worker.magento.database import Database
from zithara_worker.messages import TOPICS
from zithara_worker.sandbox.api import FakeZithara
from zithara_worker.sandbox.shop import Shop
from zithara_worker.settings import MetricsSettings, RetrySettings, ZitharaSettings


@pytest.fixture
def database(shop: Shop) -> Iterator[Database]:
    opened = Database(settings_of(shop))
    yield opened
    opened.close()


@pytest.fixture
def settings(shop: Shop, api: FakeZithara) -> Settings:
    return Settings(
        database=settings_of(shop),
        zithara=ZitharaSettings(base_url=api.base_url, client_id=api.client_id, client_secret=api.client_secret),
        retry=RetrySettings(limit=2, delay=0.0),
        metrics=MetricsSettings(listen=""),
    )


@pytest.fixture
def consume(settings: Settings) -> Callable[[], None]:
    """Delivers all that is due, with a worker in this process."""

    def run() -> None:
        Worker(settings).run(TOPICS, limits=Limits(stop_when_empty=True, max_runtime_seconds=20))

    return run


@pytest.fixture
def audit() -> Any:
    """Collects audit lines: `audit(lines)` takes them, `audit.lines` has them."""

    class Collected:
        def __init__(self) -> None:
            self.lines: list[Any] = []

        def __call__(self, records: Any) -> None:
            self.lines += records

    return Collected()
