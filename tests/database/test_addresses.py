"""Several addresses of the database's servers: which one is used, which is left, and what is said where none serves."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress

import pytest
from support.waiting import eventually
from support.workers import settings_of
from worker.test_outage import running

from zithara_worker import Settings, Worker
from zithara_worker.database import session as session_module
from zithara_worker.database.addresses import Address, Addresses, none_serves, why_not_written
from zithara_worker.database.session import Database
from zithara_worker.errors import ConfigurationError, DatabaseRefused, DatabaseUnavailable, ShopError
from zithara_worker.sandbox.api import FakeZithara, RecordedRequest, Reply
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.tcp_proxy import TcpProxy
from zithara_worker.settings.sections import DatabaseSettings, MetricsSettings, WorkerSettings, ZitharaSettings
from zithara_worker.settings.values import Secret


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("db1", ["db1:3307"]),
        ("db1:3306", ["db1:3306"]),
        ("db1, db2:3306 ,10.0.0.3", ["db1:3307", "db2:3306", "10.0.0.3:3307"]),
        ("[::1]:3306,[fe80::1],::2", ["[::1]:3306", "[fe80::1]:3307", "[::2]:3307"]),
        ("db1,db1:3307", ["db1:3307"]),
        ("", ["localhost:3307"]),
    ],
)
def test_hosts_are_tried_in_their_order_and_the_port_is_for_those_without_one(host: str, expected: list[str]) -> None:
    assert [str(each) for each in Addresses(DatabaseSettings(host=host, port=3307)).in_order()] == expected


@pytest.mark.parametrize(
    "host", ["db1,", ",db1", "db1:", "db1:0", "db1:70000", "db1:x", "db 1", "/run/x.sock", "[db1]", "[::1", "a:1:2"]
)
def test_a_host_of_another_form_is_refused_with_the_forms(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"\[database\] host = .*must be host, host:port or \[IPv6 address\]"):
        DatabaseSettings(host=host)


def test_a_socket_stands_alone() -> None:
    (only,) = Addresses(DatabaseSettings(host="db1,db2", unix_socket="/run/x.sock")).all
    assert (str(only), only.is_local) == ("/run/x.sock", True)


def test_the_one_that_served_last_is_tried_first_and_the_others_in_their_order() -> None:
    addresses = Addresses(DatabaseSettings(host="a,b,c"))
    addresses.serves(addresses.all[1])
    assert [each.host for each in addresses.in_order()] == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("variables", "status", "left"),
    [
        ({}, {}, ""),
        ({"read_only": "OFF", "super_read_only": "0"}, {"wsrep_ready": "ON"}, ""),
        ({"read_only": "ON"}, {}, "read-only"),
        ({"super_read_only": "ON"}, {}, "read-only"),
        ({"read_only": "NO_LOCK"}, {}, "read-only"),
        ({}, {"wsrep_ready": "OFF", "wsrep_cluster_status": "non-Primary"}, "non-Primary"),
        ({}, {"group_member": "ONLINE"}, ""),
        ({}, {"group_member": "ERROR"}, "outside its replication group (member state ERROR)"),
    ],
)
def test_who_takes_no_writes_is_left(variables: dict[str, str], status: dict[str, str], left: str) -> None:
    why = why_not_written(variables, status)
    assert left in why and bool(why) == bool(left)


def test_only_where_each_refuses_the_user_is_it_a_matter_of_the_configuration() -> None:
    a, b = Address("a"), Address("b")
    assert type(none_serves({a: DatabaseRefused("no"), b: DatabaseRefused("no")})) is DatabaseRefused
    mixed = none_serves({a: DatabaseRefused("wrong"), b: DatabaseUnavailable("away")})
    assert type(mixed) is DatabaseUnavailable
    assert str(mixed) == "none of the 2 addresses of [database] host serves: a:3306: wrong; b:3306: away"
    assert str(none_serves({a: DatabaseUnavailable("as it is")})) == "as it is"


# ---------------------------------------------------------------- with servers


@pytest.fixture
def known_to_the_server(shop: Shop) -> None:
    """MySQL remembers a user that has logged in over the socket. The proxy's TCP without TLS would not do the first
    time: the server, which sees the proxy's socket, does not expect an encrypted password."""
    with closing(Database(settings_of(shop))) as database:
        database.rows("clock")


@pytest.fixture
def proxy(mariadb: MariaDbServer, known_to_the_server: None) -> Iterator[TcpProxy]:
    with TcpProxy(mariadb.socket_path) as listening:
        yield listening


@pytest.fixture
def second(mariadb: MariaDbServer) -> Iterator[TcpProxy]:
    with TcpProxy(mariadb.socket_path) as listening:
        yield listening


@pytest.fixture
def open_at(shop: Shop) -> Iterator[Callable[..., Database]]:
    """open_at(port, ...): a session whose settings name these ports of this host."""
    with ExitStack() as opened:

        def make(*ports: int, addresses: Addresses | None = None, **changes: object) -> Database:
            host = ",".join(f"127.0.0.1:{port}" for port in ports)
            settings = settings_of(shop, host=host, unix_socket="", **changes)
            return opened.enter_context(closing(Database(settings, addresses=addresses)))

        yield make


@pytest.fixture
def dead_port() -> int:
    """Nobody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def port_of(database: Database) -> int:
    assert database.server is not None
    return database.server.port


def test_the_next_address_is_used_where_one_is_dead_or_silent_and_kept_while_it_serves(
    open_at: Callable[..., Database],
    shop: Shop,
    proxy: TcpProxy,
    second: TcpProxy,
    dead_port: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(session_module, "CONNECT_TIMEOUT", 0.2)
    monkeypatch.setattr(session_module, "ANSWER_TIMEOUT", 3600)
    caplog.set_level(logging.INFO)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # as a server that is stopped: the kernel still accepts
        database = open_at(dead_port, silent.getsockname()[1], proxy.port, second.port)
        first = threading.Thread(target=database.rows, args=("paused",))
        first.start()
        first.join(10)
        assert not first.is_alive(), "it waits CONNECT_TIMEOUT for the first word, and not ANSWER_TIMEOUT"
    assert port_of(database) == proxy.port
    # Another session of the worker follows it, without trying the others.
    follower = open_at(dead_port, proxy.port, second.port, addresses=database.addresses)
    follower.rows("paused")
    assert port_of(follower) == proxy.port
    shop.query("KILL %s", (database.session_id,))
    with pytest.raises(DatabaseUnavailable):
        database.rows("paused")
    database.rows("paused")
    assert (port_of(database), database.generation) == (proxy.port, 2)
    servers = [record.server for record in caplog.records if getattr(record, "event", "") == "database_server"]
    assert servers == [f"127.0.0.1:{proxy.port}"], "said once, and not again while it stays"


def test_where_none_serves_each_address_is_told_with_its_reason(
    open_at: Callable[..., Database], proxy: TcpProxy, dead_port: int
) -> None:
    database = open_at(dead_port, proxy.port, name="no_such_database")
    with pytest.raises(DatabaseUnavailable) as raised:
        database.rows("paused")
    said = str(raised.value)
    assert f"none of the 2 addresses of [database] host serves: 127.0.0.1:{dead_port}: " in said
    assert "refused" in said and f"127.0.0.1:{proxy.port}: " in said and "no_such_database" in said
    with pytest.raises(DatabaseRefused, match="no_such_database"):
        open_at(proxy.port, name="no_such_database").rows("paused")


def test_a_session_on_a_server_that_became_read_only_goes_to_the_one_that_takes_writes(
    open_at: Callable[..., Database], shop: Shop, proxy: TcpProxy
) -> None:
    """As at a switch of the primary that leaves open connections alone."""
    with MariaDbServer(tcp=True) as demoted, closing(demoted.connect()) as root, root.cursor() as cursor:
        for statement in (
            f"CREATE DATABASE {shop.name}",
            f"CREATE TABLE {shop.name}.zithara_topic_control (topic VARCHAR(9) PRIMARY KEY)",
            f"CREATE USER '{shop.user}'@'%' IDENTIFIED BY '{shop.password}'",
            f"GRANT ALL ON {shop.name}.* TO '{shop.user}'@'%'",
            "SET GLOBAL max_allowed_packet = 2097152, auto_increment_increment = 3",
        ):
            cursor.execute(statement)
        assert demoted.tcp_port is not None
        database = open_at(demoted.tcp_port, proxy.port)
        database.rows("clock")
        assert port_of(database) == demoted.tcp_port
        assert (database.max_allowed_packet, database.id_step, database.orders_ids) == (2 << 20, 3, False)
        cursor.execute("SET GLOBAL read_only = ON")
        with pytest.raises(DatabaseUnavailable, match=r"read-only \(error 1290"):
            database.execute("resume", topic="t")
        assert database.execute("resume", topic="t") == 0
        assert port_of(database) == proxy.port
        assert (database.id_step, database.orders_ids) == (1, True), "another server of the same version"
        assert database.max_allowed_packet > 2 << 20
        with pytest.raises(DatabaseUnavailable, match=f"{demoted.tcp_port}: it is read-only"):
            open_at(demoted.tcp_port, 1).rows("clock")
        # A single address is used as it is: `status` may read from a replica.
        assert len(open_at(demoted.tcp_port).rows("clock")) == 1


def test_a_member_that_has_not_joined_its_group_is_left(
    open_at: Callable[..., Database], proxy: TcpProxy, second: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes writes, which the group never gets. The server's answers are those of MySQL 9.7."""
    states: list[list[dict[str, str]] | Exception] = [[], [{"state": "ONLINE"}]]
    rows = Database.rows

    def answer(database: Database, statement: str, /, **parameters: object) -> object:
        if statement == "group_member":
            state = states.pop(0)
            if isinstance(state, Exception):
                raise state
            return state
        more = [{"Variable_name": "group_replication_group_name", "Value": "a347"}] if statement == "server" else []
        return [*rows(database, statement, **parameters), *more]

    monkeypatch.setattr(Database, "rows", answer)
    database = open_at(proxy.port, second.port)
    database.rows("clock")
    assert (port_of(database), states) == (second.port, [])
    states.append(ShopError("SELECT command denied"))
    database = open_at(proxy.port, second.port)
    database.rows("clock")
    assert (port_of(database), states) == (proxy.port, []), "without the privilege it is used"


def test_a_refused_user_is_said_without_the_password(open_at: Callable[..., Database], proxy: TcpProxy) -> None:
    with pytest.raises(DatabaseRefused) as raised:
        open_at(proxy.port, proxy.port, password=Secret("hidden-word")).rows("paused")
    assert "hidden-word" not in str(raised.value)


def test_every_session_of_a_worker_follows_the_first_to_its_server(
    shop: Shop, proxy: TcpProxy, api: FakeZithara
) -> None:
    """An address that does not serve costs seconds: the other sessions, for renewals, the token and the
    rate limit, do not try it again."""
    tried: list[None] = []
    held = threading.Event()

    def respond(request: RecordedRequest) -> Reply | None:
        held.wait(20)
        return None

    with socket.create_server(("127.0.0.1", 0)) as useless:

        def close_each() -> None:
            with suppress(OSError):
                while True:
                    useless.accept()[0].close()
                    tried.append(None)

        threading.Thread(target=close_each, daemon=True).start()
        host = f"127.0.0.1:{useless.getsockname()[1]},127.0.0.1:{proxy.port}"
        settings = Settings(
            database=settings_of(shop, host=host, unix_socket=""),
            zithara=ZitharaSettings(base_url=api.base_url),
            worker=WorkerSettings(poll_interval=0.02, lease=2.0, rate_limit=1000),
            metrics=MetricsSettings(listen=""),
        )
        api.responder = respond
        shop.publish_order("A")
        with running(Worker(settings)):
            (until,) = eventually(lambda: shop.query("SELECT lease_until FROM zithara_message_group"))[0]
            renewed = "SELECT 1 FROM zithara_message_group WHERE lease_until > %s"
            eventually(lambda: shop.query(renewed, (until,)))
            held.set()
            eventually(lambda: shop.statuses() == [4])
        useless.shutdown(socket.SHUT_RDWR)
    assert len(tried) == 1
