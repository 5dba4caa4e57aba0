"""Reads the shop's orders. Source of the tables: Magento_Sales' etc/db_schema.xml; of the message: the module's
observer OrderCreate, as the messages of `sandbox/real_shop` show it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from zithara_worker.shop.entities import Rebuilt, ShopEntity, TableReader, by_owner, first_by_owner, text
from zithara_worker.topics import ORDER


class OrderReader(TableReader):
    """Orders of every state, guests' and deleted customers' too, by increment_id."""

    kind = "orders"
    topic = ORDER.name

    def build(self, ids: Collection[int]) -> dict[int, Rebuilt]:
        if not ids:
            return {}
        wanted = sorted(ids)
        items = self._parts("orders_items", wanted, owner="order_id", id="item_id")
        payments = first_by_owner(self._rows("orders_payments", ids=wanted), "parent_id")
        addresses = by_owner(self._rows("orders_addresses", ids=wanted), "parent_id")
        return {
            int(order["entity_id"]): Rebuilt(
                _message(
                    order,
                    items.get(order["entity_id"], ()),
                    payments.get(order["entity_id"], {}),
                    {address["address_type"]: address for address in reversed(addresses.get(order["entity_id"], ()))},
                )
            )
            for order in self._rows("orders_rows", ids=wanted)
        }

    def find(self, labels: Collection[str]) -> list[ShopEntity]:
        return self._found(sorted(labels))

    def ambiguous(self, labels: Collection[str]) -> frozenset[str]:
        if not labels:
            return frozenset()
        return frozenset(text(row["label"]) or "" for row in self._rows("orders_ambiguous", labels=sorted(labels)))


def _message(
    order: Mapping[str, Any],
    items: Collection[Mapping[str, Any]],
    payment: Mapping[str, Any],
    addresses: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The create. Amounts are text, as Magento has them after a load; what is NULL is left to the processor's defaults,
    but for text, which the observer makes ''."""
    return {
        "order": {
            **_told(order, "increment_id", "created_at", "updated_at", "state", "status", empty=""),
            **_told(order, "customer_id", "customer_email", "customer_firstname", "customer_lastname", empty=""),
            **_told(order, "grand_total", "subtotal", "tax_amount", "discount_amount", empty=0),
            "currency_code": text(order["order_currency_code"]) or "",
        },
        "payment": _told(payment, "method", "amount_paid", "amount_authorized", "last_trans_id", empty=None),
        "items": [
            {
                **_told(item, "item_id", "product_id", "sku", "name", empty=""),
                **_told(item, "qty_ordered", "price", "tax_amount", "discount_amount", empty=0),
            }
            for item in items
        ],
        "billing_address": _address(addresses.get("billing")),
        "shipping_address": _address(addresses.get("shipping")),
        "is_update": False,
    }


def _told(row: Mapping[str, Any], *names: str, empty: Any) -> dict[str, Any]:
    return {name: empty if row[name] is None else text(row[name]) for name in names} if row else {}


def _address(address: Mapping[str, Any] | None) -> Any:
    """[] where there is none, as PHP writes it: a virtual order has no shipping address."""
    if address is None:
        return []
    return _told(address, "street", "city", "region", "postcode", "country_id", "telephone", empty=None)
