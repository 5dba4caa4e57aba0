"""What whole workers do under a hard load: beside a group that fails again and again, over an old backlog, and fifty of
them on one queue."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from benchmarks import messages, report, scale
from benchmarks.api_server import ApiProcess
from benchmarks.memory import arrive, at_work
from benchmarks.processes import consume, run
from benchmarks.throughput import THREADS, write_worker_config
from zithara_worker.sandbox import examples
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.publisher import stored_body
from zithara_worker.sandbox.shop import Shop
from zithara_worker.shop.configuration import configure
from zithara_worker.worker import duties
from zithara_worker.worker.loop import Loop
from zithara_worker.worker.worker import Worker

#: Messages of the group that always fails, at the head of the queue.
POISON = 10
#: Seconds between two attempts at one of them: [retry] delay, with a factor of 1.
POISON_DELAY = 0.5
#: How each of its requests ends: 500 at once, or after so many seconds, for which it keeps a thread.
POISON_SECONDS = (0.0, 5.0)
WORKERS = (1, 4, 50)
#: Threads of each of many workers.
FEW_THREADS = 4
#: Seconds until the API answers each of them.
FLEET_LATENCY = 0.01
#: What the server counts, as SHOW GLOBAL STATUS names it.
_COUNTED = ("Questions", "Innodb_row_lock_waits", "Innodb_row_lock_time", "Innodb_deadlocks")
_WITHIN = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Poisoned:
    """One pair of runs. Messages a second of all others; `failed`: requests of the group that fails."""

    latency_ms: int
    fails_after_seconds: float
    without: float
    beside: float
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """`rows`: old messages; those that were not delivered meanwhile got a fresh time. Milliseconds: the work of a turn
    of the loop, without its wait for something to do."""

    rows: int
    kept: int
    delivered: int
    seconds: float
    longest_turn_ms: float
    median_turn_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """`twice`: messages that were sent more than once. Counts of the server, start and end of all workers included."""

    workers: int
    messages: int
    twice: int
    incomplete: int
    statements_per_100: float
    lock_waits: int
    lock_wait_ms: int
    deadlocks: int


def poisoned(server: MariaDbServer, api: ApiProcess, directory: Path, *, rounds: int, count: int) -> list[Poisoned]:
    """`count` orders at an API that answers at once, and a fifth of them at one of 50 ms."""
    found = []
    for latency_ms, number in ((0, count), (50, count // 5)):
        for seconds in POISON_SECONDS:
            for turn in range(rounds):
                paces: dict[bool, tuple[float, int]] = {}
                for with_poison in (False, True) if turn % 2 == 0 else (True, False):
                    poison = POISON if with_poison else 0
                    paces[with_poison] = _pace(server, api, directory, number, latency_ms, poison, seconds)
                found.append(
                    Poisoned(
                        latency_ms=latency_ms,
                        fails_after_seconds=seconds,
                        without=paces[False][0],
                        beside=paces[True][0],
                        failed=paces[True][1],
                    )
                )
    return found


def _pace(
    server: MariaDbServer, api: ApiProcess, directory: Path, count: int, latency_ms: int, poison: int, seconds: float
) -> tuple[float, int]:
    with Shop(server) as shop:
        shop.publish_bodies(messages.TOPIC, messages.bodies(poison, groups=1, first=count))
        failing = [f"zithara_order_queue-{row.message_id}" for row in shop.rows()]
        shop.publish_bodies(messages.TOPIC, messages.bodies(count))
        with at_work(
            shop,
            api,
            directory,
            threads=THREADS,
            sections={"retry": {"delay": str(POISON_DELAY), "factor": "1"}},
            latency_seconds=latency_ms / 1000,
            failing=failing,
            failing_seconds=seconds,
        ):
            arrive(api, count)
            seen = api.seen()
    return count / (seen["last"] - seen["first"]), seen["failed"]


def expiry(server: MariaDbServer, api: ApiProcess, directory: Path, *, rows: int) -> Kept:
    """A worker that delivers while the guard runs in every turn, not in a fiftieth of the time."""
    turns: list[float] = []
    work = Loop._settle_and_claim

    def timed(loop: Loop) -> None:
        began = time.monotonic()
        work(loop)
        turns.append((time.monotonic() - began) * 1000)

    with Shop(server) as shop:
        shop.configure_webhook()
        scale.fill(shop, messages.TOPIC, rows, status=2, body=stored_body(examples.order("NUMBER")))
        shop.query("UPDATE {prefix}queue_message_status SET updated_at = NOW() - INTERVAL 6 DAY")
        shop.query("ANALYZE TABLE {prefix}queue_message_status")
        config = write_worker_config(directory / "worker.conf", shop, api, threads=THREADS)
        api.reset()
        worker = Worker(configure(config, {}, os.environ))
        thread = threading.Thread(target=worker.run, args=([messages.TOPIC],))
        with patch.object(duties, "SWEEP_SHARE", 1.0), patch.object(Loop, "_settle_and_claim", timed):
            began = time.monotonic()
            thread.start()
            while _is_old(shop) and time.monotonic() < began + _WITHIN:
                time.sleep(0.5)
            took = time.monotonic() - began
            worker.stop()
            thread.join()
        if _is_old(shop):
            raise RuntimeError(f"the expiry guard did not keep {rows} messages within {_WITHIN:g} s")
        counts = shop.status_counts()
    return Kept(
        rows=rows,
        kept=counts[2],
        delivered=counts.get(4, 0),
        seconds=took,
        longest_turn_ms=max(turns),
        median_turn_ms=statistics.median(turns),
    )


def _is_old(shop: Shop) -> bool:
    old = "SELECT 1 FROM {prefix}queue_message_status WHERE status = 2 AND updated_at < NOW() - INTERVAL 5 DAY LIMIT 1"
    return bool(shop.query(old))


def fleets(server: MariaDbServer, api: ApiProcess, directory: Path, *, count: int) -> list[Fleet]:
    """`count` orders each time."""
    return [_fleet(server, api, directory, workers, count) for workers in WORKERS]


def _fleet(server: MariaDbServer, api: ApiProcess, directory: Path, workers: int, count: int) -> Fleet:
    with Shop(server) as shop:
        shop.configure_webhook()
        shop.publish_bodies(messages.TOPIC, messages.bodies(count))
        config = write_worker_config(directory / "worker.conf", shop, api, threads=FEW_THREADS)
        command = consume(config, messages.TOPIC, "--stop-when-empty")
        before = _status(shop)
        run("fleet", [command] * workers, api=api, latency_seconds=FLEET_LATENCY, messages=count, keep_arrivals=True)
        counted = {name: value - before[name] for name, value in _status(shop).items()}
        arrivals = [each.message for each in api.arrivals()]
        incomplete = count - shop.status_counts().get(4, 0)
    return Fleet(
        workers=workers,
        messages=count,
        twice=len(arrivals) - len(set(arrivals)),
        incomplete=incomplete,
        statements_per_100=counted["Questions"] / count * 100,
        lock_waits=counted["Innodb_row_lock_waits"],
        lock_wait_ms=counted["Innodb_row_lock_time"],
        deadlocks=counted["Innodb_deadlocks"],
    )


def _status(shop: Shop) -> dict[str, int]:
    found = dict(shop.query("SHOW GLOBAL STATUS"))
    return {name: int(found[name]) for name in _COUNTED}


def table_poisoned(found: Sequence[Poisoned]) -> str:
    lines = [
        "| a group at the head fails | API | pace of the others, with / without | failed requests | target |",
        "| --- | --- | --- | --- | --- |",
    ]
    for latency_ms, seconds in sorted({(each.latency_ms, each.fails_after_seconds) for each in found}):
        rounds = [each for each in found if (each.latency_ms, each.fails_after_seconds) == (latency_ms, seconds)]
        lines.append(
            f"| {f'after {seconds:g} s' if seconds else 'at once'} | {latency_ms} ms "
            f"| {report.spread([each.beside / each.without for each in rounds])} "
            f"| {report.spread([each.failed for each in rounds], 0)} | >= 0.90 |"
        )
    return "\n".join(lines) + "\n"


def table_kept(found: Kept) -> str:
    return (
        f"Expiry guard over {found.rows:,} messages of 6 days, with a slice in every turn, {found.delivered:,} "
        f"messages delivered meanwhile: {found.kept:,} kept in {found.seconds:.0f} s; the work of a turn of the loop "
        f"median {found.median_turn_ms:.0f} ms, longest {found.longest_turn_ms:.0f} ms (target: <= 500).\n"
    )


def table_fleets(found: Sequence[Fleet]) -> str:
    rows = "".join(
        f"| {each.workers} | {each.messages:,} | {each.twice} | {each.incomplete} | {each.statements_per_100:.0f} "
        f"| {each.lock_waits:,} | {each.lock_wait_ms:,} | {each.deadlocks:,} |\n"
        for each in found
    )
    return (
        f"| workers of {FEW_THREADS} threads | messages | sent twice | not complete | statements per 100 "
        f"| waits for a lock | ms waited | deadlocks |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n{rows}"
    )
