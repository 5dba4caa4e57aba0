"""The queues and the fleet as the shop's database shows them: counts, leases, workers. Reads only.

All times are seconds since the epoch on the database's clock, which is the clock of leases and retries.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zithara_worker.database.session import Database
from zithara_worker.queue.statuses import Status

#: Upper bounds of the response-time buckets in zithara_worker.minutes, milliseconds; the last bucket has none.
BUCKETS_MS = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000)

#: Seconds without a sign of life after which a worker counts as dead; it gives one every 5 s.
DEAD_AFTER_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    messages: int
    #: When the oldest of them was last touched; Magento keeps no time of creation.
    oldest_utc: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """The busy message groups of a queue."""

    in_flight: int = 0
    #: Leases whose worker has not renewed them: any worker takes these over.
    expired: int = 0
    #: Heads whose retry is not due yet.
    waiting: int = 0
    next_due_utc: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What one worker holds of one queue."""

    queue_id: int
    messages: int
    first_message_id: int
    lease_until_utc: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """A row of zithara_worker. `state` and `minutes` are what `app` and `worker.stats` write there."""

    id: str
    host: str
    pid: int
    version: str
    topics: tuple[str, ...]
    started_utc: float
    last_seen_utc: float
    metrics_address: str | None
    in_flight: int
    state: Mapping[str, Any] = field(default_factory=dict)
    minutes: Mapping[str, Any] = field(default_factory=dict)


def now_utc(database: Database) -> float:
    return float(database.rows("clock")[0]["now"])


def count_by_status(database: Database, queue_ids: Collection[int]) -> dict[tuple[int, Status], Count]:
    """(queue id, status) -> messages, for NEW, IN_PROGRESS, RETRY_REQUIRED and ERROR; completed ones are not read."""
    statement = "queue_counts_indexed" if database.has_pending_index else "queue_counts"
    return {
        (int(row["queue_id"]), Status(int(row["status"]))): Count(
            messages=int(row["messages"]), oldest_utc=_seconds(row["oldest"])
        )
        for row in database.rows(statement, queue_ids=sorted(queue_ids))
    }


def count_complete(database: Database, queue_ids: Collection[int]) -> dict[int, int]:
    """Reads every row of these queues: some seconds for a million."""
    rows = database.rows("complete_counts", queue_ids=sorted(queue_ids))
    return {int(row["queue_id"]): int(row["messages"]) for row in rows}


def count_groups(database: Database, queue_ids: Collection[int]) -> dict[int, Groups]:
    return {
        int(row["queue_id"]): Groups(
            in_flight=int(row["in_flight"]),
            expired=int(row["expired"]),
            waiting=int(row["waiting"]),
            next_due_utc=_seconds(row["next_due"]),
        )
        for row in database.rows("group_counts", queue_ids=sorted(queue_ids))
    }


def held_by_worker(database: Database) -> dict[str, list[Held]]:
    """Worker id -> its leases, live or expired, also those of workers that are gone."""
    held: dict[str, list[Held]] = {}
    for row in database.rows("leases_by_worker"):
        held.setdefault(str(row["worker_id"]), []).append(
            Held(
                queue_id=int(row["queue_id"]),
                messages=int(row["messages"]),
                first_message_id=int(row["first_message_id"]),
                lease_until_utc=_seconds(row["lease_until"]),
            )
        )
    return held


def workers(database: Database) -> list[WorkerRow]:
    """Every worker that was seen within a day, by host and start."""
    return [
        WorkerRow(
            id=str(row["id"]),
            host=str(row["host"]),
            pid=int(row["pid"]),
            version=str(row["version"]),
            topics=tuple(topic for topic in str(row["topics"]).split(",") if topic),
            started_utc=float(row["started_at"]),
            last_seen_utc=float(row["last_seen_at"]),
            metrics_address=row["metrics_address"],
            in_flight=int(row["in_flight"]),
            state=_object(row["state"]),
            minutes=_object(row["minutes"]),
        )
        for row in database.rows("workers")
    ]


def living_by_topic(rows: Iterable[WorkerRow], now: float) -> Counter[str]:
    """Topic -> living workers that serve it, whichever process and host they are; 0 for a topic that none serves.

    `now`: the database's clock (`now_utc`).
    """
    return Counter(topic for row in rows if now - row.last_seen_utc < DEAD_AFTER_SECONDS for topic in set(row.topics))


def _object(text: Any) -> Mapping[str, Any]:
    """A worker of another version may have written it: what is no JSON object shows nothing."""
    try:
        value = json.loads(text)
    except (TypeError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _seconds(value: Any) -> float | None:
    return None if value is None else float(value)
