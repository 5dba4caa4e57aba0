"""Costs that can be counted and come out the same on every machine: the guard against growth. Never a time.

Statements and connections are counted on a real run of the worker or its parts; calls with Python's own profiling hook,
along a message's way: from a stored body to a request's bytes, through an exchange, into the log.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from benchmarks import messages, scale
from benchmarks.api_server import ApiProcess
from benchmarks.processes import Measured, contestant, run
from benchmarks.throughput import write_worker_config
from zithara_worker.completeness.reconcile import Reconcile, Surroundings, Window
from zithara_worker.completeness.requests import request_of
from zithara_worker.database import locks
from zithara_worker.database.session import Database
from zithara_worker.delivery.pace import RateLimit, turns_of
from zithara_worker.logs import handlers as logs
from zithara_worker.messages import Event, Request
from zithara_worker.monitor.fleet import read_fleet
from zithara_worker.processors import ShopContext, identify, process
from zithara_worker.queue.queues import QueueRow, find_queues
from zithara_worker.relay.amqp import Delivery
from zithara_worker.relay.transfer import Source, Transfer
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.shop_tables import ShopTables
from zithara_worker.settings.sections import LoggingSettings, ZitharaSettings
from zithara_worker.settings.values import Secret
from zithara_worker.shop.carts import active_carts
from zithara_worker.shop.orders import OrderReader
from zithara_worker.zithara.api import encoded
from zithara_worker.zithara.http import Transport, send, tls_context, usable_url
from zithara_worker.zithara.signature import WebhookSigner

#: Above these the guard fails. Whoever raises one says in the commit what the cost buys. Calls are of Python and of C
#: functions, measured on Python 3.11; versions of Python and of the libraries differ by some.
LIMITS: Mapping[str, float] = {
    # Measured: 15, those of a poll for each batch included; the loop polls four times a second only.
    "statements per 100 messages claimed and settled": 16,
    # Measured: 2, one that reads and one that writes. Carts that are sent have another one, the look at `quote`.
    "statements that the delivery ledger adds to 100 messages": 2.2,
    # Measured: 3, one that reads, one that locks, one that writes.
    "statements that it adds to 100 unchanged messages": 3.2,
    # Measured: 68 to 96 with the ledger, the more the busier the machine (55 to 60 before the ledger).
    # Settled as they come they would be more than 290.
    "statements per 100 messages of a worker, 16 threads at 50 ms": 140,
    # Measured: 16, one a thread.
    "connections per 1,000 messages, 16 threads": 16,
    "statements that look at the carts of a batch": 1,
    # Measured: 2.5. Pages have 500; one pass of the queue's pending messages is in it.
    "statements per 100 orders that reconcile compares": 3,
    # Measured: 205. Each message is stored by two, as Magento stores it.
    "statements per 100 orders that it publishes": 215,
    # Measured: 8: BEGIN, lock, known keys, keys, messages, their ids, statuses, COMMIT.
    "statements per 100 messages relayed": 8,
    # Measured: 10. Four a reservation, of which the first are small.
    "statements per 100 turns of a rate limit of 1,000 a second": 12,
    # Measured: 10
    "statements of a status": 11,
    # Measured: 267
    "calls per message from stored body to request": 290,
    # Measured: 506
    "calls per exchange of a request and its answer": 530,
    # Measured: 80
    "calls per line of the log that tells of a delivery": 90,
    # Measured: 29, by two secrets
    "calls to sign a webhook": 32,
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
    values = (
        *statements(server),
        statements_at_work(server, api, directory),
        connections(server, api, directory),
        *statements_beside(server),
        calls(),
        calls_of_exchange(api),
        calls_of_line(directory),
        calls_of_signature(),
    )
    return [Counted(name=name, value=value) for name, value in zip(LIMITS, values, strict=True)]


def statements(server: MariaDbServer) -> tuple[float, float, float]:
    """Of whole batches on an otherwise empty shop: of a worker without the delivery ledger, and what it adds where each
    message is delivered, and where each is unchanged."""
    without = scale.plain(server).statements_per_100
    recorded, unchanged = scale.plain(server, recorded=True), scale.plain_unchanged(server)
    return without, recorded.statements_per_100 - without, unchanged.statements_per_100 - without


def statements_at_work(server: MariaDbServer, api: ApiProcess, directory: Path) -> float:
    """Of a whole worker, start and end included, as the server counts them."""
    with Shop(server) as shop:
        before = int(shop.query("SHOW GLOBAL STATUS LIKE 'Questions'")[0][1])
        _run_worker(shop, api, directory, threads=16, count=1_000, latency_seconds=0.05)
        return (int(shop.query("SHOW GLOBAL STATUS LIKE 'Questions'")[0][1]) - before) / 10


def connections(server: MariaDbServer, api: ApiProcess, directory: Path) -> float:
    """Opened by the worker for 1,000 messages, the token included: it is fetched over a thread's own connection."""
    with Shop(server) as shop:
        return _run_worker(shop, api, directory, threads=16, count=1_000, latency_seconds=0.0).connections


def _run_worker(
    shop: Shop, api: ApiProcess, directory: Path, *, threads: int, count: int, latency_seconds: float
) -> Measured:
    shop.configure_webhook()
    shop.publish_bodies(messages.TOPIC, messages.bodies(count))
    config = write_worker_config(directory / "worker.conf", shop, api, threads=threads)
    command = contestant("worker", "--config", str(config), "consume", messages.TOPIC, "--max-messages", str(count))
    return run("worker", [command], api=api, latency_seconds=latency_seconds, messages=count)


def statements_beside(server: MariaDbServer, orders: int = 1_000) -> tuple[float, float, float, float, float, float]:
    """Of one look at the carts of a batch; for 100 orders compared, 100 published, 100 messages relayed, 100 turns of a
    rate limit; and of one status."""
    with Shop(server) as shop:
        shop.grant_publishing()
        tables = ShopTables(shop)
        tables.create(rows=False)
        tables.generate_orders(orders)
        operator = replace(shop.database_settings, user="root", password=Secret())
        with closing(Database(operator)) as database:
            [queue] = find_queues(database, [messages.TOPIC], {})
            return (
                _statements(database, lambda: active_carts(database, range(1, scale.BATCH + 1))),
                *_reconciled(database, queue, orders),
                _relayed(database, queue),
                _turns(database),
                _statements(database, lambda: read_fleet(database, {})),
            )


def _statements(database: Database, run: Callable[[], object]) -> int:
    before = database.statements_sent
    run()
    return database.statements_sent - before


def _relayed(database: Database, queue: QueueRow, batches: int = 5) -> float:
    source = Source(name=queue.name, queue_ids={messages.TOPIC: queue.queue_id})
    locks.take(database, source.lock, owner="bench", lease_seconds=60)
    transfer = Transfer(database, source, owner="bench", lease_seconds=60)
    deliveries = [
        Delivery(queue=queue.name, epoch=1, tag=n, message_id=f"m{n}", routing_key=messages.TOPIC, body=body.encode())
        for n, body in enumerate(messages.bodies(batches * 100))
    ]

    def relay() -> None:
        for start in range(0, len(deliveries), 100):
            transfer.store(deliveries[start : start + 100])

    return _statements(database, relay) / batches


def _reconciled(database: Database, queue: QueueRow, orders: int) -> tuple[float, float]:
    """Compared and published, by a shop none of whose orders was ever published."""
    here = Surroundings(
        destination="0" * 64, process=request_of(ZitharaSettings()), concurrency=10 * orders, owner="bench"
    )
    with Reconcile(database, OrderReader(database), queue, here) as run:
        compared = _statements(database, lambda: run.compare(Window()))
        found = run.compare(Window())
        published = _statements(database, lambda: run.publish(found))
    return compared / orders * 100, published / run.published * 100


def _turns(database: Database, count: int = 500) -> float:
    """Turns that are used as they come, on a clock of their own."""
    now = 0.0

    def wait(seconds: float) -> bool:
        nonlocal now
        now += seconds
        return False

    turns = turns_of(1_000, 0)
    limit = RateLimit(
        partial(locks.take_turns, database, "bench-turns", owner="bench", **turns._asdict()),
        seconds_each=turns.seconds_each,
        clock=lambda: now,
        wait=wait,
    )

    def take() -> None:
        for _ in range(count):
            assert limit.take()

    return _statements(database, take) / count * 100


#: Runs some work, and tells what it costs.
Meter = Callable[[Callable[[], None]], float]


def calls_in(work: Callable[[], None]) -> int:
    """Functions called in this thread, C's included, when `work` runs for the second time: the first warms it up."""
    work()
    counted = 0

    def hook(_frame: FrameType, what: str, _argument: Any) -> None:
        nonlocal counted
        counted += what in ("call", "c_call")

    sys.setprofile(hook)
    try:
        work()
    finally:
        sys.setprofile(None)
    return counted


def calls(count: int = 200) -> float:
    """For a message on its way through identify, process and encoded; the mean."""
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

    return calls_in(all_of_them) / count


def calls_of_exchange(api: ApiProcess, count: int = 50, meter: Meter = calls_in) -> float:
    """For a request and its answer over a connection that is open, in the thread that sends; the mean."""
    transport = Transport(tls=tls_context(verify=False), timeout_seconds=30)
    order = usable_url(f"{api.base_url}/order")
    headers = [(b"Authorization", api.token.encode()), (b"Content-Type", b"application/json")]
    api.reset()

    def all_of_them() -> None:
        for _ in range(count):
            request = httpx.Request("POST", order, headers=headers, content=b"{}")
            assert send(transport, request).status == 200

    try:
        return meter(all_of_them) / count
    finally:
        transport.close()


def calls_of_line(directory: Path, count: int = 100, meter: Meter = calls_in) -> float:
    """For the line that each delivered message gets, in a batch of `count`; the mean."""
    root, log = logging.getLogger(), logging.getLogger(__name__)
    others, level = list(root.handlers), root.level
    logs.configure(LoggingSettings(file=directory / "counted.log"))
    # Whoever runs this may listen to the root logger as well, and would be counted.
    [ours] = [handler for handler in root.handlers if handler not in others]
    root.removeHandler(ours)
    log.addHandler(ours)
    log.propagate = False
    fields = {"topic": messages.TOPIC, "message_id": 1, "group": "order:1", "attempt": 1}

    def all_of_them() -> None:
        with logs.batched_writes():
            for _ in range(count):
                extra = {"event": "delivered", **fields, "duration_ms": 50.1, "http_status": 200}
                log.info("message %s", "delivered", extra=extra)

    try:
        return meter(all_of_them) / count
    finally:
        root.setLevel(level)
        log.propagate = True
        log.removeHandler(ours)
        ours.close()


def calls_of_signature() -> float:
    """For the three headers of a webhook, with two secrets as during a rotation."""
    signer = WebhookSigner([b"0" * 32, b"1" * 32])
    return calls_in(lambda: signer.headers("zithara_webhook_queue-1", b"{}" * 1_000, now_utc=1.0))
