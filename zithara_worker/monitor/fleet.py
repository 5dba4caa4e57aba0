"""The one read model: queues, message groups, workers, relays and pauses, from the shop's database. Reads only.

The same on every host: `status`, the status page, /metrics and `doctor` show these values. Times are seconds since the
epoch on the database's clock, which is the clock of leases and retries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from zithara_worker.database.session import Database
from zithara_worker.delivery.down import targets_of
from zithara_worker.monitor.rates import Minute, Rates, drain_seconds, history, rates, read_minutes, total
from zithara_worker.monitor.reconciliations import Reconciliation, json_object, read_results
from zithara_worker.queue.failures import FailureCount, newest_by_reason
from zithara_worker.queue.operator import Pause, paused
from zithara_worker.queue.queues import QueueRow, queues_present
from zithara_worker.queue.statuses import Status
from zithara_worker.topics import TOPIC_TABLE, TOPICS

#: Seconds without an update of its row after which a worker counts as dead; it updates the row every 5 s.
DEAD_AFTER_SECONDS = 30.0
#: Rows of workers that are read at most, the last seen ones.
WORKERS = 1000
#: The roles in column `role`.
CONSUME, RELAY = "consume", "relay"
#: Names in column `state`, whose other names are a worker's targets. Each is an attribute of `WorkerStatus`.
UNCOMPARED = "uncompared"
RABBITMQ = "rabbitmq"
RATE_LIMITED = "rate_limited"
SHOP_DISABLED = "shop_disabled"
AUDIT_PROBLEM = "audit_problem"
TURN_PROBLEM = "turn_problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    messages: int = 0
    #: When the oldest of them was last changed; Magento keeps no time of creation.
    oldest_utc: float | None = None

    def age_seconds(self, now: float) -> float | None:
        return None if self.oldest_utc is None else max(0.0, now - self.oldest_utc)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Groups:
    """The message groups of a queue that are in flight or wait for a retry."""

    in_flight: int = 0
    waiting: int = 0
    expired: int = 0
    next_due_utc: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayedQueue:
    """What a relay wrote of a topic's queue in RabbitMQ."""

    #: "active"; "paused" (enough messages are pending in the database); "waiting" (for RabbitMQ, the queue, a right, or
    #: the end of another consumer); "standby" (another relay is active); "stopped" (by the database)
    state: str = "standby"
    #: Why it takes no messages at present, "" where the state says it
    why: str = ""
    #: Messages in it that no consumer holds, and its consumers, this relay included; None: not known
    waiting: int | None = None
    consumers: int | None = None

    @property
    def active(self) -> bool:
        """Whether this relay is the one that serves the queue."""
        return self.state in ("active", "paused")


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
    #: Groups whose oldest message waits for its retry
    groups_waiting: int
    #: Leases that their worker has not renewed: any worker takes these over
    leases_expired: int
    rates: Rates
    #: At the present rate; None: no worker delivers at present, none has for a minute, or the topic is paused
    drain_seconds: float | None
    pause: Pause | None
    #: Whether a worker sends each message of it, because others deliver too and do not record what Zithara accepted
    uncompared: bool
    #: Living relays that serve it
    relays: int
    #: A relay served it within a day and ended without stopping in order, and no living one has taken its place
    relay_missing: bool
    #: Messages that wait in RabbitMQ, as a living relay counts them; None: not known
    rabbitmq: int | None
    #: Messages from RabbitMQ that the queue cannot hold: kept aside
    aside: int
    history: tuple[Minute, ...] = field(repr=False)

    @property
    def skipped(self) -> Mapping[str, int]:
        """Messages that completed without a request within the last hour, by reason, the most first."""
        return dict(Counter(total(self.history).skipped).most_common())

    @property
    def pending(self) -> int:
        """Messages that a worker may still claim."""
        return self.new + self.retry


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetReport:
    """What a worker last wrote of a target: its breaker, and the pause that the target asked for."""

    target: str
    breaker: str
    #: The last failure while the breaker is not closed
    why: str
    next_probe_seconds: float | None
    throttled_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """A row of zithara_worker, of a worker or a relay, or the leases of a worker whose row is gone."""

    id: str
    host: str
    pid: int = 0
    role: str = CONSUME
    version: str = ""
    topics: tuple[str, ...] = ()
    started_utc: float | None = None
    last_seen_seconds: float
    alive: bool
    #: It stopped in order, and only its minutes count
    stopped: bool = False
    #: False: it holds leases and has no row of its own any more
    registered: bool = True
    in_flight: int = 0
    #: Topic -> messages leased to it
    held: Mapping[str, int]
    metrics_address: str | None = None
    #: Target -> what the worker wrote of it; another version may have written something else
    targets: Mapping[str, Any] = field(default_factory=dict)
    #: [worker] rate_limit bounds its pace
    is_rate_limited: bool = False
    #: It takes no messages, because the shop has switched Zithara off
    shop_disabled: bool = False
    #: Why it takes no messages: the audit file, which is required, cannot be written. "": it can
    audit_problem: str = ""
    #: Why it can neither take nor settle messages though the database answers. "": it can
    turn_problem: str = ""
    #: Topics of which it sends each message, because others deliver too and record nothing
    uncompared: tuple[str, ...] = ()
    #: Of a relay: topic -> its queue in RabbitMQ
    rabbitmq: Mapping[str, RelayedQueue] = field(default_factory=dict)
    #: What it did, as `registry.MinuteCounters.minutes` wrote it
    minutes: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def target_reports(self) -> Iterator[TargetReport]:
        for target, report in self.targets.items():
            if isinstance(report, dict):
                yield TargetReport(
                    target=target,
                    breaker=str(report.get("breaker", "closed")),
                    why=str(report.get("why") or ""),
                    next_probe_seconds=_number(report.get("next_probe_seconds")),
                    throttled_seconds=_number(report.get("throttled_seconds")) or 0.0,
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStatus:
    at_utc: float
    topics: tuple[TopicStatus, ...]
    workers: tuple[WorkerStatus, ...]
    relays: tuple[WorkerStatus, ...] = ()
    #: The newest failed messages by topic and reason
    failures: tuple[FailureCount, ...] = ()
    #: All topics together
    rates: Rates
    history: tuple[Minute, ...] = field(repr=False)
    #: How long reading it took
    read_seconds: float = 0.0
    #: The last result of `reconcile`, of each kind that was ever compared
    reconciliations: tuple[Reconciliation, ...] = ()

    @property
    def alive(self) -> list[WorkerStatus]:
        """The living workers, without relays."""
        return [worker for worker in self.workers if worker.alive]


def read_fleet(database: Database, overrides: Mapping[str, str], *, full: bool = False) -> FleetStatus:
    """Reads the status of all topics. `overrides`: topic -> queue name, as configured. `full` counts completed messages
    too, which reads every row of the queues: some seconds for a million.

    Raises ShopError when the shop has none of the queues, DatabaseUnavailable.
    """
    queues, _ = queues_present(database, overrides)
    by_topic = {queue.topic: queue for queue in queues}
    ids = [queue.queue_id for queue in queues]
    now = now_utc(database)
    counts = count_by_status(database, ids)
    groups = _count_groups(database, ids)
    complete = _count_complete(database, ids) if full else {}
    pauses = paused(database)
    processes = read_workers(database, queues, now)
    workers = [each for each in processes if each.role != RELAY and not each.stopped]
    relays = [each for each in processes if each.role == RELAY and not each.stopped]
    living = living_by_topic(workers)
    aside = {str(row["topic_name"]): int(row["messages"]) for row in database.rows("relay_aside_counts")}
    # Also of processes that stopped or died within the hour.
    minutes = read_minutes(each.minutes for each in processes)
    started = min((worker.started_utc for worker in processes if worker.started_utc is not None), default=now)
    topics = []
    for topic in TOPICS:
        queue = by_topic.get(topic)
        queue_id = None if queue is None else queue.queue_id
        hour = history(minutes.get(topic, ()), now)
        topics.append(
            _topic_status(
                topic,
                queue,
                now,
                counts={status: counts.get((queue_id, status), Count()) for status in Status},
                groups=groups.get(queue_id, _Groups()),
                complete=complete.get(queue_id, 0) if full and queue is not None else None,
                workers=living[topic],
                delivers=any(_delivers(worker, topic) for worker in workers),
                relays=[relay for relay in relays if topic in relay.topics],
                aside=aside.get(topic, 0),
                pause=pauses.get(topic),
                uncompared=any(topic in worker.uncompared for worker in workers if worker.alive),
                hour=hour,
                recent=rates(hour, now, started),
            )
        )
    hour = history((each for topic in TOPICS for each in minutes.get(topic, ())), now)
    return FleetStatus(
        at_utc=now,
        topics=tuple(topics),
        workers=tuple(workers),
        relays=tuple(relays),
        failures=tuple(newest_by_reason(database, queues)),
        rates=rates(hour, now, started),
        history=hour,
        reconciliations=tuple(read_results(database)),
    )


def _topic_status(
    topic: str,
    queue: QueueRow | None,
    now: float,
    *,
    counts: Mapping[Status, Count],
    groups: _Groups,
    complete: int | None,
    workers: int,
    delivers: bool,
    relays: Sequence[WorkerStatus],
    aside: int,
    pause: Pause | None,
    uncompared: bool,
    hour: tuple[Minute, ...],
    recent: Rates,
) -> TopicStatus:
    living = [relay for relay in relays if relay.alive]
    waiting = [
        relayed.waiting
        for relay in living
        if (relayed := relay.rabbitmq.get(topic)) is not None and relayed.waiting is not None
    ]
    # An estimate by what flowed some minutes ago would promise an end to a backlog that grows.
    flows = delivers and pause is None and any(minute.done for minute in hour[-2:])
    backlog = sum(counts[each].messages for each in (Status.NEW, Status.RETRY_REQUIRED, Status.IN_PROGRESS))
    return TopicStatus(
        topic=topic,
        queue=None if queue is None else queue.name,
        new=counts[Status.NEW].messages,
        in_progress=counts[Status.IN_PROGRESS].messages,
        retry=counts[Status.RETRY_REQUIRED].messages,
        error=counts[Status.ERROR].messages,
        complete=complete,
        oldest_new_seconds=counts[Status.NEW].age_seconds(now),
        oldest_in_progress_seconds=counts[Status.IN_PROGRESS].age_seconds(now),
        oldest_retry_seconds=counts[Status.RETRY_REQUIRED].age_seconds(now),
        oldest_error_seconds=counts[Status.ERROR].age_seconds(now),
        retry_due_seconds=None if groups.next_due_utc is None else max(0.0, groups.next_due_utc - now),
        workers=workers,
        groups_in_flight=groups.in_flight,
        groups_waiting=groups.waiting,
        leases_expired=groups.expired,
        rates=recent,
        drain_seconds=None if queue is None else drain_seconds(backlog, recent.done_per_minute if flows else 0.0),
        pause=pause,
        uncompared=uncompared,
        relays=len(living),
        relay_missing=relay_missing(topic, relays),
        rabbitmq=max(waiting, default=None),
        aside=aside,
        history=hour,
    )


def now_utc(database: Database) -> float:
    """The database's clock."""
    return float(database.rows("clock")[0]["now"])


def count_by_status(database: Database, queue_ids: Collection[int]) -> dict[tuple[int | None, Status], Count]:
    """(queue id, status) -> messages, for NEW, IN_PROGRESS, RETRY_REQUIRED and ERROR; completed ones are not read."""
    statement = "queue_counts_indexed" if database.has_pending_index else "queue_counts"
    return {
        (int(row["queue_id"]), Status(int(row["status"]))): Count(
            messages=int(row["messages"]), oldest_utc=_number(row["oldest"])
        )
        for row in database.rows(statement, queue_ids=sorted(queue_ids))
    }


def _count_complete(database: Database, queue_ids: Collection[int]) -> dict[int | None, int]:
    rows = database.rows("complete_counts", queue_ids=sorted(queue_ids))
    return {int(row["queue_id"]): int(row["messages"]) for row in rows}


def _count_groups(database: Database, queue_ids: Collection[int]) -> dict[int | None, _Groups]:
    return {
        int(row["queue_id"]): _Groups(
            in_flight=int(row["in_flight"]),
            waiting=int(row["waiting"]),
            expired=int(row["expired"]),
            next_due_utc=_number(row["next_due"]),
        )
        for row in database.rows("group_counts", queue_ids=sorted(queue_ids))
    }


# ---------------------------------------------------------------- workers


def read_workers(database: Database, queues: Sequence[QueueRow], now: float) -> list[WorkerStatus]:
    """The workers and relays that were seen within a day, WORKERS of them at most, by host and start; then those that
    only hold leases."""
    topics = {queue.queue_id: queue.topic for queue in queues}
    held: dict[str, dict[str, int]] = {}
    leased_until: dict[str, float] = {}
    for row in database.rows("leases_by_worker"):
        worker_id, queue_id = str(row["worker_id"]), int(row["queue_id"])
        held.setdefault(worker_id, {})[topics.get(queue_id, f"queue {queue_id}")] = int(row["messages"])
        leased_until[worker_id] = max(leased_until.get(worker_id, 0.0), _number(row["lease_until"]) or 0.0)
    found = []
    rows = database.rows("workers", limit=WORKERS)
    for row in sorted(rows, key=lambda row: (str(row["host"]), float(row["started_at"]), str(row["id"]))):
        state = dict(json_object(row["state"]))
        uncompared = state.pop(UNCOMPARED, ())
        found.append(
            WorkerStatus(
                id=str(row["id"]),
                host=str(row["host"]),
                pid=int(row["pid"]),
                role=str(row["role"]),
                version=str(row["version"]),
                topics=tuple(topic for topic in str(row["topics"]).split(",") if topic),
                started_utc=float(row["started_at"]),
                last_seen_seconds=max(0.0, now - float(row["last_seen_at"])),
                alive=bool(row["topics"]) and now - float(row["last_seen_at"]) < DEAD_AFTER_SECONDS,
                stopped=not row["topics"],
                in_flight=int(row["in_flight"]),
                held=held.pop(str(row["id"]), {}),
                metrics_address=row["metrics_address"],
                is_rate_limited=bool(state.pop(RATE_LIMITED, False)),
                shop_disabled=bool(state.pop(SHOP_DISABLED, False)),
                audit_problem=str(state.pop(AUDIT_PROBLEM, "")),
                turn_problem=str(state.pop(TURN_PROBLEM, "")),
                uncompared=tuple(map(str, uncompared)) if isinstance(uncompared, list) else (),
                rabbitmq=_relayed_queues(state.pop(RABBITMQ, None)),
                targets=state,
                minutes=json_object(row["minutes"]),
            )
        )
    for worker_id in sorted(held):
        # It was killed, and its row was deleted or never written. When its leases end, others take its messages over.
        until = leased_until[worker_id]
        found.append(
            WorkerStatus(
                id=worker_id,
                host=worker_id.rsplit("-", 2)[0],
                last_seen_seconds=max(0.0, now - until),
                alive=until > now,
                registered=False,
                held=held[worker_id],
            )
        )
    return found


def _relayed_queues(value: Any) -> Mapping[str, RelayedQueue]:
    if not isinstance(value, dict):
        return {}
    return {
        topic: RelayedQueue(
            state=str(told.get("state") or "standby"),
            why=str(told.get("why") or ""),
            waiting=told["waiting"] if isinstance(told.get("waiting"), int) else None,
            consumers=told["consumers"] if isinstance(told.get("consumers"), int) else None,
        )
        for topic, told in value.items()
        if isinstance(told, dict)
    }


def _delivers(worker: WorkerStatus, topic: str) -> bool:
    """Whether nothing that the worker wrote of itself keeps it from delivering messages of this topic."""
    if not worker.alive or topic not in worker.topics:
        return False
    targets = targets_of(TOPIC_TABLE[topic].target, TOPIC_TABLE[topic].path)
    is_open = any(report.target in targets and report.breaker != "closed" for report in worker.target_reports)
    return not (is_open or worker.shop_disabled or worker.audit_problem or worker.turn_problem)


def living_by_topic(processes: Iterable[WorkerStatus]) -> Counter[str]:
    """Topic -> living workers that serve it, of the whole fleet; 0 for a topic that none serves."""
    return Counter(topic for each in processes if each.alive and each.role == CONSUME for topic in set(each.topics))


def relay_missing(topic: str, relays: Iterable[WorkerStatus]) -> bool:
    """Whether every relay of the topic was killed or has died; those that stopped in order name no topics."""
    alive = [relay.alive for relay in relays if topic in relay.topics]
    return bool(alive) and not any(alive)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float | Decimal) else None
