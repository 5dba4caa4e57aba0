"""Signs webhooks by the Standard Webhooks specification (standardwebhooks.com), version 1.

A receiver that knows the secret can tell the shop's webhooks from forged, changed, and old ones. Calls of Zithara's API
are not signed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence


class WebhookSigner:
    """`keys`: the secrets, decoded. Where there are two, as during a rotation, each webhook carries a signature by
    each, and a receiver accepts whichever it knows. No key: no headers."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._keys = tuple(keys)

    def headers(self, message: str, body: bytes, *, now_utc: float) -> list[tuple[bytes, bytes]]:
        """The three headers of one attempt. `message`: the same text for each repetition of one webhook, so that its
        `webhook-id` is the same too. `now_utc`: seconds since the epoch; receivers refuse what is older than minutes.
        """
        if not self._keys:
            return []
        # An id must not contain the full stop that separates the parts of what is signed, and names of queues may.
        identity = "msg_" + hashlib.sha256(message.encode()).hexdigest()[:32]
        timestamp = str(int(now_utc))
        signed = f"{identity}.{timestamp}.".encode() + body
        signatures = (base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in self._keys)
        return [
            (b"webhook-id", identity.encode()),
            (b"webhook-timestamp", timestamp.encode()),
            (b"webhook-signature", " ".join(f"v1,{each}" for each in signatures).encode()),
        ]


#: Adds no headers.
UNSIGNED = WebhookSigner()
