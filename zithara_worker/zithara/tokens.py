"""The access token: reused until it expires, renewed by one thread of one worker for all, never shown.

Source: zithara/webhook 1.0.3, Helper/Data: `GET /generate-access-token` with the headers `client_id` and
`client_secret`. The answer has `access_token` and `expires_in` (seconds; 3600 if it is absent). The API's documentation
says POST, but the module sends GET, and the API accepts it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from zithara_worker.errors import ShopError, ZitharaWorkerError
from zithara_worker.reasons import INVALID_REQUEST
from zithara_worker.settings.values import Secret
from zithara_worker.version import VERSION
from zithara_worker.zithara.answers import describe, effective_status, excerpt
from zithara_worker.zithara.http import failure_of, origin_of, send, usable_url

log = logging.getLogger(__name__)

TOKEN_PATH = "/generate-access-token"  # noqa: S105 - a path, and no password
#: A token that expires within this time is renewed before it is used.
MARGIN_SECONDS = 60.0
#: Lifetime of a token whose answer has no `expires_in` (Helper/Data).
DEFAULT_LIFETIME_SECONDS = 3600.0
#: How long to wait for another worker that renews the token, and the time between two reads of the shared token. Then
#: this worker asks for a token itself: messages wait meanwhile, and a second token does no harm.
WAIT_SECONDS = 15.0
LOOK_SECONDS = 0.2
#: For how long after a failed renewal all threads get the same failure. Otherwise each of 64 threads would ask an API
#: that does not work.
FAILURE_SECONDS = 1.0
MASK = "[masked]"

_NOT_HEADERS = "client_id or client_secret holds characters that cannot be sent"

#: Headers of every request. An answer that is compressed all the same is not read; see `Answer.unreadable`.
COMMON_HEADERS = (
    (b"Accept", b"application/json"),
    (b"Accept-Encoding", b"identity"),
    (b"User-Agent", f"zithara-worker/{VERSION}".encode("ascii")),
)


class TokenUnavailable(ZitharaWorkerError):
    """There is no token now, because the API or the shop's database does not work. A later try may succeed."""


class CredentialsRefused(ZitharaWorkerError):
    """The API refuses client_id and client_secret, which an operator must correct. The text: its answer, or what else
    is wrong with them."""


class SharedToken(Protocol):
    """The token that PHP and all workers share, and when it expires, in seconds since the epoch. Every method may raise
    a ZitharaWorkerError."""

    def load(self) -> tuple[Secret, float] | None: ...
    def save(self, token: Secret, expires_at_utc: float) -> None: ...
    def lock(self) -> bool:
        """Takes the lock of renewals until the end of `opened`. False if another worker holds it."""
        ...


@dataclass(frozen=True, slots=True)
class _Current:
    token: str = field(repr=False)
    use_until_utc: float


class TokenSource:
    """Gives all threads the same token. Thread-safe.

    `clock`: seconds since the epoch. `pause`: waits for so many seconds, or less and returns True if the worker stops.
    Raises UrlRefused (a ConfigurationError) if no secret may be sent to `base_url`.
    """

    def __init__(
        self,
        *,
        base_url: str,
        client_id: str,
        client_secret: Secret,
        shared_token: Callable[[], AbstractContextManager[SharedToken]],
        clock: Callable[[], float],
        transport: httpx.BaseTransport,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._url = usable_url(base_url.rstrip("/") + TOKEN_PATH)
        self._client_id = client_id
        self._client_secret = client_secret
        self._shared_token = shared_token
        self._clock = clock
        self._transport = transport
        self._pause = pause
        self._lock = threading.Lock()
        self._current: _Current | None = None
        self._rejected: str | None = None
        self._failure: tuple[float, type[TokenUnavailable | CredentialsRefused], str] | None = None
        self._seen: deque[str] = deque(maxlen=8)
        #: How many tokens the API has given
        self.refresh_count = 0

    def get(self) -> str:
        """A token that has not expired and has not been refused. Raises TokenUnavailable, CredentialsRefused."""
        current = self._current
        if current is not None and self._clock() < current.use_until_utc:
            return current.token
        with self._lock:
            current = self._current
            if current is not None and self._clock() < current.use_until_utc:
                return current.token
            return self._renew()

    def refresh(self, rejected_token: str) -> str:
        """A token other than the one that the API has refused. Raises like `get`.

        Several threads may come with the same refused token. The first one renews it, the others get the new one.
        """
        with self._lock:
            current = self._current
            if current is not None and current.token != rejected_token and self._clock() < current.use_until_utc:
                return current.token
            self._current = None
            self._rejected = rejected_token
            return self._renew()

    def mask(self, text: str) -> str:
        """The text without the secret and the latest tokens, also where '/' is escaped as '\\/', as PHP's JSON does."""
        for secret in (*self._seen, self._client_secret.reveal()):
            if secret:
                text = text.replace(secret, MASK).replace(secret.replace("/", "\\/"), MASK)
        return text

    def _renew(self) -> str:
        """A new token: the shared one if another worker or PHP has renewed it, else one from the API. The caller holds
        the lock."""
        failure = self._failure
        if failure is not None:
            # abs(), because this clock can be set back.
            if abs(self._clock() - failure[0]) < FAILURE_SECONDS:
                raise failure[1](failure[2])
            self._failure = None
        try:
            return self._renew_alone()
        except (TokenUnavailable, CredentialsRefused) as error:
            self._failure = (self._clock(), type(error), str(error))
            raise

    def _renew_alone(self) -> str:
        try:
            with self._shared_token() as shared:
                stored = self._from_others(shared)
                if stored is not None:
                    token, expires_at_utc = stored
                    self._adopt(token, use_until_utc=expires_at_utc - MARGIN_SECONDS)
                    return token
                token, expires_at_utc = self._ask()
                self._share(token, expires_at_utc, shared)
                return token
        except (TokenUnavailable, CredentialsRefused):
            raise
        except ZitharaWorkerError as error:
            raise TokenUnavailable(f"the shop's access token cannot be read: {error}") from error

    def _from_others(self, shared: SharedToken) -> tuple[str, float] | None:
        """The shared token, once it can be used: at once, or when the worker that renews it now has saved it.

        None: this worker must ask the API for one.
        """
        if (stored := self._usable(shared)) is not None:
            return stored
        for _ in range(round(WAIT_SECONDS / LOOK_SECONDS)):
            locked = self._locked(shared)
            if (stored := self._usable(shared)) is not None:
                return stored
            if locked:
                return None
            if self._pause(LOOK_SECONDS):
                raise TokenUnavailable("stopped while another worker renewed the access token")
        return None

    @staticmethod
    def _locked(shared: SharedToken) -> bool:
        try:
            return shared.lock()
        except ShopError as error:
            log.warning(
                "several workers may renew the access token at the same time",
                extra={"event": "token_not_locked", "detail": str(error)},
            )
            return True

    @staticmethod
    def _share(token: str, expires_at_utc: float, shared: SharedToken) -> None:
        try:
            shared.save(Secret(token), expires_at_utc)
        except ZitharaWorkerError as error:
            log.warning(
                "access token not saved in the shop: PHP and other workers will ask for their own",
                extra={"event": "token_not_saved", "detail": str(error)},
            )

    def _usable(self, shared: SharedToken) -> tuple[str, float] | None:
        """The shared token and its expiry, if requests may be sent with it now."""
        stored = shared.load()
        if stored is None:
            return None
        token, expires_at_utc = stored[0].reveal(), stored[1]
        usable = token != self._rejected and _is_writable(token) and expires_at_utc - self._clock() > MARGIN_SECONDS
        return (token, expires_at_utc) if usable else None

    def _ask(self) -> tuple[str, float]:
        """A new token of the API, and its expiry."""
        origin = origin_of(self._url)
        try:
            answer = send(self._transport, httpx.Request("GET", self._url, headers=self._headers()))
        except httpx.TransportError as error:
            failure = failure_of(error)
            if failure.reason == INVALID_REQUEST:
                raise CredentialsRefused(_NOT_HEADERS) from None
            seen = excerpt(f"{failure.reason}: {failure.detail}", self.mask)
            raise TokenUnavailable(f"no access token from {origin}: {seen}") from error
        parsed = answer.parsed()
        status = effective_status(answer, parsed)
        if status in (400, 401, 403):
            raise CredentialsRefused(describe(answer, self.mask))
        token = parsed.get("access_token") if isinstance(parsed, dict) else None
        if not 200 <= status < 300 or not isinstance(token, str) or not _is_writable(token):
            # A 2xx answer is not quoted, because it may contain a token even if it is malformed.
            seen = "an answer without a usable access_token" if 200 <= status < 300 else describe(answer, self.mask)
            raise TokenUnavailable(f"no access token from {origin}: {seen}")
        lifetime = _lifetime_seconds(parsed)
        now = self._clock()
        # At least half of the lifetime: a token of a minute or less would otherwise be renewed for every request.
        self._adopt(token, use_until_utc=now + max(lifetime - MARGIN_SECONDS, lifetime / 2))
        self.refresh_count += 1
        log.info("access token renewed", extra={"event": "token_renewed", "lifetime_seconds": lifetime})
        return token, now + lifetime

    def _adopt(self, token: str, *, use_until_utc: float) -> None:
        if token not in self._seen:
            self._seen.append(token)
        self._current = _Current(token, use_until_utc)
        self._failure = None

    def _headers(self) -> list[tuple[bytes, bytes]]:
        try:
            return [
                *COMMON_HEADERS,
                (b"client_id", self._client_id.encode("utf-8")),
                (b"client_secret", self._client_secret.reveal().encode("utf-8")),
            ]
        except UnicodeEncodeError:
            # `from None`, because the original error contains the secret.
            raise CredentialsRefused(_NOT_HEADERS) from None


def _is_writable(token: str) -> bool:
    """Whether a token can be sent in a header: visible ASCII only. The error about another one would quote it."""
    return bool(token) and all("!" <= each <= "~" for each in token)


def _lifetime_seconds(parsed: Any) -> float:
    """`expires_in` as a number or as text, else the default. If the token expires sooner, a 401 renews it."""
    value = parsed.get("expires_in")
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return DEFAULT_LIFETIME_SECONDS
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        return DEFAULT_LIFETIME_SECONDS
    return float(min(value, 10 * 366 * 86_400))
