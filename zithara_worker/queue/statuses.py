"""Magento's status codes, and every transition that the worker may make.

Source of the codes: Magento\\MysqlMq\\Model\\QueueManagement (MESSAGE_STATUS_*).

    NEW 2, RETRY_REQUIRED 5  --claim-->     IN_PROGRESS 3
    IN_PROGRESS 3            --settle-->    what `EDGES` says
    IN_PROGRESS 3            --lease expired, taken over-->  IN_PROGRESS 3, trials + 1 (by way of RETRY_REQUIRED)
    ERROR 6                  --operator retries-->   RETRY_REQUIRED 5, trials 0   (`operator.retry`)
    ERROR 6                  --operator discards-->  COMPLETE 4                   (`operator.discard`)
    COMPLETE 4, discarded    --operator retries-->   RETRY_REQUIRED 5, trials 0   (`operator.retry`)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from zithara_worker.messages import OutcomeKind


class Status(IntEnum):
    NEW = 2
    IN_PROGRESS = 3
    COMPLETE = 4
    RETRY_REQUIRED = 5
    ERROR = 6
    TO_BE_DELETED = 7


#: A message that waits to be delivered, by a worker or by a PHP consumer.
PENDING = (Status.NEW, Status.RETRY_REQUIRED)


@dataclass(frozen=True, slots=True)
class Edge:
    """One way in which a claim ends."""

    #: The statement that writes it
    statement: str
    #: The status that the message gets; None: the one before the claim
    to: Status | None
    #: How much number_of_trials changes
    trials: int
    #: Whether the group's row stays, so that nothing newer of the group passes the message
    keeps_group: bool


#: Every way in which a claim may end. LEASE_LOST is missing, because nothing may be written about a message that
#: another worker may hold.
EDGES: dict[OutcomeKind, Edge] = {
    OutcomeKind.DELIVERED: Edge("settle_complete", Status.COMPLETE, 0, keeps_group=False),
    OutcomeKind.SKIPPED: Edge("settle_complete", Status.COMPLETE, 0, keeps_group=False),
    OutcomeKind.RETRY: Edge("settle_retry", Status.RETRY_REQUIRED, 1, keeps_group=True),
    OutcomeKind.FAILED: Edge("settle_error", Status.ERROR, 1, keeps_group=False),
    OutcomeKind.RELEASED: Edge("settle_release", None, 0, keeps_group=True),
}
