"""Message groups: one key for one entity, whoever names it and however; never one key for two."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zithara_worker import reasons
from zithara_worker.messages import Event, Rejection
from zithara_worker.processors import identify
from zithara_worker.processors.groups import MAX_LENGTH, entity_key
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER, TOPIC_WEBHOOK, TOPICS


def key_of(topic: str, message: Any, message_id: int = 5) -> str:
    return identify(topic, message_id, json.dumps(json.dumps(message)))[0]


def webhook_key(**payload: Any) -> str:
    return key_of(TOPIC_WEBHOOK, {"config_id": 1, "event_type": "any", "payload": payload})


def test_orders_customers_and_carts_are_groups_of_their_own_id() -> None:
    assert key_of(TOPIC_ORDER, {"order": {"increment_id": "000000101"}}) == "order:000000101"
    assert key_of(TOPIC_CUSTOMER, {"platform_customer_id": "411"}) == "customer:411"
    assert key_of(TOPIC_CART, {"cart": {"platform_cart_id": "7001"}}) == "cart:7001"


def test_both_shapes_of_a_cart_are_one_group() -> None:
    saved = key_of(TOPIC_CART, {"cart": {"platform_cart_id": "629"}, "cart_item": []})
    assert key_of(TOPIC_CART, {"quote": {"entity_id": 629}, "items": []}) == saved == "cart:629"


def test_every_webhook_about_an_order_is_in_the_group_of_its_entity_id() -> None:
    assert {
        webhook_key(order_id=906, payment={"parent_id": "906"}),
        webhook_key(order={"entity_id": 906, "order_id": 906, "increment_id": "000000906", "quote_id": "5906"}),
        webhook_key(order={"order_id": "906", "customer_id": "1"}, creditmemo={"entity_id": "3", "increment_id": "3"}),
        webhook_key(entity_id="906", order_id="906", increment_id="000000906", customer_id="114", quote_id="5906"),
        webhook_key(entity_id="906", increment_id="000000906"),
        webhook_key(order_id="", payment={"entity_id": "44", "parent_id": "906"}),
    } == {"order:906"}


def test_every_webhook_about_a_cart_is_in_the_group_of_its_quote() -> None:
    assert {
        webhook_key(quote_id="7001", customer={"id": "226"}),
        webhook_key(quote_id=7001, customer_id="226", store_id="1"),
        webhook_key(quote={"entity_id": "7001"}),
    } == {"cart:7001"}


def test_every_webhook_about_a_customer_is_in_the_group_of_that_customer() -> None:
    assert {
        webhook_key(customer_id="411", email="c@example.com"),
        webhook_key(customer={"id": "411", "entity_id": "411"}),
        webhook_key(customer={"id": 411}),
    } == {"customer:411"}


@pytest.mark.parametrize("payload", [{}, {"visitor_id": "9"}, {"entity_id": "9"}, {"order_id": "", "quote_id": None}])
def test_a_webhook_that_names_no_entity_is_a_group_of_its_own(payload: dict[str, Any]) -> None:
    assert webhook_key(**payload) == "message:5"


@pytest.mark.parametrize("missing", [None, "", "0", 0, False, True, [], {}, ["1"], {"id": 1}])
def test_what_is_no_id_names_nobody(missing: Any) -> None:
    assert key_of(TOPIC_ORDER, {"order": {"increment_id": missing}}) == "message:5"
    assert key_of(TOPIC_CUSTOMER, {"platform_customer_id": missing}) == "message:5"
    assert key_of(TOPIC_CART, {"cart": {"platform_cart_id": missing}}) == "message:5"


def test_a_number_and_its_text_name_the_same_entity() -> None:
    assert entity_key("order", 906) == entity_key("order", 906.0) == entity_key("order", "906") == "order:906"


@pytest.mark.parametrize("pair", [("7", "7 "), ("a", "A"), ("7", "07"), ("é", "e\u0301"), ("x" * 300, "x" * 301)])
def test_ids_are_compared_exactly(pair: tuple[str, str]) -> None:
    assert entity_key("cart", pair[0]) != entity_key("cart", pair[1])


def test_an_id_cannot_pass_for_the_digest_of_another() -> None:
    digest = entity_key("cart", "बिक्री")
    assert digest is not None
    assert digest.startswith("cart:sha256:")
    assert entity_key("cart", digest.removeprefix("cart:")) != digest


@given(st.lists(st.text(min_size=1).filter(lambda name: name != "0"), min_size=2, max_size=2, unique=True))
def test_two_ids_never_share_a_key_and_every_key_fits_the_column(names: list[str]) -> None:
    keys = [entity_key("customer", name) for name in names]
    assert keys[0] != keys[1]
    for key in keys:
        assert key is not None
        assert len(key) <= MAX_LENGTH
        assert all("!" <= letter <= "~" for letter in key)


def test_an_unreadable_body_and_an_unknown_topic_are_groups_of_their_own() -> None:
    key, content = identify(TOPIC_ORDER, 12, "nonsense")
    assert (key, isinstance(content, Rejection)) == ("message:12", True)
    key, content = identify("some.other.topic", 13, '{"order":{"increment_id":"1"}}')
    assert key == "message:13"
    assert isinstance(content, Rejection)
    assert content.code == reasons.UNKNOWN_TOPIC
    assert "some.other.topic" in content.detail


NAMES = st.sampled_from(
    [
        *("order", "increment_id", "cart", "platform_cart_id", "quote", "entity_id", "platform_customer_id", "payload"),
        *("order_id", "quote_id", "customer", "customer_id", "id", "payment", "parent_id", "event_type", "config_id"),
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(NAMES, children, max_size=5),
    max_leaves=12,
)


@given(st.sampled_from(TOPICS), st.dictionaries(NAMES, JSON))
def test_identifying_never_raises(topic: str, message: dict[str, Any]) -> None:
    body = json.dumps(message)
    key, content = identify(topic, 99, body)
    assert 0 < len(key) <= MAX_LENGTH
    assert isinstance(content, Event) or key == "message:99"
