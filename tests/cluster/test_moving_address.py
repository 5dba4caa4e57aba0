"""A primary and its replicas behind an address that moves: a switch in order, and a failover that loses the tail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from support.waiting import eventually
from support.workers import settings_of
from worker.test_outage import running

from zithara_worker import Settings, Worker
from zithara_worker.sandbox.api import FakeZithara
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.publisher import Publisher
from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.tcp_proxy import TcpProxy
from zithara_worker.settings.sections import MetricsSettings, WorkerSettings, ZitharaSettings

ORDERS = 25


def run(server: MariaDbServer, statement: str, *parameters: object) -> object:
    with closing(server.connect()) as session, session.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        row = cursor.fetchone()
        return row[0] if row else None


@pytest.fixture
def servers() -> Iterator[list[MariaDbServer]]:
    """A primary and two replicas of it, which are read-only."""
    with ExitStack() as running_servers:
        made = [
            running_servers.enter_context(
                MariaDbServer(tcp=True, options=("--log-bin=binlog", "--binlog-format=ROW", f"--server-id={number}"))
            )
            for number in (1, 2, 3)
        ]
        run(made[0], "CREATE USER 'replica'@'127.0.0.1'")
        run(made[0], "GRANT REPLICATION SLAVE ON *.* TO 'replica'@'127.0.0.1'")
        for replica in made[1:]:
            run(replica, "SET GLOBAL read_only = ON")
            run(
                replica,
                "CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = %s, MASTER_USER = 'replica', "
                "MASTER_USE_GTID = slave_pos",
                made[0].tcp_port,
            )
            run(replica, "START SLAVE")
        yield made


def catch_up(replica: MariaDbServer, primary: MariaDbServer) -> None:
    position = run(primary, "SELECT @@gtid_binlog_pos")
    assert run(replica, "SELECT MASTER_GTID_WAIT(%s, 20)", position) == 0
    run(replica, "STOP SLAVE")


def publish(server: MariaDbServer, shop: Shop, stage: str) -> dict[str, int]:
    """Order number -> message id, on this server."""
    with closing(server.connect(shop.name)) as session:
        publisher = Publisher(session, prefix=shop.prefix)
        return {f"{stage}{number}": publisher.publish_order(f"{stage}{number}").message_id for number in range(ORDERS)}


def arrived(api: FakeZithara) -> list[str]:
    """The order numbers of the requests, in the order of their arrival."""
    return [str(request.json["order"]["platform_order_id"]) for request in api.requests("/v1/order")]


def is_settled(server: MariaDbServer, shop: Shop) -> bool:
    return run(server, f"SELECT COUNT(*) FROM {shop.name}.queue_message_status WHERE status <> 4") == 0


def test_a_worker_follows_the_address_and_loses_nothing_where_ids_begin_again(
    servers: list[MariaDbServer], api: FakeZithara
) -> None:
    primary, successor, behind = servers
    with Shop(primary) as shop, TcpProxy(primary.socket_path) as address:
        shop.configure_webhook(client_id=api.client_id, client_secret=api.client_secret)
        settings = Settings(
            database=settings_of(shop, unix_socket="", host="127.0.0.1", port=address.port),
            zithara=ZitharaSettings(base_url=api.base_url),
            worker=WorkerSettings(poll_interval=0.05, lease=4.0),
            metrics=MetricsSettings(listen=""),
        )
        with running(Worker(settings)) as thread:
            publish(primary, shop, "first")
            eventually(lambda: is_settled(primary, shop), within=20)
            catch_up(behind, primary)

            # A switch in order. Open connections stay with the old primary, whose writes fail from now on (1290).
            run(primary, "SET GLOBAL read_only = ON")
            catch_up(successor, primary)
            run(successor, "SET GLOBAL read_only = OFF")
            address.move(successor.socket_path, cut=False)
            lost = publish(successor, shop, "lost")
            eventually(lambda: is_settled(successor, shop), within=30)

            # A failover that loses the tail: this replica has nothing of the second stage, and gives its ids again.
            successor.kill()
            run(behind, "SET GLOBAL read_only = OFF")
            again = publish(behind, shop, "again")
            address.move(behind.socket_path, cut=True)
            eventually(lambda: is_settled(behind, shop), within=30)
            assert thread.is_alive()
        assert set(again.values()) == set(lost.values()), "the ids of the lost messages were given again"
        expected = [f"{stage}{number}" for stage in ("first", "lost", "again") for number in range(ORDERS)]
        assert Counter(arrived(api)) == Counter(expected), "each once, and with its own content"
