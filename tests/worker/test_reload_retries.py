"""When a changed configuration is tried, and what is said of one that cannot be used."""

from __future__ import annotations

import logging

import pytest
from support.workers import Clock

from zithara_worker.errors import ConfigurationError
from zithara_worker.settings.reload import Reload


@pytest.mark.parametrize("error", [ConfigurationError("bad"), PermissionError("bad"), KeyError("a defect")])
def test_what_cannot_be_used_is_tried_again_every_5_seconds_and_said_once_a_minute(
    clock: Clock, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[float] = []

    def prepare(database_up: bool) -> bool:
        tries.append(clock.now)
        raise error

    reload = Reload(prepare, monotonic=clock)
    assert not reload.is_ready(database_up=True) and not tries, "nobody has asked"
    reload.ask()
    begun = clock.now
    while clock.now < begun + 60:
        assert not reload.is_ready(database_up=True)
        clock.pass_by(1)
    assert tries == [begun + 5 * number for number in range(12)]
    assert reload.problem
    assert sum(getattr(record, "event", "") == "reload_failed" for record in caplog.records) == 1
    assert not reload.is_ready(database_up=True)
    assert sum(getattr(record, "event", "") == "reload_failed" for record in caplog.records) == 2
    assert all(record.levelno == logging.ERROR for record in caplog.records)


def test_whoever_asks_during_a_try_gets_another_one(clock: Clock) -> None:
    asked: list[Reload] = []

    def prepare(database_up: bool) -> bool:
        if len(asked) == 1:
            asked.append(asked[0])
            asked[0].ask()
        return True

    reload = Reload(prepare, monotonic=clock)
    asked.append(reload)
    reload.ask()
    assert reload.is_ready(database_up=True)
    assert reload.is_ready(database_up=True)
    assert not reload.is_ready(database_up=True)


def test_what_need_not_be_tried_while_the_database_is_away_stays_wanted(clock: Clock) -> None:
    reload = Reload(lambda database_up: database_up, monotonic=clock)
    reload.ask()
    assert not reload.is_ready(database_up=False)
    assert reload.wanted and reload.problem is None
    clock.pass_by(5)
    assert reload.is_ready(database_up=True)
