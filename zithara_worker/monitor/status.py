"""How the queues and the fleet are doing, as one value: from the database alone, so it is the same on every host."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from zithara_worker.database.session import Database
from zithara_worker.messages import TOPICS, OutcomeKind
from zithara_worker.monitor import fleet
from zithara_worker.monitor.fleet import BUCKETS_MS, DEAD_AFTER_SECONDS, Count, Groups, Held, WorkerRow
from zithara_worker.queue import operator
from zithara_worker.queue.queues import QueueRow, queues_present
from zithara_worker.queue.statuses import Status
from zithara_worker.units import iso

#: Minutes, the running one included, over which rates and response times are taken.
RATE_MINUTES = 5
#: Minutes of history that are shown.
HISTORY_MINUTES = 60

_DONE = (OutcomeKind.DELIVERED.value, OutcomeKind.SKIPPED.value)
_TROUBLE = (OutcomeKind.RETRY.value, OutcomeKind.FAILED.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Minute:
    """What the fleet did in one minute. `minute`: since the epoch."""

    minute: int
    done: int = 0
    retried: int = 0
    failed: int = 0
    p95_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Of the last RATE_MINUTES. `done`: delivered, skipped and superseded messages."""

    done_per_minute: float
    #: Share of attempts that failed, for now or for good; None without attempts
    failure_rate: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicStatus:
    """Ages in seconds; Magento keeps no time of creation, so an age counts from the last change of the row."""

    topic: str
    #: None: the shop has no queue for the topic
    queue: str | None
    new: int
    in_progress: int
    retry: int
    error: int
    #: None: not counted
    complete: int | None
    oldest_new_seconds: float | None
    oldest_in_progress_seconds: float | None
    oldest_retry_seconds: float | None
    oldest_error_seconds: float | None
    #: Until the next retry is due; 0 = now
    retry_due_seconds: float | None
    #: Living workers that serve it
    workers: int
    groups_in_flight: int
    groups_waiting: int
    leases_expired: int
    rates: Rates
    #: At the present rate; None: nothing is being delivered
    drain_seconds: float | None
    pause: operator.Pause | None
    history: tuple[Minute, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    id: str
    host: str
    pid: int
    version: str
    topics: tuple[str, ...]
    started_utc: float | None
    last_seen_seconds: float
    alive: bool
    #: False: it holds leases and has no row of its own any more
    registered: bool
    in_flight: int
    #: Topic -> messages leased to it
    held: Mapping[str, int]
    metrics_address: str | None
    #: "api" and "webhook" -> breaker and throttle, as the worker says
    targets: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStatus:
    at_utc: float
    topics: tuple[TopicStatus, ...]
    workers: tuple[WorkerStatus, ...]
    #: All topics together
    rates: Rates
    history: tuple[Minute, ...] = field(repr=False)

    @property
    def alive(self) -> list[WorkerStatus]:
        return [worker for worker in self.workers if worker.alive]


def status(
    database: Database, overrides: Mapping[str, str], *, full: bool = False, topics: Sequence[str] = TOPICS
) -> FleetStatus:
    """Reads everything. `full` counts completed messages too, which reads every row of the queues.

    Raises ShopError when the shop has none of the queues, DatabaseUnavailable.
    """
    queues, missing = queues_present(database, overrides, topics)
    ids = [queue.queue_id for queue in queues]
    now = fleet.now_utc(database)
    counts = fleet.count_by_status(database, ids)
    groups = fleet.count_groups(database, ids)
    complete = fleet.count_complete(database, ids) if full else {}
    paused = operator.paused(database)
    rows = fleet.workers(database)
    held = fleet.held_by_worker(database)
    living = fleet.living_by_topic(rows, now)
    by_topic = [
        _topic_status(
            queue,
            now,
            counts=counts,
            groups=groups.get(queue.queue_id, Groups()),
            complete=complete.get(queue.queue_id, 0) if full else None,
            pause=paused.get(queue.topic),
            workers=living[queue.topic],
            rows=rows,
        )
        for queue in queues
    ]
    by_topic += [_absent(topic, now, paused.get(topic), living[topic]) for topic in missing]
    return FleetStatus(
        at_utc=now,
        topics=tuple(sorted(by_topic, key=lambda each: list(topics).index(each.topic))),
        workers=tuple(_workers(rows, held, {queue.queue_id: queue.topic for queue in queues}, now)),
        rates=_rates(rows, topics, now),
        history=_history(rows, topics, now),
    )


def as_json(found: FleetStatus) -> dict[str, Any]:
    """What `status --json` prints: times as ISO 8601, the rest as it is."""
    topics = []
    for topic in found.topics:
        value = {**asdict(topic), **asdict(topic.rates), "history": _eventful(topic.history)}
        del value["rates"]
        value["paused"] = topic.pause is not None
        value["pause"] = topic.pause and {
            "by": topic.pause.paused_by,
            "since": iso(topic.pause.paused_at_utc),
            "reason": topic.pause.reason,
        }
        topics.append(value)
    workers = []
    for worker in found.workers:
        value = {**asdict(worker), "started_at": iso(worker.started_utc)}
        del value["started_utc"]
        workers.append(value)
    return {
        "at": iso(found.at_utc),
        "topics": topics,
        "workers": workers,
        "total": {
            **{name: sum(getattr(topic, name) for topic in found.topics) for name in ("new", "in_progress", "retry")},
            "error": sum(topic.error for topic in found.topics),
            "workers_alive": len(found.alive),
            **asdict(found.rates),
            "history": _eventful(found.history),
        },
    }


def _eventful(history: Sequence[Minute]) -> list[dict[str, Any]]:
    """Minutes in which nothing happened are left out."""
    return [asdict(minute) for minute in history if minute.done or minute.retried or minute.failed]


# ---------------------------------------------------------------- topics


def _topic_status(
    queue: QueueRow,
    now: float,
    *,
    counts: Mapping[tuple[int, Status], Count],
    groups: Groups,
    complete: int | None,
    pause: operator.Pause | None,
    workers: int,
    rows: Sequence[WorkerRow],
) -> TopicStatus:
    of = {status: counts.get((queue.queue_id, status), Count(messages=0, oldest_utc=None)) for status in Status}
    rates = _rates(rows, [queue.topic], now)
    backlog = of[Status.NEW].messages + of[Status.RETRY_REQUIRED].messages + of[Status.IN_PROGRESS].messages
    return TopicStatus(
        topic=queue.topic,
        queue=queue.name,
        new=of[Status.NEW].messages,
        in_progress=of[Status.IN_PROGRESS].messages,
        retry=of[Status.RETRY_REQUIRED].messages,
        error=of[Status.ERROR].messages,
        complete=complete,
        oldest_new_seconds=_age(of[Status.NEW], now),
        oldest_in_progress_seconds=_age(of[Status.IN_PROGRESS], now),
        oldest_retry_seconds=_age(of[Status.RETRY_REQUIRED], now),
        oldest_error_seconds=_age(of[Status.ERROR], now),
        retry_due_seconds=None if groups.next_due_utc is None else max(0.0, groups.next_due_utc - now),
        workers=workers,
        groups_in_flight=groups.in_flight,
        groups_waiting=groups.waiting,
        leases_expired=groups.expired,
        rates=rates,
        drain_seconds=_drain(backlog, rates.done_per_minute, paused=pause is not None),
        pause=pause,
        history=_history(rows, [queue.topic], now),
    )


def _absent(topic: str, now: float, pause: operator.Pause | None, workers: int) -> TopicStatus:
    return TopicStatus(
        topic=topic,
        queue=None,
        new=0,
        in_progress=0,
        retry=0,
        error=0,
        complete=None,
        oldest_new_seconds=None,
        oldest_in_progress_seconds=None,
        oldest_retry_seconds=None,
        oldest_error_seconds=None,
        retry_due_seconds=None,
        workers=workers,
        groups_in_flight=0,
        groups_waiting=0,
        leases_expired=0,
        rates=_rates([], [topic], now),
        drain_seconds=None,
        pause=pause,
        history=_history([], [topic], now),
    )


def _age(count: Count, now: float) -> float | None:
    return None if count.oldest_utc is None else max(0.0, now - count.oldest_utc)


def _drain(backlog: int, per_minute: float, *, paused: bool) -> float | None:
    if backlog == 0:
        return 0.0
    return None if paused or per_minute <= 0 else backlog / per_minute * 60


# ---------------------------------------------------------------- rates


def _rates(rows: Sequence[WorkerRow], topics: Collection[str], now: float) -> Rates:
    """`rows`: also of workers that have died since: what they did in these minutes, they did."""
    this_minute = int(now // 60)
    seconds = (RATE_MINUTES - 1) * 60 + now % 60
    started = min((row.started_utc for row in rows), default=now)
    seconds = max(1.0, min(seconds, now - started))
    outcomes: dict[str, int] = {}
    buckets = [0] * (len(BUCKETS_MS) + 1)
    superseded = 0
    for minute in range(this_minute - RATE_MINUTES + 1, this_minute + 1):
        for counts in _counts(rows, minute, topics):
            superseded += _number(counts.get("superseded"))
            _add(outcomes, buckets, counts)
    done = sum(outcomes.get(kind, 0) for kind in _DONE)
    trouble = sum(outcomes.get(kind, 0) for kind in _TROUBLE)
    return Rates(
        done_per_minute=round((done + superseded) * 60 / seconds, 2),
        failure_rate=round(trouble / (done + trouble), 4) if done + trouble else None,
        p50_ms=percentile(buckets, 0.50),
        p95_ms=percentile(buckets, 0.95),
        p99_ms=percentile(buckets, 0.99),
    )


def _history(rows: Sequence[WorkerRow], topics: Collection[str], now: float) -> tuple[Minute, ...]:
    this_minute = int(now // 60)
    history = []
    for minute in range(this_minute - HISTORY_MINUTES + 1, this_minute + 1):
        outcomes: dict[str, int] = {}
        buckets = [0] * (len(BUCKETS_MS) + 1)
        superseded = 0
        for counts in _counts(rows, minute, topics):
            superseded += _number(counts.get("superseded"))
            _add(outcomes, buckets, counts)
        history.append(
            Minute(
                minute=minute,
                done=sum(outcomes.get(kind, 0) for kind in _DONE) + superseded,
                retried=outcomes.get(OutcomeKind.RETRY.value, 0),
                failed=outcomes.get(OutcomeKind.FAILED.value, 0),
                p95_ms=percentile(buckets, 0.95),
            )
        )
    return tuple(history)


def _counts(rows: Iterable[WorkerRow], minute: int, topics: Collection[str]) -> Iterable[Mapping[str, Any]]:
    for row in rows:
        of_minute = row.minutes.get(str(minute))
        if isinstance(of_minute, dict):
            yield from (counts for topic, counts in of_minute.items() if topic in topics and isinstance(counts, dict))


def _add(outcomes: dict[str, int], buckets: list[int], counts: Mapping[str, Any]) -> None:
    """A worker of another version may count otherwise: what is not understood is left out."""
    kinds = counts.get("outcomes")
    if isinstance(kinds, dict):
        for kind, number in kinds.items():
            outcomes[kind] = outcomes.get(kind, 0) + _number(number)
    given = counts.get("buckets")
    if isinstance(given, list) and len(given) == len(buckets):
        for index, number in enumerate(given):
            buckets[index] += _number(number)


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def percentile(buckets: Sequence[int], share: float) -> float | None:
    """The response time (ms) below which `share` of the requests stayed, by straight lines within a bucket.

    Example: 10 requests of 50 to 100 ms have a median of 75. The last bucket has no end and counts as its beginning.
    """
    total = sum(buckets)
    if total == 0:
        return None
    wanted = share * total
    seen = 0
    for index, number in enumerate(buckets):
        if number and seen + number >= wanted:
            low = BUCKETS_MS[index - 1] if index else 0
            high = BUCKETS_MS[index] if index < len(BUCKETS_MS) else low
            return round(low + (high - low) * (wanted - seen) / number, 1)
        seen += number
    return float(BUCKETS_MS[-1])


# ---------------------------------------------------------------- workers


def _workers(
    rows: Sequence[WorkerRow], held: Mapping[str, Sequence[Held]], topics: Mapping[int, str], now: float
) -> list[WorkerStatus]:
    found = [
        WorkerStatus(
            id=row.id,
            host=row.host,
            pid=row.pid,
            version=row.version,
            topics=row.topics,
            started_utc=row.started_utc,
            last_seen_seconds=max(0.0, now - row.last_seen_utc),
            alive=now - row.last_seen_utc < DEAD_AFTER_SECONDS,
            registered=True,
            in_flight=row.in_flight,
            held=_held(held.get(row.id, ()), topics),
            metrics_address=row.metrics_address,
            targets=row.state,
        )
        for row in rows
    ]
    registered = {row.id for row in rows}
    for worker_id in sorted(held.keys() - registered):
        # Killed, and its row forgotten or never written: its leases end and others take its messages over.
        last = max((each.lease_until_utc or 0.0 for each in held[worker_id]), default=0.0)
        found.append(
            WorkerStatus(
                id=worker_id,
                host=worker_id.rsplit("-", 2)[0],
                pid=0,
                version="",
                topics=(),
                started_utc=None,
                last_seen_seconds=max(0.0, now - last),
                alive=last > now,
                registered=False,
                in_flight=0,
                held=_held(held[worker_id], topics),
                metrics_address=None,
                targets={},
            )
        )
    return found


def _held(leases: Iterable[Held], topics: Mapping[int, str]) -> dict[str, int]:
    return {topics.get(each.queue_id, f"queue {each.queue_id}"): each.messages for each in leases}
