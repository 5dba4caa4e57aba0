"""Reads the shop's carts. Source: Magento_Quote's etc/db_schema.xml, table `quote`."""

from __future__ import annotations

from collections.abc import Collection

from zithara_worker.database.session import Database


def active_carts(database: Database, cart_ids: Collection[int]) -> dict[int, bool]:
    """Cart id -> whether the cart is active: not ordered, and not merged into another. A cart that does not exist, or
    whose transaction is not committed, is left out. Raises ShopError where the table cannot be read."""
    rows = database.rows("carts_active", ids=sorted(set(cart_ids)))
    return {int(row["entity_id"]): bool(row["is_active"]) for row in rows}
