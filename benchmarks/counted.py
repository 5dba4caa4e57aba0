"""Costs that can be counted and come out the same on every machine: the guard against growth. Never a time.

Statements and connections are counted on a real run of the worker's parts; calls with Python's own profiling hook on
the pure path from a stored body to a request's bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks import messages, scale
from benchmarks.api_server import ApiProcess
from benchmarks.processes import contestant, run
from benchmarks.throughput import write_worker_config
from zithara_worker.messages import Event, Request
from zithara_worker.processors import ShopContext, identify, process
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.shop import Shop
from zithara_worker.zithara.api import encoded

#: Above these the guard fails. Whoever raises one says in the commit what the cost buys.
LIMITS: Mapping[str, float] = {
    # Measured: 15, those of a poll before each batch included; the loop polls four times a second only.
    "statements per 100 messages claimed and settled": 16,
    # Measured: 16, one a thread.
    "connections per 1,000 messages, 16 threads": 16,
    # Measured: 266 on Python 3.11; C functions count, and versions differ by some.
    "calls per message from stored body to request": 300,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    name: str
    value: float

    @property
    def limit(self) -> float:
        return LIMITS[self.name]

    @property
    def grown(self) -> bool:
        return self.value > self.limit


def count_all(server: MariaDbServer, api: ApiProcess, directory: Path) -> list[Counted]:
    values = (statements(server), connections(server, api, directory), calls())
    return [Counted(name=name, value=value) for name, value in zip(LIMITS, values, strict=True)]


def statements(server: MariaDbServer) -> float:
    """Of whole batches on an otherwise empty shop."""
    return scale.plain(server).statements_per_100


def connections(server: MariaDbServer, api: ApiProcess, directory: Path) -> float:
    """Opened by the worker for 1,000 messages, the token included: it is fetched over a thread's own connection."""
    with Shop(server) as shop:
        shop.configure_webhook()
        shop.publish_bodies(messages.TOPIC, messages.bodies(1_000))
        config = write_worker_config(directory / "worker.conf", shop, api, threads=16)
        command = contestant("worker", "--config", str(config), "consume", messages.TOPIC, "--max-messages", "1000")
        return run("worker", [command], api=api, latency_seconds=0.0, messages=1_000).connections


def calls(count: int = 200) -> float:
    """Python and C functions called for a message on its way through identify, process and encoded; the mean."""
    context = ShopContext(
        webhook_url="", active_config_id=1, config_ids=None, invented_phone="send", now_utc=datetime.now(timezone.utc)
    )
    bodies = list(messages.bodies(count))

    def all_of_them() -> None:
        for number, body in enumerate(bodies, start=1):
            _, event = identify(messages.TOPIC, number, body)
            assert isinstance(event, Event), event
            request = process(event, context)
            assert isinstance(request, Request), request
            encoded(request.json)

    all_of_them()  # imports and the cache of telephone numbers are not a message's cost
    counted = 0

    def hook(_frame: FrameType, what: str, _argument: Any) -> None:
        nonlocal counted
        counted += what in ("call", "c_call")

    sys.setprofile(hook)
    try:
        all_of_them()
    finally:
        sys.setprofile(None)
    return counted / count
