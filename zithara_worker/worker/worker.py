"""The public worker: what `consume` runs, and what another program embeds:

from zithara_worker import Settings, Worker
Worker(Settings(...)).run(["zithara.order.events"], stop=event)
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

from zithara_worker.database.session import Database
from zithara_worker.errors import ConfigurationError, DatabaseUnavailable, SchemaOutdated, ZitharaWorkerError
from zithara_worker.limits import End, Limits
from zithara_worker.logs import handlers as logs
from zithara_worker.logs.audit import AuditFile
from zithara_worker.monitor.counters import WorkerMetrics
from zithara_worker.monitor.endpoints import Endpoints
from zithara_worker.monitor.registry import MinuteCounters
from zithara_worker.monitor.service_manager import ServiceManager
from zithara_worker.settings.reload import Reload
from zithara_worker.settings.sections import LoggingSettings, Settings
from zithara_worker.settings.sources import LoadedSettings, given_by_program
from zithara_worker.topics import TOPICS, full_name
from zithara_worker.worker.building import Lasting, Prepared, prepare, running_loop
from zithara_worker.worker.duties import DebugSwitch, PoisonPill
from zithara_worker.worker.inbox import Arrivals, ControlRequest

log = logging.getLogger(__name__)

#: Seconds between two log lines while the worker waits for its first connection to the database.
LOG_SECONDS = 60.0


def lease_clock() -> float:
    """Seconds on a clock that runs on while the machine is suspended. CLOCK_MONOTONIC stands still meanwhile, so leases
    that others have long taken over would look valid after waking."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Worker:
    """Claims and delivers messages until it is stopped or its limits are reached.

    `reconfigure` reads the configuration again (SIGHUP, or the shop's credentials have changed); without it, the
    settings stay as they are. `clock` replaces the time of the database's session, for tests; `monotonic` the clock of
    leases and pauses. `service_manager`: without one, no service manager is told anything.
    """

    def __init__(
        self,
        settings: Settings | LoadedSettings,
        *,
        reconfigure: Callable[[], LoadedSettings] | None = None,
        monotonic: Callable[[], float] = lease_clock,
        utc: Callable[[], float] = time.time,
        clock: Callable[[], float] | None = None,
        service_manager: ServiceManager | None = None,
    ) -> None:
        self._configured = settings if isinstance(settings, LoadedSettings) else given_by_program(settings)
        self._reconfigure = reconfigure
        self._monotonic = monotonic
        self._stopping = threading.Event()
        self._topics: Sequence[str] = ()
        self._arrivals: Arrivals = SimpleQueue()
        self._reload = Reload(self._prepare_next, monotonic=monotonic)
        metrics = WorkerMetrics(monotonic=monotonic, utc=utc)
        self._lasting = Lasting(
            monotonic=monotonic,
            utc=utc,
            database_clock=clock,
            service_manager=service_manager or ServiceManager(),
            endpoints=Endpoints(
                metrics,
                open_database=lambda settings: Database(settings.database),
                stopping=self._stopping.is_set,
                configuration_problem=lambda: self._reload.problem,
                monotonic=monotonic,
            ),
            metrics=metrics,
            minute_counters=MinuteCounters(utc),
            poison_pill=PoisonPill(),
            debug=DebugSwitch(),
            reload=self._reload,
        )
        self._audit: AuditFile | None = None
        self._in_force: Prepared | None = None
        self._next: Prepared | None = None

    def stop(self) -> None:
        """Stops claiming, finishes the requests in flight, releases the rest. From any thread, or a signal handler."""
        self._stopping.set()
        self._arrivals.put(ControlRequest.STOP)

    def reload(self) -> None:
        """Reopens the log files and reads the configuration again; it comes into force if it can be used. From any
        thread, or a signal handler."""
        self._reload.ask()
        self._arrivals.put(ControlRequest.RELOAD)

    def run(
        self, topics: Sequence[str] = TOPICS, *, stop: threading.Event | None = None, limits: Limits | None = None
    ) -> End:
        """Runs until the end, and returns why it ended. `topics`: full or short names. `stop`: an event that stops it,
        set by the embedding program.

        Waits for a database that is not available. Raises ConfigurationError and ShopError, which only a person can
        mend.
        """
        if stop is not None:
            threading.Thread(target=self._stop_after, args=(stop,), name="stop-watch", daemon=True).start()
        limits = limits or Limits()
        self._topics = tuple(full_name(topic) for topic in topics)
        started = self._monotonic()
        try:
            first = self._wait_for_first(limits)
            if isinstance(first, End):
                end = first
            else:
                end = self._run_loops(first, limits.remaining(settled=0, seconds=self._monotonic() - started))
            log.info("stopped", extra={"event": "stopped", "why": end.value})
            return end
        finally:
            self._lasting.debug.set(on=False)
            self._lasting.endpoints.close()
            if self._next is not None:
                self._next.database.close()
            if self._audit is not None:
                self._audit.close()

    def _stop_after(self, event: threading.Event) -> None:
        event.wait()
        self.stop()

    def _run_loops(self, prepared: Prepared, limits: Limits) -> End:
        """Runs a loop, and after each reload its successor."""
        while True:
            started = self._monotonic()
            end, settled = self._run_once(prepared, limits)
            if end is not End.RELOAD or self._stopping.is_set() or self._next is None:
                return end
            log.info("configuration read again", extra={"event": "reloaded"})
            limits = limits.remaining(settled=settled, seconds=self._monotonic() - started)
            prepared, self._next = self._next, None

    def _run_once(self, prepared: Prepared, limits: Limits) -> tuple[End, int]:
        """Runs one loop; why it ended, and how many messages it settled."""
        self._in_force = prepared
        if self._audit is not None and self._audit is not prepared.audit:
            self._audit.close()
        self._audit = prepared.audit
        self._lasting.endpoints.serve(prepared.base.settings)
        logs.warn_of(prepared.configured.warnings[len(prepared.base.warnings) :])
        # Arrivals of its own: no result that an earlier loop left behind may reach this one.
        arrivals = self._arrivals = SimpleQueue()
        if self._stopping.is_set():
            arrivals.put(ControlRequest.STOP)
        try:
            with running_loop(prepared, self._lasting, limits, arrivals) as loop:
                log.info(
                    "started",
                    extra={
                        "event": "started",
                        "topics": list(self._topics),
                        "database": prepared.database.version,
                        "base_url": prepared.settings.zithara.base_url,
                    },
                )
                self._lasting.service_manager.ready(f"takes {', '.join(self._topics)}")
                return loop.run(), loop.settled_count
        finally:
            prepared.database.close()

    # ---------------------------------------------------------------- configurations

    def _wait_for_first(self, limits: Limits) -> Prepared | End:
        """The first configuration, once the database answers and has the worker's tables; else why the wait ended."""
        base, pause, complain_at, started = self._configured, 0.2, 0.0, self._monotonic()
        service_manager = self._lasting.service_manager
        while not self._stopping.is_set():
            if self._reload.wanted:
                base = self._read_while_waiting(base)
            self._lasting.endpoints.serve(base.settings)
            try:
                return self._prepare(base)
            except ConfigurationError:
                raise  # also if the database refuses the user: no configuration is in force with which to wait
            except (DatabaseUnavailable, SchemaOutdated) as error:
                outdated = isinstance(error, SchemaOutdated)
                if self._monotonic() >= complain_at:
                    complain_at = self._monotonic() + LOG_SECONDS
                    log.warning(
                        "tables of an older version, waiting for 'zithara-worker install'"
                        if outdated
                        else "database not available, waiting for it",
                        extra={"event": "schema_outdated" if outdated else "database_away", "detail": str(error)},
                    )
            service_manager.waiting("waits for zithara-worker install" if outdated else "waits for the database")
            service_manager.alive()
            # Waits for the queue, not for the event: `stop` may run in a signal handler in this very thread, and would
            # wait for ever for the lock of the event if the thread held it.
            with suppress(Empty):
                self._arrivals.get(timeout=pause)
            pause = min(5.0, pause * 2)
            if end := limits.reached(settled=0, seconds=self._monotonic() - started):
                return end
        return End.STOPPED

    def _read_while_waiting(self, base: LoadedSettings) -> LoadedSettings:
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
        """Tries the configuration out while the loop goes on; see `Reload`."""
        in_force = self._in_force
        if in_force is None:
            return False
        logs.reopen_files()
        if self._audit is not None:
            self._audit.reopen()
        base = self._reconfigure() if self._reconfigure else in_force.base
        if not database_up and base == in_force.base:
            return False
        prepared = self._prepare(base)
        try:
            if prepared.audit is not None and prepared.audit is not self._audit and not prepared.audit.ready():
                raise ConfigurationError(
                    f"[logging] audit_file {base.settings.logging.audit_file} cannot be written: "
                    f"{prepared.audit.problem}"
                )
            if self._reconfigure:
                logs.configure(base.settings.logging)
        except ConfigurationError:
            prepared.database.close()
            raise
        # The loop at work still settles what is in flight, which it could not do with a password that was changed.
        in_force.database.log_in_as(base.settings.database)
        self._next = prepared
        return True

    def _prepare(self, base: LoadedSettings) -> Prepared:
        return prepare(base, self._topics, self._lasting, self._audit_for)

    def _audit_for(self, settings: LoggingSettings) -> AuditFile | None:
        """The audit file that these settings want: the one in use, if it is the same."""
        wanted, required = settings.audit_file, settings.audit_required
        if wanted is None:
            return None
        if self._audit is not None and self._audit.is_for(wanted, required=required):
            return self._audit
        return AuditFile(wanted, required=required, monotonic=self._monotonic, utc=self._lasting.utc)
