"""The stable codes that this room gives to messages it did not send, and what each one says.

A throttled target's messages carry the same code as the answer that throttled it: `zithara.reasons.THROTTLED`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

OUTAGE: Final = "outage"
SHUTDOWN: Final = "shutdown"
LATE: Final = "late"
SHOP_UNREAD: Final = "shop_unread"
INTERNAL_ERROR: Final = "internal_error"

#: Every code above with one line of meaning.
REASONS: Final[Mapping[str, str]] = {
    OUTAGE: "The host is taken to be down, so nothing is sent but probes. Released, no attempt counted.",
    SHUTDOWN: "The worker was asked to stop before the message was sent. Released.",
    LATE: "The request was under way when shutdown_timeout ended: nobody knows whether it arrived. Released.",
    SHOP_UNREAD: "The message names a row that the shop may have by now, and the shop could not be read. Released.",
    INTERNAL_ERROR: "A defect of this program; the log has the traceback. Retried.",
}
