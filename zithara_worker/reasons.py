"""What a person does about each reason code: the last column of docs/reasons.md, for whoever prints it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

#: Any HTTP status stands below this one name.
_STATUS: Final = "http_<status>"

#: Code -> what to do. A test compares it with the document, and the document with the codes that exist.
REMEDIES: Final[Mapping[str, str]] = {
    "empty_message": "Find what publishes it; discard the message.",
    "not_json": "Usually a body cut off or edited by hand: repair it in `queue_message` and retry, or discard it.",
    "not_an_object": "Find what publishes it; discard the message.",
    "nested_too_deeply": "Find what publishes it; discard the message.",
    "invalid_number": "Correct the value in the shop, publish again, discard this one.",
    "invalid_text": "Correct the text in the shop (often a name cut inside an emoji), publish again, discard this one.",
    "unknown_topic": "Check the topics of the command and of `[worker] topics`.",
    "missing_field": (
        "Complete the order, customer or cart in the shop and save it, which publishes a new message; discard this one."
    ),
    "wrong_type": "Look for an extension that changes the module's messages.",
    "not_a_number": "Correct it in the shop and save; discard this one. The PHP module would have sent 0.",
    "order_without_items": "Look at the order in the shop; discard the message if the order is empty.",
    "invalid_event_type": "Look for an extension that publishes webhook events.",
    "unknown_config_id": "Restore the row and retry, or discard the message.",
    "invented_phone": (
        "Ask Zithara whether a number is needed; if not, set `invented_phone = omit`. Ask customers for a number "
        "at registration."
    ),
    "cart_without_items": "Nothing.",
    "no_webhook_url": "Nothing, or set `[zithara] webhook_url`.",
    "connect_error": "Nothing for a blip; else check network, firewall and `[zithara] base_url`.",
    "tls_error": "Set `[zithara] ca_file` if a proxy signs with its own authority; check the host's clock.",
    "timeout": "Raise the timeout if the API is known to be slow.",
    "connection_lost": "Nothing; often a load balancer.",
    "protocol_error": "Check that the address is the API's.",
    "truncated_answer": "Nothing.",
    "unreadable_answer": "Look for a proxy that changes answers; check `[zithara] base_url`.",
    "html_answer": "Check `[zithara] base_url` and proxies.",
    "throttled": "Set `[worker] rate_limit` if it happens often.",
    "token_unavailable": "`zithara-worker doctor` tries both.",
    "credentials_refused": "Correct client id and secret in the shop's admin or in `[zithara]`.",
    "order_not_found_yet": "Nothing.",
    "order_not_found": "Look whether its create failed: retry that one, then this one.",
    "invalid_url": "Correct it in the shop or in `[zithara] webhook_url`, then retry.",
    "insecure_url": "Use https://, then retry.",
    "invalid_request": "Report it with the message.",
    "http_<status>": (
        "The detail holds the beginning of the answer. For 401 and 403: what the credentials may do is Zithara's to "
        "say."
    ),
    "outage": "Nothing: it goes on by itself.",
    "shutdown": "Nothing.",
    "late": "Raise `shutdown_timeout` above `[zithara] timeout` if it happens often.",
    "lease_lost": "Look for a host that was suspended or starved.",
    "shop_unread": "The log's `database_away` line has the error.",
    "worker_died": "Look at that worker's log and the kernel's for memory.",
    "body_too_large": "Raise it, then retry.",
    "internal_error": "Report it.",
    "newer_delivered": (
        "`failed show` has the newer messages. Discard it, or send it all the same: `failed retry ID --force`."
    ),
    "unrecorded": "Keep PHP consumers off, then retry.",
}


def remedy(code: str) -> str | None:
    """What to do about a failure with this code; None: there is no such code."""
    return REMEDIES.get(_STATUS if re.fullmatch(r"http_\d{3}", code) else code)
