"""The order of a queue when its consumer ends while RabbitMQ is still sending.

What RabbitMQ 3.10 does to a quorum queue with 119 messages, seen with pika alone. The client has a window of 20, stored
message 0, and 1 to 19 are on their way to it; the next consumer gets:

- basic.ack (0), basic.cancel, and the client rejects 1 to 20 as they arrive: 21..119, 1..20. What is rejected goes
  behind everything that waits.
- 1 to 19 have arrived and are not dispatched at basic.cancel: the client rejects them before it, RabbitMQ sends as many
  others, and the client rejects those: 40..119, 1..19, 21..39, 20.
- The client closes the channel: pika cancels its consumers first, so the same.
- basic.ack (0), and RabbitMQ closes the channel (an exception): in order.

A classic queue keeps the order in each case.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
from relay.conftest import relay_settings_of
from support.raw_server import RawServer
from support.waiting import eventually

from zithara_worker.relay import amqp
from zithara_worker.relay.amqp import Broker, Delivery, Phase
from zithara_worker.sandbox.rabbitmq import VirtualHost
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER

QUEUE = "zithara_order_queue"
WINDOW = 20


class Holding:
    """Forwards a connection to RabbitMQ, and holds back what RabbitMQ sends; a script of `RawServer`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        self._client: socket.socket | None = None
        self._holds = False
        self.held = b""
        #: Set when the client has sent something since `hold`
        self.has_sent = threading.Event()

    def __call__(self, client: socket.socket, _number: int) -> None:
        self._client = client
        with socket.create_connection(("127.0.0.1", self._port)) as server:
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
            while chunk := server.recv(65536):
                with self._lock:
                    self.held += chunk
                    if not self._holds:
                        self._pass_on()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):  # one side has ended
            while chunk := client.recv(65536):
                server.sendall(chunk)
                self.has_sent.set()
            server.shutdown(socket.SHUT_RDWR)

    def _pass_on(self) -> None:
        if self._client is not None:
            self._client.sendall(self.held)
        self.held = b""

    def hold(self) -> None:
        with self._lock:
            self._holds = True
            self.has_sent.clear()

    def release(self) -> None:
        with self._lock:
            self._holds = False
            self._pass_on()


@pytest.fixture
def holding(typed_virtual_host: VirtualHost) -> Holding:
    return Holding(typed_virtual_host.server.port)


#: Starts a broker that consumes with windows of WINDOW messages, and waits for none to fill.
Consuming = Callable[..., Broker]


@pytest.fixture
def consuming(
    typed_virtual_host: VirtualHost, holding: Holding, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Consuming]:
    monkeypatch.setitem(amqp._Consumer.__init__.__kwdefaults__, "prefetch", WINDOW)
    monkeypatch.setattr(amqp, "FULL_SECONDS", 0.0)
    server = RawServer(holding)
    settings = relay_settings_of(typed_virtual_host, port=server.port, prefetch=WINDOW)
    started: list[Broker] = []

    def start(queues: Sequence[str] = (QUEUE,), **arguments: Any) -> Broker:
        broker = Broker(settings, queues, name="test", on_change=lambda: None, survey_seconds=60.0, **arguments)
        started.append(broker)
        broker.start()
        for queue in queues:
            broker.consume(queue)
        return broker

    yield start
    holding.release()
    for broker in started:
        broker.close()
    server.close()


@pytest.fixture
def broker(consuming: Consuming) -> Broker:
    return consuming()


def publish(virtual_host: VirtualHost, numbers: Sequence[int], *, topic: str = TOPIC_ORDER) -> None:
    virtual_host.publish_bodies((topic, f'"message {number}"') for number in numbers)


def take(broker: Broker, *, messages: int = 1000) -> list[Delivery]:
    return broker.take(QUEUE, messages=messages, size_bytes=1_000_000)


def numbers_of(deliveries: Sequence[Delivery]) -> list[int]:
    return [int(delivery.body.split()[1].strip(b'"')) for delivery in deliveries]


def store_from(broker: Broker, first: int, last: int, *, messages: int = 1000) -> None:
    """Takes and acknowledges these messages, so many at a time; AssertionError if they come in another order."""
    got: list[int] = []

    def has_all() -> bool:
        deliveries = take(broker, messages=messages)
        got.extend(numbers_of(deliveries))
        broker.done(deliveries, stored=True)
        return len(got) > last - first

    broker.consume(QUEUE)
    eventually(has_all, within=15)
    assert got == list(range(first, last + 1))


def test_what_is_on_its_way_when_a_consumer_ends_keeps_its_place(
    typed_virtual_host: VirtualHost, broker: Broker, holding: Holding
) -> None:
    publish(typed_virtual_host, [0])
    stored = eventually(lambda: take(broker))
    holding.hold()
    publish(typed_virtual_host, range(1, 5 * WINDOW))
    eventually(lambda: b'"message %d"' % (WINDOW - 1) in holding.held)
    broker.drain(QUEUE)
    # The consumer ends now: all that has arrived is stored, and it does not fill the window.
    broker.done(stored, stored=True)
    assert holding.has_sent.wait(10)
    holding.release()
    eventually(lambda: broker.status(QUEUE).phase is Phase.IDLE)
    store_from(broker, 1, 5 * WINDOW - 1)


def test_consumer_ends_however_many_messages_follow(typed_virtual_host: VirtualHost, broker: Broker) -> None:
    """In a flow in which the next message arrives before each one is stored, there is no moment at which all that was
    delivered is stored, and only what is withheld fills the window."""
    publish(typed_virtual_host, [0])
    stored = eventually(lambda: take(broker))
    broker.drain(QUEUE)
    last = 0
    while stored:
        assert last < 2 * WINDOW, "the consumer does not end"
        last += 1
        publish(typed_virtual_host, [last])
        following: list[Delivery] = []

        def arrived(following: list[Delivery] = following) -> bool:
            has_ended = broker.status(QUEUE).phase is Phase.IDLE
            following.extend(take(broker))
            return bool(following) or has_ended

        eventually(arrived)
        broker.done(stored, stored=True)
        stored = following
    store_from(broker, WINDOW, last)


def test_connection_that_is_lost_again_before_all_has_come_again_keeps_the_order(
    typed_virtual_host: VirtualHost, broker: Broker
) -> None:
    """A quorum queue puts what a lost consumer had behind what was returned before: with a window of 20 and then one of
    1 the next consumer gets 1..19, 0, 20... So what was returned has to fit into the next window."""
    publish(typed_virtual_host, range(2 * WINDOW))
    for _ in range(2):
        eventually(lambda: take(broker), within=10)
        typed_virtual_host.server.close_connections()
        eventually(lambda: broker.status(QUEUE).phase is Phase.AWAY)
    store_from(broker, 0, 2 * WINDOW - 1)


def test_window_that_becomes_smaller_keeps_the_order(typed_virtual_host: VirtualHost, consuming: Consuming) -> None:
    """Bodies grow while a window of small ones is on its way, and grow again behind it."""
    sizes = [1_000] * 8 + [40_000] * 12 + [90_000] * 30
    typed_virtual_host.publish_bodies(
        (TOPIC_ORDER, f'"message {number}" {" " * size}') for number, size in enumerate(sizes)
    )
    broker = consuming(budget_bytes=100_000)
    store_from(broker, 0, 34, messages=1)
    # A window of WINDOW would hold all of them.
    eventually(lambda: typed_virtual_host.waiting()[TOPIC_ORDER] >= 12)
    store_from(broker, 35, len(sizes) - 1, messages=1)


def test_consumer_does_not_end_while_nothing_is_read(
    typed_virtual_host: VirtualHost, consuming: Consuming, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The messages of another queue use the budget up: what is on its way to this one has not been read."""
    monkeypatch.setattr(amqp, "FULL_SECONDS", 4.0)
    other, looks, passed_seconds = "zithara_cart_queue", 0, 0.0

    def monotonic() -> float:
        nonlocal looks
        looks += 1
        return time.monotonic() + passed_seconds

    broker = consuming([QUEUE, other], budget_bytes=1, monotonic=monotonic)
    publish(typed_virtual_host, [0], topic=TOPIC_CART)
    large = eventually(lambda: broker.take(other, messages=1, size_bytes=0))
    publish(typed_virtual_host, range(2 * WINDOW))
    broker.drain(QUEUE)
    for seconds in (0.0, 5.0):  # more than FULL_SECONDS, and less than UNREAD_SECONDS
        passed_seconds = seconds
        before = looks
        eventually(lambda before=before: looks > before + 6)  # two rounds of the thread
    broker.done(large, stored=True)
    got: list[Delivery] = []
    eventually(lambda: got.extend(take(broker)) or len(got) == WINDOW)
    assert numbers_of(got) == list(range(WINDOW))
