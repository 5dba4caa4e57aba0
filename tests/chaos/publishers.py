"""The shop's side: threads that publish in transactions of any length, and go on when the database is back."""

from __future__ import annotations

import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import pymysql
import pymysql.err

from chaos.world import Poison, message_key
from zithara_worker.errors import DatabaseUnavailable
from zithara_worker.sandbox import examples
from zithara_worker.sandbox.publisher import Publisher
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER, TOPIC_TABLE, TOPIC_WEBHOOK

Connection: TypeAlias = "pymysql.connections.Connection[Any]"

#: Topic -> share of the groups. Orders and webhooks are never coalesced: each of their messages must arrive.
TOPIC_SHARES = {TOPIC_ORDER: 0.5, TOPIC_WEBHOOK: 0.1, TOPIC_CUSTOMER: 0.2, TOPIC_CART: 0.2}
#: A transaction holds up to so many messages, and is kept open for up to so many seconds.
TRANSACTION_MESSAGES = 6
TRANSACTION_SECONDS = 0.5
#: Of the messages that tell a state, as many become visible in the hands of a PHP consumer that has died with them.
ORPHAN_SHARE = 0.03
#: As long ago as Magento's cron waits for. A day passes in a few seconds here.
ORPHAN_HOURS = 24
ORPHAN_SECONDS = (2.0, 8.0)
#: Entity numbers from here on belong to witnesses; those of the other groups stay below.
WITNESS_NUMBERS = 900_000
#: From here on to those: abandoned carts, of which the first ones are published at the same time.
CART_NUMBERS = 300_000
#: Between two rounds of the module's cron, which comes every minute.
CART_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Group:
    topic: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.topic} {self.number}"

    @property
    def key(self) -> str:
        """As the worker's tables have it."""
        return f"{TOPIC_TABLE[self.topic].entity}:{self.number}"


@dataclass(slots=True)
class Published:
    """Message id -> its group, and when it was committed (monotonic). Ids of transactions that were rolled back are
    there too: the database decides. `poison`: queue and message id -> what happens to it, before it is visible.
    `contents`: message id -> what the message tells. `creates`: orders' creates. `orphans`: message id -> relation id
    of what a PHP consumer died with. `ended`: cart -> when it had become an order (monotonic)."""

    groups: dict[int, Group] = field(default_factory=dict)
    committed_at: dict[int, float] = field(default_factory=dict)
    poison: dict[str, Poison] = field(default_factory=dict)
    contents: dict[int, int] = field(default_factory=dict)
    creates: set[int] = field(default_factory=set)
    orphans: dict[int, int] = field(default_factory=dict)
    ended: dict[Group, float] = field(default_factory=dict)
    committed: int = 0

    def begin_again(self) -> None:
        """The shop's tables were emptied: ids will be given out again."""
        for known in (self.groups, self.committed_at, self.contents, self.creates, self.orphans):
            known.clear()


def groups(count: int) -> list[Group]:
    made: list[Group] = []
    for topic, share in TOPIC_SHARES.items():
        made += [Group(topic, 100_000 + number) for number in range(max(1, round(count * share)))]
    return made


class ShopThread(threading.Thread, ABC):
    """Writes to the shop's database until it is done or stopped, and goes on when the database is back."""

    def __init__(self, name: str, shop: Shop, *, seed: int, stop: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self._shop = shop
        self._random = random.Random(seed)
        self._stop_asked = stop
        self._connection: Connection | None = None
        self.failed: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.failed = error
            raise
        finally:
            self._close()

    @abstractmethod
    def _work(self) -> None:
        """What it writes, until it is done or `_stop_asked` is set."""

    def _attempt(self, write: Callable[[Connection], None]) -> bool:
        """False: the database was killed under it. Whether it was committed, the database knows."""
        try:
            self._connection = self._connection or self._shop.connect(autocommit=False)
            write(self._connection)
        except (DatabaseUnavailable, pymysql.err.Error, OSError):
            self._close()
            self._stop_asked.wait(0.2)
            return False
        return True

    def _close(self) -> None:
        if self._connection is not None and self._connection.open:
            self._connection.close()
        self._connection = None


class PublisherThread(ShopThread):
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
        orphan_share: float = 0.0,
    ) -> None:
        super().__init__(f"publisher-{seed}", shop, seed=seed, stop=stop)
        self._published = published
        self._mine = mine
        self._messages = messages
        self._seconds = seconds
        self._orphan_share = orphan_share
        # In the first half, so that they have ended when the run does.
        places = self._random.sample(range(messages // 2), len(poisons))
        self._poisons = dict(zip(sorted(places), poisons, strict=True))
        self._poisonable = [group for group in mine if group.topic in (TOPIC_ORDER, TOPIC_CUSTOMER)]

    def _work(self) -> None:
        started = time.monotonic()
        done = 0
        while done < self._messages and not self._stop_asked.is_set():
            count = min(self._messages - done, self._random.randint(1, TRANSACTION_MESSAGES))
            poisons = [self._poisons.get(done + number) for number in range(count)]
            chosen = [self._random.choice(self._poisonable if poison else self._mine) for poison in poisons]
            # If it was not committed, the shop's visitor tries again.
            if not self._attempt(partial(self._publish, chosen=chosen, poisons=poisons)):
                continue
            done += count
            self._published.committed += count
            ahead = started + self._seconds * done / self._messages - time.monotonic()
            if ahead > 0:
                self._stop_asked.wait(ahead)

    def _publish(self, connection: Connection, *, chosen: list[Group], poisons: list[Poison | None]) -> None:
        publisher = Publisher(connection, prefix=self._shop.prefix)
        ids: list[int] = []
        for group, poison in zip(chosen, poisons, strict=True):
            # Often what the message before has told: such a message need not be sent.
            ids.append(publish(publisher, self._published, group, self._random.randrange(3), self._random))
            key = message_key(0, TOPIC_TABLE[group.topic].queue, ids[-1])
            if poison:
                self._published.poison[key] = poison
            else:
                self._published.poison.pop(key, None)  # of a transaction that was rolled back
                if self._random.random() < self._orphan_share:
                    die_with(publisher, self._published, ids[-1])
        if self._random.random() < 0.3:
            self._stop_asked.wait(self._random.uniform(0, TRANSACTION_SECONDS))
        connection.commit()
        self._published.committed_at.update(dict.fromkeys(ids, time.monotonic()))


def publish(publisher: Publisher, published: Published, group: Group, content: int, chance: random.Random) -> int:
    """The message id; what is published is noted."""
    is_update = chance.random() < 0.7
    row = publisher.publish(group.topic, payload(group, content, is_update=is_update))
    published.groups[row.message_id] = group
    published.contents[row.message_id] = content
    published.orphans.pop(row.message_id, None)  # of a transaction that was rolled back
    if group.topic == TOPIC_ORDER and not is_update:
        published.creates.add(row.message_id)
    else:
        published.creates.discard(row.message_id)
    return row.message_id


def payload(group: Group, content: int, *, is_update: bool) -> object:
    number = str(group.number)
    if group.topic == TOPIC_ORDER:
        return examples.order(number, is_update=is_update, subtotal=content)
    if group.topic == TOPIC_CUSTOMER:
        return examples.customer(number, last_name=f"Iyer {content}")
    if group.topic == TOPIC_CART:
        return examples.cart(number, total_price=content)
    return examples.webhook(payload={"order_id": number, "amount": "1499.0000"})


def die_with(publisher: Publisher, published: Published, message_id: int) -> None:
    """A PHP consumer has taken the message a day ago, and died. Not webhooks: a consumer is at work there."""
    if published.groups[message_id].topic == TOPIC_WEBHOOK:
        return
    with publisher.publishing_connection().cursor() as cursor:
        cursor.execute("SELECT id FROM queue_message_status WHERE message_id = %s", (message_id,))
        [(published.orphans[message_id],)] = cursor.fetchall()
        cursor.execute(
            "UPDATE queue_message_status SET status = 3, updated_at = NOW() - INTERVAL %s HOUR WHERE message_id = %s",
            (ORPHAN_HOURS, message_id),
        )


class Cron(ShopThread):
    """Magento's cron, which puts back what a PHP consumer has held for a day."""

    def __init__(self, shop: Shop, published: Published, *, seed: int, stop: threading.Event) -> None:
        super().__init__("cron", shop, seed=seed, stop=stop)
        self._published = published
        self._due: dict[int, float] = {}
        self._ended = threading.Event()

    def _work(self) -> None:
        while not self._ended.wait(0.2) and not self._stop_asked.is_set():
            now = time.monotonic()
            for message_id in set(self._published.orphans) & set(self._published.committed_at) - set(self._due):
                self._due[message_id] = now + self._random.uniform(*ORPHAN_SECONDS)
            due = [self._published.orphans[id] for id, at in self._due.items() if at <= now]
            if due and self._attempt(partial(self._put_back, ids=due)):
                self._due.update((id, float("inf")) for id, at in self._due.items() if at <= now)

    def end(self) -> None:
        self._ended.set()
        self.join()

    @staticmethod
    def _put_back(connection: Connection, *, ids: Sequence[int]) -> None:
        with connection.cursor() as cursor:
            cursor.execute(PUT_BACK + " AND id IN %s", (ids,))
        connection.commit()


#: As Magento's cron does. A worker's own messages have not been in progress for a day.
PUT_BACK = (
    "UPDATE queue_message_status SET status = 5, number_of_trials = number_of_trials + 1, updated_at = NOW() "
    "WHERE status = 3 AND updated_at < NOW() - INTERVAL 12 HOUR"
)


class AbandonedCarts(ShopThread):
    """The module's cron CheckAbandonedCarts, a minute in CART_SECONDS: publishes each abandoned cart again and again.
    At times a cart changes; at times one becomes an order, and is published once or twice more all the same."""

    def __init__(self, shop: Shop, published: Published, *, carts: int, seed: int, stop: threading.Event) -> None:
        super().__init__("abandoned-carts", shop, seed=seed, stop=stop)
        self._published = published
        self._contents = {Group(TOPIC_CART, CART_NUMBERS + number): 0 for number in range(carts)}
        self._next = CART_NUMBERS + carts
        #: Those that have ended, and how often each is still published
        self._ending: dict[Group, int] = {}
        self._over = threading.Event()

    def _work(self) -> None:
        while not self._over.wait(CART_SECONDS) and not self._stop_asked.is_set():
            for cart in self._contents:
                if self._random.random() < 0.05:
                    self._contents[cart] += 1
            if self._random.random() < 0.2:
                self._attempt(partial(self._order, cart=self._random.choice([*self._contents])))
            self._attempt(self._publish)

    def end(self) -> None:
        self._over.set()
        self.join()

    def _order(self, connection: Connection, *, cart: Group) -> None:
        with connection.cursor() as cursor:
            # It may not have been published yet.
            cursor.execute(
                "INSERT INTO quote (entity_id, is_active) VALUES (%s, 0) ON DUPLICATE KEY UPDATE is_active = 0",
                (cart.number,),
            )
        # Before COMMIT: a worker may see it at once, and if its answer is lost, nobody knows.
        self._published.ended.setdefault(cart, float("inf"))
        connection.commit()
        self._published.ended[cart] = min(self._published.ended[cart], time.monotonic())
        del self._contents[cart]
        self._ending[cart] = self._random.randint(1, 2)
        self._contents[Group(TOPIC_CART, self._next)] = 0
        self._next += 1

    def _publish(self, connection: Connection) -> None:
        publisher = Publisher(connection, prefix=self._shop.prefix)
        carts = {**self._contents, **dict.fromkeys(self._ending, -1)}
        ids = [publish(publisher, self._published, cart, carts[cart], self._random) for cart in carts]
        connection.commit()
        self._published.committed_at.update(dict.fromkeys(ids, time.monotonic()))
        self._published.committed += len(ids)
        self._ending = {cart: left - 1 for cart, left in self._ending.items() if left > 1}


def publish_again(shop: Shop, published: Published, known: Sequence[Group], *, seed: int) -> None:
    """Two messages for each; half of the older ones are taken by a PHP consumer that dies."""
    chance = random.Random(seed)
    connection = shop.connect(autocommit=False)
    try:
        publisher = Publisher(connection, prefix=shop.prefix)
        for number in range(2):
            ids = [publish(publisher, published, group, chance.randrange(3), chance) for group in known]
            for message_id in ids:
                if not number and chance.random() < 0.5:
                    die_with(publisher, published, message_id)
            connection.commit()
            published.committed_at.update(dict.fromkeys(ids, time.monotonic()))
    finally:
        connection.close()


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
            published.orphans.pop(ids[-1], None)
        connection.commit()
        published.committed_at.update(dict.fromkeys(ids, time.monotonic()))
    finally:
        connection.close()
