"""This worker's or relay's row in zithara_worker: its identity, its state, what it did in each minute of the last hour.

`status` and the status page of every worker read these rows (`fleet`).
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from threading import Lock
from typing import Any

from zithara_worker.database.session import Database
from zithara_worker.messages import Outcome, OutcomeKind
from zithara_worker.monitor.fleet import CONSUME
from zithara_worker.monitor.rates import BUCKETS_MS, HISTORY_MINUTES
from zithara_worker.version import VERSION

#: Rows that one call of `Registry.remove_stale` deletes at most.
FORGOTTEN_AT_ONCE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a worker is. `id` is new with every start, so that a restarted worker does not own its earlier leases."""

    id: str
    host: str
    pid: int
    version: str
    topics: Sequence[str]
    #: fleet.CONSUME or fleet.RELAY
    role: str = CONSUME

    @classmethod
    def of_this_process(cls, topics: Sequence[str], *, role: str = CONSUME) -> Identity:
        host, pid = socket.gethostname(), os.getpid()
        own_id = f"{host[:32]}-{pid}-{secrets.token_hex(4)}"
        return cls(id=own_id, host=host, pid=pid, version=VERSION, topics=topics, role=role)


class MinuteCounters:
    """What this worker did, by minute and topic, for the last hour. `utc`: seconds since the epoch."""

    def __init__(self, utc: Callable[[], float]) -> None:
        self._utc = utc
        self._lock = Lock()
        self._minutes: OrderedDict[int, dict[str, dict[str, Any]]] = OrderedDict()

    def count(self, topic: str, outcome: Outcome, *, superseded: int = 0) -> None:
        """One settled message. `superseded`: how many older messages its delivery completes."""
        with self._lock:
            counts = self._of_this_minute(topic)
            if "outcomes" not in counts:
                buckets = [0] * (len(BUCKETS_MS) + 1)
                counts.update({"outcomes": {}, "skipped": {}, "superseded": 0, "buckets": buckets})
            kind = outcome.kind.value
            counts["outcomes"][kind] = counts["outcomes"].get(kind, 0) + 1
            if outcome.kind is OutcomeKind.DELIVERED:
                counts["superseded"] += superseded
            elif outcome.kind is OutcomeKind.SKIPPED:
                counts["skipped"][outcome.reason] = counts["skipped"].get(outcome.reason, 0) + 1
            if outcome.duration_ms is not None:
                counts["buckets"][bisect_left(BUCKETS_MS, outcome.duration_ms)] += 1

    def count_relayed(self, topic: str, messages: int) -> None:
        """Messages that a relay wrote into the queue."""
        with self._lock:
            counts = self._of_this_minute(topic)
            counts["relayed"] = counts.get("relayed", 0) + messages

    def _of_this_minute(self, topic: str) -> dict[str, Any]:
        minute = int(self._utc() // 60)
        topics = self._minutes.get(minute)
        if topics is None:
            topics = self._minutes[minute] = {}
            while len(self._minutes) > HISTORY_MINUTES:
                self._minutes.popitem(last=False)
        return topics.setdefault(topic, {})

    def minutes(self) -> dict[str, Any]:
        """{minute since the epoch: {topic: counts}}. The counts of a worker: {"outcomes": {kind: n},
        "skipped": {reason: n}, "superseded": n, "buckets": [n, ...]}; of a relay: {"relayed": n}."""
        with self._lock:
            return {
                str(minute): {
                    topic: {name: copy(value) for name, value in counts.items()} for topic, counts in topics.items()
                }
                for minute, topics in self._minutes.items()
            }


class Registry:
    """One worker's row in zithara_worker."""

    def __init__(self, database: Database, identity: Identity) -> None:
        self._database = database
        self._identity = identity

    def update(
        self, *, in_flight: int, metrics_address: str | None, state: Mapping[str, Any], minutes: Mapping[str, Any]
    ) -> None:
        """Writes the row: that the worker lives, its state, and what it did in the last hour."""
        me = self._identity
        self._database.execute(
            "worker_seen",
            id=me.id,
            host=me.host[:255],
            pid=me.pid,
            role=me.role,
            version=me.version,
            topics=",".join(me.topics)[:1000],
            metrics_address=metrics_address,
            in_flight=in_flight,
            state=_compact(state),
            minutes=_compact(minutes),
        )

    def stopped(self, minutes: Mapping[str, Any]) -> None:
        """Writes that the process has stopped, and what it did in the last hour, which goes on counting."""
        self._database.execute("worker_stopped", id=self._identity.id, minutes=_compact(minutes))

    def remove_stale(self) -> None:
        """Deletes rows of processes that stopped an hour ago, or were not updated for a day, in slices."""
        self._database.execute("workers_forget", limit=FORGOTTEN_AT_ONCE)


def _compact(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
