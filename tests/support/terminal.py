"""The installed command on a terminal of its own: a pseudo-terminal whose other end the test holds."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from zithara_worker.sandbox.session import worker_command

#: Makes its standard input the controlling terminal, so that Ctrl-C is a signal, and becomes the command.
_ON_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """`zithara-worker --config CONFIG ARGUMENTS...` with `columns` by `rows`; killed at the end if need be."""

    def __init__(self, config: Path, *arguments: str, columns: int = 80, rows: int = 24) -> None:
        self._arguments = [worker_command(), "--config", str(config), *arguments]
        self._size = (columns, rows)
        self.text = ""

    def __enter__(self) -> Terminal:
        self._master, self.slave = pty.openpty()
        self._set_size(*self._size)
        self.before: list[Any] = termios.tcgetattr(self.slave)
        inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ON_TERMINAL, *self._arguments],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={**inherited, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._master)
        os.close(self.slave)

    @property
    def settings(self) -> list[Any]:
        """The terminal's modes now (termios)."""
        return list(termios.tcgetattr(self.slave))

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        self._set_size(columns, rows)

    def forget(self) -> None:
        self.text = ""

    def wait_for(self, expected: str, *, within: float = 15.0) -> str:
        """Reads until this has been written; everything so far."""
        deadline = time.monotonic() + within
        while expected not in self.text:
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"no {expected!r} within {within:g} s; it wrote {self.text[-3000:]!r}")
        return self.text

    def wait(self, *, within: float = 15.0) -> int:
        """Its exit code, with everything read that it wrote."""
        deadline = time.monotonic() + within
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"still running after {within:g} s; it wrote {self.text[-3000:]!r}")
            self._read(0.05)
        while self._read(0.05):
            pass
        return self.process.returncode

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, seconds))
        if ready:
            self.text += os.read(self._master, 65536).decode("utf-8", "replace")
        return bool(ready)

    def _set_size(self, columns: int, rows: int) -> None:
        """The kernel tells the processes on the terminal by SIGWINCH."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
