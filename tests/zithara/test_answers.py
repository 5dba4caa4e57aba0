from __future__ import annotations

import json
from collections.abc import Mapping
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zithara_worker.messages import Outcome, OutcomeKind, Request, Target
from zithara_worker.zithara import reasons
from zithara_worker.zithara.answers import EXCERPT_LENGTH, Answer, classify, excerpt

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


@pytest.mark.parametrize("request_", [POST_ORDER, WEBHOOK], ids=["api", "webhook"])
@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_success_is_any_2xx(request_: Request, status: int) -> None:
    assert outcome_of(status, b"", request=request_) == Outcome(
        kind=OutcomeKind.DELIVERED, http_status=status, duration_ms=12.5, endpoint="here"
    )


@pytest.mark.parametrize("status", [408, 425, 500, 502, 503, 504, 599])
def test_what_may_pass_is_retried_and_counts_as_an_outage(status: int) -> None:
    outcome = outcome_of(status)
    assert (outcome.kind, outcome.reason, outcome.outage) == (OutcomeKind.RETRY, f"http_{status}", True)
    assert outcome.http_status == status


@pytest.mark.parametrize("status", [300, 301, 302, 304, 307, 400, 404, 405, 409, 413, 422, 451, 600, 999])
def test_what_will_not_pass_has_failed(status: int) -> None:
    outcome = outcome_of(status, b'{"message": "why"}')
    assert (outcome.kind, outcome.reason, outcome.outage) == (OutcomeKind.FAILED, f"http_{status}", False)
    assert "why" in outcome.detail


@pytest.mark.parametrize("status", [401, 403])
def test_refusals_are_about_the_credentials_and_not_about_the_message(status: int) -> None:
    outcome = outcome_of(status)
    assert (outcome.kind, outcome.reason, outcome.outage) == (
        OutcomeKind.RELEASED,
        reasons.CREDENTIALS_REFUSED,
        True,
    )


def test_an_order_update_that_finds_no_order_waits_for_it_and_is_no_outage() -> None:
    outcome = outcome_of(404, request=PATCH_ORDER)
    assert (outcome.kind, outcome.reason, outcome.outage) == (OutcomeKind.RETRY, reasons.ORDER_NOT_FOUND_YET, False)
    assert outcome_of(404, request=WEBHOOK).kind is OutcomeKind.FAILED


@pytest.mark.parametrize(
    ("own", "kind", "reason"),
    [
        (422, OutcomeKind.FAILED, "http_422"),
        (400.0, OutcomeKind.FAILED, "http_400"),
        (500, OutcomeKind.RETRY, "http_500"),
        (401, OutcomeKind.RELEASED, reasons.CREDENTIALS_REFUSED),
        (429, OutcomeKind.RELEASED, reasons.THROTTLED),
        (1000, OutcomeKind.FAILED, "http_1000"),
        (201, OutcomeKind.DELIVERED, ""),
        (399, OutcomeKind.DELIVERED, ""),
        (True, OutcomeKind.DELIVERED, ""),
        ("422", OutcomeKind.DELIVERED, ""),
        (None, OutcomeKind.DELIVERED, ""),
        ({"code": 500}, OutcomeKind.DELIVERED, ""),
    ],
)
def test_the_numeric_status_in_the_body_of_a_success_decides(own: object, kind: OutcomeKind, reason: str) -> None:
    outcome = outcome_of(200, json.dumps({"status": own}).encode())
    assert (outcome.kind, outcome.reason, outcome.http_status) == (kind, reason, 200)


def test_the_status_in_the_body_of_a_webhook_receiver_means_nothing_to_us() -> None:
    assert outcome_of(200, b'{"status": 500}', request=WEBHOOK).kind is OutcomeKind.DELIVERED


@pytest.mark.parametrize(
    "body", [b"Infinity", b'{"status": Infinity}', b'{"status": NaN}', b"[[" * 40_000, b"ok", b"\xff"]
)
def test_a_success_with_a_body_that_says_nothing_is_a_success(body: bytes) -> None:
    assert outcome_of(200, body, headers={"content-type": "application/json"}).kind is OutcomeKind.DELIVERED


def test_an_html_page_is_not_the_api() -> None:
    page = {"content-type": "text/html; charset=utf-8"}
    outcome = outcome_of(200, b"<h1>Maintenance</h1>", headers=page)
    assert (outcome.kind, outcome.reason, outcome.outage) == (OutcomeKind.RETRY, reasons.HTML_ANSWER, True)
    # PHP calls everything text/html until told otherwise
    assert outcome_of(200, b'{"status": 200}', headers=page).kind is OutcomeKind.DELIVERED
    assert outcome_of(200, b"<h1>Thanks</h1>", headers=page, request=WEBHOOK).kind is OutcomeKind.DELIVERED


def test_a_success_cut_off_is_sent_again_to_the_api_only() -> None:
    outcome = outcome_of(200, b'{"sta', broken=True)
    assert (outcome.kind, outcome.reason, outcome.outage) == (OutcomeKind.RETRY, reasons.TRUNCATED_ANSWER, True)
    # Sending that again could do twice what has been done already.
    assert outcome_of(200, b"th", broken=True, request=WEBHOOK).kind is OutcomeKind.DELIVERED
    assert outcome_of(422, b"th", broken=True).kind is OutcomeKind.FAILED


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

    assert (throttled.kind, throttled.reason, throttled.outage) == (OutcomeKind.RELEASED, reasons.THROTTLED, False)
    assert throttled.retry_after_seconds == seconds
    assert outcome_of(503, headers=headers).retry_after_seconds == seconds


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


def test_every_reason_is_documented() -> None:
    codes = {value for name, value in vars(reasons).items() if name.isupper() and isinstance(value, str)}
    assert codes - set(reasons.REASONS) == {reasons.HTTP_STATUS_PREFIX}
