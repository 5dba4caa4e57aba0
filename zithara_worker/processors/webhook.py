"""zithara.webhook.events -> POST of the payload to the shop's webhook URL, with the event's type in a header.

Helper\\Data::sendWebhook publishes `config_id`, `event_type`, `payload`, `timestamp`. Whether the URL may be called
(scheme, host) is checked when the request is sent.
"""

from __future__ import annotations

import re

from zithara_worker import reasons
from zithara_worker.errors import MessageRejected
from zithara_worker.messages import Event, Request, Skip
from zithara_worker.processors import fields, groups
from zithara_worker.processors.context import ShopContext
from zithara_worker.processors.fields import Row
from zithara_worker.topics import CART, CUSTOMER, ORDER, WEBHOOK

#: What may stand in an HTTP header: a line break would end it.
_HEADER_VALUE = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?")
_INTEGER = re.compile(r"[0-9]{1,18}")


def group_key(event: Event, message_id: int) -> str:
    """By the entity the payload is about, always under its entity id: an order, else a cart, else a customer.

    Orders come first because they also name their quote and customer, and carts name their customer. Where the
    observers put the ids: payment_* events say `order_id`, order_payment and order_refund nest the `order`,
    update_order and cancel_order send the order's own columns, cart_* and quote_update say `quote_id`,
    customer_create, customer_login and customer_logout say `customer_id`, delete_customer nests the `customer`.
    Visitor events name none of them.
    """
    payload = fields.row_or_nothing(event.payload.get("payload"))
    return (
        groups.entity_key(ORDER.entity, *_order_ids(payload))
        or groups.entity_key(CART.entity, *_nested_ids(payload, "quote_id", "quote"))
        or groups.entity_key(CUSTOMER.entity, *_nested_ids(payload, "customer_id", "customer"))
        or groups.own_key(message_id)
    )


def process(event: Event, shop: ShopContext) -> Request | Skip:
    """Skips with no_webhook_url. Raises MessageRejected: missing_field, wrong_type, invalid_event_type,
    unknown_config_id."""
    message = event.payload
    event_type = fields.required_text(message, "event_type", "")
    if not _HEADER_VALUE.fullmatch(event_type):
        raise MessageRejected(
            reasons.INVALID_EVENT_TYPE,
            "event_type must be at most 255 visible ASCII characters, it is sent as the header X-Webhook-Event; "
            "find the program that publishes this message",
        )
    payload = message.get("payload")
    if payload is None:
        raise fields.missing("payload", "")
    if not isinstance(payload, (dict, list)):
        raise fields.wrong_type(payload, "payload", "", "an object")
    _check_config_id(message, shop)
    if not shop.webhook_url:
        return Skip(reason=reasons.NO_WEBHOOK_URL)
    # Only at this level does the module mean an object; custom_attributes further inside are sent unchanged.
    if isinstance(payload, dict) and isinstance(payload.get("custom_attributes"), list):
        payload = {**payload, "custom_attributes": fields.as_object(payload["custom_attributes"])}
    return Request(
        target=WEBHOOK.target,
        method="POST",
        path=shop.webhook_url,
        json=payload,
        headers={"X-Webhook-Event": event_type},
        idempotent=False,
    )


def _check_config_id(message: Row, shop: ShopContext) -> None:
    """A message without a config_id is meant for the active row. So is one whose row exists but is no longer active."""
    written = fields.text(message, "config_id", "")
    if not written or shop.config_ids is None:
        return
    config_id = int(written) if _INTEGER.fullmatch(written) else None
    if config_id is None or (config_id not in shop.config_ids and config_id != shop.active_config_id):
        raise MessageRejected(
            reasons.UNKNOWN_CONFIG_ID,
            f"config_id {written[:20]!r} names no row of zithara_webhook_config; "
            "restore that row, or discard the message",
        )


def _order_ids(payload: Row) -> tuple[object, ...]:
    order = fields.row_or_nothing(payload.get("order"))
    payment = fields.row_or_nothing(payload.get("payment"))
    return (
        payload.get("order_id"),
        order.get("entity_id"),
        order.get("order_id"),
        # entity_id alone could belong to any entity; beside an increment_id it is the order's.
        payload.get("entity_id") if "increment_id" in payload else None,
        # sales_order_payment.parent_id is the order.
        payment.get("parent_id"),
    )


def _nested_ids(payload: Row, id_name: str, name: str) -> tuple[object, ...]:
    nested = fields.row_or_nothing(payload.get(name))
    return payload.get(id_name), nested.get("entity_id"), nested.get("id"), nested.get(id_name)
