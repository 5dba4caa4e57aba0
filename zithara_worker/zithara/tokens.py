"""The access token: used while it is good, renewed once for all threads and workers, never shown.

Source: zithara/webhook 1.0.3, Helper/Data: `GET /generate-access-token` with the headers `client_id` and
`client_secret`; the answer has `access_token` and `expires_in` (seconds, 3600 when absent). The API's documentation
says POST; the module sends GET, and that works.
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
#: A token with less left than this is renewed before it is used (design section 5).
MARGIN_SECONDS = 60.0
#: What an answer without `expires_in` means (Helper/Data).
DEFAULT_LIFETIME_SECONDS = 3600.0
#: Seconds to wait for another worker that renews the token, and between two looks at what it wrote. No longer: messages
#: wait meanwhile, and a second token harms nobody.
WAIT_SECONDS = 15.0
LOOK_SECONDS = 0.2
#: After a failure everybody gets the same failure for so long: 64 threads need not ask a sick API 64 times.
FAILURE_SECONDS = 1.0
MASK = "[masked]"

_NOT_HEADERS = (
    "client_id or client_secret holds characters that cannot be sent: correct them in the shop's Zithara configuration "
    "or in [zithara]"
)

#: What every request says. An answer that is compressed all the same is not read (`Answer.unreadable`).
COMMON_HEADERS = (
    (b"Accept", b"application/json"),
    (b"Accept-Encoding", b"identity"),
    (b"User-Agent", f"zithara-worker/{VERSION}".encode("ascii")),
)


class TokenUnavailable(ZitharaWorkerError):
    """No token now: the API or the shop's database does not answer as it should. Trying later is right."""


class CredentialsRefused(ZitharaWorkerError):
    """The API gives no token for these credentials: a person must correct them."""


class SharedToken(Protocol):
    """The token that PHP and all workers share, with the time it ends, seconds since the epoch. Any call may raise
    ZitharaWorkerError."""

    def load(self) -> tuple[Secret, float] | None: ...
    def save(self, token: Secret, expires_at_utc: float) -> None: ...
    def lock(self) -> bool:
        """Keeps other workers from renewing until this use ends; False when one of them does it already."""
        ...


class TokenStore(Protocol):
    """Where the shared token is."""

    def opened(self) -> AbstractContextManager[SharedToken]: ...


@dataclass(frozen=True, slots=True)
class _Current:
    token: str = field(repr=False)
    use_until_utc: float


class TokenSource:
    """Gives every thread the same token. `clock`: seconds since the epoch. `pause` waits for so many seconds, or less
    and with True when the process is to stop.

    Raises UrlRefused (a ConfigurationError) when `base_url` is unfit for a secret.
    """

    def __init__(
        self,
        *,
        base_url: str,
        client_id: str,
        client_secret: Secret,
        store: TokenStore,
        clock: Callable[[], float],
        transport: httpx.BaseTransport,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._url = usable_url(base_url.rstrip("/") + TOKEN_PATH)
        self._client_id = client_id
        self._client_secret = client_secret
        self._store = store
        self._clock = clock
        self._transport = transport
        self._pause = pause
        self._lock = threading.Lock()
        self._current: _Current | None = None
        self._rejected: str | None = None
        self._failure: tuple[float, type[TokenUnavailable | CredentialsRefused], str] | None = None
        self._seen: deque[str] = deque(maxlen=8)
        self._refresh_count = 0

    @property
    def refresh_count(self) -> int:
        """Tokens that were asked of the API."""
        return self._refresh_count

    def get(self) -> str:
        """A token that was good when last heard of. Raises TokenUnavailable, CredentialsRefused."""
        current = self._current
        if current is not None and self._clock() < current.use_until_utc:
            return current.token
        with self._lock:
            current = self._current
            if current is not None and self._clock() < current.use_until_utc:
                return current.token
            return self._renew()

    def refresh(self, rejected_token: str) -> str:
        """Another token than the one that the API has refused. Raises like `get`.

        Any number of threads may come with the same token: the first asks, the others get what it got.
        """
        with self._lock:
            current = self._current
            if current is not None and current.token != rejected_token and self._clock() < current.use_until_utc:
                return current.token
            self._current = None
            self._rejected = rejected_token
            return self._renew()

    def mask(self, text: str) -> str:
        """The text without the secret and the tokens of late, also as PHP's JSON writes them ('/' as '\\/')."""
        for secret in (*self._seen, self._client_secret.reveal()):
            if secret:
                text = text.replace(secret, MASK).replace(secret.replace("/", "\\/"), MASK)
        return text

    def _renew(self) -> str:
        """A token from the store, if another worker or PHP was faster, else from the API; called with the lock held."""
        failure = self._failure
        if failure is not None:
            # Both ways, as this clock can be set back.
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
            with self._store.opened() as shared:
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
            raise CredentialsRefused(
                f"Zithara refused client_id and client_secret ({describe(answer, self.mask)}): "
                "correct them in the shop's Zithara configuration or in [zithara]"
            )
        token = parsed.get("access_token") if isinstance(parsed, dict) else None
        if not 200 <= status < 300 or not isinstance(token, str) or not _is_writable(token):
            # A 2xx answer is not described: what cannot be understood may hold a token all the same.
            seen = "an answer without a usable access_token" if 200 <= status < 300 else describe(answer, self.mask)
            raise TokenUnavailable(f"no access token from {origin}: {seen}")
        lifetime = _lifetime_seconds(parsed)
        now = self._clock()
        # A token that lives for a minute or less would otherwise be renewed for every request.
        self._adopt(token, use_until_utc=now + max(lifetime - MARGIN_SECONDS, lifetime / 2))
        self._refresh_count += 1
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
            # `from None`: that error carries the text it could not encode.
            raise CredentialsRefused(_NOT_HEADERS) from None


def _is_writable(token: str) -> bool:
    """Whether it can stand in a header: visible ASCII. Anything else is no token, and sending it would show it."""
    return bool(token) and all("!" <= each <= "~" for each in token)


def _lifetime_seconds(parsed: Any) -> float:
    """`expires_in`, a number or its text; the default when it says nothing sensible: a 401 comes soon enough."""
    value = parsed.get("expires_in")
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return DEFAULT_LIFETIME_SECONDS
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        return DEFAULT_LIFETIME_SECONDS
    return float(min(value, 10 * 366 * 86_400))
