"""What the status page and the queue metrics look at: the fleet as the shop's database shows it, at one moment.

Reads only, through a session of its own that is open just for the look, and seldom: counting a long backlog costs time.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

from zithara_worker.database.session import Database
from zithara_worker.errors import ZitharaWorkerError
from zithara_worker.monitor import fleet
from zithara_worker.monitor.fleet import BUCKETS_MS
from zithara_worker.queue import operator
from zithara_worker.queue.queues import queues_present
from zithara_worker.queue.statuses import Status

log = logging.getLogger(__name__)

#: Seconds between two looks, at least; between two samples of the backlog. Looking may take this share of the time.
LOOK_SECONDS = 10.0
SAMPLE_SECONDS = 30.0
LOOK_SHARE = 0.02
LOG_SECONDS = 60.0
#: So long a request waits for a look under way.
PATIENCE_SECONDS = 2.0
MINUTES = 60
#: A new message that waits for so long means that its queue does not keep up; the alert ZitharaWorkerQueueOld as well.
AGED_SECONDS = 900.0
#: The statuses that are counted; completed messages are not.
COUNTED = (Status.NEW, Status.IN_PROGRESS, Status.RETRY_REQUIRED, Status.ERROR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """One topic's queue. Ages and times in seconds from the look."""

    topic: str
    name: str
    counts: Mapping[Status, int]
    oldest_ages: Mapping[Status, float]
    next_retry_seconds: float | None
    #: Living workers that serve it
    workers: int = 0
    paused_by: str = ""
    pause_reason: str = ""

    @property
    def pending(self) -> int:
        return self.counts.get(Status.NEW, 0) + self.counts.get(Status.RETRY_REQUIRED, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Minute:
    """What the whole fleet did in one minute, one topic or all of them. `buckets`: responses by time (BUCKETS_MS).

    `done`: delivered and skipped; `superseded`: completed along with a newer snapshot.
    """

    done: int = 0
    superseded: int = 0
    retried: int = 0
    failed: int = 0
    buckets: tuple[int, ...] = ()

    @property
    def failure_share(self) -> float | None:
        """Of the messages with a result, those that failed, for now or for good; None without any."""
        tried = self.done + self.retried + self.failed
        return (self.retried + self.failed) / tried if tried else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    id: str
    host: str
    pid: int
    version: str
    topics: tuple[str, ...]
    age_seconds: float
    silent_seconds: float
    in_flight: int
    metrics_address: str | None
    alive: bool = True
    #: Target -> breaker state, as the worker last told; target -> why it opened
    breakers: Mapping[str, str] = field(default_factory=dict)
    why: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """`now_utc`: the database's clock. `minutes`: (minute since the epoch, topic) -> what happened."""

    now_utc: float
    queues: tuple[Queue, ...]
    workers: tuple[Worker, ...]
    minutes: Mapping[tuple[int, str], Minute]
    took_seconds: float = 0.0


def look(database: Database, overrides: Mapping[str, str]) -> Sight:
    """All of the module's queues, whichever of them this worker serves; those that do not exist are left out.

    `overrides`: topic -> queue name, as configured. Raises DatabaseUnavailable; ShopError when there is no queue.
    """
    rows, _ = queues_present(database, overrides)
    ids = [row.queue_id for row in rows]
    now = fleet.now_utc(database)
    counts = fleet.count_by_status(database, ids)
    groups = fleet.count_groups(database, ids)
    paused = operator.paused(database)
    seen = fleet.workers(database)
    living = fleet.living_by_topic(seen, now)
    queues = []
    for row in rows:
        of_queue = {status: counts.get((row.queue_id, status)) for status in COUNTED}
        due = groups[row.queue_id].next_due_utc if row.queue_id in groups else None
        pause = paused.get(row.topic)
        queues.append(
            Queue(
                topic=row.topic,
                name=row.name,
                counts={status: each.messages if each else 0 for status, each in of_queue.items()},
                oldest_ages={
                    status: max(0.0, now - each.oldest_utc)
                    for status, each in of_queue.items()
                    if each and each.oldest_utc is not None
                },
                next_retry_seconds=None if due is None else max(0.0, due - now),
                workers=living[row.topic],
                paused_by=pause.paused_by if pause else "",
                pause_reason=pause.reason if pause else "",
            )
        )
    workers = tuple(
        Worker(
            id=each.id,
            host=each.host,
            pid=each.pid,
            version=each.version,
            topics=each.topics,
            age_seconds=max(0.0, now - each.started_utc),
            silent_seconds=max(0.0, now - each.last_seen_utc),
            in_flight=each.in_flight,
            metrics_address=each.metrics_address,
            alive=now - each.last_seen_utc < fleet.DEAD_AFTER_SECONDS,
            breakers=_told(each.state, "breaker"),
            why=_told(each.state, "why"),
        )
        for each in seen
    )
    return Sight(now_utc=now, queues=tuple(queues), workers=workers, minutes=_minutes([each.minutes for each in seen]))


def _told(state: Mapping[str, Any], what: str) -> dict[str, str]:
    """Target -> what a worker wrote of it; nothing where another version wrote something else, or nothing."""
    return {str(target): str(each[what]) for target, each in state.items() if isinstance(each, dict) and each.get(what)}


def _minutes(of_workers: Sequence[Mapping[str, Any]]) -> dict[tuple[int, str], Minute]:
    """Adds up what the workers wrote (`worker.stats`); what another version wrote differently is left out."""
    kinds: defaultdict[tuple[int, str], defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    buckets: dict[tuple[int, str], list[int]] = {}
    for minutes in of_workers:
        for minute, topics in minutes.items():
            try:
                for topic, counts in topics.items():
                    place = (int(minute), str(topic))
                    if len(counts["buckets"]) != len(BUCKETS_MS) + 1:
                        continue
                    for kind, count in counts["outcomes"].items():
                        kinds[place][str(kind)] += int(count)
                    kinds[place]["superseded"] += int(counts["superseded"])
                    buckets[place] = added(buckets.get(place, ()), [int(count) for count in counts["buckets"]])
            except (AttributeError, KeyError, TypeError, ValueError):
                continue
    return {
        place: Minute(
            done=of_kind["delivered"] + of_kind["skipped"],
            superseded=of_kind["superseded"],
            retried=of_kind["retry"],
            failed=of_kind["failed"],
            buckets=tuple(buckets.get(place, ())),
        )
        for place, of_kind in kinds.items()
    }


def added(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip_longest(one, other, fillvalue=0)]


def summed(minutes: Sequence[Minute]) -> Minute:
    buckets: list[int] = []
    for each in minutes:
        buckets = added(buckets, each.buckets)
    return Minute(
        done=sum(each.done for each in minutes),
        superseded=sum(each.superseded for each in minutes),
        retried=sum(each.retried for each in minutes),
        failed=sum(each.failed for each in minutes),
        buckets=tuple(buckets),
    )


def percentile(counts: Sequence[int], share: float) -> float | None:
    """The response time (ms) below which `share` (0 to 1) of the counted lie, evenly spread within a bucket.

    None without any. What lies above the last bound is said to be at it. Ten answers of 50 to 100 ms: a median of 75.
    """
    wanted = sum(counts) * share
    if not wanted:
        return None
    below = 0
    low = 0.0
    for high, here in zip(BUCKETS_MS, counts, strict=False):
        if here and below + here >= wanted:
            return low + (high - low) * (wanted - below) / here
        below += here
        low = high
    return low


class Watch:
    """Keeps the last sight, and the backlog by minute for the last hour. A thread of its own looks: a database that
    does not answer keeps nobody waiting.

    `open_database` makes a session that is not connected yet; `overrides` tells the names of queues that are not the
    module's, None before the first connection.
    """

    def __init__(
        self,
        open_database: Callable[[], Database],
        overrides: Callable[[], Mapping[str, str] | None],
        *,
        monotonic: Callable[[], float],
    ) -> None:
        self._open_database = open_database
        self._overrides = overrides
        self._monotonic = monotonic
        self._changed = threading.Condition()
        # Guarded by the condition's lock.
        self._wanted = False
        self._stopping = False
        self._sight: Sight | None = None
        self._problem: str | None = "nothing was looked at yet"
        self._next_at = 0.0
        self._backlog: OrderedDict[int, dict[str, int]] = OrderedDict()
        self._complain_at = 0.0
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Looks twice a minute, whether anybody asks or not: the chart of the backlog needs it."""
        self._thread.start()

    def close(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(1.0)

    def latest(self) -> tuple[Sight | None, str | None]:
        """The last sight, some ten seconds old at most unless counting takes long; and why there is no newer one."""
        with self._changed:
            if self._monotonic() >= self._next_at and self._thread.is_alive():
                self._wanted = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._wanted or self._stopping, PATIENCE_SECONDS)
            return self._sight, self._problem

    def backlog(self) -> dict[int, dict[str, int]]:
        """{minute since the epoch: {topic: messages NEW or waiting for a retry}}, at the end of each minute."""
        with self._changed:
            return {minute: dict(topics) for minute, topics in self._backlog.items()}

    def _run(self) -> None:
        while True:
            sight, problem, took = self._look()
            with self._changed:
                self._wanted = False
                self._problem = problem
                pause = LOOK_SECONDS if self._overrides() is not None else 0.5
                self._next_at = self._monotonic() + max(pause, took / LOOK_SHARE)
                if sight is not None:
                    self._sight = replace(sight, took_seconds=took)
                    self._backlog[int(sight.now_utc // 60)] = {each.topic: each.pending for each in sight.queues}
                    while len(self._backlog) > MINUTES:
                        self._backlog.popitem(last=False)
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._wanted or self._stopping, SAMPLE_SECONDS)
                if self._stopping:
                    return

    def _look(self) -> tuple[Sight | None, str | None, float]:
        overrides = self._overrides()
        if overrides is None:
            return None, "the database is not available yet", 0.0
        before = self._monotonic()
        database = self._open_database()
        try:
            return look(database, overrides), None, self._monotonic() - before
        except ZitharaWorkerError as error:
            if before >= self._complain_at:
                self._complain_at = before + LOG_SECONDS
                log.warning("the queues cannot be counted", extra={"event": "watch_failed", "detail": str(error)})
            return None, str(error), 0.0
        finally:
            database.close()
