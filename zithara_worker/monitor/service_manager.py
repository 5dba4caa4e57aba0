"""Tells a service manager how the worker is, by datagrams on a socket: systemd's protocol sd_notify(3).

Knows the protocol and nothing of the loop. Without a service manager nothing is sent.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)


class ServiceManager:
    """Sends states to `address`, the value of NOTIFY_SOCKET; "" for nobody.

    `watchdog_seconds`: how long the service manager waits for a sign of life, None for ever. Not for several threads.
    """

    def __init__(
        self,
        address: str = "",
        *,
        watchdog_seconds: float | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        # A leading @ stands for the NUL of an abstract socket.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        #: Between two signs of life, None: nobody waits for one
        self.interval_seconds = watchdog_seconds / 3 if watchdog_seconds and address else None
        self._monotonic = monotonic
        self._alive_at = 0.0
        self._is_ready = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> ServiceManager:
        """The service manager that started us, if any; what is meant for another process of its is none of ours."""
        watchdog = environ.get("WATCHDOG_USEC", "")
        ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        seconds = int(watchdog) / 1e6 if ours and watchdog.isascii() and watchdog.isdigit() else None
        return cls(environ.get("NOTIFY_SOCKET", ""), watchdog_seconds=seconds)

    def ready(self, status: str) -> None:
        """It is up: works, or waits for what is allowed to be away. `status` is a line for people."""
        self._is_ready = True
        self._alive_at = self._monotonic()
        self._send("READY=1", "WATCHDOG=1", f"STATUS={_line(status)}")

    def waiting(self, status: str) -> None:
        """Up, but waiting: `ready` the first time, else a change of the line for people."""
        if self._is_ready:
            self._send(f"STATUS={_line(status)}")
        else:
            self.ready(status)

    def alive(self) -> None:
        """A sign of life; sent as often as the service manager needs it, however often this is called."""
        if self.interval_seconds is not None:
            now = self._monotonic()
            if now - self._alive_at >= self.interval_seconds:
                self._alive_at = now
                self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """The configuration is being read again; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, *, within_seconds: float) -> None:
        """It is going down and may take that long: a longer shutdown_timeout than the unit's is not cut short."""
        self._send("STOPPING=1", "STATUS=stopping", f"EXTEND_TIMEOUT_USEC={int(within_seconds * 1e6)}")

    def _send(self, *states: str) -> None:
        if not self._address:
            return
        # A service manager that does not listen must not stop a worker; it would restart it by its own rules.
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(1.0)
                sender.connect(self._address)
                sender.sendall("\n".join(states).encode())
        except OSError as error:
            log.warning(
                "the service manager does not listen on NOTIFY_SOCKET",
                extra={"event": "notify_failed", "detail": str(error)},
            )


def _line(text: str) -> str:
    return " ".join(text.split())
