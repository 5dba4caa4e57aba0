"""Checks Zithara's API: its URL, its certificate, a real request for a token, and its clock."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from email.utils import parsedate_to_datetime

import httpx

from zithara_worker.delivery.down import API, CREDENTIALS, down, remedy
from zithara_worker.doctor.finding import Finding, failed, ok, warning
from zithara_worker.errors import ConfigurationError
from zithara_worker.settings.sections import BASE_URLS, ZitharaSettings
from zithara_worker.settings.values import Secret
from zithara_worker.units import duration
from zithara_worker.zithara.http import Transport, origin_of, tls_context, usable_url
from zithara_worker.zithara.tokens import CredentialsRefused, TokenSource, TokenUnavailable

#: A certificate that ends within so many days is a warning.
_DAYS = 14
_SKEW_SECONDS = 60.0
#: Of one request or handshake: shorter than a delivery may take, because a person waits.
_TIMEOUT_SECONDS = 10.0


class _NoToken:
    """No shared token, so that the check asks the API for one, and does not replace the shop's."""

    def load(self) -> tuple[Secret, float] | None:
        return None

    def save(self, token: Secret, expires_at_utc: float) -> None:
        return

    def lock(self) -> bool:
        return True


class _Remembering(Transport):
    """Keeps the last answer, because its Date header tells the API's time."""

    answer: httpx.Response | None = None

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.answer = super().handle_request(request)
        return self.answer


def checks(settings: ZitharaSettings, utc: Callable[[], float], *, credentials_known: bool = True) -> Iterator[Finding]:
    """All checks of the API; after a failed one the next are left out. `credentials_known`: False where the shop's,
    which would count, cannot be read."""
    try:
        url = usable_url(settings.base_url)
        tls = tls_context(verify=settings.verify, ca_file=str(settings.ca_file or ""))
    except ConfigurationError as error:
        yield failed("api.url", str(error), "correct [zithara] base_url or ca_file")
        return
    own = settings.base_url in BASE_URLS.values()
    yield ok("api.url", settings.base_url + ("" if own else " (not one of Zithara's two APIs)"))
    problem = False
    for finding in certificate(url, tls, settings, utc):
        problem = problem or finding.level.value == "failed"
        yield finding
    if not problem and credentials_known:
        yield from token(settings, tls, utc)


def certificate(
    url: httpx.URL, tls: ssl.SSLContext, settings: ZitharaSettings, utc: Callable[[], float]
) -> Iterator[Finding]:
    if url.scheme != "https":
        yield ok("api.tls", "no TLS: the API is on this host")
        return
    try:
        protocol, expires_utc = _handshake(url, tls, timeout_seconds=min(settings.timeout, _TIMEOUT_SECONDS))
    except ssl.SSLCertVerificationError as error:
        yield failed(
            "api.tls",
            f"the certificate of {origin_of(url)} is not trusted: {error.verify_message}",
            "if the authority is your own, set [zithara] ca_file; else check this host's clock and ca-certificates",
        )
    except (ssl.SSLError, OSError) as error:
        yield failed(
            "api.tls",
            f"no TLS connection to {origin_of(url)}: {error}",
            "check [zithara] base_url, DNS and the firewall (outgoing TCP 443)",
        )
    else:
        if expires_utc is not None and expires_utc - utc() < _DAYS * 86_400:
            yield warning(
                "api.tls",
                f"the certificate of {origin_of(url)} ends in {duration(expires_utc - utc())}",
                "tell the operator of the API",
            )
        else:
            yield ok("api.tls", f"{protocol}, certificate {'trusted' if settings.verify else 'not checked'}")


def _handshake(url: httpx.URL, tls: ssl.SSLContext, *, timeout_seconds: float) -> tuple[str, float | None]:
    """The protocol, like "TLSv1.3", and when the certificate expires, in seconds since the epoch; None if it was not
    checked. Sends no request. Raises OSError; ssl.SSLCertVerificationError, which is one, if it is not trusted."""
    with (
        socket.create_connection((url.host, url.port or 443), timeout=timeout_seconds) as plain,
        tls.wrap_socket(plain, server_hostname=url.host) as secured,
    ):
        expires = (secured.getpeercert() or {}).get("notAfter")
        expires_utc = float(ssl.cert_time_to_seconds(expires)) if isinstance(expires, str) else None
        return secured.version() or "unknown", expires_utc


def token(settings: ZitharaSettings, tls: ssl.SSLContext, utc: Callable[[], float]) -> Iterator[Finding]:
    """Asks for a token as the worker does, and compares the clocks by the Date header of the answer."""
    if not settings.client_id or not settings.client_secret:
        yield failed(
            "api.token",
            "there is no client_id or no client_secret",
            "save them in the shop's Zithara configuration, or set [zithara] client_id and client_secret_file",
        )
        return
    transport = _Remembering(tls=tls, timeout_seconds=min(settings.timeout, _TIMEOUT_SECONDS))
    source = TokenSource(
        base_url=settings.base_url,
        client_id=settings.client_id,
        client_secret=settings.client_secret,
        shared_token=lambda: nullcontext(_NoToken()),
        clock=utc,
        transport=transport,
    )
    try:
        source.get()
    except CredentialsRefused as error:
        yield failed("api.token", down(API, f"{CREDENTIALS} ({error})"), remedy(API, CREDENTIALS))
    except TokenUnavailable as error:
        yield failed(
            "api.token",
            str(error),
            "check [zithara] base_url, DNS, the firewall and Zithara's own status; no message is lost",
        )
    else:
        yield ok("api.token", "the API gives a token for these credentials")
    finally:
        transport.close()
    if transport.answer is not None:
        yield from clock(transport.answer, utc)


def clock(answer: httpx.Response, utc: Callable[[], float]) -> Iterator[Finding]:
    said = answer.headers.get("date", "")
    try:
        ahead = utc() - parsedate_to_datetime(said).timestamp()
    except (TypeError, ValueError):  # TypeError: Python 3.10's answer to an empty text
        yield ok("api.clock", "the API sends no Date header")
        return
    if abs(ahead) > _SKEW_SECONDS:
        yield warning(
            "api.clock",
            f"this host's clock is {duration(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} the API's",
            "synchronise it (timedatectl set-ntp true, or chrony): tokens are used too long or too short otherwise",
        )
    else:
        yield ok("api.clock", "this host's clock agrees with the API's")
