from __future__ import annotations

import hashlib
import io
import json
import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clock import Clock
from support.waiting import together
from zithara_doubles import Pauses

from zithara_worker import reasons
from zithara_worker.errors import ConfigurationError
from zithara_worker.logs import handlers as logs
from zithara_worker.messages import Evidence, OutcomeKind, Request, Target
from zithara_worker.sandbox.api import TOKEN_PATH, WEBHOOK_PATH, FakeZithara, Reply, in_turn
from zithara_worker.settings.sections import LoggingSettings
from zithara_worker.version import VERSION
from zithara_worker.zithara.api import ZitharaApi, encoded, idempotency_key
from zithara_worker.zithara.http import Transport
from zithara_worker.zithara.tokens import TokenSource

MakeApi = Callable[..., ZitharaApi]
LogLines = Callable[[str], list[dict[str, Any]]]


def order(method: str = "POST", json: object = None) -> Request:
    return Request(target=Target.API, method=method, path="/order", json=json or {"order": {"name": "100001"}})


def webhook(url: str) -> Request:
    return Request(
        target=Target.WEBHOOK,
        method="POST",
        path=url,
        json={"id": 1},
        headers={"X-Webhook-Event": "order_refund"},
        idempotent=False,
    )


def test_a_request_carries_what_the_api_wants(api: FakeZithara, zithara: ZitharaApi, tokens: TokenSource) -> None:
    outcome = zithara.send(order("PATCH", {"name": "Ünal"}), "zithara_order_queue-17")

    (request,) = api.requests()
    assert (request.method, request.path) == ("PATCH", "/v1/order")
    assert request.body == '{"name":"Ünal"}'.encode()
    digest = hashlib.sha256(b"PATCH/order" + request.body).hexdigest()
    assert request.headers == {
        "host": f"127.0.0.1:{api.port}",
        "content-type": "application/json",
        "accept": "application/json",
        "accept-encoding": "identity",
        "user-agent": f"zithara-worker/{VERSION}",
        "authorization": tokens.get(),
        "idempotency-key": f"zithara_order_queue-17-{digest[:16]}",
        "content-length": str(len(request.body)),
    }
    assert (outcome.kind, outcome.http_status, outcome.endpoint) == (OutcomeKind.DELIVERED, 200, "PATCH /order")
    assert outcome.duration_ms is not None and outcome.duration_ms > 0


def test_a_webhook_goes_to_its_own_url_with_its_own_headers(
    api: FakeZithara, zithara: ZitharaApi, tokens: TokenSource
) -> None:
    outcome = zithara.send(webhook(api.webhook_url), "zithara_webhook_queue-3")

    (request,) = api.requests()
    assert request.path == "/hook"
    assert request.headers["x-webhook-event"] == "order_refund"
    assert request.headers["authorization"] == tokens.get()
    assert (outcome.kind, outcome.endpoint) == (OutcomeKind.DELIVERED, "webhook")


def test_token_and_messages_share_a_connection(api: FakeZithara, zithara: ZitharaApi) -> None:
    for number in range(5):
        zithara.send(order(), f"q-{number}")
    assert (api.request_count, api.connection_count) == (6, 1)


# --- tokens


def test_a_refused_token_is_renewed_and_the_request_sent_again(
    api: FakeZithara, zithara: ZitharaApi, tokens: TokenSource
) -> None:
    tokens.get()
    api.revoke_tokens()

    assert zithara.send(order(), "q-1").kind is OutcomeKind.DELIVERED
    assert [request.headers["authorization"] for request in api.requests()] == ["sandbox-token-1", "sandbox-token-2"]


def test_sixteen_threads_refused_together_renew_once(
    api: FakeZithara, zithara: ZitharaApi, tokens: TokenSource
) -> None:
    tokens.get()
    api.revoke_tokens()
    all_refused = threading.Barrier(16)

    def refuse_together(request: object) -> Reply | None:
        # Holds the answers back until every thread has sent with the old token.
        if getattr(request, "headers", {}).get("authorization") == "sandbox-token-1":
            all_refused.wait(5)
        return None

    api.responder = refuse_together

    outcomes = together(partial(zithara.send, order(), f"q-{number}") for number in range(16))

    assert [outcome.kind for outcome in outcomes] == [OutcomeKind.DELIVERED] * 16
    assert api.tokens_issued == 2
    assert len(api.requests()) == 32
    assert api.connection_count <= 17  # sixteen threads, and the one that fetched the first token


@pytest.mark.parametrize(
    ("reply", "reason", "sent"),
    [
        (Reply.error(401), "http_401", 2),
        (Reply.of(200, {"status": "401"}), "http_401", 2),
        # A new token does not help who may not do this.
        (Reply.error(403), "http_403", 1),
    ],
)
def test_who_is_refused_with_a_new_token_too_is_tried_again_later(
    api: FakeZithara, zithara: ZitharaApi, reply: Reply, reason: str, sent: int
) -> None:
    api.responder = lambda request: None if request.path == TOKEN_PATH else reply

    outcome = zithara.send(order(), "q-1")

    assert (outcome.kind, outcome.reason, outcome.evidence) == (OutcomeKind.RETRY, reason, Evidence.PATH)
    assert (len(api.requests()), api.tokens_issued) == (sent, sent)


def test_a_webhook_that_refuses_the_token_does_not_cost_the_api_its_own(api: FakeZithara, zithara: ZitharaApi) -> None:
    api.responder = lambda request: Reply.error(401) if request.path == WEBHOOK_PATH else None

    outcome = zithara.send(webhook(api.webhook_url), "q-1")

    assert (outcome.kind, outcome.reason, outcome.evidence) == (OutcomeKind.RETRY, "http_401", Evidence.PATH)
    assert (len(api.requests()), api.tokens_issued) == (1, 1)


def test_wrong_credentials_release_the_message_unsent(api: FakeZithara, zithara: ZitharaApi) -> None:
    api.client_secret = "changed"

    outcome = zithara.send(order(), "q-1")

    assert (outcome.kind, outcome.reason) == (OutcomeKind.RELEASED, reasons.CREDENTIALS_REFUSED)
    assert outcome.evidence is Evidence.HOST
    assert api.requests() == []


def test_no_token_is_an_outage(api: FakeZithara, zithara: ZitharaApi) -> None:
    api.responder = in_turn(Reply.error(500), path=TOKEN_PATH)

    outcome = zithara.send(order(), "q-1")

    assert (outcome.kind, outcome.reason) == (OutcomeKind.RELEASED, reasons.TOKEN_UNAVAILABLE)
    assert (outcome.evidence, outcome.http_status) == (Evidence.HOST, None)


# --- sent again at once


def test_a_connection_that_is_refused_for_a_moment_is_tried_again(
    api: FakeZithara, tokens: TokenSource, make_api: MakeApi
) -> None:
    tokens.get()
    api.stop()
    pauses: list[float] = []

    def come_back(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            api.start()

    assert make_api(pause=come_back).send(webhook(api.webhook_url), "q-1").kind is OutcomeKind.DELIVERED
    assert len(pauses) == 2 and sum(pauses) < 2


def test_a_host_that_stays_away_is_tried_three_times_in_all(
    api: FakeZithara, zithara: ZitharaApi, tokens: TokenSource, pauses: Pauses
) -> None:
    tokens.get()
    api.stop()

    outcome = zithara.send(order(), "q-1")

    assert (outcome.kind, outcome.reason, outcome.evidence) == (OutcomeKind.RETRY, reasons.CONNECT_ERROR, Evidence.HOST)
    assert (len(pauses), outcome.http_status, outcome.duration_ms) == (2, None, None)


@pytest.mark.parametrize("reply", [Reply.reset(), Reply.closed()], ids=["reset", "closed"])
def test_an_upsert_whose_connection_ended_is_sent_again_at_once(
    api: FakeZithara, zithara: ZitharaApi, reply: Reply
) -> None:
    api.responder = in_turn(reply, reply)

    assert zithara.send(order(), "q-1").kind is OutcomeKind.DELIVERED
    assert len({request.headers["idempotency-key"] for request in api.requests()}) == 1
    assert len(api.requests()) == 3


@pytest.mark.parametrize("reply", [Reply.reset(), Reply.closed()], ids=["reset", "closed"])
def test_a_webhook_that_may_have_been_processed_is_not_sent_again_at_once(
    api: FakeZithara, zithara: ZitharaApi, reply: Reply
) -> None:
    api.responder = in_turn(reply)

    outcome = zithara.send(webhook(api.webhook_url), "q-1")

    assert (outcome.kind, outcome.evidence) == (OutcomeKind.RETRY, Evidence.PATH)
    assert len(api.requests()) == 1


def test_a_webhook_on_a_connection_closed_while_idle_is_sent_once(
    api: FakeZithara, zithara: ZitharaApi, pauses: Pauses
) -> None:
    zithara.send(webhook(api.webhook_url), "q-1")
    api.stop()
    api.start()

    assert zithara.send(webhook(api.webhook_url), "q-2").kind is OutcomeKind.DELIVERED
    assert [request.headers["idempotency-key"].rpartition("-")[0] for request in api.requests()] == ["q-1", "q-2"]
    assert pauses == []


def test_a_timeout_is_not_sent_again_at_once(
    api: FakeZithara, make_api: MakeApi, make_transport: Callable[..., Transport], pauses: Pauses
) -> None:
    api.responder = lambda request: None if request.path == TOKEN_PATH else Reply.never()

    outcome = make_api(transport=make_transport(timeout_seconds=0.3)).send(order(), "q-1")

    assert (outcome.kind, outcome.reason, outcome.evidence) == (OutcomeKind.RETRY, reasons.TIMEOUT, Evidence.PATH)
    assert (len(api.requests()), pauses) == (1, [])


def test_nothing_is_sent_again_once_the_window_is_over(
    api: FakeZithara, tokens: TokenSource, make_api: MakeApi, pauses: Pauses
) -> None:
    tokens.get()
    api.stop()
    seconds = iter(range(0, 1000, 5))

    assert make_api(monotonic=lambda: next(seconds)).send(order(), "q-1").reason == reasons.CONNECT_ERROR
    assert pauses == []


def test_a_message_that_is_no_longer_ours_is_not_sent_again_with_the_new_token(
    api: FakeZithara, zithara: ZitharaApi, tokens: TokenSource
) -> None:
    tokens.get()
    api.revoke_tokens()
    answers = iter([True, False])

    outcome = zithara.send(order(), "q-1", may_send=lambda: next(answers))

    assert (outcome.kind, outcome.reason) == (OutcomeKind.LEASE_LOST, reasons.LEASE_LOST)

    assert len(api.requests()) == 1


# --- refused before sending


def test_a_webhook_url_in_clear_is_not_used(api: FakeZithara, zithara: ZitharaApi, tokens: TokenSource) -> None:
    outcome = zithara.send(webhook("http://user:pw@shop.example.com/hook"), "q-1")

    assert (outcome.kind, outcome.reason) == (OutcomeKind.FAILED, reasons.INSECURE_URL)
    assert "https://" in outcome.detail and "pw" not in outcome.detail
    assert api.request_count == 0


def test_a_webhook_url_that_is_none_has_failed(zithara: ZitharaApi) -> None:
    assert zithara.send(webhook("shop.example.com/hook"), "q-1").reason == reasons.INVALID_URL


def test_an_api_in_clear_is_a_configuration_error(make_api: MakeApi) -> None:
    with pytest.raises(ConfigurationError, match="use https://"):
        make_api(base_url="http://pos-api.zithara.com/v1")


@pytest.mark.parametrize("event", ["a\nb", "half \ud83d", "nul\x00"])
def test_an_event_type_that_is_no_header_has_failed(api: FakeZithara, zithara: ZitharaApi, event: str) -> None:
    request = Request(
        target=Target.WEBHOOK, method="POST", path=api.webhook_url, json={}, headers={"X-Webhook-Event": event}
    )

    outcome = zithara.send(request, "q-1")

    assert (outcome.kind, outcome.reason) == (OutcomeKind.FAILED, reasons.INVALID_REQUEST)
    assert api.requests() == []


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_json_does_not_have_has_failed(zithara: ZitharaApi, number: float) -> None:
    outcome = zithara.send(order(json={"total": number}), "q-1")
    assert (outcome.kind, outcome.reason) == (OutcomeKind.FAILED, reasons.INVALID_REQUEST)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.integers(0, 0x10FFFF).map(chr)),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_a_body_says_what_was_meant_half_an_emoji_included(value: object) -> None:
    assert json.loads(encoded(value)) == value


def test_the_key_of_a_request_is_its_own_and_changes_with_an_operators_retry() -> None:
    key = idempotency_key("zithara_cart_queue-7", "POST", "/cart", b"{}")

    assert key == f"zithara_cart_queue-7-{hashlib.sha256(b'POST/cart{}').hexdigest()[:16]}"
    # After a restore another message may have the same id; one message has another body once it is sent as a create.
    others = [("PATCH", "/cart", b"{}"), ("POST", "/order", b"{}"), ("POST", "/cart", b'{"a":1}')]
    assert len({key, *(idempotency_key("zithara_cart_queue-7", *each) for each in others)}) == 4
    assert idempotency_key("zithara_cart_queue-7", "POST", "/cart", b"{}", 2) == f"{key}-2"


def test_an_outcome_tells_the_digest_of_its_body_only_where_it_is_wanted(api: FakeZithara, make_api: MakeApi) -> None:
    assert make_api().send(order(), "q-1").request_sha256 == ""
    told = make_api(digest=True).send(order(), "q-1").request_sha256
    assert told == hashlib.sha256(api.requests()[-1].body).hexdigest()


# --- secrecy


def test_token_and_secret_are_in_no_log_and_no_outcome(
    api: FakeZithara, zithara: ZitharaApi, tokens: TokenSource, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def echo(request: object) -> Reply | None:
        headers = getattr(request, "headers", {})
        return Reply.error(422, f"you sent {dict(headers)}") if "authorization" in headers else None

    api.responder = echo
    outcomes = [zithara.send(order(), "q-1")]
    api.responder = lambda request: Reply.error(401, f"{api.client_secret} is wrong")
    outcomes.append(zithara.send(order(), "q-2"))
    api.stop()
    clock.now += 5000
    outcomes.append(zithara.send(order(), "q-3"))

    told = [outcome.reason for outcome in outcomes]
    assert told == ["http_422", reasons.CREDENTIALS_REFUSED, reasons.TOKEN_UNAVAILABLE]
    assert "[masked]" in outcomes[0].detail
    shown = caplog.text + repr(outcomes) + repr(tokens) + repr(zithara)
    assert "sandbox-token" not in shown
    assert api.client_secret not in shown


# --- personal data in what outcomes quote


def test_an_outcome_quotes_the_answers_words_without_the_customers(
    api: FakeZithara, tokens: TokenSource, make_api: MakeApi
) -> None:
    message = "Asha Rao (asha@example.com, +91 98765 43210) has no date_of_birth; sku R-1 is unknown"
    answer = {
        "status": 422,
        "error": "Unprocessable Entity",
        "message": message,
        "received": {"customerName": "Asha", "note": "x", "sku": "R-1"},
    }
    tokens.get()
    api.responder = lambda request: Reply.of(422, answer)
    request = order(json={"customer": {"name": "Asha Rao"}, "order": {"status": "pending"}})

    def detail(*, mask: bool) -> str:
        return make_api(mask=mask).send(request, "q-1").detail

    shown = "*** (a***@***, ***10) has no date_of_birth; sku R-1 is unknown"
    received = {"customerName": "***", "note": "***", "sku": "R-1"}
    said, _, body = detail(mask=True).partition(": ")
    assert (said, json.loads(body)) == ("HTTP 422", {**answer, "message": shown, "received": received})
    assert json.loads(detail(mask=False).partition(": ")[2]) == answer


def test_an_outcome_quotes_a_page_without_addresses_and_numbers(
    api: FakeZithara, zithara: ZitharaApi, tokens: TokenSource
) -> None:
    tokens.get()
    page = b"<p>Asha &lt;asha@example.com&gt; 98765 43210</p>" + b"<b>a@b.example</b>" * 4000
    api.responder = lambda request: Reply(502, body=page)
    detail = zithara.send(order(), "q-1").detail
    assert detail.startswith("HTTP 502: <p>Asha &lt;a***@***&gt; ***10</p>") and len(detail) <= 500
    assert "example" not in detail


# --- what the log shows


@pytest.fixture
def log_lines(root_logger_as_before: None) -> LogLines:
    """log_lines(level): the lines so far, and the level of those that follow."""
    stream = io.StringIO()

    def at(level: str) -> list[dict[str, Any]]:
        logs.configure(LoggingSettings(level=level), stream)
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    return at


def test_bodies_are_logged_at_debug_masked_and_without_the_token(
    api: FakeZithara, zithara: ZitharaApi, tokens: TokenSource, log_lines: LogLines
) -> None:
    token = tokens.get()
    answer = {"message": f"hello {token}, asha of Pune", "customer": {"first_name": "Asha", "id": 5}}
    api.responder = in_turn(Reply.of(200, answer))
    log_lines("DEBUG")
    zithara.send(order(json={"customer": {"landmark": "Pune", "platform_customer_id": "5"}}), "q-1")

    by_event = {line["event"]: line for line in log_lines("DEBUG") if "event" in line}
    request, response = by_event["request"], by_event["response"]
    assert request["level"] == response["level"] == "DEBUG"
    assert request["endpoint"] == response["endpoint"] == "POST /order"
    assert request["request"] == {"customer": {"landmark": "***", "platform_customer_id": "5"}}
    assert response["http_status"] == 200
    assert response["response"] == {
        "message": "hello [masked], asha of ***",
        "customer": {"first_name": "***", "id": 5},
    }
    assert token not in json.dumps(log_lines("DEBUG"))


def test_a_body_that_is_no_json_is_logged_as_text(
    api: FakeZithara, zithara: ZitharaApi, tokens: TokenSource, log_lines: LogLines
) -> None:
    tokens.get()
    api.responder = in_turn(Reply(502, body=b"<p>asha@example.com \xff</p>"))
    log_lines("DEBUG")
    zithara.send(order(), "q-1")

    (shown,) = [line["response"] for line in log_lines("DEBUG") if line.get("event") == "response"]
    assert shown == "<p>a***@*** \N{REPLACEMENT CHARACTER}</p>"


def test_no_body_is_logged_above_debug(api: FakeZithara, zithara: ZitharaApi, log_lines: LogLines) -> None:
    log_lines("INFO")
    zithara.send(order(json={"order": {"name": "a body"}}), "q-1")

    assert api.requests() and "a body" not in json.dumps(log_lines("INFO"))
