"""How far it carries: what is measured on this machine, and a simulation of machines that are not here.

The model: each message needs CPU of its worker, half before its request and half after it, for which it must have both
the interpreter of its process and a core of its host; the API's latency, in one of the process's threads; the turn of
the process's loop, which waits for each of its statements' way to the database and back; and CPU of the database. All
queues are first come, first served; the API is as fast as its latency says; no entity has two messages at once. What a
message costs is measured here with 1, 2, 4 and 8 workers on one queue, and goes on growing with each worker as between
the last two. The first table shows what the model says of arrangements that this machine can run.
"""

from __future__ import annotations

import heapq
import itertools
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pymysql.connections import Connection

from benchmarks import messages
from benchmarks.api_server import ApiProcess
from benchmarks.idleness import cpu_seconds
from benchmarks.processes import consume, run
from benchmarks.throughput import Scene, Stage, shop_of
from zithara_worker.sandbox.mariadb import MariaDbServer

MEASURED_WORKERS = (1, 2, 4, 8)
#: Simulated seconds, of which the first are not counted.
_SECONDS, _WARM = 6.0, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Of one message, where so many workers share a queue: CPU of worker, database and API, and statements. `pace`:
    messages a second on this machine."""

    workers: int
    latency_ms: int
    cpu_us: float
    database_us: float
    api_us: float
    statements: float
    pace: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """`round_trip_ms`: of a statement between worker and database. `commit_ms`: what each of the two COMMITs of a batch
    waits for other nodes. `alone`: the hosts have nothing but workers; otherwise database and API are on the host."""

    name: str
    hosts: int = 1
    cores: int = 4
    processes: int = 1
    threads: int = 16
    latency_ms: int = 50
    database_cores: int = 8
    round_trip_ms: float = 0.5
    commit_ms: float = 0.0
    alone: bool = True


_HERE: Mapping[str, Any] = {"cores": os.cpu_count() or 1, "alone": False, "round_trip_ms": 0.05}
ELSEWHERE: Sequence[Arrangement] = (
    Arrangement(name="one process, 16 threads"),
    Arrangement(name="one process, 64 threads", threads=64),
    Arrangement(name="one process, 64 threads, API at 200 ms", threads=64, latency_ms=200),
    Arrangement(name="one host, 4 processes", processes=4),
    Arrangement(name="one host, 4 processes of 64 threads", processes=4, threads=64),
    Arrangement(name="ten hosts of 4 processes, one database", hosts=10, processes=4),
    Arrangement(name="ten hosts, database of 32 cores", hosts=10, processes=4, database_cores=32),
    Arrangement(name="ten hosts, a cluster that commits in 3 ms", hosts=10, processes=4, commit_ms=3.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """`per_second`: messages. `bound`: what is busiest, and for which share of the time."""

    name: str
    per_second: float
    bound: str
    share: float
    measured: float | None = None


def measure(server: MariaDbServer, api: ApiProcess, directory: Path, *, count: int) -> list[Costs]:
    """Workers of 16 threads on one queue of `count` messages, at 50 ms and at no latency."""
    scenes = [(50, workers) for workers in MEASURED_WORKERS] + [(0, 1), (0, 2)]
    return [_costs(server, api, directory, count, latency, workers) for latency, workers in scenes]


def _costs(server: MariaDbServer, api: ApiProcess, directory: Path, count: int, latency_ms: int, workers: int) -> Costs:
    scene = Scene(latency_ms=latency_ms, threads=16, messages=count)
    stage = Stage(server=server, api=api, directory=directory, scene=scene)
    with shop_of(stage) as config, closing(server.connect()) as root:
        before = _spent(server, api, root)
        command = consume(config, messages.TOPIC, "--stop-when-empty")
        found = run("workers", [command] * workers, api=api, latency_seconds=latency_ms / 1000, messages=count)
        database, of_api, statements = (
            (late - early) / count for early, late in zip(before, _spent(server, api, root), strict=True)
        )
    return Costs(
        workers=workers,
        latency_ms=latency_ms,
        cpu_us=found.cpu_us,
        database_us=database * 1e6,
        api_us=of_api * 1e6,
        statements=statements,
        pace=found.per_second,
    )


def _spent(server: MariaDbServer, api: ApiProcess, root: Connection[Any]) -> tuple[float, float, float]:
    """CPU seconds of the database and of the API, and the database's statements."""
    with root.cursor() as cursor:
        cursor.execute("SHOW GLOBAL STATUS LIKE 'Questions'")
        [(_, questions)] = cursor.fetchall()
    return cpu_seconds(server.pid), float(api.seen()["cpu_seconds"]), float(questions)


def carried(costs: Sequence[Costs]) -> list[Carried]:
    """What this machine was measured to do, and what others would do by the model."""
    found = [
        replace(
            simulate(
                Arrangement(
                    name=f"this machine, {each.workers} workers at {each.latency_ms} ms",
                    processes=each.workers,
                    latency_ms=each.latency_ms,
                    **_HERE,
                ),
                costs,
            ),
            measured=each.pace,
        )
        for each in costs
    ]
    return found + [simulate(each, costs) for each in ELSEWHERE]


def _of_a_message(costs: Sequence[Costs], workers: int, name: str) -> float:
    """What a message costs where so many workers share a queue: between two that were measured, or as it grew last."""
    known = sorted((each.workers, getattr(each, name)) for each in costs if each.latency_ms)
    low, high = next(
        ((one, other) for one, other in itertools.pairwise(known) if workers <= other[0]), (known[-2], known[-1])
    )
    return max(0.0, low[1] + (high[1] - low[1]) * (workers - low[0]) / (high[0] - low[0]))


class _Station:
    """Serves `servers` jobs at a time, first come, first served. `busy`: server seconds."""

    def __init__(self, servers: int) -> None:
        self.servers = servers
        self.free = servers
        self.waiting: deque[_Job] = deque()
        self.busy = 0.0


_Step = tuple[str, Any]
_Job = Generator[_Step, None, None]


def simulate(arrangement: Arrangement, costs: Sequence[Costs]) -> Carried:
    fleet = arrangement.hosts * arrangement.processes
    cpu = _of_a_message(costs, fleet, "cpu_us") / 1e6
    database_seconds = _of_a_message(costs, fleet, "database_us") / 1e6
    api_seconds = _of_a_message(costs, fleet, "api_us") / 1e6
    statements = _of_a_message(costs, fleet, "statements")
    # Of the statements of a batch, some 15 for 100 messages, two are COMMITs.
    turn_seconds = statements * (arrangement.round_trip_ms + arrangement.commit_ms * 2 / 15) / 1000
    hosts = [_Station(arrangement.cores) for _ in range(arrangement.hosts)]
    database = _Station(arrangement.database_cores) if arrangement.alone else hosts[0]
    interpreters = [_Station(1) for _ in range(fleet)]
    loops = [_Station(1) for _ in range(fleet)]
    done = 0

    def use(station: _Station, seconds: float) -> _Job:
        yield "take", station
        yield "wait", seconds
        station.busy += seconds
        yield "free", station

    def message(number: int) -> _Job:
        """One message after the other in the place of a thread's or of one that waits for it."""
        nonlocal done
        host, interpreter = hosts[number % len(hosts)], interpreters[number % fleet]
        slot = slots[number % fleet]
        while True:
            yield "take", slot
            for half in range(2):
                yield "take", interpreter
                yield from use(host, cpu / 2)
                interpreter.busy += cpu / 2
                yield "free", interpreter
                if half == 0:
                    if not arrangement.alone:
                        yield from use(host, api_seconds)
                    yield "wait", arrangement.latency_ms / 1000
            yield "free", slot
            yield from use(loops[number % fleet], turn_seconds)
            yield from use(database, database_seconds)
            done += 1

    slots = [_Station(arrangement.threads) for _ in range(fleet)]
    stations = {"a process's interpreter": interpreters, "cores of workers": hosts, "a process's loop": loops}
    if arrangement.alone:
        stations["cores of the database"] = [database]
    at_start: tuple[int, dict[str, float]] = (0, {})
    for _ in _moments([message(number) for number in range(2 * arrangement.threads * fleet)], (_WARM, _SECONDS)):
        busy = {name: sum(each.busy for each in several) for name, several in stations.items()}
        if not at_start[1]:
            at_start = done, busy
    seconds = _SECONDS - _WARM
    shares = {
        name: (busy[name] - at_start[1][name]) / seconds / sum(each.servers for each in several)
        for name, several in stations.items()
    }
    bound, share = max(shares.items(), key=lambda each: each[1])
    if share < 0.9:
        bound = f"the API's latency ({arrangement.threads} threads each)"
    return Carried(name=arrangement.name, per_second=(done - at_start[0]) / seconds, bound=bound, share=share)


def _moments(jobs: Iterable[_Job], moments: Iterable[float]) -> Iterator[float]:
    """Runs the jobs, and stops at each of these moments."""
    now, number = 0.0, itertools.count()
    ready: list[tuple[float, int, _Job]] = [(0.0, next(number), job) for job in jobs]
    for moment in moments:
        while ready[0][0] <= moment:
            now, _, job = heapq.heappop(ready)
            what, value = next(job)
            if what == "wait":
                heapq.heappush(ready, (now + value, next(number), job))
                continue
            if what == "take" and not value.free:
                value.waiting.append(job)
                continue
            if what == "take":
                value.free -= 1
            elif value.waiting:
                heapq.heappush(ready, (now, next(number), value.waiting.popleft()))
            else:
                value.free += 1
            heapq.heappush(ready, (now, next(number), job))
        yield moment


def table(costs: Sequence[Costs], found: Sequence[Carried]) -> str:
    measured = "".join(
        f"| {each.workers} | {each.latency_ms} | {each.cpu_us:.0f} | {each.database_us:.0f} | {each.statements:.2f} |\n"
        for each in costs
    )
    rows = "".join(
        f"| {each.name} | {each.per_second:,.0f} | {f'{each.measured:,.0f}' if each.measured else 'not here'} "
        f"| {each.bound} | {each.share:.0%} |\n"
        for each in found
    )
    return (
        "| workers on the queue | API, ms | CPU of a message, us | of the database, us | statements |\n"
        f"| --- | --- | --- | --- | --- |\n{measured}\n"
        "| arrangement | messages a second, by the model | measured | what bounds it | busy |\n"
        f"| --- | --- | --- | --- | --- |\n{rows}"
    )
