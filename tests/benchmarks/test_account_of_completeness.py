"""The account at the end of the benchmark of `reconcile`: each order once, and no other."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.api_server import Arrival
from benchmarks.completeness import account

WANTED = frozenset({"100000100", "900000000"})


def came(*orders: str) -> list[Arrival]:
    return [Arrival(f"zithara_order_queue-{number}", order, float(number)) for number, order in enumerate(orders)]


def test_each_order_once_is_right() -> None:
    account(came("900000000", "100000100"), WANTED)


@pytest.mark.parametrize(
    ("orders", "said"),
    [
        (("900000000",), "1 never came, e.g. .'100000100'"),
        (("900000000", "100000100", "100000100"), "1 came more than once, e.g. .'100000100'"),
        (("900000000", "100000100", "100000101"), "1 came, but not published, e.g. .'100000101'"),
        (("900000000", "100000100", ""), "1 came, but not published"),
    ],
)
def test_anything_else_is_an_error(orders: tuple[str, ...], said: str) -> None:
    with pytest.raises(RuntimeError, match=said):
        account(came(*orders), WANTED)
