"""The end of a loop: what is given back then."""

from __future__ import annotations

import logging

from zithara_worker.delivery.threads import DeliveryPool
from zithara_worker.messages import Evidence, Outcome, OutcomeKind
from zithara_worker.queue.held import Held, Stage
from zithara_worker.reasons import LATE, SHUTDOWN
from zithara_worker.worker.inbox import Inbox

log = logging.getLogger(__name__)


def release_unsent(pool: DeliveryPool, inbox: Inbox) -> None:
    """Releases what no delivery thread has begun."""
    for message in pool.drain():
        inbox.add(message, Outcome(kind=OutcomeKind.RELEASED, reason=SHUTDOWN))


def release_unanswered(held: Held, inbox: Inbox) -> None:
    """Releases what has no answer when shutdown_timeout is over."""
    for message in held.messages(Stage.CLAIMED, Stage.HANDED_OUT):
        # Its thread may still wait for a token, or send again after a reset: not after another worker has the message.
        held.revoke(message)
        log.warning("no answer within shutdown_timeout: released", extra={"event": "late", **message.log_fields})
        # Its request may have left, and may still be processed.
        inbox.add(message, Outcome(kind=OutcomeKind.RELEASED, reason=LATE, evidence=Evidence.PATH))
