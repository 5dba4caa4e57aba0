"""What `consume` does about signals, from the first moment on: imported before the rest, and needs none of it."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Protocol


class Stoppable(Protocol):
    """The part of a worker that signals reach; both are called within a signal handler."""

    def stop(self) -> None: ...
    def reload(self) -> None: ...


class Signals:
    """SIGTERM and SIGINT stop the worker in order, a second one ends the process at once; SIGHUP reloads.

    While there is no worker yet, nothing has been taken: SIGTERM and SIGINT end the process, and a SIGHUP is kept for
    the worker, because the configuration may have been read before it came. The exit code is 0 each time.
    """

    def __init__(self) -> None:
        self._worker: Stoppable | None = None
        self._asked_to_stop = False
        self._asked_to_reload = False

    def catch(self) -> None:
        """From here on; only the main thread may call it."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGHUP, self._reload)

    def reach(self, worker: Stoppable) -> None:
        """From here on they reach this worker, and so does what came before."""
        self._worker = worker
        if self._asked_to_reload:
            worker.reload()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._worker is None or self._asked_to_stop:
            os._exit(0)  # at once means at once: no thread is waited for, leases bring the messages back
        self._asked_to_stop = True
        self._worker.stop()

    def _reload(self, number: int, frame: FrameType | None) -> None:
        self._asked_to_reload = True
        if self._worker is not None:
            self._worker.reload()
