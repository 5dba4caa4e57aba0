"""What the delivery ledger costs and saves: a worker with it beside one without, and a snapshot that tells nothing new
beside one that is delivered. In pairs, so that the noise of the machine is shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import messages, report
from benchmarks.api_server import ApiProcess
from benchmarks.processes import Measured, consume, run
from benchmarks.throughput import THREADS, write_worker_config
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """CPU of a message, microseconds, of the worker's process. `carts`: with the look at `quote`; `unchanged`: the same
    carts published again."""

    orders: float
    orders_without: float
    carts: float
    carts_without: float
    unchanged: float


#: What is told -> numerator, denominator, and what design.md allows
RATIOS: Mapping[str, tuple[str, str, str]] = {
    "orders: with the ledger / without": ("orders", "orders_without", "<= 1.08"),
    "carts: with ledger and cart check / without": ("carts", "carts_without", "<= 1.08"),
    "a cart that is unchanged / delivered": ("unchanged", "carts", "<= 0.25"),
}


def measure(server: MariaDbServer, api: ApiProcess, directory: Path, *, rounds: int, count: int) -> list[Round]:
    """`count` messages in each run. Who comes first in a pair takes turns."""
    return [_round(server, api, directory, count, backwards=bool(number % 2)) for number in range(rounds)]


def table(rounds: Sequence[Round]) -> str:
    lines = ["| CPU of the worker's process | ratio | target |", "| --- | --- | --- |"]
    for name, (above, below, target) in RATIOS.items():
        ratios = [getattr(each, above) / getattr(each, below) for each in rounds]
        lines.append(f"| {name} | {report.spread(ratios)} | {target} |")
    return "\n".join(lines) + "\n"


def _round(server: MariaDbServer, api: ApiProcess, directory: Path, count: int, *, backwards: bool) -> Round:
    arrangements = {
        "orders": partial(_drained, server, api, directory, TOPIC_ORDER, count),
        "orders_without": partial(_drained, server, api, directory, TOPIC_ORDER, count, without=True),
        "carts": partial(_drained, server, api, directory, TOPIC_CART, count),
        "carts_without": partial(_drained, server, api, directory, TOPIC_CART, count, without=True),
    }
    spent: dict[str, float] = {}
    for name in sorted(arrangements, reverse=backwards):
        first, *again = arrangements[name]()
        spent[name] = first.cpu_us
        if name == "carts":
            spent["unchanged"] = again[0].cpu_us
    return Round(**spent)


def _drained(
    server: MariaDbServer, api: ApiProcess, directory: Path, topic: str, count: int, *, without: bool = False
) -> list[Measured]:
    """A run over messages of as many entities, and with carts another one over the same messages again."""
    runs = []
    with Shop(server) as shop:
        shop.configure_webhook()
        changes = {"zithara": {"inactive_carts": "send"}} if without else {}
        config = write_worker_config(directory / "worker.conf", shop, api, threads=THREADS, sections=changes)
        name = "worker_without_ledger" if without else "worker"
        command = consume(config, topic, "--max-messages", str(count), name=name)
        again = topic == TOPIC_CART and not without
        for requests in (count, 0) if again else (count,):
            shop.publish_bodies(topic, messages.bodies(count) if topic == TOPIC_ORDER else messages.carts(count))
            runs.append(run(name, [command], api=api, latency_seconds=0.0, messages=count, requests=requests))
            if runs[-1].requests != requests:
                raise RuntimeError(f"{name} sent {runs[-1].requests} requests instead of {requests}")
    return runs
