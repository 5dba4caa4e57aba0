"""The meaning of each topic's event: body -> Event -> Request, and the message group that keeps its order.

Everything here is pure: no I/O, no clock, no settings; caches (telephone numbers, outlines) are bounded. The two entry
points are `identify`, which the claim calls, and `process`, which makes the request of a claimed message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from zithara_worker import reasons
from zithara_worker.errors import MessageRejected
from zithara_worker.messages import Event, Rejection, Request, Skip
from zithara_worker.processors import cart, customer, groups, order, webhook
from zithara_worker.processors.context import ShopContext
from zithara_worker.processors.decoding import decode
from zithara_worker.processors.groups import outline, supersedes
from zithara_worker.processors.order import as_create
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER, TOPIC_WEBHOOK, TOPICS

__all__ = [
    "PROCESSORS",
    "Processor",
    "ShopContext",
    "as_create",
    "identify",
    "outline",
    "process",
    "supersedes",
]


class Processor(NamedTuple):
    """How the events of one topic are grouped and turned into requests.

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
    """The message group of a stored body, and its event or why it has none. Never raises.

    A message that names no entity is a group of its own, under `message_id` (queue_message.id).
    """
    processor = PROCESSORS.get(topic)
    if processor is None:
        return groups.own_key(message_id), _unknown_topic(topic)
    content = decode(topic, body)
    if isinstance(content, Rejection):
        return groups.own_key(message_id), content
    return processor.group_key(content, message_id), content


def process(event: Event, shop: ShopContext) -> Request | Skip | Rejection:
    """The request that an event becomes, or why it becomes none. A defect of a processor raises: the message is not to
    blame."""
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
