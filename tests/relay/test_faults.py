"""Exactly one row for each message, in the order of the queue, wherever a connection breaks and whatever is killed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from relay.conftest import Bench
from support.waiting import eventually

from zithara_worker.relay.amqp import MANY_DELIVERIES, Broker, Delivery
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.rabbitmq import RabbitMqServer, VirtualHost
from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.tcp_proxy import Cut, TcpProxy
from zithara_worker.settings.sections import WorkerSettings
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER, TOPICS


@pytest.fixture
def proxy(mariadb: MariaDbServer) -> Iterator[TcpProxy]:
    with TcpProxy(mariadb.socket_path) as listening:
        yield listening


@pytest.mark.parametrize("where", list(Cut))
def test_connection_to_the_database_is_cut_at_commit(typed_bench: Bench, proxy: TcpProxy, where: Cut) -> None:
    bench = typed_bench
    bench.database = replace(bench.database, unix_socket="", host="127.0.0.1", port=proxy.port)
    bodies = bench.publish(700)
    proxy.cut_at_commit(of="zithara_relayed", where=where)
    bench.drain([TOPIC_ORDER])
    assert proxy.was_cut.is_set()
    assert bench.stored() == bodies
    bench.wait_until_settled()


@pytest.fixture
def quorum_bench(relay_shop: Shop, rabbitmq: RabbitMqServer) -> Iterator[Bench]:
    """The type of queue that puts what is returned in another place."""
    with VirtualHost(rabbitmq) as virtual_host:
        virtual_host.declare(arguments={"x-queue-type": "quorum"})
        yield Bench(relay_shop, virtual_host)


def test_sessions_of_the_database_are_killed_again_and_again(quorum_bench: Bench) -> None:
    """Before the insert, between two statements, before COMMIT: wherever it happens to be."""
    bench = quorum_bench
    bodies = bench.publish(2000)
    with bench.running([TOPIC_ORDER]):
        for part in range(1, 5):
            eventually(lambda part=part: len(bench.stored()) >= part * len(bodies) // 5, within=20)
            eventually(bench.kill_sessions, within=20)  # there is none while the relay waits after the last kill
        bench.wait_until_stored(bodies, within=20)
        bench.wait_until_settled()


def test_connection_to_rabbitmq_ends_between_commit_and_acknowledgement(
    typed_bench: Bench, rabbitmq: RabbitMqServer
) -> None:
    bench = typed_bench
    bodies = bench.publish(700)
    closed = threading.Event()

    class Cutting(Broker):
        def done(self, deliveries: Sequence[Delivery], *, stored: bool) -> None:
            if stored and not closed.is_set():
                closed.set()
                rabbitmq.close_connections()
                eventually(lambda: self._connection is None)
            super().done(deliveries, stored=stored)

    with bench.running([TOPIC_ORDER], broker=Cutting):
        eventually(closed.is_set)
        bench.wait_until_stored(bodies)
        bench.wait_until_settled()
    assert bench.stored() == bodies


def test_what_was_stored_is_acknowledged_however_little_time_a_stop_has(typed_bench: Bench) -> None:
    """A message without an id gets a second row when it is delivered again."""
    bench = typed_bench
    bench.worker = WorkerSettings(shutdown_timeout=0)

    class Stopping(Broker):
        """Is asked to end its consumer while a message is stored that does not fill its window."""

        def done(self, deliveries: Sequence[Delivery], *, stored: bool) -> None:
            if not deliveries[-1].message_id:
                self.drain(deliveries[-1].queue)
                relay.stop()
            super().done(deliveries, stored=stored)

    bodies = bench.publish(20)  # after them its window is larger than one message
    with bench.running([TOPIC_ORDER], broker=Stopping) as relay:
        bench.wait_until_stored(bodies)
        bench.wait_until_settled()
        bodies.append('"without an id"')
        bench.virtual_host.publish_bodies([(TOPIC_ORDER, bodies[-1])], message_ids=[None])
        bench.wait_until_stored(bodies)
    bench.drain([TOPIC_ORDER])
    assert bench.stored() == bodies


def test_connections_to_rabbitmq_are_closed_again_and_again(quorum_bench: Bench, rabbitmq: RabbitMqServer) -> None:
    bench = quorum_bench
    bodies = bench.publish(2000)
    with bench.running([TOPIC_ORDER]):
        for part in range(1, 4):
            eventually(lambda part=part: len(bench.stored()) >= part * len(bodies) // 5, within=20)
            rabbitmq.close_connections()
        bench.wait_until_stored(bodies, within=20)
        bench.wait_until_settled()


def test_nothing_is_unacknowledged_while_the_database_is_away(typed_bench: Bench, proxy: TcpProxy) -> None:
    """RabbitMQ has an acknowledgement timeout, and other consumers could take what we cannot store."""
    bench = typed_bench
    bench.database = replace(bench.database, unix_socket="", host="127.0.0.1", port=proxy.port)
    first = bench.publish(5)
    with bench.running([TOPIC_ORDER]) as relay:
        bench.wait_until_stored(first)
        bench.shop.query(f"REVOKE INSERT (topic_name, body) ON {{prefix}}queue_message FROM '{bench.shop.user}'@'%'")
        second = bench.publish(50, first=5)
        # Everything is ready again, and stays so: nothing is delivered in vain while nothing can be written.
        eventually(lambda: relay_problem(relay) and bench.virtual_host.waiting()[TOPIC_ORDER] == 50)
        bench.shop.grant_publishing()
        bench.wait_until_stored(first + second)
        bench.wait_until_settled()


def relay_problem(relay: Any) -> bool:
    return relay.loop is not None and not relay.loop.health().ready


def test_database_that_comes_and_goes_does_not_use_up_the_delivery_limit(
    relay_shop: Shop, rabbitmq: RabbitMqServer
) -> None:
    with VirtualHost(rabbitmq) as virtual_host:
        virtual_host.declare(arguments={"x-queue-type": "quorum", "x-delivery-limit": 4})
        bench = Bench(relay_shop, virtual_host)
        bodies = bench.publish(60)
        failures = 12

        class Failing(Broker):
            """Has the database fail with each batch, and after it."""

            def take(self, queue: str, *, messages: int, size_bytes: int) -> list[Delivery]:
                nonlocal failures
                taken = super().take(queue, messages=min(messages, 4), size_bytes=size_bytes)
                if taken and failures:
                    failures -= 1
                    bench.kill_sessions()
                return taken

        with bench.running([TOPIC_ORDER], broker=Failing):
            bench.wait_until_stored(bodies, within=30)
            bench.wait_until_settled()
        assert failures == 0


def test_message_that_comes_again_and_again_is_told_before_rabbitmq_drops_it(
    relay_shop: Shop, rabbitmq: RabbitMqServer, caplog: pytest.LogCaptureFixture
) -> None:
    with VirtualHost(rabbitmq) as virtual_host:
        virtual_host.declare(arguments={"x-queue-type": "quorum", "x-delivery-limit": 20})
        bench = Bench(relay_shop, virtual_host)
        for number, expected in ((MANY_DELIVERIES - 1, 0), (MANY_DELIVERIES, 1)):
            bodies = bench.publish(2, first=2 * number)
            with virtual_host.channel() as channel:
                for _ in range(number):
                    tags = [channel.basic_get("zithara_order_queue")[0].delivery_tag for _ in bodies]
                    for tag in tags:
                        channel.basic_nack(tag, requeue=True)
            bench.drain([TOPIC_ORDER])
            told = [each for each in caplog.records if getattr(each, "event", "") == "relay_redelivered"]
            assert len(told) == expected, "once for all of a queue"


def test_relay_that_hangs_within_a_transaction_hinders_no_other_queue(bench: Bench) -> None:
    """Its lease has ended, and its transaction still has the lock's row: nobody knows yet what becomes of its batch."""
    hanging = bench.shop.connect(autocommit=False)
    try:
        with hanging.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {bench.shop.prefix}zithara_lock (name, owner, lease_until) "
                "VALUES ('relay:zithara_order_queue', 'hanging', NOW(3) - INTERVAL 1 MINUTE)"
            )
            hanging.commit()
            cursor.execute(
                f"SELECT * FROM {bench.shop.prefix}zithara_lock WHERE name = 'relay:zithara_order_queue' FOR UPDATE"
            )
        bodies, carts = bench.publish(2), bench.publish(2, topic=TOPIC_CART)
        with bench.running([TOPIC_ORDER, TOPIC_CART]) as relay:
            eventually(lambda: bench.stored(TOPIC_CART) == carts, within=25)
            assert (bench.stored(), relay_problem(relay)) == ([], False)
            hanging.rollback()
            bench.wait_until_stored(bodies, within=25)
    finally:
        hanging.close()


def test_database_and_rabbitmq_are_killed(make_shop: Callable[..., Shop]) -> None:
    with MariaDbServer() as server, RabbitMqServer() as node, Shop(server) as shop:
        shop.grant_publishing()
        virtual_host = VirtualHost(node)
        virtual_host.create()
        virtual_host.declare()
        bench = Bench(shop, virtual_host)
        bodies = bench.publish(1200)
        with bench.running(TOPICS):
            eventually(lambda: len(bench.stored()) > 200, within=20)
            server.kill()
            server.start()
            eventually(lambda: len(bench.stored()) > 600, within=20)
            node.kill()
            node.start()
            bench.wait_until_stored(bodies, within=30)
            bench.wait_until_settled()
        assert bench.stored() == bodies
