"""Signals in the first moments of a worker: the installed command, real signals."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.processes import WorkerProcess
from support.waiting import eventually

from zithara_worker.sandbox.shop import Shop

Config = Callable[..., Path]


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal: before, while Python itself starts, nobody can have one."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:")).split()[1]
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_a_signal_at_any_early_moment_ends_or_reloads_in_order(shop: Shop, worker_config: Config) -> None:
    config = worker_config()
    moments = random.Random(33)
    with ExitStack() as stack:
        workers = [stack.enter_context(WorkerProcess(config, "consume", "--all")) for _ in range(20)]
        for index, worker in enumerate(workers):
            number = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGHUP)[index % 4]
            eventually(lambda each=worker: catches(each.pid, signal.SIGHUP), within=30)
            timer = threading.Timer(moments.uniform(0, 1), worker.send_signal, [number])
            timer.start()
            stack.callback(timer.join)
        codes = {}
        for index, worker in enumerate(workers):
            if index % 2:
                worker.wait_for_log(event="reloaded", within=30)
                worker.terminate()
            codes[index] = worker.wait(within=30)
    assert codes == dict.fromkeys(range(20), 0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["consume", "--all"], True),
        (["--config", "consume", "consume"], True),
        (["--config=x", "--log-level", "DEBUG", "consume"], True),
        (["--config", "consume", "status"], False),
        (["failed", "retry", "consume"], False),
        (["-h"], False),
    ],
)
def test_handlers_stand_before_the_rest_is_imported_and_only_for_consume(arguments: list[str], expected: bool) -> None:
    """`root`, which imports everything else, is replaced by one that tells what is there when it is called."""
    program = (
        "import signal, sys, types\n"
        "from zithara_worker import commands\n"
        "root = types.ModuleType('zithara_worker.commands.root')\n"
        "early = 'click' not in sys.modules\n"
        "root.main = lambda signals: print(early, callable(signal.getsignal(signal.SIGHUP)))\n"
        "sys.modules[root.__name__] = commands.root = root\n"
        "commands.main()\n"
    )
    told = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["True", str(expected)]
