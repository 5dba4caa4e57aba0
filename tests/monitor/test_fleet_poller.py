"""The fleet is read seldom, in a thread of its own, and no request waits for a database that does not answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from support.waiting import eventually
from support.workers import settings_of

from zithara_worker.database.session import Database
from zithara_worker.errors import DatabaseUnavailable
from zithara_worker.monitor import endpoints
from zithara_worker.monitor.endpoints import FleetPoller
from zithara_worker.sandbox.shop import Shop


@contextmanager
def polling(open_database: Callable[[], Database], overrides: Any, **clock: Any) -> Iterator[FleetPoller]:
    poller = FleetPoller(open_database, lambda: overrides, monotonic=clock.get("monotonic", lambda: 1000.0))
    poller.start()
    try:
        yield poller
    finally:
        poller.close()


class Counted(Database):
    readings = 0

    def close(self) -> None:
        super().close()
        Counted.readings += 1


def test_the_database_is_read_every_ten_seconds_at_most(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counted, "readings", 0)
    now = [1000.0]
    shop.publish_order()
    with polling(lambda: Counted(settings_of(shop)), {}, monotonic=lambda: now[0]) as poller:
        eventually(lambda: poller.latest()[0] is not None)
        for _ in range(5):
            assert poller.latest()[1] is None
        assert Counted.readings == 1
        assert list(poller.backlog().values()) == [1]
        shop.publish_order("000000102")
        now[0] += endpoints.READ_INTERVAL_SECONDS
        seen, _ = poller.latest()
        assert seen is not None and seen.topics[0].pending == 2 and Counted.readings == 2


def test_a_slow_reading_is_repeated_more_seldom(shop: Shop) -> None:
    now = [1000.0]
    opened = []

    def slow() -> Database:
        opened.append(now[0])
        now[0] += 1.0
        return Database(settings_of(shop))

    with polling(slow, {}, monotonic=lambda: now[0]) as poller:
        assert eventually(lambda: poller.latest()[0] is not None)
        now[0] += 1.0 / endpoints.READ_SHARE - 0.5
        seen, _ = poller.latest()
        assert seen is not None and seen.read_seconds == 1.0 and opened == [1000.0]
        now[0] += 1.0
        poller.latest()
        assert opened == [1000.0, 1051.5], "a reading may take READ_SHARE of the time"


def test_the_last_status_stays_while_the_database_is_away(shop: Shop) -> None:
    now = [1000.0]
    settings = [settings_of(shop)]
    with polling(lambda: Database(settings[0]), {}, monotonic=lambda: now[0]) as poller:
        eventually(lambda: poller.latest()[0] is not None)
        settings[0] = settings_of(shop, unix_socket="/nowhere/mysqld.sock")
        now[0] += endpoints.READ_INTERVAL_SECONDS
        seen, problem = poller.latest()
        assert seen is not None and problem is not None and "database not available" in problem


def test_a_database_that_is_away_is_logged_once_a_minute(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    now = [1000.0]
    away = settings_of(shop, unix_socket="/nowhere/mysqld.sock")
    with polling(lambda: Database(away), {}, monotonic=lambda: now[0]) as poller:
        assert eventually(lambda: "database not available" in (poller.latest()[1] or ""))
        for lines in (1, 1, 2):
            assert [record.__dict__["event"] for record in caplog.records] == ["watch_failed"] * lines
            now[0] += endpoints.LOG_INTERVAL_SECONDS / 2
            poller.latest()


def test_the_first_connection_is_noticed_within_a_second(shop: Shop) -> None:
    now, overrides = [1000.0], [None, {}]
    poller = FleetPoller(lambda: Database(settings_of(shop)), lambda: overrides[0], monotonic=lambda: now[0])
    poller.start()
    with closing(poller):
        assert eventually(lambda: poller.latest()[1] == "the database is not available yet")
        overrides.pop(0)
        now[0] += 0.5
        assert poller.latest()[0] is not None


def test_nobody_waits_for_a_database_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, shop: Shop) -> None:
    monkeypatch.setattr(endpoints, "READ_WAIT_SECONDS", 0.05)
    gate = threading.Event()

    def hangs(database: Database, overrides: Any) -> Any:
        gate.wait(10)
        raise DatabaseUnavailable("at last")

    monkeypatch.setattr(endpoints, "read_fleet", hangs)
    with polling(lambda: Database(settings_of(shop)), {}) as poller:
        assert poller.latest() == (None, "nothing was read yet")
        assert not gate.is_set()
        gate.set()
        assert eventually(lambda: poller.latest()[1] == "at last")


def test_queues_that_nobody_knows_yet_are_told() -> None:
    with polling(lambda: pytest.fail("no session is wanted"), None) as poller:
        assert eventually(lambda: poller.latest()[1] == "the database is not available yet")
