"""Where the CPU of a delivered order goes, piece by piece, in one thread: each of the worker's functions by itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

from benchmarks import counted, messages, report, scale
from benchmarks.api_server import ApiProcess
from zithara_worker.database.session import Database
from zithara_worker.messages import Event, Request
from zithara_worker.processors import ShopContext, identify, process
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.shop import Shop
from zithara_worker.zithara.api import content_digest, encoded

COUNT = 2_000


def measure(server: MariaDbServer, api: ApiProcess, directory: Path, *, rounds: int) -> Mapping[str, list[float]]:
    """Piece -> microseconds of CPU a message, of each round."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, cost in _round(server, api, directory).items():
            found.setdefault(name, []).append(cost)
    return found


def table(found: Mapping[str, Sequence[float]]) -> str:
    rows = "".join(f"| {name} | {report.spread(costs, 0)} |\n" for name, costs in found.items())
    together = sum(statistics.median(costs) for costs in found.values())
    return f"| piece | us of CPU a message |\n| --- | --- |\n{rows}| together | {together:.0f} |\n"


def _round(server: MariaDbServer, api: ApiProcess, directory: Path) -> dict[str, float]:
    context = ShopContext(
        webhook_url="", active_config_id=1, config_ids=None, invented_phone="send", now_utc=datetime.now(timezone.utc)
    )
    bodies = list(messages.bodies(COUNT))
    events = [event for _, event in (identify(messages.TOPIC, 1, body) for body in bodies) if isinstance(event, Event)]
    requests = [request for request in (process(event, context) for event in events) if isinstance(request, Request)]
    entities = [request.entity for request in requests if request.entity is not None]
    assert len(entities) == COUNT

    def of_each(work: Callable[[], list[object]]) -> float:
        return _cpu_us(work) / COUNT

    decode = of_each(lambda: [identify(messages.TOPIC, 1, body) for body in bodies])
    with Shop(server) as shop, closing(Database(shop.database_settings)) as database:
        shop.publish_bodies(messages.TOPIC, bodies)
        began = time.thread_time()
        scale.drain(database, "", COUNT, recorded=True)
        # A claim decodes what it takes.
        queue = (time.thread_time() - began) * 1e6 / COUNT - decode
    return {
        "HTTP exchange": counted.calls_of_exchange(api, COUNT, meter=_cpu_us),
        "claim and settle, the ledger included": queue,
        "decode and group": decode,
        "line of the log": counted.calls_of_line(directory, COUNT, meter=_cpu_us),
        "request from event": of_each(lambda: [process(event, context) for event in events]),
        "encode the request": of_each(lambda: [encoded(request.json) for request in requests]),
        "digest of the content, for the ledger": of_each(lambda: [content_digest(entity) for entity in entities]),
    }


def _cpu_us(work: Callable[[], object]) -> float:
    """CPU of this thread."""
    began = time.thread_time()
    work()
    return (time.thread_time() - began) * 1e6
