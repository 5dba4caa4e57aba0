"""Paused topics: rows of zithara_topic_control, which every worker reads with each poll."""

from __future__ import annotations

from dataclasses import dataclass

from zithara_worker.database.session import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Who paused a topic, when (seconds since the epoch, the database's clock), and why."""

    topic: str
    paused_by: str
    paused_at_utc: float
    reason: str


def paused(database: Database) -> dict[str, Pause]:
    return {
        str(row["topic"]): Pause(
            topic=str(row["topic"]),
            paused_by=str(row["paused_by"]),
            paused_at_utc=float(row["paused_at_utc"]),
            reason=str(row["reason"]),
        )
        for row in database.rows("paused")
    }


def pause(database: Database, topic: str, *, by: str, reason: str) -> bool:
    """False when it was paused already: who was first stays on record."""
    return database.execute("pause", topic=topic, paused_by=by[:255], reason=reason[:1000]) > 0


def resume(database: Database, topic: str) -> bool:
    """False when it was not paused."""
    return database.execute("resume", topic=topic) > 0
