"""The test helper that runs the command: tried on a command of our own, so that it is right when the worker is not."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import processes
from support.processes import WorkerProcess

_PROGRAM = """#!{python}
import json, os, signal, sys, threading
def log(**fields): print(json.dumps(fields), file=sys.stderr, flush=True)
stopped = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopped.set())
print("plain words", flush=True)
log(event="started", arguments=sys.argv[1:], seen=[name for name in os.environ if name.startswith("ZITHARA_WORKER_")])
stopped.wait()
log(event="stopped")
sys.exit(3)
"""


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WorkerProcess]:
    program = tmp_path / "program"
    program.write_text(_PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(processes, "worker_command", lambda: str(program))
    monkeypatch.setenv("ZITHARA_WORKER_RETRY_LIMIT", "1")
    with WorkerProcess(Path("w.conf"), "consume", "--all", environment={"ZITHARA_WORKER_WORKER_LEASE": "9"}) as running:
        yield running


def test_logs_are_read_while_it_runs(worker: WorkerProcess) -> None:
    started = worker.wait_for_log(event="started")
    assert started["arguments"] == ["--config", "w.conf", "consume", "--all"]
    assert started["seen"] == ["ZITHARA_WORKER_WORKER_LEASE"]
    assert worker.running


def test_it_stops_on_a_signal_and_its_output_is_whole(worker: WorkerProcess) -> None:
    worker.wait_for_log(event="started")
    worker.terminate()
    assert worker.wait() == 3
    assert [record["event"] for record in worker.logs] == ["started", "stopped"]
    assert worker.output == "plain words\n"


def test_it_can_be_killed(worker: WorkerProcess) -> None:
    worker.wait_for_log(event="started")
    worker.kill()
    assert not worker.running
    assert worker.wait() == -signal.SIGKILL


def test_a_log_that_does_not_come_tells_what_did(worker: WorkerProcess) -> None:
    worker.wait_for_log(event="started")
    with pytest.raises(AssertionError, match=r"no log record with.*'event': 'started'"):
        worker.wait_for_log(event="ended", within=0.05)


def test_waiting_for_the_log_of_an_ended_process_does_not_last(worker: WorkerProcess) -> None:
    worker.wait_for_log(event="started")
    worker.terminate()
    with pytest.raises(AssertionError, match="no log record"):
        worker.wait_for_log(event="ended", within=60)


def test_a_process_that_does_not_end_fails_the_wait(worker: WorkerProcess) -> None:
    with pytest.raises(AssertionError, match="still running"):
        worker.wait(within=0.05)
