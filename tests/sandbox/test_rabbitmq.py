"""The private RabbitMQ keeps what it confirmed, has queues as Magento declares them, and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pika
import pika.exceptions
import pytest
from sandbox.test_mariadb import has_ended
from support.waiting import eventually

from zithara_worker.errors import ShopError
from zithara_worker.sandbox import examples
from zithara_worker.sandbox import rabbitmq as rabbitmq_module
from zithara_worker.sandbox.publisher import stored_body
from zithara_worker.sandbox.rabbitmq import EXCHANGE, RabbitMqServer, VirtualHost
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER, TOPIC_WEBHOOK, TOPICS

SAMPLES = Path(__file__).parents[1] / "fixtures" / "amqp-samples.jsonl"


def test_node_keeps_what_it_confirmed_and_its_ports_whatever_happens_to_it() -> None:
    with RabbitMqServer() as server:
        virtual_host = VirtualHost(server)
        virtual_host.create()
        virtual_host.declare()
        virtual_host.publish(TOPIC_ORDER, examples.order())
        pid, port = server.pid, server.port

        server.kill()
        with pytest.raises(pika.exceptions.AMQPConnectionError):
            virtual_host.waiting()
        server.start()
        assert (server.port, server.pid != pid) == (port, True)
        assert virtual_host.waiting()[TOPIC_ORDER] == 1

        server.freeze()
        counted: list[int] = []
        asking = threading.Thread(target=lambda: counted.append(virtual_host.waiting()[TOPIC_ORDER]))
        asking.start()
        asking.join(0.3)
        assert asking.is_alive() and not counted
        server.thaw()
        asking.join(20)
        assert counted == [1]

        directory, processes = server.directory, server.pids
        assert len(processes) == 2
    assert not directory.exists()
    assert not any(Path(f"/proc/{each}").exists() for each in processes)


def test_nothing_is_left_when_the_program_that_started_it_is_killed() -> None:
    program = (
        "from zithara_worker.sandbox.rabbitmq import RabbitMqServer\n"
        "server = RabbitMqServer()\n"
        "server.start()\n"
        "print(*server.pids, server.directory, flush=True)\n"
        "input()\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None
        *pids, directory = owner.stdout.readline().split()
        owner.send_signal(signal.SIGKILL)
    eventually(lambda: all(has_ended(int(pid)) for pid in pids), within=10)
    eventually(lambda: not Path(directory).exists(), within=10)


def test_message_has_the_properties_and_the_body_of_magento(virtual_host: VirtualHost) -> None:
    recorded = [json.loads(line) for line in SAMPLES.read_text(encoding="utf-8").splitlines()]
    virtual_host.publish_bodies([(each["routing_key"], each["body"]) for each in recorded])
    virtual_host.publish(TOPIC_ORDER, examples.order("000000101"))
    with virtual_host.channel() as channel:
        for wanted in recorded:
            method, properties, body = channel.basic_get(wanted["queue"], auto_ack=True)
            assert (method.exchange, method.routing_key, body.decode()) == (
                EXCHANGE,
                wanted["routing_key"],
                wanted["body"],
            )
            told = {name: getattr(properties, name) for name in wanted["properties"]}
            assert len(told.pop("message_id")) == 32
            assert told == {name: value for name, value in wanted["properties"].items() if name != "message_id"}
        _, _, body = channel.basic_get("zithara_order_queue", auto_ack=True)
    assert body.decode() == stored_body(examples.order("000000101"))


def test_queues_are_those_of_the_shop_and_count_what_is_held(virtual_host: VirtualHost) -> None:
    virtual_host.publish_samples()
    published = {TOPIC_ORDER: 2, TOPIC_CUSTOMER: 1, TOPIC_CART: 2, TOPIC_WEBHOOK: 2}
    assert virtual_host.waiting() == virtual_host.unsettled() == published
    with virtual_host.channel() as channel:
        channel.basic_consume("zithara_order_queue", lambda *_: None)
        eventually(lambda: virtual_host.waiting()[TOPIC_ORDER] == 0)
        assert virtual_host.unsettled() == published
        assert virtual_host.consumers() == dict.fromkeys(TOPICS, 0) | {TOPIC_ORDER: 1}


def test_quorum_queues_take_the_same_messages(rabbitmq: RabbitMqServer) -> None:
    with VirtualHost(rabbitmq) as virtual_host:
        assert virtual_host.waiting() == {}
        virtual_host.declare(arguments={"x-queue-type": "quorum", "x-delivery-limit": 2})
        virtual_host.publish(TOPIC_CART, examples.cart())
        eventually(lambda: virtual_host.waiting()[TOPIC_CART] == 1)


def test_closed_connections_and_a_memory_alarm_reach_clients(rabbitmq: RabbitMqServer) -> None:
    with VirtualHost(rabbitmq) as virtual_host:
        virtual_host.declare()
        with virtual_host.channel() as channel, pytest.raises(pika.exceptions.ConnectionClosedByBroker):
            rabbitmq.close_connections()
            channel.connection.sleep(10)
        with virtual_host.channel(blocked_connection_timeout=0.5) as channel:
            rabbitmq.raise_memory_alarm()
            channel.basic_publish(EXCHANGE, TOPIC_ORDER, b"{}")
            with pytest.raises(pika.exceptions.ConnectionBlockedTimeout):
                channel.connection.sleep(10)
        rabbitmq.clear_memory_alarm()
        virtual_host.publish(TOPIC_ORDER, examples.order())


def test_user_reaches_its_own_virtual_host_only_and_what_it_may(
    rabbitmq: RabbitMqServer, virtual_host: VirtualHost
) -> None:
    with (
        VirtualHost(rabbitmq) as other,
        pytest.raises(pika.exceptions.ProbableAccessDeniedError),
        virtual_host.channel(virtual_host=other.name),
    ):
        pass
    virtual_host.add_user("reader", "secret", read="zithara_order_queue", write="", configure="")
    with virtual_host.channel(credentials=pika.PlainCredentials("reader", "secret")) as channel:
        assert channel.basic_get("zithara_order_queue") == (None, None, None)
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"):
            channel.basic_get("zithara_cart_queue")


def test_second_port_speaks_tls_and_proves_its_name(
    rabbitmq: RabbitMqServer, rabbitmq_authority: Path, virtual_host: VirtualHost
) -> None:
    trusting = ssl.create_default_context(cafile=str(rabbitmq_authority))
    with virtual_host.channel(port=rabbitmq.tls_port, ssl_options=pika.SSLOptions(trusting, "localhost")) as channel:
        assert channel.is_open


def test_machine_without_rabbitmq_is_told_the_package_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rabbitmq_module, "_SERVER", tmp_path / "rabbitmq-server")
    with pytest.raises(ShopError, match="apt-get install rabbitmq-server") as caught, RabbitMqServer():
        pass
    assert "\n" not in str(caught.value)
