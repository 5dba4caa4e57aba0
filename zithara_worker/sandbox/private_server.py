"""The life of a private server: its processes, its directory, and that nothing of either is left after `close`."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, TypeVar

from zithara_worker.errors import ShopError, ZitharaWorkerError

_Server = TypeVar("_Server", bound="PrivateServer")

#: A shell that kills the processes and removes the directory as soon as its standard input closes, which happens
#: however this process ends, SIGKILL included. Arguments: the directory, the process ids.
_GUARD = 'read -r _; directory=$1; shift; kill -9 "$@" 2>/dev/null; rm -rf -- "$directory"'
_STOP_SECONDS = 30.0
#: Seconds between two tries whether the server answers.
_LOOK_SECONDS = 0.05
#: Lines of each log that an error shows.
_TAIL_LINES = 60


class PrivateServer(ABC):
    """A server of this process. As a context manager it starts at entry, and leaves neither a process nor a file."""

    #: What it is called in errors, and the error where it does not run
    _called: ClassVar[str]
    _unavailable: ClassVar[type[ZitharaWorkerError]]

    def __init__(self, *, start_timeout_seconds: float) -> None:
        self._start_timeout_seconds = start_timeout_seconds
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        #: Processes that the server needs beside its own; they end after it
        self._helpers: list[subprocess.Popen[bytes]] = []
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self: _Server) -> _Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Starts the server, if it does not run, and waits until it serves. The first start creates its directory.

        Raises ShopError or ConfigurationError when there is no usable server, with the end of its log.
        """
        if self.running:
            return
        try:
            self._launch()
        except BaseException:  # KeyboardInterrupt too: leave no half-started server behind
            self.close()
            raise

    def stop(self) -> None:
        """Shuts down in order (SIGTERM). The data stay."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(timeout=_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._forget_processes()

    def kill(self) -> None:
        """Kills the server (SIGKILL), like a power cut. The data stay, and the next start recovers them."""
        if self._process is not None:
            self._process.kill()
        self._forget_processes()

    def restart(self) -> None:
        """Stops the server in order, if it runs, and starts it again with the same data and ports."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Stops the server from answering (SIGSTOP), while its connections stay open."""
        self._running.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._running.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Kills the server and removes its directory."""
        self.kill()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The server's process id. Raises DatabaseUnavailable or ShopError when it does not run."""
        return self._running.pid

    @property
    def pids(self) -> Sequence[int]:
        """As `pid`, and those of its helpers."""
        return [self.pid, *(each.pid for each in self._helpers)]

    @property
    def directory(self) -> Path:
        if self._directory is None:
            raise self._unavailable(f"the sandbox's {self._called} has no directory yet: call start()")
        return self._directory

    # --- for the servers --------------------------------------------------------------------------------------

    @abstractmethod
    def _launch(self) -> None:
        """Creates the directory if there is none, and runs the server."""

    @abstractmethod
    def _probe(self) -> None:
        """Raises ZitharaWorkerError while the server does not serve."""

    @property
    @abstractmethod
    def _logs(self) -> Sequence[Path]:
        """Where the server's processes write; not each file needs to exist."""

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise self._unavailable(f"the sandbox's {self._called} does not run: call start()")
        return self._process

    def _make_directory(self) -> Path:
        # A short path, not pytest's or the user's directory: the path of a socket may have only 107 characters.
        self._directory = Path(tempfile.mkdtemp(prefix="zithara-sandbox-"))
        return self._directory

    def _spawn(self, *command: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Starts a process in the server's directory; what it prints goes to the file `output` there."""
        with (self.directory / "output").open("ab") as output:
            return subprocess.Popen(
                command,
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # so that Ctrl-C in the terminal does not reach it
            )

    def _run(self, *command: str, environment: Mapping[str, str] | None = None) -> None:
        """Starts the server itself, and waits until it serves. Raises ShopError if it does not; it is killed then."""
        self._process = self._spawn(*command, environment=environment)
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", str(self.directory), *map(str, self.pids)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._wait_until_ready(command[0])
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self, program: str) -> None:
        deadline = time.monotonic() + self._start_timeout_seconds
        while True:
            try:
                self._probe()
                return
            except ZitharaWorkerError as error:
                refused = error
            if not self.running:
                raise ShopError(f"{program} ended at once; its log says:\n{self._log_tail()}") from refused
            if time.monotonic() > deadline:
                raise ShopError(
                    f"{program} does not answer after {self._start_timeout_seconds:g} s ({refused}); "
                    f"its log says:\n{self._log_tail()}"
                ) from refused
            time.sleep(_LOOK_SECONDS)  # there is no event to wait for: only an answer shows that the server is ready

    def _forget_processes(self) -> None:
        """Ends the guard first: it would remove the data."""
        for process in (self._guard, *self._helpers):
            if process is not None:
                process.kill()
        for process in (self._guard, self._process, *self._helpers):
            if process is None:
                continue
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        self._guard = self._process = None
        self._helpers = []

    def _log_tail(self) -> str:
        files = [file for file in self._logs if file.exists()] if self._directory is not None else []
        lines = [line for file in files for line in file.read_text(errors="replace").splitlines()[-_TAIL_LINES:]]
        return "\n".join(lines) or "(no log)"


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
