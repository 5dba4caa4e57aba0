"""The end of a loop: why it ends, the limits at which it ends by itself, and what is given back then."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from enum import Enum

from zithara_worker.delivery.threads import DeliveryPool
from zithara_worker.messages import Evidence, Outcome, OutcomeKind
from zithara_worker.queue.held import Held, Stage
from zithara_worker.reasons import LATE, SHUTDOWN
from zithara_worker.worker.inbox import Inbox

log = logging.getLogger(__name__)


class End(Enum):
    """Why the loop ended."""

    STOPPED = "stopped"
    RELOAD = "reload"
    POISON_PILL = "poison pill"
    EMPTY = "queues empty"
    MESSAGES = "message limit reached"
    RUNTIME = "time is up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When the loop ends by itself. None: never."""

    max_messages: int | None = None
    max_runtime_seconds: float | None = None
    stop_when_empty: bool = False

    def reached(self, *, settled: int, seconds: float) -> End | None:
        """The limit that is reached after so many settled messages and seconds."""
        if self.max_messages is not None and settled >= self.max_messages:
            return End.MESSAGES
        if self.max_runtime_seconds is not None and seconds >= self.max_runtime_seconds:
            return End.RUNTIME
        return None

    def remaining(self, *, settled: int, seconds: float) -> Limits:
        """The limits of the loop that goes on after a reload."""
        messages, runtime = self.max_messages, self.max_runtime_seconds
        return replace(
            self,
            max_messages=None if messages is None else max(0, messages - settled),
            max_runtime_seconds=None if runtime is None else max(0.0, runtime - seconds),
        )


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
