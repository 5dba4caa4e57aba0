"""A shop, a virtual host of RabbitMQ with the module's queues, and relays between them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pymysql
import pymysql.err
import pytest
from support.waiting import eventually
from support.workers import settings_of

from zithara_worker import Settings
from zithara_worker.limits import End, Limits
from zithara_worker.relay.relay import Relay
from zithara_worker.sandbox.publisher import stored_body
from zithara_worker.sandbox.rabbitmq import RabbitMqServer, VirtualHost
from zithara_worker.sandbox.shop import Shop
from zithara_worker.settings.sections import DatabaseSettings, MetricsSettings, RelaySettings, WorkerSettings
from zithara_worker.settings.sources import given_by_program
from zithara_worker.settings.values import Secret
from zithara_worker.topics import TOPIC_ORDER, TOPICS


def relay_settings_of(virtual_host: VirtualHost, **changes: Any) -> RelaySettings:
    given = dict(virtual_host.relay_settings)
    fields: dict[str, Any] = {
        "host": given["host"],
        "port": int(given["port"]),
        "user": given["user"],
        "password": Secret(given["password"]),
        "vhost": given["vhost"],
    }
    return RelaySettings(**{**fields, **changes})


@pytest.fixture
def relay_shop(make_shop: Callable[..., Shop]) -> Shop:
    """A shop whose account may put messages on the queue."""
    shop = make_shop()
    shop.grant_publishing()
    return shop


class Bench:
    """Runs relays in this process, and looks at both ends."""

    def __init__(self, shop: Shop, virtual_host: VirtualHost) -> None:
        self.shop = shop
        self.virtual_host = virtual_host
        self.database: DatabaseSettings = settings_of(shop)
        self.relay = relay_settings_of(virtual_host)
        self.worker = WorkerSettings()

    def settings(self) -> Settings:
        return Settings(
            database=self.database, relay=self.relay, worker=self.worker, metrics=MetricsSettings(listen="")
        )

    def make(self, **arguments: Any) -> Relay:
        return Relay(given_by_program(self.settings()), **arguments)

    def drain(self, topics: Sequence[str] = TOPICS, *, seconds: float = 20.0, **limits: Any) -> End:
        """Moves everything that is there; AssertionError if that takes too long."""
        given = {"stop_when_empty": True, "max_runtime_seconds": seconds, **limits}
        end = self.make().run(topics, limits=Limits(**given))
        assert end is not End.RUNTIME, f"not empty after {seconds} s"
        return end

    @contextmanager
    def running(self, topics: Sequence[str] = TOPICS, **arguments: Any) -> Iterator[Relay]:
        """A relay in a thread; stopped in order at the end, and its error raised."""
        relay = self.make(**arguments)
        errors: list[BaseException] = []

        def run() -> None:
            try:
                relay.run(topics)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, name="relay", daemon=True)
        thread.start()
        try:
            yield relay
        finally:
            relay.stop()
            thread.join(20)
            assert not thread.is_alive(), "the relay does not end"
        if errors:
            raise errors[0]

    def publish(self, count: int, *, first: int = 0, topic: str = TOPIC_ORDER, size: int = 0) -> list[str]:
        """Publishes bodies that say their place, padded to `size`; the bodies."""
        bodies = [stored_body(f'{{"n": {number}, "p": "{"x" * size}"}}') for number in range(first, first + count)]
        self.virtual_host.publish_bodies([(topic, body) for body in bodies])
        return bodies

    def stored(self, topic: str = TOPIC_ORDER) -> list[str]:
        """The bodies on the topic's queue, in its order."""
        rows = self.shop.query(
            "SELECT m.body FROM {prefix}queue_message_status s JOIN {prefix}queue_message m ON m.id = s.message_id "
            "JOIN {prefix}queue q ON q.id = s.queue_id WHERE m.topic_name = %s ORDER BY m.id",
            (topic,),
        )
        return [row[0] for row in rows]

    def aside(self) -> list[tuple[str, bytes]]:
        """(reason, body) of the messages that were kept aside."""
        rows = self.shop.query("SELECT id, reason_code, content FROM {prefix}zithara_relay_aside ORDER BY id, piece")
        bodies: dict[str, tuple[str, bytes]] = {}
        for message, reason, content in rows:
            bodies[message] = (reason, bodies.get(message, ("", b""))[1] + content)
        return list(bodies.values())

    def kill_sessions(self) -> int:
        """Kills the relay's sessions at the database server; how many. From any thread."""
        killed = 0
        with self.shop.connect() as root, root.cursor() as cursor:
            cursor.execute("SELECT id FROM information_schema.processlist WHERE user = %s", (self.shop.user,))
            for (session,) in cursor.fetchall():
                with suppress(pymysql.err.OperationalError):  # 1094: it has ended already
                    cursor.execute("KILL %s", (session,))
                    killed += 1
        return killed

    def wait_until_stored(self, bodies: Sequence[str], *, within: float = 15.0) -> None:
        eventually(lambda: len(self.stored()) >= len(bodies), within=within)
        assert self.stored() == list(bodies)

    def wait_until_settled(self, *, within: float = 10.0) -> None:
        """RabbitMQ holds nothing any more, neither ready nor unacknowledged."""
        eventually(lambda: not any(self.virtual_host.unsettled().values()), within=within)


@pytest.fixture(params=["classic", "quorum"])
def typed_virtual_host(rabbitmq: RabbitMqServer, request: pytest.FixtureRequest) -> Iterator[VirtualHost]:
    """The module's queues in each type of queue: they return messages to the queue in different ways."""
    with VirtualHost(rabbitmq) as virtual_host:
        virtual_host.declare(arguments={"x-queue-type": request.param})
        yield virtual_host


@pytest.fixture
def typed_bench(relay_shop: Shop, typed_virtual_host: VirtualHost) -> Bench:
    return Bench(relay_shop, typed_virtual_host)


@pytest.fixture
def bench(relay_shop: Shop, virtual_host: VirtualHost) -> Bench:
    return Bench(relay_shop, virtual_host)
