"""The certificate of a host, looked at without sending anything."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass

import httpx


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """`protocol`: "TLSv1.3". `expires_utc`: seconds since the epoch; None where it was not checked."""

    protocol: str
    expires_utc: float | None


def certificate_of(url: httpx.URL, tls: ssl.SSLContext, *, timeout_seconds: float) -> Certificate:
    """Raises ssl.SSLError (SSLCertVerificationError says what is wrong with it) or OSError."""
    host, port = url.host, url.port or 443
    with (
        socket.create_connection((host, port), timeout=timeout_seconds) as plain,
        tls.wrap_socket(plain, server_hostname=host) as secured,
    ):
        found = secured.getpeercert() or {}
        expires = found.get("notAfter")
        return Certificate(
            protocol=secured.version() or "unknown",
            expires_utc=float(ssl.cert_time_to_seconds(expires)) if isinstance(expires, str) else None,
        )
