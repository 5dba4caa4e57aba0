"""Puts messages on the queue by the statements that Magento sends, on a connection that it is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pymysql

from zithara_worker.errors import ShopError
from zithara_worker.queue.statuses import Status
from zithara_worker.sandbox import examples
from zithara_worker.sandbox.php_json import php_json_encode
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER, TOPIC_TABLE, TOPIC_WEBHOOK


class Published(NamedTuple):
    #: queue_message_status.id
    relation_id: int
    #: queue_message.id
    message_id: int


def stored_body(payload: Any) -> str:
    """What stands in queue_message.body when an observer publishes `payload` on one of the module's topics.

    The observer encodes its array to a string, and Magento's MessageEncoder encodes that string once more, because
    the topics are declared with request="string". A `payload` that is a str is taken for the string already published.
    """
    return php_json_encode(payload if isinstance(payload, str) else php_json_encode(payload))


class Publisher:
    """Publishes like the shop: in autocommit mode each statement by itself, else in the connection's transaction.

    Source of the statements: Magento\\MysqlMq\\Model\\ResourceModel\\Queue (saveMessage, linkMessagesWithQueues).
    `queue` defaults to the topic's queue in the module; another name stands for another topology.
    """

    def __init__(self, connection: pymysql.connections.Connection[Any], *, prefix: str = "") -> None:
        self._publishing_connection = connection
        self._prefix = prefix

    def publishing_connection(self) -> pymysql.connections.Connection[Any]:
        """The connection to publish on; a shop gives a live one where a lost one was."""
        return self._publishing_connection

    def publish(self, topic: str, payload: Any, *, queue: str | None = None) -> Published:
        """Publishes what an observer would pass: an array (dict, list) or the string made of it."""
        return self.publish_body(topic, stored_body(payload), queue=queue)

    def publish_body(self, topic: str, body: str | None, *, queue: str | None = None) -> Published:
        """Stores `body` as it is. Raises ShopError when the queue has no row, where Magento would lose the message."""
        name = queue or _queue_of(topic)
        with self.publishing_connection().cursor() as cursor:
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
        """Stores many bodies with few statements, for backlogs; how many. Not Magento's way, but the same rows.

        Nobody else may publish the topic meanwhile: the rows are told by being new.
        """
        name = queue or _queue_of(topic)
        with self.publishing_connection().cursor() as cursor:
            cursor.execute(f"SELECT COALESCE(MAX(id), 0) FROM {self._prefix}queue_message")
            newest = cursor.fetchone()[0]
            count = cursor.executemany(
                f"INSERT INTO {self._prefix}queue_message (topic_name, body) VALUES (%s, %s)",
                [(topic, body) for body in bodies],
            )
            cursor.execute(
                f"INSERT INTO {self._prefix}queue_message_status (queue_id, message_id, status) "
                f"SELECT q.id, m.id, %s FROM {self._prefix}queue_message m JOIN {self._prefix}queue q ON q.name = %s "
                "WHERE m.id > %s AND m.topic_name = %s ORDER BY m.id",
                (int(Status.NEW), name, newest, topic),
            )
        return int(count or 0)

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
    """As the worker resolves it: the module's name, else a queue named like the topic."""
    known = TOPIC_TABLE.get(topic)
    return known.queue if known else topic
