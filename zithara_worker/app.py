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
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from zithara_worker import config, logs
from zithara_worker.audit import AuditFile
from zithara_worker.config import Configured
from zithara_worker.delivery.backoff import RetryPolicy, delay_before
from zithara_worker.delivery.courier import Courier
from zithara_worker.delivery.pool import DeliveryPool
from zithara_worker.delivery.rate import TokenBucket
from zithara_worker.errors import ConfigurationError, DatabaseUnavailable, SchemaOutdated, ZitharaWorkerError
from zithara_worker.listening import Listening, Running
from zithara_worker.magento import schema
from zithara_worker.magento.crypt import decrypt, is_encrypted
from zithara_worker.magento.database import Database
from zithara_worker.magento.deployment_config import deployment_config
from zithara_worker.magento.env_php import read_env_php
from zithara_worker.magento.leases import Leases
from zithara_worker.magento.queue import MessageQueue
from zithara_worker.magento.registry import Identity, Registry
from zithara_worker.magento.shop import ShopConfiguration, find_queues, read_configuration
from zithara_worker.magento.token_store import DatabaseTokenStore
from zithara_worker.messages import (
    TOPIC_CART,
    TOPIC_CUSTOMER,
    TOPIC_ORDER,
    TOPIC_WEBHOOK,
    TOPICS,
    Event,
    Message,
    Outcome,
    Rejection,
    Request,
    Skip,
    Target,
)
from zithara_worker.processors import ShopContext, identify, process, supersedes
from zithara_worker.settings import SECTIONS, LoggingSettings, Settings
from zithara_worker.version import VERSION
from zithara_worker.worker.audit import DeliveryAudit
from zithara_worker.worker.duties import Duties
from zithara_worker.worker.ending import End, Limits
from zithara_worker.worker.loop import Loop, Wish
from zithara_worker.worker.metrics import WorkerMetrics
from zithara_worker.worker.notify import Notifier
from zithara_worker.worker.outcomes import log_settled
from zithara_worker.worker.stats import Stats
from zithara_worker.zithara.api import ZitharaApi
from zithara_worker.zithara.tokens import TokenSource
from zithara_worker.zithara.transport import Transport, tls_context

__all__ = ["Limits", "Worker", "configure", "open_database"]

log = logging.getLogger(__name__)

#: What [worker] coalesce calls the topics.
_KINDS = {"cart": TOPIC_CART, "customer": TOPIC_CUSTOMER, "order": TOPIC_ORDER, "webhook": TOPIC_WEBHOOK}
_TARGETS = {topic: Target.WEBHOOK if topic == TOPIC_WEBHOOK else Target.API for topic in TOPICS}
_STACK_BYTES = 256 * 1024
#: What a stop may take beyond shutdown_timeout: the last outcomes are written.
_STOP_MARGIN_SECONDS = 15.0


def configure(file: Path | None, overrides: Mapping[tuple[str, str], Any], environ: Mapping[str, str]) -> Configured:
    """The configuration as far as it goes without a database; see `config.load`."""
    return config.load(file, overrides, environ, _shop_file_values)


def open_database(settings: Settings, **arguments: Any) -> Database:
    """A session for these settings, not yet connected."""
    return Database(settings.database, **arguments)


def complete(configured: Configured, shop: ShopConfiguration) -> Configured:
    """Adds what the shop says, decrypted, where nobody else has given a value. Raises ConfigurationError."""
    values = dict(shop.values)
    for place, (text, source) in shop.values.items():
        if place in configured.sources or not is_encrypted(text):
            continue
        root = configured.settings.magento.root
        if root is None:
            raise ConfigurationError(
                f"{source} holds an encrypted {place[1]}: set [magento] root, whose app/etc/env.php has the key, "
                f"or [{place[0]}] {place[1]}"
            )
        environment = read_env_php(_env_php(root), given=configured.sources)
        if environment.crypt_keys_unread:
            raise ConfigurationError(
                f"{source} holds an encrypted {place[1]}, and its key cannot be read: {environment.crypt_keys_unread}; "
                f"set [{place[0]}] {place[1]} in the worker's configuration"
            )
        try:
            values[place] = (decrypt(text, environment.crypt_keys), source)
        except ConfigurationError as error:
            raise ConfigurationError(f"{source}, {place[1]}: {error}") from error
    completed = config.with_shop_values(configured, values)
    return replace(completed, warnings=(*completed.warnings, *_unknown_to_us(configured, shop)))


def _unknown_to_us(configured: Configured, shop: ShopConfiguration) -> Iterator[str]:
    """Sentences about the shop's settings that only PHP could work out, where the worker's own do not replace them."""
    for setting in shop.unknown:
        if setting.place is None:
            remedy = "write the value itself there; what is assumed until then: docs/configuration.md"
        elif setting.place not in configured.sources:
            remedy = f"it is passed over: set [{setting.place[0]}] {setting.place[1]}"
        else:
            continue
        yield f"{setting.why}; {remedy}"


def _shop_file_values(root: Path, given: Collection[config.Place]) -> config.Values:
    path = _env_php(root)
    return {place: (text, str(path)) for place, text in read_env_php(path, given=given).values.items()}


def _env_php(root: Path) -> Path:
    return root / "app" / "etc" / "env.php"


class Worker:
    """Takes and delivers messages until it is stopped or its limits are reached.

    `reconfigure` reads the configuration again (SIGHUP, or the shop's credentials have changed); without it, the
    settings stay as they are. `clock` replaces the time of the database's session, for tests; `monotonic` the clock of
    leases and pauses. `notifier` tells the service manager, if there is one.
    """

    def __init__(
        self,
        settings: Settings | Configured,
        *,
        reconfigure: Callable[[], Configured] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        utc: Callable[[], float] = time.time,
        clock: Callable[[], float] | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        self._notifier = notifier or Notifier()
        self._configured = settings if isinstance(settings, Configured) else _as_given(settings)
        self._reconfigure = reconfigure
        self._monotonic = monotonic
        self._utc = utc
        self._clock = clock
        self._stats = Stats(utc)
        self._metrics = WorkerMetrics(monotonic=monotonic, utc=utc)
        self._audit: AuditFile | None = None
        self._stopping = threading.Event()
        self._asked_to_reload = False
        self._inbox: SimpleQueue[tuple[Message, Outcome] | Wish] = SimpleQueue()
        self._listening = Listening(
            self._metrics, open_database=open_database, stopping=self._stopping.is_set, monotonic=monotonic
        )

    def stop(self) -> None:
        """Stop claiming, finish what is in flight, put the rest back. From any thread, or a signal handler."""
        self._stopping.set()
        self._inbox.put(Wish.STOP)

    def reload(self) -> None:
        """Read the configuration again and reopen the log files, once what is in flight is done. As `stop`."""
        self._asked_to_reload = True
        self._inbox.put(Wish.RELOAD)

    def run(
        self, topics: Sequence[str] = TOPICS, *, stop: threading.Event | None = None, limits: Limits | None = None
    ) -> End:
        """Runs until the end; why it ended. `stop`: an event that stops it, set by whoever embeds it.

        Waits for a database that is away. Raises ConfigurationError and ShopError for what only a person can mend.
        """
        if stop is not None:
            threading.Thread(target=self._stop_after, args=(stop,), name="stop-watch", daemon=True).start()
        limits = limits or Limits()
        started = self._monotonic()
        try:
            while True:
                end, settled = self._run_once(topics, limits)
                if end is not End.RELOAD or self._stopping.is_set():
                    log.info("stopped", extra={"event": "stopped", "why": end.value})
                    return end
                self._read_again()
                limits = _remaining(limits, settled, self._monotonic() - started)
                started = self._monotonic()
        finally:
            self._listening.close()
            self._use_audit(None)

    def _stop_after(self, event: threading.Event) -> None:
        event.wait()
        self.stop()

    def _read_again(self) -> None:
        self._asked_to_reload = False
        if self._reconfigure is not None:
            try:
                self._configured = self._reconfigure()
                logs.configure(self._configured.settings.logging)
            except (ZitharaWorkerError, OSError) as error:
                log.error(
                    "the configuration cannot be read again; going on with the one in force",
                    extra={"event": "reload_failed", "detail": str(error)},
                )
                return
        log.info("configuration read again", extra={"event": "reloaded"})

    def _run_once(self, topics: Sequence[str], limits: Limits) -> tuple[End, int]:
        settings = self._configured.settings
        self._listening.serve(settings)
        self._use_audit(settings.logging)
        database = open_database(settings, clock=self._clock)
        try:
            opened = self._wait_for(lambda: self._connected(database, topics))
            if opened is None:
                return End.STOPPED, 0
            configured, shop, rows = opened
            logs.warn_of(configured.warnings[len(self._configured.warnings) :])
            with self._loop(database, configured, shop, rows, limits) as (loop, registry):
                log.info(
                    "started",
                    extra={
                        "event": "started",
                        "topics": list(topics),
                        "database": database.version,
                        "base_url": configured.settings.zithara.base_url,
                    },
                )
                self._notifier.ready(f"takes {', '.join(topics)}")
                end = loop.run()
                try:
                    registry.gone()
                except DatabaseUnavailable as error:
                    log.info("left no word in the registry", extra={"event": "registry_away", "detail": str(error)})
                return end, loop.settled_count
        finally:
            database.close()

    def _use_audit(self, settings: LoggingSettings | None) -> None:
        """Goes on with the audit file that these settings name, opened anew; None closes it."""
        wanted = settings.audit_file if settings else None
        if self._audit is not None:
            if settings is not None and self._audit.is_for(wanted, required=settings.audit_required):
                self._audit.reopen()
                return
            self._audit.close()
        self._audit = None
        if settings is not None and wanted is not None:
            self._audit = AuditFile(wanted, required=settings.audit_required, monotonic=self._monotonic, utc=self._utc)

    def _connected(self, database: Database, topics: Sequence[str]) -> tuple[Configured, ShopConfiguration, Any]:
        schema.require(database)
        shop = read_configuration(database, deployment_config(self._configured.settings.magento.root))
        configured = complete(self._configured, shop)
        return configured, shop, find_queues(database, topics, configured.settings.queues)

    def _wait_for(self, connect: Callable[[], Any]) -> Any:
        """Tries until the database answers and has our tables, or None when stopped; complains once a minute."""
        pause, complain_at = 0.2, 0.0
        while not self._stopping.is_set():
            try:
                return connect()
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
                self._notifier.waiting("waits for zithara-worker install" if outdated else "waits for the database")
                self._notifier.alive()
                self._stopping.wait(pause)
                pause = min(5.0, pause * 2)
        return None

    @contextmanager
    def _loop(
        self, database: Database, configured: Configured, shop: ShopConfiguration, rows: Any, limits: Limits
    ) -> Iterator[tuple[Loop, Registry]]:
        """Builds one loop with everything it needs, and takes it down again."""
        settings = configured.settings
        # An inbox of its own: nothing that an earlier loop left behind may reach this one.
        inbox = self._inbox = SimpleQueue()
        if self._stopping.is_set():
            inbox.put(Wish.STOP)
        if self._asked_to_reload:
            inbox.put(Wish.RELOAD)
        worker_id = f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(4)}"
        identity = Identity(
            id=worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=VERSION,
            topics=[row.topic for row in rows],
        )
        registry = Registry(database, identity)
        transport = Transport(
            tls=tls_context(verify=settings.zithara.verify, ca_file=str(settings.zithara.ca_file or "")),
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
            http=transport,
        )
        api = ZitharaApi(
            base_url=settings.zithara.base_url,
            tokens=tokens,
            http=transport,
            pause=stopping.wait,
            now_utc=self._utc,
            digest=audit is not None,
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
        )
        context = _Context(settings, shop, self._utc)
        coalesced = {_KINDS[kind] for kind in settings.worker.coalesce}
        queues = [
            (
                MessageQueue(
                    database,
                    queue_id=row.queue_id,
                    name=row.name,
                    topic=row.topic,
                    worker_id=worker_id,
                    lease_seconds=settings.worker.lease,
                    identify=identify,
                    monotonic=self._monotonic,
                    supersedes=supersedes if row.topic in coalesced else None,
                    attempt_limit=settings.retry.limit,
                ),
                _TARGETS[row.topic],
            )
            for row in rows
        ]
        policy = RetryPolicy(
            limit=settings.retry.limit,
            delay_seconds=settings.retry.delay,
            factor=settings.retry.factor,
            max_delay_seconds=settings.retry.max_delay,
        )
        threading.stack_size(_STACK_BYTES)
        pool = DeliveryPool(
            settings.worker.concurrency, courier.deliver, lambda message, outcome: inbox.put((message, outcome))
        )
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
                    files=deployment_config(settings.magento.root),
                    states=lambda: _states(courier),
                    minutes=self._stats.minutes,
                    metrics_address=self._listening.address,
                    on_configuration=context.update,
                    monotonic=self._monotonic,
                    poll_interval_seconds=settings.worker.poll_interval,
                ),
                leases=Leases(
                    database,
                    worker_id=worker_id,
                    lease_seconds=settings.worker.lease,
                    monotonic=self._monotonic,
                ),
                gate=courier,
                pool=pool,
                inbox=inbox,
                process=context.process,
                delay_before=lambda attempt: delay_before(attempt, policy, random.uniform(-1, 1)),  # noqa: S311
                stats=self._stats,
                monotonic=self._monotonic,
                concurrency=settings.worker.concurrency,
                batch_size=settings.worker.batch_size,
                lease_seconds=settings.worker.lease,
                shutdown_timeout_seconds=settings.worker.shutdown_timeout,
                attempt_limit=settings.retry.limit,
                limits=limits,
                on_settled=log_settled,
                sign=_Sign(self._notifier, settings.worker.shutdown_timeout),
                may_claim=audit.ready if audit and settings.logging.audit_required else lambda: True,
                observer=self._metrics,
            )
            self._listening.attach(
                Running(
                    loop=loop,
                    courier=courier,
                    tokens=tokens,
                    rows=rows,
                    targets=frozenset(_TARGETS[row.topic] for row in rows),
                    settings=settings,
                    audit=audit,
                )
            )
            yield loop, registry
        finally:
            self._listening.detach()
            courier.shutdown()
            pool.stop(0.0)
            transport.close()


class _Sign:
    """What the service manager is told of a loop."""

    def __init__(self, notifier: Notifier, shutdown_timeout_seconds: float) -> None:
        self._notifier = notifier
        self._shutdown_timeout = shutdown_timeout_seconds
        self.interval_seconds = notifier.interval_seconds

    def alive(self) -> None:
        self._notifier.alive()

    def ending(self, end: End) -> None:
        if end is End.RELOAD:
            self._notifier.reloading()
        else:
            self._notifier.stopping(within_seconds=self._shutdown_timeout + _STOP_MARGIN_SECONDS)


class _Context:
    """Turns messages into requests with the shop's latest answers."""

    def __init__(self, settings: Settings, shop: ShopConfiguration, utc: Callable[[], float]) -> None:
        self._settings = settings
        self._utc = utc
        self._shop = shop

    def update(self, shop: ShopConfiguration) -> None:
        self._shop = shop

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
        target.value: {
            "breaker": status.breaker.state.value,
            "next_probe_seconds": round(courier.next_opening_seconds(target), 1),
            "throttled_seconds": round(status.throttled_seconds, 1),
        }
        for target, status in courier.states().items()
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
