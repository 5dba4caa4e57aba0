from __future__ import annotations

import gzip
import json
import sys
import time
from collections.abc import Mapping
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zithara_worker import reasons
from zithara_worker.messages import Evidence, Outcome, OutcomeKind, Request, Target
from zithara_worker.zithara.answers import (
    BODY_LIMIT,
    EXCERPT_LENGTH,
    MAX_DEPTH,
    NOT_JSON,
    Answer,
    classify,
    excerpt,
    json_of,
)

NOW = 1_700_000_000.0
POST_ORDER = Request(target=Target.API, method="POST", path="/order", json={})
PATCH_ORDER = Request(target=Target.API, method="PATCH", path="/order", json={})
WEBHOOK = Request(target=Target.WEBHOOK, method="POST", path="https://h.example/x", json={}, idempotent=False)


def outcome_of(
    status: int,
    body: bytes = b"{}",
    *,
    request: Request = POST_ORDER,
    headers: Mapping[str, str] | None = None,
    broken: bool = False,
) -> Outcome:
    answer = Answer(status=status, headers=headers or {}, body=body, broken=broken, duration_ms=12.5)
    return classify(answer, request, endpoint="here", now_utc=lambda: NOW, mask=lambda text: text)


def verdict(outcome: Outcome) -> tuple[OutcomeKind, str, Evidence]:
    return outcome.kind, outcome.reason, outcome.evidence


@pytest.mark.parametrize("request_", [POST_ORDER, WEBHOOK], ids=["api", "webhook"])
@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_success_is_any_2xx(request_: Request, status: int) -> None:
    assert outcome_of(status, b"", request=request_) == Outcome(
        kind=OutcomeKind.DELIVERED,
        http_status=status,
        duration_ms=12.5,
        endpoint="here",
        evidence=Evidence.SERVED,
    )


@pytest.mark.parametrize("status", [401, 403, 408, 425, 500, 502, 503, 504, 599])
def test_what_may_pass_is_retried_and_tells_against_the_path(status: int) -> None:
    outcome = outcome_of(status)
    assert verdict(outcome) == (OutcomeKind.RETRY, f"http_{status}", Evidence.PATH)
    assert outcome.http_status == status


@pytest.mark.parametrize("status", [400, 404, 405, 409, 410, 413, 422, 451])
def test_what_the_api_refuses_has_failed(status: int) -> None:
    outcome = outcome_of(status, b'{"message": "why"}')
    assert verdict(outcome) == (OutcomeKind.FAILED, f"http_{status}", Evidence.SERVED)
    assert "why" in outcome.detail


@pytest.mark.parametrize("body", [b"", b"<h1>Not found</h1>", b"404 page not found", b'{"message": "wh'])
@pytest.mark.parametrize("status", [400, 404, 405, 413, 422])
def test_a_refusal_without_json_is_not_the_apis(status: int, body: bytes) -> None:
    for request in (POST_ORDER, PATCH_ORDER):
        outcome = outcome_of(status, body, request=request)
        assert verdict(outcome) == (OutcomeKind.RETRY, f"http_{status}", Evidence.PATH)


@pytest.mark.parametrize("status", [300, 301, 302, 304, 307, 399, 600, 999])
def test_a_redirect_or_no_status_at_all_is_not_the_apis(status: int) -> None:
    for body in (b'{"message": "moved"}', b'{"status": 422}'):
        outcome = outcome_of(status, body)
        assert verdict(outcome) == (OutcomeKind.RETRY, f"http_{status}", Evidence.PATH)


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 422, 500, 503])
def test_a_webhook_is_tried_again_whatever_its_receiver_says(status: int) -> None:
    for body in (b"", b'{"message": "why"}'):
        outcome = outcome_of(status, body, request=WEBHOOK)
        assert verdict(outcome) == (OutcomeKind.RETRY, f"http_{status}", Evidence.PATH)


def test_a_webhook_that_is_gone_has_failed() -> None:
    outcome = outcome_of(410, b"", request=WEBHOOK)
    assert verdict(outcome) == (OutcomeKind.FAILED, "http_410", Evidence.SERVED)


def test_an_order_update_that_finds_no_order_is_not_settled_by_the_answer_alone() -> None:
    outcome = outcome_of(404, request=PATCH_ORDER)
    assert (outcome.kind, outcome.reason) == (OutcomeKind.RETRY, reasons.ORDER_NOT_FOUND_YET)
    assert outcome.evidence is Evidence.SERVED


@pytest.mark.parametrize(
    ("own", "kind", "reason"),
    [
        (422, OutcomeKind.FAILED, "http_422"),
        (400.0, OutcomeKind.FAILED, "http_400"),
        (500, OutcomeKind.RETRY, "http_500"),
        (401, OutcomeKind.RETRY, "http_401"),
        (429, OutcomeKind.RELEASED, reasons.THROTTLED),
        ("422", OutcomeKind.FAILED, "http_422"),
        (" 503 ", OutcomeKind.RETRY, "http_503"),
        (599, OutcomeKind.RETRY, "http_599"),
        (600, OutcomeKind.DELIVERED, ""),
        (10**3999, OutcomeKind.DELIVERED, ""),
        ("4" * 4000, OutcomeKind.DELIVERED, ""),
        ("4" * 5000, OutcomeKind.DELIVERED, ""),
        ("4x2", OutcomeKind.DELIVERED, ""),
        ("٤٢٢", OutcomeKind.DELIVERED, ""),
        (201, OutcomeKind.DELIVERED, ""),
        (399, OutcomeKind.DELIVERED, ""),
        (True, OutcomeKind.DELIVERED, ""),
        (None, OutcomeKind.DELIVERED, ""),
        ({"code": 500}, OutcomeKind.DELIVERED, ""),
    ],
    ids=lambda value: str(value)[:12],
)
def test_the_status_in_the_body_of_a_success_decides(own: object, kind: OutcomeKind, reason: str) -> None:
    outcome = outcome_of(200, json.dumps({"status": own}).encode())
    assert (outcome.kind, outcome.reason, outcome.http_status) == (kind, reason, 200)


def test_the_status_in_the_body_of_a_webhook_receiver_means_nothing_to_us() -> None:
    assert outcome_of(200, b'{"status": 500}', request=WEBHOOK).kind is OutcomeKind.DELIVERED


@pytest.mark.parametrize("body", [b"Infinity", b'{"status": Infinity}', b'{"status": NaN}', b"ok", b"\xff", b"null"])
def test_a_success_with_a_body_that_says_nothing_is_a_success(body: bytes) -> None:
    assert outcome_of(200, body, headers={"content-type": "application/json"}).kind is OutcomeKind.DELIVERED


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (gzip.compress(b'{"status": 400}'), {"content-encoding": "gzip"}),
        (b'{"status": 200}', {"content-encoding": "br"}),
        (b'{"note": "%s"}' % (b"x" * BODY_LIMIT), {}),
        (b'{"sta', {}),
        (b" [[" * 20_000, {}),
    ],
    ids=["gzip", "br", "long", "cut", "deep"],
)
def test_a_success_whose_body_cannot_be_read_is_none(body: bytes, headers: dict[str, str]) -> None:
    outcome = outcome_of(200, body, headers=headers)
    assert verdict(outcome) == (OutcomeKind.RETRY, reasons.UNREADABLE_ANSWER, Evidence.PATH)
    # What a webhook's receiver writes is not looked at.
    assert outcome_of(200, body, headers=headers, request=WEBHOOK).kind is OutcomeKind.DELIVERED


def test_a_success_with_a_number_that_python_does_not_convert_is_none() -> None:
    body = b'{"id": %s}' % (b"4" * 5000)
    limited = hasattr(sys, "set_int_max_str_digits")  # 3.10.7 and later; older versions convert any number
    outcome = outcome_of(200, body)
    assert (outcome.kind, outcome.reason) == (
        (OutcomeKind.RETRY, reasons.UNREADABLE_ANSWER) if limited else (OutcomeKind.DELIVERED, "")
    )
    if limited:
        limit = sys.get_int_max_str_digits()
        sys.set_int_max_str_digits(0)
        try:
            assert outcome_of(200, body).kind is OutcomeKind.DELIVERED
        finally:
            sys.set_int_max_str_digits(limit)


def test_brackets_in_text_are_no_levels() -> None:
    note = json.dumps({"status": 422, "note": '\\"[' * 500, "list": [[]] * 200})
    assert outcome_of(200, note.encode()).reason == "http_422"


@pytest.mark.parametrize(("levels", "is_read"), [(MAX_DEPTH, True), (MAX_DEPTH + 1, False)])
def test_an_answer_is_read_up_to_a_depth_that_every_stack_bears(levels: int, is_read: bool) -> None:
    assert (json_of("[" * levels + "]" * levels) is not NOT_JSON) == is_read


def test_an_encoding_that_changes_nothing_is_read() -> None:
    assert outcome_of(200, b'{"status": 422}', headers={"content-encoding": "Identity"}).reason == "http_422"


def test_an_html_page_is_not_the_api() -> None:
    page = {"content-type": "text/html; charset=utf-8"}
    outcome = outcome_of(200, b"<h1>Maintenance</h1>", headers=page)
    assert verdict(outcome) == (OutcomeKind.RETRY, reasons.HTML_ANSWER, Evidence.PATH)
    # PHP calls everything text/html until told otherwise
    assert outcome_of(200, b'{"status": 200}', headers=page).kind is OutcomeKind.DELIVERED
    assert outcome_of(200, b"<h1>Thanks</h1>", headers=page, request=WEBHOOK).kind is OutcomeKind.DELIVERED


def test_a_success_cut_off_is_sent_again_to_the_api_only() -> None:
    outcome = outcome_of(200, b'{"sta', broken=True)
    assert verdict(outcome) == (OutcomeKind.RETRY, reasons.TRUNCATED_ANSWER, Evidence.PATH)
    # Sending that again could do twice what has been done already.
    assert outcome_of(200, b"th", broken=True, request=WEBHOOK).kind is OutcomeKind.DELIVERED
    assert outcome_of(422, b"{}", broken=True).kind is OutcomeKind.RETRY


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        ("0", 0.0),
        (" 7 ", 7.0),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
        ("Sun, 06 Nov 1994 08:49:37 -0000", 0.0),
        ("9" * 400, 86_400.0),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("²", None),
        ("Mon, 99 Foo 2023 00:00:00 GMT", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_understood_in_both_forms(value: str | None, seconds: float | None) -> None:
    headers = {} if value is None else {"retry-after": value}

    throttled = outcome_of(429, headers=headers)

    assert verdict(throttled) == (OutcomeKind.RELEASED, reasons.THROTTLED, Evidence.NONE)
    assert throttled.retry_after_seconds == seconds
    assert outcome_of(503, headers=headers).retry_after_seconds == seconds


def test_a_date_without_a_zone_is_greenwichs_wherever_the_shop_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as india:
        india.setenv("TZ", "Asia/Kolkata")
        time.tzset()
        paused = outcome_of(429, headers={"retry-after": formatdate(NOW + 90)})
    time.tzset()
    assert paused.retry_after_seconds == 90.0


def test_a_redirect_says_where_to() -> None:
    assert "https://new.example/v2" in outcome_of(301, headers={"location": "https://new.example/v2"}).detail


@given(st.text(), st.integers(0, 40))
def test_an_excerpt_is_one_short_printable_line_without_the_secret(text: str, position: int) -> None:
    secret = "tok-4711"
    shown = excerpt(text[:position] + secret + text[position:] * 40, lambda line: line.replace(secret, "***"))
    assert secret not in shown
    assert len(shown) <= EXCERPT_LENGTH
    assert shown.isprintable()


def test_a_secret_at_the_edge_of_an_excerpt_is_not_cut_but_masked() -> None:
    shown = excerpt("x" * (EXCERPT_LENGTH - 4) + "tok-4711", lambda line: line.replace("tok-4711", "***"))
    assert "tok" not in shown
