"""What may be shown of texts and JSON: by an allow list of keys."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zithara_worker.logs.masking import Place, masked, masked_value, without_echoes

CASES = Path(__file__).parents[1] / "fixtures" / "plugin-cases.jsonl"
#: Keys of the recorded messages and requests whose values are masked. A key in neither list is masked too.
HIDDEN = {
    *("93", "a", "additional_information", "address1", "address_data", "anniversary", "billing_address"),
    *("capture_transaction", "card_no", "card_order", "cart", "cart_item", "cart_items", "cart_totals"),
    *("cashback_redeemption_order", "cc_exp_month", "cc_exp_year", "cc_last_4", "city", "company", "coupon_code"),
    *("current_data", "custom_attributes", "customer", "customer_email", "customer_firstname", "customer_lastname"),
    *("email", "error_message", "extra_field", "fax", "first_name", "firstname", "gender", "gift_card"),
    *("info_buyRequest", "is_default_billing", "is_default_shipping", "is_new_customer", "is_update", "items"),
    *("last_name", "lastname", "loyalty_tier", "method_title", "mobilenumber", "name", "note", "order"),
    *("order_line_item", "payload", "payment", "phone", "phone_number", "postcode", "prefix", "product_added"),
    *("product_options", "protect_code", "province", "quote", "region", "region_id", "remote_ip"),
    *("shipping_address", "shipping_description", "store_name", "street", "super_attribute", "taxable", "telephone"),
    *("text", "transaction", "transactions", "vat_id", "whatsapp_phone_number", "x", "zip"),
}
SHOWN = {
    *("address_type", "amount", "amount_authorized", "amount_ordered", "amount_paid", "base_amount_authorized"),
    *("base_amount_paid", "base_currency_code", "base_discount_amount", "base_grand_total", "base_price"),
    *("base_row_total", "base_shipping_amount", "base_subtotal", "base_tax_amount", "base_total_paid"),
    *("billing_address_id", "cashback_amount", "cashback_redeemption_amount", "config_id", "country", "country_id"),
    *("created_at", "currency", "currency_code", "current_subtotal_price", "current_total_discounts"),
    *("current_total_price", "current_total_tax", "customer_address_id", "customer_group_id", "customer_id"),
    *("customer_is_guest", "customer_note_notify", "discount_amount", "email_sent", "entity_id", "event_type"),
    *("financial_status", "fulfillment_status", "global_currency_code", "grand_total", "group_id", "id"),
    *("increment_id", "is_active", "is_virtual", "item_id", "items_count", "items_qty", "last_trans_id", "login_at"),
    *("logout_at", "method", "order_currency_code", "order_id", "parent_id", "payment_id", "payment_status"),
    *("platform_cart_id", "platform_cart_item_id", "platform_customer_id", "platform_line_item_id"),
    *("platform_order_id", "platform_transaction_id", "pos_reference", "price", "product_id", "product_name"),
    *("product_type", "qty", "qty_invoiced", "qty_ordered", "qty_shipped", "quantity", "quote_address_id"),
    *("quote_currency_code", "quote_id", "reserved_order_id", "row_total", "shipping_amount", "shipping_method"),
    *("shopify_customer_id", "sku", "state", "status", "store_currency_code", "store_id", "subtotal", "tax_amount"),
    *("timestamp", "total", "total_due", "total_item_count", "total_paid", "total_price", "total_qty_ordered"),
    *("total_tax", "transaction_final_amount", "transaction_mode", "transaction_original_amount"),
    *("transaction_type", "updated_at", "website_id", "weight"),
}


def keys(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value[:1] in ("{", "[", '"'):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from keys(inner)
    elif isinstance(value, list) and str(value)[:20] != "[" * 20:
        for inner in value:
            yield from keys(inner)


def test_every_key_of_the_recorded_messages_is_known_as_shown_or_hidden() -> None:
    found: set[str] = set()
    for line in CASES.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        found |= {*keys(case["published"]), *keys(case["body"])}
        for request in case["expected"].get("requests", []):
            found |= set(keys(request["json"]))
    assert found == SHOWN | HIDDEN
    assert {key: Place.HIDDEN.below(key) for key in found} == {
        **dict.fromkeys(SHOWN, Place.SHOWN),
        **dict.fromkeys(HIDDEN, Place.HIDDEN),
    }


@pytest.mark.parametrize("key", ["date_of_birth", "company_name", "landmark", "customerName", "note", "vat_id"])
def test_a_key_that_nobody_knows_is_hidden(key: str) -> None:
    assert masked_value({key: "Asha", "orders": [{key: 41}]}) == {key: "***", "orders": [{key: "***"}]}
    assert masked(f'{{"{key}": "Asha", "n": {{"{key}": 41}}}}') == f'{{"{key}": "***", "n": {{"{key}": "***"}}}}'


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("refused asha.rao+shop@example.co.in, try again", "refused a***@***, try again"),
        ("<asha@example.com>", "<a***@***>"),
        ("to +91 98765 43210.", "to ***10."),
        ("9876543210", "***10"),
        ("(022) 2765-4321", "***21"),
        ("call 555-0132", "call ***32"),
        ("HTTP 422: refused asha@exam...", "HTTP 422: refused a***@***"),
        ("<p>Hello asha@example.com, +91 98765 43210</p>", "<p>Hello a***@***, ***10</p>"),
        ('{"first_name":"Asha \\"A\\" Rao","age":3}', '{"first_name":"***","age":"***"}'),
        ('{"phone_number": 9876543210}', '{"phone_number": "***"}'),
        ('{"last_name":"Ra', '{"last_name":"***"'),
        ('{"customerName":"Asha","note":"call me","order_id":5}', '{"customerName":"***","note":"***","order_id":5}'),
        (
            '{"landmark":["by the lake",[7]],"ok":true,"n":0,"x":""}',
            '{"landmark":["***",["***"]],"ok":true,"n":0,"x":""}',
        ),
        ('{"asha@example.com":{"Asha Rao":null}}', '{"***":{"***":null}}'),
        ('{"message":"Invalid {\\"first_name\\":\\"As', '{"message":"Invalid {\\"first_name\\":\\"***\\""'),
        ('{"error":"a@\\u0065xample.com"}', '{"error":"a***@***"}'),
        ('["email is invalid",{"message":"x","name":"Asha"}]', '["email is invalid",{"message":"x","name":"***"}]'),
        ('{"order":{"message":"Dear Asha"}}', '{"order":{"message":"***"}}'),
        ('{"errors":[{"code":"E1","value":"Asha"}]}', '{"errors":[{"code":"E1","value":"***"}]}'),
        ('{"id":1}}, "name":"Asha", "code":"E1"', '{"id":1}}, "name":"***", "code":"E1"'),
        ('{"name" "Asha", "id":7, Rao:1}', '{"name" "***", "id":7, "***":"***"}'),
        ('{"token":{"id":"x"},"first_name":"Asha"}', '{"token":{"id":"***"},"first_name":"***"}'),
        ('{"access_token":"abc', '{"access_token":"***"'),
        ("client_secret=abc&x=1", "client_secret=***&x=1"),
        ("Authorization: Bearer abc", "Authorization: Bearer ***"),
    ],
)
def test_personal_data_and_secrets_in_free_text_are_masked(text: str, wanted: str) -> None:
    assert masked(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "Can't connect to MySQL server on '192.168.10.112:3306' (111)",
        "updated 2026-11-23 12:00:00 or 2026-11-23T12:00:00Z",
        "grand_total 1234567.5000 of order 42, HTTP 503",
        "Access denied for user 'magento'@'localhost' (using password: YES)",
        "[Errno 2] No such file: [::1]:3306 in body {} or {x}",
        '"first_name" is required, "email": must be one',
        'HTTP 422: {"status":422,"error":"Unprocessable Entity","message":"no such SKU","field":"sku"}',
        "group order:906, key 3f2504e0-4f89-11d3-9a0c-0305e82c3301",
    ],
)
def test_what_an_operator_needs_is_not_masked(text: str) -> None:
    assert masked(text) == text


@given(st.text(alphabet=st.sampled_from('aA1@.-+ ()":,{}\\=\n'), max_size=60))
def test_a_word_of_seven_or_more_digits_never_stays(text: str) -> None:
    assert not any(word.isdigit() and len(word) >= 7 for word in masked(text).split())


@given(
    st.recursive(
        st.text(min_size=4, max_size=8) | st.integers(min_value=1),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "note", "message", "city"]), inner)
        ),
        max_leaves=8,
    ),
    st.booleans(),
)
def test_json_of_any_form_below_a_hidden_key_shows_nothing(value: Any, readable: bool) -> None:
    text = json.dumps({"customer": value}, ensure_ascii=readable)
    (shown,) = json.loads(masked(text)).values()
    assert shown == masked_value({"customer": value})["customer"]
    for leaf in leaves(shown):
        assert leaf == "***"


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    else:
        yield value


@given(st.text(alphabet=st.sampled_from('"{}[]:,\\ a1u'), max_size=40))
def test_what_only_looks_like_json_can_be_masked_and_again(text: str) -> None:
    once = masked(text)
    assert masked(once) == once


@pytest.mark.parametrize(
    "text",
    [
        "a" * 64_000,
        "a@" * 32_000,
        "a" * 64_000 + "@ ",
        "1 " * 32_000 + "a",
        '"' * 64_000,
        '{"' + "\\" * 64_000,
        "[[" * 32_000,
    ],
)
def test_a_long_text_is_masked_in_a_moment(text: str) -> None:
    begun = time.perf_counter()
    masked(text)
    assert time.perf_counter() - begun < 2


def test_texts_of_the_request_are_masked_where_an_answer_repeats_them() -> None:
    request = {
        "customer": {
            "first_name": "Ana",
            "name": "Zoë O'Brien",
            "city": "王伟",
            "street": '12/4 "Lake"\nMG Road',
            "age": "41",
        },
        "order": {"status": "pending", "platform_order_id": "000000101"},
    }
    said = "order 000000101 pending of ANA, Analysis 41, "
    assert without_echoes(said, request) == "order 000000101 pending of ***, Analysis 41, "
    assert without_echoes("Ana Rao", {"first_name": "Ana", "name": "Ana Rao"}) == "***"
    names = ["Zoë O'Brien", "客户王伟不存在", '12/4 "Lake"\nMG Road']
    wanted = ["***", "客户***不存在", "***"]
    for ascii_only in (True, False):
        answer = json.dumps(names, ensure_ascii=ascii_only)
        assert json.loads(without_echoes(answer, request)) == wanted
        assert json.loads(without_echoes(answer.replace("/", "\\/"), request)) == wanted
