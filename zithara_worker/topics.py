"""The module's topics as Magento knows them: queue and PHP consumer of each.

Source: zithara/webhook 1.0.3, etc/queue_topology.xml and etc/queue_consumer.xml.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from zithara_worker.messages import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER, TOPIC_WEBHOOK


class PhpSide(NamedTuple):
    queue: str
    consumer: str


PHP_SIDE: dict[str, PhpSide] = {
    TOPIC_ORDER: PhpSide("zithara_order_queue", "ZitharaOrderConsumer"),
    TOPIC_CUSTOMER: PhpSide("zithara_customer_queue", "ZitharaCustomerConsumer"),
    TOPIC_CART: PhpSide("zithara_cart_queue", "ZitharaCartConsumer"),
    TOPIC_WEBHOOK: PhpSide("zithara_webhook_queue", "ZitharaWebhookConsumer"),
}


def message_code(consumer: str, message_id: int) -> str:
    """The code that a PHP consumer looks up in queue_lock (Magento\\Framework\\MessageQueue\\MessageController)."""
    return hashlib.md5(f"{consumer}-{message_id}".encode(), usedforsecurity=False).hexdigest()
