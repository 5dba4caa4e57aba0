"""The workload: recorded order events of the module, multiplied, each with an order number of its own."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

from zithara_worker.sandbox import examples
from zithara_worker.sandbox.fixtures import Fate, fixture_messages
from zithara_worker.sandbox.publisher import stored_body
from zithara_worker.topics import TOPIC_ORDER

RECORDED = Path(__file__).parents[1] / "tests" / "fixtures" / "plugin-cases.jsonl"
TOPIC = TOPIC_ORDER
#: What a whole order weighs at least; a few recorded ones are deliberately mutilated.
_WHOLE_ORDER = 3_000
#: Number of the first order.
FIRST_ORDER = 100_000_000
_PLACE = "ORDER-NUMBER"
#: Stands for what differs in each snapshot of a cart.
_PRICE = 987654321


def bodies(count: int, *, groups: int | None = None, first: int = 0, step: int = 1) -> Iterator[str]:
    """`count` stored bodies. `groups`: how many orders they belong to; None: each its own. `first`, `step`: their
    numbering."""
    events = [
        json.loads(message.published)
        for message in fixture_messages(RECORDED)
        if message.topic == TOPIC and message.fate is Fate.DELIVERED and message.published
    ]
    # Encoded once: as PHP writes it takes half a millisecond, and an order number's digits look the same in any JSON.
    whole = [
        stored_body({**event, "order": {**event["order"], "increment_id": _PLACE}})
        for event in events
        if len(json.dumps(event)) >= _WHOLE_ORDER
    ]
    for number, body in enumerate(islice(cycle(whole), count)):
        of_group = number if groups is None else number % groups
        yield body.replace(_PLACE, str(FIRST_ORDER + first + step * of_group))


def carts(count: int, *, groups: int | None = None, size: int = 0, first: int = 0) -> Iterator[str]:
    """`count` stored bodies of carts, of `size` bytes at least, each with another price. The rest as for `bodies`."""
    cart = examples.cart(_PLACE, total_price=_PRICE)
    items = cart["cart_item"] * max(1, math.ceil(size / len(stored_body(cart["cart_item"]))))
    body = stored_body({**cart, "cart_item": items})
    for number in range(count):
        of_group = number if groups is None else number % groups
        yield body.replace(_PLACE, str(7_000_000 + first + of_group)).replace(str(_PRICE), str(1_000 + number))
