"""Server, shop and API together, and the configuration file that points a worker at them."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from configparser import ConfigParser
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from zithara_worker.errors import ConfigurationError
from zithara_worker.sandbox.api import FakeZithara, RecordedRequest
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.shop_tables import ShopTables

Sections = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    server: MariaDbServer
    shop: Shop
    #: Its orders, customers and carts
    tables: ShopTables
    api: FakeZithara
    #: The worker's configuration file, with the least-privilege user
    config: Path
    #: The same with the database's root, for `publish` and `install`
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
def open_sandbox(*, prefix: str = "", sections: Sections | None = None) -> Iterator[Sandbox]:
    """A running sandbox, its shop configured for the API and for webhooks. Everything is removed at exit.

    Raises ShopError when the machine has no database server.
    """
    with MariaDbServer() as server, Shop(server, prefix=prefix) as shop, FakeZithara() as api:
        shop.configure_webhook(client_id=api.client_id, client_secret=api.client_secret, webhook_url=api.webhook_url)
        tables = ShopTables(shop)
        tables.create()
        as_root = {**(sections or {}), "database": {"user": "root", "password": ""}}
        # In the server's directory, which is removed even if this process is killed.
        yield Sandbox(
            server=server,
            shop=shop,
            tables=tables,
            api=api,
            config=write_config(server.directory / "zithara-worker.conf", shop, api, sections),
            operator_config=write_config(server.directory / "operator.conf", shop, api, as_root),
        )


def run_sandbox(
    *, samples: bool = True, stop: threading.Event | None = None, say: Callable[[str], None] = print
) -> None:
    """Opens a sandbox, prints how to use it and each request that the API receives, until Ctrl-C, SIGTERM or `stop`.

    `samples`: whether to publish a few messages first. Must run in the main thread.
    """

    def tell(request: RecordedRequest) -> None:
        say(f"  {request.method} {request.path}  {request.headers.get('idempotency-key', '')}".rstrip())

    try:
        with interruptible(), open_sandbox() as sandbox:
            if samples:
                say(f"{len(sandbox.shop.publish_samples())} sample messages are on the queue.")
            sandbox.api.responder = tell
            say(_INTRODUCTION.format(sandbox=sandbox))
            (stop or threading.Event()).wait()
    except KeyboardInterrupt:
        say("The sandbox has been removed.")


_INTRODUCTION = """A shop's queue and a Zithara API are running. In another terminal:

  zithara-worker --config {sandbox.config} consume --all --stop-when-empty
  zithara-worker --config {sandbox.config} status
  zithara-worker --config {sandbox.config} doctor
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
