"""The recorded messages of the module's observers, with amounts as PHP calculated them, numbers of many countries and
names of many scripts: rows are made of each as Magento would save it, and what is rebuilt of them has its content."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from support.shops import SHOP

from zithara_worker.database.session import Database
from zithara_worker.messages import Event, Request
from zithara_worker.processors import as_create, process
from zithara_worker.processors.phone import looks_invented
from zithara_worker.sandbox.fixtures import FixtureMessage
from zithara_worker.sandbox.shop_tables import ShopTables
from zithara_worker.shop.carts import CartReader
from zithara_worker.shop.customers import CustomerReader
from zithara_worker.shop.entities import TableReader
from zithara_worker.shop.orders import OrderReader
from zithara_worker.topics import TOPIC_ORDER
from zithara_worker.zithara.api import content_digest

ADDRESS = ("street", "city", "region", "postcode", "country_id", "telephone")


def kept(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """These columns; what is '' in a message is NULL in the shop."""
    return {name: None if row.get(name) == "" else row.get(name) for name in names}


def order_row(tables: ShopTables, message: Mapping[str, Any]) -> int:
    order = message["order"]
    billing, shipping = (kept(message[f"{kind}_address"] or {}, *ADDRESS) for kind in ("billing", "shipping"))
    return tables.place_order(
        items=[
            kept(item, "product_id", "sku", "name", "qty_ordered", "price", "tax_amount", "discount_amount")
            for item in message["items"]
        ],
        payment=kept(message["payment"], "method", "amount_paid", "amount_authorized", "last_trans_id"),
        billing=billing,
        shipping=shipping,
        is_virtual=not message["shipping_address"],
        order_currency_code=order["currency_code"],
        **kept(order, "increment_id", "state", "status", "created_at", "updated_at", "customer_id", "customer_email"),
        **kept(order, "customer_firstname", "customer_lastname", "subtotal", "tax_amount", "discount_amount"),
        **kept(order, "grand_total"),
    )


def customer_row(tables: ShopTables, message: Mapping[str, Any]) -> int:
    attributes = dict(message["custom_attributes"] or {})
    address = attributes.pop("address_data", {})
    customer_id = tables.save_customer(
        entity_id=message["platform_customer_id"],
        firstname=message["first_name"],
        lastname=message["last_name"],
        email=message["email"],
    )
    if message["whatsapp_phone_number"]:
        columns = {name: address[name] for name in ADDRESS if name in address}
        if isinstance(columns.get("street"), list):
            columns["street"] = "\n".join(columns["street"])
        tables.add_address(customer_id, **columns, telephone=message["phone_number"])
    elif not looks_invented(message["phone_number"]):
        attributes.setdefault("mobilenumber", message["phone_number"])
    for code, value in attributes.items():
        tables.set_attribute(customer_id, tables.add_attribute(code), value)
    return customer_id


def cart_row(tables: ShopTables, message: Mapping[str, Any]) -> int:
    customer, cart = message["customer"], message["cart"]
    return tables.open_cart(
        entity_id=cart["platform_cart_id"],
        items=[
            {"item_id": each["platform_cart_item_id"], "product_id": each["product_id"]}
            | {"price": each["price"], "qty": each["quantity"]}
            for each in message["cart_item"]
        ],
        billing={"telephone": customer["whatsapp_phone_number"]},
        shipping={"tax_amount": cart["total_tax"]},
        customer_id=customer["platform_customer_id"] or None,
        customer_email=customer["email"],
        customer_firstname=customer["first_name"],
        customer_lastname=customer["last_name"],
        quote_currency_code=cart["currency"],
        grand_total=cart["total_price"],
        created_at=cart["created_at"],
    )


#: How rows are made of a kind's messages, its reader, and how the descriptions of its cases begin that observers have
#: published; the others were written by hand.
KINDS: Mapping[str, tuple[Callable[[ShopTables, Mapping[str, Any]], int], type[TableReader], tuple[str, ...]]] = {
    "order": (order_row, OrderReader, ("new", "update", "random")),
    "customer": (customer_row, CustomerReader, ("CustomerSave", "CustomerEdit", "CustomerAddressSave")),
    "cart": (cart_row, CartReader, ("CartSave", "Cron")),
}
#: An order without created_at and one without billing address, which each has once it is saved; a customer with an
#: attribute that is a column.
NO_ROWS = ("order-065", "order-067", "customer-189")


def request_of(topic: str, payload: Mapping[str, Any]) -> Request | None:
    event = Event(topic=topic, payload=json.loads(json.dumps(payload)))
    made = process(as_create(event) if topic == TOPIC_ORDER else event, SHOP)
    return made if isinstance(made, Request) else None


def digest_of(topic: str, payload: Mapping[str, Any]) -> str:
    request = request_of(topic, payload)
    assert request is not None
    assert request.entity is not None
    return content_digest(request.entity)


def test_what_is_rebuilt_of_a_recorded_messages_rows_has_its_content(
    tables: ShopTables, operator: Database, plugin_cases: Sequence[FixtureMessage]
) -> None:
    compared = []
    different = []
    for case in plugin_cases:
        kind = case.id.split("-")[0]
        if kind not in KINDS or case.published is None or case.id in NO_ROWS:
            continue
        make, reader, observers = KINDS[kind]
        message = json.loads(case.published) if case.description.startswith(observers) else {}
        # A guest's cart of CartSave does not tell the email address.
        if not message or message.get("customer") == [] or not request_of(case.topic, message):
            continue
        if make is customer_row:
            tables.clear()  # the attributes of the one before
        entity_id = make(tables, message)
        [rebuilt] = reader(operator).build([entity_id]).values()
        compared.append(case.id)
        if digest_of(case.topic, message) not in [
            digest_of(case.topic, payload) for payload in (rebuilt.payload, *rebuilt.also)
        ]:
            different.append((case.id, case.description))
    assert different == []
    assert len(compared) > 50
