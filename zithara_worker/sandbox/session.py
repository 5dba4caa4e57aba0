"""Server, shop and API together, and the configuration file that points a worker at them."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from configparser import ConfigParser
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from zithara_worker.errors import ConfigurationError
from zithara_worker.sandbox import examples
from zithara_worker.sandbox.api import FakeZithara, RecordedRequest
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.publisher import stored_body
from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.shop_tables import ShopTables

if TYPE_CHECKING:  # it needs pika, which the rest of the sandbox does not
    from zithara_worker.sandbox.rabbitmq import VirtualHost

Sections = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    server: MariaDbServer
    shop: Shop
    #: Its orders, customers and carts
    tables: ShopTables
    api: FakeZithara
    #: The shop's part of RabbitMQ, if it has one
    virtual_host: VirtualHost | None = None
    #: The worker's configuration file, with the least-privilege user
    config: Path
    #: The same with the database's root, for `publish`, `reconcile` and `install`
    operator_config: Path


def write_config(path: Path, shop: Shop, api: FakeZithara, sections: Sections | None = None) -> Path:
    """Writes a worker's INI file (mode 0600) for this shop and API; `sections` adds or replaces keys.

    Example: write_config(path, shop, api, {"worker": {"concurrency": "4"}, "metrics": {"listen": ""}}).
    """
    config = ConfigParser(interpolation=None)
    config.read_dict({"database": shop.worker_settings, "zithara": {"base_url": api.base_url}})
    config.read_dict(sections or {})
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        config.write(file)
    return path


@contextmanager
def open_sandbox(*, prefix: str = "", sections: Sections | None = None, rabbitmq: bool = False) -> Iterator[Sandbox]:
    """A running sandbox, its shop configured for the API and for webhooks. Everything is removed at exit.

    `rabbitmq`: the shop also has RabbitMQ, with the module's queues. Raises ShopError when the machine has no database
    server, or no RabbitMQ if it is asked for.
    """
    with ExitStack() as stack:
        server = stack.enter_context(MariaDbServer())
        shop = stack.enter_context(Shop(server, prefix=prefix))
        api = stack.enter_context(FakeZithara())
        shop.configure_webhook(client_id=api.client_id, client_secret=api.client_secret, webhook_url=api.webhook_url)
        tables = ShopTables(shop)
        tables.create()
        tables.settle()
        virtual_host = None
        if rabbitmq:
            from zithara_worker.sandbox.rabbitmq import RabbitMqServer, VirtualHost

            virtual_host = stack.enter_context(VirtualHost(stack.enter_context(RabbitMqServer())))
            virtual_host.declare()
            shop.grant_publishing()
            sections = {**(sections or {}), "relay": virtual_host.relay_settings}
        as_root = {**(sections or {}), "database": {"user": "root", "password": ""}}
        # In the server's directory, which is removed even if this process is killed.
        yield Sandbox(
            server=server,
            shop=shop,
            tables=tables,
            api=api,
            virtual_host=virtual_host,
            config=write_config(server.directory / "zithara-worker.conf", shop, api, sections),
            operator_config=write_config(server.directory / "operator.conf", shop, api, as_root),
        )


def publish_to_rabbitmq(sandbox: Sandbox, bodies: Sequence[tuple[str, str]]) -> int:
    """Publishes (topic, body) as a shop with RabbitMQ does: the carts are in its database; how many messages."""
    assert sandbox.virtual_host is not None, "open_sandbox(rabbitmq=True)"
    for topic, body in bodies:
        sandbox.shop.save_carts(topic, [body])
    return len(sandbox.virtual_host.publish_bodies(bodies))


def run_sandbox(
    *,
    samples: bool = True,
    rabbitmq: bool = False,
    stop: threading.Event | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Opens a sandbox, prints how to use it and each request that the API receives, until Ctrl-C, SIGTERM or `stop`.

    `samples`: whether to publish a few messages first. `rabbitmq`: to RabbitMQ instead of the database's queue. Must
    run in the main thread.
    """

    def tell(request: RecordedRequest) -> None:
        say(f"  {request.method} {request.path}  {request.headers.get('idempotency-key', '')}".rstrip())

    try:
        with interruptible(), open_sandbox(rabbitmq=rabbitmq) as sandbox:
            if samples and rabbitmq:
                bodies = [(topic, stored_body(payload)) for topic, payload in examples.SAMPLES]
                say(f"{publish_to_rabbitmq(sandbox, bodies)} sample messages are in RabbitMQ.")
            elif samples:
                say(f"{len(sandbox.shop.publish_samples())} sample messages are on the queue.")
            sandbox.api.responder = tell
            relay = _RELAY.format(sandbox=sandbox) if rabbitmq else ""
            say(_INTRODUCTION.format(sandbox=sandbox, relay=relay))
            (stop or threading.Event()).wait()
    except KeyboardInterrupt:
        say("The sandbox has been removed.")


_RELAY = """  zithara-worker --config {sandbox.config} relay --all --stop-when-empty
"""

_INTRODUCTION = """A shop's queue and a Zithara API are running. In another terminal:

{relay}  zithara-worker --config {sandbox.config} consume --all --stop-when-empty
  zithara-worker --config {sandbox.config} status
  zithara-worker --config {sandbox.config} doctor
  zithara-worker --config {sandbox.operator_config} reconcile
  zithara-worker --config {sandbox.operator_config} publish zithara.order.events FILE

The database: mariadb --socket={sandbox.server.socket_path} --user=root {sandbox.shop.name}
The API: {sandbox.api.base_url}, webhooks at {sandbox.api.webhook_url}

Ctrl-C ends it and removes everything. Requests as they come:"""


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt in the block, as Ctrl-C does, so that it cleans up. Main thread only."""

    def interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def worker_command() -> str:
    """The installed command `zithara-worker`: the one beside this interpreter, else the one in PATH.

    Raises ConfigurationError when it is not installed.
    """
    beside = Path(sys.executable).with_name("zithara-worker")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("zithara-worker")
    if not found:
        raise ConfigurationError(
            f"the command zithara-worker is neither beside {sys.executable} nor in PATH: install the package "
            "into this environment (pip install --editable .)"
        )
    return found
