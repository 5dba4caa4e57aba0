"""What is rebuilt of the shop's rows equals what the module published about the same state: as requests, field by
field, and as the content that the delivery ledger records, by which reconcile decides."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from support.shops import SHOP

from zithara_worker import Settings
from zithara_worker.database.session import Database
from zithara_worker.messages import Event, Request
from zithara_worker.processors import as_create, identify, process
from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.shop_tables import ShopTables, published_messages
from zithara_worker.settings.values import Secret
from zithara_worker.shop.carts import CartReader
from zithara_worker.shop.customers import CustomerReader
from zithara_worker.shop.entities import EntityReader, Rebuilt, ShopEntity
from zithara_worker.shop.orders import OrderReader
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER
from zithara_worker.zithara.api import content_digest

READERS: tuple[Callable[[Database], EntityReader], ...] = (OrderReader, CustomerReader, CartReader)


ADDRESS = "custom_attributes.address_data"
#: Where the module's last message differs from the rows: "nothing" if there is no message, "no items" if it tells none
#: of the cart, else the fields.
DIFFERENT: Mapping[str, object] = {
    "order:000000001": "nothing",
    "order:000000011": "nothing",
    "customer:5": "nothing",
    # Saved again, not as the default address, which it is.
    "customer:7": {f"{ADDRESS}.is_default_billing", f"{ADDRESS}.is_default_shipping"},
    # The address has been deleted since.
    "customer:9": {
        *("phone_number", "whatsapp_phone_number"),
        *(f"{ADDRESS}.{name}" for name in ("street", "city", "region", "postcode", "country_id")),
        *(f"{ADDRESS}.is_default_{name}" for name in ("billing", "shipping")),
    },
    # Guests who added one item and stopped: CartSave fires before the item has an id.
    **{f"cart:{id}": "no items" for id in range(23, 44, 2)},
}


def request_of(topic: str, payload: Mapping[str, Any]) -> Request:
    """As a create, so that everything is compared."""
    # Through JSON, as a message travels.
    event = Event(topic=topic, payload=json.loads(json.dumps(payload)))
    made = process(as_create(event) if topic == TOPIC_ORDER else event, SHOP)
    assert isinstance(made, Request), made
    return made


def digest_of(topic: str, payload: Mapping[str, Any]) -> str:
    entity = request_of(topic, payload).entity
    assert entity is not None
    return content_digest(entity)


def digests_of(topic: str, rebuilt: Rebuilt) -> list[str]:
    return [digest_of(topic, payload) for payload in (rebuilt.payload, *rebuilt.also)]


def everything(database: Database) -> Iterator[tuple[str, ShopEntity, Rebuilt]]:
    for make in READERS:
        reader = make(database)
        entities = reader.page(0, 1000, since=None, until=None).entities
        rebuilt = reader.build([each.id for each in entities])
        assert rebuilt.keys() == {each.id for each in entities}
        for entity in entities:
            yield reader.topic, entity, rebuilt[entity.id]


@pytest.fixture(scope="module")
def published() -> dict[str, list[Event]]:
    """Group -> the module's messages about it, oldest first."""
    found: dict[str, list[Event]] = {}
    for message in published_messages():
        group, event = identify(message.topic, message.id, message.body)
        assert isinstance(event, Event)
        found.setdefault(group, []).append(event)
    return found


def fields_that_differ(one: Any, other: Any, path: str = "") -> set[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        names = one.keys() | other.keys()
        return {
            found
            for name in names
            for found in fields_that_differ(one.get(name), other.get(name), f"{path}.{name}" if path else name)
        }
    if (isinstance(one, dict) and other is None) or (one is None and isinstance(other, dict)):
        return fields_that_differ(one or {}, other or {}, path)
    return set() if one == other else {path}


def test_each_request_is_the_one_that_the_modules_last_message_becomes(
    real_shop: Database, published: Mapping[str, list[Event]]
) -> None:
    differences: dict[str, object] = {}
    for topic, entity, rebuilt in everything(real_shop):
        ours = request_of(topic, rebuilt.payload)
        if entity.group_key not in published:
            differences[entity.group_key] = "nothing"
            continue
        last = published[entity.group_key][-1]
        if last.payload.get("cart_item") and not any(
            item["platform_cart_item_id"] for item in last.payload["cart_item"]
        ):
            differences[entity.group_key] = "no items"
            continue
        theirs = request_of(topic, last.payload)
        assert (ours.path, ours.method) == (theirs.path, "POST")
        if different := fields_that_differ(ours.json, theirs.json):
            differences[entity.group_key] = different
    assert differences == DIFFERENT


def test_the_ledger_records_the_content_that_the_rows_have(
    shop: Shop, settings: Settings, consume: Callable[[], None]
) -> None:
    """The module's messages, first saves and later ones, through the real worker: reconcile finds each entity equal
    whose last message tells the state of its rows."""
    ShopTables(shop).create()
    for message in published_messages():
        shop.publish_body(message.topic, message.body)
    consume()
    rows = shop.query("SELECT group_key, content, CAST(published_at AS CHAR) FROM {prefix}zithara_delivery")
    recorded = {group: (content, published_at) for group, content, published_at in rows}
    missing, different = set(), set()
    database = Database(replace(settings.database, user="root", password=Secret("")))
    for topic, entity, rebuilt in everything(database):
        if entity.group_key not in recorded:
            missing.add(entity.group_key)
            continue
        content, published_at = recorded[entity.group_key]
        if content not in [digest_of(topic, form) for form in rebuilt.forms(published_at)]:
            different.add(entity.group_key)
    database.close()
    assert missing == {group for group, why in DIFFERENT.items() if why in ("nothing", "no items")}
    # The flags of customer 7's address say how it was saved, not what it is.
    assert different == {"customer:9"}


# ---------------------------------------------------------------- one content, many spellings


def as_numbers(value: Any) -> Any:
    """As Magento has a row before its first save: decimals and ids are numbers."""
    if isinstance(value, dict):
        return {
            name: as_numbers(inner) if not name.endswith(("postcode", "telephone", "increment_id")) else inner
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [as_numbers(inner) for inner in value]
    if isinstance(value, str) and value.replace(".", "", 1).lstrip("-").isdecimal():
        number = float(value)
        return int(number) if number.is_integer() else number
    return value


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def as_calculated(value: Any) -> Any:
    """As PHP has amounts before the first save: with the noise of calculating with doubles, below the four places that
    the columns keep."""

    def noisy(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: noisy(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [noisy(inner) for inner in value]
        return value * (1 + 2**-50) if isinstance(value, float) else value

    return noisy(as_numbers(value))


@pytest.mark.parametrize("respell", [as_numbers, as_calculated, without_nulls])
def test_the_content_is_the_same_however_its_values_are_written(
    real_shop: Database, respell: Callable[[Any], Any]
) -> None:
    for topic, entity, rebuilt in everything(real_shop):
        payload = json.loads(json.dumps(rebuilt.payload))
        assert digest_of(topic, respell(payload)) == digest_of(topic, payload), entity.group_key


def test_another_content_has_another_digest(real_shop: Database) -> None:
    for topic, entity, rebuilt in everything(real_shop):
        payload = json.loads(json.dumps(rebuilt.payload))
        changes: dict[str, list[dict[str, Any]]] = {
            TOPIC_ORDER: [
                {"order": {**payload.get("order", {}), "grand_total": "505.5000"}},
                {"order": {**payload.get("order", {}), "state": "holded"}},
                {"billing_address": {"city": "Mysuru"}},
            ],
            TOPIC_CUSTOMER: [
                {"phone_number": "9123456789"},
                {"email": "new@example.com"},
                {"last_name": "Rao"},
                {"custom_attributes": {"tier": "gold"}},
                {"custom_attributes": {"tier": "5.0001"}},
                {"custom_attributes": {"address_data": {"city": "Mysuru"}}},
            ],
            TOPIC_CART: [
                {"cart": {**payload.get("cart", {}), "total_price": 1}},
                {"cart_item": payload.get("cart_item", []) * 2},
                {"customer": {"email": "new@example.com"}},
            ],
        }
        same = set(digests_of(topic, rebuilt))
        assert len(same) == 1 + len(rebuilt.also)
        others = {digest_of(topic, {**payload, **change}) for change in changes[topic]}
        assert len(others | same) == len(changes[topic]) + len(same), entity.group_key
