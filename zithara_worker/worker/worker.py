"""Joins the rooms: the one module that may import from all of them. `Worker` is what `consume` calls, and what another
program embeds:

    from zithara_worker import Settings, Worker
    Worker(Settings(...)).run(["zithara.order.events"], stop=event)
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from queue import Empty, SimpleQueue
from typing import Any

from zithara_worker.database import schema
from zithara_worker.database.session import Database
from zithara_worker.delivery.courier import WEBHOOK, Courier, targets_of
from zithara_worker.delivery.pace import TokenBucket, delay_before
from zithara_worker.delivery.threads import DeliveryPool
from zithara_worker.errors import ConfigurationError, DatabaseUnavailable, SchemaOutdated, ZitharaWorkerError
from zithara_worker.logs import handlers as logs
from zithara_worker.logs.audit import AuditFile
from zithara_worker.messages import Event, Message, Outcome, Rejection, Request, Skip
from zithara_worker.monitor.counters import WorkerMetrics
from zithara_worker.monitor.endpoints import Endpoints, MonitoredWorker
from zithara_worker.monitor.registry import Identity, MinuteCounters, Registry
from zithara_worker.monitor.service_manager import ServiceManager
from zithara_worker.processors import ShopContext, as_create, identify, outline, process, supersedes
from zithara_worker.queue.held import Held
from zithara_worker.queue.message_queue import MessageQueue
from zithara_worker.queue.queues import QueueRow, find_queues
from zithara_worker.queue.renewal import Renewal
from zithara_worker.settings.sections import SECTIONS, LoggingSettings, Settings
from zithara_worker.settings.sources import Configured
from zithara_worker.shop.configuration import (
    DatabaseTokenStore,
    ShopConfiguration,
    complete,
    configure,
    read_configuration,
)
from zithara_worker.shop.deployment_config import DeploymentConfig, deployment_config
from zithara_worker.topics import TOPIC_TABLE, TOPICS, full_name
from zithara_worker.version import VERSION
from zithara_worker.worker.audit import DeliveryAudit
from zithara_worker.worker.duties import DebugSwitch, Duties, PoisonPill
from zithara_worker.worker.ending import End, Limits
from zithara_worker.worker.loop import Loop, Wish
from zithara_worker.worker.outcomes import log_settled
from zithara_worker.worker.reload import Reload
from zithara_worker.zithara.api import ZitharaApi
from zithara_worker.zithara.http import Transport, tls_context, usable_url
from zithara_worker.zithara.tokens import TokenSource

__all__ = ["Limits", "Worker", "complete", "configure", "open_database"]

log = logging.getLogger(__name__)

#: Topic -> the gates that its requests pass: known before a message is read, since nothing is claimed for a shut one.
GATES = {name: targets_of(topic.target, topic.path) for name, topic in TOPIC_TABLE.items()}
#: Of a delivery thread. Some hundred calls from C into Python and back overran 256 KB, which ends the process.
#: Less than a huge page, which the kernel could otherwise put behind every thread.
_STACK_BYTES = 1024 * 1024


def _clock() -> float:
    """Seconds on a clock that runs on while the machine is suspended. CLOCK_MONOTONIC stands still meanwhile, so leases
    that others have long taken over would look valid after waking."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def open_database(settings: Settings, **arguments: Any) -> Database:
    """A session for these settings, not yet connected."""
    return Database(settings.database, **arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """A configuration that has been tried out, with what was opened for it: nothing is left that it could fail for."""

    #: As far as it goes without a database
    base: Configured
    #: With what the shop says
    configured: Configured
    shop: ShopConfiguration
    files: DeploymentConfig | None
    rows: Sequence[QueueRow]
    database: Database
    tls: ssl.SSLContext
    audit: AuditFile | None


class Worker:
    """Takes and delivers messages until it is stopped or its limits are reached.

    `reconfigure` reads the configuration again (SIGHUP, or the shop's credentials have changed); without it, the
    settings stay as they are. `clock` replaces the time of the database's session, for tests; `monotonic` the clock of
    leases and pauses. `service_manager`: without one, no service manager is told anything.
    """

    def __init__(
        self,
        settings: Settings | Configured,
        *,
        reconfigure: Callable[[], Configured] | None = None,
        monotonic: Callable[[], float] = _clock,
        utc: Callable[[], float] = time.time,
        clock: Callable[[], float] | None = None,
        service_manager: ServiceManager | None = None,
    ) -> None:
        self._service_manager = service_manager or ServiceManager()
        self._configured = settings if isinstance(settings, Configured) else _as_given(settings)
        self._reconfigure = reconfigure
        self._monotonic = monotonic
        self._utc = utc
        self._clock = clock
        self._minute_counters = MinuteCounters(utc)
        self._metrics = WorkerMetrics(monotonic=monotonic, utc=utc)
        self._audit: AuditFile | None = None
        self._stopping = threading.Event()
        self._topics: Sequence[str] = ()
        self._reload = Reload(self._prepare_next, monotonic=monotonic)
        self._poison_pill = PoisonPill()
        self._debug = DebugSwitch()
        self._in_force: _Ready | None = None
        self._next: _Ready | None = None
        self._inbox: SimpleQueue[tuple[Message, Outcome] | Wish] = SimpleQueue()
        self._endpoints = Endpoints(
            self._metrics,
            open_database=open_database,
            stopping=self._stopping.is_set,
            configuration_problem=lambda: self._reload.problem,
            monotonic=monotonic,
        )

    def stop(self) -> None:
        """Stop claiming, finish what is in flight, put the rest back. From any thread, or a signal handler."""
        self._stopping.set()
        self._inbox.put(Wish.STOP)

    def reload(self) -> None:
        """Reopen the log files, read the configuration again, and go on with it if it can be used. As `stop`."""
        self._reload.ask()
        self._inbox.put(Wish.RELOAD)

    def run(
        self, topics: Sequence[str] = TOPICS, *, stop: threading.Event | None = None, limits: Limits | None = None
    ) -> End:
        """Runs until the end; why it ended. `topics`: full or short names. `stop`: an event that stops it, set
        by whoever embeds it.

        Waits for a database that is away. Raises ConfigurationError and ShopError for what only a person can mend.
        """
        if stop is not None:
            threading.Thread(target=self._stop_after, args=(stop,), name="stop-watch", daemon=True).start()
        limits = limits or Limits()
        self._topics = tuple(full_name(topic) for topic in topics)
        end = End.STOPPED
        try:
            ready = self._first()
            while ready is not None:
                started = self._monotonic()
                end, settled = self._run_once(ready, limits)
                if end is not End.RELOAD or self._stopping.is_set():
                    break
                log.info("configuration read again", extra={"event": "reloaded"})
                limits = _remaining(limits, settled, self._monotonic() - started)
                ready, self._next = self._next, None
            log.info("stopped", extra={"event": "stopped", "why": end.value})
            return end
        finally:
            self._debug.set(on=False)
            self._endpoints.close()
            if self._next is not None:
                self._next.database.close()
            if self._audit is not None:
                self._audit.close()

    def _stop_after(self, event: threading.Event) -> None:
        event.wait()
        self.stop()

    # ---------------------------------------------------------------- configurations

    def _first(self) -> _Ready | None:
        """The first configuration, once the database answers and has our tables; None when stopped before. Complains
        once a minute."""
        base, pause, complain_at = self._configured, 0.2, 0.0
        while not self._stopping.is_set():
            if self._reload.wanted:
                base = self._read_while_waiting(base)
            self._endpoints.serve(base.settings)
            try:
                return self._prepare(base)
            except ConfigurationError:
                raise  # also of a database that refuses us: nothing is in force that one could wait with
            except (DatabaseUnavailable, SchemaOutdated) as error:
                outdated = isinstance(error, SchemaOutdated)
                if self._monotonic() >= complain_at:
                    complain_at = self._monotonic() + 60
                    log.warning(
                        "tables of an older version, waiting for 'zithara-worker install'"
                        if outdated
                        else "database not available, waiting for it",
                        extra={"event": "schema_outdated" if outdated else "database_away", "detail": str(error)},
                    )
            self._service_manager.waiting("waits for zithara-worker install" if outdated else "waits for the database")
            self._service_manager.alive()
            # Not on the event: its lock, which `stop` takes within a signal handler, may be held by this very thread.
            with suppress(Empty):
                self._inbox.get(timeout=pause)
            pause = min(5.0, pause * 2)
        return None

    def _read_while_waiting(self, base: Configured) -> Configured:
        self._reload.wanted = False
        if self._reconfigure is None:
            return base
        try:
            read = self._reconfigure()
            logs.configure(read.settings.logging)
        except (ZitharaWorkerError, OSError) as error:
            self._reload.failed(str(error))
            return base
        self._reload.problem = None
        log.info("configuration read again", extra={"event": "reloaded"})
        return read

    def _prepare_next(self, database_up: bool) -> bool:
        """Tries the configuration out beside the loop at work; see `Reload`."""
        in_force = self._in_force
        if in_force is None:
            return False
        logs.reopen_files()
        if self._audit is not None:
            self._audit.reopen()
        base = self._reconfigure() if self._reconfigure else in_force.base
        if not database_up and base == in_force.base:
            return False
        ready = self._prepare(base)
        try:
            if ready.audit is not None and ready.audit is not self._audit and not ready.audit.ready():
                raise ConfigurationError(
                    f"[logging] audit_file {base.settings.logging.audit_file} cannot be written: {ready.audit.problem}"
                )
            if self._reconfigure:
                logs.configure(base.settings.logging)
        except ConfigurationError:
            ready.database.close()
            raise
        # What is in flight is settled by the loop at work, which could not do so with a password that is good no more.
        in_force.database.log_in_as(base.settings.database)
        self._next = ready
        return True

    def _prepare(self, base: Configured) -> _Ready:
        """Opens and checks all that the configuration needs. Raises ConfigurationError, ShopError,
        DatabaseUnavailable."""
        settings = base.settings
        files = deployment_config(settings.magento.root)
        database = open_database(settings, clock=self._clock)
        try:
            schema.require(database)
            shop = read_configuration(database, files)
            configured = complete(base, shop)
            rows = find_queues(database, self._topics, settings.queues)
            usable_url(settings.zithara.base_url)
            tls = tls_context(verify=settings.zithara.verify, ca_file=str(settings.zithara.ca_file or ""))
        except BaseException:
            database.close()
            raise
        return _Ready(
            base=base,
            configured=configured,
            shop=shop,
            files=files,
            rows=rows,
            database=database,
            tls=tls,
            audit=self._audit_for(settings.logging),
        )

    def _audit_for(self, settings: LoggingSettings) -> AuditFile | None:
        """The audit that these settings want: the one at work, if it is the same."""
        wanted, required = settings.audit_file, settings.audit_required
        if wanted is None:
            return None
        if self._audit is not None and self._audit.is_for(wanted, required=required):
            return self._audit
        return AuditFile(wanted, required=required, monotonic=self._monotonic, utc=self._utc)

    # ---------------------------------------------------------------- one loop

    def _run_once(self, ready: _Ready, limits: Limits) -> tuple[End, int]:
        self._in_force = ready
        if self._audit is not None and self._audit is not ready.audit:
            self._audit.close()
        self._audit = ready.audit
        self._endpoints.serve(ready.base.settings)
        logs.warn_of(ready.configured.warnings[len(ready.base.warnings) :])
        try:
            with self._loop(ready, limits) as (loop, registry):
                log.info(
                    "started",
                    extra={
                        "event": "started",
                        "topics": list(self._topics),
                        "database": ready.database.version,
                        "base_url": ready.configured.settings.zithara.base_url,
                    },
                )
                self._service_manager.ready(f"takes {', '.join(self._topics)}")
                end = loop.run()
                try:
                    registry.gone()
                except ZitharaWorkerError as error:
                    log.info("left no word in the registry", extra={"event": "registry_away", "detail": str(error)})
                return end, loop.settled_count
        finally:
            ready.database.close()

    @contextmanager
    def _loop(self, ready: _Ready, limits: Limits) -> Iterator[tuple[Loop, Registry]]:
        """Builds one loop with everything it needs, and takes it down again."""
        settings, database, shop, rows = ready.configured.settings, ready.database, ready.shop, ready.rows
        # An inbox of its own: nothing that an earlier loop left behind may reach this one.
        inbox = self._inbox = SimpleQueue()
        if self._stopping.is_set():
            inbox.put(Wish.STOP)
        worker_id = f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(4)}"
        identity = Identity(
            id=worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=VERSION,
            topics=[row.topic for row in rows],
        )
        registry = Registry(database, identity)
        held = Held(worker_id=worker_id, lease_seconds=settings.worker.lease, clock=self._monotonic)
        transport = Transport(
            tls=ready.tls,
            timeout_seconds=settings.zithara.timeout,
        )
        stopping = threading.Event()
        audit = self._audit
        tokens = TokenSource(
            base_url=settings.zithara.base_url,
            client_id=settings.zithara.client_id,
            client_secret=settings.zithara.client_secret,
            store=DatabaseTokenStore(lambda: open_database(settings), owner=worker_id),
            pause=stopping.wait,
            clock=self._utc,
            transport=transport,
        )
        api = ZitharaApi(
            base_url=settings.zithara.base_url,
            tokens=tokens,
            transport=transport,
            pause=stopping.wait,
            now_utc=self._utc,
            digest=audit is not None,
            mask=settings.logging.mask,
        )
        courier = Courier(
            api=api,
            bucket=TokenBucket(
                rate=settings.worker.rate_limit,
                burst=settings.worker.bucket_size,
                clock=self._monotonic,
                wait=stopping.wait,
            ),
            stopping=stopping,
            clock=self._monotonic,
            targets=sorted({gate for row in rows for gate in GATES[row.topic]}),
        )
        context = _Context(settings, shop, self._utc, on_webhook_url=lambda: courier.forget(WEBHOOK))
        coalesced = {full_name(word) for word in settings.worker.coalesce}
        queues = [
            (
                MessageQueue(
                    database,
                    queue_id=row.queue_id,
                    name=row.name,
                    topic=row.topic,
                    held=held,
                    identify=identify,
                    supersedes=supersedes if row.topic in coalesced else None,
                    outline=outline,
                    attempt_limit=settings.retry.limit,
                ),
                GATES[row.topic],
            )
            for row in rows
        ]
        renewal = Renewal(open_database(settings, clock=self._clock), held)
        before = threading.stack_size(_STACK_BYTES)
        try:
            pool = DeliveryPool(
                settings.worker.concurrency, courier.deliver, lambda message, outcome: inbox.put((message, outcome))
            )
        finally:
            # An embedding program's own threads get what they had.
            threading.stack_size(before)
        renewal.start()
        self._metrics.expect(
            [row.topic for row in rows],
            tell_decided=DeliveryAudit(audit, worker_id=worker_id).decided if audit else None,
        )
        try:
            loop = Loop(
                queues=queues,
                duties=Duties(
                    database,
                    queues=[queue for queue, _ in queues],
                    registry=registry,
                    configuration=shop,
                    files=ready.files,
                    poison_pill=self._poison_pill,
                    debug=self._debug,
                    states=lambda: _states(courier),
                    minutes=self._minute_counters.minutes,
                    metrics_address=self._endpoints.address,
                    on_configuration=context.update,
                    monotonic=self._monotonic,
                    poll_interval_seconds=settings.worker.poll_interval,
                ),
                reload=self._reload,
                held=held,
                renewal=renewal,
                gate=courier,
                pool=pool,
                inbox=inbox,
                process=context.process,
                create=lambda event: context.process(as_create(event)),
                delay_before=lambda attempt: delay_before(attempt, settings.retry, random.uniform(-1, 1)),  # noqa: S311
                minute_counters=self._minute_counters,
                monotonic=self._monotonic,
                concurrency=settings.worker.concurrency,
                batch_size=settings.worker.batch_size,
                lease_seconds=settings.worker.lease,
                shutdown_timeout_seconds=settings.worker.shutdown_timeout,
                attempt_limit=settings.retry.limit,
                limits=limits,
                on_settled=log_settled,
                service_manager=self._service_manager,
                may_claim=audit.ready if audit and settings.logging.audit_required else lambda: True,
                observer=self._metrics,
            )
            self._endpoints.attach(
                MonitoredWorker(
                    status=loop.status,
                    targets=courier.states,
                    token_refreshes=lambda: tokens.refresh_count,
                    queues=rows,
                    targets_by_topic={row.topic: GATES[row.topic] for row in rows},
                    settings=settings,
                    audit=audit,
                )
            )
            yield loop, registry
        finally:
            self._endpoints.detach()
            courier.shutdown()
            pool.stop(0.0)
            renewal.stop()
            transport.close()


class _Context:
    """Turns messages into requests with the shop's latest answers.

    `on_webhook_url` is called when webhooks go to another URL from now on.
    """

    def __init__(
        self,
        settings: Settings,
        shop: ShopConfiguration,
        utc: Callable[[], float],
        *,
        on_webhook_url: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._utc = utc
        self._shop = shop
        self._on_webhook_url = on_webhook_url

    def update(self, shop: ShopConfiguration) -> None:
        before, self._shop = self._shop, shop
        if shop.webhook_url != before.webhook_url:
            self._on_webhook_url()

    def process(self, event: Event) -> Request | Skip | Rejection:
        zithara = self._settings.zithara
        context = ShopContext(
            webhook_url=zithara.webhook_url or self._shop.webhook_url,
            active_config_id=self._shop.active_config_id,
            config_ids=self._shop.config_ids,
            invented_phone=zithara.invented_phone,
            now_utc=datetime.fromtimestamp(self._utc(), timezone.utc),
        )
        return process(event, context)


def _states(courier: Courier) -> dict[str, Any]:
    """What the registry shows of breakers and throttles."""
    return {
        gate: {
            "breaker": status.breaker.state.value,
            "why": status.breaker.why,
            "next_probe_seconds": round(courier.next_opening_seconds(gate), 1),
            "throttled_seconds": round(status.throttled_seconds, 1),
        }
        for gate, status in courier.states().items()
    }


def _as_given(settings: Settings) -> Configured:
    """Settings made by a program: what differs from the default was given, the rest the shop may say."""
    plain = Settings()
    sources = {
        (section, name): "program"
        for section in SECTIONS
        for name in getattr(plain, section).__dataclass_fields__
        if getattr(getattr(settings, section), name) != getattr(getattr(plain, section), name)
    }
    return Configured(settings=settings, sources=sources)


def _remaining(limits: Limits, settled: int, seconds: float) -> Limits:
    """What is left of the limits after a reload."""
    return replace(
        limits,
        max_messages=None if limits.max_messages is None else max(0, limits.max_messages - settled),
        max_runtime_seconds=None
        if limits.max_runtime_seconds is None
        else max(0.0, limits.max_runtime_seconds - seconds),
    )
