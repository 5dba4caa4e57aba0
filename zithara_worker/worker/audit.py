"""What the audit file says of a delivery: one line for each attempt, and for each fate decided without one.

Says which message, never what was in it: the request is named by its SHA-256.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zithara_worker.delivery.reasons import LATE
from zithara_worker.logs.audit import AuditFile
from zithara_worker.messages import OutcomeKind
from zithara_worker.queue.settle import Settlement


class DeliveryAudit:
    """Writes the lines of one worker."""

    def __init__(self, file: AuditFile, *, worker_id: str) -> None:
        self._file = file
        self._worker_id = worker_id

    def decided(self, settlements: Iterable[Settlement]) -> None:
        """Before the outcomes are written to the queue: a crash in between leaves a line too many, never too few."""
        self._file.append([self._line(each) for each in settlements if _tells(each)])

    def _line(self, settlement: Settlement) -> dict[str, Any]:
        message, outcome = settlement.message, settlement.outcome
        line: dict[str, Any] = {
            "kind": "delivery",
            "worker": self._worker_id,
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


def _tells(settlement: Settlement) -> bool:
    """What was only put back, before anything was tried, is no news."""
    outcome = settlement.outcome
    if outcome.kind in (OutcomeKind.RELEASED, OutcomeKind.LEASE_LOST):
        return bool(outcome.endpoint) or outcome.reason == LATE
    return True
