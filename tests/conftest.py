"""What every room's tests share: one database server a run, one shop a test, every port chosen by the system."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import settings
from support.workers import Clock, MakeShop, MakeWorker, StepWorker, settings_of

from zithara_worker import Settings, Worker
from zithara_worker.database.session import Database, knows_skip_locked
from zithara_worker.limits import Limits
from zithara_worker.logs.formatting import set_current_message
from zithara_worker.messages import Message
from zithara_worker.processors import supersedes
from zithara_worker.queue.failures import Selection
from zithara_worker.queue.queues import find_queues
from zithara_worker.sandbox.api import FakeZithara, RecordedRequest, Reply
from zithara_worker.sandbox.fixtures import FixtureMessage, fixture_messages
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.rabbitmq import RabbitMqServer, VirtualHost
from zithara_worker.sandbox.session import write_config
from zithara_worker.sandbox.shop import Shop
from zithara_worker.settings.sections import MetricsSettings, RetrySettings, ZitharaSettings
from zithara_worker.topics import TOPIC_CART, TOPICS

# The same examples in each run. CONTRIBUTING.md: how to look for others.
settings.register_profile("same", derandomize="ZITHARA_TEST_EXAMPLES" not in os.environ)
settings.load_profile("same")

PLUGIN_CASES = Path(__file__).parent / "fixtures" / "plugin-cases.jsonl"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting and no proxy of the machine reaches a test."""
    for name in os.environ:
        if name.startswith("ZITHARA_WORKER_") or name.lower() in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def root_logger_as_before() -> Iterator[None]:
    """Takes back what a test configures of the log."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in list(root.handlers):
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()
    root.setLevel(level)
    set_current_message(None)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDbServer]:
    """The run's database server. Tests that kill or reconfigure a server start their own."""
    with MariaDbServer() as server:
        yield server


@pytest.fixture(autouse=True)
def left_out_without_skip_locked(request: pytest.FixtureRequest) -> None:
    """What a test says of its server, see the marker; everything else holds on every server."""
    if request.node.get_closest_marker("assumes_skip_locked"):
        version = request.getfixturevalue("mariadb").version
        if not knows_skip_locked(version):
            pytest.skip(f"{version} has no SKIP LOCKED")


@pytest.fixture
def make_shop(mariadb: MariaDbServer) -> Iterator[MakeShop]:
    """Makes shops with arguments, e.g. make_shop(prefix="m2_", worker_tables=False); dropped after the test."""
    with ExitStack() as shops:

        def make(server: MariaDbServer = mariadb, **arguments: object) -> Shop:
            return shops.enter_context(Shop(server, **arguments))  # type: ignore[arg-type]  # passed through as given

        yield make


@pytest.fixture(scope="session")
def rabbitmq_authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of the authority that `rabbitmq` proves its name by; beside it `chain.pem`, the node's own."""
    directory = tmp_path_factory.mktemp("rabbitmq")
    authority = trustme.CA()
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
        str(directory / "chain.pem")
    )
    authority.cert_pem.write_to_path(str(directory / "authority.pem"))
    return directory / "authority.pem"


@pytest.fixture(scope="session")
def rabbitmq(rabbitmq_authority: Path) -> Iterator[RabbitMqServer]:
    """The run's RabbitMQ, with and without TLS. Tests that kill, freeze or reconfigure a node start their own."""
    with RabbitMqServer(certificate=(rabbitmq_authority.with_name("chain.pem"), rabbitmq_authority)) as server:
        yield server


@pytest.fixture
def virtual_host(rabbitmq: RabbitMqServer) -> Iterator[VirtualHost]:
    """A virtual host with the module's exchange and queues, empty."""
    with VirtualHost(rabbitmq) as made:
        made.declare()
        yield made


@pytest.fixture
def api() -> Iterator[FakeZithara]:
    with FakeZithara() as serving:
        yield serving


@pytest.fixture
def shop(make_shop: MakeShop, api: FakeZithara) -> Shop:
    """A shop with the worker's tables, configured for `api`, its webhook receiver included."""
    made = make_shop()
    made.configure_webhook(client_id=api.client_id, client_secret=api.client_secret, webhook_url=api.webhook_url)
    return made


@pytest.fixture(params=[False, True], ids=["without the optional index", "with it"])
def index(request: pytest.FixtureRequest, shop: Shop) -> bool:
    """Whether the shop has the optional index. Named before the worker, whose session looks for it when it opens."""
    if request.param:
        shop.run_script("optional_index.sql")
    return bool(request.param)


@pytest.fixture
def worker_config(tmp_path: Path, shop: Shop, api: FakeZithara) -> Callable[..., Path]:
    """Writes a configuration for `shop` and `api`: worker_config(worker={"concurrency": "4"}). Metrics are off."""

    def write(**sections: Mapping[str, str]) -> Path:
        return write_config(tmp_path / "zithara-worker.conf", shop, api, {"metrics": {"listen": ""}, **sections})

    return write


@pytest.fixture(scope="session")
def plugin_cases() -> list[FixtureMessage]:
    """The recorded messages of the PHP module."""
    return fixture_messages(PLUGIN_CASES)


@pytest.fixture
def database(shop: Shop) -> Iterator[Database]:
    with closing(Database(settings_of(shop))) as opened:
        yield opened


@pytest.fixture
def settings(shop: Shop, api: FakeZithara) -> Settings:
    return Settings(
        database=settings_of(shop),
        zithara=ZitharaSettings(base_url=api.base_url, client_id=api.client_id, client_secret=api.client_secret),
        retry=RetrySettings(limit=2, delay=0.0),
        metrics=MetricsSettings(listen=""),
    )


@pytest.fixture
def consume(settings: Settings) -> Callable[[], None]:
    """Delivers all that is due, with a worker in this process."""

    def run() -> None:
        Worker(settings).run(TOPICS, limits=Limits(stop_when_empty=True, max_runtime_seconds=20))

    return run


@pytest.fixture
def audit() -> Any:
    """Collects audit lines: `audit(lines)` takes them, `audit.lines` has them."""

    class Collected:
        def __init__(self) -> None:
            self.lines: list[Any] = []

        def __call__(self, records: Any) -> None:
            self.lines += records

    return Collected()


@pytest.fixture
def refused(api: FakeZithara) -> set[str]:
    """Order numbers that the API refuses with 400."""
    numbers: set[str] = set()

    def respond(request: RecordedRequest) -> Reply | None:
        return Reply.error(400, "bad") if any(number.encode() in request.body for number in numbers) else None

    api.responder = respond
    return numbers


@pytest.fixture
def everything(database: Database) -> Selection:
    """Selects every failed message."""
    return Selection(queue_ids=[queue.queue_id for queue in find_queues(database, TOPICS, {})])


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_worker(shop: Shop, clock: Clock) -> Iterator[MakeWorker]:
    """make_worker("worker-b", topic=...): options go to StepWorker and MessageQueue; closed after the test."""
    with ExitStack() as workers:

        def make(worker_id: str = "worker-a", *, on: Shop = shop, **options: Any) -> StepWorker:
            return workers.enter_context(closing(StepWorker(on, clock, worker_id=worker_id, **options)))

        yield make


@pytest.fixture
def worker(make_worker: MakeWorker) -> StepWorker:
    return make_worker()


@pytest.fixture
def other(make_worker: MakeWorker) -> StepWorker:
    """A second worker on the same queue."""
    return make_worker("worker-b")


@pytest.fixture
def message(shop: Shop, worker: StepWorker) -> Message:
    """A message of group order:A, which `worker` has claimed."""
    shop.publish_order("A")
    [claimed] = worker.claim()
    return claimed


@pytest.fixture
def coalescing(make_worker: MakeWorker) -> StepWorker:
    """A worker on the queue of carts, of which it sends the newest snapshot only."""
    return make_worker(topic=TOPIC_CART, supersedes=supersedes)


@pytest.fixture
def other_coalescing(make_worker: MakeWorker) -> StepWorker:
    return make_worker("worker-b", topic=TOPIC_CART, supersedes=supersedes)
