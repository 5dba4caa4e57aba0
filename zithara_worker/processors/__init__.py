"""The meaning of each topic's event: body -> Event -> Request, and the message group that keeps its order.

Everything here is pure: no I/O, no clock, no settings, no state but a bounded cache of telephone numbers. The two
entry points are `identify`, for whoever claims messages, and `process`, for whoever delivers them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from zithara_worker import reasons
from zithara_worker.errors import MessageRejected
from zithara_worker.messages import Event, Rejection, Request, Skip
from zithara_worker.processors import cart, customer, groups, order, webhook
from zithara_worker.processors.coalescing import outline, supersedes
from zithara_worker.processors.context import ShopContext
from zithara_worker.processors.decoding import decode
from zithara_worker.processors.order import as_create
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER, TOPIC_WEBHOOK, TOPICS

__all__ = [
    "PROCESSORS",
    "Processor",
    "ShopContext",
    "as_create",
    "decode",
    "identify",
    "outline",
    "process",
    "supersedes",
]


class Processor(NamedTuple):
    """What there is to know about one topic.

    `group_key(event, message_id)` never raises and is at most 191 visible ASCII characters;
    `process(event, shop)` raises MessageRejected and does not change the event.
    """

    group_key: Callable[[Event, int], str]
    process: Callable[[Event, ShopContext], Request | Skip]


PROCESSORS: dict[str, Processor] = {
    TOPIC_ORDER: Processor(order.group_key, order.process),
    TOPIC_CUSTOMER: Processor(customer.group_key, customer.process),
    TOPIC_CART: Processor(cart.group_key, cart.process),
    TOPIC_WEBHOOK: Processor(webhook.group_key, webhook.process),
}


def identify(topic: str, message_id: int, body: str) -> tuple[str, Event | Rejection]:
    """A stored body's message group, and the event in it or why there is none. Never raises.

    `message_id` is queue_message.id: what can be told to belong to no entity is a group of its own under it.
    """
    processor = PROCESSORS.get(topic)
    if processor is None:
        return groups.own_key(message_id), _unknown_topic(topic)
    content = decode(topic, body)
    if isinstance(content, Rejection):
        return groups.own_key(message_id), content
    return processor.group_key(content, message_id), content


def process(event: Event, shop: ShopContext) -> Request | Skip | Rejection:
    """The request an event becomes, or why it becomes none. A bug in a processor raises: it is not the message's."""
    processor = PROCESSORS.get(event.topic)
    if processor is None:
        return _unknown_topic(event.topic)
    try:
        return processor.process(event, shop)
    except MessageRejected as rejected:
        return Rejection(code=rejected.code, detail=rejected.detail)


def _unknown_topic(topic: str) -> Rejection:
    detail = f"there is no processor for topic {topic[:100]!r}; the topics are {', '.join(TOPICS)}"
    return Rejection(code=reasons.UNKNOWN_TOPIC, detail=detail)
