"""What an outcome means for its message: which settlement, which attempt, what is given back; and its line in the log.

Pure but for the log and the refund: whoever calls it writes the settlements and says what was written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from zithara_worker import logs
from zithara_worker.magento.queue import MessageQueue
from zithara_worker.magento.settle import Settled, Settlement
from zithara_worker.messages import Message, Outcome, OutcomeKind, Target
from zithara_worker.worker.stats import Stats
from zithara_worker.zithara.reasons import ORDER_NOT_FOUND, ORDER_NOT_FOUND_YET

log = logging.getLogger(__name__)


class Outages(Protocol):
    """Who knows which target is taken to be down."""

    def is_open(self, target: Target) -> bool: ...


class Outcomes:
    """One for the queues of a loop, in its thread. `delay_before`: seconds to wait after the n-th failed attempt.

    `queues`: queue id -> the queue, and what it sends to.
    """

    def __init__(
        self,
        *,
        queues: Mapping[int, tuple[MessageQueue, Target]],
        outages: Outages,
        delay_before: Callable[[int], float],
        attempt_limit: int,
        stats: Stats,
        on_settled: Callable[[Sequence[Settlement]], None],
    ) -> None:
        self._queues = queues
        self._outages = outages
        self._delay_before = delay_before
        self._attempt_limit = attempt_limit
        self._stats = stats
        self._on_settled = on_settled
        #: Messages that were settled RETRY since the target last answered: given back if it turns out to be down.
        self._streaks: dict[int, list[Message]] = {queue_id: [] for queue_id in queues}

    def of_absent_order(self, message: Message, outcome: Outcome) -> Outcome:
        """For an update whose order the API does not know: as it is, with the create to send `instead`; without it,
        to wait for an older message of the order that is pending; FAILED where there is neither. Other outcomes
        unchanged. Raises DatabaseUnavailable."""
        if outcome.reason != ORDER_NOT_FOUND_YET:
            return outcome
        queue, _ = self._queues[message.queue_id]
        if queue.has_older_pending(message):
            return replace(outcome, instead=None)
        if outcome.instead is None:
            return replace(outcome, kind=OutcomeKind.FAILED, reason=ORDER_NOT_FOUND)
        return outcome

    def settlement(self, message: Message, outcome: Outcome) -> Settlement:
        """What shall be written for an outcome: applies the attempts limit and the retry policy."""
        _, target = self._queues[message.queue_id]
        attempt = message.attempts + 1
        if outcome.kind is OutcomeKind.RETRY:
            if outcome.outage and self._outages.is_open(target):
                # The host was down already when this one failed.
                return Settlement(message=message, outcome=replace(outcome, kind=OutcomeKind.RELEASED))
            if attempt >= self._attempt_limit:
                detail = f"gave up after {attempt} attempts; the last: {outcome.detail}"
                return Settlement(message=message, outcome=replace(outcome, kind=OutcomeKind.FAILED, detail=detail))
            delay = max(self._delay_before(attempt), outcome.retry_after_seconds or 0.0)
            return Settlement(message=message, outcome=outcome, delay_seconds=delay)
        return Settlement(message=message, outcome=outcome)

    def settled(self, queue_id: int, settled: Settled) -> int:
        """Learns what was written for a queue; how many messages were settled for good or for a retry."""
        streak = self._streaks[queue_id]
        count = 0
        for message in settled.lost:
            log.warning(
                "lease lost before the outcome could be written; another worker delivers it again",
                extra={"event": "settle_lost", **message.log_fields},
            )
        for each in settled.done:
            kind = each.outcome.kind
            if kind is not OutcomeKind.RELEASED:
                count += 1
            self._stats.count(each.message.topic, each.outcome, superseded=len(each.message.supersedes))
            if kind is OutcomeKind.RETRY and each.outcome.outage:
                streak.append(each.message)
            elif kind in (OutcomeKind.DELIVERED, OutcomeKind.FAILED) and each.outcome.http_status is not None:
                streak.clear()
        self._on_settled(settled.done)
        return count

    def refund(self, in_hand: Container[int]) -> None:
        """Gives back the attempts of failures that turned out to be the beginning of an outage. Raises
        DatabaseUnavailable.

        `in_hand`: relation ids. What is on its way again is IN_PROGRESS, and can be given nothing back before it is
        settled.
        """
        for queue_id, (queue, target) in self._queues.items():
            streak = self._streaks[queue_id]
            settled = [message for message in streak if message.id not in in_hand]
            if settled and self._outages.is_open(target):
                # Newest first: a message that failed several times in the streak gives them back one by one.
                refunded = queue.refund(reversed(settled))
                self._streaks[queue_id] = [message for message in streak if message.id in in_hand]
                log.info(
                    "outage recognised: attempts given back",
                    extra={"event": "refunded", "queue": queue.name, "count": refunded},
                )


def log_settled(settlements: Sequence[Settlement]) -> None:
    """One line a message, with its outcome: INFO what went well, WARNING what comes again, ERROR what does not."""
    with logs.together():
        for each in settlements:
            _log_one_settled(each)


def _log_one_settled(settlement: Settlement) -> None:
    message, outcome = settlement.message, settlement.outcome
    kind = outcome.kind.value
    level = {"delivered": logging.INFO, "skipped": logging.INFO, "failed": logging.ERROR}.get(kind, logging.WARNING)
    if kind == "released":
        level = logging.DEBUG
    if not log.isEnabledFor(level):
        return
    fields: dict[str, Any] = {"event": kind, **message.log_fields}
    if outcome.duration_ms is not None:
        fields["duration_ms"] = round(outcome.duration_ms, 1)
    if outcome.http_status is not None:
        fields["http_status"] = outcome.http_status
    if outcome.reason:
        fields["reason"] = outcome.reason
    if outcome.detail and kind != "delivered":
        fields["detail"] = outcome.detail
    if kind == "retry":
        fields["delay_seconds"] = round(settlement.delay_seconds, 1)
    if message.supersedes and kind == "delivered":
        fields["superseded"] = [message_id for _, message_id in message.supersedes]
    log.log(level, "message %s", kind, extra=fields)
