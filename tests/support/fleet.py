"""Values of the read model, and rows of zithara_worker, with defaults."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from zithara_worker.database.session import Database
from zithara_worker.messages import Outcome, OutcomeKind
from zithara_worker.monitor.fleet import CONSUME, FleetStatus, TopicStatus, WorkerStatus
from zithara_worker.monitor.rates import Minute, history, rates
from zithara_worker.monitor.reconciliations import Reconciliation
from zithara_worker.monitor.registry import Identity, MinuteCounters, Registry
from zithara_worker.topics import TOPIC_ORDER, TOPICS

NOW = 1_800_000_000.0


def topic_status(*, minutes: tuple[Minute, ...] = (), **changes: Any) -> TopicStatus:
    """Of a topic with an empty queue and one worker, started an hour ago, that did `minutes`."""
    hour = history(minutes, NOW)
    given: dict[str, Any] = {
        "topic": TOPIC_ORDER,
        "queue": "zithara_order_queue",
        "new": 0,
        "in_progress": 0,
        "retry": 0,
        "error": 0,
        "complete": None,
        "oldest_new_seconds": None,
        "oldest_in_progress_seconds": None,
        "oldest_retry_seconds": None,
        "oldest_error_seconds": None,
        "retry_due_seconds": None,
        "workers": 1,
        "groups_in_flight": 0,
        "groups_waiting": 0,
        "leases_expired": 0,
        "rates": rates(hour, NOW, NOW - 3600),
        "drain_seconds": None,
        "pause": None,
        "uncompared": False,
        "relays": 0,
        "relay_missing": False,
        "rabbitmq": None,
        "aside": 0,
        "history": hour,
    }
    return TopicStatus(**{**given, **changes})


def worker_status(**changes: Any) -> WorkerStatus:
    given: dict[str, Any] = {
        "id": "w1",
        "host": "shop1",
        "pid": 4711,
        "version": "0.1.0",
        "topics": (TOPIC_ORDER,),
        "started_utc": NOW - 7200,
        "last_seen_seconds": 2.0,
        "alive": True,
        "in_flight": 16,
        "held": {},
        "metrics_address": "127.0.0.1:9209",
        "targets": {"api": {"breaker": "closed"}},
    }
    return WorkerStatus(**{**given, **changes})


def fleet_status(
    topics: tuple[TopicStatus, ...] = (),
    workers: tuple[WorkerStatus, ...] = (),
    relays: tuple[WorkerStatus, ...] = (),
    **changes: Any,
) -> FleetStatus:
    hour = history((minute for topic in topics for minute in topic.history), NOW)
    given: dict[str, Any] = {"at_utc": NOW, "rates": rates(hour, NOW, NOW - 3600), "history": hour}
    return FleetStatus(topics=topics, workers=workers, relays=relays, **{**given, **changes})


def reconciliation(kind: str = "orders", **changes: Any) -> Reconciliation:
    """Found an hour ago: 1,000 orders, of which 12 are missing, 3 stale and 1 has failed."""
    counts = {"complete": 984, "waiting": 0, "missing": 12, "stale": 3, "failed": 1}
    result = {"finished_utc": NOW - 3600, "counts": counts}
    given: dict[str, Any] = {"started_utc": NOW - 3660, "finished_utc": NOW - 3600, "result": result}
    return Reconciliation(kind=kind, **{**given, **changes})


def register(
    database: Database,
    worker_id: str = "shop1-7-abcd",
    *,
    role: str = CONSUME,
    topics: Sequence[str] = TOPICS,
    **told: Any,
) -> Registry:
    """A worker or relay that has just written its row."""
    identity = Identity(id=worker_id, host="shop1", pid=7, version="1.0", topics=topics, role=role)
    registry = Registry(database, identity)
    registry.update(**{"in_flight": 0, "metrics_address": None, "state": {}, "minutes": {}, **told})
    return registry


def counted(outcomes: dict[OutcomeKind, int], *, topic: str = TOPIC_ORDER, ms: float = 75.0) -> dict[str, Any]:
    """What a worker writes that had these outcomes in this minute."""
    counters = MinuteCounters(time.time)
    for kind, number in outcomes.items():
        for _ in range(number):
            counters.count(topic, Outcome(kind=kind, duration_ms=ms))
    return counters.minutes()
