"""Is the CRM complete? Compares the shop's orders, customers and carts with what Zithara accepted, and publishes what
is missing.

A run of one kind has two passes. The first judges every entity of the window in pages; the second, only if it is to
publish, goes over those that it found missing or stale, judges each anew, and puts a message on the queue. Nothing that
a run knows is needed by the next one: it can be stopped or killed at any time and run again.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from zithara_worker.completeness import records
from zithara_worker.completeness.compare import (
    PUBLISHABLE,
    SETTLED_SECONDS,
    Comparison,
    Judged,
    Process,
    Verdict,
)
from zithara_worker.completeness.pending import PendingMessages
from zithara_worker.database import locks
from zithara_worker.database.session import Database
from zithara_worker.errors import ZitharaWorkerError
from zithara_worker.queue.queues import QueueRow, store_message
from zithara_worker.shop.entities import EntityReader, ShopEntity

log = logging.getLogger(__name__)

#: Rows that one page of a comparison looks at.
PAGE = 500
#: Rows that a page looks at where most lie outside of the window.
WIDE_PAGE = 5000
#: Seconds after which the lock of a dead run is free, and between two renewals.
LEASE_SECONDS = 30.0
RENEW_SECONDS = 5.0
#: Seconds without any progress of the queue after which nothing more is published.
STUCK_SECONDS = 300.0
#: Seconds between two looks at the queue.
PAUSE_SECONDS = 0.1
#: Bytes of bodies beyond which an operator must say that he or she means it.
MANY_BYTES = 1_000_000_000
#: Entities of each class that a result names.
NAMED = 10


class AlreadyAtWork(ZitharaWorkerError):
    """Another run of the same kind is at work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Entities with `since` <= updated_at < `until`; 'YYYY-MM-DD HH:MM:SS' UTC, None: unbounded."""

    since: str | None = None
    until: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run found of one kind.

    `counts`: verdict -> entities, as found. `named`: verdict -> (label, reason) of some. `published`: messages put on
    the queue, and their bytes. `moved`: missing or stale ones that were delivered or changed before they could be
    published. `ended`: why it ended before its end, "" if it did not. `in_rabbitmq`: messages of the topic that
    RabbitMQ still holds; None: the shop has none, or it is not known.
    """

    kind: str
    window: Window
    counts: Counter[Verdict] = field(default_factory=Counter)
    named: dict[Verdict, list[tuple[str, str]]] = field(default_factory=dict)
    publishable_bytes: int = 0
    published: int = 0
    published_bytes: int = 0
    moved: int = 0
    seconds: float = 0.0
    ended: str = ""
    in_rabbitmq: int | None = None
    #: Of a resend: since when, in seconds since the epoch, as one that was stopped goes on
    resend_since_utc: float | None = None

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def publishable(self) -> int:
        return sum(self.counts[each] for each in PUBLISHABLE)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing, stale or failed, but for what is on the queue now."""
        left = self.publishable - self.published - self.moved
        return not self.ended and not self.in_rabbitmq and left <= 0 and not self.counts[Verdict.FAILED]

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "since": self.window.since,
            "until": self.window.until,
            "resend": self.resend_since_utc is not None,
            "total": self.total,
            "counts": {verdict.value: self.counts[verdict] for verdict in Verdict},
            "named": {verdict.value: [label for label, _ in named] for verdict, named in self.named.items()},
            "published": self.published,
            "published_bytes": self.published_bytes,
            "seconds": round(self.seconds, 3),
            "ended": self.ended or None,
            "in_rabbitmq": self.in_rabbitmq,
            "complete": self.is_complete,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a run needs besides the shop's rows. `owner`: of the lock, unique among processes. `stopped`: whether
    somebody asked to stop. `in_rabbitmq`: topic -> messages that RabbitMQ still holds, None if that is not known.
    `sleep`: waits so many seconds, or less where it is to stop."""

    destination: str
    process: Process
    concurrency: int
    owner: str
    stopped: Callable[[], bool] = lambda: False
    in_rabbitmq: Callable[[str], int | None] = lambda topic: None
    sleep: Callable[[float], object] = time.sleep
    monotonic: Callable[[], float] = time.monotonic


class Reconcile:
    """One run of one kind, under the lock of that kind: use it as a context manager."""

    def __init__(self, database: Database, reader: EntityReader, queue: QueueRow, surroundings: Surroundings) -> None:
        self._database = database
        self._reader = reader
        self._queue = queue
        self._here = surroundings
        self._lock = f"reconcile:{reader.kind}"
        self._renewed_at = 0.0
        self._pending = PendingMessages(database, queue_id=queue.queue_id)
        self._comparison = Comparison(
            database,
            reader,
            queue_id=queue.queue_id,
            destination=surroundings.destination,
            process=surroundings.process,
            pending=self._pending,
        )
        #: entity ids that may be published, ascending: 8 bytes each
        self._publishable = array("Q")
        self._resend_since: float | None = None
        #: Messages put on the queue so far, also by a `publish` that raised
        self.published = 0
        #: Whether every entity of the window was judged
        self._compared = False

    def __enter__(self) -> Reconcile:
        if not locks.take(self._database, self._lock, owner=self._here.owner, lease_seconds=LEASE_SECONDS):
            raise AlreadyAtWork(
                f"another reconcile of {self._reader.kind} is at work: wait for its end. If it was killed, its lock is "
                f"free after {LEASE_SECONDS:.0f} s"
            )
        self._renewed_at = self._here.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        locks.free(self._database, self._lock, owner=self._here.owner)

    # ---------------------------------------------------------------- the first pass

    def compare(
        self, window: Window, *, resend: bool = False, on_progress: Callable[[int], object] = lambda rows: None
    ) -> Result:
        """Judges every entity of the window. `resend`: what Zithara has not accepted since the resend began counts as
        stale. `on_progress` is called with the entities of each page.

        Raises ShopError, DatabaseUnavailable.
        """
        started = self._here.monotonic()
        self._resend_since = records.begin(self._database, self._reader.kind, resend=resend, now_utc=self._now_utc())
        result = Result(
            kind=self._reader.kind,
            window=window,
            in_rabbitmq=self._here.in_rabbitmq(self._reader.topic),
            resend_since_utc=self._resend_since,
        )
        size = 0
        self._publishable = array("Q")
        if not self._pending.refresh(self._go_on):
            return self._ended(result, started, size, "stopped")
        for entities in self._pages(window):
            for each in self._judge(entities):
                result.counts[each.verdict] += 1
                if each.verdict is not Verdict.COMPLETE:
                    named = result.named.setdefault(each.verdict, [])
                    if len(named) < NAMED:
                        named.append((each.entity.label, each.reason))
                if each.payload is not None:
                    self._publishable.append(each.entity.id)
                    size += len(each.body)
            on_progress(len(entities))
            self._renew()
            if self._here.stopped():
                return self._ended(result, started, size, "stopped")
        return self._ended(result, started, size, "")

    def _ended(self, result: Result, started: float, size: int, why: str) -> Result:
        self._compared = not why
        return replace(result, publishable_bytes=size, seconds=self._here.monotonic() - started, ended=why)

    def _pages(self, window: Window) -> Iterator[list[ShopEntity]]:
        """The window's entities, by id. What comes into the shop meanwhile has just changed, and is not judged."""
        after, last = 0, self._reader.newest_id()
        size = PAGE
        while after < last:
            page = self._reader.page(after, size, since=window.since, until=window.until)
            for start in range(0, len(page.entities), PAGE):
                yield page.entities[start : start + PAGE]
            if page.is_last:
                return
            size = WIDE_PAGE if len(page.entities) < size // 10 else PAGE
            after = page.last_id

    def _judge(self, entities: Sequence[ShopEntity]) -> Iterator[Judged]:
        if not entities:
            return iter(())
        return self._comparison.judge(
            entities, settled_before=str(self._clock()["settled_before"]), resend_since=self._resend_since
        )

    # ---------------------------------------------------------------- the second pass

    def messages(self, *, limit: int | None = None) -> Iterator[Judged]:
        """Those that may be published, oldest first, as they are now."""
        left = len(self._publishable) if limit is None else limit
        for entities in self._chunks(PAGE):
            for each in self._judge(entities):
                if each.payload is not None and left > 0:
                    left -= 1
                    yield each
            self._renew()
            if left <= 0 or self._here.stopped():
                return

    def publish(
        self,
        found: Result,
        *,
        limit: int | None = None,
        max_bytes: int | None = None,
        on_progress: Callable[[int], object] = lambda messages: None,
    ) -> Result:
        """Puts a message on the queue for each entity that `compare` found missing or stale, oldest first. Returns
        `found` with what was published.

        It gives way to what the shop publishes: at most `concurrency` messages at a time, and only while no more than
        that are NEW. Raises ShopError, DatabaseUnavailable.
        """
        started = self._here.monotonic()
        size = moved = failed = 0
        why = ""
        if found.in_rabbitmq:
            why = "in_rabbitmq"
        for entities in self._chunks(self._here.concurrency) if not why else ():
            if limit is not None and self.published >= limit:
                break
            why = self._wait_for_room()
            if why:
                break
            if not self._pending.refresh(self._go_on):
                why = "stopped"
                break
            judged = list(self._judge(entities))
            chosen = [each for each in judged if each.payload is not None]
            failing = sum(each.verdict is Verdict.FAILED for each in judged)
            failed += failing
            moved += len(entities) - len(chosen) - failing
            if limit is not None:
                chosen = chosen[: limit - self.published]
            done = self._store(chosen)
            self.published += len(done)
            moved += len(chosen) - len(done)
            size += sum(len(each.body) for each in done)
            on_progress(len(entities))
            if max_bytes is not None and size > max_bytes:
                why = "many_bytes"
                break
        if limit is None and not why:
            moved = found.publishable - self.published - failed  # with what the shop has deleted
        return replace(
            found,
            published=self.published,
            published_bytes=size,
            moved=moved,
            seconds=found.seconds + self._here.monotonic() - started,
            ended=found.ended or why,
        )

    def keep(self, result: Result) -> None:
        """Keeps the result for `status`, the page and the metrics, where every entity was judged."""
        if self._compared:
            told = result.as_json()
            # What was published is on its way, and what moved is judged next time.
            counts = Counter(told["counts"])
            for amount, verdict in ((result.published, Verdict.WAITING), (result.moved, Verdict.UNSETTLED)):
                for wrong in (Verdict.MISSING, Verdict.STALE):
                    part = min(amount, counts[wrong.value])
                    counts[wrong.value] -= part
                    counts[verdict.value] += part
                    amount -= part
            told["counts"] = dict(counts)
            told["finished_utc"] = self._now_utc()
            resent = self._resend_since is not None and result.is_complete
            records.end(self._database, self._reader.kind, told, resent=resent)

    def _chunks(self, size: int) -> Iterator[list[ShopEntity]]:
        """The entities that may be published, by id, read anew."""
        wanted = self._publishable
        at = 0
        while at < len(wanted):
            # A page may look at rows that are not wanted; where all are, it looks at no more than it needs.
            page = self._reader.page(wanted[at] - 1, PAGE, since=None, until=None)
            behind = at
            while behind < len(wanted) and (page.is_last or wanted[behind] <= page.last_id):
                behind += 1
            ids = frozenset(wanted[at:behind])
            found = [entity for entity in page.entities if entity.id in ids]
            for start in range(0, len(found), size):
                yield found[start : start + size]
            at = behind

    def _wait_for_room(self) -> str:
        """Waits until no more than `concurrency` messages are NEW. Why it gave up, or ""."""
        seen: tuple[object, object] | None = None
        since = self._here.monotonic()
        while not self._here.stopped():
            self._renew()
            limit = 10 * self._here.concurrency + 1
            row = self._database.rows("reconcile_new", queue_id=self._queue.queue_id, limit=limit)[0]
            if int(row["messages"]) <= self._here.concurrency:
                return ""
            now = self._here.monotonic()
            if (row["messages"], row["oldest"]) != seen:
                seen, since = (row["messages"], row["oldest"]), now
            elif now - since >= STUCK_SECONDS:
                return "stuck"
            self._here.sleep(PAUSE_SECONDS)
        return "stopped"

    # ---------------------------------------------------------------- the transaction

    def _store(self, chosen: Sequence[Judged]) -> Sequence[Judged]:
        """Stores a message for each of these, but for those that the shop changes meanwhile."""
        while chosen:
            moved = self._database.again_on_contention(partial(self._store_once, chosen))
            if not moved:
                return chosen
            chosen = [each for each in chosen if each.entity.id not in moved]
        return []

    def _store_once(self, chosen: Sequence[Judged]) -> frozenset[int]:
        """One transaction. Returns the entities that moved; then nothing was stored."""
        statement = "reconcile_published" if self._resend_since is None else "reconcile_resent"
        topic = self._reader.topic
        try:
            with self._database.transaction():
                # The lock's row stays locked until the end: whoever takes a lock that has run out waits for it.
                if not locks.keep(self._database, self._lock, owner=self._here.owner, lease_seconds=LEASE_SECONDS):
                    raise self._lock_lost()
                rows = [
                    (
                        each.entity.group_key,
                        store_message(self._database, topic=topic, queue_id=self._queue.queue_id, body=each.body),
                    )
                    for each in chosen
                ]
                self._database.insert_rows(statement, sorted(rows), topic=topic)
                # After the INSERTs: what the shop changes from now on gets a message with a higher id.
                now = self._reader.times([each.entity.id for each in chosen])
                moved = frozenset(
                    each.entity.id for each in chosen if now.get(each.entity.id) != each.entity.updated_at
                )
                if moved:
                    raise _MovedError(moved)
        except _MovedError as error:
            return error.ids
        return frozenset()

    # ---------------------------------------------------------------- the lock, the clock

    def _renew(self) -> None:
        if self._here.monotonic() - self._renewed_at < RENEW_SECONDS:
            return
        if not locks.keep(self._database, self._lock, owner=self._here.owner, lease_seconds=LEASE_SECONDS):
            raise self._lock_lost()
        self._renewed_at = self._here.monotonic()

    def _go_on(self) -> bool:
        self._renew()
        return not self._here.stopped()

    def _lock_lost(self) -> AlreadyAtWork:
        return AlreadyAtWork(
            f"another reconcile of {self._reader.kind} has begun, because this one stood still for more than "
            f"{LEASE_SECONDS:.0f} s: nothing is half done, let the other one finish"
        )

    def _now_utc(self) -> float:
        return float(self._clock()["now_utc"])

    def _clock(self) -> dict[str, Any]:
        """The database's time: now, and before when an entity must have changed to be judged."""
        return self._database.rows("reconcile_clock", seconds=SETTLED_SECONDS)[0]


class _MovedError(Exception):
    """The shop has changed these entities since they were judged."""

    def __init__(self, ids: Iterable[int]) -> None:
        self.ids = frozenset(ids)
