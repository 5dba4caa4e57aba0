"""The demonstration counts what is in the database and in the API's record: it cannot say "0 lost" when one is."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from zithara_worker.sandbox.api import FakeZithara
from zithara_worker.sandbox.demo import Day, Workers, absent, told
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.session import Sandbox
from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.shop_tables import ShopTables


def post(api: FakeZithara, path: str, body: object, name: str = "") -> None:
    key = {"Authorization": api.issue_token(), "Idempotency-Key": f"{name}-{'0' * 16}"}
    assert httpx.post(f"{api.base_url}{path}", json=body, headers=key).status_code == 200


def test_a_lost_message_is_in_the_verdict_and_in_the_exit_code(
    mariadb: MariaDbServer, shop: Shop, api: FakeZithara, capsys: pytest.CaptureFixture[str]
) -> None:
    sandbox = Sandbox(
        server=mariadb, shop=shop, tables=ShopTables(shop), api=api, config=Path("w"), operator_config=Path("o")
    )
    day = Day(sandbox, Workers(sandbox))
    published = [shop.publish_order(f"{number:09d}") for number in range(3)]
    shop.query("UPDATE {prefix}queue_message_status SET status = 4")
    for row in published[:2]:
        post(api, "/order", {}, f"zithara_order_queue-{row.message_id}")
    assert told(day.judge([]), [], {"orders": (3, 0)}) == 1
    printed = capsys.readouterr().out
    assert "VERDICT: 1 lost, 0 out of order, 0 otherwise wrong" in printed
    assert f"WRONG  zithara_order_queue-{published[2].message_id} must be delivered, but is skipped" in printed

    post(api, "/order", {}, f"zithara_order_queue-{published[2].message_id}")
    assert told(day.judge([]), [], {"orders": (3, 0)}) == 0
    assert "VERDICT: nothing lost" in capsys.readouterr().out


def test_what_the_api_was_never_told_of_is_named_whatever_reconcile_says(shop: Shop, api: FakeZithara) -> None:
    tables = ShopTables(shop)
    tables.create(rows=False)
    tables.place_order("000000007")
    customer, cart = tables.save_customer(), tables.open_cart()
    tables.open_cart(is_active=0)
    assert absent(shop, api) == [
        "the API was never told of these orders: 000000007",
        f"the API was never told of these customers: {customer}",
        f"the API was never told of these carts: {cart}",
    ]
    post(api, "/order", {"order": {"platform_order_id": "000000007"}})
    post(api, "/customer", {"platform_customer_id": str(customer)})
    post(api, "/cart", {"cart": {"platform_cart_id": str(cart)}})
    assert absent(shop, api) == []
