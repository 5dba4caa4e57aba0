"""The chaos of a shop on RabbitMQ: `scripts/chaos --relay`. Relays, RabbitMQ, the database and workers are killed.

Publishers wait for RabbitMQ's confirmations, as Magento does not, so that it is known what RabbitMQ has. A message
whose confirmation did not come may be there or not; it is not published again.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import pika
import pika.exceptions

from chaos.account import judge, report
from chaos.ending import DRAIN_SECONDS, drained, leftovers, rows, show_logs
from chaos.fleet import Fleet, Killer, write_config
from chaos.host import Host
from chaos.publishers import Group, Published, groups
from chaos.world import Blow, World, message_key
from zithara_worker.sandbox import examples
from zithara_worker.sandbox.fixtures import published_messages
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.publisher import stored_body
from zithara_worker.sandbox.rabbitmq import EXCHANGE, RabbitMqServer, VirtualHost
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER, TOPIC_WEBHOOK

SAMPLES = Path(__file__).parents[1] / "fixtures" / "amqp-samples.jsonl"
RELAYS = 2
#: Blow -> share. A relay's stop is often longer than the lease of its lock (15 s): the other one takes over, and the
#: one that wakes up still has messages in hand.
BLOWS = {
    Blow.RELAY: 0.25,
    Blow.RELAY_STOP: 0.1,
    Blow.BROKER: 0.15,
    Blow.BROKER_FROZEN: 0.05,
    Blow.BROKER_CUT: 0.1,
    Blow.DATABASE: 0.15,
    Blow.KILL: 0.15,
    Blow.STOP: 0.05,
}
RELAY_STOP_SECONDS = (8.0, 22.0)
BROKER_OUTAGE_SECONDS = (0.0, 2.0)
FROZEN_SECONDS = (2.0, 8.0)
#: How long a blow takes until the next one is due, about.
TAKES_SECONDS = {Blow.BROKER: 6.0, Blow.BROKER_FROZEN: 5.0, Blow.DATABASE: 2.5}
FIRST_UPDATE = datetime(2026, 11, 24, 14, 31, 31, tzinfo=timezone.utc)


@dataclass(slots=True)
class Sent:
    """A message that was given to RabbitMQ. `order`: its place among those of its publisher. `confirmed_at`: monotonic,
    None: RabbitMQ may have it or not."""

    publisher: int
    order: int
    group: Group
    confirmed_at: float | None = None


class RabbitPublisher(threading.Thread):
    """Publishes `messages` of its own groups, evenly within `seconds`, each when the one before is confirmed."""

    def __init__(
        self,
        virtual_host: VirtualHost,
        *,
        mine: Sequence[Group],
        messages: int,
        seconds: float,
        number: int,
        seed: int,
        stop: threading.Event,
    ) -> None:
        super().__init__(name=f"publisher-{number}", daemon=True)
        self._virtual_host = virtual_host
        self._mine = mine
        self._messages = messages
        self._seconds = seconds
        self._number = number
        self._random = random.Random(seed)
        self._stop_asked = stop
        #: Body -> what is known of it; no two bodies are the same
        self.sent: dict[str, Sent] = {}
        self.failed: BaseException | None = None

    def run(self) -> None:
        try:
            started = time.monotonic()
            while len(self.sent) < self._messages and not self._stop_asked.is_set():
                try:
                    with self._virtual_host.channel(heartbeat=10) as channel:
                        channel.confirm_delivery()
                        self._publish(channel, started)
                except (pika.exceptions.AMQPError, OSError):
                    self._stop_asked.wait(0.2)  # RabbitMQ is away, or was killed under us
        except BaseException as error:
            self.failed = error
            raise

    def _publish(self, channel: Any, started: float) -> None:
        while len(self.sent) < self._messages and not self._stop_asked.is_set():
            ahead = started + self._seconds * len(self.sent) / self._messages - time.monotonic()
            if ahead > 0:
                channel.connection.sleep(ahead)
            group = self._random.choice(self._mine)
            place = len(self.sent)
            body = stored_body(payload(group, self._number * 1_000_000 + place, self._random))
            message = self.sent[body] = Sent(self._number, place, group)
            properties = pika.BasicProperties(delivery_mode=2, message_id=f"{self._random.getrandbits(128):032x}")
            channel.basic_publish(EXCHANGE, group.topic, body.encode(), properties, mandatory=True)
            message.confirmed_at = time.monotonic()


def _samples() -> Mapping[str, Sequence[str]]:
    """Topic -> payloads that the module published, as JSON."""
    found: dict[str, list[str]] = {}
    for topic, body in published_messages(SAMPLES):
        found.setdefault(topic, []).append(json.loads(body))
    return found


_SAMPLES = _samples()


def payload(group: Group, unique: int, chance: random.Random) -> Any:
    """A sample about this group's entity, with a content that no other message has. The module's samples have no
    webhook, because the recorded shop had no URL for them."""
    if group.topic == TOPIC_WEBHOOK:
        return examples.webhook(payload={"order_id": str(group.number), "amount": str(unique)})
    made = json.loads(chance.choice(_SAMPLES[group.topic]))
    if group.topic == TOPIC_ORDER:
        made["order"].update(
            increment_id=str(group.number),
            entity_id=str(group.number),
            grand_total=unique,
            updated_at=f"{FIRST_UPDATE + timedelta(seconds=unique % 1_000_000):%Y-%m-%d %H:%M:%S}",
        )
    elif group.topic == TOPIC_CUSTOMER:
        made.update(platform_customer_id=str(group.number), last_name=f"Iyer {unique}")
    else:
        made["cart"].update(platform_cart_id=str(group.number), total_price=unique)
        # The sample was saved before its item had an id; a cart without items is not sent.
        made["cart_item"] = examples.cart()["cart_item"]
    return made


class RelayKiller(Killer):
    """Strikes at relays and RabbitMQ too. They explain no second request, so the world does not hear of them."""

    def __init__(self, *arguments: Any, rabbitmq: RabbitMqServer, **more: Any) -> None:
        super().__init__(*arguments, shares=BLOWS, **more)
        self._rabbitmq = rabbitmq

    @property
    def seconds(self) -> float:
        """With the blows that take a while, so that there is something to hit until the last one."""
        return super().seconds + sum(TAKES_SECONDS.get(blow, 0.0) for blow in self._plan)

    def _strike(self, blow: Blow) -> None:
        relay = self._random.choice(self._fleet.relays)
        strikes: dict[Blow, Callable[[], object]] = {
            Blow.RELAY: relay.replace,
            Blow.RELAY_STOP: lambda: self._suspend(relay, RELAY_STOP_SECONDS),
            Blow.BROKER: self._kill_broker,
            Blow.BROKER_FROZEN: self._freeze_broker,
            Blow.BROKER_CUT: self._rabbitmq.close_connections,
        }
        if blow in strikes:
            strikes[blow]()
            self.done[blow] += 1
        else:
            super()._strike(blow)

    def _kill_broker(self) -> None:
        self._rabbitmq.kill()
        self._stop.wait(self._random.uniform(*BROKER_OUTAGE_SECONDS))
        self._rabbitmq.start()

    def _freeze_broker(self) -> None:
        self._rabbitmq.freeze()
        self._stop.wait(self._random.uniform(*FROZEN_SECONDS))
        self._rabbitmq.thaw()


def run(options: argparse.Namespace, directory: Path, *, attempt_limit: int) -> int:
    started = time.monotonic()
    published, stop, world = Published(), threading.Event(), World()
    with (
        MariaDbServer() as server,
        Shop(server) as shop,
        RabbitMqServer() as rabbitmq,
        Host(world, slots=options.workers, seed=options.seed) as host,
    ):
        virtual_host = VirtualHost(rabbitmq)
        virtual_host.create()
        # The limit that RabbitMQ 4 sets by itself.
        virtual_host.declare(arguments={"x-queue-type": "quorum", "x-delivery-limit": 20} if options.quorum else None)
        shop.grant_publishing()
        client_id, client_secret = host.client
        shop.configure_webhook(client_id=client_id, client_secret=client_secret)
        every = groups(options.groups)
        for group in every:
            if group.topic == TOPIC_CART:
                shop.query("INSERT INTO {prefix}quote (entity_id) VALUES (%s)", (group.number,))
        print(
            f"seed {options.seed}, {server.version}, RabbitMQ {rabbitmq.version}{', quorum queues' * options.quorum}",
            flush=True,
        )
        config = write_config(
            directory / "zithara-worker.conf",
            shop.worker_settings,
            attempt_limit=attempt_limit,
            relay=virtual_host.relay_settings,
        )
        with Fleet(config, host, directory, slots=options.workers, relays=RELAYS) as fleet:
            killer = RelayKiller(
                world, fleet, server, host, seed=options.seed, blows=options.kills, stop=stop, rabbitmq=rabbitmq
            )
            publishers = [
                RabbitPublisher(
                    virtual_host,
                    mine=every[number :: options.publishers],
                    messages=len(range(number, options.messages, options.publishers)),
                    seconds=killer.seconds,
                    number=number,
                    seed=options.seed * 1000 + number,
                    stop=stop,
                )
                for number in range(options.publishers)
            ]
            try:
                for publisher in publishers:
                    publisher.start()
                killer.run()
                for publisher in publishers:
                    publisher.join()
                host.calm = True
                calm_at = time.monotonic()
                in_rabbitmq = _emptied(virtual_host, fleet, stop)
                left = drained(shop, published, fleet, stop)
                drained_seconds = time.monotonic() - calm_at
            finally:
                stop.set()
            findings = [f"publisher failed: {each.failed!r}" for each in publishers if each.failed]
            if in_rabbitmq:
                findings.append(f"{in_rabbitmq} messages are in RabbitMQ {DRAIN_SECONDS:g} s after the last blow")
            if left:
                findings.append(f"{left} messages are not settled {DRAIN_SECONDS:g} s after RabbitMQ was empty")
            fleet.stop(within=30)
            findings += fleet.died
        sent = {body: each for publisher in publishers for body, each in publisher.sent.items()}
        lines, wrong = account(
            shop.query("SELECT id, body FROM {prefix}queue_message ORDER BY id"),
            sent,
            published,
            relayed=shop.query("SELECT COUNT(*) FROM {prefix}zithara_relayed")[0][0],
            aside=shop.query("SELECT COUNT(*) FROM {prefix}zithara_relay_aside")[0][0],
        )
        findings += wrong
        verdict = judge(rows(shop, published, ()), world, attempt_limit=attempt_limit)
        findings += leftovers(shop)
        lines.append(f"on the way        {_waits(shop, sent, world)}")
    print("\n".join(lines))
    print(report(verdict, killer.done))
    print(f"calm to settled   {drained_seconds:>8.0f}  s")
    print(f"time              {time.monotonic() - started:>8.0f}  s")
    for finding in findings[:40]:
        print(f"FINDING: {finding}")
    if findings or not verdict.good:
        show_logs(directory, verdict)
        print(
            f"\nNot as promised. To play it again: scripts/chaos --relay --seed {options.seed} (and the other options)"
        )
        return 1
    print("\nEvery message that RabbitMQ confirmed is in the database once, in order, and was delivered in order.")
    return 0


def _emptied(virtual_host: VirtualHost, fleet: Fleet, stop: threading.Event) -> int:
    """Waits until RabbitMQ has no message any more; how many it still has after DRAIN_SECONDS."""
    started = time.monotonic()
    while left := sum(virtual_host.unsettled().values()):
        if time.monotonic() > started + DRAIN_SECONDS:
            break
        fleet.look_after()
        stop.wait(0.2)
    return left


def account(
    messages: Sequence[tuple[Any, ...]], sent: Mapping[str, Sent], published: Published, *, relayed: int, aside: int
) -> tuple[list[str], list[str]]:
    """What became of the messages between RabbitMQ and the database: the lines of the report, and what is wrong.

    `messages`: id and body of each row of queue_message, by id. `relayed`, `aside`: rows of the relay's tables. Tells
    `published` which row belongs to which group, for the account of the deliveries.
    """
    places: dict[str, list[int]] = {}
    wrong = []
    #: (publisher, topic) -> the messages in the order of their rows
    stored: dict[tuple[int, str], list[Sent]] = {}
    for id, body in messages:
        if id in published.groups:
            continue  # a witness
        message = sent.get(body)
        if message is None:
            wrong.append(f"row {id} was never published: {body[:200]}")
            published.groups[id] = Group("unknown", id)
            continue
        places.setdefault(body, []).append(id)
        stored.setdefault((message.publisher, message.group.topic), []).append(message)
        published.groups[id] = message.group
        published.contents[id] = message.publisher * 1_000_000 + message.order
    confirmed = [body for body, each in sent.items() if each.confirmed_at is not None]
    wrong += [f"lost: {sent[body]}" for body in confirmed if body not in places]
    wrong += [f"inserted {len(ids)} times: {sent[body]}, rows {ids}" for body, ids in places.items() if len(ids) > 1]
    for rows_of_one in stored.values():
        wrong += [f"{two} came after {one}" for one, two in pairwise(rows_of_one) if two.order < one.order]
    if relayed != len(places):
        wrong.append(f"zithara_relayed has {relayed} rows for {len(places)} messages")
    if aside:
        wrong.append(f"{aside} pieces were kept aside")
    doubtful = len(sent) - len(confirmed)
    return [
        f"published         {len(sent):>8}  messages to RabbitMQ, {len(confirmed)} confirmed",
        f"relayed           {len(places):>8}  messages, {len(places) - len(confirmed)} of the {doubtful} without "
        "confirmation",
    ], wrong


def _waits(shop: Shop, sent: Mapping[str, Sent], world: World) -> str:
    """From RabbitMQ's confirmation to the first request."""
    seconds = []
    for id, body, queue in shop.query(
        "SELECT m.id, m.body, q.name FROM {prefix}queue_message m JOIN {prefix}queue_message_status s "
        "ON s.message_id = m.id JOIN {prefix}queue q ON q.id = s.queue_id"
    ):
        message, arrivals = sent.get(body), world.arrivals.get(message_key(0, queue, id))
        if message is not None and message.confirmed_at is not None and arrivals:
            seconds.append(arrivals[0].at - message.confirmed_at)
    if not seconds:
        return "nobody"
    seconds.sort()
    return (
        ", ".join(
            f"{name} {seconds[min(len(seconds) - 1, int(len(seconds) * share))]:.2f} s"
            for name, share in (("p50", 0.5), ("p99", 0.99), ("longest", 1.0))
        )
        + " from the confirmation to the first request"
    )
