"""The installed command as a process: started, listened to, signalled, and surely ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from zithara_worker.sandbox.session import worker_command

#: The environment of a worker that looks at shop and fleet, writes its row, tries a configuration and probes an API
#: sooner than in a shop, so that a test of what it then does need not wait. When it does so is proved on a clock.
SHORT_INTERVALS = {"PYTHONPATH": str(Path(__file__).with_name("short_intervals"))}


class WorkerProcess:
    """`zithara-worker --config CONFIG ARGUMENTS...` with its logs read while it runs.

    with WorkerProcess(config, "consume", "--all") as worker:
        worker.wait_for_log(event="started")
        worker.terminate()
        assert worker.wait() == 0

    Lines that are JSON objects, on stdout or stderr, are log records; other lines are kept as text in `output`. The
    end of the `with` block kills what is left of it. Its environment is ours without ZITHARA_WORKER_*, plus
    `environment`.
    """

    def __init__(self, config: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self._command = [worker_command(), "--config", str(config), *arguments]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ZITHARA_WORKER_")}
        self._environment = {**inherited, **(environment or {})}
        self._changed = threading.Condition()
        self._logs: list[dict[str, Any]] = []
        self._lines: list[str] = []
        self._open_streams = 2
        self._process: subprocess.Popen[str] | None = None
        self._readers: list[threading.Thread] = []

    def __enter__(self) -> WorkerProcess:
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        for stream in (self._process.stdout, self._process.stderr):
            reader = threading.Thread(target=self._read, args=(stream,), name="worker-output", daemon=True)
            reader.start()
            self._readers.append(reader)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self._started().pid

    @property
    def running(self) -> bool:
        return self._started().poll() is None

    @property
    def logs(self) -> list[dict[str, Any]]:
        """The log records so far."""
        with self._changed:
            return list(self._logs)

    @property
    def output(self) -> str:
        """Everything written so far that is no log record."""
        with self._changed:
            return "".join(self._lines)

    def wait_for_log(self, *, within: float = 10.0, **fields: Any) -> dict[str, Any]:
        """The first log record, past or to come, whose fields equal these; AssertionError with what came instead."""
        deadline = time.monotonic() + within
        with self._changed:
            while True:
                for record in self._logs:
                    if all(record.get(name) == value for name, value in fields.items()):
                        return record
                remaining = deadline - time.monotonic()
                if self._open_streams == 0 or remaining <= 0:
                    raise AssertionError(f"no log record with {fields} within {within:g} s; {self._told()}")
                self._changed.wait(remaining)

    def send_signal(self, number: signal.Signals) -> None:
        self._started().send_signal(number)

    def terminate(self) -> None:
        """SIGTERM: stop in order."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to it and to whatever it started; does nothing when it has ended."""
        process = self._started()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        self._reap(process)

    def wait(self, *, within: float = 20.0) -> int:
        """Its exit code once it has ended by itself; AssertionError after `within` seconds."""
        process = self._started()
        try:
            process.wait(timeout=within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {within:g} s; {self._told()}") from None
        self._reap(process)
        return process.returncode

    def _started(self) -> subprocess.Popen[str]:
        assert self._process is not None, "enter the with block first"
        return self._process

    def _reap(self, process: subprocess.Popen[str]) -> None:
        process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()

    def _told(self) -> str:
        """For failure messages; called with or without the lock held (a Condition's lock is re-entrant)."""
        with self._changed:
            return f"it said {''.join(self._lines)[-2000:]!r}, and logged {self._logs[-10:]}"

    def _read(self, stream: Any) -> None:
        for line in stream:
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            with self._changed:
                if isinstance(record, dict):
                    self._logs.append(record)
                else:
                    self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._open_streams -= 1
            self._changed.notify_all()
