"""Small typed readers of the shop's JSON. Each raises MessageRejected with a named code and the field's dotted name.

The JSON comes from PHP arrays and Magento's data objects, so one value has many spellings: a decimal is 499, 499.0 or
"499.0000" (numbers on the first save, strings after a load), an empty map is [], nothing is null, '' or false. The
readers accept those spellings and nothing looser: PHP's casts, which make 0.0 of "free", are not repeated.

`path` is the dotted name of the row that is read ("order", "items.0"; '' for the message itself); it is only used
to say where something is wrong. Details name types and amounts, never a person's data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from zithara_worker import reasons
from zithara_worker.errors import MessageRejected

Row = Mapping[str, Any]
Scalar = str | int | float | bool

_NOTHING: Row = {}

# A numeric string of PHP 8: blanks around it are allowed. Python's float() alone would also take "nan", "1_000"
# and digits of other scripts.
_BLANK = r"[ \t\n\r\v\f]*"
_NUMERIC = re.compile(_BLANK + r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?" + _BLANK)

_FOUR_PLACES = Decimal("0.0001")
#: Below it doubles tell all integers apart.
_EXACT = 2**53

_JSON_NAMES = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
_EXCERPT = 40


def json_name(value: Any) -> str:
    """The JSON type of `value`, in words."""
    return _JSON_NAMES.get(type(value), "a number")


def is_empty(value: Any) -> bool:
    """PHP's empty(): null, false, 0, '', '0', [] and {} are."""
    return not value or value == "0"


def row_or_nothing(value: Any) -> Row:
    """`value` if it is an object, else an empty one: for optional data, where another type must not raise."""
    return value if isinstance(value, dict) else _NOTHING


def row(parent: Row, name: str, path: str) -> Row:
    """The object `name`; an empty one if it is absent or empty ([] is PHP's empty map). Raises wrong_type."""
    value = parent.get(name)
    if isinstance(value, dict):
        return value
    if is_empty(value):
        return _NOTHING
    raise wrong_type(value, name, path, "an object")


def required_row(parent: Row, name: str, path: str) -> Row:
    """The object `name`, which must hold something. Raises missing_field, wrong_type."""
    found = row(parent, name, path)
    if not found:
        raise missing(name, path)
    return found


def rows(parent: Row, name: str, path: str) -> list[Row]:
    """The objects of the list `name`, [] if it is absent or empty. Raises wrong_type.

    PHP writes a list with holes (a filtered array) as an object whose keys are the positions: its values are taken.
    """
    value = parent.get(name)
    if isinstance(value, dict):
        value = list(value.values())
    if is_empty(value):
        return []
    if not isinstance(value, list):
        raise wrong_type(value, name, path, "a list")
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise wrong_type(item, str(index), _dotted(name, path), "an object")
    return value


def scalar(parent: Row, name: str, path: str, default: Scalar = "") -> Scalar:
    """The value as it came; `default` if it is absent or null. Raises wrong_type for an object or a list."""
    value: Scalar | dict[str, Any] | list[Any] | None = parent.get(name)
    if value is None:
        return default
    if isinstance(value, (dict, list)):
        raise wrong_type(value, name, path, "text")
    return value


def text(parent: Row, name: str, path: str) -> str:
    """The value as text; '' if it is absent, null or false. A number is written as PHP would: 906 and 906.0 are '906'.

    Raises wrong_type for true, an object or a list.
    """
    value = parent.get(name)
    if isinstance(value, str):
        return value
    if value is None or value is False:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong_type(value, name, path, "text")
    return number_text(value)


def required_text(parent: Row, name: str, path: str) -> str:
    """The value as text, which must not be empty in PHP's sense ('0' is). Raises missing_field, wrong_type."""
    value = text(parent, name, path)
    if is_empty(value):
        raise missing(name, path)
    return value


def number_text(value: int | float) -> str:
    """A JSON number as an id: 906 and 906.0 are '906', 1.5 is '1.5'."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def number(parent: Row, name: str, path: str, default: int | float = 0) -> int | float:
    """The amount `name`; `default` if it is absent or null, 0 if it is ''. Raises not_a_number.

    JSON integers stay integers, so that none loses a digit; decimals are doubles, as PHP reads and writes them. A whole
    amount is an integer however it was written, which is how PHP writes it, so that one amount gives one request.
    """
    value: object = parent.get(name)
    if value is None:
        return default
    # Compared with `is`: this runs for each amount of each message, and a boolean is no number.
    kind = type(value)
    if kind is int or kind is float:
        return _whole(value)  # type: ignore[arg-type]
    if isinstance(value, str):
        if not value:
            return 0
        if _NUMERIC.fullmatch(value):
            amount = float(value)
            if math.isfinite(amount):
                return _whole(amount)
    seen = f"the text {value[:_EXCERPT]!r}" if isinstance(value, str) else json_name(value)
    raise MessageRejected(
        reasons.NOT_A_NUMBER, f"{_dotted(name, path)} must be a number, but is {seen}; correct it in the shop"
    )


def as_stored(amount: int | float) -> int | float:
    """The amount as Magento's DECIMAL columns keep it: four places, half rounded up. Before its first save an entity
    has what PHP calculated: 0.30000000000000004, or a price without tax of a dozen places."""
    if isinstance(amount, int) or not -_EXACT < amount < _EXACT:
        return amount
    if round(amount, 4) == amount:  # nearly always, and much cheaper
        return _whole(amount)
    return _whole(float(Decimal(repr(amount)).quantize(_FOUR_PLACES, ROUND_HALF_UP)))


def _whole(amount: int | float) -> int | float:
    """499.0 as 499; beyond what a double can tell apart, amounts stay as they are."""
    if type(amount) is float and -_EXACT < amount < _EXACT and amount.is_integer():
        return int(amount)
    return amount


def full_name(parent: Row, first: str, last: str, path: str) -> str:
    """First and last name with a blank between them and none around them (PHP's trim). Raises wrong_type."""
    return f"{text(parent, first, path)} {text(parent, last, path)}".strip(" \t\n\r\v\0")


def as_object(value: Any) -> Any:
    """A PHP array as the JSON object that it means ([] is {}, a list's keys are its positions); the rest as it is."""
    return {str(index): item for index, item in enumerate(value)} if isinstance(value, list) else value


def _dotted(name: str, path: str) -> str:
    return f"{path}.{name}" if path else name


def missing(name: str, path: str) -> MessageRejected:
    """The rejection of a message that lacks `name`."""
    return MessageRejected(
        reasons.MISSING_FIELD, f"{_dotted(name, path)} is absent or empty; find the program that publishes this message"
    )


def wrong_type(value: Any, name: str, path: str, expected: str) -> MessageRejected:
    """The rejection of a message whose `name` is not `expected` ("an object")."""
    return MessageRejected(
        reasons.WRONG_TYPE,
        f"{_dotted(name, path)} must be {expected}, but is {json_name(value)}; "
        "find the program that publishes this message",
    )
