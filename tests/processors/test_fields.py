"""The readers: which spellings of PHP and Magento they take, and what they say of the rest."""

from __future__ import annotations

from typing import Any

import pytest

from zithara_worker import reasons
from zithara_worker.errors import MessageRejected
from zithara_worker.processors import fields


@pytest.mark.parametrize(
    ("value", "amount"),
    [
        (499, 499),
        (499.5, 499.5),
        ("499.0000", 499.0),
        ("-100.0000", -100.0),
        ("+5", 5.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("1e3", 1000.0),
        (" 12.50 ", 12.5),
        ("\t7\n", 7.0),
        ("", 0),
        (0, 0),
        ("0", 0.0),
    ],
)
def test_an_amount_is_read_in_every_spelling_php_has_for_it(value: Any, amount: float) -> None:
    assert fields.number({"price": value}, "price", "") == amount


@pytest.mark.parametrize("row", [{}, {"price": None}])
def test_an_absent_or_null_amount_is_its_default(row: dict[str, Any]) -> None:
    assert fields.number(row, "price", "") == 0
    assert fields.number(row, "price", "", default=1) == 1


@pytest.mark.parametrize(
    "value",
    [
        *("free", "12abc", "abc12", "1,000.00", "1_000", "nan", "INF", "0x1A", "१२", " ", "1e999", "--1", "1 2"),
        *(True, False, [], [1], {}, {"a": 1}),
    ],
)
def test_what_is_no_amount_is_never_taken_for_nought(value: Any) -> None:
    with pytest.raises(MessageRejected) as caught:
        fields.number({"price": value}, "price", "items.0")
    assert caught.value.code == reasons.NOT_A_NUMBER
    assert "items.0.price" in caught.value.detail


def test_a_long_text_in_the_place_of_an_amount_is_quoted_in_part_only() -> None:
    with pytest.raises(MessageRejected) as caught:
        fields.number({"price": "x" * 1000}, "price", "")
    assert len(caught.value.detail) < 200


def test_an_integer_keeps_every_digit() -> None:
    assert fields.number({"n": 2**80 + 1}, "n", "") == 2**80 + 1


@pytest.mark.parametrize(
    ("value", "text"),
    [("a ", "a "), ("", ""), (None, ""), (False, ""), (906, "906"), (906.0, "906"), (1.5, "1.5"), (0, "0")],
)
def test_text_is_read_as_php_would_write_it(value: Any, text: str) -> None:
    assert fields.text({"id": value}, "id", "") == text


@pytest.mark.parametrize("value", [True, [], ["a"], {}, {"a": 1}])
def test_what_is_no_text_is_of_the_wrong_type(value: Any) -> None:
    with pytest.raises(MessageRejected) as caught:
        fields.text({"id": value}, "id", "cart")
    assert caught.value.code == reasons.WRONG_TYPE
    assert caught.value.detail.startswith("cart.id must be text, but is ")


@pytest.mark.parametrize("value", [None, "", "0", 0, False])
def test_a_required_text_must_not_be_empty_as_php_understands_it(value: Any) -> None:
    with pytest.raises(MessageRejected) as caught:
        fields.required_text({"email": value}, "email", "")
    assert caught.value.code == reasons.MISSING_FIELD
    assert caught.value.detail.startswith("email ")


@pytest.mark.parametrize("value", ["as it came", 5, 5.5, True, False, ""])
def test_a_scalar_is_passed_on_as_it_came(value: Any) -> None:
    assert fields.scalar({"sku": value}, "sku", "") is value


def test_a_null_scalar_is_its_default_and_a_list_is_of_the_wrong_type() -> None:
    assert fields.scalar({"email": None}, "email", "", default=False) is False
    with pytest.raises(MessageRejected) as caught:
        fields.scalar({"sku": ["a"]}, "sku", "items.1")
    assert (caught.value.code, caught.value.detail.split()[0]) == (reasons.WRONG_TYPE, "items.1.sku")


@pytest.mark.parametrize("value", [None, [], "", {}, False])
def test_an_empty_map_has_many_spellings(value: Any) -> None:
    assert fields.row({"address": value}, "address", "") == {}
    with pytest.raises(MessageRejected) as caught:
        fields.required_row({"address": value}, "address", "")
    assert caught.value.code == reasons.MISSING_FIELD


@pytest.mark.parametrize("value", [[1], "text", 5, True])
def test_a_map_must_be_a_map(value: Any) -> None:
    with pytest.raises(MessageRejected) as caught:
        fields.row({"address": value}, "address", "")
    assert caught.value.code == reasons.WRONG_TYPE


def test_a_list_with_holes_is_a_list() -> None:
    holes = {"0": {"item_id": "1"}, "2": {"item_id": "3"}}
    assert fields.rows({"items": holes}, "items", "") == [{"item_id": "1"}, {"item_id": "3"}]
    assert fields.rows({"items": []}, "items", "") == []
    assert fields.rows({}, "items", "") == []


@pytest.mark.parametrize(("value", "named"), [("x", "items"), (5, "items"), ([{}, 5], "items.1"), ([None], "items.0")])
def test_a_list_of_objects_holds_objects_only(value: Any, named: str) -> None:
    with pytest.raises(MessageRejected) as caught:
        fields.rows({"items": value}, "items", "")
    assert (caught.value.code, caught.value.detail.split()[0]) == (reasons.WRONG_TYPE, named)


def test_a_php_array_means_an_object_where_an_object_belongs() -> None:
    assert fields.as_object([]) == {}
    assert fields.as_object(["a", {"b": 1}]) == {"0": "a", "1": {"b": 1}}
    assert fields.as_object({"a": 1}) == {"a": 1}
    assert fields.as_object(None) is None


@pytest.mark.parametrize(
    ("calculated", "stored"),
    [
        (0.1 + 0.2, 0.3),
        (2.00005, 2.0001),  # below the tie as a double, and yet what the server rounds is the text
        (-2.00005, -2.0001),
        (8.264462809917, 8.2645),
        (498.99999999999994, 499),
        (499.0, 499),
        (-0.00001, 0),
        (1e300, 1e300),
        (12345678901234567890, 12345678901234567890),
    ],
)
def test_an_amount_is_compared_as_the_shops_columns_keep_it(calculated: float, stored: float) -> None:
    kept = fields.as_stored(calculated)
    assert kept == stored
    assert repr(kept) == repr(stored)


@pytest.mark.parametrize("written", [499, 499.0, "499", "499.0000", " 499.0 "])
def test_a_whole_amount_is_an_integer_however_it_is_written(written: object) -> None:
    assert repr(fields.number({"price": written}, "price", "")) == "499"
