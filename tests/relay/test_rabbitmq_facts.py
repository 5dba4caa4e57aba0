"""What RabbitMQ may do to a relay: refuse it, have no queue, other consumers, an alarm, large bodies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from relay.conftest import Bench
from support.waiting import eventually

from zithara_worker.errors import BrokerUnavailable, ConfigurationError
from zithara_worker.relay import amqp, connection
from zithara_worker.relay.amqp import Broker
from zithara_worker.relay.connection import Waiting, count_waiting
from zithara_worker.relay.relay import Relay
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.rabbitmq import RabbitMqServer, VirtualHost
from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.tcp_proxy import TcpProxy
from zithara_worker.settings.values import Secret
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER

QUEUE = "zithara_order_queue"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amqp, "HELD_LOG_SECONDS", 0.0)
    monkeypatch.setattr(Broker.__init__, "__kwdefaults__", {**Broker.__init__.__kwdefaults__, "retry_seconds": 0.2})


def reasons(relay: Relay) -> str:
    return " ".join(relay.loop.health().reasons) if relay.loop is not None else ""


@pytest.fixture
def relay_that_waits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts a relay, and waits until it says that it waits for what it should."""
    monkeypatch.setattr("zithara_worker.relay.loop.RETRY_SECONDS", 0.2)

    def start(expected: str) -> Any:
        running = bench.running([TOPIC_ORDER])
        relay = running.__enter__()
        started.append(running)
        eventually(lambda: expected in reasons(relay), within=10)
        return relay

    started: list[Any] = []
    yield start
    for running in started:
        running.__exit__(None, None, None)


def test_queue_that_does_not_exist_yet_is_waited_for(bench: Bench, relay_that_waits: Any) -> None:
    with bench.virtual_host.channel() as channel:
        channel.queue_delete(QUEUE)
    relay_that_waits("RabbitMQ has no queue zithara_order_queue")
    bench.virtual_host.declare()
    bench.wait_until_stored(bench.publish(2))


def test_queue_that_is_deleted_and_declared_again(bench: Bench, relay_that_waits: Any) -> None:
    with bench.running([TOPIC_ORDER]) as relay:
        first = bench.publish(2)
        bench.wait_until_stored(first)
        with bench.virtual_host.channel() as channel:
            channel.queue_delete(QUEUE)
        eventually(lambda: "RabbitMQ has no queue" in reasons(relay), within=10)
        bench.virtual_host.declare()
        bench.wait_until_stored(first + bench.publish(2, first=2))


@pytest.mark.parametrize("exclusive", [True, False])
def test_relay_waits_for_the_end_of_other_consumers(bench: Bench, relay_that_waits: Any, exclusive: bool) -> None:
    """One that holds the queue exclusively, or a PHP consumer: it may have older messages."""
    with bench.virtual_host.channel() as channel:
        channel.basic_consume(QUEUE, lambda *_: None, exclusive=exclusive)
        bodies = bench.publish(3)
        relay_that_waits("another consumer takes messages of queue zithara_order_queue")
        assert bench.stored() == []
    bench.wait_until_stored(bodies)


def test_older_messages_of_another_consumer_of_a_quorum_queue_come_first(
    relay_shop: Shop, rabbitmq: RabbitMqServer
) -> None:
    """It knows no exclusive consumers; an earlier relay whose end RabbitMQ has not noticed may have older messages."""
    with VirtualHost(rabbitmq) as virtual_host:
        virtual_host.declare(arguments={"x-queue-type": "quorum"})
        bench = Bench(relay_shop, virtual_host)
        bodies = bench.publish(4)
        with virtual_host.channel() as channel:
            channel.basic_qos(prefetch_count=2)
            channel.basic_consume(QUEUE, lambda *_: None)
            channel.connection.process_data_events(0.2)
            with bench.running([TOPIC_ORDER]) as relay:
                eventually(lambda: "another consumer takes messages" in reasons(relay), within=10)
                assert bench.stored() == []
                channel.connection.close()
                bench.wait_until_stored(bodies)


def test_queue_with_a_single_active_consumer(relay_shop: Shop, rabbitmq: RabbitMqServer) -> None:
    """It refuses exclusive consumers, and is exclusive all the same."""
    with VirtualHost(rabbitmq) as virtual_host:
        virtual_host.declare(arguments={"x-single-active-consumer": True})
        bench = Bench(relay_shop, virtual_host)
        bodies = bench.publish(30)
        bench.drain([TOPIC_ORDER])
        assert bench.stored() == bodies


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"password": Secret("wrong")}, "correct [relay] user and password"),
        ({"vhost": "nowhere"}, "rabbitmqctl set_permissions -p nowhere"),
        ({"port": 1}, "RabbitMQ at 127.0.0.1:1: "),
        ({"ssl": True}, "TLS with RabbitMQ at"),
    ],
)
def test_refused_connection_says_what_to_do(
    bench: Bench, relay_that_waits: Any, changes: dict[str, Any], expected: str
) -> None:
    bodies = bench.publish(1)
    usable, bench.relay = bench.relay, replace(bench.relay, **changes)
    with pytest.raises(BrokerUnavailable) as error:
        count_waiting(bench.relay, [QUEUE])
    assert expected in str(error.value)
    assert usable.password.reveal() not in str(error.value)
    relay_that_waits(expected)
    assert bench.stored() == [] and bodies


def test_missing_right_to_read_says_which(bench: Bench, relay_that_waits: Any) -> None:
    bench.virtual_host.add_user("limited_" + bench.virtual_host.name, "x", configure="", write="", read="^none$")
    bench.relay = replace(bench.relay, user="limited_" + bench.virtual_host.name, password=Secret("x"))
    relay_that_waits('"" "" "^zithara_order_queue$"')


def test_tls_is_verified(
    bench: Bench, rabbitmq: RabbitMqServer, rabbitmq_authority: Path, relay_that_waits: Any
) -> None:
    bodies = bench.publish(2)
    bench.relay = replace(bench.relay, host="localhost", port=rabbitmq.tls_port, ssl=True, ca_file=rabbitmq_authority)
    bench.drain([TOPIC_ORDER])
    assert bench.stored() == bodies
    bench.relay = replace(bench.relay, ca_file=None)
    relay_that_waits("name the authority of its certificate in [relay] ca_file")


def test_files_for_tls_that_cannot_be_used_are_an_error_at_once(bench: Bench, tmp_path: Path) -> None:
    bench.relay = replace(bench.relay, ssl=True, ca_file=tmp_path / "missing.pem")
    with pytest.raises(ConfigurationError, match=r"\[relay\] ca_file: .*missing.pem cannot be used"):
        bench.drain()


def test_alarm_of_rabbitmq_does_not_stop_the_relay(bench: Bench, rabbitmq: RabbitMqServer) -> None:
    bodies = bench.publish(50)
    rabbitmq.raise_memory_alarm()
    try:
        bench.drain([TOPIC_ORDER])
        assert bench.stored() == bodies
    finally:
        rabbitmq.clear_memory_alarm()


def test_heartbeats_are_answered_while_the_database_is_slow(
    bench: Bench, mariadb: MariaDbServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection, "HEARTBEAT_SECONDS", 1)
    with TcpProxy(mariadb.socket_path) as proxy:
        bench.database = replace(bench.database, unix_socket="", host="127.0.0.1", port=proxy.port)
        bodies = bench.publish(20)
        proxy.delay(of="queue_message ", seconds=4.0, times=1)
        with bench.running([TOPIC_ORDER]):
            bench.wait_until_stored(bodies)
            bench.wait_until_settled()
        assert proxy.delays_left == 0
    assert "RabbitMQ is not available" not in caplog.text


def test_large_bodies_are_held_within_the_budget(typed_bench: Bench) -> None:
    bench = typed_bench
    budget, size = 2_000_000, 400_000
    bodies = bench.publish(10, size=10) + bench.publish(40, first=10, size=size) + bench.publish(60, first=50, size=10)
    most = 0

    class Watched(Broker):
        def take(self, queue: str, *, messages: int, size_bytes: int) -> Any:
            nonlocal most
            most = max(most, self.held_bytes)
            return super().take(queue, messages=messages, size_bytes=size_bytes)

    with bench.running([TOPIC_ORDER], broker=partial(Watched, budget_bytes=budget)):
        bench.wait_until_stored(bodies, within=30)
        bench.wait_until_settled()
    assert size < most < budget + 2 * size


def test_enough_pending_messages_leave_the_rest_in_rabbitmq(typed_bench: Bench) -> None:
    bench = typed_bench
    bench.relay = replace(bench.relay, max_pending=50, prefetch=20)
    bodies = bench.publish(300)
    with bench.running([TOPIC_ORDER]) as relay:
        eventually(lambda: relay.loop is not None and relay.loop.reports()[TOPIC_ORDER]["state"] == "paused", within=10)
        eventually(lambda: bench.virtual_host.unsettled()[TOPIC_ORDER] == bench.virtual_host.waiting()[TOPIC_ORDER])
        assert 50 <= len(bench.stored()) <= 90
        while (before := len(bench.stored())) < len(bodies):
            bench.shop.query("UPDATE {prefix}queue_message_status SET status = 4")
            eventually(lambda before=before: len(bench.stored()) > before, within=10)
        bench.wait_until_settled()
    assert bench.stored() == bodies


def test_count_of_what_waits(bench: Bench) -> None:
    bench.publish(3)
    with bench.virtual_host.channel() as channel:
        channel.queue_delete("zithara_cart_queue")
        assert count_waiting(bench.relay, [QUEUE, "zithara_cart_queue"]) == {
            QUEUE: Waiting(messages=3, consumers=0),
            "zithara_cart_queue": None,
        }
    assert TOPIC_CART not in bench.virtual_host.waiting()
