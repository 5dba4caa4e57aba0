"""The shop's tables: a real Magento's, with builders whose rows the readers take for real ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.shop_tables import ShopTables, published_messages
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER


@pytest.fixture
def tables(make_shop: Callable[..., Shop]) -> ShopTables:
    made = ShopTables(make_shop(prefix="m2_", worker_tables=False))
    made.create()
    return made


def test_a_prefixed_shop_has_the_rows_and_indexes_of_the_real_one(tables: ShopTables) -> None:
    shop = tables.shop
    assert shop.query("SELECT COUNT(*), MAX(entity_id) FROM m2_sales_order") == [(12, 23)]
    assert shop.query("SELECT customer_firstname, grand_total + 0 FROM m2_sales_order WHERE entity_id = 1") == [
        ("Jürgen", 504.5)
    ]
    indexes = shop.query(
        "SELECT index_name, GROUP_CONCAT(column_name ORDER BY seq_in_index) FROM information_schema.statistics "
        "WHERE table_schema = DATABASE() AND table_name = 'm2_sales_order' GROUP BY index_name"
    )
    assert {"entity_id", "updated_at", "increment_id,store_id"} <= {columns for _, columns in indexes}
    assert ("PRIMARY", "entity_id") in indexes
    tables.clear()
    assert shop.query("SELECT COUNT(*) FROM m2_sales_order") == [(0,)]


def test_generated_orders_are_whole_and_spread_over_the_time(
    tables: ShopTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zithara_worker.sandbox.shop_tables._AT_ONCE", 4)
    first = tables.generate_orders(10, days=10)
    shop = tables.shop
    assert first == 24
    ids = shop.query("SELECT entity_id FROM {prefix}sales_order WHERE entity_id >= %s", (first,))
    assert [id for (id,) in ids] == list(range(24, 34))
    spread = (
        "SELECT DATEDIFF(MAX(updated_at), MIN(updated_at)), COUNT(DISTINCT updated_at), SUM(created_at <> updated_at)"
    )
    assert shop.query(f"{spread} FROM {{prefix}}sales_order WHERE entity_id >= %s", (first,)) == [(9, 10, 0)]
    for table, owner, each in (("item", "order_id", 1), ("payment", "parent_id", 1), ("address", "parent_id", 2)):
        counted = shop.query(
            f"SELECT {owner}, COUNT(*) FROM {{prefix}}sales_order_{table} WHERE {owner} >= %s GROUP BY {owner}",
            (first,),
        )
        assert counted == [(id, each) for id in range(24, 34)], table
    assert tables.generate_orders(1) == 34


def test_the_published_messages_come_in_their_order_without_webhooks() -> None:
    messages = published_messages()
    assert [each.id for each in messages] == sorted({each.id for each in messages})
    assert {each.topic for each in messages} == {TOPIC_ORDER, TOPIC_CUSTOMER, TOPIC_CART}
