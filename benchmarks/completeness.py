"""What `reconcile` takes on a shop of many orders, and what live events notice of it while it publishes."""

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import messages
from benchmarks.api_server import ApiProcess
from benchmarks.throughput import write_worker_config
from zithara_worker.completeness.requests import request_of
from zithara_worker.database.session import Database
from zithara_worker.messages import Event, Request
from zithara_worker.queue.ledger_rules import destination
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.session import worker_command
from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.shop_tables import ShopTables
from zithara_worker.settings.values import Secret
from zithara_worker.shop.configuration import complete, configure, read_configuration
from zithara_worker.shop.orders import OrderReader
from zithara_worker.topics import TOPIC_ORDER
from zithara_worker.zithara.api import content_digest

_PAGE = 1000
_WITHIN = 3600.0
LATENCY_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """`seconds`, `cpu_seconds` and `mib` (resident at most) of the command."""

    what: str
    seconds: float
    cpu_seconds: float
    mib: float
    counts: dict[str, int]
    published: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """Live events while reconcile publishes: from commit to request."""

    events: int
    median_ms: float
    p95_ms: float


def measure(
    server: MariaDbServer, api: ApiProcess, directory: Path, *, orders: int, missing: int, live_per_second: float
) -> tuple[list[Reconciled], Beside]:
    """A shop of `orders`, all but `missing` of them delivered: the first report, the second, and the publishing of the
    missing ones while the shop publishes `live_per_second`."""
    with Shop(server) as shop:
        shop.configure_webhook()
        tables = ShopTables(shop)
        tables.create(rows=False)
        tables.generate_orders(orders)
        config = write_worker_config(directory / "operator.conf", shop, api, threads=16)
        text = config.read_text(encoding="utf-8")
        config.write_text(text.replace(f"user = {shop.user}", "user = root").replace(shop.password, ""))
        _deliver_all_but(shop, config, missing, orders)
        found = [_reconcile("first", config), _reconcile("again", config)]
        with _worker(config, api):
            events: dict[str, float] = {}
            with _live(shop, events, live_per_second):
                found.append(_reconcile("publish", config, "--publish", "--yes"))
            if not api.wait(found[-1].published + len(events), _WITHIN):
                raise RuntimeError("not everything that was published has arrived")
            arrivals = api.seen()["arrivals"]
        latencies = sorted((arrivals[key] - at) * 1000 for key, at in events.items())
        found.append(_reconcile("afterwards", config))
    return found, Beside(
        events=len(latencies),
        median_ms=statistics.median(latencies),
        p95_ms=latencies[min(len(latencies) - 1, round(len(latencies) * 0.95))],
    )


def _reconcile(what: str, config: Path, *options: str) -> Reconciled:
    command = [worker_command(), "--config", str(config), "reconcile", "orders", "--all", "--json", *options]
    started = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=sys.stderr)
    assert process.stdout is not None
    with process.stdout as answer:
        [kind] = json.loads(answer.read())["kinds"]
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1):
        raise RuntimeError(f"reconcile ended with {process.returncode}")
    return Reconciled(
        what=what,
        seconds=time.monotonic() - started,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        mib=usage.ru_maxrss / 1024,
        counts={name: number for name, number in kind["counts"].items() if number},
        published=kind["published"],
    )


def _deliver_all_but(shop: Shop, config: Path, missing: int, orders: int) -> None:
    """Writes the ledger as workers would have: every order but `missing` of them, spread evenly."""
    database = Database(replace(shop.database_settings, user="root", password=Secret()))
    settings = complete(configure(config, {}, {}), read_configuration(database, None)).settings
    reader = OrderReader(database)
    process = request_of(settings.zithara)
    every = max(1, orders // missing)
    after = 0
    while True:
        page = reader.page(after, _PAGE, since=None, until=None)
        delivered = [each for each in page.entities if each.id % every]
        rebuilt = reader.build([each.id for each in delivered])
        rows: list[Sequence[object]] = []
        for each in delivered:
            request = process(Event(topic=TOPIC_ORDER, payload=rebuilt[each.id].payload))
            assert isinstance(request, Request) and request.entity is not None
            digest = content_digest(request.entity)
            rows.append((TOPIC_ORDER, each.group_key, destination(settings.zithara), digest, digest, each.updated_at))
        with shop.operator.cursor() as cursor:
            cursor.executemany(
                f"INSERT INTO {shop.prefix}zithara_delivery (topic_name, group_key, destination, request, content, "
                "entity_updated_at, message_id, published_at, create_id, covers, first_accepted_at, last_accepted_at, "
                "accepted) VALUES (%s, %s, %s, %s, %s, %s, 0, NOW(), 0, '', NOW(3), NOW(3), 1)",
                rows,
            )
        if page.is_last:
            database.close()
            return
        after = page.last_id


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
    """A shop that publishes orders of its own, at random moments; `events`: message -> when it was committed."""
    ended = threading.Event()
    bodies = _bodies()
    chance = random.Random(1)

    def publish() -> None:
        while not ended.wait(chance.expovariate(per_second)):
            published = shop.publish_body(messages.TOPIC, next(bodies))
            events[f"zithara_order_queue-{published.message_id}"] = time.monotonic()

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _bodies() -> Iterator[str]:
    while True:
        yield from messages.bodies(1000, first=800_000_000)


def table(found: Sequence[Reconciled], beside: Beside) -> str:
    rows = "".join(
        f"| {each.what} | {each.seconds:.1f} | {each.cpu_seconds:.1f} | {each.mib:.0f} | "
        f"{', '.join(f'{name} {number:,}' for name, number in each.counts.items())} | {each.published:,} |\n"
        for each in found
    )
    return (
        "| run | seconds | CPU | MiB | found | published |\n| --- | --- | --- | --- | --- | --- |\n"
        f"{rows}\nLive events while it published: {beside.events:,}, from commit to request median "
        f"{beside.median_ms:.0f} ms, p95 {beside.p95_ms:.0f} ms.\n"
    )


def as_json(found: Sequence[Reconciled], beside: Beside) -> dict[str, Any]:
    return {"runs": [asdict(each) for each in found], "live": asdict(beside)}
