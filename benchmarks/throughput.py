"""Who delivers how fast, and for how much CPU: contestants in turn on the same messages, several rounds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType

from benchmarks import messages
from benchmarks.api_server import ApiProcess
from benchmarks.processes import Measured, consume, contestant, run
from benchmarks.quota import share_of
from zithara_worker.messages import Event, Request
from zithara_worker.processors import ShopContext, identify, process
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.session import Sections, write_config
from zithara_worker.sandbox.shop import Shop
from zithara_worker.zithara.api import encoded

#: The messages of slow contestants: they are measured by the message, and have little to warm up.
FEW = 100
SOME = 500
#: Of a worker, by default
THREADS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One arrangement in which contestants are compared."""

    latency_ms: int
    threads: int
    tls: bool = False
    messages: int = 5_000

    @property
    def name(self) -> str:
        return f"{self.latency_ms} ms, {self.threads} in flight{', TLS' if self.tls else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What a contestant finds: the server, the API, a directory for its files."""

    server: MariaDbServer
    api: ApiProcess
    directory: Path
    scene: Scene


Contestant = Callable[[Stage], Measured]


def raw_httpx(stage: Stage) -> Measured:
    return _raw("raw_httpx", stage)


def raw_urllib3(stage: Stage) -> Measured:
    return _raw("raw_urllib3", stage, python=bench_python())


def worker(stage: Stage) -> Measured:
    return _worker(stage, 1)


def two_workers(stage: Stage) -> Measured:
    return _worker(stage, 2)


def raw_queue(stage: Stage) -> Measured:
    """Claim and settle alone."""
    with shop_of(stage) as config:
        command = contestant("raw_queue", str(config), str(stage.scene.messages))
        return _run("raw_queue", [command], stage, stage.scene.messages)


def worker_on_half_a_core(stage: Stage) -> Measured:
    return _worker(stage, 1, cores=0.5)


def two_workers_on_half_a_core(stage: Stage) -> Measured:
    return _worker(stage, 2, cores=0.5)


def php(stage: Stage) -> Measured:
    """One PHP consumer, as Magento starts one a queue. Fewer messages where each waits for the API."""
    count = min(stage.scene.messages, FEW if stage.scene.latency_ms else 1_000)
    with Shop(stage.server) as shop:
        shop.publish_bodies(messages.TOPIC, messages.bodies(count))
        return _run("php", [php_consumer(shop, stage.api, count)], stage, count)


def php_consumer(shop: Shop, api: ApiProcess, count: int, queue: str = "zithara_order_queue") -> list[str]:
    """The command of a PHP consumer, which waits at its queue until it has had `count` messages."""
    script = Path(__file__).with_name("contestants") / "php_consumer.php"
    database = [str(shop.server.socket_path), shop.name, "root", ""]
    return [shutil.which("php") or "php", str(script), *database, api.base_url, api.token, str(count), queue]


def huey(stage: Stage) -> Measured:
    return _general_purpose("huey_queue", stage)


def celery(stage: Stage) -> Measured:
    return _general_purpose("celery_queue", stage)


ALL: Mapping[str, Contestant] = {
    each.__name__: each
    for each in (
        *(raw_httpx, raw_urllib3, raw_queue, worker, two_workers, php, huey, celery),
        *(worker_on_half_a_core, two_workers_on_half_a_core),
    )
}


def rounds(
    scene: Scene, names: Sequence[str], *, count: int, server: MariaDbServer, api: ApiProcess, directory: Path
) -> list[list[Measured]]:
    """`count` rounds; in each, every contestant once. Ratios are taken within a round: its noise is shared."""
    write_requests(directory / "requests.jsonl", scene.messages)
    stage = Stage(server=server, api=api, directory=directory, scene=scene)
    done = []
    for number in range(count):
        # Forwards and backwards: who runs first or last in a round has neither luck nor harm from it.
        order = list(names) if number % 2 == 0 else list(reversed(names))
        measured = {name: ALL[name](stage) for name in order}
        done.append([measured[name] for name in names])
    return done


def write_requests(path: Path, count: int) -> None:
    """What the worker makes of the messages, for those who send from memory."""
    context = ShopContext(
        webhook_url="", active_config_id=1, config_ids=None, invented_phone="send", now_utc=datetime.now(timezone.utc)
    )
    with path.open("w", encoding="utf-8") as file:
        for number, body in enumerate(messages.bodies(count), start=1):
            _, event = identify(messages.TOPIC, number, body)
            assert isinstance(event, Event), event
            request = process(event, context)
            assert isinstance(request, Request), request
            line = {"method": request.method, "path": request.path, "body": encoded(request.json).decode()}
            file.write(json.dumps(line) + "\n")


def bench_python() -> str:
    """The interpreter of the environment that holds what only benchmarks need; scripts/bench makes it."""
    path = Path(__file__).parents[1] / ".venv-bench" / "bin" / "python"
    if not path.exists():
        raise RuntimeError(f"{path} is missing: scripts/bench makes it")
    return str(path)


def _raw(name: str, stage: Stage, **options: str) -> Measured:
    arguments = [str(stage.directory / "requests.jsonl"), stage.api.base_url, stage.api.token]
    command = contestant(name, *arguments, str(stage.scene.threads), **options)
    return _run(name, [command], stage, stage.scene.messages)


def _worker(stage: Stage, processes: int, *, cores: float | None = None) -> Measured:
    """`cores`: what each process may use of the machine's; None: all."""
    count = stage.scene.messages
    with shop_of(stage) as config:
        limit = ["--max-messages", str(count)] if processes == 1 else ["--stop-when-empty"]
        commands = [consume(config, messages.TOPIC, *limit)] * processes
        name = "worker" if processes == 1 else f"{processes} workers"
        if cores is None:
            return _run(name, commands, stage, count)
        with share_of(commands, cores) as limited:
            return _run(f"{name}, {cores:g} core each", limited, stage, count)


@contextmanager
def shop_of(stage: Stage) -> Iterator[Path]:
    """A shop with the scene's messages, and the configuration of its worker, which must have completed them all."""
    count = stage.scene.messages
    with Shop(stage.server) as shop:
        shop.configure_webhook()
        shop.publish_bodies(messages.TOPIC, messages.bodies(count))
        yield write_worker_config(stage.directory / "worker.conf", shop, stage.api, threads=stage.scene.threads)
        counts = shop.status_counts()
        if counts != {4: count}:
            raise RuntimeError(f"the worker left {counts} instead of {count} completed messages")


def write_worker_config(
    path: Path,
    shop: Shop,
    api: ApiProcess,
    *,
    threads: int,
    verify: bool = False,
    metrics: str = "",
    sections: Sections = MappingProxyType({}),
) -> Path:
    """Defaults, with the log where a shop has it: in a file, as JSON. `metrics`: where to listen; '': nowhere.
    `sections`: further settings."""
    settings = {
        "zithara": {"verify": str(verify).lower()},
        "worker": {"concurrency": str(threads)},
        "logging": {"file": str(path.with_suffix(".log"))},
        "metrics": {"listen": metrics},
    }
    both = {name: {**settings.get(name, {}), **sections.get(name, {})} for name in {*settings, *sections}}
    return write_config(path, shop, api, both)


def _general_purpose(name: str, stage: Stage) -> Measured:
    """A queue of its own tables in an empty database; filled first, which does not count. They take ms, not us, a
    message, so a tenth of the messages tells as much."""
    count = min(stage.scene.messages, SOME)
    file = stage.directory / "some-requests.jsonl"
    write_requests(file, count)
    with Shop(stage.server) as shop:
        arguments = [
            str(file),
            stage.api.base_url,
            stage.api.token,
            str(stage.scene.threads),
            str(stage.server.socket_path),
            shop.name,
        ]
        command = contestant(name, *arguments, python=bench_python())
        return _run(name.removesuffix("_queue"), [command], stage, count)


def _run(name: str, commands: Sequence[Sequence[str]], stage: Stage, count: int) -> Measured:
    return run(name, commands, api=stage.api, latency_seconds=stage.scene.latency_ms / 1000, messages=count)
