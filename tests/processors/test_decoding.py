"""Stored bodies: what is an event, and the code of everything that is none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zithara_worker import reasons
from zithara_worker.messages import Event, Rejection
from zithara_worker.processors.decoding import MAX_DEPTH, decode
from zithara_worker.topics import TOPIC_ORDER


def rejected(body: str) -> Rejection:
    result = decode(TOPIC_ORDER, body)
    assert isinstance(result, Rejection)
    return result


def accepted(body: str) -> Event:
    result = decode(TOPIC_ORDER, body)
    assert isinstance(result, Event), result
    return result


def test_a_string_that_holds_json_and_a_bare_object_are_the_same_event() -> None:
    published = '{"order":{"increment_id":"1"}}'
    assert accepted(json.dumps(published)) == accepted(published)
    assert accepted(published).payload == {"order": {"increment_id": "1"}}
    assert accepted(published).topic == TOPIC_ORDER


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("", reasons.EMPTY_MESSAGE),
        (" \n", reasons.EMPTY_MESSAGE),
        ('""', reasons.EMPTY_MESSAGE),
        ('"  "', reasons.EMPTY_MESSAGE),
        ("not json", reasons.NOT_JSON),
        ('{"a":1', reasons.NOT_JSON),
        ('{"a":1} x', reasons.NOT_JSON),
        ('"{broken"', reasons.NOT_JSON),
        ("\ufeff{}", reasons.NOT_JSON),
        ('{"a":"line\nbreak"}', reasons.NOT_JSON),
        ("null", reasons.NOT_AN_OBJECT),
        ("42", reasons.NOT_AN_OBJECT),
        ("true", reasons.NOT_AN_OBJECT),
        ("[]", reasons.NOT_AN_OBJECT),
        ('"[1,2,3]"', reasons.NOT_AN_OBJECT),
        ('"null"', reasons.NOT_AN_OBJECT),
        (json.dumps(json.dumps("{}")), reasons.NOT_AN_OBJECT),
        ('{"a":NaN}', reasons.INVALID_NUMBER),
        ('{"a":[-Infinity]}', reasons.INVALID_NUMBER),
        ('{"a":1e999}', reasons.INVALID_NUMBER),
        (json.dumps('{"a":-1e400}'), reasons.INVALID_NUMBER),
        ('{"a":"\\ud83d"}', reasons.INVALID_TEXT),
        ('{"\\uDE00":1}', reasons.INVALID_TEXT),
        ('{"a":"\ud83d"}', reasons.INVALID_TEXT),
        (json.dumps('{"a":"\ud83d"}'), reasons.INVALID_TEXT),
    ],
)
def test_what_is_not_an_event_is_rejected_with_its_code(body: str, code: str) -> None:
    assert rejected(body).code == code


def test_the_detail_says_which_layer_is_wrong_and_quotes_nothing_of_it() -> None:
    assert "stored body" in rejected('{"email":"secret@example.com"').detail
    detail = rejected(json.dumps('{"email":"secret@example.com"')).detail
    assert "published message" in detail
    assert "secret" not in detail


def test_a_surrogate_pair_and_escaped_backslashes_are_ordinary_text() -> None:
    assert accepted('{"a":"\\ud83d\\ude00"}').payload == {"a": "😀"}
    assert accepted('{"a":"\\\\ud83d"}').payload == {"a": "\\ud83d"}


@pytest.mark.parametrize("opening", ['{"a":', "["])
def test_nesting_ends_where_phps_own_reader_ends(opening: str) -> None:
    closing = "}" if opening.startswith("{") else "]"

    def nested(levels: int) -> str:
        inner = levels - 1
        return '{"x":' + opening * inner + "1" + closing * inner + "}"

    assert isinstance(accepted(nested(MAX_DEPTH)), Event)
    assert rejected(nested(MAX_DEPTH + 1)).code == reasons.NESTED_TOO_DEEPLY
    assert rejected(json.dumps(nested(MAX_DEPTH + 1))).code == reasons.NESTED_TOO_DEEPLY
    assert rejected(nested(200_000)).code == reasons.NESTED_TOO_DEEPLY


def test_a_wide_message_is_not_taken_for_a_deep_one() -> None:
    wide = {"items": [{"n": [index]} for index in range(2 * MAX_DEPTH)]}
    assert accepted(json.dumps(wide)).payload == wide


@pytest.mark.parametrize(
    "literal",
    ["8411.380000000001", "0.1", "-0.0", "9007199254740993", "18446744073709551616", "5e-324", "1" + "0" * 400],
)
def test_a_number_is_written_again_as_it_was_read(literal: str) -> None:
    assert json.dumps(accepted(f'{{"a":{literal}}}').payload) == f'{{"a": {literal}}}'


def test_an_integer_of_more_digits_than_python_reads_is_rejected() -> None:
    assert rejected('{"a":' + "1" * 5000 + "}").code == reasons.INVALID_NUMBER


@given(st.text() | st.text(alphabet='{}[]":,\\ud8091eE.-+nN "'))
def test_decoding_never_raises_and_what_it_accepts_can_be_sent(body: str) -> None:
    for stored in (body, json.dumps(body)):
        result = decode(TOPIC_ORDER, stored)
        if isinstance(result, Event):
            json.dumps(result.payload, allow_nan=False, ensure_ascii=False).encode()
        else:
            assert result.code in reasons.REASONS
