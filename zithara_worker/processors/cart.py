"""zithara.cart.events -> POST /cart, from either of the two shapes that the module publishes to this topic.

CartSave and the cron CheckAbandonedCarts publish `customer`, `cart_item`, `cart` in the API's words. CartAddProduct
publishes `quote`, `items`, `customer` in Magento's words; the PHP module fails on all of these and loses them.
"""

from __future__ import annotations

from typing import Any

from zithara_worker import reasons
from zithara_worker.messages import Entity, Event, Request, Skip
from zithara_worker.processors import fields, groups
from zithara_worker.processors.context import ShopContext
from zithara_worker.processors.fields import Row
from zithara_worker.processors.phone import international, repaired_indian
from zithara_worker.topics import CART


def group_key(event: Event, message_id: int) -> str:
    """One group for a cart, whichever shape its messages have: platform_cart_id is the quote's entity_id."""
    cart = fields.row_or_nothing(event.payload.get("cart"))
    quote = fields.row_or_nothing(event.payload.get("quote"))
    found = groups.entity_key(CART.entity, cart.get("platform_cart_id"), quote.get("entity_id"))
    return found or groups.own_key(message_id)


def process(event: Event, shop: ShopContext) -> Request | Skip:
    """Skips a cart in which no item has an id: it is empty, or not saved yet; its next save publishes all items.

    Raises MessageRejected: missing_field, wrong_type, not_a_number.
    """
    message = event.payload
    added_to_cart = "quote" in message and "cart" not in message
    build = _added_to_cart if added_to_cart else _saved_cart
    body = build(message, shop)
    if body is None:
        return Skip(reason=reasons.CART_WITHOUT_ITEMS)
    return Request(target=CART.target, method="POST", path=CART.path, json=body, entity=Entity(state=body))


def _saved_cart(message: Row, shop: ShopContext) -> dict[str, Any] | None:
    cart = fields.required_row(message, "cart", "")
    items = _items(message, "cart_item", "platform_cart_item_id", "quantity")
    if not items:
        return None
    cart_id = fields.required_text(cart, "platform_cart_id", "cart")
    customer = fields.row(message, "customer", "")
    name = fields.full_name(customer, "first_name", "last_name", "customer")
    created_at = fields.scalar(cart, "created_at", "cart", default=shop.time_or_now(cart.get("updated_at")))
    return {
        "customer": {
            "platform_customer_id": fields.text(customer, "platform_customer_id", "customer"),
            "first_name": fields.scalar(customer, "first_name", "customer"),
            "last_name": fields.scalar(customer, "last_name", "customer"),
            "name": fields.scalar(customer, "name", "customer", default=name),
            "whatsapp_phone_number": _whatsapp(fields.text(customer, "whatsapp_phone_number", "customer")),
            "email": fields.scalar(customer, "email", "customer", default=False),
            "custom_attributes": {},
        },
        "cart_item": items,
        "cart": {
            "currency": fields.scalar(cart, "currency", "cart", default="INR"),
            "platform_cart_id": cart_id,
            # The observer's own name for a cart is never sent by the module.
            "name": cart_id,
            "created_at": created_at,
            "total_tax": fields.number(cart, "total_tax", "cart"),
            "total_price": fields.number(cart, "total_price", "cart"),
            "shopify_customer_id": _as_text(customer.get("platform_customer_id")),
        },
    }


def _added_to_cart(message: Row, shop: ShopContext) -> dict[str, Any] | None:
    quote = fields.required_row(message, "quote", "")
    items = _items(message, "items", "item_id", "qty")
    if not items:
        return None
    cart_id = fields.required_text(quote, "entity_id", "quote")
    customer = fields.row(message, "customer", "")
    if not customer:
        # A guest: what he or she may have typed stands in the quote itself.
        customer = {
            "customer_id": quote.get("customer_id"),
            "email": quote.get("customer_email"),
            "firstname": quote.get("customer_firstname"),
            "lastname": quote.get("customer_lastname"),
        }
    customer_id = fields.text(customer, "customer_id", "customer")
    created_at = fields.text(quote, "created_at", "quote") or shop.time_or_now(quote.get("updated_at"))
    return {
        "customer": {
            "platform_customer_id": customer_id,
            "first_name": fields.scalar(customer, "firstname", "customer"),
            "last_name": fields.scalar(customer, "lastname", "customer"),
            "name": fields.full_name(customer, "firstname", "lastname", "customer"),
            # This observer passes the telephone number on as it was typed; the message has no country.
            "whatsapp_phone_number": international(fields.text(customer, "telephone", "customer")),
            "email": fields.text(customer, "email", "customer") or False,
            "custom_attributes": {},
        },
        "cart_item": items,
        "cart": {
            "currency": fields.text(quote, "quote_currency_code", "quote") or "INR",
            "platform_cart_id": cart_id,
            "name": cart_id,
            "created_at": created_at,
            # Magento keeps a quote's tax with its addresses, which this message does not have.
            "total_tax": fields.number(quote, "tax_amount", "quote"),
            "total_price": fields.number(quote, "grand_total", "quote"),
            "shopify_customer_id": customer_id or None,
        },
    }


def _whatsapp(number: str) -> str:
    """The observers leave digits only: a number with its '+' comes from elsewhere, and is complete."""
    return international(number) if number.startswith("+") else repaired_indian(number)


def _as_text(id: Any) -> Any:
    """A number as text, so that one state gives one request: Magento has ids as numbers before it has saved them."""
    return fields.number_text(id) if isinstance(id, (int, float)) and not isinstance(id, bool) else id


def _items(message: Row, name: str, id_name: str, quantity_name: str) -> list[dict[str, Any]]:
    if message.get(name) is None:
        raise fields.missing(name, "")
    items = []
    for index, item in enumerate(fields.rows(message, name, "")):
        path = f"{name}.{index}"
        item_id = fields.text(item, id_name, path)
        if fields.is_empty(item_id):
            continue
        items.append(
            {
                "platform_cart_item_id": item_id,
                "price": fields.number(item, "price", path),
                "product_id": _as_text(fields.scalar(item, "product_id", path)),
                "quantity": fields.number(item, quantity_name, path, default=1),
            }
        )
    return items
