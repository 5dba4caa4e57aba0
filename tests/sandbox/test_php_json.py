"""Our json_encode and PHP's are the same bytes."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.php import run_php

from zithara_worker.sandbox.publisher import php_json_encode

_VALUES = [
    None,
    True,
    False,
    0,
    -7,
    10.0,
    -0.0,
    0.1,
    8411.380000000001,
    1e15,
    1.5e16,
    1.234567890123457e16,
    1e17,
    1e25,
    1e-4,
    1e-5,
    1.25e-7,
    "",
    "a/b",
    "\x00\x08\x0c\n\r\t\x1f\x7f\\\x7f\\u007f\"'<>&",
    "अंगूठी 😀 \u2028 é",
    [],
    {},
    {"a": [1, {"b": None}], "/": "\x7f"},
]


def test_encodes_like_php() -> None:
    """PHP reads Python's JSON and writes it again by its own rules."""
    rewritten = run_php(
        'foreach (json_decode(stream_get_contents(STDIN)) as $value) { echo json_encode($value), "\\0"; }',
        stdin=json.dumps(_VALUES),
    ).split("\0")[:-1]
    assert [php_json_encode(value) for value in _VALUES] == rewritten


def test_single_values_of_every_magnitude_are_written_like_php() -> None:
    numbers = [sign * digits * 10.0**power for sign in (1, -1) for digits in (1, 1.7, 9.99) for power in range(-20, 30)]
    rewritten = run_php(
        'foreach (json_decode(stream_get_contents(STDIN)) as $value) { echo json_encode((float) $value), "\\n"; }',
        stdin=json.dumps(numbers),
    ).split()
    assert [php_json_encode(number) for number in numbers] == rewritten


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_what_is_encoded_reads_back(value: object) -> None:
    assert json.loads(php_json_encode(value), strict=False) == value


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_without_json_are_refused(number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        php_json_encode(number)


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="bytes has no JSON"):
        php_json_encode(b"bytes")
