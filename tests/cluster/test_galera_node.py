"""A session on a Galera node. What several nodes do to a shop: scripts/test-cluster."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.waiting import eventually
from support.workers import StepWorker, settings_of

from cluster.galera import Galera, GaleraNode
from zithara_worker.database.session import Database
from zithara_worker.doctor.cluster import nodes
from zithara_worker.doctor.finding import Level
from zithara_worker.errors import DatabaseUnavailable
from zithara_worker.messages import OutcomeKind
from zithara_worker.sandbox.api import FakeZithara
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.private_server import free_port
from zithara_worker.sandbox.session import worker_command, write_config
from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.tcp_proxy import TcpProxy


@pytest.fixture(scope="module")
def node() -> Iterator[GaleraNode]:
    with Galera(1) as galera:
        yield galera.nodes[0]


@pytest.fixture
def database(node: GaleraNode, make_shop: Callable[..., Shop]) -> Iterator[Database]:
    with closing(Database(settings_of(make_shop(node)))) as opened:
        yield opened


def sync_wait(database: Database) -> int:
    with database._open().cursor() as cursor:
        cursor.execute("SELECT @@SESSION.wsrep_sync_wait")
        return int(cursor.fetchone()[0])


def test_only_statements_that_need_it_wait_for_what_other_nodes_have_committed(
    node: GaleraNode, database: Database
) -> None:
    def kill_session() -> None:
        with closing(node.connect()) as root, root.cursor() as cursor:
            cursor.execute("KILL %s", (database.session_id,))

    assert sync_wait(database) == 0
    kill_session()
    with pytest.raises(DatabaseUnavailable), database.in_step():
        pytest.fail("the session was lost before")
    assert sync_wait(database) == 0
    with database.in_step():
        assert sync_wait(database) == 7
        kill_session()
        with pytest.raises(DatabaseUnavailable):
            database.rows("paused")
        assert sync_wait(database) == 7, "the next session of the block waits too"
    assert sync_wait(database) == 0
    with closing(node.connect()) as root, root.cursor() as cursor:
        cursor.execute("SET GLOBAL wsrep_sync_wait = 7")
        database.close()
        assert sync_wait(database) == 0, "also where the server's own default is another one: status and metrics"
        cursor.execute("SET GLOBAL wsrep_sync_wait = 0")


def test_doctor_reads_the_state_of_the_node(database: Database) -> None:
    found = {each.check: each for each in nodes(database)}
    assert found["cluster"].found.startswith("Galera, 1 nodes, this one Synced: with fewer than three")
    assert found["cluster.autoinc"].level is Level.OK
    assert database.id_step == 1 and not database.orders_ids, "the cluster may get more nodes while a worker runs"


def test_the_index_is_built_on_a_cluster_only_if_the_operator_says_so(
    node: GaleraNode, make_shop: Callable[..., Shop], api: FakeZithara, tmp_path: Path
) -> None:
    shop = make_shop(node)
    config = write_config(tmp_path / "w.conf", shop, api, {"database": {"user": "root", "password": ""}})

    def install(*options: str) -> subprocess.CompletedProcess[str]:
        command = [worker_command(), "--config", str(config), "install", "--index", *options]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)

    refused = install()
    assert refused.returncode == 2 and "no node takes writes" in refused.stderr and "built" not in refused.stdout
    built = install("--yes")
    assert built.returncode == 0 and "index: built" in built.stdout, built.stderr
    assert "index: there" in install().stdout


def test_claims_renewals_and_settlements_in_doubt_are_in_step(
    node: GaleraNode,
    make_shop: Callable[..., Shop],
    make_worker: Callable[..., StepWorker],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shop = make_shop(node)
    shop.publish_order("A")
    worker = make_worker(on=shop)
    waited: dict[str, int] = {}
    rows, execute = worker.database.rows, worker.database.execute

    def seen(run: Callable[..., object]) -> Callable[..., object]:
        def wrapped(name: str, /, **parameters: object) -> object:
            if name not in ("sync_wait", "server", "galera_node"):
                waited[name] = 7 if worker.database._in_step else 0
            return run(name, **parameters)

        return wrapped

    monkeypatch.setattr(worker.database, "rows", seen(rows))
    monkeypatch.setattr(worker.database, "execute", seen(execute))
    (message,) = worker.claim()
    worker.renew()
    worker.deliver([message])
    assert {waited[name] for name in ("claim_lock", "claim_take", "lease_renew", "leases_held")} == {7}
    assert {waited[name] for name in ("poll", "settle_complete")} == {0}
    shop.publish_order("B")
    (doubtful,) = worker.claim()
    worker.settle((doubtful, OutcomeKind.DELIVERED), in_doubt=True)
    assert (waited["settle_lock"], shop.statuses()) == (7, [4, 4])


def test_a_node_outside_the_majority_is_left_for_the_next_address(
    node: GaleraNode, make_shop: Callable[..., Shop], mariadb: MariaDbServer
) -> None:
    shop = make_shop(mariadb)
    with closing(node.connect()) as root, root.cursor() as cursor, TcpProxy(mariadb.socket_path) as proxy:
        for statement in (
            f"CREATE DATABASE {shop.name}",
            f"CREATE USER '{shop.user}'@'%' IDENTIFIED BY '{shop.password}'",
            f"GRANT ALL ON {shop.name}.* TO '{shop.user}'@'%'",
        ):
            cursor.execute(statement)
        host = f"127.0.0.1:{node.tcp_port},127.0.0.1:{proxy.port}"
        with closing(Database(settings_of(shop, host=host, unix_socket=""))) as database:
            database.rows("clock")
            assert database.is_galera and str(database.server) == f"127.0.0.1:{node.tcp_port}"
            cursor.execute("SET GLOBAL wsrep_cluster_address = %s", (f"gcomm://127.0.0.1:{free_port()}",))
            eventually(lambda: node.status("wsrep_ready") == "OFF", within=20)
            with pytest.raises(DatabaseUnavailable):
                database.rows("paused")
            database.rows("paused")
            assert str(database.server) == f"127.0.0.1:{proxy.port}" and not database.is_galera
        host = f"127.0.0.1:{node.tcp_port},127.0.0.1:1"
        with (
            closing(Database(settings_of(shop, host=host, unix_socket=""))) as alone,
            pytest.raises(DatabaseUnavailable, match="its Galera node is not ready"),
        ):
            alone.rows("clock")
