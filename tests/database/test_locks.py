"""Rows that one process of the fleet holds at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial

import pytest
from support.waiting import together
from support.workers import Clock, settings_of

from zithara_worker.database import locks
from zithara_worker.database.session import Database
from zithara_worker.delivery.pace import MOST_WORKERS, turns_of
from zithara_worker.sandbox.shop import Shop


@pytest.fixture
def open_database(shop: Shop, clock: Clock) -> Iterator[Callable[[], Database]]:
    with ExitStack() as opened:
        yield lambda: opened.enter_context(closing(Database(settings_of(shop), clock=clock, sleep=lambda _: None)))


def test_a_lock_has_one_owner_until_it_is_freed(open_database: Callable[[], Database]) -> None:
    mine, other = open_database(), open_database()
    assert locks.take(mine, "token", owner="a", lease_seconds=60)
    assert not locks.take(other, "token", owner="b", lease_seconds=60)
    assert locks.take(other, "another", owner="b", lease_seconds=60), "names are apart"
    assert locks.take(mine, "token", owner="a", lease_seconds=60), "its owner may take it again"
    locks.free(mine, "token", owner="a")
    assert locks.take(other, "token", owner="b", lease_seconds=60)


def test_the_lease_frees_what_a_dead_owner_held_by_the_databases_clock(
    open_database: Callable[[], Database], clock: Clock
) -> None:
    mine, other = open_database(), open_database()
    assert locks.take(mine, "token", owner="a", lease_seconds=60)
    clock.pass_by(60)
    assert not locks.take(other, "token", owner="b", lease_seconds=60)
    clock.pass_by(0.001)
    assert locks.take(other, "token", owner="b", lease_seconds=60)
    assert not locks.take(mine, "token", owner="a", lease_seconds=60), "the new owner has a lease of its own"


def test_an_owner_that_comes_too_late_frees_nobody_elses_lock(
    open_database: Callable[[], Database], clock: Clock
) -> None:
    mine, other, third = open_database(), open_database(), open_database()
    assert locks.take(mine, "token", owner="a", lease_seconds=60)
    clock.pass_by(61)
    assert locks.take(other, "token", owner="b", lease_seconds=60)
    locks.free(mine, "token", owner="a")
    assert not locks.take(third, "token", owner="c", lease_seconds=60)


@pytest.mark.parametrize("expired", [False, True], ids=["free", "expired"])
def test_of_many_that_come_together_one_gets_it(
    open_database: Callable[[], Database], clock: Clock, expired: bool
) -> None:
    if expired:
        locks.take(open_database(), "token", owner="dead", lease_seconds=1)
        clock.pass_by(2)
    databases = [open_database() for _ in range(8)]
    taken = together(
        partial(locks.take, database, "token", owner=f"w{number}", lease_seconds=60)
        for number, database in enumerate(databases)
    )
    assert sum(taken) == 1


def test_turns_follow_each_other_whoever_takes_them(open_database: Callable[[], Database], clock: Clock) -> None:
    mine, other = open_database(), open_database()

    def take(database: Database, count: int) -> tuple[float, int]:
        return locks.take_turns(
            database, "rate", count, owner="a", seconds_each=0.01, credit_seconds=0.5, line_seconds=9.0
        )

    assert take(mine, 10) == (0.0, 10)
    assert take(other, 5) == (pytest.approx(0.1), 5)
    clock.pass_by(0.05)
    assert take(mine, 1) == (pytest.approx(0.1), 1)
    clock.pass_by(3600)
    assert take(other, 1) == (pytest.approx(-0.5), 1), "of an idle time no more than the credit"
    assert take(other, 1) == (pytest.approx(-0.49), 1)


def test_a_clock_that_went_back_or_a_rate_that_was_lower_does_not_stop_the_fleet_for_long(
    open_database: Callable[[], Database], clock: Clock
) -> None:
    database = open_database()

    def take(rate: float, count: int = 1) -> float:
        turns = turns_of(rate, 0)
        return locks.take_turns(database, "rate", count, owner="a", **turns._asdict())[0]

    line = turns_of(100, 0).line_seconds
    take(0.001)
    assert take(100) == pytest.approx(line)
    clock.pass_by(-3600)
    assert take(100) == pytest.approx(line)
    clock.pass_by(line)
    taken = [take(100, 10) for _ in range(MOST_WORKERS)]
    assert taken == sorted(set(taken)), "as many workers have turns of their own"


def test_turns_shorter_than_a_millisecond_are_taken_by_whole_milliseconds(
    open_database: Callable[[], Database],
) -> None:
    database = open_database()
    taken = [
        locks.take_turns(database, "rate", count, owner="a", seconds_each=0.0003, credit_seconds=0.0, line_seconds=9.0)
        for count in (1, 1, 30)
    ]
    assert [count for _, count in taken] == [3, 3, 30]
    assert [seconds for seconds, _ in taken] == pytest.approx([0.0, 0.001, 0.002])


def test_owner_keeps_its_lock_and_nobody_elses(open_database: Callable[[], Database], clock: Clock) -> None:
    mine, other = open_database(), open_database()
    assert not locks.keep(mine, "relay:q", owner="a", lease_seconds=15), "nobody has it"
    assert locks.take_at_once(mine, "relay:q", owner="a", lease_seconds=15)
    assert not locks.take_at_once(other, "relay:q", owner="b", lease_seconds=15)
    clock.pass_by(16)
    assert locks.keep(mine, "relay:q", owner="a", lease_seconds=15), "nobody has taken it meanwhile"
    assert not locks.take_at_once(other, "relay:q", owner="b", lease_seconds=15), "the lease is a new one"
    clock.pass_by(16)
    assert locks.take_at_once(other, "relay:q", owner="b", lease_seconds=15)
    assert not locks.keep(mine, "relay:q", owner="a", lease_seconds=15)


def test_nobody_waits_for_a_lock_that_an_open_transaction_has(
    open_database: Callable[[], Database], clock: Clock
) -> None:
    mine, other = open_database(), open_database()
    assert locks.take_at_once(mine, "relay:q", owner="a", lease_seconds=15)
    with mine.transaction():
        assert locks.keep(mine, "relay:q", owner="a", lease_seconds=15)
        clock.pass_by(16)
        assert not locks.take_at_once(other, "relay:q", owner="b", lease_seconds=15)
    assert locks.take_at_once(other, "relay:q", owner="b", lease_seconds=15)
