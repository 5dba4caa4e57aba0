"""The shop's orders, customers and carts: a real Magento's tables and rows, and builders for more.

`real_shop/tables.json` has tables of a Magento Open Source 2.4.5: all columns but those of passwords, the keys, and the
rows of invented people (what a row does not name is NULL). `real_shop/messages.jsonl` has what the unmodified module
zithara/webhook 1.0.3 published about them, as stored; nothing about the orders 000000001 and 000000011.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from zithara_worker.sandbox.shop import Shop

#: Orders that one statement of `generate_orders` makes.
_AT_ONCE = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedMessage:
    """A message that the module published about the rows."""

    #: queue_message.id in that shop: the order in which they were published
    id: int
    topic: str
    #: queue_message.body
    body: str


def published_messages() -> list[PublishedMessage]:
    """The messages about orders, customers and carts, oldest first."""
    lines = _file("messages.jsonl").splitlines()
    return sorted((PublishedMessage(**json.loads(line)) for line in lines), key=lambda each: each.id)


class ShopTables:
    """The tables of one shop. Builders take columns by name, have defaults for the others, and return the new id."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self._tables: Mapping[str, Any] = json.loads(_file("tables.json"))

    def create(self, *, rows: bool = True) -> None:
        """Creates the tables, `quote` with all its columns in place of the sandbox's smaller one; `rows`: with the rows
        of the real shop."""
        for table, definition in self._tables.items():
            lines = ", ".join([*definition["columns"], *definition["keys"]])
            self.shop.query(f"DROP TABLE IF EXISTS {{prefix}}{table}")
            self.shop.query(f"CREATE TABLE {{prefix}}{table} ({lines}) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4")
            if rows or _is_configuration(table):
                self._insert_rows(table, definition["rows"])

    def clear(self) -> None:
        """Deletes every order, customer and cart, and the shop's own attributes."""
        self.shop.query("DELETE FROM {prefix}eav_attribute WHERE is_user_defined = 1")
        for table in self._tables:
            if not _is_configuration(table):
                self.shop.query(f"DELETE FROM {{prefix}}{table}")

    # --- what happens in a shop -------------------------------------------------------------------------------------

    def place_order(
        self,
        increment_id: str | None = "000000101",
        *,
        items: Iterable[Mapping[str, Any]] = ({},),
        payment: Mapping[str, Any] | None = None,
        billing: Mapping[str, Any] | None = None,
        shipping: Mapping[str, Any] | None = None,
        is_virtual: bool = False,
        **columns: Any,
    ) -> int:
        """An order of a guest with one item; `shipping`: as `billing` unless given, none for a virtual order."""
        order_id = self.insert(
            "sales_order",
            {**_ORDER, "increment_id": increment_id, "is_virtual": int(is_virtual), **columns},
        )
        for item in items:
            self.add_order_item(order_id, **item)
        self.insert("sales_order_payment", {"parent_id": order_id, "method": "checkmo", **(payment or {})})
        addresses = {"billing": billing or {}} if is_virtual else {"shipping": shipping or billing, "billing": billing}
        for address_type, address in addresses.items():
            self.insert(
                "sales_order_address",
                {"parent_id": order_id, "address_type": address_type, **_ADDRESS, **(address or {})},
            )
        return order_id

    def add_order_item(self, order_id: int, **columns: Any) -> int:
        return self.insert("sales_order_item", {"order_id": order_id, **_ORDER_ITEM, **columns})

    def save_customer(self, *, email: str = "priya@example.com", **columns: Any) -> int:
        return self.insert(
            "customer_entity",
            {"website_id": 1, "store_id": 1, "email": email, "firstname": "Priya", "lastname": "Sharma", **columns},
        )

    def add_address(self, customer_id: int, *, is_default: bool = True, **columns: Any) -> int:
        """An address of the customer; `is_default`: for billing and for shipping."""
        names = {"firstname": "Priya", "lastname": "Sharma"}
        id = self.insert("customer_address_entity", {"parent_id": customer_id, **names, **_ADDRESS, **columns})
        if is_default:
            self.change("customer_entity", customer_id, default_billing=id, default_shipping=id)
        return id

    def add_attribute(self, code: str, backend_type: str = "varchar", **columns: Any) -> int:
        """An attribute of customers of the shop's own."""
        of_customers = {"entity_type_id": 1, "attribute_code": code, "backend_type": backend_type, "is_user_defined": 1}
        return self.insert("eav_attribute", {**of_customers, **columns})

    def set_attribute(self, customer_id: int, attribute_id: int, value: Any) -> None:
        [(backend_type,)] = self.shop.query(
            "SELECT backend_type FROM {prefix}eav_attribute WHERE attribute_id = %s", (attribute_id,)
        )
        row = {"entity_id": customer_id, "attribute_id": attribute_id, "value": value}
        self.insert(f"customer_entity_{backend_type}", row)

    def open_cart(
        self,
        *,
        items: Iterable[Mapping[str, Any]] = ({},),
        billing: Mapping[str, Any] | None = None,
        shipping: Mapping[str, Any] | None = None,
        **columns: Any,
    ) -> int:
        """An active cart of a guest who has told an email address."""
        rows = list(items)
        cart_id = self.insert("quote", {**_CART, "items_count": len(rows), **columns})
        for item in rows:
            self.add_cart_item(cart_id, **item)
        for address_type, address in (("billing", billing or {}), ("shipping", shipping or {})):
            self.insert(
                "quote_address", {"quote_id": cart_id, "address_type": address_type, "tax_amount": "0.0000", **address}
            )
        return cart_id

    def add_cart_item(self, cart_id: int, **columns: Any) -> int:
        default = {"quote_id": cart_id, "store_id": 1, "product_id": 1, "qty": "1.0000", "price": "499.5000"}
        return self.insert("quote_item", {**default, **columns})

    def change(self, table: str, id: int, **columns: Any) -> None:
        """Updates a row by its first column; updated_at advances by itself unless it is given, as in Magento."""
        [(key, *_)] = self.shop.query(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = %s "
            "ORDER BY ordinal_position LIMIT 1",
            (f"{self.shop.prefix}{table}",),
        )
        pairs = ", ".join(f"{name} = %s" for name in columns)
        self.shop.query(f"UPDATE {{prefix}}{table} SET {pairs} WHERE {key} = %s", (*columns.values(), id))

    def insert(self, table: str, columns: Mapping[str, Any]) -> int:
        """One row of any of the tables; its id."""
        with self.shop.operator.cursor() as cursor:
            cursor.execute(_insert(f"{self.shop.prefix}{table}", columns), list(columns.values()))
            return int(cursor.lastrowid)

    def settle(self) -> None:
        """Everything was saved an hour ago: long enough for reconcile to judge it, and within all its windows."""
        for table in ("sales_order", "customer_entity", "customer_address_entity", "quote"):
            self.shop.query(f"UPDATE {{prefix}}{table} SET updated_at = NOW() - INTERVAL 1 HOUR")

    # --- many -------------------------------------------------------------------------------------------------------

    def generate_orders(self, count: int, *, days: float = 365.0) -> int:
        """`count` more orders with an item, a payment and both addresses each, by few statements: a million takes about
        a minute. Their times, created_at as updated_at, are spread evenly over the last `days` days, the oldest first.
        Returns the first entity_id."""
        shop = self.shop
        [(before,)] = shop.query("SELECT COALESCE(MAX(entity_id), 0) FROM {prefix}sales_order")
        depth = "max_recursive_iterations" if "mariadb" in shop.server.version.lower() else "cte_max_recursion_depth"
        shop.query(f"SET SESSION {depth} = {_AT_ONCE}")
        for start in range(0, count, _AT_ONCE):
            numbers = (
                f"WITH RECURSIVE numbers (seq) AS (SELECT {start + 1} UNION ALL SELECT seq + 1 FROM numbers "
                f"WHERE seq < {min(start + _AT_ONCE, count)}) "
            )
            for statement in _GENERATED:
                shop.query(
                    statement.format(
                        prefix=shop.prefix,
                        numbers=numbers,
                        id=f"({before} + seq)",
                        time=f"(NOW() - INTERVAL ROUND({days * 86400} * ({count} - seq) / {count}) SECOND)",
                    )
                )
        return int(before) + 1

    def _insert_rows(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows that name the same columns, which a dump's rows mostly do, go by one statement."""
        alike: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
        for row in rows:
            alike.setdefault(tuple(row), []).append(row)
        with self.shop.operator.cursor() as cursor:
            for columns, group in alike.items():
                values = [tuple(row.values()) for row in group]
                cursor.executemany(_insert(f"{self.shop.prefix}{table}", columns), values)


def _is_configuration(table: str) -> bool:
    """Which attributes there are is no content."""
    return table.startswith("eav_")


def _insert(table: str, columns: Iterable[str]) -> str:
    names = list(columns)
    return f"INSERT INTO {table} ({', '.join(f'`{name}`' for name in names)}) VALUES ({', '.join(['%s'] * len(names))})"


def _file(name: str) -> str:
    return resources.files("zithara_worker.sandbox").joinpath("real_shop", name).read_text(encoding="utf-8")


_ORDER = {
    "store_id": 1,
    "state": "new",
    "status": "pending",
    "customer_email": "guest@example.com",
    "customer_firstname": "Meera",
    "customer_lastname": "Nair",
    "customer_is_guest": 1,
    "order_currency_code": "INR",
    "subtotal": "499.5000",
    "tax_amount": "0.0000",
    "discount_amount": "0.0000",
    "shipping_amount": "5.0000",
    "grand_total": "504.5000",
}
_ORDER_ITEM = {
    "store_id": 1,
    "product_id": 1,
    "product_type": "simple",
    "sku": "tea-1",
    "name": "Darjeeling Tea",
    "qty_ordered": "1.0000",
    "price": "499.5000",
    "tax_amount": "0.0000",
    "discount_amount": "0.0000",
}
_CART = {
    "store_id": 1,
    "is_active": 1,
    "customer_email": "guest@example.com",
    "customer_firstname": "Meera",
    "customer_lastname": "Nair",
    "quote_currency_code": "INR",
    "grand_total": "504.5000",
}
_ADDRESS = {
    "firstname": "Meera",
    "lastname": "Nair",
    "street": "12, MG Road\nFlat 4B",
    "city": "Bengaluru",
    "region": "Karnataka",
    "postcode": "560001",
    "country_id": "IN",
    "telephone": "9876543210",
}

#: {id}: the order's entity_id, {time}: its time, {numbers}: the table `numbers` with a row for each order.
_GENERATED = (
    """INSERT INTO {prefix}sales_order
         (entity_id, increment_id, store_id, state, status, customer_email, customer_firstname, customer_lastname,
          order_currency_code, subtotal, tax_amount, discount_amount, grand_total, created_at, updated_at)
       {numbers} SELECT {id}, CONCAT('1', LPAD({id}, 8, '0')), 1, 'complete', 'complete',
         CONCAT('c', {id}, '@example.com'), 'Meera', 'Nair', 'INR', 499.5, 0, 0, 504.5, {time}, {time} FROM numbers""",
    """INSERT INTO {prefix}sales_order_item
         (order_id, store_id, product_id, product_type, sku, name, qty_ordered, price, tax_amount, discount_amount)
       {numbers} SELECT {id}, 1, 1, 'simple', 'tea-1', 'Darjeeling Tea', 1, 499.5, 0, 0 FROM numbers""",
    """INSERT INTO {prefix}sales_order_payment (parent_id, method, amount_paid, amount_authorized)
       {numbers} SELECT {id}, 'checkmo', 504.5, NULL FROM numbers""",
    """INSERT INTO {prefix}sales_order_address
         (parent_id, address_type, firstname, lastname, street, city, region, postcode, country_id, telephone)
       {numbers} SELECT {id}, kinds.kind, 'Meera', 'Nair', '12, MG Road', 'Bengaluru', 'Karnataka', '560001', 'IN',
         CONCAT('98', LPAD({id} MOD 100000000, 8, '0'))
       FROM numbers CROSS JOIN (SELECT 'shipping' AS kind UNION ALL SELECT 'billing') AS kinds""",
)
