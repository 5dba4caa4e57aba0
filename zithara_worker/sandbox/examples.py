"""Payloads as the module's observers publish them, for the sandbox and for tests.

Each builder returns a complete, valid payload. Keywords replace or add top-level values of its main part.
Source of the shapes: zithara/webhook 1.0.3: OrderSave, CustomerSave, CartSave, Helper\\Data::sendWebhook.
"""

from __future__ import annotations

from typing import Any

from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER, TOPIC_WEBHOOK

_ADDRESS = {
    "firstname": "Ananya",
    "lastname": "Iyer",
    "street": "14 Brigade Road\nFlat 3/B",
    "city": "Bengaluru",
    "region": "Karnataka",
    "postcode": "560001",
    "country_id": "IN",
    "telephone": "9845012345",
    "email": "ananya.iyer@example.com",
}


def order(increment_id: str = "000000101", *, is_update: bool = False, **overrides: Any) -> dict[str, Any]:
    """An order of one item; `overrides` go into its `order` part, except `items`, `payment` and the two addresses."""
    parts = {
        "payment": {
            "method": "cashondelivery",
            "amount_ordered": 1499.0,
            "last_trans_id": None,
            "additional_information": {"method_title": "Cash On Delivery"},
        },
        "items": [
            {
                "item_id": "501",
                "product_id": "77",
                "sku": "KURTA-INDIGO-M",
                "name": "Handloom Kurta, indigo/white",
                "qty_ordered": 1,
                "price": 1299.0,
                "base_price": 1299.0,
                "row_total": 1299.0,
                "tax_amount": 150.0,
                "discount_amount": 0,
                "product_type": "simple",
            }
        ],
        "billing_address": dict(_ADDRESS),
        "shipping_address": dict(_ADDRESS),
    }
    parts = {name: overrides.pop(name, value) for name, value in parts.items()}
    row = {
        "entity_id": 101,
        "order_id": 101,
        "increment_id": increment_id,
        "state": "new",
        "status": "pending",
        "customer_id": "42",
        "customer_email": "ananya.iyer@example.com",
        "customer_firstname": "Ananya",
        "customer_lastname": "Iyer",
        "currency_code": "INR",
        "subtotal": 1299.0,
        "tax_amount": 150.0,
        "discount_amount": 0,
        "shipping_amount": 50.0,
        "grand_total": 1499.0,
        "total_paid": 0,
        "created_at": "2026-11-02 10:15:30",
        "updated_at": "2026-11-02 10:15:31",
    }
    return {"order": {**row, **overrides}, **parts, "is_update": is_update}


def customer(platform_customer_id: str = "42", **overrides: Any) -> dict[str, Any]:
    """A registered customer, flat as CustomerSave publishes it; pass `is_update=True` for CustomerEdit's message."""
    return {
        "platform_customer_id": platform_customer_id,
        "phone_number": "9845012345",
        "first_name": "Ananya",
        "last_name": "Iyer",
        "name": "Ananya Iyer",
        "whatsapp_phone_number": "919845012345",
        "email": "ananya.iyer@example.com",
        "custom_attributes": {"mobilenumber": "98450 12345", "loyalty_tier": "silver"},
        **overrides,
    }


def cart(platform_cart_id: str = "7001", **overrides: Any) -> dict[str, Any]:
    """A cart of one item as CartSave publishes it; `overrides` go into `cart`, except `customer` and `cart_item`."""
    buyer = {
        "platform_customer_id": "42",
        "first_name": "Ananya",
        "last_name": "Iyer",
        "name": "Ananya Iyer",
        "whatsapp_phone_number": "919845012345",
        "email": "ananya.iyer@example.com",
        "custom_attributes": {},
    }
    items = [{"platform_cart_item_id": "9001", "price": 1299.0, "product_id": "77", "quantity": 1}]
    return {
        "customer": overrides.pop("customer", buyer),
        "cart_item": overrides.pop("cart_item", items),
        "cart": {
            "currency": "INR",
            "platform_cart_id": platform_cart_id,
            "name": f"CART/{platform_cart_id}",
            "created_at": "2026-11-02 09:00:00",
            "total_tax": 150.0,
            "total_price": 1449.0,
            "shopify_customer_id": "42",
            **overrides,
        },
    }


def webhook(event_type: str = "order_payment", *, payload: Any = None, **overrides: Any) -> dict[str, Any]:
    """An event for the shop's webhook URL; `overrides` replace config_id (1) and timestamp (Unix seconds)."""
    return {
        "config_id": 1,
        "event_type": event_type,
        "payload": {"order_id": "000000101", "amount": "1499.0000"} if payload is None else payload,
        "timestamp": 1795435200,
        **overrides,
    }


#: The messages that the sandbox publishes at its start.
SAMPLES: tuple[tuple[str, dict[str, Any]], ...] = (
    (TOPIC_ORDER, order()),
    (TOPIC_ORDER, order(is_update=True, state="complete", status="complete", total_paid="1499.0000")),
    (TOPIC_CUSTOMER, customer()),
    (TOPIC_CART, cart()),
    (TOPIC_CART, cart("7002", customer=[], shopify_customer_id=None)),
    (TOPIC_WEBHOOK, webhook()),
    (TOPIC_WEBHOOK, webhook("customer_login", payload={"customer_id": "42", "email": "ananya.iyer@example.com"})),
)
