"""Rows of zithara_lock: what one process of the fleet may do at a time, and how often all may do it together.

A lease frees the lock of a dead process.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from zithara_worker.errors import Contention

if TYPE_CHECKING:  # `preview` imports this room's users without the database driver
    from zithara_worker.database.session import Database


def take(database: Database, name: str, *, owner: str, lease_seconds: float) -> bool:
    """Takes the lock for `lease_seconds` if it is free, its lease has ended, or `owner` holds it; whether it did."""
    row: dict[str, object] = {"name": name, "owner": owner, "lease_us": round(lease_seconds * 1_000_000)}
    return database.execute("lock_take", **row) == 1 or database.execute("lock_take_over", **row) == 1


def keep(database: Database, name: str, *, owner: str, lease_seconds: float) -> bool:
    """Renews the lock if `owner` still has it; whether it does. Within a transaction nobody else takes it until COMMIT,
    even if its lease ends meanwhile."""
    return database.execute("lock_keep", name=name, owner=owner, lease_us=round(lease_seconds * 1_000_000)) == 1


def take_at_once(database: Database, name: str, *, owner: str, lease_seconds: float) -> bool:
    """As `take`, but waits for no transaction that has the lock's row: such a lock counts as taken, even if its lease
    has ended."""
    try:
        with database.transaction():
            rows = database.rows("lock_look", name=name)
            if rows and rows[0]["is_alive"] and rows[0]["owner"] != owner:
                return False
            return take(database, name, owner=owner, lease_seconds=lease_seconds)
    except Contention:
        return False


def free(database: Database, name: str, *, owner: str) -> None:
    """Frees the lock, if `owner` still holds it."""
    database.execute("lock_free", name=name, owner=owner)


def take_turns(
    database: Database,
    name: str,
    count: int,
    *,
    owner: str,
    seconds_each: float,
    credit_seconds: float,
    line_seconds: float,
) -> tuple[float, int]:
    """Takes the next `count` turns of the fleet, or a few more, as the row's time has whole milliseconds.

    Returns in how many seconds the first of them is, and how many they are; they follow each other by `seconds_each`.
    The first lies up to `credit_seconds` in the past, and up to `line_seconds` in the future even if the database's
    clock went back, or turns were taken at a lower rate. Raises DatabaseUnavailable, and Contention.
    """
    ms = math.ceil(count * seconds_each * 1000)
    bounds = {"credit_ms": math.floor(credit_seconds * 1000), "line_ms": math.ceil(line_seconds * 1000)}

    def take() -> list[dict[str, Any]]:
        with database.transaction():
            database.execute("turns_take", name=name, owner=owner, ms=ms, **bounds)
            return database.rows("turns_taken", name=name)

    rows = database.again_on_contention(take)
    if not rows:
        database.execute("turns_first", name=name, owner=owner)
        rows = database.again_on_contention(take)
    return (float(rows[0]["ends_ms"]) - ms) / 1000, max(count, int(ms / (seconds_each * 1000)))
