"""Reads the shop's carts. Source of the tables: Magento_Quote's etc/db_schema.xml; of the message: the module's cron
CheckAbandonedCarts, as the messages of `sandbox/real_shop` show it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from zithara_worker.database.session import Database
from zithara_worker.processors.phone import INDIA, international
from zithara_worker.shop.entities import Rebuilt, Row, TableReader, by_owner, text
from zithara_worker.topics import CART


def active_carts(database: Database, cart_ids: Collection[int]) -> dict[int, bool]:
    """Cart id -> whether the cart is active: not ordered, and not merged into another. A cart that does not exist, or
    whose transaction is not committed, is left out. Raises ShopError where the table cannot be read."""
    rows = database.rows("carts_active", ids=sorted(set(cart_ids)))
    return {int(row["entity_id"]): bool(row["is_active"]) for row in rows}


class CartReader(TableReader):
    """Active carts with items and an email address, of customers and guests."""

    kind = "carts"
    topic = CART.name

    def build(self, ids: Collection[int]) -> dict[int, Rebuilt]:
        if not ids:
            return {}
        wanted = sorted(ids)
        items = self._parts("carts_items", wanted, owner="quote_id", id="item_id")
        addresses = by_owner(self._rows("carts_addresses", ids=wanted), "quote_id")
        return {
            int(quote["entity_id"]): _rebuilt(
                quote,
                items.get(quote["entity_id"], ()),
                {address["address_type"]: address for address in reversed(addresses.get(quote["entity_id"], ()))},
            )
            for quote in self._rows("carts_rows", ids=wanted)
        }


def _rebuilt(quote: Row, items: Sequence[Row], addresses: Mapping[str, Row]) -> Rebuilt:
    """What the cron publishes, and the other forms that the module gives the same cart: CartSave leaves out the
    children of configurable products, and both take every telephone number for an Indian one."""
    billing, shipping = addresses.get("billing", {}), addresses.get("shipping", {})
    telephone, country = text(billing.get("telephone")) or "", text(billing.get("country_id")) or INDIA
    parents = [item for item in items if item["parent_item_id"] is None]
    payload = _message(quote, items, _number(telephone, country), shipping)
    numbers = dict.fromkeys((_number(telephone, country), _observers_number(telephone)))
    forms = [_message(quote, told, number, shipping) for number in numbers for told in (items, parents)]
    return Rebuilt(payload, tuple(form for at, form in enumerate(forms) if form not in (payload, *forms[:at])))


def _number(telephone: str, country: str) -> str:
    """An Indian number as the observers write it, which the processor repairs; of any other country with its code. ""
    for a text without a digit, of which the observers make "91"."""
    if not re.search("[0-9]", telephone):
        return ""
    digits = international(telephone, country)
    return f"+{digits}" if country != INDIA and digits.isdecimal() else _observers_number(telephone)


def _observers_number(telephone: str) -> str:
    """The digits, with 91 in front unless they begin with it: CartSave and CheckAbandonedCarts, formatPhoneNumber."""
    digits = re.sub(r"[^0-9]", "", telephone)
    return digits if not telephone or digits.startswith("91") else f"91{digits}"


def _message(quote: Row, items: Sequence[Row], whatsapp_phone_number: str, shipping: Row) -> dict[str, Any]:
    customer_id = text(quote["customer_id"])
    first_name, last_name = text(quote["customer_firstname"]) or "", text(quote["customer_lastname"]) or ""
    return {
        "customer": {
            "platform_customer_id": customer_id or "",
            "first_name": first_name,
            "last_name": last_name,
            "name": f"{first_name} {last_name}".strip(" \t\n\r\v\0"),
            "whatsapp_phone_number": whatsapp_phone_number,
            "email": text(quote["customer_email"]),
            "custom_attributes": {},
        },
        "cart_item": [
            {
                "platform_cart_item_id": str(item["item_id"]),
                "price": float(item["price"] or 0),
                "product_id": text(item["product_id"]) or "",
                "quantity": float(item["qty"] or 0),
            }
            for item in items
        ],
        "cart": {
            "currency": text(quote["quote_currency_code"]) or "INR",
            "platform_cart_id": str(quote["entity_id"]),
            "name": text(quote["reserved_order_id"]) or "",
            "created_at": text(quote["created_at"]) or "",
            "total_tax": float(shipping.get("tax_amount") or 0),
            "total_price": float(quote["grand_total"] or 0),
            "shopify_customer_id": customer_id,
        },
    }
