"""What `doctor` says of clusters, proxies and durability, by what a server answers."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.workers import settings_of

from zithara_worker.database.session import Database
from zithara_worker.doctor import cluster
from zithara_worker.doctor.finding import Finding, Level
from zithara_worker.errors import ShopError
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.tcp_proxy import TcpProxy
from zithara_worker.settings.sections import DatabaseSettings


class Server:
    """A server that answers what it is told."""

    def __init__(
        self,
        *,
        variables: dict[str, str] | None = None,
        status: dict[str, str] | None = None,
        ids: list[int] | None = None,
        members: list[dict[str, Any]] | ShopError | None = None,
        reads: str = "db1",
        writes: str = "db1",
    ) -> None:
        self.is_galera = status is not None
        self._answers: dict[str, Any] = {
            "cluster_variables": _rows(variables or {}),
            "cluster_status": _rows(status or {}),
            "newest_ids": [{"id": id} for id in ids or []],
            "group_members": members or [],
        }
        self._host, self._writes = reads, writes

    def rows(self, name: str, **parameters: object) -> Any:
        if name == "who_answers":
            return [{"host": self._host, "port": 3306, "server_id": 1}]
        if isinstance(self._answers[name], ShopError):
            raise self._answers[name]
        return self._answers[name]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        before, self._host = self._host, self._writes
        yield
        self._host = before


def _rows(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"Variable_name": name, "Value": value} for name, value in values.items()]


def found(check: Callable[..., Iterator[Finding]], server: Server) -> dict[str, tuple[Level, str]]:
    findings = {each.check: each for each in check(server)}
    assert all(each.remedy for each in findings.values() if each.level is not Level.OK)
    return {name: (each.level, each.found) for name, each in findings.items()}


GALERA = {
    "wsrep_cluster_size": "3",
    "wsrep_cluster_status": "Primary",
    "wsrep_ready": "ON",
    "wsrep_local_state_comment": "Synced",
}
AUTOINC = {"auto_increment_increment": "3", "innodb_autoinc_lock_mode": "2"}


def test_a_cluster_in_order_is_told_with_its_size_and_state() -> None:
    server = Server(variables={**AUTOINC, "pxc_strict_mode": "ENFORCING"}, status=GALERA, ids=list(range(900, 0, -3)))
    told = found(cluster.nodes, server)
    assert {level for level, _ in told.values()} == {Level.OK}
    assert told["cluster"][1] == "Galera, 3 nodes, this one Synced, pxc_strict_mode ENFORCING"
    assert set(told) == {"cluster", "cluster.autoinc", "cluster.writers"}


@pytest.mark.parametrize(
    ("status", "level", "text"),
    [
        ({"wsrep_cluster_status": "non-Primary", "wsrep_ready": "OFF"}, Level.FAILED, "1047"),
        ({"wsrep_ready": "OFF"}, Level.FAILED, "1047"),
        ({"wsrep_cluster_size": "2"}, Level.WARNING, "fewer than three"),
        ({"wsrep_local_state_comment": "Donor/Desynced", "wsrep_local_recv_queue": "77"}, Level.WARNING, "queue 77"),
    ],
)
def test_a_node_that_does_not_serve_as_it_should_is_told(status: dict[str, str], level: Level, text: str) -> None:
    told = found(cluster.nodes, Server(variables=AUTOINC, status={**GALERA, **status}))
    assert told["cluster"][0] is level and text in told["cluster"][1]


@pytest.mark.parametrize("variable", ["auto_increment_increment", "innodb_autoinc_lock_mode"])
def test_settings_of_ids_with_which_writing_nodes_meet_are_told(variable: str) -> None:
    told = found(cluster.nodes, Server(variables={**AUTOINC, variable: "1"}, status=GALERA))
    assert told["cluster.autoinc"][0] is Level.WARNING and variable in told["cluster.autoinc"][1]


def test_a_shop_that_writes_to_several_nodes_is_told_by_its_ids() -> None:
    in_turn = [id for base in range(3000, 0, -30) for id in (base + 1, base)]
    told = found(cluster.nodes, Server(variables=AUTOINC, status=GALERA, ids=in_turn))
    assert told["cluster.writers"][0] is Level.WARNING and "199 times" in told["cluster.writers"][1]
    after_failovers = [*range(3000, 2000, -3), *range(1999, 1000, -3), *range(998, 0, -3)]
    told = found(cluster.nodes, Server(variables=AUTOINC, status=GALERA, ids=after_failovers))
    assert told["cluster.writers"][0] is Level.OK


@pytest.mark.parametrize(
    ("members", "mode", "level", "text"),
    [
        (["ONLINE"] * 3, "ON", Level.OK, "3 of 3 members online"),
        (["ONLINE"] * 3, "OFF", Level.WARNING, "multi-primary"),
        (["ONLINE", "ONLINE", "UNREACHABLE"], "ON", Level.WARNING, "db3:3306 UNREACHABLE"),
        (["ONLINE"] * 2, "ON", Level.WARNING, "2 of 2"),
        (["OFFLINE"], "ON", Level.FAILED, "outside its group"),
        (ShopError("SELECT command denied"), "ON", Level.WARNING, "denied"),
    ],
)
def test_a_replication_group_is_told_with_its_members(
    members: list[str] | ShopError, mode: str, level: Level, text: str
) -> None:
    rows: Any = members
    if isinstance(members, list):
        rows = [{"host": f"db{number}", "port": 3306, "state": each} for number, each in enumerate(members, 1)]
    variables = {"group_replication_group_name": "g", "group_replication_single_primary_mode": mode}
    told = found(cluster.nodes, Server(variables=variables, members=rows))
    assert told["cluster"][0] is level and text in told["cluster"][1]


def test_a_proxy_that_splits_reads_and_writes_is_told() -> None:
    assert found(cluster.proxy, Server())["database.proxy"][0] is Level.OK
    level, text = found(cluster.proxy, Server(reads="db2", writes="db1"))["database.proxy"]
    assert level is Level.FAILED and "db1:3306" in text and "db2:3306" in text


@pytest.mark.parametrize(("value", "level"), [("1", Level.OK), ("2", Level.WARNING), ("0", Level.WARNING)])
def test_a_server_that_does_not_flush_its_commits_is_told(value: str, level: Level) -> None:
    told = found(cluster.durability, Server(variables={"innodb_flush_log_at_trx_commit": value}))
    assert told["database.durability"][0] is level


def test_each_address_is_asked_for_itself(shop: Shop, mariadb: MariaDbServer) -> None:
    ahead = {0: 0.0, 1: 0.0}

    def run(*ports: int) -> dict[str, Finding]:
        host = ",".join(f"127.0.0.1:{port}" for port in ports)
        settings = settings_of(shop, host=host, unix_socket="")

        def open_at(of_one: DatabaseSettings) -> Database:
            number = ports.index(of_one.port)
            return Database(of_one, clock=lambda: 1_000_000.0 + ahead[number])

        database = Database(settings)
        database.rows("clock")
        database.close()
        return {each.check: each for each in cluster.addresses(database, settings, lambda: 1_000_000.0, open_at)}

    with TcpProxy(mariadb.socket_path) as one, TcpProxy(mariadb.socket_path) as two:
        assert {each.level for each in run(one.port, two.port).values()} == {Level.OK}
        ahead[1] = -3.0
        skewed = run(one.port, two.port)["cluster.clocks"]
        assert skewed.level is Level.WARNING
        assert f"clock of 127.0.0.1:{one.port} is 3s ahead of that of 127.0.0.1:{two.port}" in skewed.found
        assert run(one.port) == {}
        with socket.create_server(("127.0.0.1", 0)) as listener:
            dead = int(listener.getsockname()[1])
        told = run(one.port, dead)
        assert told["cluster.addresses"].level is Level.WARNING and str(dead) in told["cluster.addresses"].found
