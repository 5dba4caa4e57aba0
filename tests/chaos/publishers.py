"""The shop's side: threads that publish in transactions of any length, and go on when the database is back."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pymysql
import pymysql.err

from chaos.world import Poison
from zithara_worker.errors import DatabaseUnavailable
from zithara_worker.sandbox import examples
from zithara_worker.sandbox.publisher import Publisher
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER, TOPIC_TABLE, TOPIC_WEBHOOK

#: Topic -> share of the groups. Orders and webhooks are never coalesced: each of their messages must arrive.
TOPIC_SHARES = {TOPIC_ORDER: 0.5, TOPIC_WEBHOOK: 0.1, TOPIC_CUSTOMER: 0.2, TOPIC_CART: 0.2}
#: A transaction holds up to so many messages, and is kept open for up to so many seconds.
TRANSACTION_MESSAGES = 6
TRANSACTION_SECONDS = 0.5
#: Entity numbers from here on belong to witnesses; those of the other groups stay below.
WITNESS_NUMBERS = 900_000


@dataclass(frozen=True, slots=True)
class Group:
    topic: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.topic} {self.number}"


@dataclass(slots=True)
class Published:
    """Message id -> its group, and when it was committed (monotonic). Ids of transactions that were rolled back are
    there too: the database decides. `poison`: queue and message id -> what happens to it, before it is visible.
    `contents`: message id -> what the message tells, for carts and customers."""

    groups: dict[int, Group] = field(default_factory=dict)
    committed_at: dict[int, float] = field(default_factory=dict)
    poison: dict[str, Poison] = field(default_factory=dict)
    contents: dict[int, int] = field(default_factory=dict)
    committed: int = 0


def groups(count: int) -> list[Group]:
    made: list[Group] = []
    for topic, share in TOPIC_SHARES.items():
        made += [Group(topic, 100_000 + number) for number in range(max(1, round(count * share)))]
    return made


class PublisherThread(threading.Thread):
    """Publishes `messages` over `groups`, evenly within `seconds`. Nobody else publishes these groups, so the order of
    their message ids is the order in which their messages become visible."""

    def __init__(
        self,
        shop: Shop,
        published: Published,
        *,
        mine: list[Group],
        messages: int,
        seconds: float,
        seed: int,
        stop: threading.Event,
        poisons: Sequence[Poison] = (),
    ) -> None:
        super().__init__(name=f"publisher-{seed}", daemon=True)
        self._shop = shop
        self._published = published
        self._mine = mine
        self._messages = messages
        self._seconds = seconds
        self._random = random.Random(seed)
        self._stop_asked = stop
        self.failed: BaseException | None = None
        # In the first half, so that they have ended when the run does.
        places = self._random.sample(range(messages // 2), len(poisons))
        self._poisons = dict(zip(sorted(places), poisons, strict=True))
        self._poisonable = [group for group in mine if group.topic in (TOPIC_ORDER, TOPIC_CUSTOMER)]

    def run(self) -> None:
        try:
            self._publish_all()
        except BaseException as error:
            self.failed = error
            raise

    def _publish_all(self) -> None:
        connection: pymysql.connections.Connection[Any] | None = None
        started = time.monotonic()
        done = 0
        while done < self._messages and not self._stop_asked.is_set():
            count = min(self._messages - done, self._random.randint(1, TRANSACTION_MESSAGES))
            poisons = [self._poisons.get(done + number) for number in range(count)]
            chosen = [self._random.choice(self._poisonable if poison else self._mine) for poison in poisons]
            try:
                connection = connection or self._shop.connect(autocommit=False)
                self._publish(connection, chosen, poisons)
            except (DatabaseUnavailable, pymysql.err.Error, OSError):
                # Killed under us. Whether it was committed, the database knows; if not, the shop's visitor tries again.
                if connection is not None and connection.open:
                    connection.close()
                connection = None
                self._stop_asked.wait(0.2)
                continue
            done += count
            self._published.committed += count
            ahead = started + self._seconds * done / self._messages - time.monotonic()
            if ahead > 0:
                self._stop_asked.wait(ahead)
        if connection is not None:
            connection.close()

    def _publish(
        self, connection: pymysql.connections.Connection[Any], chosen: list[Group], poisons: list[Poison | None]
    ) -> None:
        publisher = Publisher(connection, prefix=self._shop.prefix)
        ids: list[int] = []
        for group, poison in zip(chosen, poisons, strict=True):
            # Often what the message before has told: such a message need not be sent.
            content = self._random.randrange(3)
            row = publisher.publish(group.topic, self._payload(group, content))
            ids.append(row.message_id)
            self._published.contents[row.message_id] = content
            self._published.groups[row.message_id] = group
            key = f"{TOPIC_TABLE[group.topic].queue}-{row.message_id}"
            if poison:
                self._published.poison[key] = poison
            else:
                self._published.poison.pop(key, None)  # of a transaction that was rolled back
        if self._random.random() < 0.3:
            self._stop_asked.wait(self._random.uniform(0, TRANSACTION_SECONDS))
        connection.commit()
        self._published.committed_at.update(dict.fromkeys(ids, time.monotonic()))

    def _payload(self, group: Group, content: int) -> object:
        number = str(group.number)
        if group.topic == TOPIC_ORDER:
            return examples.order(number, is_update=self._random.random() < 0.7)
        if group.topic == TOPIC_CUSTOMER:
            return examples.customer(number, last_name=f"Iyer {content}")
        if group.topic == TOPIC_CART:
            return examples.cart(number, total_price=content)
        return examples.webhook(payload={"order_id": number, "amount": "1499.0000"})


def publish_witnesses(shop: Shop, published: Published, number: int) -> None:
    """One message of a new group for each path that poison takes, as from a shop that goes on selling.

    A message that fails alone looks like an outage: it ends in ERROR only after another group of its path was served.
    """
    connection = shop.connect(autocommit=False)
    try:
        publisher = Publisher(connection, prefix=shop.prefix)
        ids = []
        for topic, payload in (
            (TOPIC_ORDER, examples.order(str(WITNESS_NUMBERS + number))),
            (TOPIC_CUSTOMER, examples.customer(str(WITNESS_NUMBERS + number))),
        ):
            ids.append(publisher.publish(topic, payload).message_id)
            published.contents[ids[-1]] = 0
            published.groups[ids[-1]] = Group(topic, WITNESS_NUMBERS + number)
        connection.commit()
        published.committed_at.update(dict.fromkeys(ids, time.monotonic()))
    finally:
        connection.close()
