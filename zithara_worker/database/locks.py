"""Rows of zithara_lock: what one process of the fleet may do at a time. A lease frees the lock of a dead process."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `preview` imports this room's users without the database driver
    from zithara_worker.database.session import Database


def take(database: Database, name: str, *, owner: str, lease_seconds: float) -> bool:
    """Takes the lock for `lease_seconds` if it is free, its lease has ended, or `owner` holds it; whether it did."""
    row: dict[str, object] = {"name": name, "owner": owner, "lease_us": round(lease_seconds * 1_000_000)}
    return database.execute("lock_take", **row) == 1 or database.execute("lock_take_over", **row) == 1


def free(database: Database, name: str, *, owner: str) -> None:
    """Frees the lock, if `owner` still holds it."""
    database.execute("lock_free", name=name, owner=owner)
