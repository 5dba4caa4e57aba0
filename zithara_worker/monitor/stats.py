"""What this worker did, by minute, for the last hour: the numbers behind `status`, the metrics and the registry.

Counts only; knows no table, no HTTP and no clock of its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any

from zithara_worker.messages import Outcome, OutcomeKind
from zithara_worker.monitor.fleet import BUCKETS_MS as BUCKETS_MS

MINUTES_KEPT = 60


class Stats:
    """Counters by minute and topic. `utc`: seconds since the epoch."""

    def __init__(self, utc: Callable[[], float]) -> None:
        self._utc = utc
        self._lock = Lock()
        self._minutes: OrderedDict[int, dict[str, dict[str, Any]]] = OrderedDict()

    def count(self, topic: str, outcome: Outcome, *, superseded: int = 0) -> None:
        """One settled message. `superseded`: how many older ones it stands for; only its delivery completes them."""
        minute = int(self._utc() // 60)
        with self._lock:
            topics = self._minutes.get(minute)
            if topics is None:
                topics = self._minutes[minute] = {}
                while len(self._minutes) > MINUTES_KEPT:
                    self._minutes.popitem(last=False)
            counts = topics.get(topic)
            if counts is None:
                counts = topics[topic] = {"outcomes": {}, "superseded": 0, "buckets": [0] * (len(BUCKETS_MS) + 1)}
            kind = outcome.kind.value
            counts["outcomes"][kind] = counts["outcomes"].get(kind, 0) + 1
            if outcome.kind is OutcomeKind.DELIVERED:
                counts["superseded"] += superseded
            if outcome.duration_ms is not None:
                counts["buckets"][bisect_left(BUCKETS_MS, outcome.duration_ms)] += 1

    def minutes(self) -> dict[str, Any]:
        """{minute since the epoch: {topic: {"outcomes": {kind: n}, "superseded": n, "buckets": [n, ...]}}}"""
        with self._lock:
            return {
                str(minute): {
                    topic: {**counts, "outcomes": dict(counts["outcomes"]), "buckets": list(counts["buckets"])}
                    for topic, counts in topics.items()
                }
                for minute, topics in self._minutes.items()
            }
