"""The stable codes that an exchange with Zithara can give an outcome, and what each one says.

They stand in the database, in logs and in metrics, so a code keeps its meaning; docs/reasons.md says what to do
about each one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# The host could not be reached, or the exchange broke
CONNECT_ERROR: Final = "connect_error"
TLS_ERROR: Final = "tls_error"
TIMEOUT: Final = "timeout"
CONNECTION_LOST: Final = "connection_lost"
PROTOCOL_ERROR: Final = "protocol_error"
TRUNCATED_ANSWER: Final = "truncated_answer"
UNREADABLE_ANSWER: Final = "unreadable_answer"
HTML_ANSWER: Final = "html_answer"

# The API is not ready for us
THROTTLED: Final = "throttled"
TOKEN_UNAVAILABLE: Final = "token_unavailable"  # noqa: S105 - a code, and no password
CREDENTIALS_REFUSED: Final = "credentials_refused"

# This message
LEASE_LOST: Final = "lease_lost"
ORDER_NOT_FOUND_YET: Final = "order_not_found_yet"
ORDER_NOT_FOUND: Final = "order_not_found"
INVALID_URL: Final = "invalid_url"
INSECURE_URL: Final = "insecure_url"
INVALID_REQUEST: Final = "invalid_request"

#: A status without a code of its own; `http_422` and the like are made from it.
HTTP_STATUS_PREFIX: Final = "http_"

#: Every code above with one line of meaning.
REASONS: Final[Mapping[str, str]] = {
    CONNECT_ERROR: "No connection: name not found, refused, unreachable, or ended before the request left. Retried.",
    TLS_ERROR: "The TLS handshake failed, mostly because the certificate is not trusted. Retried.",
    TIMEOUT: "No complete answer within [zithara] timeout. Retried.",
    CONNECTION_LOST: "The connection was reset before an answer came. Retried.",
    PROTOCOL_ERROR: "The connection was closed without an answer, or what came was not HTTP. Retried.",
    TRUNCATED_ANSWER: "The API said success, but the connection ended within the answer. Sent again: upserts may be.",
    UNREADABLE_ANSWER: "Status 2xx and a body nobody can read: compressed, over 64 KB, or broken JSON. Retried.",
    HTML_ANSWER: "Status 2xx with an HTML page: a maintenance page or a portal answered, not the API. Retried.",
    THROTTLED: "The host asked for fewer requests (429). Released, and the host is left alone for Retry-After.",
    TOKEN_UNAVAILABLE: "No access token could be had from the API or the shop's database. Released; sending stops.",
    CREDENTIALS_REFUSED: "The API gives no access token for client_id and client_secret. Released; sending stops.",
    LEASE_LOST: "The lease ended before sending: another worker may hold the message by now. Nothing is written.",
    ORDER_NOT_FOUND_YET: "404 for an order's update while an older message of the order is pending. Retried.",
    ORDER_NOT_FOUND: "404 for an order's update, none of the order's older messages is pending, and this one has no "
    "items from which the order could be created. Failed.",
    INVALID_URL: "The webhook URL cannot be understood. Failed; nothing was sent.",
    INSECURE_URL: "The webhook URL is http:// and not on this host: the token would travel in clear. Failed; not sent.",
    INVALID_REQUEST: "A header or the body cannot be written as HTTP or JSON. Failed; nothing was sent.",
    "http_<status>": "The host answered with this status, or with 2xx and this `status` in the body. A failure is the "
    "API's 4xx with a JSON body, 401, 403, 408 and 425 excepted, and a webhook's 410. Any other is retried.",
}
