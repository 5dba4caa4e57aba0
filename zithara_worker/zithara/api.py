"""Sends the request of one message to Zithara, or to the shop's webhook URL, and returns its outcome.

Adds headers and the token, and sends again at once after a bad connection. Rate limit, circuit breakers and backoff are
the caller's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_fixed

from zithara_worker import reasons
from zithara_worker.logs.masking import masked, without_echoes
from zithara_worker.messages import Accepted, Entity, Evidence, Outcome, OutcomeKind, Request, Target
from zithara_worker.processors.fields import as_stored
from zithara_worker.zithara.answers import EXCERPT_LENGTH, NOT_JSON, Answer, classify, excerpt, json_of
from zithara_worker.zithara.http import MAY_SEND, UrlRefused, Withdrawn, failure_of, send, usable_url
from zithara_worker.zithara.signature import UNSIGNED, WebhookSigner
from zithara_worker.zithara.tokens import COMMON_HEADERS, CredentialsRefused, TokenSource, TokenUnavailable

log = logging.getLogger(__name__)

#: Immediate re-sends after a bad connection: how many, and the time within which the last one must start.
RESENDS = 2
RESEND_WINDOW_SECONDS = 2.0
#: Seconds before the first and before the second re-send.
_FIRST_PAUSE, _SECOND_PAUSE = 0.1, 0.7

#: Parsed URLs that are kept: the API has three, and each configuration row of a shop has a webhook URL.
_URLS_KEPT = 64

_TOKEN_REFUSED = reasons.http_status(401)

# Without ensure_ascii, Indian names take half the bytes of their \uXXXX escapes. NaN is not JSON: the API refuses it.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_encode_ascii = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode


class ZitharaApi:
    """Sends requests for all delivery threads. Thread-safe.

    `pause`: waits for so many seconds, or less if the worker stops. `signer`: signs webhooks. `now_utc`: seconds since
    the epoch. `digest`: whether outcomes carry the SHA-256 of the body. `mask`: whether personal data is masked in
    excerpts of answers.

    Raises UrlRefused (a ConfigurationError) if no token may be sent to `base_url`.
    """

    def __init__(
        self,
        *,
        base_url: str,
        tokens: TokenSource,
        transport: httpx.BaseTransport,
        pause: Callable[[float], object],
        signer: WebhookSigner = UNSIGNED,
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
        self._signer = signer
        self._pause = pause
        self._now_utc = now_utc
        self._monotonic = monotonic
        self._urls: dict[tuple[Target, str], httpx.URL] = {}

    def send(
        self, request: Request, message: str, *, retries: int = 0, may_send: Callable[[], bool] | None = None
    ) -> Outcome:
        """Sends the request and returns DELIVERED, RETRY, FAILED, RELEASED or LEASE_LOST; see `answers.classify` and
        `reasons`. Raises nothing for errors of the network, the API or the message.

        `message` and `retries`: see `idempotency_key`. `may_send`: called right before a request leaves, because
        getting a token and connecting take time; if it returns False, nothing is sent and the outcome is LEASE_LOST.
        After a 401 of the API the token is renewed and the request is sent once more. That is safe, because a request
        that was refused has not been processed.
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
            # The API expects the bare token, without "Bearer" (zithara/webhook 1.0.3, Model/Queue/OrderProcessor).
            authorized = [*headers, (b"Authorization", token.encode("ascii"))]
            if request.target is Target.WEBHOOK:
                authorized += self._signer.headers(key, body, now_utc=self._now_utc())
            extensions = {} if may_send is None else {MAY_SEND: may_send}
            return self._attempt(
                request,
                httpx.Request(request.method, url, headers=authorized, content=body, extensions=extensions),
                label,
            )

        outcome = self._with_token(request, label, attempt)
        if outcome.kind is OutcomeKind.DELIVERED and request.entity is not None:
            outcome = replace(outcome, accepted=_accepted(request, request.entity, body))
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
        # Bodies are logged at DEBUG only; the log's formatter masks them. The request has a line of its own, so that a
        # request without an answer is in the log too.
        verbose = log.isEnabledFor(logging.DEBUG)
        if verbose:
            log.debug("sends %s", label, extra={"event": "request", "endpoint": label, "request": request.json})
        answer = self._exchange(http_request, idempotent=request.idempotent)
        if verbose:
            log.debug("answer of %s: %d", label, answer.status, extra=self._shown(answer, request, label))

        def clean(text: str) -> str:
            # Cut first: an excerpt shows less than this, and to search a page of 64 KB for personal data takes long.
            text = self._without_echoes(self._tokens.mask(text)[: 4 * EXCERPT_LENGTH], request)
            return masked(text) if self._mask else text

        return classify(answer, request, endpoint=label, now_utc=self._now_utc, mask=clean)

    def _without_echoes(self, text: str, request: Request) -> str:
        """The text without personal data of the request, which an answer may repeat; unchanged if masking is off."""
        return without_echoes(text, request.json) if self._mask else text

    def _shown(self, answer: Answer, request: Request, label: str) -> dict[str, Any]:
        """The fields of an answer's log line. The body is logged as JSON if it is JSON, so that the formatter masks
        personal data by its keys; otherwise as text."""
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
        """The parsed URL, kept because parsing takes a tenth of the time of a request."""
        key = (request.target, request.path)
        known = self._urls.get(key)
        if known is None:
            known = usable_url(request.path if request.target is Target.WEBHOOK else self._base_url + request.path)
            if len(self._urls) >= _URLS_KEPT:
                self._urls.clear()
            self._urls[key] = known
        return known

    def _exchange(self, request: httpx.Request, *, idempotent: bool) -> Answer:
        """Sends the request, and again at once if only the connection was bad: refused, or closed by the host.

        Tenacity is used only after a first failure, because around each request it would take 5 % of the CPU.
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
            # Less both pauses, so that the last re-send also starts within the window.
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
    """The value of the Idempotency-Key header: the same for each repetition of one request.

    `message`: queue name and message id. After a restore of the database an id can belong to another message, so the
    key contains a digest of the request as well. `retries`: how often an operator retried the failed message. It
    changes the key, because a host that remembers its answers by key would answer with the same failure again.
    """
    return f"{message}-{_digest(method, path, body)[:16]}" + (f"-{retries}" if retries else "")


def request_digest(request: Request) -> str:
    """SHA-256 of method, path and body: equal for equal requests. Raises ValueError for what JSON cannot say."""
    return _digest(request.method, request.path, encoded(request.json))


def _digest(method: str, path: str, body: bytes) -> str:
    return hashlib.sha256(f"{method}{path}".encode() + body).hexdigest()


def content_digest(entity: Entity) -> str:
    """SHA-256 of what a request says of its entity, whatever the method and the form of the message: what the delivery
    ledger records of an accepted request. Raises ValueError for what JSON cannot say."""
    return hashlib.sha256(encoded(_as_stored(entity.state))).hexdigest()


def _as_stored(state: Any, levels: int = 3) -> Any:
    """With amounts as the shop's tables have them. The items of a cart are the deepest; what the shop's own attributes
    may hold below is left as it is, because nothing bounds its depth."""
    if isinstance(state, float):
        return as_stored(state)
    if levels and isinstance(state, dict):
        return {name: _as_stored(value, levels - 1) for name, value in state.items()}
    return [_as_stored(value, levels - 1) for value in state] if levels and isinstance(state, list) else state


def _accepted(request: Request, entity: Entity, body: bytes) -> Accepted:
    return Accepted(
        # Without the state: an outcome may wait for others, and a body of 10 MB must not wait with it.
        entity=replace(entity, state=None),
        request=_digest(request.method, request.path, body),
        content=content_digest(entity),
    )


def encoded(value: Any) -> bytes:
    """The body of a request as UTF-8. Raises ValueError for NaN and Infinity, which JSON does not have.

    Half a surrogate pair (an emoji that the shop's database cut in two) has no UTF-8, so a body with one is escaped as
    ASCII.
    """
    try:
        return _encode(value).encode("utf-8")
    except UnicodeEncodeError:
        return _encode_ascii(value).encode("ascii")
