"""Publishes messages with the statements that Magento sends, in the bytes that PHP's json_encode() writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

import pymysql

from zithara_worker.errors import ShopError
from zithara_worker.processors import identify
from zithara_worker.queue import queues
from zithara_worker.queue.statuses import Status
from zithara_worker.sandbox import examples
from zithara_worker.topics import CART, TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER, TOPIC_TABLE, TOPIC_WEBHOOK


class Published(NamedTuple):
    #: queue_message_status.id
    relation_id: int
    #: queue_message.id
    message_id: int


def stored_body(payload: Any) -> str:
    """The text of queue_message.body after an observer publishes `payload` on one of the module's topics.

    The observer encodes its array to a string, and Magento's MessageEncoder encodes that string once more, because
    the topics are declared with request="string". A `payload` of type str counts as the string already published.
    """
    return queues.stored_body(payload if isinstance(payload, str) else php_json_encode(payload))


def php_json_encode(value: Any) -> str:
    """`value` as PHP would encode it: / and everything outside ASCII escaped, no spaces, 10.0 as 10, 1e25 as 1.0e+25.

    A dict stands for a PHP object or an array with string keys, a list for a PHP list. PHP encodes an empty array as
    [], so pass [] and not {} there.
    Raises TypeError for a type that JSON does not have, ValueError for NaN and infinities.
    """
    if value is None or isinstance(value, (bool, int)):
        return json.dumps(value)
    if isinstance(value, str):
        return queues.stored_body(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{php_json_encode(str(key))}:{php_json_encode(v)}" for key, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(php_json_encode, value)) + "]"
    raise TypeError(f"{type(value).__name__} has no JSON: {value!r}")


def _number(value: float) -> str:
    """The shortest digits that give the number back (serialize_precision -1, PHP's default since 7.1)."""
    digits = json.dumps(value, allow_nan=False)
    if "e" not in digits:
        return digits.removesuffix(".0")
    mantissa, _, power = digits.partition("e")
    exponent = int(power)
    if exponent == 16:  # Python turns to exponents at 1e16, PHP at 1e17
        return format(Decimal(digits), "f")
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent:+d}"


class Publisher:
    """Publishes like the shop: in autocommit mode each statement by itself, else in the connection's transaction.

    Source of the statements: Magento\\MysqlMq\\Model\\ResourceModel\\Queue (saveMessage, linkMessagesWithQueues).
    `queue` defaults to the topic's queue in the module; another name stands for another topology.
    """

    def __init__(self, connection: pymysql.connections.Connection[Any], *, prefix: str = "") -> None:
        self._publishing_connection = connection
        self._prefix = prefix

    def publishing_connection(self) -> pymysql.connections.Connection[Any]:
        """The connection to publish on. `Shop` opens a new one if it was lost."""
        return self._publishing_connection

    def publish(self, topic: str, payload: Any, *, queue: str | None = None) -> Published:
        """Publishes what an observer would pass: an array (dict or list), or its JSON as a string."""
        return self.publish_body(topic, stored_body(payload), queue=queue)

    def publish_body(self, topic: str, body: str | None, *, queue: str | None = None) -> Published:
        """Stores `body` as it is. Raises ShopError if the queue has no row; Magento would lose the message then."""
        name = queue or _queue_of(topic)
        with self.publishing_connection().cursor() as cursor:
            self._insert_carts(cursor, topic, [body])
            cursor.execute(f"INSERT INTO {self._prefix}queue_message (topic_name, body) VALUES (%s, %s)", (topic, body))
            message_id = int(cursor.lastrowid)
            cursor.execute(f"SELECT queue.*, id FROM {self._prefix}queue AS queue WHERE queue.name IN (%s)", (name,))
            rows = cursor.fetchall()
            if not rows:
                raise ShopError(f"queue {name!r} has no row in table {self._prefix}queue: add it with add_queue()")
            cursor.execute(
                f"INSERT INTO {self._prefix}queue_message_status (queue_id, message_id, status) VALUES (%s, %s, %s)",
                (rows[0][0], message_id, int(Status.NEW)),
            )
            return Published(relation_id=int(cursor.lastrowid), message_id=message_id)

    def publish_bodies(self, topic: str, bodies: Iterable[str], *, queue: str | None = None) -> int:
        """Stores many bodies with few statements, and returns how many. The rows equal those that Magento writes.

        Nobody else may publish on the topic meanwhile, because all its new rows are linked to the queue.
        """
        name = queue or _queue_of(topic)
        with self.publishing_connection().cursor() as cursor:
            cursor.execute(f"SELECT COALESCE(MAX(id), 0) FROM {self._prefix}queue_message")
            newest = cursor.fetchone()[0]
            stored = list(bodies)
            self._insert_carts(cursor, topic, stored)
            count = cursor.executemany(
                f"INSERT INTO {self._prefix}queue_message (topic_name, body) VALUES (%s, %s)",
                [(topic, body) for body in stored],
            )
            cursor.execute(
                f"INSERT INTO {self._prefix}queue_message_status (queue_id, message_id, status) "
                f"SELECT q.id, m.id, %s FROM {self._prefix}queue_message m JOIN {self._prefix}queue q ON q.name = %s "
                "WHERE m.id > %s AND m.topic_name = %s ORDER BY m.id",
                (int(Status.NEW), name, newest, topic),
            )
        return int(count or 0)

    def save_carts(self, topic: str, bodies: Iterable[str | None]) -> None:
        """The rows of `quote` that these messages are about, for messages that are published elsewhere. Nothing for
        other topics."""
        with self.publishing_connection().cursor() as cursor:
            self._insert_carts(cursor, topic, bodies)

    def _insert_carts(self, cursor: Any, topic: str, bodies: Iterable[str | None]) -> None:
        """A message of a cart comes with the cart: its row of `quote`, active unless it was there before."""
        if topic != TOPIC_CART:
            return
        groups = {identify(topic, 0, body or "")[0].partition(":") for body in bodies}
        carts = [int(name) for kind, _, name in groups if kind == CART.entity and name.isdecimal()]
        ids = [id for id in sorted(carts) if 0 < id < 2**32]
        cursor.executemany(f"INSERT IGNORE INTO {self._prefix}quote (entity_id) VALUES (%s)", [(id,) for id in ids])

    def publish_order(self, increment_id: str = "000000101", **overrides: Any) -> Published:
        """See `examples.order`."""
        return self.publish(TOPIC_ORDER, examples.order(increment_id, **overrides))

    def publish_customer(self, platform_customer_id: str = "42", **overrides: Any) -> Published:
        """See `examples.customer`."""
        return self.publish(TOPIC_CUSTOMER, examples.customer(platform_customer_id, **overrides))

    def publish_cart(self, platform_cart_id: str = "7001", **overrides: Any) -> Published:
        """See `examples.cart`."""
        return self.publish(TOPIC_CART, examples.cart(platform_cart_id, **overrides))

    def publish_webhook(self, event_type: str = "order_payment", **overrides: Any) -> Published:
        """See `examples.webhook`."""
        return self.publish(TOPIC_WEBHOOK, examples.webhook(event_type, **overrides))

    def publish_samples(self, samples: Iterable[tuple[str, Mapping[str, Any]]] = examples.SAMPLES) -> list[Published]:
        return [self.publish(topic, payload) for topic, payload in samples]


def _queue_of(topic: str) -> str:
    """The module's queue of the topic, else a queue with the topic's name, as the worker resolves it."""
    known = TOPIC_TABLE.get(topic)
    return known.queue if known else topic
