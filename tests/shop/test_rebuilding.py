"""The messages that are rebuilt of what the real shop's rows do not have: each case a shop may hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from support.shops import SHOP

from zithara_worker.database.session import Database
from zithara_worker.messages import Event, Rejection, Request
from zithara_worker.processors import process
from zithara_worker.reasons import ORDER_WITHOUT_ITEMS
from zithara_worker.sandbox.shop_tables import ShopTables
from zithara_worker.settings.sections import InventedPhone
from zithara_worker.shop.carts import CartReader
from zithara_worker.shop.customers import CustomerReader
from zithara_worker.shop.entities import Rebuilt
from zithara_worker.shop.orders import OrderReader
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER
from zithara_worker.zithara.api import content_digest


def made(topic: str, payload: Mapping[str, Any], invented_phone: InventedPhone = "send") -> Any:
    event = Event(topic=topic, payload=json.loads(json.dumps(payload)))
    return process(event, replace(SHOP, invented_phone=invented_phone))


def sent(topic: str, payload: Mapping[str, Any]) -> Any:
    request = made(topic, payload)
    assert isinstance(request, Request), request
    return request.json


def content(topic: str, payload: Mapping[str, Any], invented_phone: InventedPhone = "send") -> str:
    request = made(topic, payload, invented_phone)
    assert isinstance(request, Request), request
    assert request.entity is not None
    return content_digest(request.entity)


def contents(topic: str, rebuilt: Rebuilt) -> list[str]:
    return [content(topic, payload) for payload in (rebuilt.payload, *rebuilt.also)]


# ---------------------------------------------------------------- orders


def test_orders_of_every_kind(tables: ShopTables, operator: Database) -> None:
    virtual = tables.place_order("V1", is_virtual=True)
    configurable = tables.place_order("C1", items=())
    parent = tables.add_order_item(configurable, product_type="configurable", sku="tee-M", qty_ordered="2.0000")
    child = tables.add_order_item(
        configurable, parent_item_id=parent, product_id=2, sku="tee-M", price="0.0000", qty_ordered="2.0000"
    )
    paid = tables.place_order(
        "P1", payment={"method": "razorpay", "amount_paid": "504.5000", "last_trans_id": "pay_1", "cc_last_4": "4242"}
    )
    other_address = tables.place_order("A1", billing={"city": "Chennai"}, shipping={"city": "Mysuru"})
    of_customer = tables.place_order("K1", customer_id=7, order_currency_code="USD", store_id=2)
    empty = tables.place_order("E1", items=())
    rebuilt = OrderReader(operator).build([virtual, configurable, paid, other_address, of_customer, empty, 999_999])
    assert rebuilt.keys() == {virtual, configurable, paid, other_address, of_customer, empty}
    assert all(each.also == () and each.payload["is_update"] is False for each in rebuilt.values())

    body = sent(TOPIC_ORDER, rebuilt[virtual].payload)
    assert rebuilt[virtual].payload["shipping_address"] == []
    assert body["order"]["shipping_address"] == {}
    assert body["order"]["billing_address"]["city"] == "Bengaluru"
    assert body["customer"]["platform_customer_id"] == "", "a guest, or a customer who was deleted"

    lines = sent(TOPIC_ORDER, rebuilt[configurable].payload)["order_line_item"]
    assert [(line["platform_line_item_id"], line["price"], line["quantity"]) for line in lines] == [
        (str(parent), 499.5, 2),
        (str(child), 0, 2),
    ]

    body = sent(TOPIC_ORDER, rebuilt[paid].payload)
    assert body["order"]["payment_status"] == "paid"
    assert body["transactions"][0]["platform_transaction_id"] == "pay_1"
    assert "4242" not in json.dumps(rebuilt[paid].payload)

    body = sent(TOPIC_ORDER, rebuilt[other_address].payload)
    assert [body["order"][f"{kind}_address"]["city"] for kind in ("billing", "shipping")] == ["Chennai", "Mysuru"]

    body = sent(TOPIC_ORDER, rebuilt[of_customer].payload)
    assert (body["customer"]["platform_customer_id"], body["order"]["currency"]) == ("7", "USD")

    assert isinstance(refused := made(TOPIC_ORDER, rebuilt[empty].payload), Rejection)
    assert refused.code == ORDER_WITHOUT_ITEMS


def test_of_several_payments_and_addresses_the_first_counts_as_in_magento(
    tables: ShopTables, operator: Database
) -> None:
    order = tables.place_order(payment={"method": "first"}, billing={"city": "First"})
    tables.insert("sales_order_payment", {"parent_id": order, "method": "second"})
    address = {"parent_id": order, "address_type": "billing", "city": "Second"}
    tables.insert("sales_order_address", address)
    payload = OrderReader(operator).build([order])[order].payload
    assert (payload["payment"]["method"], payload["billing_address"]["city"]) == ("first", "First")


# ---------------------------------------------------------------- customers


def test_attributes_of_every_type_are_told_as_the_module_tells_them(tables: ShopTables, operator: Database) -> None:
    customer, other = tables.save_customer(), tables.save_customer(email="other@example.com")
    values = {
        "loyalty_card": ("varchar", "LC-7 ü", "LC-7 ü"),
        "tier": ("int", 5, "5"),
        "consent": ("int", 1, "1"),
        "interests": ("text", "12,15", "12,15"),
        "credit": ("decimal", "12.5000", "12.5000"),
        "anniversary": ("datetime", "2020-02-29 00:00:00", "2020-02-29 00:00:00"),
    }
    for code, (backend_type, stored, _) in values.items():
        tables.set_attribute(customer, tables.add_attribute(code, backend_type), stored)
    # No value, and a value left from before the attribute changed its type.
    tables.set_attribute(customer, tables.add_attribute("empty"), None)
    changed = tables.add_attribute("changed", "int")
    tables.set_attribute(customer, changed, 9)
    tables.change("eav_attribute", changed, backend_type="varchar")
    rebuilt = CustomerReader(operator).build([customer, other])
    told = rebuilt[customer].payload["custom_attributes"]
    assert told == {code: value for code, (_, _, value) in values.items()}
    assert rebuilt[other].payload["custom_attributes"] == {}
    assert sent(TOPIC_CUSTOMER, rebuilt[customer].payload)["custom_attributes"] == told
    # Before its first save the module has what the form gave it.
    first_save = {"empty": None, **dict(reversed(told.items())), "tier": 5, "consent": True, "credit": 12.500000001}
    assert content(TOPIC_CUSTOMER, {**rebuilt[customer].payload, "custom_attributes": first_save}) in contents(
        TOPIC_CUSTOMER, rebuilt[customer]
    )


def test_a_telephone_number_is_that_of_the_default_billing_address_else_the_attribute_never_invented(
    tables: ShopTables, operator: Database
) -> None:
    mobile = tables.add_attribute("mobilenumber")
    by_address, by_attribute, by_neither = (tables.save_customer(email=f"{name}@example.com") for name in "abc")
    tables.add_address(by_address, telephone="080 4111 2222")
    for customer in (by_address, by_attribute):
        tables.set_attribute(customer, mobile, "9845012345")
    tables.add_address(by_neither, is_default=False, telephone="9000000001")
    # A default that is no address of the customer's any more.
    tables.change("customer_entity", by_attribute, default_billing=999_999)
    rebuilt = CustomerReader(operator).build([by_address, by_attribute, by_neither])
    numbers = {id: each.payload["phone_number"] for id, each in rebuilt.items()}
    assert numbers == {by_address: "080 4111 2222", by_attribute: "9845012345", by_neither: ""}
    assert sent(TOPIC_CUSTOMER, rebuilt[by_address].payload)["whatsapp_phone_number"] == "918041112222"
    for customer in (by_attribute, by_neither):
        assert sent(TOPIC_CUSTOMER, rebuilt[customer].payload)["whatsapp_phone_number"] == "", "as the module has it"
    # What is known of its address is not told to be wrong.
    [told] = [each for each in rebuilt[by_neither].also if each["custom_attributes"]]
    assert (told["phone_number"], told["custom_attributes"]["address_data"]["city"]) == ("9000000001", "Bengaluru")


@pytest.mark.parametrize("setting", ["send", "omit"])
def test_an_invented_number_is_no_other_state(tables: ShopTables, operator: Database, setting: InventedPhone) -> None:
    """Otherwise every customer without a telephone number would be stale for ever."""
    customer = tables.save_customer()
    rebuilt = CustomerReader(operator).build([customer])[customer]
    of_the_module = {**rebuilt.payload, "phone_number": "+919911150819", "custom_attributes": []}
    assert content(TOPIC_CUSTOMER, of_the_module, setting) in contents(TOPIC_CUSTOMER, rebuilt)
    real = {**of_the_module, "phone_number": "+919811150819"}
    assert content(TOPIC_CUSTOMER, real, setting) not in contents(TOPIC_CUSTOMER, rebuilt)


def test_what_the_module_tells_of_the_same_customer_is_the_same_state(tables: ShopTables, operator: Database) -> None:
    """Each of its observers tells other parts, and CustomerAddressSave any of the addresses."""
    customer = tables.save_customer()
    tables.set_attribute(customer, tables.add_attribute("tier"), "gold")
    billing = tables.add_address(customer, telephone="+44 20 7946 0958", country_id="GB", city="London")
    tables.add_address(customer, telephone="+44 20 7946 0958", is_default=False, city="Leeds")
    tables.add_address(customer, telephone="9000000001", is_default=False, city="Elsewhere")
    rebuilt = CustomerReader(operator).build([customer])[customer]
    assert billing
    payload = json.loads(json.dumps(rebuilt.payload))
    address = payload["custom_attributes"]["address_data"]
    assert (address["street"], address["city"], address["is_default_shipping"]) == (
        ["12, MG Road", "Flat 4B"],
        "London",
        True,
    )
    assert sent(TOPIC_CUSTOMER, payload)["whatsapp_phone_number"] == "442079460958"

    def accepted(custom_attributes: Any, **changes: Any) -> bool:
        message = {**payload, "is_update": True, "custom_attributes": custom_attributes, **changes}
        return content(TOPIC_CUSTOMER, message) in contents(TOPIC_CUSTOMER, rebuilt)

    own = {"tier": "gold"}
    denied = {**address, "is_default_billing": False, "is_default_shipping": False}
    leeds = {**denied, "city": "Leeds", "country_id": "IN"}
    assert accepted([]) and accepted(own), "CustomerSave"
    assert accepted({"address_data": address}) and accepted({**own, "address_data": denied}), "CustomerAddressSave"
    assert accepted({"address_data": {**address, "street": "12, MG Road\nFlat 4B"}})
    assert accepted({"address_data": leeds})
    assert not accepted({"tier": "silver"})
    assert not accepted({"address_data": {**address, "city": "Paris"}})
    # Zithara would call another number.
    assert not accepted([], phone_number="9000000001")
    elsewhere = {"address_data": {**leeds, "city": "Elsewhere", "country_id": "IN"}}
    assert not accepted(elsewhere, phone_number="9000000001")
    assert not accepted(elsewhere)


def test_a_message_without_the_address_tells_it_only_if_it_is_newer(tables: ShopTables, operator: Database) -> None:
    """The save of an address whose message was lost is not taken for told by a CustomerSave before it."""
    customer = tables.save_customer()
    [rebuilt] = CustomerReader(operator).build([customer]).values()
    assert rebuilt.forms("") == (rebuilt.payload,)
    tables.add_address(customer, updated_at="2026-01-01 12:00:00")
    tables.add_address(customer, is_default=False, updated_at="2026-01-03 12:00:00")
    [rebuilt] = CustomerReader(operator).build([customer]).values()
    everything = (rebuilt.payload, *rebuilt.also)
    assert len(everything) == 3
    assert rebuilt.forms("") == rebuilt.forms("2026-01-02 12:00:00") == everything[:1]
    assert rebuilt.forms("2026-01-03 11:59:50") == everything[:1]
    # The clock of PHP may be ahead of the database's.
    assert rebuilt.forms("2026-01-03 11:59:55") == rebuilt.forms("2026-01-03 12:00:00") == everything


# ---------------------------------------------------------------- carts


def test_carts_are_told_as_the_cron_tells_them(tables: ShopTables, operator: Database) -> None:
    guest = tables.open_cart(items=({"qty": "3.0000"},), shipping={"tax_amount": "18.0000"})
    customers = tables.open_cart(
        customer_id=7,
        items=(),
        items_count=1,
        billing={"telephone": "09876543210", "country_id": "IN"},
        reserved_order_id="000000031",
    )
    parent = tables.add_cart_item(customers, product_id=5)
    child = tables.add_cart_item(customers, product_id=6, parent_item_id=parent, price="0.0000")
    abroad = tables.open_cart(billing={"telephone": "6123 4567", "country_id": "SG"})
    nonsense = tables.open_cart(billing={"telephone": "call me", "country_id": "SG"})
    unclear = tables.open_cart(billing={"telephone": "5 or 6", "country_id": "SG"})
    tables.insert("quote_address", {"quote_id": unclear, "address_type": "billing", "telephone": "second"})
    rebuilt = CartReader(operator).build([guest, customers, abroad, nonsense, unclear])

    body = sent(TOPIC_CART, rebuilt[guest].payload)
    assert body["customer"]["email"] == "guest@example.com"
    assert (body["customer"]["platform_customer_id"], body["customer"]["name"]) == ("", "Meera Nair")
    assert (body["cart"]["total_tax"], body["cart_item"][0]["quantity"]) == (18, 3)
    assert rebuilt[guest].also == ()

    body = sent(TOPIC_CART, rebuilt[customers].payload)
    assert body["customer"]["whatsapp_phone_number"] == "919876543210"
    assert (body["customer"]["platform_customer_id"], body["cart"]["shopify_customer_id"]) == ("7", "7")
    assert [item["platform_cart_item_id"] for item in body["cart_item"]] == [str(parent), str(child)]
    # CartSave leaves the child out, and has ids as numbers.
    of_the_module = json.loads(json.dumps(rebuilt[customers].payload))
    of_the_module["cart_item"] = [{**of_the_module["cart_item"][0], "product_id": 5}]
    of_the_module["customer"]["platform_customer_id"] = 7
    assert content(TOPIC_CART, of_the_module) in contents(TOPIC_CART, rebuilt[customers])
    of_the_module["cart_item"] = of_the_module["cart_item"] * 2
    assert content(TOPIC_CART, of_the_module) not in contents(TOPIC_CART, rebuilt[customers])

    # The module takes the number for an Indian one: the right one is sent, and the wrong one is no other state.
    assert sent(TOPIC_CART, rebuilt[abroad].payload)["customer"]["whatsapp_phone_number"] == "6561234567"
    of_the_module = json.loads(json.dumps(rebuilt[abroad].payload))
    of_the_module["customer"]["whatsapp_phone_number"] = "9161234567"
    assert content(TOPIC_CART, of_the_module) in contents(TOPIC_CART, rebuilt[abroad])
    assert sent(TOPIC_CART, rebuilt[nonsense].payload)["customer"]["whatsapp_phone_number"] == ""
    assert rebuilt[unclear].payload["customer"]["whatsapp_phone_number"] == "9156", "as the module has it"
