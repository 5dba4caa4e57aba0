"""What workers take in memory: by threads, in steady load, with large bodies and with one group's backlog; and all
programs of a shop together, beside its PHP consumers. In MB of 1,000,000 bytes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from configparser import ConfigParser
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks import messages
from benchmarks.api_server import ApiProcess
from benchmarks.processes import PROJECT, running
from benchmarks.throughput import THREADS, php_consumer, write_worker_config
from zithara_worker.sandbox import examples
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.publisher import stored_body
from zithara_worker.sandbox.session import Sections, worker_command
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER, TOPIC_TABLE, TOPIC_WEBHOOK

#: Looks at the resident memory in a run.
LOOKS = 10
#: Large bodies: how many times `bodies` of so many MB, and of how many carts.
LARGE = ((1, 10, None), (10, 1, 1))
#: Messages of each queue that a program has had before it is looked at, so that every thread has its connection.
HAD = 300
SUPERVISOR = PROJECT / "packaging/deb/debian/etc/supervisor/conf.d/zithara-worker.conf"
#: What pymysql loads where it is installed, for MySQL's caching_sha2_password.
CRYPTOGRAPHY = "cryptography"
_WITHIN = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """Of one worker. `resident_mb`: after each tenth of the messages; `peak_mb`: at most, from its start."""

    arrangement: str
    messages: int
    requests: int
    resident_mb: Sequence[float]
    peak_mb: float
    target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Of several processes: the sum. `proportional_mb`: what several share is counted in parts."""

    programs: str
    resident_mb: float
    proportional_mb: float


def by_threads(server: MariaDbServer, api: ApiProcess, directory: Path, *, count: int) -> list[Resident]:
    """Of workers that each deliver `count` orders."""
    arrangements: Mapping[tuple[int, str], str] = {
        (1, ""): "",
        (THREADS, ""): "<= 40",
        (THREADS, CRYPTOGRAPHY): "<= 40",
        (64, ""): "<= 56",
        (64, CRYPTOGRAPHY): "<= 56",
    }
    return [
        _drained(
            server,
            api,
            directory,
            arrangement=f"{threads} in flight{without and f', without {without}'}",
            bodies=messages.bodies(count),
            count=count,
            threads=threads,
            without=without,
            target=target,
        )
        for (threads, without), target in arrangements.items()
    ]


def steady(server: MariaDbServer, api: ApiProcess, directory: Path, *, count: int) -> Resident:
    """Of one worker that delivers `count` orders, of which a tenth at most is pending at a time."""
    return _drained(
        server,
        api,
        directory,
        arrangement=f"steady load, {THREADS} in flight",
        bodies=messages.bodies(count),
        count=count,
        target="no growth",
    )


def large_bodies(server: MariaDbServer, api: ApiProcess, directory: Path, *, count: int) -> list[Resident]:
    """Of workers that find carts of 10 MB (`count` of them) and many snapshots of one cart, of 1 MB and of 1 KB."""
    arrangements = [(times * count, megabytes * 1_000_000, groups) for times, megabytes, groups in LARGE]
    return [
        _drained(
            server,
            api,
            directory,
            topic=TOPIC_CART,
            arrangement=f"{number:,} {'carts' if groups is None else 'snapshots of one cart'}"
            f"{f' of {size // 1_000_000} MB' if size else ''}, all pending at the start",
            bodies=messages.carts(number, groups=groups, size=size),
            count=number,
            at_once=True,
            target="<= 160" if size else "",
        )
        for number, size, groups in (*arrangements, (1_000 * count, 0, 1))
    ]


def together(server: MariaDbServer, api: ApiProcess, directory: Path) -> list[Together]:
    """The packaged programs, and four PHP consumers, when each has had messages and waits at its empty queue."""
    queues = [topic.queue for topic in TOPIC_TABLE.values()]
    found = []
    for name, of_php in (("the packaged programs", False), ("four PHP consumers", True)):
        with Shop(server) as shop:
            shop.configure_webhook(webhook_url=api.base_url.replace("/v1", "/hook"))
            for number, queue in enumerate(queues):
                # The module's own messages to the worker; to PHP orders, since its script makes requests of these only.
                topic = TOPIC_ORDER if of_php else list(TOPIC_TABLE)[number]
                shop.publish_bodies(topic, _any(topic), queue=queue)
            api.reset()
            # PHP is told to wait for one message more than there are.
            commands = [php_consumer(shop, api, HAD + 1, queue) for queue in queues]
            with running(commands if of_php else _packaged(shop, api, directory)) as processes:
                arrive(api, len(queues) * HAD)
                _until_settled(shop, len(queues) * HAD)
                found.append(
                    Together(
                        programs=name,
                        resident_mb=sum(mb(pid, "smaps_rollup", "Rss") for pid in processes),
                        proportional_mb=sum(mb(pid, "smaps_rollup", "Pss") for pid in processes),
                    )
                )
    return found


def table(found: Sequence[Resident]) -> str:
    rows = "".join(
        f"| {each.arrangement} | {each.messages:,} | {each.requests:,} | "
        f"{', '.join(f'{mb:.1f}' for mb in each.resident_mb)} | {each.peak_mb:.1f} | {each.target} |\n"
        for each in found
    )
    return (
        "| one worker, metrics and TLS authorities loaded | messages | requests | MB resident, after each tenth "
        f"| at most | target |\n| --- | --- | --- | --- | --- | --- |\n{rows}"
    )


def table_together(found: Sequence[Together]) -> str:
    rows = "".join(f"| {each.programs} | {each.resident_mb:.1f} | {each.proportional_mb:.1f} |\n" for each in found)
    return (
        "| waiting at their queues, each after some messages | MB resident, summed | MB proportional |\n"
        f"| --- | --- | --- |\n{rows}\n"
        "A PHP consumer here is benchmarks/contestants/php_consumer.php, some statements and a request: PHP at its "
        "best. Magento's own consumers load its framework and object graph besides.\n"
    )


@contextmanager
def at_work(
    shop: Shop,
    api: ApiProcess,
    directory: Path,
    *,
    threads: int,
    topic: str = TOPIC_ORDER,
    without: str = "",
    sections: Sections = MappingProxyType({}),
    **window: Any,
) -> Iterator[int]:
    """Process id of the command as a shop runs it, with metrics and the authorities that it trusts.

    `without`: a module that counts as not installed. `window`: as for `ApiProcess.reset`.
    """
    shop.configure_webhook()
    config = write_worker_config(
        directory / "worker.conf", shop, api, threads=threads, verify=True, metrics="127.0.0.1:0", sections=sections
    )
    api.reset(**window)
    program = [worker_command()]
    if without:
        code = f"import sys; sys.modules[{without!r}] = None; from zithara_worker.commands import main; main()"
        program = [sys.executable, "-c", code]
    with running([[*program, "--config", str(config), "consume", topic]]) as [worker]:
        yield worker


def arrive(api: ApiProcess, count: int) -> None:
    if not api.wait(count, _WITHIN):
        raise RuntimeError(f"{count} requests did not come within {_WITHIN:g} s")


def _drained(
    server: MariaDbServer,
    api: ApiProcess,
    directory: Path,
    *,
    arrangement: str,
    bodies: Iterator[str],
    count: int,
    topic: str = TOPIC_ORDER,
    threads: int = THREADS,
    without: str = "",
    at_once: bool = False,
    target: str = "",
) -> Resident:
    """`at_once`: all messages are pending before the worker starts, and it is looked at when all are through."""
    share = count if at_once else count // LOOKS
    resident: list[float] = []
    with Shop(server) as shop:
        if at_once:
            # Ten megabytes each: not all of them in the memory of this process.
            while some := list(islice(bodies, 10)):
                shop.publish_bodies(topic, some)
        with at_work(shop, api, directory, threads=threads, topic=topic, without=without) as worker:
            for done in range(share, share * (count // share) + 1, share):
                if not at_once:
                    shop.publish_bodies(topic, islice(bodies, share))
                    arrive(api, done)
                _until_settled(shop, done)
                resident.append(mb(worker, "status", "VmRSS"))
            peak = mb(worker, "status", "VmHWM")
    return Resident(
        arrangement=arrangement,
        messages=done,
        requests=api.seen()["requests"],
        resident_mb=resident,
        peak_mb=peak,
        target=target,
    )


def _until_settled(shop: Shop, count: int) -> None:
    deadline = time.monotonic() + _WITHIN
    while shop.query("SELECT COUNT(*) FROM {prefix}queue_message_status WHERE status = 4") != [(count,)]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{count} messages were not complete within {_WITHIN:g} s: {shop.status_counts()}")
        time.sleep(0.1)


def _packaged(shop: Shop, api: ApiProcess, directory: Path) -> list[list[str]]:
    """The commands that the package's configuration of supervisor starts, with this shop's configuration."""
    supervisor = ConfigParser(interpolation=None, inline_comment_prefixes=(";",))
    supervisor.read(SUPERVISOR, encoding="utf-8")
    config = write_worker_config(
        directory / "packaged.conf", shop, api, threads=THREADS, verify=True, metrics="127.0.0.1:0"
    )
    commands = [section["command"].split()[1:] for section in supervisor.values() if "command" in section]
    return [[worker_command(), "--config", str(config), *arguments] for arguments in commands]


def _any(topic: str) -> Iterator[str]:
    """HAD messages of the topic, each of an entity of its own."""
    makers = {
        TOPIC_CUSTOMER: lambda number: examples.customer(str(number)),
        TOPIC_WEBHOOK: lambda number: examples.webhook(payload={"order_id": str(number)}),
    }
    if topic in makers:
        return (stored_body(makers[topic](number)) for number in range(1, HAD + 1))
    return messages.bodies(HAD) if topic == TOPIC_ORDER else messages.carts(HAD)


def mb(pid: int, file: str, field: str) -> float:
    """A size of /proc/PID/`file`."""
    for line in Path(f"/proc/{pid}/{file}").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"/proc/{pid}/{file} tells no {field}")
