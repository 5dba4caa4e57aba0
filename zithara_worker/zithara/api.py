"""Sends one request to Zithara, or to the shop's webhook, and says what that means for the message.

Knows headers, tokens and immediate re-sends. Pacing, outages and backoff belong to those who call it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_fixed

from zithara_worker import reasons
from zithara_worker.logs.masking import masked, without_echoes
from zithara_worker.messages import Evidence, Outcome, OutcomeKind, Request, Target
from zithara_worker.zithara.answers import EXCERPT_LENGTH, NOT_JSON, Answer, classify, excerpt, json_of
from zithara_worker.zithara.http import MAY_SEND, UrlRefused, Withdrawn, failure_of, send, usable_url
from zithara_worker.zithara.tokens import COMMON_HEADERS, CredentialsRefused, TokenUnavailable

log = logging.getLogger(__name__)

#: Immediate re-sends of what broke for want of a connection, and the window in which they start.
RESENDS = 2
RESEND_WINDOW_SECONDS = 2.0
#: Pauses before the first and before the second.
_FIRST_PAUSE, _SECOND_PAUSE = 0.1, 0.7

#: Parsed URLs that are kept: three of the API and the webhooks of a shop's configuration rows.
_URLS_KEPT = 64

_TOKEN_REFUSED = reasons.http_status(401)

# Text goes as it is: half the bytes of \uXXXX for Indian names. NaN is no JSON, and the API would refuse it.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_encode_ascii = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode


class Tokens(Protocol):
    """The part of `TokenSource` that sending needs."""

    def get(self) -> str: ...
    def refresh(self, rejected_token: str) -> str: ...
    def mask(self, text: str) -> str: ...


class ZitharaApi:
    """`now_utc`: seconds since the epoch. `pause`: waits for so many seconds, or less when the process is to stop.
    `digest`: whether outcomes tell the SHA-256 of the body. `mask`: whether personal data is masked in what they quote.

    Raises UrlRefused (a ConfigurationError) when `base_url` is unfit for a token.
    """

    def __init__(
        self,
        *,
        base_url: str,
        tokens: Tokens,
        transport: httpx.BaseTransport,
        pause: Callable[[float], object],
        now_utc: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        digest: bool = False,
        mask: bool = True,
    ) -> None:
        self._digest = digest
        self._mask = mask
        self._base_url = base_url.rstrip("/")
        usable_url(self._base_url)
        self._tokens = tokens
        self._transport = transport
        self._pause = pause
        self._now_utc = now_utc
        self._monotonic = monotonic
        self._urls: dict[tuple[Target, str], httpx.URL] = {}

    def send(
        self, request: Request, message: str, *, retries: int = 0, may_send: Callable[[], bool] | None = None
    ) -> Outcome:
        """DELIVERED, RETRY, FAILED, RELEASED or LEASE_LOST; see `answers.classify` and the table in `reasons`. Never
        raises for what the network, the API or the message may bring.

        `message` and `retries`: see `idempotency_key`. `may_send` is asked again whenever a request is about to leave,
        after whatever time a token or a connection took; LEASE_LOST if the answer is no.
        From the API a 401 has a new token fetched and the request sent once more: who refuses it has not acted on it.
        """
        label = "webhook" if request.target is Target.WEBHOOK else f"{request.method} {request.path}"
        try:
            url = self._url(request)
            body = encoded(request.json)
            key = idempotency_key(message, request.method, request.path, body, retries)
            headers = [
                *COMMON_HEADERS,
                (b"Content-Type", b"application/json"),
                (b"Idempotency-Key", key.encode("utf-8")),
                *((name.encode("ascii"), value.encode("utf-8")) for name, value in request.headers.items()),
            ]
        except UrlRefused as error:
            return self._not_sent(label, OutcomeKind.FAILED, error.reason, str(error))
        except (ValueError, RecursionError) as error:
            return self._not_sent(label, OutcomeKind.FAILED, reasons.INVALID_REQUEST, str(error))

        def attempt(token: str) -> Outcome:
            # The bare token, without 'Bearer', as the API wants it (zithara/webhook 1.0.3, Model/Queue/OrderProcessor).
            authorized = [*headers, (b"Authorization", token.encode("ascii"))]
            extensions = {} if may_send is None else {MAY_SEND: may_send}
            return self._attempt(
                request,
                httpx.Request(request.method, url, headers=authorized, content=body, extensions=extensions),
                label,
            )

        outcome = self._with_token(request, label, attempt)
        return replace(outcome, request_sha256=hashlib.sha256(body).hexdigest()) if self._digest else outcome

    def _with_token(self, request: Request, label: str, attempt: Callable[[str], Outcome]) -> Outcome:
        try:
            token = self._tokens.get()
            outcome = attempt(token)
            if outcome.reason == _TOKEN_REFUSED and request.target is Target.API:
                outcome = attempt(self._tokens.refresh(token))
            return outcome
        except Withdrawn:
            return self._not_sent(
                label, OutcomeKind.LEASE_LOST, reasons.LEASE_LOST, "the lease ended before the request could be sent"
            )
        except CredentialsRefused as error:
            return self._not_sent(label, OutcomeKind.RELEASED, reasons.CREDENTIALS_REFUSED, str(error), Evidence.HOST)
        except TokenUnavailable as error:
            return self._not_sent(label, OutcomeKind.RELEASED, reasons.TOKEN_UNAVAILABLE, str(error), Evidence.HOST)
        except httpx.TransportError as error:
            failure = failure_of(error)
            kind = OutcomeKind.FAILED if failure.reason == reasons.INVALID_REQUEST else OutcomeKind.RETRY
            return self._not_sent(label, kind, failure.reason, failure.detail, failure.evidence)

    def _attempt(self, request: Request, http_request: httpx.Request, label: str) -> Outcome:
        # Bodies at DEBUG only, masked by whoever writes the log; a request that gets no answer is seen as well.
        verbose = log.isEnabledFor(logging.DEBUG)
        if verbose:
            log.debug("sends %s", label, extra={"event": "request", "endpoint": label, "request": request.json})
        answer = self._exchange(http_request, idempotent=request.idempotent)
        if verbose:
            log.debug("answer of %s: %d", label, answer.status, extra=self._shown(answer, request, label))

        def clean(text: str) -> str:
            # An excerpt shows less than this of a body, and a long page shall not be searched.
            text = self._without_echoes(self._tokens.mask(text)[: 4 * EXCERPT_LENGTH], request)
            return masked(text) if self._mask else text

        return classify(answer, request, endpoint=label, now_utc=self._now_utc, mask=clean)

    def _without_echoes(self, text: str, request: Request) -> str:
        return without_echoes(text, request.json) if self._mask else text

    def _shown(self, answer: Answer, request: Request, label: str) -> dict[str, Any]:
        """An answer as the log's fields; its body as JSON, so that personal data is found by its keys, or as text."""
        text = self._without_echoes(self._tokens.mask(answer.body.decode("utf-8", "replace")), request)
        body = json_of(text)
        return {
            "event": "response",
            "endpoint": label,
            "http_status": answer.status,
            "duration_ms": round(answer.duration_ms, 1),
            "response": text if body is NOT_JSON else body,
        }

    def _url(self, request: Request) -> httpx.URL:
        """Parsed once: that costs a tenth of a request."""
        key = (request.target, request.path)
        known = self._urls.get(key)
        if known is None:
            known = usable_url(request.path if request.target is Target.WEBHOOK else self._base_url + request.path)
            if len(self._urls) >= _URLS_KEPT:
                self._urls.clear()
            self._urls[key] = known
        return known

    def _exchange(self, request: httpx.Request, *, idempotent: bool) -> Answer:
        """One exchange, sent again at once when only the connection was bad: refused, or stale and closed by the host.

        Tenacity comes in only after a failure: around every request it would cost 5 % of the CPU.
        """
        started = self._monotonic()

        def resendable(error: BaseException) -> bool:
            if not isinstance(error, httpx.TransportError):
                return False
            failure = failure_of(error)
            return failure.again_at_once and (idempotent or not failure.may_have_been_processed)

        try:
            return send(self._transport, request)
        except httpx.TransportError as error:
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
        return again(send, self._transport, request)

    def _sleep(self, seconds: float) -> None:
        self._pause(seconds)

    def _not_sent(
        self, label: str, kind: OutcomeKind, reason: str, detail: str, evidence: Evidence = Evidence.NONE
    ) -> Outcome:
        return Outcome(
            kind=kind,
            reason=reason,
            detail=excerpt(detail, self._tokens.mask),
            endpoint=label,
            evidence=evidence,
        )


def idempotency_key(message: str, method: str, path: str, body: bytes, retries: int = 0) -> str:
    """The same for every repetition of one request.

    `message`: queue name and message id; a restored database gives an id to another message, so that the key has a
    digest of the request too. `retries`: how often an operator had a failed message sent anew; a host that remembers
    the answers to keys would repeat the failure.
    """
    digest = hashlib.sha256(f"{method}{path}".encode() + body)
    return f"{message}-{digest.hexdigest()[:16]}" + (f"-{retries}" if retries else "")


def encoded(value: Any) -> bytes:
    """A request's body. Raises ValueError for what JSON cannot say (NaN, Infinity).

    Half a surrogate pair (an emoji that the shop's database cut in two) cannot be UTF-8: such a body is escaped.
    """
    try:
        return _encode(value).encode("utf-8")
    except UnicodeEncodeError:
        return _encode_ascii(value).encode("ascii")
