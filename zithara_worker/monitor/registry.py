"""This worker's row in zithara_worker: how the fleet sees it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zithara_worker.database.session import Database
from zithara_worker.queue import failures


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a worker is: `id` is new with every start, so that a restart never inherits leases."""

    id: str
    host: str
    pid: int
    version: str
    topics: Sequence[str]


class Registry:
    def __init__(self, database: Database, identity: Identity) -> None:
        self._database = database
        self._identity = identity

    def seen(
        self, *, in_flight: int, metrics_address: str | None, state: Mapping[str, Any], minutes: Mapping[str, Any]
    ) -> None:
        """One small update: alive, and what it did in the last hour."""
        me = self._identity
        self._database.execute(
            "worker_seen",
            id=me.id,
            host=me.host[:255],
            pid=me.pid,
            version=me.version,
            topics=",".join(me.topics)[:1000],
            metrics_address=metrics_address,
            in_flight=in_flight,
            state=json.dumps(state, separators=(",", ":")),
            minutes=json.dumps(minutes, separators=(",", ":")),
        )

    def gone(self) -> None:
        """A worker that stops takes its row along."""
        self._database.execute("worker_gone", id=self._identity.id)

    def forget_old(self) -> None:
        """Removes workers that have not been seen for a day, and the failures of messages that Magento has deleted."""
        self._database.execute("workers_forget")
        failures.forget_deleted(self._database)
