"""The account of what RabbitMQ confirmed and what is in the database: what it must see."""

from __future__ import annotations

import json
import random

import pytest

from chaos.publishers import Group, Published, groups
from chaos.relay import Sent, account, payload
from zithara_worker.processors import identify
from zithara_worker.sandbox.publisher import stored_body
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER

ORDER, CART = Group(TOPIC_ORDER, 100_001), Group(TOPIC_CART, 100_002)


def sent(*unconfirmed: str) -> dict[str, Sent]:
    """Messages a, b, c about an order and d about a cart, in this order, of one publisher."""
    return {
        body: Sent(0, place, CART if body == "d" else ORDER, None if body in unconfirmed else 1.0)
        for place, body in enumerate("abcd")
    }


def wrong(bodies: str, *unconfirmed: str, relayed: int | None = None, aside: int = 0) -> list[str]:
    rows = list(enumerate(bodies, start=1))
    expected = len(set(bodies)) if relayed is None else relayed
    return account(rows, sent(*unconfirmed), Published(), relayed=expected, aside=aside)[1]


def test_every_confirmed_message_once_and_in_order_is_good() -> None:
    published = Published()
    lines, found = account(list(enumerate("abcd", 1)), sent(), published, relayed=4, aside=0)
    assert found == [] and "4 confirmed" in lines[0]
    assert published.groups == {1: ORDER, 2: ORDER, 3: ORDER, 4: CART}
    assert published.contents == {1: 0, 2: 1, 3: 2, 4: 3}
    assert wrong("dabc") == [], "queues are independent of each other"


@pytest.mark.parametrize("bodies", ["acd", "abcd"])
def test_a_message_without_confirmation_may_be_there_or_not(bodies: str) -> None:
    assert wrong(bodies, "b") == []


@pytest.mark.parametrize(
    ("bodies", "told"),
    [
        ("acd", "lost: "),
        ("abbcd", "inserted 2 times: "),
        ("acbd", " came after "),
        ("abcde", "was never published"),
    ],
)
def test_what_is_lost_inserted_twice_out_of_order_or_unknown_is_told(bodies: str, told: str) -> None:
    relayed = len(set(bodies) & set("abcd"))
    (found,) = wrong(bodies, relayed=relayed)
    assert told in found


def test_tables_of_the_relay_must_agree() -> None:
    assert "zithara_relayed has 3 rows for 4 messages" in wrong("abcd", relayed=3)
    assert "2 pieces were kept aside" in wrong("abcd", aside=2)


def test_payloads_are_about_their_group_and_never_the_same() -> None:
    chance = random.Random(1)
    for group in groups(10):
        bodies = [stored_body(payload(group, unique, chance)) for unique in range(20)]
        assert len(set(bodies)) == 20
        names = {identify(group.topic, 1, body)[0] for body in bodies}
        assert len(names) == 1 and names.pop().endswith(str(group.number))
    assert (
        json.loads(json.loads(stored_body(payload(ORDER, 3, chance))))["order"]["updated_at"] == "2026-11-24 14:31:34"
    )
