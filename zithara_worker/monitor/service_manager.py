"""Reports the worker's state to the service manager, by datagrams on a socket: systemd's protocol sd_notify(3).

Without a service manager nothing is sent.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)


class ServiceManager:
    """Sends states to `address`, the value of NOTIFY_SOCKET; with "" it does nothing. Not thread-safe.

    `watchdog_seconds`: the service manager restarts a worker that was silent for so long; None: it does not watch.
    """

    def __init__(
        self,
        address: str = "",
        *,
        watchdog_seconds: float | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        # A leading @ means the NUL byte of an abstract socket.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        #: Between two watchdog messages; None: the service manager does not expect any
        self.interval_seconds = watchdog_seconds / 3 if watchdog_seconds and address else None
        self._monotonic = monotonic
        self._alive_at = 0.0
        self._is_ready = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> ServiceManager:
        """The service manager that started this process, if any. WATCHDOG_PID names the process that it watches."""
        watchdog = environ.get("WATCHDOG_USEC", "")
        ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        seconds = int(watchdog) / 1e6 if ours and watchdog.isascii() and watchdog.isdigit() else None
        return cls(environ.get("NOTIFY_SOCKET", ""), watchdog_seconds=seconds)

    def ready(self, status: str) -> None:
        """The worker is up. `status`: a line for people."""
        self._is_ready = True
        self._alive_at = self._monotonic()
        self._send("READY=1", "WATCHDOG=1", f"STATUS={_line(status)}")

    def waiting(self, status: str) -> None:
        """The worker is up and waits for the database: `ready` the first time, later only the new `status`."""
        if self._is_ready:
            self._send(f"STATUS={_line(status)}")
        else:
            self.ready(status)

    def alive(self) -> None:
        """A watchdog message. May be called more often: one is sent each `interval_seconds`."""
        if self.interval_seconds is not None:
            now = self._monotonic()
            if now - self._alive_at >= self.interval_seconds:
                self._alive_at = now
                self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """The worker reads its configuration again, until it calls `ready`."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, *, within_seconds: float) -> None:
        """The worker stops, and may take `within_seconds` for it, also if the unit's own timeout is shorter."""
        self._send("STOPPING=1", "STATUS=stopping", f"EXTEND_TIMEOUT_USEC={int(within_seconds * 1e6)}")

    def _send(self, *states: str) -> None:
        if not self._address:
            return
        # A worker goes on without its service manager, which restarts it by its own rules if it misses the messages.
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(1.0)
                sender.connect(self._address)
                sender.sendall("\n".join(states).encode())
        except OSError as error:
            log.warning(
                "cannot reach the service manager at NOTIFY_SOCKET",
                extra={"event": "notify_failed", "detail": str(error)},
            )


def _line(text: str) -> str:
    return " ".join(text.split())
