"""Whatever stands in a message, processing answers with a value, and every request can be put on the wire."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import shops

from zithara_worker import reasons
from zithara_worker.messages import Event, Rejection, Request, Skip
from zithara_worker.processors import PROCESSORS, Processor, ShopContext, identify, process
from zithara_worker.settings.sections import InventedPhone
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER, TOPIC_WEBHOOK, TOPICS

SHOP = replace(shops.SHOP, config_ids=frozenset({1, 2}))

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["", "0", "1", "19.99", "499.0000", " 2 ", "+919912345678", "91876543210", "9876543210", "IN"])
)
NAMES = [
    *("order", "items", "payment", "billing_address", "shipping_address", "is_update", "increment_id", "item_id"),
    *("grand_total", "amount_paid", "telephone", "country_id", "created_at", "state", "status", "customer_id"),
    *("customer", "cart", "cart_item", "quote", "entity_id", "platform_cart_id", "platform_cart_item_id", "price"),
    *("platform_customer_id", "phone_number", "whatsapp_phone_number", "email", "custom_attributes", "first_name"),
    *("config_id", "event_type", "payload", "quantity", "qty", "address_data", "mobilenumber"),
]
ANY = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=15,
)

POLICIES: tuple[InventedPhone, ...] = ("send", "omit", "reject")


def near(**parts: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects of these parts, in which each part may also be anything else or be absent."""
    return st.fixed_dictionaries({}, optional={name: part | ANY for name, part in parts.items()})


ADDRESS = near(telephone=SCALARS, country_id=SCALARS, street=SCALARS)
SHAPES: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    TOPIC_ORDER: near(
        order=near(increment_id=st.just("000000101"), grand_total=SCALARS, state=SCALARS, customer_id=SCALARS),
        items=st.lists(near(item_id=st.just("7"), price=SCALARS, tax_amount=SCALARS, qty_ordered=SCALARS), max_size=2),
        payment=near(amount_paid=SCALARS, method=SCALARS),
        billing_address=ADDRESS,
        shipping_address=ADDRESS,
        is_update=st.booleans(),
    ),
    TOPIC_CUSTOMER: near(
        platform_customer_id=st.just("301"),
        email=st.just("c@example.com"),
        phone_number=SCALARS,
        whatsapp_phone_number=SCALARS,
        custom_attributes=near(address_data=ADDRESS, mobilenumber=SCALARS),
    ),
    TOPIC_CART: near(
        cart=near(platform_cart_id=st.just("77"), total_price=SCALARS, currency=SCALARS),
        cart_item=st.lists(near(platform_cart_item_id=st.just("1"), price=SCALARS, quantity=SCALARS), max_size=2),
        quote=near(entity_id=st.just("77"), grand_total=SCALARS, quote_currency_code=SCALARS),
        items=st.lists(near(item_id=st.just("1"), price=SCALARS, qty=SCALARS), max_size=2),
        customer=near(platform_customer_id=SCALARS, customer_id=SCALARS, telephone=SCALARS, email=SCALARS),
    ),
    TOPIC_WEBHOOK: near(
        config_id=st.sampled_from([1, "2", 3]), event_type=st.just("customer_login"), payload=ANY, timestamp=SCALARS
    ),
}


@pytest.mark.parametrize("topic", TOPICS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_message_becomes_a_request_a_skip_or_a_rejection(topic: str, data: st.DataObject) -> None:
    message = data.draw(SHAPES[topic])
    policy = data.draw(st.sampled_from(POLICIES))
    before = copy.deepcopy(message)
    result = process(Event(topic=topic, payload=message), replace(SHOP, invented_phone=policy))
    assert message == before, "the message was changed"
    if isinstance(result, Request):
        assert json.loads(json.dumps(result.json, allow_nan=False)) == result.json
        json.dumps(dict(result.headers)).encode("ascii")
    elif isinstance(result, Skip):
        assert result.reason in reasons.REASONS
    else:
        assert isinstance(result, Rejection)
        assert result.code in reasons.REASONS
        assert len(result.detail) < 500


@pytest.mark.parametrize("topic", TOPICS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_message_has_the_same_group_and_request_however_often_it_is_handled(topic: str, data: st.DataObject) -> None:
    body = json.dumps(json.dumps(data.draw(SHAPES[topic])))
    first, second = identify(topic, 4, body), identify(topic, 4, body)
    assert first == second
    if isinstance(first[1], Event) and isinstance(second[1], Event):
        assert process(first[1], SHOP) == process(second[1], SHOP)


def test_there_is_a_processor_for_every_topic_and_a_rejection_for_any_other() -> None:
    assert set(PROCESSORS) == set(TOPICS)
    result = process(Event(topic="some.other.topic", payload={}), SHOP)
    assert isinstance(result, Rejection)
    assert result.code == reasons.UNKNOWN_TOPIC


def test_a_bug_in_a_processor_is_not_blamed_on_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(event: Event, shop: ShopContext) -> Request:
        raise KeyError("a bug")

    monkeypatch.setitem(PROCESSORS, TOPIC_ORDER, Processor(PROCESSORS[TOPIC_ORDER].group_key, broken))
    with pytest.raises(KeyError, match="a bug"):
        process(Event(topic=TOPIC_ORDER, payload={}), SHOP)
