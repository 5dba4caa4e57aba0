"""The table of topics: all that the worker knows of a topic without looking at a message.

A new topic is a row here and a processor in `processors`. Source of the names: zithara/webhook 1.0.3,
etc/communication.xml, etc/queue_topology.xml and etc/queue_consumer.xml.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from zithara_worker.messages import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """One of the module's topics."""

    #: As it stands in queue_message.topic_name
    name: str
    #: What people may call it instead, in the configuration and on the command line
    short_name: str
    #: The queue that the module declares for it; [queues] may name another
    queue: str
    #: The module's PHP consumer of that queue
    php_consumer: str
    #: Where its requests go, and the path there ("" for webhooks: each message has its own URL)
    target: Target
    path: str
    #: What its messages are about, the first part of their group keys ("order:000000101"). "" for webhooks: the payload
    #: names an order, a customer or a cart
    entity: str


ORDER: Final = Topic(
    name="zithara.order.events",
    short_name="order",
    queue="zithara_order_queue",
    php_consumer="ZitharaOrderConsumer",
    target=Target.API,
    path="/order",
    entity="order",
)
CUSTOMER: Final = Topic(
    name="zithara.customer.events",
    short_name="customer",
    queue="zithara_customer_queue",
    php_consumer="ZitharaCustomerConsumer",
    target=Target.API,
    path="/customer",
    entity="customer",
)
CART: Final = Topic(
    name="zithara.cart.events",
    short_name="cart",
    queue="zithara_cart_queue",
    php_consumer="ZitharaCartConsumer",
    target=Target.API,
    path="/cart",
    entity="cart",
)
WEBHOOK: Final = Topic(
    name="zithara.webhook.events",
    short_name="webhook",
    queue="zithara_webhook_queue",
    php_consumer="ZitharaWebhookConsumer",
    target=Target.WEBHOOK,
    path="",
    entity="",
)

#: By name, in the order in which people list them
TOPIC_TABLE: Final[Mapping[str, Topic]] = MappingProxyType(
    {topic.name: topic for topic in (ORDER, CUSTOMER, CART, WEBHOOK)}
)
TOPICS: Final = tuple(TOPIC_TABLE)
SHORT_NAMES: Final = tuple(topic.short_name for topic in TOPIC_TABLE.values())

TOPIC_ORDER: Final = ORDER.name
TOPIC_CUSTOMER: Final = CUSTOMER.name
TOPIC_CART: Final = CART.name
TOPIC_WEBHOOK: Final = WEBHOOK.name

_FULL_NAMES: Final = {topic.short_name: topic.name for topic in TOPIC_TABLE.values()}


def full_name(word: str) -> str:
    """'zithara.cart.events' for 'cart'; any other text unchanged."""
    return _FULL_NAMES.get(word, word)


def short_name(topic: str) -> str:
    """'cart' for 'zithara.cart.events'; any other text unchanged."""
    return TOPIC_TABLE[topic].short_name if topic in TOPIC_TABLE else topic
