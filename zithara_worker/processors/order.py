"""zithara.order.events -> POST /order (a new order) or PATCH /order (an update: the order part alone).

An update of an order that the API does not know is sent as its create, if it has items: see `as_create`.

The message is what the module's OrderCreate observer publishes; the request has the fields, the spelling and the
defaults of its OrderProcessor, as tests/fixtures/plugin-cases.jsonl records them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from zithara_worker import reasons
from zithara_worker.errors import MessageRejected
from zithara_worker.messages import Entity, Event, Request
from zithara_worker.processors import fields, groups
from zithara_worker.processors.context import ShopContext
from zithara_worker.processors.fields import Row
from zithara_worker.processors.phone import INDIA, international
from zithara_worker.topics import ORDER

#: Magento's states and statuses that have another name at Zithara, by their lower-cased text; the rest are passed on.
_ZITHARA_STATUS = {
    "pending": "pending",
    "processing": "processing",
    "complete": "completed",
    "canceled": "cancelled",
}


def group_key(event: Event, message_id: int) -> str:
    order = fields.row_or_nothing(event.payload.get("order"))
    return groups.entity_key(ORDER.entity, order.get("increment_id")) or groups.own_key(message_id)


def process(event: Event, shop: ShopContext) -> Request:
    """Raises MessageRejected: missing_field, wrong_type, not_a_number, order_without_items."""
    message = event.payload
    order = fields.required_row(message, "order", "")
    order_id = fields.required_text(order, "increment_id", "order")
    payment = fields.row(message, "payment", "")
    billing = fields.row(message, "billing_address", "")
    created_at = fields.scalar(order, "created_at", "order", default=shop.time_or_now(order.get("updated_at")))

    order_part = _order_part(message, order, order_id, payment, billing, created_at)

    entity = Entity(
        updated_at=_own_time(order),
        is_create=fields.is_empty(message.get("is_update")),
        state=order_part,
    )
    if not entity.is_create:
        return Request(target=ORDER.target, method="PATCH", path=ORDER.path, json=order_part, entity=entity)
    body = {
        "customer": _customer(order, billing),
        "order_line_item": _line_items(message),
        "order": order_part,
        "transactions": [_transaction(order, order_id, payment, created_at)],
    }
    return Request(target=ORDER.target, method="POST", path=ORDER.path, json=body, entity=entity)


def _own_time(order: Row) -> str:
    """The order's `updated_at` if it is a time as Magento's database writes it, else ""."""
    text = order.get("updated_at")
    if not isinstance(text, str):
        return ""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return ""
    return text if moment.year >= 1000 and moment.isoformat(" ") == text else ""


def as_create(event: Event) -> Event:
    """The same order as a message that creates it: an update has all that a create needs, except perhaps the items."""
    return Event(topic=event.topic, payload={**event.payload, "is_update": False})


def _order_part(
    message: Row, order: Row, order_id: str, payment: Row, billing: Row, created_at: fields.Scalar
) -> dict[str, Any]:
    state = _status(order, "state")
    amount_paid = fields.number(payment, "amount_paid", "payment")
    return {
        "status": state,
        "current_subtotal_price": fields.number(order, "subtotal", "order"),
        "billing_address": _address(billing, "billing_address"),
        "payment_status": "paid" if amount_paid > 0 else "",
        "currency": fields.scalar(order, "currency_code", "order", default="INR"),
        "platform_order_id": order_id,
        "name": order_id,
        "current_total_tax": fields.number(order, "tax_amount", "order"),
        "created_at": created_at,
        "custom_attributes": {
            "cashback_amount": 0.0,
            "cashback_redeemption_order": False,
            "pos_reference": order_id,
            "card_order": False,
            "cashback_redeemption_amount": 0.0,
            "card_no": False,
        },
        "note": False,
        "fulfillment_status": state,
        "current_total_discounts": fields.number(order, "discount_amount", "order"),
        "current_total_price": fields.number(order, "grand_total", "order"),
        "shipping_address": _address(fields.row(message, "shipping_address", ""), "shipping_address"),
    }


def _customer(order: Row, billing: Row) -> dict[str, Any]:
    first_name = fields.scalar(order, "customer_firstname", "order")
    last_name = fields.scalar(order, "customer_lastname", "order")
    customer_id = fields.text(order, "customer_id", "order")
    telephone = fields.text(billing, "telephone", "billing_address")
    country = fields.text(billing, "country_id", "billing_address") or INDIA
    phone_number = international(telephone, country)
    return {
        # A guest's order has '' or 0.
        "platform_customer_id": "" if fields.is_empty(customer_id) else customer_id,
        "phone_number": phone_number,
        "first_name": first_name,
        "last_name": last_name,
        "name": fields.full_name(order, "customer_firstname", "customer_lastname", "order"),
        "whatsapp_phone_number": phone_number,
        "email": fields.scalar(order, "customer_email", "order", default=False),
        "custom_attributes": {},
    }


def _line_items(message: Row) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for index, item in enumerate(fields.rows(message, "items", "")):
        path = f"items.{index}"
        item_id = fields.text(item, "item_id", path)
        if fields.is_empty(item_id):
            continue
        lines.append(
            {
                "status": "",
                "platform_line_item_id": item_id,
                "price": fields.number(item, "price", path),
                "taxable": fields.number(item, "tax_amount", path) > 0,
                "discount_amount": fields.number(item, "discount_amount", path),
                "sku": fields.scalar(item, "sku", path),
                "product_id": fields.scalar(item, "product_id", path),
                "gift_card": False,
                "custom_attributes": {},
                "product_name": fields.scalar(item, "name", path),
                "quantity": fields.number(item, "qty_ordered", path, default=1),
            }
        )
    if not lines:
        raise MessageRejected(
            reasons.ORDER_WITHOUT_ITEMS,
            "items holds no item with an item_id, and Zithara takes no new order without one; "
            "look at the order in the shop",
        )
    return lines


def _transaction(order: Row, order_id: str, payment: Row, created_at: fields.Scalar) -> dict[str, Any]:
    total = fields.number(order, "grand_total", "order")
    return {
        "status": _status(order, "status"),
        "transaction_final_amount": fields.number(payment, "amount_paid", "payment", default=total),
        "custom_attributes": {},
        "transaction_mode": fields.scalar(payment, "method", "payment", default="Unknown"),
        "created_at": created_at,
        "platform_transaction_id": fields.scalar(payment, "last_trans_id", "payment", default=order_id),
        "transaction_original_amount": fields.number(payment, "amount_authorized", "payment", default=total),
        "financial_status": "",
        "transaction_type": "",
    }


def _address(address: Row, path: str) -> dict[str, Any]:
    if not address:
        return {}
    return {
        "address1": fields.scalar(address, "street", path),
        "city": fields.scalar(address, "city", path),
        "province": fields.scalar(address, "region", path),
        "zip": fields.scalar(address, "postcode", path),
        "country": fields.scalar(address, "country_id", path),
        "phone": fields.scalar(address, "telephone", path),
    }


def _status(order: Row, name: str) -> fields.Scalar:
    value = fields.scalar(order, name, "order")
    return _ZITHARA_STATUS.get(value.lower(), value) if isinstance(value, str) else value
