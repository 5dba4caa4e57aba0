"""What one process of the fleet may do at a time: rows of zithara_lock, whose leases free what a dead process held."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zithara_worker.database.session import Database


def take(database: Database, name: str, *, owner: str, lease_seconds: float) -> bool:
    """Whether `owner` holds the lock now, for so long unless it frees it; whoever holds it already takes it anew."""
    row: dict[str, object] = {"name": name, "owner": owner, "lease_us": round(lease_seconds * 1_000_000)}
    return database.execute("lock_take", **row) == 1 or database.execute("lock_take_over", **row) == 1


def free(database: Database, name: str, *, owner: str) -> None:
    """Gives the lock back, if `owner` still holds it."""
    database.execute("lock_free", name=name, owner=owner)
