"""Sends one request to Zithara, or to the shop's webhook, and says what that means for the message.

Knows headers, tokens and immediate re-sends. Pacing, outages and backoff belong to those who call it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_fixed

from zithara_worker.messages import Outcome, OutcomeKind, Request, Target
from zithara_worker.zithara import reasons
from zithara_worker.zithara.answers import Answer, classify, excerpt
from zithara_worker.zithara.tokens import USER_AGENT, CredentialsRefused, TokenUnavailable
from zithara_worker.zithara.transport import Endpoint, ExchangeFailed, Header, UrlRefused, endpoint_of

log = logging.getLogger(__name__)

#: Immediate re-sends of what broke for want of a connection, and the window in which they start.
RESENDS = 2
RESEND_WINDOW_SECONDS = 2.0
#: Pauses before the first and before the second.
_FIRST_PAUSE, _SECOND_PAUSE = 0.1, 0.7

#: Parsed URLs that are kept: three of the API and the webhooks of a shop's configuration rows.
_ENDPOINTS_KEPT = 64

# Text goes as it is: half the bytes of \uXXXX for Indian names. NaN is no JSON, and the API would refuse it.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_encode_ascii = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode


class Tokens(Protocol):
    """The part of `TokenSource` that sending needs."""

    def get(self) -> str: ...
    def refresh(self, rejected_token: str) -> str: ...
    def mask(self, text: str) -> str: ...


class Http(Protocol):
    """The part of `Transport` that sending needs."""

    def exchange(
        self,
        method: str,
        endpoint: Endpoint,
        headers: list[Header],
        body: bytes = b"",
        *,
        may_send: Callable[[], bool] | None = None,
    ) -> Answer: ...


class ZitharaApi:
    """`now_utc`: seconds since the epoch. `pause`: waits for so many seconds, or less when the process is to stop.
    `digest`: whether outcomes tell the SHA-256 of the body.

    Raises UrlRefused (a ConfigurationError) when `base_url` is unfit for a token.
    """

    def __init__(
        self,
        *,
        base_url: str,
        tokens: Tokens,
        http: Http,
        pause: Callable[[float], object],
        now_utc: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        digest: bool = False,
    ) -> None:
        self._digest = digest
        self._base_url = base_url.rstrip("/")
        endpoint_of(self._base_url)
        self._tokens = tokens
        self._http = http
        self._pause = pause
        self._now_utc = now_utc
        self._monotonic = monotonic
        self._endpoints: dict[tuple[Target, str], Endpoint] = {}

    def send(self, request: Request, idempotency_key: str, *, may_send: Callable[[], bool] | None = None) -> Outcome:
        """DELIVERED, RETRY, FAILED or RELEASED; see `answers.classify` and the table in `reasons`. Never raises for
        what the network, the API or the message may bring.

        `may_send` is asked again whenever a body is about to leave, after whatever time a token or a connection took;
        raises Withdrawn if the answer is no.
        401 and 403 have a new token fetched and the request sent once more: who refuses a request has not acted on it.
        """
        label = "webhook" if request.target is Target.WEBHOOK else f"{request.method} {request.path}"
        try:
            endpoint = self._endpoint(request)
            body = encoded(request.json)
            own_headers = [
                (b"Idempotency-Key", idempotency_key.encode("utf-8")),
                *((name.encode("ascii"), value.encode("utf-8")) for name, value in request.headers.items()),
            ]
        except UrlRefused as error:
            return self._not_sent(label, OutcomeKind.FAILED, error.reason, str(error))
        except (ValueError, RecursionError) as error:
            return self._not_sent(label, OutcomeKind.FAILED, reasons.INVALID_REQUEST, str(error))
        outcome = self._send(request, endpoint, label, own_headers, body, may_send)
        return replace(outcome, request_sha256=hashlib.sha256(body).hexdigest()) if self._digest else outcome

    def _send(
        self,
        request: Request,
        endpoint: Endpoint,
        label: str,
        own_headers: list[Header],
        body: bytes,
        may_send: Callable[[], bool] | None,
    ) -> Outcome:
        try:
            token = self._tokens.get()
            outcome = self._attempt(request, endpoint, label, _headers(token, own_headers), body, may_send)
            if outcome.reason == reasons.CREDENTIALS_REFUSED:
                token = self._tokens.refresh(token)
                outcome = self._attempt(request, endpoint, label, _headers(token, own_headers), body, may_send)
            return outcome
        except CredentialsRefused as error:
            return self._not_sent(label, OutcomeKind.RELEASED, reasons.CREDENTIALS_REFUSED, str(error), outage=True)
        except TokenUnavailable as error:
            return self._not_sent(label, OutcomeKind.RETRY, reasons.TOKEN_UNAVAILABLE, str(error), outage=True)
        except ExchangeFailed as error:
            if error.reason == reasons.INVALID_REQUEST:
                return self._not_sent(label, OutcomeKind.FAILED, error.reason, error.detail)
            return self._not_sent(label, OutcomeKind.RETRY, error.reason, error.detail, outage=True)

    def _attempt(
        self,
        request: Request,
        endpoint: Endpoint,
        label: str,
        headers: list[Header],
        body: bytes,
        may_send: Callable[[], bool] | None,
    ) -> Outcome:
        # Bodies at DEBUG only, masked by whoever writes the log; a request that gets no answer is seen as well.
        verbose = log.isEnabledFor(logging.DEBUG)
        if verbose:
            log.debug("sends %s", label, extra={"event": "request", "endpoint": label, "request": request.json})
        answer = self._exchange(request, endpoint, headers, body, may_send)
        if verbose:
            log.debug("answer of %s: %d", label, answer.status, extra=self._shown(answer, label))
        return classify(answer, request, endpoint=label, now_utc=self._now_utc, mask=self._tokens.mask)

    def _shown(self, answer: Answer, label: str) -> dict[str, Any]:
        """An answer as the log's fields; its body as JSON, so that personal data is found by its keys, or as text."""
        text = self._tokens.mask(answer.body.decode("utf-8", "replace"))
        body: Any = text
        with suppress(ValueError, RecursionError):  # no JSON, or JSON that nobody can read: shown as it came
            body = json.loads(text)
        return {
            "event": "response",
            "endpoint": label,
            "http_status": answer.status,
            "duration_ms": round(answer.duration_ms, 1),
            "response": body,
        }

    def _endpoint(self, request: Request) -> Endpoint:
        key = (request.target, request.path)
        known = self._endpoints.get(key)
        if known is None:
            known = endpoint_of(request.path if request.target is Target.WEBHOOK else self._base_url + request.path)
            if len(self._endpoints) >= _ENDPOINTS_KEPT:
                self._endpoints.clear()
            self._endpoints[key] = known
        return known

    def _exchange(
        self,
        request: Request,
        endpoint: Endpoint,
        headers: list[Header],
        body: bytes,
        may_send: Callable[[], bool] | None,
    ) -> Answer:
        """One exchange, sent again at once when only the connection was bad: refused, or stale and closed by the host.

        Tenacity comes in only after a failure: around every request it would cost 5 % of the CPU.
        """
        started = self._monotonic()

        def resendable(error: BaseException) -> bool:
            return (
                isinstance(error, ExchangeFailed)
                and error.again_at_once
                and (request.idempotent or not error.may_have_been_processed)
            )

        try:
            return self._http.exchange(request.method, endpoint, headers, body, may_send=may_send)
        except ExchangeFailed as error:
            # Both pauses are set aside, so that the last re-send too starts within the window.
            left = RESEND_WINDOW_SECONDS - _FIRST_PAUSE - _SECOND_PAUSE - (self._monotonic() - started)
            if not resendable(error) or left <= 0:
                raise
        self._sleep(_FIRST_PAUSE)
        again = Retrying(
            stop=stop_after_attempt(RESENDS) | stop_after_delay(left),
            wait=wait_fixed(_SECOND_PAUSE),
            retry=retry_if_exception(resendable),
            sleep=self._sleep,
            reraise=True,
        )
        return again(self._http.exchange, request.method, endpoint, headers, body, may_send=may_send)

    def _sleep(self, seconds: float) -> None:
        self._pause(seconds)

    def _not_sent(self, label: str, kind: OutcomeKind, reason: str, detail: str, *, outage: bool = False) -> Outcome:
        return Outcome(
            kind=kind, reason=reason, detail=excerpt(detail, self._tokens.mask), endpoint=label, outage=outage
        )


def encoded(value: Any) -> bytes:
    """A request's body. Raises ValueError for what JSON cannot say (NaN, Infinity).

    Half a surrogate pair (an emoji that the shop's database cut in two) cannot be UTF-8: such a body is escaped.
    """
    try:
        return _encode(value).encode("utf-8")
    except UnicodeEncodeError:
        return _encode_ascii(value).encode("ascii")


def _headers(token: str, own: list[Header]) -> list[Header]:
    """The bare token, without 'Bearer', as the API wants it (zithara/webhook 1.0.3, Model/Queue/OrderProcessor)."""
    return [
        (b"Content-Type", b"application/json"),
        (b"Accept", b"application/json"),
        (b"User-Agent", USER_AGENT),
        (b"Authorization", token.encode("ascii")),
        *own,
    ]
