"""The signals of `consume` and `relay`. The console script imports this module first, so it imports nothing else of
the package."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Protocol


class Stoppable(Protocol):
    """What signals call of a worker or a relay, from within a signal handler."""

    def stop(self) -> None: ...
    def reload(self) -> None: ...


class Signals:
    """SIGTERM and SIGINT stop the worker in order, a second one ends the process at once; SIGHUP reloads.

    Before there is a worker, no message is claimed: SIGTERM and SIGINT end the process. A SIGHUP that comes so early is
    passed on to the worker, because the configuration may have been read before. The exit code is 0 in each case.
    """

    def __init__(self) -> None:
        self._worker: Stoppable | None = None
        self._asked_to_stop = False
        self._asked_to_reload = False

    def catch(self) -> None:
        """Installs the handlers. Call it in the main thread."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGHUP, self._reload)

    def direct_to(self, worker: Stoppable) -> None:
        """Directs signals to this worker, an early SIGHUP included."""
        self._worker = worker
        if self._asked_to_reload:
            worker.reload()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._worker is None or self._asked_to_stop:
            os._exit(0)  # without waiting for threads; the messages become free when their leases expire
        self._asked_to_stop = True
        self._worker.stop()

    def _reload(self, number: int, frame: FrameType | None) -> None:
        self._asked_to_reload = True
        if self._worker is not None:
            self._worker.reload()
