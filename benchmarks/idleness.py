"""Latency from commit to request at an idle worker, what idling costs, memory, start and import."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import messages
from benchmarks.api_server import ApiProcess
from benchmarks.throughput import write_worker_config
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.session import worker_command
from zithara_worker.sandbox.shop import Shop

_TICKS = os.sysconf("SC_CLK_TCK")
_WITHIN = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Idleness:
    """`latency_*`: from the publisher's commit to the request's arrival. `cpu_share`: of one core."""

    latency_median_ms: float
    latency_p99_ms: float
    queries_per_second: float
    cpu_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Resident memory of the worker, MiB: when its first messages were through, and after all of them.

    `without`: modules that counted as not installed.
    """

    threads: int
    without: tuple[str, ...]
    messages: int
    early_mib: float
    late_mib: float


def idle(server: MariaDbServer, api: ApiProcess, directory: Path, *, samples: int, seconds: float) -> Idleness:
    """Publishes `samples` messages one by one at random moments, then watches the idle worker for `seconds`."""
    with Shop(server) as shop, _running(shop, api, directory, threads=16) as worker:
        chance = random.Random(1)
        committed: dict[str, float] = {}
        for body in messages.bodies(samples):
            # At any moment of the worker's poll interval; a wait that is part of what is measured.
            time.sleep(chance.uniform(0.05, 0.45))
            published = shop.publish_body(messages.TOPIC, body)
            committed[f"zithara_order_queue-{published.message_id}"] = time.monotonic()
        if not api.wait(samples, _WITHIN):
            raise RuntimeError("an idle worker did not deliver what was published")
        arrivals = {each.message: each.at for each in api.arrivals()}
        latencies = sorted((arrivals[key] - at) * 1000 for key, at in committed.items())
        before, spent, questions = time.monotonic(), _cpu_seconds(worker.pid), _questions(shop)
        time.sleep(seconds)
        # Two SHOW STATUS are ours.
        asked = _questions(shop) - questions - 1
        elapsed = time.monotonic() - before
        return Idleness(
            latency_median_ms=statistics.median(latencies),
            latency_p99_ms=latencies[min(len(latencies) - 1, round(len(latencies) * 0.99))],
            queries_per_second=asked / elapsed,
            cpu_share=(_cpu_seconds(worker.pid) - spent) / elapsed,
        )


def memory(
    server: MariaDbServer,
    api: ApiProcess,
    directory: Path,
    *,
    threads: int,
    count: int,
    without: tuple[str, ...] = (),
) -> Memory:
    """Early: after a tenth of the messages, so that every thread has its connection."""
    with Shop(server) as shop, _running(shop, api, directory, threads=threads, without=without) as worker:
        early_count = count // 10
        shop.publish_bodies(messages.TOPIC, messages.bodies(early_count))
        _arrive(api, early_count)
        early = _resident_mib(worker.pid)
        shop.publish_bodies(messages.TOPIC, messages.bodies(count - early_count))
        _arrive(api, count)
        late = _resident_mib(worker.pid)
        return Memory(threads=threads, without=without, messages=count, early_mib=early, late_mib=late)


def first_request_seconds(server: MariaDbServer, api: ApiProcess, directory: Path, *, runs: int = 5) -> list[float]:
    """From the start of the command to the arrival of its first request, which comes after its first claim."""
    found = []
    for _ in range(runs):
        with Shop(server) as shop:
            shop.publish_bodies(messages.TOPIC, messages.bodies(10))
            started = time.monotonic()
            with _running(shop, api, directory, threads=64):
                _arrive(api, 1)
            found.append(api.seen()["first"] - started)
    return found


def import_seconds(*, runs: int = 5) -> list[float]:
    """`zithara-worker --version`, from start to end: what every command pays."""
    found = []
    for _ in range(runs):
        started = time.monotonic()
        subprocess.run([worker_command(), "--version"], check=True, stdout=subprocess.DEVNULL)
        found.append(time.monotonic() - started)
    return found


@contextmanager
def _running(
    shop: Shop, api: ApiProcess, directory: Path, *, threads: int, without: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a shop runs it, with metrics and the authorities that it trusts; stopped in order."""
    shop.configure_webhook()
    config = write_worker_config(
        directory / "worker.conf", shop, api, threads=threads, verify=True, metrics="127.0.0.1:0"
    )
    api.reset(keep_arrivals=True)
    worker = subprocess.Popen(
        [*_command(without), "--config", str(config), "consume", messages.TOPIC],
        stdout=subprocess.DEVNULL,
        stderr=sys.stderr,
    )
    try:
        yield worker
        worker.send_signal(signal.SIGTERM)
        if worker.wait(timeout=60) != 0:
            raise RuntimeError(f"the worker ended with {worker.returncode}")
    finally:
        if worker.poll() is None:
            worker.kill()
            worker.wait()


def _command(without: tuple[str, ...]) -> list[str]:
    if not without:
        return [worker_command()]
    hide = "".join(f"sys.modules[{module!r}] = None; " for module in without)
    return [sys.executable, "-c", f"import sys; {hide}from zithara_worker.commands import main; main()"]


def _arrive(api: ApiProcess, count: int) -> None:
    if not api.wait(count, _WITHIN):
        raise RuntimeError(f"{count} requests did not come within {_WITHIN:g} s")


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/{pid}/status tells no VmRSS")


def _questions(shop: Shop) -> int:
    return int(shop.query("SHOW GLOBAL STATUS LIKE 'Questions'")[0][1])
