"""Orders: what the recorded cases do not show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from zithara_worker import reasons
from zithara_worker.messages import Event, Rejection, Request
from zithara_worker.processors import ShopContext, process
from zithara_worker.topics import TOPIC_ORDER


def message(**parts: Any) -> dict[str, Any]:
    """A small new order; `order` adds to the default columns, any other part replaces the default one."""
    order = {"increment_id": "000000900", "state": "new", "status": "pending", "grand_total": "10.0000"}
    defaults = {
        "payment": {"method": "checkmo"},
        "items": [{"item_id": "9", "product_id": "1", "sku": "S", "name": "N", "qty_ordered": 1, "price": "10.0000"}],
        "billing_address": {"telephone": "9876543210", "country_id": "IN"},
        "shipping_address": [],
        "is_update": False,
    }
    return {**defaults, **parts, "order": {**order, **parts.get("order", {})}}


def sent(shop: ShopContext, **parts: Any) -> Request:
    result = process(Event(topic=TOPIC_ORDER, payload=message(**parts)), shop)
    assert isinstance(result, Request), result
    return result


def rejected(shop: ShopContext, payload: dict[str, Any]) -> Rejection:
    result = process(Event(topic=TOPIC_ORDER, payload=payload), shop)
    assert isinstance(result, Rejection), result
    return result


@pytest.mark.parametrize("flag", [True, 1, "1", "false", [0]])
def test_a_true_flag_in_phps_sense_makes_an_update(shop: ShopContext, flag: Any) -> None:
    request = sent(shop, is_update=flag)
    assert (request.method, request.path, request.idempotent) == ("PATCH", "/order", True)
    assert request.json["platform_order_id"] == "000000900"


@pytest.mark.parametrize("flag", [False, None, 0, "", "0", []])
def test_an_empty_flag_in_phps_sense_makes_a_new_order(shop: ShopContext, flag: Any) -> None:
    assert sent(shop, is_update=flag).method == "POST"


def test_an_update_is_not_held_up_by_its_items(shop: ShopContext) -> None:
    assert sent(shop, is_update=True, items="broken").method == "PATCH"


@pytest.mark.parametrize("items", [None, [], {}, [{"item_id": ""}], [{"item_id": "0"}], [{"sku": "S"}]])
def test_a_new_order_needs_an_item_with_an_id(shop: ShopContext, items: Any) -> None:
    assert rejected(shop, message(items=items)).code == reasons.ORDER_WITHOUT_ITEMS


def test_items_without_an_id_are_left_out(shop: ShopContext) -> None:
    lines = sent(shop, items=[{"item_id": None}, {"item_id": 7, "tax_amount": "0.01"}]).json["order_line_item"]
    (line,) = lines
    assert line["platform_line_item_id"] == "7"
    assert line["taxable"] is True
    assert (line["price"], line["quantity"], line["product_id"]) == (0, 1, "")


@pytest.mark.parametrize("increment_id", [None, "", 0, "0"])
def test_an_order_without_a_number_is_rejected(shop: ShopContext, increment_id: Any) -> None:
    rejection = rejected(shop, message(order={"increment_id": increment_id}))
    assert rejection.code == reasons.MISSING_FIELD
    assert "order.increment_id" in rejection.detail


def test_ids_are_sent_as_text(shop: ShopContext) -> None:
    body = sent(shop, order={"increment_id": 900, "customer_id": 12}).json
    assert body["order"]["platform_order_id"] == body["transactions"][0]["platform_transaction_id"] == "900"
    assert body["customer"]["platform_customer_id"] == "12"


@pytest.mark.parametrize("field", ["subtotal", "tax_amount", "discount_amount", "grand_total"])
def test_an_amount_that_is_none_is_rejected_by_name(shop: ShopContext, field: str) -> None:
    rejection = rejected(shop, message(order={field: "free"}))
    assert rejection.code == reasons.NOT_A_NUMBER
    assert f"order.{field}" in rejection.detail


def test_a_paid_order_tells_what_was_paid_and_authorized(shop: ShopContext) -> None:
    payment = {"method": "card", "amount_paid": "9.5000", "amount_authorized": "9.7500", "last_trans_id": "pay_1"}
    body = sent(shop, payment=payment).json
    (transaction,) = body["transactions"]
    assert body["order"]["payment_status"] == "paid"
    assert transaction["transaction_final_amount"] == 9.5
    assert transaction["transaction_original_amount"] == 9.75
    assert (transaction["transaction_mode"], transaction["platform_transaction_id"]) == ("card", "pay_1")


def test_without_a_payment_the_total_stands_for_it(shop: ShopContext) -> None:
    (transaction,) = sent(shop, payment=[]).json["transactions"]
    assert transaction["transaction_final_amount"] == transaction["transaction_original_amount"] == 10.0
    assert transaction["transaction_mode"] == "Unknown"


def test_a_missing_time_is_the_orders_last_change_before_it_is_now(shop: ShopContext) -> None:
    assert sent(shop).json["order"]["created_at"] == "2026-11-23 12:00:00"
    changed = sent(shop, order={"created_at": None, "updated_at": "2026-11-02 10:15:31"})
    assert changed.json["order"]["created_at"] == changed.json["transactions"][0]["created_at"] == "2026-11-02 10:15:31"
    assert sent(shop, order={"updated_at": "soon"}).json["order"]["created_at"] == "2026-11-23 12:00:00"
    assert sent(shop, order={"created_at": "2026-01-01 00:00:00"}).json["order"]["created_at"] == "2026-01-01 00:00:00"


def test_the_billing_address_says_whose_number_it_is(shop: ShopContext) -> None:
    american = sent(shop, billing_address={"telephone": "4155550132", "country_id": "US"}).json
    assert american["customer"]["phone_number"] == american["customer"]["whatsapp_phone_number"] == "14155550132"
    # The address itself is sent as the customer wrote it.
    assert american["order"]["billing_address"]["phone"] == "4155550132"
    assert sent(shop, billing_address={"telephone": 9123456789}).json["customer"]["phone_number"] == "919123456789"
    assert sent(shop, billing_address=[]).json["customer"]["phone_number"] == ""


def test_an_order_needs_nothing_of_the_webhook(shop: ShopContext) -> None:
    bare = replace(shop, webhook_url=None, active_config_id=None, config_ids=frozenset())
    assert sent(bare).json == sent(shop).json


@pytest.mark.parametrize(
    ("part", "value", "named"),
    [
        ("order", "text", "order"),
        ("payment", "text", "payment"),
        ("items", [5], "items.0"),
        ("billing_address", [1], "billing_address"),
        ("shipping_address", {"street": ["a", "b"]}, "shipping_address.street"),
    ],
)
def test_a_part_of_the_wrong_type_is_rejected_by_name(shop: ShopContext, part: str, value: Any, named: str) -> None:
    rejection = rejected(shop, {**message(), part: value})
    assert (rejection.code, rejection.detail.split()[0]) == (reasons.WRONG_TYPE, named)
