"""What `reconcile` takes on a shop of many orders, and what live events notice of it while it publishes.

It is killed in the middle and run again; the account at the end is of what came at the API. A wrong number ends the
benchmark.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pymysql

from benchmarks import messages
from benchmarks.api_server import ApiProcess, Arrival
from benchmarks.memory import mb
from benchmarks.throughput import write_worker_config
from zithara_worker.completeness.requests import request_of
from zithara_worker.database.session import Database
from zithara_worker.messages import Event, Request
from zithara_worker.queue.ledger_rules import destination
from zithara_worker.queue.statuses import Status
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.session import worker_command
from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.shop_tables import ShopTables
from zithara_worker.shop.configuration import complete, configure, read_configuration
from zithara_worker.shop.orders import OrderReader
from zithara_worker.topics import TOPIC_ORDER
from zithara_worker.zithara.api import content_digest

_PAGE = 1000
#: Orders of which a process writes the ledger in one go
_TASK = 20_000
_WITHIN = 3600.0
#: How the numbers of the generated orders and of the live events' begin
_GENERATED, _LIVE = "1", "9"
LATENCY_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """`seconds`, `cpu_seconds` and `mb` (resident at most, of 1,000,000 bytes) of the command. `counts`: none if it was
    killed."""

    what: str
    seconds: float
    cpu_seconds: float
    mb: float
    counts: dict[str, int]
    published: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """Live events in the seconds in which published messages arrived: from commit to request."""

    events: int
    median_ms: float
    p95_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """`generated_seconds`, `ledger_seconds`: what it took to make the shop. `missing`: orders that were delivered by
    reconcile, each once; `live`: events, each once."""

    orders: int
    missing: int
    live: int
    generated_seconds: float
    ledger_seconds: float
    runs: Sequence[Reconciled]
    beside: Beside
    #: Messages a second at the API while all orders of some days are published anew, as by an import
    import_per_second: float


def measure(
    server: MariaDbServer, api: ApiProcess, directory: Path, *, orders: int, missing: int, live_per_second: float
) -> Proof:
    """A shop of `orders`, all but `missing` of them delivered: the first report, the second, and the publishing of the
    missing ones while the shop publishes `live_per_second`; killed when half of them have arrived, and run again.

    Raises RuntimeError where a report or what came at the API differs from what was generated.
    """
    with Shop(server) as shop:
        shop.configure_webhook()
        config = write_worker_config(directory / "operator.conf", shop, api, threads=16)
        text = config.read_text(encoding="utf-8")
        config.write_text(text.replace(f"user = {shop.user}", "user = root").replace(shop.password, ""))
        began = time.monotonic()
        _generate(shop, orders)
        generated = time.monotonic()
        every = max(1, orders // missing)
        _deliver_all_but(config, every, orders)
        written = time.monotonic()
        rows = shop.query("SELECT increment_id FROM {prefix}sales_order WHERE entity_id MOD %s = 0", (every,))
        lacking = frozenset(str(number) for (number,) in rows)
        delivered = orders - len(lacking)

        runs = [_reconcile("first", config), _reconcile("again", config)]
        for run in runs:
            _expect(run.counts, {"complete": delivered, "missing": len(lacking)}, run.what)
        live: dict[str, float] = {}
        with _worker(config, api):
            with _live(shop, live, live_per_second):
                killed = _killed(config, api, len(lacking) // 2)
                published = _published_by_the_dead(shop)
                runs += [replace(killed, published=published), _reconcile("run again", config, "--publish", "--yes")]
            for digit, count in ((_GENERATED, len(lacking)), (_LIVE, len(live))):
                if not api.wait(count, _WITHIN, digit=digit):
                    raise RuntimeError("not everything that was published has arrived")
        left = len(lacking) - published
        found = Counter(runs[-1].counts)
        found["complete"] += found.pop("waiting", 0)
        _expect(
            {**found, "published": runs[-1].published},
            {"complete": delivered + published, "missing": left, "published": left},
            "run again",
        )
        _expect(shop.status_counts(), {int(Status.COMPLETE): len(lacking) + len(live)}, "messages by status")
        arrivals = api.arrivals()
        account(arrivals, lacking | live.keys())
        runs.append(_reconcile("afterwards", config))
        _expect(runs[-1].counts, {"complete": orders}, "afterwards")
        with _worker(config, api):
            runs.append(_reconcile("resend", config, "--since", "4d", "--resend", "--yes"))
            if not api.wait(runs[-1].published, _WITHIN):
                raise RuntimeError("not everything that was resent has arrived")
            seen = api.seen()
    return Proof(
        orders=orders,
        missing=len(lacking),
        live=len(live),
        generated_seconds=generated - began,
        ledger_seconds=written - generated,
        runs=runs,
        beside=_beside(arrivals, live),
        import_per_second=seen["requests"] / (seen["last"] - seen["first"]),
    )


def account(arrivals: Sequence[Arrival], wanted: Collection[str]) -> None:
    """Raises RuntimeError unless each of these orders came once, and no other. None of them changes meanwhile, so a
    second request about one would tell the same state again."""
    came = Counter(each.order for each in arrivals)
    wrong = {
        "never came": sorted(set(wanted) - came.keys()),
        "came, but not published": sorted(came.keys() - set(wanted)),
        "came more than once": sorted(number for number, times in came.items() if times > 1),
    }
    told = [f"{len(numbers)} {what}, e.g. {numbers[:3]}" for what, numbers in wrong.items() if numbers]
    if told:
        raise RuntimeError(f"of {len(wanted)} orders: {'; '.join(told)}")


def _expect(found: Mapping[Any, int], expected: Mapping[Any, int], what: str) -> None:
    if found != expected:
        raise RuntimeError(f"{what}: {dict(found)} instead of {dict(expected)}")


def _beside(arrivals: Sequence[Arrival], live: Mapping[str, float]) -> Beside:
    came = {each.order: each.at for each in arrivals}
    busy = {int(at) for order, at in came.items() if order not in live}
    latencies = sorted((came[order] - at) * 1000 for order, at in live.items() if int(at) in busy)
    return Beside(
        events=len(latencies),
        median_ms=statistics.median(latencies),
        p95_ms=latencies[min(len(latencies) - 1, round(len(latencies) * 0.95))],
    )


# ---------------------------------------------------------------- the command


def _reconcile(what: str, config: Path, *options: str) -> Reconciled:
    return _ended(what, _begun(config, *options), time.monotonic())


class _Command(subprocess.Popen[bytes]):
    """Its memory is looked at while it runs: what wait4 tells of it is never less than what its parent had."""

    def __init__(self, command: Sequence[str]) -> None:
        super().__init__(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=sys.stderr)
        self._peak_mb = 0.0
        self._watch = threading.Thread(target=self._look)
        self._watch.start()

    def _look(self) -> None:
        while True:
            try:
                self._peak_mb = mb(self.pid, "status", "VmHWM")
            except (OSError, RuntimeError):  # it has ended
                return
            time.sleep(0.1)

    def peak_mb(self) -> float:
        """After its end."""
        self._watch.join()
        return self._peak_mb


def _begun(config: Path, *options: str) -> _Command:
    window = () if "--since" in options else ("--all",)
    command = [worker_command(), "--config", str(config), "reconcile", "orders", "--json", *window, *options]
    return _Command(command)


def _ended(what: str, process: _Command, began: float, codes: Collection[int] = (0, 1)) -> Reconciled:
    assert process.stdout is not None
    with process.stdout as answer:
        told = answer.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in codes:
        raise RuntimeError(f"reconcile ({what}) ended with {process.returncode}")
    kind = json.loads(told)["kinds"][0] if told else {"counts": {}, "published": 0}
    return Reconciled(
        what=what,
        seconds=time.monotonic() - began,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        mb=process.peak_mb(),
        counts={name: number for name, number in kind["counts"].items() if number},
        published=kind["published"],
    )


def _killed(config: Path, api: ApiProcess, after: int) -> Reconciled:
    """Publishes until so many of the orders have arrived; then kill -9."""
    began = time.monotonic()
    process = _begun(config, "--publish", "--yes")
    try:
        while not api.wait(after, 1.0, digit=_GENERATED):
            if process.poll() is not None or time.monotonic() - began > _WITHIN:
                raise RuntimeError(
                    f"reconcile ended with {process.returncode}, or published too little, before it was killed"
                )
    finally:
        process.kill()
    return _ended("killed", process, began, codes=(-signal.SIGKILL,))


def _published_by_the_dead(shop: Shop) -> int:
    """Waits until its lock is free, so that it can be run again; how many messages it had put on the queue."""
    with shop.connect() as connection, connection.cursor() as cursor:
        while cursor.execute(
            f"SELECT 1 FROM {shop.prefix}zithara_lock WHERE name = 'reconcile:orders' AND lease_until > NOW(3)"
        ):
            time.sleep(0.1)
        cursor.execute(f"SELECT COUNT(*) FROM {shop.prefix}zithara_delivery WHERE reconcile_id > 0")
        return int(cursor.fetchall()[0][0])


# ---------------------------------------------------------------- the shop


def _generate(shop: Shop, orders: int) -> None:
    tables = ShopTables(shop)
    tables.create(rows=False)
    tables.generate_orders(orders)
    # What has changed within 15 minutes is not judged: without this the counts would depend on the machine's pace.
    shop.query(
        "UPDATE {prefix}sales_order SET updated_at = NOW() - INTERVAL 1 HOUR WHERE updated_at > NOW() - INTERVAL 1 HOUR"
    )


def _deliver_all_but(config: Path, every: int, orders: int) -> None:
    """Writes the ledger as workers would have, of all but each `every`-th order; by a process on each core."""
    tasks = [range(first, min(first + _TASK, orders + 1)) for first in range(1, orders + 1, _TASK)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(_write_ledger, config, every), tasks))


def _write_ledger(config: Path, every: int, ids: range) -> None:
    configured = configure(config, {}, {})
    where = configured.settings.database
    database = Database(where)
    settings = complete(configured, read_configuration(database, None)).settings
    here = destination(settings.zithara)
    reader = OrderReader(database)
    process = request_of(settings.zithara)
    now = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S}"
    with pymysql.connect(unix_socket=where.unix_socket, user=where.user, database=where.name) as connection:
        for start in range(0, len(ids), _PAGE):
            part = ids[start : start + _PAGE]
            page = reader.page(part[0] - 1, len(part), since=None, until=None)
            delivered = [each for each in page.entities if each.id % every]
            rebuilt = reader.build([each.id for each in delivered])
            rows: list[Sequence[object]] = []
            for each in delivered:
                request = process(Event(topic=TOPIC_ORDER, payload=rebuilt[each.id].payload))
                assert isinstance(request, Request) and request.entity is not None
                digest = content_digest(request.entity)
                rows.append(
                    (TOPIC_ORDER, each.group_key, here, digest, digest, each.updated_at, 0, now, 0, "", now, now, 1)
                )
            with connection.cursor() as cursor:
                # VALUES of nothing but placeholders: pymysql makes one statement of the rows only then.
                cursor.executemany(
                    f"INSERT INTO {where.table_prefix}zithara_delivery (topic_name, group_key, "
                    "destination, request, content, entity_updated_at, message_id, published_at, create_id, covers, "
                    "first_accepted_at, last_accepted_at, accepted) "
                    f"VALUES ({', '.join(['%s'] * 13)})",
                    rows,
                )
            connection.commit()
    database.close()


# ---------------------------------------------------------------- beside it


@contextmanager
def _worker(config: Path, api: ApiProcess) -> Iterator[None]:
    api.reset(latency_seconds=LATENCY_SECONDS, keep_arrivals=True)
    worker = subprocess.Popen(
        [worker_command(), "--config", str(config), "consume", TOPIC_ORDER],
        stdout=subprocess.DEVNULL,
        stderr=sys.stderr,
    )
    try:
        yield
        worker.send_signal(signal.SIGTERM)
        worker.wait(timeout=60)
    finally:
        if worker.poll() is None:
            worker.kill()
            worker.wait()


@contextmanager
def _live(shop: Shop, events: dict[str, float], per_second: float) -> Iterator[None]:
    """A shop that publishes orders of its own, at random moments; `events`: order number -> when it was committed."""
    ended = threading.Event()
    first = int(_LIVE) * 100_000_000
    chance = random.Random(1)

    def publish() -> None:
        for number, body in enumerate(messages.bodies(100_000_000, first=first - 100_000_000), first):
            if ended.wait(chance.expovariate(per_second)):
                return
            shop.publish_body(messages.TOPIC, body)
            events[str(number)] = time.monotonic()

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def table(proof: Proof) -> str:
    rows = "".join(
        f"| {each.what} | {each.seconds:.1f} | {each.cpu_seconds:.1f} | {each.mb:.0f} | "
        f"{', '.join(f'{name} {number:,}' for name, number in each.counts.items())} | {each.published:,} |\n"
        for each in proof.runs
    )
    return (
        "| run | seconds | CPU | MB at most | found | published |\n| --- | --- | --- | --- | --- | --- |\n"
        f"{rows}\nOf {proof.missing:,} missing orders and {proof.live:,} live events each came once, and nothing else. "
        f"{proof.beside.events:,} live events while missing ones arrived: from commit to request median "
        f"{proof.beside.median_ms:.0f} ms, p95 {proof.beside.p95_ms:.0f} ms. Resent with nothing beside: "
        f"{proof.import_per_second:.0f} a second at the API. To make the shop took "
        f"{proof.generated_seconds:.0f} s, its ledger {proof.ledger_seconds:.0f} s.\n"
    )
