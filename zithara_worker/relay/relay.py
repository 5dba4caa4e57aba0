"""The relay as a process: what `relay` runs. Keeps running through reloads, and builds each loop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue

from zithara_worker.database.session import Database
from zithara_worker.limits import End, Limits
from zithara_worker.logs import handlers as logs
from zithara_worker.monitor.counters import WorkerMetrics
from zithara_worker.monitor.endpoints import Endpoints, MonitoredWorker
from zithara_worker.monitor.fleet import RELAY
from zithara_worker.monitor.registry import Identity, MinuteCounters, Registry
from zithara_worker.monitor.service_manager import ServiceManager
from zithara_worker.relay.amqp import Broker
from zithara_worker.relay.connection import parameters
from zithara_worker.relay.loop import LEASE_SECONDS, RelayLoop
from zithara_worker.settings.reload import Reload
from zithara_worker.settings.sources import LoadedSettings
from zithara_worker.shop.configuration import require_rabbitmq
from zithara_worker.topics import full_name

log = logging.getLogger(__name__)


class Relay:
    """Moves messages from RabbitMQ into the shop's queue until it is stopped or its limits are reached.

    `reconfigure` reads the configuration again (SIGHUP).
    """

    def __init__(
        self,
        configured: LoadedSettings,
        *,
        reconfigure: Callable[[], LoadedSettings] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        utc: Callable[[], float] = time.time,
        service_manager: ServiceManager | None = None,
        lease_seconds: float = LEASE_SECONDS,
        broker: Callable[..., Broker] = Broker,
    ) -> None:
        self._configured = configured
        self._reconfigure = reconfigure
        self._monotonic = monotonic
        self._lease_seconds = lease_seconds
        self._broker = broker
        self._service_manager = service_manager or ServiceManager()
        self._stopping = threading.Event()
        self._arrivals: SimpleQueue[None] = SimpleQueue()
        self._reload = Reload(self._prepare_next, monotonic=monotonic)
        self._minute_counters = MinuteCounters(utc)
        self._metrics = WorkerMetrics(monotonic=monotonic, utc=utc)
        self._endpoints = Endpoints(
            self._metrics,
            open_database=lambda settings: Database(settings.database),
            stopping=self._stopping.is_set,
            configuration_problem=lambda: self._reload.problem,
            monotonic=monotonic,
        )
        self._next: LoadedSettings | None = None
        #: The loop at work
        self.loop: RelayLoop | None = None

    def stop(self) -> None:
        """Stores what was delivered, and ends. From any thread, or a signal handler."""
        self._stopping.set()
        self._arrivals.put(None)

    def reload(self) -> None:
        """Reopens the log files and reads the configuration again. From any thread, or a signal handler."""
        self._reload.ask()
        self._arrivals.put(None)

    def run(self, topics: Sequence[str], *, limits: Limits | None = None) -> End:
        """Runs until the end, and returns why it ended. Waits for a database and a RabbitMQ that are not available.
        Raises ConfigurationError and ShopError, which only a person can mend."""
        limits = limits or Limits()
        names = tuple(full_name(topic) for topic in topics)
        try:
            return self._run_loops(names, limits)
        finally:
            self._endpoints.close()

    def _run_loops(self, names: Sequence[str], limits: Limits) -> End:
        while True:
            require_rabbitmq(self._configured)
            started = self._monotonic()
            self._endpoints.serve(self._configured.settings)
            loop = self.loop = self._loop(self._configured, names, limits)
            self._endpoints.attach(self._monitored(loop, names))
            try:
                end = loop.run()
            finally:
                self._endpoints.detach()
            if end is not End.RELOAD or self._stopping.is_set() or self._next is None:
                log.info("stopped", extra={"event": "stopped", "why": end.value})
                return end
            log.info("configuration read again", extra={"event": "reloaded"})
            limits = limits.remaining(settled=loop.moved, seconds=self._monotonic() - started)
            self._configured, self._next = self._next, None

    def _loop(self, configured: LoadedSettings, topics: Sequence[str], limits: Limits) -> RelayLoop:
        settings = configured.settings
        database = Database(settings.database)
        identity = Identity.of_this_process(topics, role=RELAY)
        return RelayLoop(
            settings,
            topics,
            database=database,
            broker=partial(
                self._broker, name=f"zithara-worker relay {identity.host} {identity.pid}", monotonic=self._monotonic
            ),
            registry=Registry(database, identity),
            owner=identity.id,
            arrivals=self._arrivals,
            stopping=self._stopping.is_set,
            limits=limits,
            minute_counters=self._minute_counters,
            metrics=self._metrics,
            reload=self._reload,
            service_manager=self._service_manager,
            metrics_address=lambda: self._endpoints.address,
            monotonic=self._monotonic,
            lease_seconds=self._lease_seconds,
        )

    def _monitored(self, loop: RelayLoop, topics: Sequence[str]) -> MonitoredWorker:
        return MonitoredWorker(
            topics=topics,
            status=loop.status,
            targets=dict,
            token_refreshes=lambda: 0,
            queues=(),
            targets_by_topic={},
            settings=self._configured.settings,
            audit=None,
            health=loop.health,
        )

    def _prepare_next(self, database_up: bool) -> bool:
        """Reads the configuration while the loop goes on; see `Reload`."""
        logs.reopen_files()
        configured = self._reconfigure() if self._reconfigure else self._configured
        require_rabbitmq(configured)
        parameters(configured.settings.relay, "")  # opens the files for TLS
        if self._reconfigure:
            logs.configure(configured.settings.logging)
        self._next = configured
        return True
