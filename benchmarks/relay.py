"""The relay: how many messages a second it moves from RabbitMQ into the queue, alone, and with a worker that delivers
them; beside a worker that finds the same messages in the queue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import messages, report
from benchmarks.api_server import ApiProcess
from benchmarks.processes import Measured, consume, contestant, run
from benchmarks.throughput import THREADS, write_worker_config
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.rabbitmq import RabbitMqServer, VirtualHost
from zithara_worker.sandbox.shop import Shop


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Messages a second: of the relay from its first row to its last; at the API, with relay and worker at once, and
    with a worker whose messages are on the queue already. `cpu_us`: of the relay's process, for a message."""

    relay: float
    cpu_us: float
    end_to_end: float
    worker: float


def measure(server: MariaDbServer, api: ApiProcess, directory: Path, *, rounds: int, count: int) -> list[Round]:
    """`count` messages in each run, at an API that answers at once."""
    with RabbitMqServer() as rabbitmq:
        return [_round(server, rabbitmq, api, directory, count) for _ in range(rounds)]


def table(rounds: Sequence[Round]) -> str:
    def told(values: Sequence[float]) -> str:
        return report.spread(values, 0)

    return (
        "| messages a second | value | target |\n| --- | --- | --- |\n"
        f"| the relay alone | {told([each.relay for each in rounds])} | >= 2000 |\n"
        f"| relay and worker at once, at the API | {told([each.end_to_end for each in rounds])} | |\n"
        f"| a worker alone, its messages on the queue | {told([each.worker for each in rounds])} | |\n\n"
        f"CPU of the relay's process: {told([each.cpu_us for each in rounds])} us a message.\n"
    )


def _round(server: MariaDbServer, rabbitmq: RabbitMqServer, api: ApiProcess, directory: Path, count: int) -> Round:
    with _scene(server, rabbitmq, api, directory, count) as (shop, config):
        moved = _run("relay", [_relay(config)], api, count, requests=0)
        ((seconds,),) = shop.query(
            "SELECT TIMESTAMPDIFF(MICROSECOND, MIN(relayed_at), MAX(relayed_at)) / 1000000 FROM {prefix}zithara_relayed"
        )
        worker = _run("worker", [_worker(config, count)], api, count)
    with _scene(server, rabbitmq, api, directory, count) as (shop, config):
        both = _run("relay and worker", [_relay(config), _worker(config, count)], api, count)
    return Round(
        relay=count / float(seconds),
        cpu_us=moved.cpu_us,
        end_to_end=both.per_second,
        worker=worker.per_second,
    )


@contextmanager
def _scene(
    server: MariaDbServer, rabbitmq: RabbitMqServer, api: ApiProcess, directory: Path, count: int
) -> Iterator[tuple[Shop, Path]]:
    """A shop whose `count` messages wait in RabbitMQ, and the configuration of its relay and worker."""
    with Shop(server) as shop, VirtualHost(rabbitmq) as virtual_host:
        shop.configure_webhook()
        shop.grant_publishing()
        virtual_host.declare()
        virtual_host.publish_bodies((messages.TOPIC, body) for body in messages.bodies(count))
        sections = {"relay": {**virtual_host.relay_settings, "max_pending": "1000000"}}
        yield shop, write_worker_config(directory / "relay.conf", shop, api, threads=THREADS, sections=sections)


def _relay(config: Path) -> list[str]:
    return contestant("worker", "--config", str(config), "relay", messages.TOPIC, "--stop-when-empty")


def _worker(config: Path, count: int) -> list[str]:
    return consume(config, messages.TOPIC, "--max-messages", str(count))


def _run(name: str, commands: Sequence[Sequence[str]], api: ApiProcess, count: int, **requests: Any) -> Measured:
    return run(name, commands, api=api, latency_seconds=0.0, messages=count, **requests)
