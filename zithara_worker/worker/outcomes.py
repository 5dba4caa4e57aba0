"""What an outcome means for its message: which settlement, which attempt, what is given back; and its line in the log.

Pure but for the log, and what is given back or woken: whoever calls it writes the settlements and says
what was written.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from typing import Any, Protocol

from zithara_worker.delivery.breaker import MAX_PAUSE_SECONDS
from zithara_worker.logs import handlers as logs
from zithara_worker.messages import Event, Evidence, Message, Outcome, OutcomeKind, Rejection, Request, Skip
from zithara_worker.monitor.registry import MinuteCounters
from zithara_worker.queue.message_queue import MessageQueue
from zithara_worker.queue.settle import Settled, Settlement
from zithara_worker.zithara.reasons import ORDER_NOT_FOUND, ORDER_NOT_FOUND_YET

log = logging.getLogger(__name__)


#: Settled failures that are remembered for each queue, for what an outage may still turn out to be.
REMEMBERED = 10_000


class Outages(Protocol):
    """Who knows where nobody is served, and who was served last; by gate."""

    def is_open(self, gate: str) -> bool: ...
    def served_since(self, gate: str, since: float) -> bool: ...
    def served_others_since(self, gate: str, group: str, failed_at: float) -> bool: ...


class _Failing:
    """Failures of one queue that may still turn out to be the path's. Times: when they were settled."""

    def __init__(self, queue: MessageQueue, path: str) -> None:
        self.queue = queue
        #: The gate of the path that the queue's messages take
        self.path = path
        #: Since anybody was served: given back if the path turns out to serve nobody
        self.streak: deque[tuple[float, Settlement]] = deque(maxlen=REMEMBERED)
        #: Relation id -> what nobody witnessed: tried again as soon as another group is served
        self.unwitnessed: dict[int, tuple[float, Message]] = {}


class Outcomes:
    """One for the queues of a loop, in its thread. `delay_before`: seconds to wait after the n-th failed attempt.

    `create`: the request that creates the order of an
    update. `queues`: each with the gate of the path that its messages take. `monotonic`: the clock of leases.

    A failure that an outage would explain leads to ERROR only if it is proven that the message is to blame: at least
    once it failed again while others were served. The first failure proves nothing, so no message has less than two
    attempts. What is not proven is tried again as soon as another group is served, or after five minutes.
    """

    def __init__(
        self,
        *,
        queues: Sequence[tuple[MessageQueue, str]],
        outages: Outages,
        create: Callable[[Event], Request | Skip | Rejection],
        delay_before: Callable[[int], float],
        attempt_limit: int,
        minute_counters: MinuteCounters,
        monotonic: Callable[[], float],
        on_settled: Callable[[Sequence[Settlement]], None],
    ) -> None:
        self._failing = {queue.queue_id: _Failing(queue, path) for queue, path in queues}
        self._outages = outages
        self._create = create
        self._delay_before = delay_before
        self._attempt_limit = attempt_limit
        self._minute_counters = minute_counters
        self._monotonic = monotonic
        self._on_settled = on_settled

    def of_absent_order(self, message: Message, outcome: Outcome) -> Outcome | Request:
        """For an update whose order the API does not know: unchanged while an older message of the order is pending,
        else the create to send at once for the same message, else FAILED. Other outcomes unchanged. Raises
        DatabaseUnavailable.

        The body is read again: a create made beforehand would cost every update, and a decoded body its memory.
        """
        if outcome.reason != ORDER_NOT_FOUND_YET:
            return outcome
        queue = self._failing[message.queue_id].queue
        if queue.has_older_pending(message):
            return outcome
        content = queue.read_again(message)
        create = self._create(content) if isinstance(content, Event) else content
        if isinstance(create, Request):
            return create
        return replace(outcome, kind=OutcomeKind.FAILED, reason=ORDER_NOT_FOUND)

    def settlement(self, message: Message, outcome: Outcome) -> Settlement:
        """What shall be written for an outcome: applies the attempts limit and the retry policy."""
        if outcome.kind is OutcomeKind.RELEASED:
            return Settlement(message=message, outcome=outcome, delay_seconds=outcome.retry_after_seconds or 0.0)
        if outcome.kind is not OutcomeKind.RETRY:
            return Settlement(message=message, outcome=outcome)
        unsure = outcome.evidence is Evidence.PATH
        if unsure and self._outages.is_open(self._failing[message.queue_id].path):
            # The path served nobody any more when this one failed.
            return Settlement(message=message, outcome=replace(outcome, kind=OutcomeKind.RELEASED))
        attempt = message.attempts + 1
        witnessed = not unsure or (outcome.witnessed and attempt > 1)
        proven = witnessed or message.attempts - message.unwitnessed > 1
        if proven and attempt >= self._attempt_limit:
            detail = f"gave up after {attempt} attempts; the last: {outcome.detail}"
            return Settlement(message=message, outcome=replace(outcome, kind=OutcomeKind.FAILED, detail=detail))
        delay = self._delay_before(attempt)
        if not proven:
            # Perhaps it is an outage, and in a quiet shop no other message tells when that is over.
            delay = min(delay, MAX_PAUSE_SECONDS)
        return Settlement(
            message=message,
            outcome=outcome,
            delay_seconds=max(delay, outcome.retry_after_seconds or 0.0),
            unwitnessed=not witnessed and attempt > 1,
        )

    def settled(self, queue_id: int, settled: Settled) -> int:
        """Learns what was written for a queue; how many messages were settled for good or for a retry."""
        failing, now = self._failing[queue_id], self._monotonic()
        count = 0
        for message in settled.lost:
            failing.unwitnessed.pop(message.id, None)
            log.warning(
                "lease lost before the outcome could be written; another worker delivers it again",
                extra={"event": "settle_lost", **message.log_fields},
            )
        for each in settled.done:
            message, outcome = each.message, each.outcome
            if outcome.kind is not OutcomeKind.RELEASED:
                count += 1
                failing.unwitnessed.pop(message.id, None)
            self._minute_counters.count(message.topic, outcome, superseded=len(message.supersedes))
            if outcome.kind is OutcomeKind.RETRY and outcome.evidence is Evidence.PATH:
                failing.streak.append((now, each))
                if not outcome.witnessed and len(failing.unwitnessed) < REMEMBERED:
                    failing.unwitnessed[message.id] = (now, message)
        self._on_settled(settled.done)
        return count

    def catch_up(self, in_hand: Container[int]) -> None:
        """Does what the latest outcomes mean for messages that are settled already. Raises DatabaseUnavailable.

        `in_hand`: relation ids. What is on its way again is IN_PROGRESS, and can be given nothing back before it is
        settled.
        """
        for failing in self._failing.values():
            if failing.streak:
                self._refund(failing, in_hand)
            if failing.unwitnessed:
                self._wake(failing, in_hand)

    def _refund(self, failing: _Failing, in_hand: Container[int]) -> None:
        """Gives back the attempts of failures that turned out to be the beginning of an outage."""
        streak = failing.streak
        while streak and self._outages.served_since(failing.path, streak[0][0]):
            streak.popleft()
        refundable = [each for _, each in streak if each.message.id not in in_hand]
        if refundable and self._outages.is_open(failing.path):
            # Newest first: a message that failed several times in the streak gives them back one by one.
            refunded = failing.queue.refund(reversed(refundable))
            failing.streak = deque((each for each in streak if each[1].message.id in in_hand), maxlen=REMEMBERED)
            log.info(
                "outage recognised: attempts given back",
                extra={"event": "refunded", "queue": failing.queue.name, "count": refunded},
            )

    def _wake(self, failing: _Failing, in_hand: Container[int]) -> None:
        """Others are served: whose failure nobody witnessed is tried at once, while that is known."""
        woken = [
            message
            for failed_at, message in failing.unwitnessed.values()
            if message.id not in in_hand
            and self._outages.served_others_since(failing.path, message.group_key, failed_at)
        ]
        if woken:
            failing.queue.wake(woken)
            for message in woken:
                del failing.unwitnessed[message.id]


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
    if settlement.unwitnessed:
        fields["unwitnessed"] = message.unwitnessed + 1
    if kind == "retry":
        fields["delay_seconds"] = round(settlement.delay_seconds, 1)
    if message.supersedes and kind == "delivered":
        fields["superseded"] = [older.message_id for older in message.supersedes]
    log.log(level, "message %s", kind, extra=fields)
