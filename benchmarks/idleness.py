"""Latency from commit to request at an idle worker, what idling costs, start and import."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import messages
from benchmarks.api_server import ApiProcess
from benchmarks.memory import arrive, at_work
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.session import worker_command
from zithara_worker.sandbox.shop import Shop

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Idleness:
    """`latency_*`: from the publisher's commit to the request's arrival. `cpu_share`: of one core. `single_*`: of a
    message that comes alone, beyond what the worker spends when nothing comes."""

    latency_median_ms: float
    latency_p99_ms: float
    queries_per_second: float
    cpu_share: float
    single_cpu_us: float
    single_statements: float


def idle(server: MariaDbServer, api: ApiProcess, directory: Path, *, samples: int, seconds: float) -> Idleness:
    """Publishes `samples` messages one by one at random moments, then watches the idle worker for `seconds`."""
    with Shop(server) as shop, at_work(shop, api, directory, threads=16, keep_arrivals=True) as worker:
        chance = random.Random(1)
        committed: dict[str, float] = {}
        # What the worker does at its first message only is not in it.
        shop.publish_bodies(messages.TOPIC, messages.bodies(1, first=samples))
        arrive(api, 1)
        began, at_first, statements = time.monotonic(), cpu_seconds(worker), _questions(shop)
        for body in messages.bodies(samples):
            # At any moment of the worker's poll interval; a wait that is part of what is measured.
            time.sleep(chance.uniform(0.05, 0.45))
            published = shop.publish_body(messages.TOPIC, body)
            committed[f"zithara_order_queue-{published.message_id}"] = time.monotonic()
        arrive(api, samples + 1)
        arrivals = {each.message: each.at for each in api.arrivals()}
        latencies = sorted((arrivals[key] - at) * 1000 for key, at in committed.items())
        before, spent, questions = time.monotonic(), cpu_seconds(worker), _questions(shop)
        time.sleep(seconds)
        # Two SHOW STATUS are ours.
        asked = _questions(shop) - questions - 1
        elapsed = time.monotonic() - before
        share, rate = (cpu_seconds(worker) - spent) / elapsed, asked / elapsed
        # Publishing takes four statements.
        alone = questions - statements - 1 - 4 * samples - rate * (before - began)
        return Idleness(
            latency_median_ms=statistics.median(latencies),
            latency_p99_ms=latencies[min(len(latencies) - 1, round(len(latencies) * 0.99))],
            queries_per_second=rate,
            cpu_share=share,
            single_cpu_us=(spent - at_first - share * (before - began)) / samples * 1e6,
            single_statements=alone / samples,
        )


def first_request_seconds(server: MariaDbServer, api: ApiProcess, directory: Path, *, runs: int = 5) -> list[float]:
    """From the start of the command to the arrival of its first request, which comes after its first claim."""
    found = []
    for _ in range(runs):
        with Shop(server) as shop:
            shop.publish_bodies(messages.TOPIC, messages.bodies(10))
            started = time.monotonic()
            with at_work(shop, api, directory, threads=64):
                arrive(api, 1)
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


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _questions(shop: Shop) -> int:
    return int(shop.query("SHOW GLOBAL STATUS LIKE 'Questions'")[0][1])
