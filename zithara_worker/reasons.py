"""The table of reasons: every stable code that says why a message was not delivered, or what to look at though it was.

Codes stand in the database, in logs and in metrics, so a code keeps its meaning. docs/reasons.md is made from this
table, and `failed summary` prints what to do:

    python packaging/generated/reasons_page.py > docs/reasons.md
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Reason:
    """A code, what becomes of the message, what the code means, and what a person does about it. Markdown, one line
    each."""

    code: str
    effect: str
    meaning: str
    remedy: str


_table: dict[str, Reason] = {}


def _reason(code: str, effect: str, meaning: str, remedy: str) -> str:
    """Adds a row to the table; returns the code."""
    _table[code] = Reason(code, effect, meaning, remedy)
    return code


# ---------------------------------------------------------------- the stored body is not the JSON that was meant

EMPTY_MESSAGE: Final = _reason(
    "empty_message",
    "rejection",
    "The stored body, or the string inside it, is empty.",
    "Find the program that publishes it; discard the message.",
)
NOT_JSON: Final = _reason(
    "not_json",
    "rejection",
    "The body, or the string inside it, is not JSON; the detail says which of the two, and where.",
    "Usually the body was cut off or edited by hand: repair it in `queue_message` and retry, or discard the message.",
)
NOT_AN_OBJECT: Final = _reason(
    "not_an_object",
    "rejection",
    "The JSON is a list, a number, null or text; an event is an object.",
    "Find the program that publishes it; discard the message.",
)
NESTED_TOO_DEEPLY: Final = _reason(
    "nested_too_deeply",
    "rejection",
    "The JSON has more than 512 levels; PHP could not read it either.",
    "Find the program that publishes it; discard the message.",
)
INVALID_NUMBER: Final = _reason(
    "invalid_number",
    "rejection",
    "The body holds NaN, Infinity, or a number that is too large for JSON readers.",
    "Correct the value in the shop and save, which publishes a new message; discard this one.",
)
INVALID_TEXT: Final = _reason(
    "invalid_text",
    "rejection",
    "The body holds half of a surrogate pair: text that cannot be written as UTF-8.",
    "Correct the text in the shop (often a name that was cut inside an emoji) and save, which publishes a new message; "
    "discard this one.",
)

# ---------------------------------------------------------------- the event lacks what its request needs

UNKNOWN_TOPIC: Final = _reason(
    "unknown_topic",
    "rejection",
    "The worker was given a topic that it has no processor for.",
    "Check the topics on the command line and in `[worker] topics`.",
)
MISSING_FIELD: Final = _reason(
    "missing_field",
    "rejection",
    "A field that the request needs is absent or empty; the detail names it.",
    "Complete the order, customer or cart in the shop and save it, which publishes a new message; discard this one.",
)
WRONG_TYPE: Final = _reason(
    "wrong_type",
    "rejection",
    "A field holds another type of value than Zithara takes there; the detail names it.",
    "Look for an extension that changes the module's messages.",
)
NOT_A_NUMBER: Final = _reason(
    "not_a_number",
    "rejection",
    "An amount or a quantity is text that is not a number; the detail quotes it.",
    "Correct it in the shop and save; discard this one. The PHP module would have sent 0.",
)
ORDER_WITHOUT_ITEMS: Final = _reason(
    "order_without_items",
    "rejection",
    "A new order has no item with an id; Zithara does not take orders without items.",
    "Look at the order in the shop; discard the message if the order is empty.",
)
INVALID_EVENT_TYPE: Final = _reason(
    "invalid_event_type",
    "rejection",
    "The event type of a webhook message cannot be sent as an HTTP header.",
    "Look for an extension that publishes webhook events.",
)
UNKNOWN_CONFIG_ID: Final = _reason(
    "unknown_config_id",
    "rejection",
    "A webhook message names a row of `zithara_webhook_config` that does not exist. The worker read the table again "
    "before it rejected the message.",
    "Restore the row and retry, or discard the message.",
)
INVENTED_PHONE: Final = _reason(
    "invented_phone",
    "warning, or rejection with `[zithara] invented_phone = reject`",
    "The shop's module made the customer's telephone number up; it may belong to a stranger.",
    "Ask Zithara whether a number is needed; if not, set `invented_phone = omit`. Ask customers for a number at "
    "registration.",
)

# ---------------------------------------------------------------- nothing to deliver

CART_WITHOUT_ITEMS: Final = _reason(
    "cart_without_items",
    "skip",
    "The cart is empty, or was published before its items had ids, as the module does at each save: the newest item is "
    "missing, and a guest who adds one item and stops publishes an empty cart only. The cart's next save "
    "publishes it with its items, and so does the module's cron if it is abandoned and has an email address.",
    "Nothing. `zithara-worker reconcile carts` tells which carts with an email address Zithara does not have; "
    "`--publish` sends them.",
)
OVERTAKEN: Final = _reason(
    "overtaken",
    "skip",
    "Zithara has accepted a newer message of the same order, customer or cart, which tells all of this one: an older "
    "state would have gone over it.",
    "Nothing. To send it all the same: `failed retry --force` for a failed message, else "
    "`zithara-worker ledger forget GROUP` and publish the entity again.",
)
UNCHANGED: Final = _reason(
    "unchanged",
    "skip",
    "Zithara accepted the same request last, within `[worker] unchanged_for`. The module publishes each abandoned cart "
    "every minute.",
    "Nothing. If the CRM has lost the entity: `zithara-worker ledger forget GROUP`; the next message is then sent.",
)
CART_INACTIVE: Final = _reason(
    "cart_inactive",
    "skip",
    "The cart became an order or was merged into another one: nobody who has just paid is told that a cart was "
    "forgotten.",
    "Nothing. `[zithara] inactive_carts = send` sends such carts, as the PHP module does.",
)
CART_NOT_FOUND: Final = _reason(
    "cart_not_found",
    "skip",
    "The cart is not in the shop. While its message is younger than ten minutes it is looked at again, because the "
    "transaction that made the cart may not be committed yet; then the message is skipped.",
    "Nothing. `[zithara] inactive_carts = send` sends such carts, as the PHP module does.",
)
NO_WEBHOOK_URL: Final = _reason(
    "no_webhook_url",
    "skip",
    "The shop has no webhook URL, so there is no address for webhook events. The module's form in the shop's admin has "
    "no field for it any more.",
    "Nothing, or set `[zithara] webhook_url`, or `webhook_url` of the active row of `zithara_webhook_config`.",
)

# ---------------------------------------------------------------- the exchange failed

CONNECT_ERROR: Final = _reason(
    "connect_error",
    "retry",
    "No connection: the name was not found, the host refused or could not be reached, or the connection ended before "
    "the request was sent.",
    "Nothing if it ends by itself; otherwise check network, firewall and `[zithara] base_url`.",
)
TLS_ERROR: Final = _reason(
    "tls_error",
    "retry",
    "The TLS handshake failed, mostly because the certificate is not trusted.",
    "Set `[zithara] ca_file` if a proxy signs with its own authority; check the clock of this host.",
)
TIMEOUT: Final = _reason(
    "timeout",
    "retry",
    "No complete answer within `[zithara] timeout`.",
    "Raise the timeout if the API is known to be slow.",
)
CONNECTION_LOST: Final = _reason(
    "connection_lost",
    "retry",
    "The connection was reset before an answer came.",
    "Nothing; often a load balancer closes connections.",
)
PROTOCOL_ERROR: Final = _reason(
    "protocol_error",
    "retry",
    "The connection was closed without an answer, or the answer was not HTTP.",
    "Check that the address is the API's.",
)
TRUNCATED_ANSWER: Final = _reason(
    "truncated_answer",
    "retry",
    "The API answered with success, but the connection ended within the answer. The request is sent again, which is "
    "harmless for the API's upserts.",
    "Nothing.",
)
UNREADABLE_ANSWER: Final = _reason(
    "unreadable_answer",
    "retry",
    "Status 2xx with a body that cannot be read: compressed though not asked for, over 64 KB, or broken JSON. It may "
    "hold a `status` that says failure.",
    "Look for a proxy that changes answers; check `[zithara] base_url`.",
)
HTML_ANSWER: Final = _reason(
    "html_answer",
    "retry",
    "Status 2xx with an HTML page: a maintenance page or a portal answered, not the API.",
    "Check `[zithara] base_url` and proxies.",
)

# ---------------------------------------------------------------- the API does not serve the worker now

THROTTLED: Final = _reason(
    "throttled",
    "release",
    "The API asked for fewer requests (429). Nothing is sent to that path for `Retry-After`. Where others are served "
    "meanwhile, only the group that is answered so again waits, and every third such answer costs it an attempt.",
    "Set `[worker] rate_limit` if it happens often.",
)
TOKEN_UNAVAILABLE: Final = _reason(
    "token_unavailable",
    "release",
    "There is no access token: neither the API nor the shop's database gave one. Only probes are sent.",
    "Run `zithara-worker doctor`, which tries both.",
)
CREDENTIALS_REFUSED: Final = _reason(
    "credentials_refused",
    "release",
    "The API gives no access token for `client_id` and `client_secret`. Only probes are sent.",
    "Correct client id and secret in the shop's admin or in `[zithara]`.",
)
OUTAGE: Final = _reason(
    "outage",
    "release",
    "The circuit breaker of the host or of the path is open, so only probes are sent.",
    "Nothing: deliveries resume with the first probe that succeeds.",
)

# ---------------------------------------------------------------- the API refuses this message

ORDER_NOT_FOUND_YET: Final = _reason(
    "order_not_found_yet",
    "retry",
    "404 for an order's update while an older message of the order is pending. Where none is pending, the order is "
    "sent as a create at once.",
    "Nothing.",
)
ORDER_NOT_FOUND: Final = _reason(
    "order_not_found",
    "failure",
    "404 for an order's update, no older message of the order is pending, and this one has no items from which the "
    "order could be created.",
    "Look whether the message that creates the order has failed: retry that one, then this one.",
)
INVALID_URL: Final = _reason(
    "invalid_url",
    "failure",
    "The webhook URL cannot be parsed; nothing was sent.",
    "Correct it in the shop or in `[zithara] webhook_url`, then retry.",
)
INSECURE_URL: Final = _reason(
    "insecure_url",
    "failure",
    "The webhook URL begins with http:// and leads to another host, so the token would travel unencrypted; nothing was "
    "sent.",
    "Use https://, then retry.",
)
INVALID_REQUEST: Final = _reason(
    "invalid_request",
    "failure",
    "A header or the body cannot be written as HTTP or JSON; nothing was sent.",
    "Report it with the message.",
)
#: Any HTTP status without a code of its own; see `http_status`.
_HTTP_STATUS: Final = _reason(
    "http_<status>",
    "failure for the API's 4xx with a JSON body (401, 403, 408 and 425 excepted) and for a webhook's 410, else retry",
    "The host answered with this status, or with 2xx and this `status` in the body. A 3xx, or a 4xx without JSON, "
    "comes from a proxy between the worker and the API.",
    "The detail holds the beginning of the answer. For 401 and 403, ask Zithara what the credentials may do.",
)

# ---------------------------------------------------------------- the worker did not send it, or did not finish

SHUTDOWN: Final = _reason(
    "shutdown",
    "release",
    "The worker was asked to stop before the message was sent.",
    "Nothing.",
)
LATE: Final = _reason(
    "late",
    "release",
    "The request was in flight when `shutdown_timeout` ended, so the message may have arrived; it is sent again.",
    "Raise `shutdown_timeout` above `[zithara] timeout` if it happens often.",
)
LEASE_LOST: Final = _reason(
    "lease_lost",
    "release, if no other worker has taken the message over",
    "The lease ended before the request was sent, so another worker may hold the message now.",
    "Look for a host that was suspended, or whose CPU or memory was exhausted.",
)
SHOP_UNREAD: Final = _reason(
    "shop_unread",
    "release",
    "The message names a row of `zithara_webhook_config` that may have been saved a moment ago, and the table could "
    "not be read again.",
    "The error is in the log, event `database_away`.",
)
WORKER_DIED: Final = _reason(
    "worker_died",
    "retry; failure after `[retry] limit` such deaths",
    "The worker that held the message died, or its lease ran out. Any of the messages that it held may have killed it, "
    "so the first death costs no attempt. From then on the message is delivered while its worker holds nothing else, "
    "and each further death costs an attempt.",
    "Look for the reason of the death in that worker's log, and in the kernel's log for a lack of memory. Mend it, "
    "then retry; discard the message if its content is what kills the worker.",
)
BODY_TOO_LARGE: Final = _reason(
    "body_too_large",
    "failure",
    "The body exceeds the database server's `max_allowed_packet`, so it cannot be read.",
    "Raise `max_allowed_packet`, then retry.",
)
INTERNAL_ERROR: Final = _reason(
    "internal_error",
    "retry",
    "A defect of this program; the log has the traceback.",
    "Report it.",
)
NEWER_DELIVERED: Final = _reason(
    "newer_delivered",
    "failure, not sent, costs no attempt",
    "An operator retried the message, or it was put back in the database. Before a worker claimed it, newer data of "
    "the same order, customer or cart was delivered, and this message would overwrite it.",
    "`failed show` has the newer messages. Discard it, or send it all the same: `failed retry ID --force`.",
)
UNRECORDED: Final = _reason(
    "unrecorded",
    "failure",
    "A PHP consumer rejected the message; PHP records no reason.",
    "Keep PHP consumers off, then retry.",
)

# ---------------------------------------------------------------- messages from RabbitMQ that no queue can hold

RELAY_TOO_LARGE: Final = _reason(
    "relay_too_large",
    "kept aside",
    "The statement that stores the body would exceed the database server's `max_allowed_packet`; Magento could not "
    "store it either.",
    "Raise `max_allowed_packet` on the server, then retry; or export the message and discard it.",
)
RELAY_NOT_TEXT: Final = _reason(
    "relay_not_text",
    "kept aside",
    "The body is not UTF-8, or has characters that the column `queue_message.body` cannot hold. The module publishes "
    "neither.",
    "Find the program that publishes it; export the message, or discard it.",
)
RELAY_OTHER_TOPIC: Final = _reason(
    "relay_other_topic",
    "kept aside",
    "The routing key is not a topic of the queue in which the message lay.",
    "Find the binding in RabbitMQ that brings it there; export the message, or discard it.",
)

#: By code, in the order of the document.
REASONS: Final[Mapping[str, Reason]] = MappingProxyType(_table)


def http_status(status: int) -> str:
    """The code of an HTTP status that has none of its own: 'http_422'."""
    return f"http_{status}"


def find(code: str) -> Reason | None:
    """The reason with this code; every 'http_422' finds the row of all statuses. None: there is no such code."""
    return REASONS.get(_HTTP_STATUS if re.fullmatch(r"http_\d{3}", code) else code)
