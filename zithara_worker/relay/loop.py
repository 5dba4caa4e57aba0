"""The loop of a relay: takes what RabbitMQ delivered, has it stored, acknowledges it; holds the locks of its queues.

One thread, which owns the database session. RabbitMQ has a thread of its own (`amqp`). Nothing stays unacknowledged
while the database is away: everything goes back to RabbitMQ, and is asked for again once a write has succeeded. That
write stores the batch that failed, of which a copy stays here, so that a database that comes and goes does not use up
the delivery limit of a quorum queue: what was stored so is recognised when RabbitMQ delivers it again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from queue import Empty, SimpleQueue
from typing import Any

from zithara_worker.database import locks, schema
from zithara_worker.database.session import Database
from zithara_worker.errors import ConfigurationError, DatabaseUnavailable, SchemaOutdated, ShopError, ZitharaWorkerError
from zithara_worker.limits import End, Limits
from zithara_worker.monitor.counters import WorkerMetrics
from zithara_worker.monitor.fleet import RABBITMQ
from zithara_worker.monitor.health import Health, LoopStatus, relay_health
from zithara_worker.monitor.registry import MinuteCounters, Registry
from zithara_worker.monitor.service_manager import ServiceManager
from zithara_worker.queue.queues import find_queues
from zithara_worker.relay.amqp import BUDGET_BYTES, RETRY_SECONDS, SURVEY_SECONDS, Broker, Delivery, Phase, QueueStatus
from zithara_worker.relay.transfer import LockLost, Source, Transfer, Transferred
from zithara_worker.settings.reload import Reload
from zithara_worker.settings.sections import Settings
from zithara_worker.topics import TOPIC_TABLE

log = logging.getLogger(__name__)

#: What one transaction stores, at most. A body that is larger is a batch of its own.
BATCH_MESSAGES = 500
BATCH_BYTES = 4 * 1024 * 1024
#: A relay that died is followed after so many seconds; a living one renews its lock three times as often.
LEASE_SECONDS = 15.0
#: Seconds between two tries to take a lock that another relay holds, and between two updates of the registry.
STANDBY_SECONDS = 2.0
REGISTRY_SECONDS = 5.0
UPKEEP_SECONDS = 60.0
#: The relay goes on when the pending messages have fallen to this share of [relay] max_pending.
RESUME_SHARE = 0.9
#: Seconds between two looks at the pending messages while it is paused, and between two log lines about one condition.
PAUSED_SECONDS = 1.0
LOG_SECONDS = 60.0
#: Rows of zithara_relayed are kept for so long, longer than any message stays unacknowledged.
REMEMBERED_DAYS = 14
FORGOTTEN_AT_ONCE = 1000
#: The longest wait of the loop.
WAIT_SECONDS = 1.0


@dataclass(slots=True, kw_only=True)
class Stream:
    """One queue of RabbitMQ, as this relay serves it."""

    name: str
    topics: Sequence[str]
    source: Source | None = None
    transfer: Transfer | None = None
    #: Whether this relay has the queue's lock
    holds: bool = False
    #: What could not be stored and RabbitMQ has back: stored before anything is consumed again
    unwritten: list[Delivery] = field(default_factory=list)
    #: Whether messages are missing behind `unwritten`, so that none may be added
    cut: bool = False
    #: Whether too many messages are pending in the database
    paused: bool = False
    #: Messages that may be stored before the pending ones are counted again
    allowance: int = 0
    lock_at: float = 0.0
    count_at: float = 0.0
    complain_at: float = 0.0


def streams_of(topics: Sequence[str], overrides: Mapping[str, str]) -> list[Stream]:
    """The queues of these topics. A queue has the same name in RabbitMQ and in Magento's database: the module's, or
    that of [queues]."""
    by_queue: dict[str, list[str]] = {}
    for topic in topics:
        by_queue.setdefault(overrides.get(topic, TOPIC_TABLE[topic].queue), []).append(topic)
    return [Stream(name=name, topics=tuple(belonging)) for name, belonging in by_queue.items()]


def with_key(deliveries: Sequence[Delivery]) -> list[Delivery]:
    """Those before the first one without a message_id, which would get a second row when it is delivered again."""
    return list(takewhile(lambda each: each.message_id.strip(), deliveries))


def first_batch(deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
    """What one transaction stores of them."""
    size = 0
    for place, each in enumerate(deliveries[:BATCH_MESSAGES]):
        size += each.size
        if place and size > BATCH_BYTES:
            return deliveries[:place]
    return deliveries[:BATCH_MESSAGES]


class RelayLoop:
    """One configuration's loop. `arrivals`: anything that is put there ends a wait; `stopping`: asked to stop in order.

    `lease_seconds`: of the queues' locks. `owner`: of the locks, unique.
    """

    def __init__(
        self,
        settings: Settings,
        topics: Sequence[str],
        *,
        database: Database,
        broker: Callable[..., Broker],
        registry: Registry,
        owner: str,
        arrivals: SimpleQueue[None],
        stopping: Callable[[], bool],
        limits: Limits,
        minute_counters: MinuteCounters,
        metrics: WorkerMetrics,
        reload: Reload,
        service_manager: ServiceManager,
        metrics_address: Callable[[], str | None],
        monotonic: Callable[[], float],
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._settings = settings
        self._topics = topics
        self._database = database
        self._streams = streams_of(topics, settings.queues)
        self._arrivals = arrivals
        self._broker = broker(
            settings.relay,
            [stream.name for stream in self._streams],
            on_change=lambda: arrivals.put(None),
            # An end that waits for an empty queue shall not wait for the next look.
            survey_seconds=0.2 if limits.stop_when_empty else SURVEY_SECONDS,
            retry_seconds=1.0 if limits.stop_when_empty else RETRY_SECONDS,
        )
        self._registry = registry
        self._owner = owner
        self._stopping = stopping
        self._limits = limits
        self._minute_counters = minute_counters
        self._metrics = metrics
        self._reload = reload
        self._service_manager = service_manager
        self._metrics_address = metrics_address
        self._monotonic = monotonic
        self._lease_seconds = lease_seconds
        self._started = self._turned_at = monotonic()
        self._prepared = False
        self._problem: str | None = "the database is not available yet"
        self._retry_at = self._pause = self._complain_at = 0.0
        self._register_at = self._upkeep_at = 0.0
        #: Messages that this loop stored, recognised or kept aside
        self.moved = 0

    def run(self) -> End:
        """Raises ConfigurationError and ShopError, which only a person can mend, as long as nothing was relayed yet."""
        try:
            while True:
                self._turn()
                if end := self._ended():
                    break
                self._wait()
            self._finish(end)
            return end
        finally:
            self._broker.close()
            self._database.close()

    # ---------------------------------------------------------------- a turn

    def _turn(self) -> None:
        now = self._turned_at = self._monotonic()
        self._service_manager.alive()
        if now < self._retry_at:
            return
        try:
            if not self._prepared:
                self._prepare()
            if self._problem is not None:
                self._write_first()
                self._recovered()
            self._tend_locks()
            while self._move():
                pass
            self._upkeep()
        except ZitharaWorkerError as error:
            mendable = isinstance(error, SchemaOutdated) or not isinstance(error, ConfigurationError | ShopError)
            if not self._prepared and not mendable:
                raise
            self._failed(error)
        except Exception as error:
            log.exception("a turn of the relay failed", extra={"event": "internal_error"})
            self._failed(error)

    def _prepare(self) -> None:
        """Finds out where messages go."""
        schema.require(self._database)
        ids = {row.topic: row.queue_id for row in find_queues(self._database, self._topics, self._settings.queues)}
        for stream in self._streams:
            stream.source = Source(name=stream.name, queue_ids={topic: ids[topic] for topic in stream.topics})
            stream.transfer = Transfer(
                self._database, stream.source, owner=self._owner, lease_seconds=self._lease_seconds
            )
        self._broker.start()
        self._prepared = True
        log.info(
            "started",
            extra={
                "event": "started",
                "role": "relay",
                "topics": list(self._topics),
                "database": self._database.version,
                "broker": self._settings.relay.host,
            },
        )
        self._service_manager.ready(f"relays {', '.join(self._topics)}")

    def _failed(self, error: Exception) -> None:
        """Nothing could be written: RabbitMQ gets back all that is not acknowledged."""
        if self._prepared:
            for stream in self._streams:
                self._keep_copies(stream)
                self._broker.give_back(stream.name)
                stream.paused = False
        if self._problem is None:
            self._register_at = 0.0
        self._problem = str(error) or repr(error)
        self._pause = min(5.0, 2 * self._pause or 0.2)
        self._retry_at = self._monotonic() + self._pause
        outdated = isinstance(error, SchemaOutdated)
        if self._monotonic() >= self._complain_at:
            self._complain_at = self._monotonic() + LOG_SECONDS
            log.warning(
                "tables of an older version, waiting for 'zithara-worker install'"
                if outdated
                else "the database takes no messages, waiting for it; they stay in RabbitMQ",
                extra={"event": "schema_outdated" if outdated else "database_away", "detail": self._problem},
            )
        if not self._prepared:
            told = "waits for zithara-worker install" if outdated else "waits for the database"
            self._service_manager.waiting(told)
        elif not isinstance(error, DatabaseUnavailable):
            # Nothing can be stored, but `status` and `doctor` can be told why.
            with suppress(ZitharaWorkerError):
                self._register()

    def _keep_copies(self, stream: Stream) -> None:
        """Keeps what was delivered beside the batch that failed, in its order."""
        rest = self._broker.take(stream.name, messages=self._settings.relay.prefetch, size_bytes=BUDGET_BYTES)
        self._broker.done(rest, stored=False)
        if stream.holds and not stream.cut:
            stream.unwritten += with_key(rest)

    def _write_first(self) -> None:
        """Shows that messages can be written again, before any is asked for."""
        for stream in self._streams:
            if not stream.holds:
                continue
            try:
                if not self._keep(stream):
                    raise LockLost(stream.name)
                while stream.unwritten:
                    batch = first_batch(stream.unwritten)
                    self._count(stream, self._transfer(stream).store(batch))
                    del stream.unwritten[: len(batch)]
            except LockLost:
                self._lose(stream)
            stream.cut = False

    def _recovered(self) -> None:
        if self._complain_at:
            log.info("the database takes messages again", extra={"event": "database_back"})
        self._problem, self._pause, self._complain_at = None, 0.0, 0.0
        for stream in self._streams:
            if stream.holds:
                self._broker.consume(stream.name)

    # ---------------------------------------------------------------- one relay a queue

    def _tend_locks(self) -> None:
        now = self._monotonic()
        for stream in self._streams:
            if now < stream.lock_at:
                continue
            if stream.holds:
                stream.lock_at = now + self._lease_seconds / 3
                if not self._keep(stream):
                    self._lose(stream)
                continue
            stream.lock_at = now + min(STANDBY_SECONDS, self._lease_seconds / 3)
            if self._takes_over(stream):
                stream.holds = True
                stream.allowance, stream.count_at = 0, 0.0
                stream.lock_at = now + self._lease_seconds / 3
                log.info("relays this queue", extra={"event": "relay_active", "queue": stream.name})
                self._broker.consume(stream.name)
            elif now >= stream.complain_at:
                stream.complain_at = now + LOG_SECONDS
                log.info(
                    "another relay serves this queue; this one takes over when it ends",
                    extra={"event": "relay_standby", "queue": stream.name},
                )

    def _takes_over(self, stream: Stream) -> bool:
        """A relay that was suspended within a transaction, or whose host is gone, still has the lock's row: nothing can
        be said of its batch until the server ends its session. The other queues do not wait for that."""
        lock = self._source(stream).lock
        return locks.take_at_once(self._database, lock, owner=self._owner, lease_seconds=self._lease_seconds)

    def _keep(self, stream: Stream) -> bool:
        lock = self._source(stream).lock
        return locks.keep(self._database, lock, owner=self._owner, lease_seconds=self._lease_seconds)

    def _lose(self, stream: Stream) -> None:
        log.warning(
            "another relay has taken this queue over; what was not acknowledged goes back to RabbitMQ",
            extra={"event": "relay_lock_lost", "queue": stream.name},
        )
        stream.holds = stream.paused = False
        stream.unwritten = []
        self._broker.give_back(stream.name)

    # ---------------------------------------------------------------- messages

    def _move(self) -> bool:
        """Stores a batch of each queue that has one; whether there was any."""
        any_moved = False
        for stream in self._streams:
            limit = self._limit(stream)
            batch = self._broker.take(stream.name, messages=limit, size_bytes=BATCH_BYTES) if limit > 0 else []
            if not batch:
                continue
            try:
                result = self._transfer(stream).store(batch)
            except LockLost:
                self._broker.done(batch, stored=False)
                self._lose(stream)
                continue
            except BaseException:
                self._broker.done(batch, stored=False)
                stream.unwritten = with_key(batch)
                stream.cut = len(stream.unwritten) < len(batch)
                raise
            self._broker.done(batch, stored=True)
            stream.allowance -= len(batch)
            self._count(stream, result)
            any_moved = True
            self._service_manager.alive()
            self._tend_locks()
        return any_moved and self._monotonic() < self._turned_at + WAIT_SECONDS

    def _limit(self, stream: Stream) -> int:
        """How many messages of the queue may be stored now."""
        if not stream.holds:
            return 0
        self._regulate(stream)
        limit = BATCH_MESSAGES
        if self._limits.max_messages is not None:
            limit = min(limit, self._limits.max_messages - self.moved)
        return limit

    def _regulate(self, stream: Stream) -> None:
        """Leaves messages in RabbitMQ while too many are pending in the database. Those that were delivered already are
        stored all the same."""
        now = self._monotonic()
        if stream.allowance > 0 or now < stream.count_at or self._stopping():
            return
        most = self._settings.relay.max_pending
        looked_at = most + min(most, 10_000)
        pending = sum(
            int(self._database.rows("relay_pending", queue_id=queue_id, looked_at=looked_at)[0]["pending"])
            for queue_id in self._source(stream).queue_ids.values()
        )
        if (stream.paused and pending > most * RESUME_SHARE) or pending >= most:
            stream.count_at = now + PAUSED_SECONDS
            if not stream.paused:
                stream.paused = True
                self._broker.drain(stream.name)
                log.info(
                    "enough messages are pending in the database, further ones stay in RabbitMQ for now",
                    extra={"event": "relay_paused", "queue": stream.name, "pending": pending},
                )
            return
        stream.allowance = max(1, most - pending)
        if stream.paused:
            stream.paused = False
            self._broker.consume(stream.name)
            log.info("goes on", extra={"event": "relay_resumed", "queue": stream.name, "pending": pending})

    def _count(self, stream: Stream, result: Transferred) -> None:
        moved = result.stored.total() + result.known.total() + result.aside.total()
        self.moved += moved
        for topic, messages in result.stored.items():
            self._metrics.relayed(topic, messages)
            self._minute_counters.count_relayed(topic, messages)
        log.debug(
            "messages were relayed",
            extra={
                "event": "relayed",
                "queue": stream.name,
                "messages": result.stored.total(),
                "known": result.known.total(),
            },
        )

    # ---------------------------------------------------------------- upkeep

    def _register(self) -> None:
        now = self._monotonic()
        if now >= self._register_at:
            self._register_at = now + REGISTRY_SECONDS
            self._registry.update(
                in_flight=0,
                metrics_address=self._metrics_address(),
                state={RABBITMQ: self.reports()},
                minutes=self._minute_counters.minutes(),
            )
            self._registry.remove_stale()

    def _upkeep(self) -> None:
        self._register()
        now = self._monotonic()
        if now >= self._upkeep_at:
            removed = self._database.execute("relayed_forget", days=REMEMBERED_DAYS, limit=FORGOTTEN_AT_ONCE)
            # A full slice: there are more.
            self._upkeep_at = now + (WAIT_SECONDS if removed >= FORGOTTEN_AT_ONCE else UPKEEP_SECONDS)

    def reports(self) -> Mapping[str, Mapping[str, Any]]:
        """Topic -> the fields of `fleet.RelayedQueue`."""
        return {topic: self.report(stream) for stream in self._streams for topic in stream.topics}

    def report(self, stream: Stream) -> Mapping[str, Any]:
        """What others are told of a queue: the fields of `fleet.RelayedQueue`."""
        status = self._broker.status(stream.name)
        state, why = "active", ""
        if self._problem is not None:
            state, why = "stopped", self._problem
        elif not stream.holds:
            state = "standby"
        elif status.phase in (Phase.AWAY, Phase.WAITING):
            state, why = "waiting", status.why
        elif stream.paused:
            state = "paused"
        return {"state": state, "why": why, "waiting": status.ready, "consumers": status.consumers}

    def status(self) -> LoopStatus:
        """From any thread."""
        return LoopStatus(
            turned_at=self._turned_at,
            longest_wait_seconds=WAIT_SECONDS,
            database_up=self._problem is None,
            consumable=True,
            paused=(),
        )

    def health(self, configuration_problem: str | None = None) -> Health:
        """From any thread."""
        waiting = {topic: told["why"] for topic, told in self.reports().items() if told["state"] == "waiting"}
        return relay_health(
            self.status(),
            self._monotonic(),
            waiting={topic: why for topic, why in waiting.items() if why},
            stopping=self._stopping(),
            configuration_problem=configuration_problem,
        )

    # ---------------------------------------------------------------- waits and ends

    def _wait(self) -> None:
        seconds = WAIT_SECONDS
        if self._problem is not None:
            seconds = max(0.0, min(seconds, self._retry_at - self._monotonic()))
        try:
            self._arrivals.get(timeout=seconds)
            while True:
                self._arrivals.get_nowait()
        except Empty:
            return

    def _ended(self) -> End | None:
        if self._stopping():
            return End.STOPPED
        if self._reload.is_ready(database_up=self._problem is None):
            return End.RELOAD
        if end := self._limits.reached(settled=self.moved, seconds=self._monotonic() - self._started):
            return end
        if self._limits.stop_when_empty and self._prepared and all(map(self._is_empty, self._streams)):
            return End.EMPTY
        return None

    def _is_empty(self, stream: Stream) -> bool:
        status: QueueStatus = self._broker.status(stream.name)
        if status.missing:
            return True
        return stream.holds and status.phase is Phase.CONSUMING and status.empty

    def _finish(self, end: End) -> None:
        """Stores and acknowledges what was delivered, then frees the locks."""
        self._service_manager.stopping(within_seconds=self._settings.worker.shutdown_timeout)
        deadline = self._monotonic() + self._settings.worker.shutdown_timeout
        if not self._prepared:
            return
        for stream in self._streams:
            if end is End.MESSAGES:
                self._broker.give_back(stream.name)
            else:
                self._broker.drain(stream.name)
        try:
            while self._problem is None and self._monotonic() < deadline and any(self._unsettled()):
                self._move()
                self._wait()
            for stream in self._streams:
                if stream.holds:
                    locks.free(self._database, self._source(stream).lock, owner=self._owner)
            self._registry.stopped(self._minute_counters.minutes())
        except ZitharaWorkerError as error:
            log.info(
                "the database is not available at the end: the locks of this relay end by themselves",
                extra={"event": "registry_away", "detail": str(error)},
            )

    def _unsettled(self) -> Iterator[bool]:
        return (stream.holds and not self._broker.settled(stream.name) for stream in self._streams)

    @staticmethod
    def _source(stream: Stream) -> Source:
        assert stream.source is not None, "prepared"  # noqa: S101
        return stream.source

    @staticmethod
    def _transfer(stream: Stream) -> Transfer:
        assert stream.transfer is not None, "prepared"  # noqa: S101
        return stream.transfer
