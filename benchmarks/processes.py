"""Starts what is measured as processes of their own.

`run` starts a contestant, waits for its end, and takes its wall-clock time and CPU after its own start.

A contestant writes a line `{"ready": <CPU seconds spent so far>}` to standard output when its imports are done, and
ends by itself when it has handled all messages. What it spends before does not count: a shop starts it once a week.

`running` starts processes that serve until the block ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.api_server import ApiProcess

TIMEOUT_SECONDS = 300.0
PROJECT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """`seconds`: from the first request's arrival at the API to the last's, or as the contestant says."""

    contestant: str
    messages: int
    seconds: float
    cpu_seconds: float
    requests: int
    connections: int

    @property
    def per_second(self) -> float:
        return self.messages / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU of a message, microseconds."""
        return self.cpu_seconds / self.messages * 1e6


def run(
    name: str,
    commands: Sequence[Sequence[str]],
    *,
    api: ApiProcess,
    latency_seconds: float,
    messages: int,
    requests: int | None = None,
    **window: bool,
) -> Measured:
    """Runs one contestant (several processes of it at once, if several commands are given) to its end.

    `requests`: how many it must send at least; None: one a message. `window`: as for `ApiProcess.reset`.
    """
    api.reset(latency_seconds=latency_seconds, **window)
    with tempfile.TemporaryFile("w+") as complaints:
        started = time.monotonic()
        processes = [
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, text=True, cwd=PROJECT
            )
            for command in commands
        ]
        cpu, said = 0.0, {}
        for process in processes:
            ready, told = _listen(process)
            said.update(told)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode != 0:
                complaints.seek(0)
                raise RuntimeError(f"{name} ended with {process.returncode}:\n{complaints.read()[-3000:]}")
            cpu += usage.ru_utime + usage.ru_stime - ready
    seen = api.seen()
    if time.monotonic() - started > TIMEOUT_SECONDS:
        raise RuntimeError(f"{name} took more than {TIMEOUT_SECONDS:g} s")
    wanted = messages if requests is None else requests
    if not said.get("no_http") and seen["requests"] < wanted:
        raise RuntimeError(f"{name} sent {seen['requests']} of {wanted} requests")
    return Measured(
        contestant=name,
        messages=messages,
        seconds=said.get("seconds") or seen["last"] - seen["first"],
        cpu_seconds=cpu,
        requests=seen["requests"],
        connections=seen["connections"],
    )


def contestant(name: str, *arguments: str, python: str = sys.executable) -> list[str]:
    return [python, "-m", f"benchmarks.contestants.{name}", *arguments]


def consume(config: Path, topic: str, *limits: str, name: str = "worker") -> list[str]:
    """A contestant: the worker, by its own command. `limits`: when it ends."""
    return contestant(name, "--config", str(config), "consume", topic, *limits)


@contextmanager
def running(commands: Sequence[Sequence[str]]) -> Iterator[list[int]]:
    """Process ids of what is at work during the block, and is then asked to end in order (SIGTERM)."""
    with ExitStack() as ends:
        processes = []
        for command in commands:
            processes.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=PROJECT)
            )
            ends.callback(_kill, processes[-1])
        yield [process.pid for process in processes]
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            # PHP's consumer has no handler for it.
            if process.wait(timeout=60) not in (0, -signal.SIGTERM):
                raise RuntimeError(f"{process.args!r} ended with {process.returncode}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()


def _listen(process: subprocess.Popen[str]) -> tuple[float, dict[str, Any]]:
    assert process.stdout is not None
    spent, told = 0.0, {}
    with process.stdout as lines:
        for line in lines:
            if not line.startswith("{"):
                continue
            record = json.loads(line)
            spent = record.pop("ready", spent)
            told.update(record)
    return spent, told
