"""What a worker serves over HTTP: which path shows what. One object for the life of a process: it answers while the
database is not available, and keeps its port and its counters through every reload.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from zithara_worker.database.session import Database
from zithara_worker.delivery.courier import TargetStatus
from zithara_worker.logs.audit import AuditFile
from zithara_worker.monitor.counters import WorkerMetrics
from zithara_worker.monitor.health import Health, LoopStatus, judge, longest_delivery_seconds
from zithara_worker.queue.queues import QueueRow
from zithara_worker.settings.sections import Settings

if TYPE_CHECKING:
    from zithara_worker.monitor.prometheus import Depth, Exposition, State
    from zithara_worker.monitor.server import Listener, Reply
    from zithara_worker.monitor.sight import Queue, Watch

log = logging.getLogger(__name__)

#: What /metrics answers where prometheus-client is not installed.
NO_PROMETHEUS = (
    "metrics need prometheus-client, which is not installed: install the Debian package python3-prometheus-client, "
    "or pip install 'zithara-worker[metrics]'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitoredWorker:
    """What the endpoints read of a loop and its delivery, until the next reload. The callables may be called from any
    thread."""

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
        self._watch: Watch | None = None
        self._exposition: Exposition | None = None
        self._earlier_refreshes = 0

    @property
    def address(self) -> str | None:
        """Where it can be reached; None when it is off, or no port could be had."""
        return self._listener.address if self._listener else None

    def serve(self, settings: Settings) -> None:
        """Listens as these settings say, from now on; a port that it has already is kept."""
        if self._listener is not None and settings.metrics.listen == self._listen:
            return
        self.close()
        self._listen = settings.metrics.listen
        if self._listen:
            self._start(settings)

    def _start(self, settings: Settings) -> None:
        from zithara_worker.monitor.server import Listener, NoFreePort
        from zithara_worker.monitor.sight import Watch

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
            log.error("%s (going on without metrics)", error, extra={"event": "listen_failed"})
            return
        self._listener = listener
        self._watch = Watch(lambda: self._database(settings), self._overrides, monotonic=self._monotonic)
        self._watch.start()

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
        if self._watch is not None:
            self._watch.close()
        self._listener = self._watch = None

    # ---------------------------------------------------------------- the pages (in the listener's threads)

    def health(self) -> Health:
        worker = self._worker
        if worker is None:
            return judge(None, self._monotonic(), shut={}, stopping=self._stopping(), audit_problem=None)
        audit = worker.audit if worker.settings.logging.audit_required else None
        states = worker.targets()
        shut = {gate: status.breaker.why for gate, status in states.items() if status.breaker.why}
        return judge(
            worker.status(),
            self._monotonic(),
            shut=shut,
            serves_none=all(any(target in shut for target in targets) for targets in worker.targets_by_topic.values()),
            stopping=self._stopping(),
            audit_problem=audit.problem if audit else None,
            configuration_problem=self._configuration_problem(),
            longest_delivery_seconds=longest_delivery_seconds(worker.settings),
        )

    def _healthz(self, accept: str) -> Reply:
        from zithara_worker.monitor.server import as_json

        health = self.health()
        return as_json(
            HTTPStatus.OK if health.live and health.ready else HTTPStatus.SERVICE_UNAVAILABLE, health.as_json()
        )

    def _live(self, accept: str) -> Reply:
        from zithara_worker.monitor.server import as_json

        health = self.health()
        return as_json(HTTPStatus.OK if health.live else HTTPStatus.SERVICE_UNAVAILABLE, health.as_json())

    def _scrape(self, accept: str) -> Reply:
        from zithara_worker.monitor.server import Reply, text

        if self._exposition is None:
            try:
                from zithara_worker.monitor.prometheus import Exposition
            except ModuleNotFoundError:
                return text(HTTPStatus.NOT_IMPLEMENTED, NO_PROMETHEUS)
            self._exposition = Exposition(self._metrics.numbers, self._state)
        body, content_type = self._exposition.encoded(accept)
        return Reply(content_type=content_type, body=body)

    def _page(self, accept: str) -> Reply:
        from zithara_worker.monitor import page
        from zithara_worker.monitor.server import Reply

        watch = self._watch
        sight, problem = watch.latest() if watch else (None, "the listener is closing")
        health = self.health()
        document = page.render(
            sight,
            problem=problem,
            backlog=watch.backlog() if watch else {},
            reasons=health.reasons,
            notes=health.notes,
        )
        return Reply(
            content_type="text/html; charset=utf-8",
            body=document.encode("utf-8", "xmlcharrefreplace"),
            headers=page.HEADERS,
        )

    # ---------------------------------------------------------------- what they show

    def _database(self, first: Settings) -> Database:
        """A session as the loop's settings say, which a reload may have changed since the first ones."""
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
        loop, states = worker.status(), worker.targets()
        sight, problem = self._watch.latest() if self._watch else (None, None)
        if problem is not None:
            sight = None
        queues = sight.queues if sight else ()
        paused = {queue.topic: bool(queue.paused_by) for queue in queues}
        paused.update((row.topic, row.topic in loop.paused) for row in worker.queues)
        return State(
            ready=health.ready,
            database_up=loop.database_up,
            shop_enabled=loop.consumable,
            paused=paused,
            concurrency=worker.settings.worker.concurrency,
            breakers={gate: status.breaker.state.value for gate, status in states.items()},
            throttled_seconds={gate: status.throttled_seconds for gate, status in states.items()},
            token_refreshes=self._earlier_refreshes + worker.token_refreshes(),
            depths=_depths(queues) if sight else None,
            depths_read_seconds=sight.took_seconds if sight else 0.0,
            living={queue.topic: queue.workers for queue in queues},
            audit_writable=None if worker.audit is None else worker.audit.problem is None,
            audit_lines=worker.audit.lines_written if worker.audit else 0,
            audit_lines_lost=worker.audit.lines_lost if worker.audit else 0,
        )


def _depths(queues: Sequence[Queue]) -> tuple[Depth, ...]:
    from zithara_worker.monitor.prometheus import Depth

    return tuple(
        Depth(
            topic=queue.topic,
            status=status.name.lower(),
            messages=count,
            oldest_age_seconds=round(queue.oldest_ages.get(status, 0.0), 3),
        )
        for queue in queues
        for status, count in queue.counts.items()
    )
