"""What an outcome means for its message: the settlement, the attempt, what is given back, and its lines in log and
audit file. Writes nothing to the queue but what is given back: `settling` writes the settlements.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from zithara_worker.delivery.breaker import MAX_PAUSE_SECONDS
from zithara_worker.delivery.courier import Courier
from zithara_worker.delivery.pace import delay_before
from zithara_worker.logs.audit import AuditFile
from zithara_worker.logs.handlers import batched_writes
from zithara_worker.messages import Event, Evidence, Message, Outcome, OutcomeKind, Rejection, Request, Skip
from zithara_worker.monitor.counters import WorkerMetrics
from zithara_worker.monitor.registry import MinuteCounters
from zithara_worker.queue.message_queue import MessageQueue
from zithara_worker.queue.settle import Settled, Settlement
from zithara_worker.reasons import INTERNAL_ERROR, LATE, ORDER_NOT_FOUND, ORDER_NOT_FOUND_YET
from zithara_worker.settings.sections import RetrySettings

log = logging.getLogger(__name__)

#: Settled failures to remember for each queue; each may still turn out to belong to an outage.
REMEMBERED = 10_000

_LEVELS = {
    OutcomeKind.DELIVERED: logging.INFO,
    OutcomeKind.SKIPPED: logging.INFO,
    OutcomeKind.RELEASED: logging.DEBUG,
    OutcomeKind.FAILED: logging.ERROR,
}


@dataclass(slots=True)
class TopicState:
    """One queue in the loop. `targets`: those of its messages, the host first, the path last."""

    queue: MessageQueue
    targets: tuple[str, ...]
    #: Settled failures since the last success on the path, each with the time: their attempts are given back if the
    #: path turns out to serve nobody
    failures_since_success: deque[tuple[float, Settlement]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    #: Relation id -> a failure without a witness, with its time: tried again as soon as another group is served
    unwitnessed: dict[int, tuple[float, Message]] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return self.targets[-1]


class Outcomes:
    """Judges the outcomes of all queues of one loop, in its thread.

    `topics`: by queue id. `create`: the request that creates the order of an update. `jitter`: a random number in
    [-1, 1]. `monotonic`: the clock of leases. `audit`: None where no audit file is wanted.

    A failure that an outage would explain ends in ERROR only if the message is proven to be at fault: it failed at
    least once again while others were served. The first failure proves nothing, so every message has two attempts or
    more. A message that is not proven to be at fault is tried again as soon as another group is served, or after five
    minutes.
    """

    def __init__(
        self,
        topics: Mapping[int, TopicState],
        *,
        courier: Courier,
        create: Callable[[Event], Request | Skip | Rejection],
        policy: RetrySettings,
        jitter: Callable[[], float],
        monotonic: Callable[[], float],
        minute_counters: MinuteCounters,
        metrics: WorkerMetrics,
        audit: AuditFile | None = None,
        worker_id: str = "",
    ) -> None:
        self._topics = topics
        self._courier = courier
        self._create = create
        self._policy = policy
        self._jitter = jitter
        self._monotonic = monotonic
        self._minute_counters = minute_counters
        self._metrics = metrics
        self._audit = audit
        self._worker_id = worker_id

    def of_absent_order(self, message: Message, outcome: Outcome) -> Outcome | Request:
        """For an update whose order the API does not know: the outcome unchanged while an older message of the order is
        pending, else the create to send for the same message, else FAILED. Other outcomes are returned unchanged.
        Raises DatabaseUnavailable.

        The body is read again here. To build each create in advance would cost every update, and to keep the decoded
        bodies would cost their memory.
        """
        if outcome.reason != ORDER_NOT_FOUND_YET:
            return outcome
        queue = self._topics[message.queue_id].queue
        if queue.has_older_pending(message):
            return outcome
        content = queue.read_again(message)
        try:
            create = self._create(content) if isinstance(content, Event) else content
        except Exception:
            # One bad message must not keep the others from being settled.
            log.exception("processing failed", extra={"event": "internal_error", **message.log_fields})
            return replace(outcome, reason=INTERNAL_ERROR, detail="an error in the worker, see its log")
        if isinstance(create, Request):
            return create
        return replace(outcome, kind=OutcomeKind.FAILED, reason=ORDER_NOT_FOUND)

    def decide(self, results: Sequence[tuple[Message, Outcome]]) -> list[Settlement]:
        """The settlements of these results, with their lines in the audit file."""
        decided = [self.settlement(message, outcome) for message, outcome in results]
        if self._audit is not None and decided:
            # Before the queue is written: a crash between the two leaves a line too many, never one too few.
            self._audit.append(audit_lines(decided, worker_id=self._worker_id))
        return decided

    def settlement(self, message: Message, outcome: Outcome) -> Settlement:
        """What is to be written for an outcome, by the limit of attempts and the delay between them."""
        if outcome.kind is OutcomeKind.RELEASED:
            return Settlement(message=message, outcome=outcome, delay_seconds=outcome.retry_after_seconds or 0.0)
        if outcome.kind is not OutcomeKind.RETRY:
            return Settlement(message=message, outcome=outcome)
        by_outage = outcome.evidence is Evidence.PATH
        if by_outage and self._courier.is_open(self._topics[message.queue_id].path):
            # The breaker opened while this request was under way.
            return Settlement(message=message, outcome=replace(outcome, kind=OutcomeKind.RELEASED))
        attempt = message.attempts + 1
        witnessed = not by_outage or (outcome.witnessed and attempt > 1)
        proven = witnessed or message.attempts - message.unwitnessed > 1
        if proven and attempt >= self._policy.limit:
            detail = f"gave up after {attempt} attempts; the last: {outcome.detail}"
            return Settlement(message=message, outcome=replace(outcome, kind=OutcomeKind.FAILED, detail=detail))
        delay = delay_before(attempt, self._policy, self._jitter())
        if not proven:
            # It may be an outage, and in a quiet shop no other message shows when that is over.
            delay = min(delay, MAX_PAUSE_SECONDS)
        return Settlement(
            message=message,
            outcome=outcome,
            delay_seconds=max(delay, outcome.retry_after_seconds or 0.0),
            unwitnessed=not witnessed and attempt > 1,
        )

    def settled(self, topic: TopicState, settled: Settled, seconds: float) -> None:
        """Logs and counts what was written for a queue, and remembers its failures. `seconds`: how long that took."""
        self._metrics.settled(topic.queue.topic, settled, seconds)
        now = self._monotonic()
        for message in settled.lost:
            topic.unwitnessed.pop(message.id, None)
            log.warning(
                "lease lost before the outcome could be written; another worker delivers it again",
                extra={"event": "settle_lost", **message.log_fields},
            )
        for each in settled.done:
            message, outcome = each.message, each.outcome
            if outcome.kind is not OutcomeKind.RELEASED:
                topic.unwitnessed.pop(message.id, None)
            self._minute_counters.count(message.topic, outcome, superseded=len(message.supersedes))
            if outcome.kind is OutcomeKind.RETRY and outcome.evidence is Evidence.PATH:
                topic.failures_since_success.append((now, each))
                if not outcome.witnessed and len(topic.unwitnessed) < REMEMBERED:
                    topic.unwitnessed[message.id] = (now, message)
        log_settled(settled.done)

    def catch_up(self, in_hand: Container[int]) -> None:
        """Does what the latest outcomes mean for messages that were settled before. Raises DatabaseUnavailable.

        `in_hand`: relation ids of claimed messages. They are IN_PROGRESS again, so nothing is given back to them before
        they are settled.
        """
        for topic in self._topics.values():
            if topic.failures_since_success:
                self._refund(topic, in_hand)
            if topic.unwitnessed:
                self._wake(topic, in_hand)

    def _refund(self, topic: TopicState, in_hand: Container[int]) -> None:
        """Gives back the attempts of failures that turned out to be the beginning of an outage."""
        failures = topic.failures_since_success
        while failures and self._courier.served_since(topic.path, failures[0][0]):
            failures.popleft()
        refundable = [each for _, each in failures if each.message.id not in in_hand]
        if refundable and self._courier.is_open(topic.path):
            # Newest first: a message that failed several times gets its attempts back one after another.
            refunded = topic.queue.refund(reversed(refundable))
            topic.failures_since_success = deque(
                (each for each in failures if each[1].message.id in in_hand), maxlen=REMEMBERED
            )
            log.info(
                "outage recognised: attempts given back",
                extra={"event": "refunded", "queue": topic.queue.name, "count": refunded},
            )

    def _wake(self, topic: TopicState, in_hand: Container[int]) -> None:
        """Makes failures without a witness due once others are served, because the next try has a witness then."""
        woken = [
            message
            for failed_at, message in topic.unwitnessed.values()
            if message.id not in in_hand and self._courier.served_others_since(topic.path, message.group_key, failed_at)
        ]
        if woken:
            topic.queue.wake(woken)
            for message in woken:
                del topic.unwitnessed[message.id]


def log_settled(settlements: Sequence[Settlement]) -> None:
    """One line for each message: INFO if it is done, WARNING if it is tried again, ERROR if it is given up."""
    with batched_writes():
        for each in settlements:
            level = _LEVELS.get(each.outcome.kind, logging.WARNING)
            if log.isEnabledFor(level):
                log.log(level, "message %s", each.outcome.kind.value, extra=_log_fields(each))


def _log_fields(settlement: Settlement) -> dict[str, Any]:
    message, outcome = settlement.message, settlement.outcome
    delivered = outcome.kind is OutcomeKind.DELIVERED
    fields: dict[str, Any] = {"event": outcome.kind.value, **message.log_fields}
    if outcome.duration_ms is not None:
        fields["duration_ms"] = round(outcome.duration_ms, 1)
    if outcome.http_status is not None:
        fields["http_status"] = outcome.http_status
    if outcome.reason:
        fields["reason"] = outcome.reason
    if outcome.detail and not delivered:
        fields["detail"] = outcome.detail
    if settlement.unwitnessed:
        fields["unwitnessed"] = message.unwitnessed + 1
    if outcome.kind is OutcomeKind.RETRY:
        fields["delay_seconds"] = round(settlement.delay_seconds, 1)
    if message.supersedes and delivered:
        fields["superseded"] = [older.message_id for older in message.supersedes]
    return fields


def audit_lines(settlements: Iterable[Settlement], *, worker_id: str) -> list[dict[str, Any]]:
    """The lines of one worker in the audit file: one for each attempt, and for each message that ends without one."""
    return [_audit_line(each, worker_id) for each in settlements if _is_audited(each.outcome)]


def _audit_line(settlement: Settlement, worker_id: str) -> dict[str, Any]:
    """Says which message it was, never what was in it: the request is named by its SHA-256."""
    message, outcome = settlement.message, settlement.outcome
    line: dict[str, Any] = {
        "kind": "delivery",
        "worker": worker_id,
        "topic": message.topic,
        "queue": message.queue_name,
        "message_id": message.message_id,
        "id": message.id,
        "group": message.group_key,
        "attempt": message.attempts + 1,
        "outcome": outcome.kind.value,
        "reason": outcome.reason or None,
        "endpoint": outcome.endpoint or None,
        "http_status": outcome.http_status,
        "duration_ms": None if outcome.duration_ms is None else round(outcome.duration_ms, 1),
        "request_sha256": outcome.request_sha256 or None,
    }
    if message.supersedes and outcome.kind is OutcomeKind.DELIVERED:
        line["superseded"] = [older.message_id for older in message.supersedes]
    return line


def _is_audited(outcome: Outcome) -> bool:
    """False for a message that was put back before anything was sent."""
    if outcome.kind in (OutcomeKind.RELEASED, OutcomeKind.LEASE_LOST):
        return bool(outcome.endpoint) or outcome.reason == LATE
    return True
