"""The parser of PHP arrays, compared with what real PHP makes of the same text."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.php import run_php

from zithara_worker.shop.php_array import parse_returned_array

_PHP_TEXT = st.text(max_size=12)
_PHP_VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _PHP_TEXT,
    lambda values: (
        st.lists(values, max_size=4) | st.dictionaries(_PHP_TEXT | st.sampled_from(["0", "-7", "08"]), values)
    ),
    max_leaves=12,
)
#: Prints the file in base64, because a text stream would change its line ends.
_EXPORT = """
$values = json_decode(stream_get_contents(STDIN), true, 512, JSON_THROW_ON_ERROR);
echo base64_encode("<?php\\nreturn " . var_export(['all' => $values], true) . ";\\n");
"""


def php_array(value: Any) -> Any:
    """A JSON value as PHP's json_decode(..., true) makes it: one kind of array, and whole numbers as keys."""
    if isinstance(value, list):
        return {index: php_array(each) for index, each in enumerate(value)}
    if isinstance(value, dict):
        return {int(key) if is_php_integer(key) else key: php_array(v) for key, v in value.items()}
    return value


def is_php_integer(text: str) -> bool:
    return text.isascii() and text.removeprefix("-").isdigit() and str(int(text)) == text and abs(int(text)) < 2**63


@settings(max_examples=60, deadline=None)
@given(_PHP_VALUE)
def test_array_written_by_php_comes_back_equal(value: Any) -> None:
    text = base64.b64decode(run_php(_EXPORT, stdin=json.dumps(value))).decode()

    parsed = parse_returned_array(text, Path("env.php"))

    assert isinstance(parsed, dict)
    assert repr(parsed["all"]) == repr(php_array(value))


_DOUBLE = st.lists(
    st.sampled_from(
        ["\\n", "\\r", "\\t", "\\v", "\\e", "\\f", "\\\\", '\\"', "\\$", "\\0", "\\7", "\\101", "\\377",
         "\\x4", "\\x41", "\\xff", "\\u{e9}", "\\u{1F600}", "\\q",
         "\\'", "'", "\\{", "{", "}", "$", "$ ", "$1", "8", "é", "\n"]
    ),
    max_size=10,
).map("".join)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(_DOUBLE.filter(lambda text: not any(start in text for start in ("$é", "{$", "${"))), min_size=1))
def test_double_quoted_text_means_what_php_says(texts: list[str]) -> None:
    source = "[" + ", ".join(f'"{text}"' for text in texts) + "]"
    by_php = json.loads(run_php(f"echo json_encode(array_map('base64_encode', {source}));"))

    parsed = parse_returned_array(f"<?php return {source};", Path("env.php"))

    assert isinstance(parsed, dict)
    assert [str(each).encode("utf-8", "surrogateescape") for each in parsed.values()] == [
        base64.b64decode(each) for each in by_php
    ]


@pytest.mark.parametrize(
    "source",
    [
        "0x1F, 0b101, 0o17, 017, 1_000, 0, 00, 9223372036854775807, 9223372036854775808, -5, - 5",
        "1.5, .5, 1., 1e3, 1.5E-3, -0.0, 1_0.2_5, 0xFFFFFFFFFFFFFFFFF",
        "'8' => 'a', 'b', '08' => 'c', 'd', true => 'e', null => 'f', 2.0 => 'g', 'h', '-5' => 'i', '-0' => 'j'",
        "5 => 'a', 'b', 5 => 'c', '9223372036854775808' => 'd', 'e'",
        "'a' . 'b' . 1 . true . null, ('x'), '' ?: 'y', '0' ?: 'y', 0.0 ?: 'y', [] ?: 'y', null ?? 'z', false ?? 'z'",
        "'a' ?: 'b' . 'c', null ?? 'b' . 'c', '' ?: null ?? 'd', NULL, True, FALSE, array(1, 2,), ARRAY()",
        r"'a\'b\\c\d\n', '\\', ''",
    ],
)
def test_literals_mean_what_php_says(source: str) -> None:
    by_php = run_php(f"echo serialize([{source}]);")

    assert serialized(parse_returned_array(f"<?php return [{source}];", Path("env.php"))) == by_php


def serialized(value: Any) -> str:
    """PHP's serialize(), which tells types apart."""
    if value is None:
        return "N;"
    if isinstance(value, bool):
        return f"b:{value:d};"
    if isinstance(value, int):
        return f"i:{value};"
    if isinstance(value, float):
        return f"d:{float_text(value)};"
    if isinstance(value, str):
        return f's:{len(value.encode())}:"{value}";'
    return f"a:{len(value)}:{{{''.join(serialized(key) + serialized(each) for key, each in value.items())}}}"


def float_text(value: float) -> str:
    text = repr(value)
    if "e" in text:
        mantissa, exponent = text.split("e")
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}E{int(exponent):+d}"
    return text.removesuffix(".0")
