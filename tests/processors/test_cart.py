"""Carts of both shapes: what the recorded cases do not show."""

from __future__ import annotations

from typing import Any

import pytest

from zithara_worker import reasons
from zithara_worker.messages import Event, Rejection, Request, Skip
from zithara_worker.processors import ShopContext, process
from zithara_worker.topics import TOPIC_CART


def saved(**parts: Any) -> dict[str, Any]:
    cart = {"currency": "INR", "platform_cart_id": "77", "created_at": "2026-11-02 09:00:00", "total_price": "39.9800"}
    item = {"platform_cart_item_id": "1", "price": "19.99", "product_id": "5", "quantity": "2.0000"}
    return {"customer": [], "cart_item": [item], **parts, "cart": {**cart, **parts.get("cart", {})}}


def added(**parts: Any) -> dict[str, Any]:
    quote = {"entity_id": "629", "created_at": "2026-11-02 09:00:00", "grand_total": "614.72", "customer_id": None}
    item = {"item_id": "6290", "product_id": "1011", "sku": "24-MB00", "qty": "2.0000", "price": "499.0000"}
    return {"items": [item], "customer": [], **parts, "quote": {**quote, **parts.get("quote", {})}}


def outcome(shop: ShopContext, payload: dict[str, Any]) -> Request | Skip | Rejection:
    return process(Event(topic=TOPIC_CART, payload=payload), shop)


def sent(shop: ShopContext, payload: dict[str, Any]) -> Any:
    result = outcome(shop, payload)
    assert isinstance(result, Request), result
    assert (result.method, result.path, result.idempotent) == ("POST", "/cart", True)
    return result.json


def test_both_shapes_of_one_cart_become_the_same_request(shop: ShopContext) -> None:
    of_add_to_cart = added(
        quote={"quote_currency_code": "INR", "customer_id": "209", "tax_amount": 18},
        customer={
            "customer_id": "209",
            "email": "q@example.com",
            "firstname": "Fatima",
            "lastname": "Wang",
            "telephone": "9123456789",
        },
    )
    of_save = saved(
        customer={
            "platform_customer_id": "209",
            "first_name": "Fatima",
            "last_name": "Wang",
            "whatsapp_phone_number": "9123456789",
            "email": "q@example.com",
        },
        cart_item=[{"platform_cart_item_id": "6290", "price": 499, "product_id": "1011", "quantity": 2}],
        cart={"platform_cart_id": "629", "total_price": 614.72, "total_tax": 18},
    )
    assert sent(shop, of_add_to_cart) == sent(shop, of_save)
    assert sent(shop, of_save)["customer"]["whatsapp_phone_number"] == "919123456789"


def test_a_guests_cart_has_no_customer_id_in_either_shape(shop: ShopContext) -> None:
    for payload in (saved(), added()):
        body = sent(shop, payload)
        assert body["customer"]["platform_customer_id"] == ""
        assert body["customer"]["email"] is False
        assert body["customer"]["custom_attributes"] == {}
        assert body["cart"]["shopify_customer_id"] is None


def test_what_a_guest_typed_is_taken_from_the_quote(shop: ShopContext) -> None:
    quote = {"customer_email": "g@example.com", "customer_firstname": "G"}
    customer = sent(shop, added(quote=quote))["customer"]
    assert (customer["email"], customer["name"], customer["platform_customer_id"]) == ("g@example.com", "G", "")


def test_ids_are_sent_as_text(shop: ShopContext) -> None:
    item = {"platform_cart_item_id": 8, "product_id": 5}
    body = sent(shop, saved(customer={"platform_customer_id": 9}, cart={"platform_cart_id": 77}, cart_item=[item]))
    assert body["customer"]["platform_customer_id"] == "9"
    assert body["cart"]["platform_cart_id"] == body["cart"]["name"] == "77"
    assert body["cart_item"] == [{"platform_cart_item_id": "8", "price": 0, "product_id": "5", "quantity": 1}]


@pytest.mark.parametrize("items", [[], {}, [{"platform_cart_item_id": ""}], [{"product_id": "5"}]])
def test_a_cart_without_an_item_that_has_an_id_is_skipped(shop: ShopContext, items: Any) -> None:
    assert outcome(shop, saved(cart_item=items)) == Skip(reason=reasons.CART_WITHOUT_ITEMS)


def test_the_first_product_of_a_cart_that_is_not_saved_yet_is_skipped(shop: ShopContext) -> None:
    # checkout_cart_product_add_after comes before the save that gives quote and item their ids.
    unsaved = added(quote={"entity_id": None}, items=[{"item_id": "", "product_id": "5", "qty": 1, "price": "1"}])
    assert outcome(shop, unsaved) == Skip(reason=reasons.CART_WITHOUT_ITEMS)


@pytest.mark.parametrize(
    ("payload", "code", "named"),
    [
        ({}, reasons.MISSING_FIELD, "cart"),
        ({"quote": {}, "items": []}, reasons.MISSING_FIELD, "quote"),
        ({"cart": {"platform_cart_id": "1"}}, reasons.MISSING_FIELD, "cart_item"),
        ({"quote": {"entity_id": "1"}}, reasons.MISSING_FIELD, "items"),
        (saved(cart={"platform_cart_id": ""}), reasons.MISSING_FIELD, "cart.platform_cart_id"),
        (added(quote={"entity_id": None}), reasons.MISSING_FIELD, "quote.entity_id"),
        (saved(cart={"total_price": "free"}), reasons.NOT_A_NUMBER, "cart.total_price"),
        (added(quote={"grand_total": False}), reasons.NOT_A_NUMBER, "quote.grand_total"),
        (saved(cart_item=[{"platform_cart_item_id": "1", "price": "x"}]), reasons.NOT_A_NUMBER, "cart_item.0.price"),
        (added(items=[{"item_id": "1", "qty": "two"}]), reasons.NOT_A_NUMBER, "items.0.qty"),
        (saved(customer="Ravi"), reasons.WRONG_TYPE, "customer"),
        (saved(cart_item="none"), reasons.WRONG_TYPE, "cart_item"),
    ],
)
def test_what_is_wrong_is_rejected_by_name(shop: ShopContext, payload: dict[str, Any], code: str, named: str) -> None:
    result = outcome(shop, payload)
    assert isinstance(result, Rejection)
    assert (result.code, result.detail.split()[0]) == (code, named)


@pytest.mark.parametrize("build", [saved, added])
def test_a_missing_time_is_the_carts_last_change_before_it_is_now(shop: ShopContext, build: Any) -> None:
    part = "cart" if build is saved else "quote"
    changed = build(**{part: {"created_at": None, "updated_at": "2026-11-02 09:30:00"}})
    assert sent(shop, changed)["cart"]["created_at"] == "2026-11-02 09:30:00"
    assert sent(shop, build(**{part: {"created_at": None}}))["cart"]["created_at"] == "2026-11-23 12:00:00"


def test_a_cart_without_a_currency_is_in_rupees(shop: ShopContext) -> None:
    assert sent(shop, saved(cart={"currency": None}))["cart"]["currency"] == "INR"
    assert sent(shop, added(quote={"quote_currency_code": None}))["cart"]["currency"] == "INR"
