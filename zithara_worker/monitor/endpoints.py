"""What a worker serves over HTTP: which path shows what. One object for the life of a process: it answers while the
database is not available, and keeps its port and its counters through every reload.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING

from zithara_worker.database.session import Database
from zithara_worker.delivery.courier import TargetStatus
from zithara_worker.errors import ZitharaWorkerError
from zithara_worker.logs.audit import AuditFile
from zithara_worker.monitor.counters import WorkerMetrics
from zithara_worker.monitor.fleet import FleetStatus, read_fleet
from zithara_worker.monitor.health import Health, LoopStatus, longest_delivery_seconds, worker_health
from zithara_worker.monitor.rates import HISTORY_MINUTES
from zithara_worker.monitor.server import Listener, NoFreePort, Reply, as_json, text
from zithara_worker.queue.queues import QueueRow
from zithara_worker.settings.sections import Settings

if TYPE_CHECKING:
    from zithara_worker.monitor.prometheus import PrometheusMetrics, State

log = logging.getLogger(__name__)

#: Seconds between two readings of the fleet, at least, however many requests come; and at most, without any request.
READ_INTERVAL_SECONDS = 10.0
SAMPLE_INTERVAL_SECONDS = 30.0
#: Reading may take this share of the time: counting a long backlog is work for the database.
READ_SHARE = 0.02
#: How long a request waits for a reading that is under way.
READ_WAIT_SECONDS = 2.0
LOG_INTERVAL_SECONDS = 60.0
#: What /metrics answers where prometheus-client is not installed.
NO_PROMETHEUS = (
    "metrics need prometheus-client, which is not installed: install the Debian package python3-prometheus-client, "
    "or pip install 'zithara-worker[metrics]'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitoredWorker:
    """What the endpoints read of a loop and its delivery, until the next reload. The callables may be called from any
    thread. A relay has no targets and no queues that are to be delivered, and judges its health by itself."""

    topics: Sequence[str]
    status: Callable[[], LoopStatus]
    #: Target -> its breaker and throttle
    targets: Callable[[], Mapping[str, TargetStatus]]
    #: Access tokens fetched so far
    token_refreshes: Callable[[], int]
    queues: Sequence[QueueRow]
    #: Topic -> the targets that its requests pass
    targets_by_topic: Mapping[str, Sequence[str]]
    settings: Settings
    audit: AuditFile | None
    #: Given why a changed configuration cannot be used. None: the health follows from the values above
    health: Callable[[str | None], Health] | None = None


class Endpoints:
    """Serves on the address of `[metrics] listen`. `open_database`: makes a session, not yet connected, for these
    settings.

    `stopping`: whether the worker was asked to stop. `configuration_problem`: why a changed configuration cannot be
    used.
    """

    def __init__(
        self,
        metrics: WorkerMetrics,
        *,
        open_database: Callable[[Settings], Database],
        stopping: Callable[[], bool],
        configuration_problem: Callable[[], str | None],
        monotonic: Callable[[], float],
    ) -> None:
        self._metrics = metrics
        self._open_database = open_database
        self._stopping = stopping
        self._configuration_problem = configuration_problem
        self._monotonic = monotonic
        self._worker: MonitoredWorker | None = None
        self._listen = ""
        self._listener: Listener | None = None
        self._poller: FleetPoller | None = None
        self._prometheus: PrometheusMetrics | None = None
        self._earlier_refreshes = 0

    @property
    def address(self) -> str | None:
        """host:port that it listens on; None when it is off, or no port could be used."""
        return self._listener.address if self._listener else None

    def serve(self, settings: Settings) -> None:
        """Listens on the address of these settings. Keeps its port if the address has not changed."""
        if self._listener is not None and settings.metrics.listen == self._listen:
            return
        self.close()
        self._listen = settings.metrics.listen
        if self._listen:
            self._start(settings)

    def _start(self, settings: Settings) -> None:
        listener = Listener(
            settings.metrics.listen,
            {
                "/": self._page,
                "/metrics": self._scrape,
                "/healthz": self._healthz,
                "/healthz/live": self._live,
                "/healthz/ready": self._healthz,
            },
        )
        try:
            listener.start()
        except NoFreePort as error:
            log.error("%s (the worker runs without metrics)", error, extra={"event": "listen_failed"})
            return
        self._listener = listener
        self._poller = FleetPoller(lambda: self._database(settings), self._overrides, monotonic=self._monotonic)
        self._poller.start()

    def attach(self, worker: MonitoredWorker) -> None:
        """Shows this worker from now on."""
        self.detach()
        self._worker = worker

    def detach(self) -> None:
        """The loop has ended: its counts stay, and it is not asked any more."""
        if self._worker is not None:
            self._earlier_refreshes += self._worker.token_refreshes()
        self._worker = None

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._poller is not None:
            self._poller.close()
        self._listener = self._poller = None

    # ---------------------------------------------------------------- answers, in the listener's threads

    def health(self) -> Health:
        worker = self._worker
        if worker is None:
            return worker_health(None, self._monotonic(), down={}, stopping=self._stopping(), audit_problem=None)
        if worker.health is not None:
            return worker.health(self._configuration_problem())
        audit = worker.audit if worker.settings.logging.audit_required else None
        down = {target: status.breaker.why for target, status in worker.targets().items() if status.breaker.why}
        return worker_health(
            worker.status(),
            self._monotonic(),
            down=down,
            delivers_nothing=all(
                any(target in down for target in targets) for targets in worker.targets_by_topic.values()
            ),
            stopping=self._stopping(),
            audit_problem=audit.problem if audit else None,
            configuration_problem=self._configuration_problem(),
            longest_delivery_seconds=longest_delivery_seconds(worker.settings),
        )

    def _healthz(self, accept: str) -> Reply:
        health = self.health()
        return self._told(health, good=health.live and health.ready)

    def _live(self, accept: str) -> Reply:
        health = self.health()
        return self._told(health, good=health.live)

    def _told(self, health: Health, *, good: bool) -> Reply:
        """With who answers, because addresses can change hands."""
        worker = self._worker
        me = {"host": socket.gethostname(), "pid": os.getpid(), "topics": list(worker.topics) if worker else []}
        return as_json(HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE, {**me, **health.as_json()})

    def _scrape(self, accept: str) -> Reply:
        if self._prometheus is None:
            try:
                from zithara_worker.monitor.prometheus import PrometheusMetrics
            except ModuleNotFoundError:
                return text(HTTPStatus.NOT_IMPLEMENTED, NO_PROMETHEUS)
            self._prometheus = PrometheusMetrics(self._metrics.values, self._state)
        body, content_type = self._prometheus.encoded(accept)
        return Reply(content_type=content_type, body=body)

    def _page(self, accept: str) -> Reply:
        from zithara_worker.monitor import page

        poller = self._poller
        fleet, problem = poller.latest() if poller else (None, "the listener is closing")
        health = self.health()
        document = page.render(
            fleet,
            problem=problem,
            backlog=poller.backlog() if poller else {},
            reasons=health.reasons,
            notes=health.notes,
        )
        return Reply(
            content_type="text/html; charset=utf-8",
            body=document.encode("utf-8", "xmlcharrefreplace"),
            headers=page.HEADERS,
        )

    def _database(self, first: Settings) -> Database:
        """A session with the settings of the present loop; before there is one, with those of the start."""
        worker = self._worker
        return self._open_database(worker.settings if worker else first)

    def _overrides(self) -> Mapping[str, str] | None:
        worker = self._worker
        return worker.settings.queues if worker else None

    def _state(self) -> State:
        from zithara_worker.monitor.prometheus import State

        worker, health = self._worker, self.health()
        if worker is None:
            return State(ready=False, database_up=False, shop_enabled=False, token_refreshes=self._earlier_refreshes)
        loop, targets = worker.status(), worker.targets()
        fleet, problem = self._poller.latest() if self._poller else (None, None)
        if problem is not None:
            fleet = None
        topics = [topic for topic in fleet.topics if topic.queue is not None] if fleet else []
        paused = {topic.topic: topic.pause is not None for topic in topics}
        paused.update((row.topic, row.topic in loop.paused) for row in worker.queues)
        return State(
            ready=health.ready,
            database_up=loop.database_up,
            shop_enabled=loop.consumable,
            paused=paused,
            concurrency=worker.settings.worker.concurrency,
            breakers={target: status.breaker.state.value for target, status in targets.items()},
            throttled_seconds={target: status.throttled_seconds for target, status in targets.items()},
            token_refreshes=self._earlier_refreshes + worker.token_refreshes(),
            topics=topics if fleet else None,
            read_seconds=fleet.read_seconds if fleet else 0.0,
            reconciliations=fleet.reconciliations if fleet else (),
            audit_writable=None if worker.audit is None else worker.audit.problem is None,
            audit_lines=worker.audit.lines_written if worker.audit else 0,
            audit_lines_lost=worker.audit.lines_lost if worker.audit else 0,
        )


class FleetPoller:
    """Reads the fleet in a thread of its own, so that a request does not wait for a database that does not answer.
    Keeps the last status, and the backlog of each minute of the last hour.

    `open_database`: makes a session that is not connected yet; it is open for one reading only. `overrides`: topic ->
    queue name, as configured; None before the loop's first connection.
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
        self._fleet: FleetStatus | None = None
        self._problem: str | None = "nothing was read yet"
        self._next_at = 0.0
        self._backlog: OrderedDict[int, int] = OrderedDict()
        self._complain_at = 0.0
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)

    def start(self) -> None:
        """Reads twice a minute, also without a request, because the chart of the backlog needs it."""
        self._thread.start()

    def close(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(1.0)

    def latest(self) -> tuple[FleetStatus | None, str | None]:
        """The last status, about ten seconds old at most unless counting takes long; and why there is no newer one."""
        with self._changed:
            if self._monotonic() >= self._next_at and self._thread.is_alive():
                self._wanted = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._wanted or self._stopping, READ_WAIT_SECONDS)
            return self._fleet, self._problem

    def backlog(self) -> dict[int, int]:
        """Minute since the epoch -> messages that were pending at its end, of all topics."""
        with self._changed:
            return dict(self._backlog)

    def _run(self) -> None:
        while True:
            fleet, problem = self._read()
            with self._changed:
                self._wanted = False
                self._problem = problem
                pause = READ_INTERVAL_SECONDS if self._overrides() is not None else 0.5
                self._next_at = self._monotonic() + max(pause, fleet.read_seconds / READ_SHARE if fleet else 0.0)
                if fleet is not None:
                    self._fleet = fleet
                    self._backlog[int(fleet.at_utc // 60)] = sum(topic.pending for topic in fleet.topics)
                    while len(self._backlog) > HISTORY_MINUTES:
                        self._backlog.popitem(last=False)
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._wanted or self._stopping, SAMPLE_INTERVAL_SECONDS)
                if self._stopping:
                    return

    def _read(self) -> tuple[FleetStatus | None, str | None]:
        overrides = self._overrides()
        if overrides is None:
            return None, "the database is not available yet"
        before = self._monotonic()
        database = self._open_database()
        try:
            fleet = read_fleet(database, overrides)
            return replace(fleet, read_seconds=self._monotonic() - before), None
        except ZitharaWorkerError as error:
            if before >= self._complain_at:
                self._complain_at = before + LOG_INTERVAL_SECONDS
                log.warning("the queues cannot be counted", extra={"event": "watch_failed", "detail": str(error)})
            return None, str(error)
        finally:
            database.close()
