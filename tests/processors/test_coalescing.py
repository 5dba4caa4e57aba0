"""Which newer message makes an older one superfluous."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zithara_worker.messages import Event
from zithara_worker.processors import supersedes
from zithara_worker.sandbox import examples
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER, TOPIC_WEBHOOK


def customer(**payload: Any) -> Event:
    return Event(topic=TOPIC_CUSTOMER, payload=payload)


SAVED = Event(topic=TOPIC_CUSTOMER, payload=examples.customer())
EDITED = Event(topic=TOPIC_CUSTOMER, payload=examples.customer(is_update=True))
ADDRESS = customer(
    **{
        **examples.customer(is_update=True),
        "custom_attributes": {"mobilenumber": "1", "loyalty_tier": "gold", "address_data": {"city": "Pune"}},
    }
)


def test_a_customer_with_an_address_replaces_one_without_but_not_the_other_way_round() -> None:
    assert supersedes(ADDRESS, SAVED)
    assert not supersedes(SAVED, ADDRESS)


def test_whether_it_is_an_update_makes_no_difference() -> None:
    assert supersedes(SAVED, EDITED)
    assert supersedes(EDITED, SAVED)


@pytest.mark.parametrize(
    ("newer", "older", "expected"),
    [
        ({"a": 1}, {"a": 2}, True),
        ({"a": None}, {"a": 2}, True),
        ({"a": 1}, {"b": 1}, False),
        ({"address_data": {"city": "Pune"}}, {"address_data": {"city": "Goa", "street": "x"}}, False),
        ({"address_data": None}, {"address_data": {"city": "Goa"}}, False),
        ({"address_data": {"city": "Pune"}}, {"address_data": []}, True),
        ({}, [], True),
        ([], {}, True),
        ([], {"a": 1}, False),
    ],
)
def test_custom_attributes_are_compared_by_name_one_level_deep(newer: Any, older: Any, expected: bool) -> None:
    assert supersedes(customer(custom_attributes=newer), customer(custom_attributes=older)) is expected


def test_a_field_that_only_the_older_customer_has_is_not_lost() -> None:
    assert not supersedes(customer(email="a@example.com"), customer(email="a@example.com", phone_number="1"))


@pytest.mark.parametrize("topic", [TOPIC_CART, TOPIC_ORDER, TOPIC_WEBHOOK])
def test_messages_of_the_other_topics_are_snapshots(topic: str) -> None:
    assert supersedes(Event(topic=topic, payload={}), Event(topic=topic, payload={"a": 1}))


def test_a_message_of_another_topic_replaces_nothing() -> None:
    assert not supersedes(Event(topic=TOPIC_WEBHOOK, payload={"a": 1}), customer(a=1))


_ATTRIBUTES = st.dictionaries(
    st.sampled_from("abc"), st.one_of(st.none(), st.just([]), st.dictionaries(st.sampled_from("xy"), st.integers()))
)
_CUSTOMERS = st.fixed_dictionaries({}, optional={"email": st.just("e"), "custom_attributes": _ATTRIBUTES})


@given(_CUSTOMERS, _CUSTOMERS, _CUSTOMERS)
def test_it_is_reflexive_and_transitive(first: Any, second: Any, third: Any) -> None:
    a, b, c = customer(**first), customer(**second), customer(**third)
    assert supersedes(a, a)
    if supersedes(c, b) and supersedes(b, a):
        assert supersedes(c, a)
