"""The transaction of a claim: lock the rows by primary key, win their groups, set IN_PROGRESS.

Rows of Magento's first, then rows of ours: the order that every transaction of the worker keeps, so that none waits for
another in a circle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from zithara_worker.errors import DatabaseUnavailable
from zithara_worker.magento import failures
from zithara_worker.magento.database import Database
from zithara_worker.magento.line import Entry
from zithara_worker.magento.reader import Content
from zithara_worker.magento.statuses import Status
from zithara_worker.messages import Claimed, Lease, Message, Outcome, OutcomeKind, Rejection


class Head(NamedTuple):
    """A message to claim: the head of its group, with the older snapshots that it supersedes, (id, message id) each.

    `row_id`: the relation id that the group's row names, if it has one; another than the entry's where a newer snapshot
    takes the place of the one that waited.
    """

    group: str
    entry: Entry
    supersedes: tuple[tuple[int, int], ...]
    row_id: int
    content: Content


class Claim:
    """Claims for one queue and one worker."""

    def __init__(
        self,
        database: Database,
        *,
        queue_id: int,
        queue_name: str,
        topic: str,
        worker_id: str,
        lease_seconds: float,
        attempt_limit: int,
        monotonic: Callable[[], float],
    ) -> None:
        self._database = database
        self._queue_id = queue_id
        self._queue_name = queue_name
        self._topic = topic
        self._worker_id = worker_id
        self._lease_seconds = lease_seconds
        self._attempt_limit = attempt_limit
        self._monotonic = monotonic

    def take(self, waited: Sequence[Head], fresh: Sequence[Head], limit: int) -> tuple[list[Claimed], list[str]]:
        """Claims up to `limit` of these heads; the messages, and the groups that another worker was faster with.

        `waited`: their groups have a row (a due retry, a released or an expired head). `fresh`: they have none.
        """
        valid_until = self._monotonic() + self._lease_seconds
        locked: dict[int, dict[str, Any]] = {}
        with self._database.transaction():
            # The head of an expired group is still IN_PROGRESS; without a group row it is not ours.
            for heads, statuses in ((waited, (2, 3, 5)), (fresh, (2, 5))):
                if heads and len(locked) < limit:
                    rows = self._database.rows(
                        "claim_lock",
                        ids=sorted(head.entry.id for head in heads),
                        statuses=statuses,
                        limit=limit - len(locked),
                    )
                    locked.update((int(row["id"]), row) for row in rows)
            taken = self._take_waited([head for head in waited if head.entry.id in locked], locked)
            over = [head for head in taken if locked[head.entry.id]["status"] == Status.IN_PROGRESS]
            won = self._take_fresh([head for head in fresh if head.entry.id in locked])
            taken += won
            if over:
                self._take_over(over)
            ids = sorted({head.entry.id for head in taken} - {head.entry.id for head in over})
            if ids and self._database.execute("claim_take", ids=ids) != len(ids):
                # Locked rows cannot change under us; if they did, nothing about this claim is certain.
                raise DatabaseUnavailable("rows locked by a claim changed; the claim was rolled back")
        claimed = [self._claimed(head, locked[head.entry.id], head in over, valid_until) for head in taken]
        return claimed, [head.group for head in fresh if head.entry.id in locked and head not in won]

    def _take_waited(self, heads: Sequence[Head], locked: dict[int, dict[str, Any]]) -> list[Head]:
        """Takes the groups that wait or whose lease expired, looking again under lock."""
        if not heads:
            return []
        rows = self._database.rows(
            "claim_lock_groups", queue_id=self._queue_id, group_keys=sorted(head.group for head in heads)
        )
        held = {row["group_key"]: row for row in rows}
        taken = []
        for head in heads:
            row = held.get(head.group)
            if row is None or int(row["id"]) != head.row_id or not (row["due"] or row["expired"]):
                continue
            if locked[head.entry.id]["status"] == Status.IN_PROGRESS and not row["expired"]:
                # A PHP consumer took the retry that waited here.
                self._database.execute("group_defer", queue_id=self._queue_id, group_key=head.group, id=head.row_id)
                continue
            self._database.execute(
                "claim_group_again",
                queue_id=self._queue_id,
                group_key=head.group,
                id=head.entry.id,
                message_id=head.entry.message_id,
                supersedes=superseded_text(head.supersedes),
                worker_id=self._worker_id,
                lease_us=int(self._lease_seconds * 1e6),
            )
            taken.append(head)
        return taken

    def _take_fresh(self, heads: Sequence[Head]) -> list[Head]:
        """Wins groups that have no row; those that another worker was faster with are left out."""
        if not heads:
            return []
        ordered = sorted(heads, key=lambda head: head.group)
        inserted = self._database.insert_rows(
            "claim_groups",
            [(head.group, head.entry.id, head.entry.message_id, superseded_text(head.supersedes)) for head in ordered],
            queue_id=self._queue_id,
            worker_id=self._worker_id,
            lease_us=int(self._lease_seconds * 1e6),
        )
        if inserted == len(heads):
            return list(heads)
        rows = self._database.rows(
            "claim_groups_won",
            queue_id=self._queue_id,
            group_keys=[head.group for head in ordered],
            ids=[head.entry.id for head in ordered],
            worker_id=self._worker_id,
        )
        won = {(row["group_key"], int(row["id"])) for row in rows}
        return [head for head in heads if (head.group, head.entry.id) in won]

    def _take_over(self, heads: Sequence[Head]) -> None:
        self._database.execute("claim_take_over", ids=sorted(head.entry.id for head in heads))
        for head in heads:
            failures.record(
                self._database,
                id=head.entry.id,
                queue_id=self._queue_id,
                message_id=head.entry.message_id,
                topic=self._topic,
                group_key=head.group,
                worker_id=self._worker_id,
                outcome=Outcome(
                    kind=OutcomeKind.RETRY,
                    reason="worker_died",
                    detail="the worker that held it stopped renewing its lease",
                ),
            )

    def _claimed(self, head: Head, row: dict[str, Any], taken_over: bool, valid_until: float) -> Claimed:
        trials = int(row["number_of_trials"]) + int(taken_over)
        content = head.content.content
        if taken_over and trials >= self._attempt_limit:
            content = Rejection(
                code="worker_died",
                detail=f"{trials} workers died or lost their lease while they held it: "
                "look at their logs, then 'zithara-worker failed retry'",
            )
        message = Message(
            id=head.entry.id,
            message_id=head.entry.message_id,
            queue_id=self._queue_id,
            queue_name=self._queue_name,
            topic=self._topic,
            group_key=head.group,
            number_of_trials=trials,
            status_before=int(Status.RETRY_REQUIRED) if taken_over else int(row["status"]),
            updated_at_before=str(row["updated_at"]),
            supersedes=head.supersedes,
            lease=Lease(valid_until),
        )
        return Claimed(message, content)


def superseded_text(supersedes: Iterable[tuple[int, int]]) -> str | None:
    return ",".join(f"{id}:{message_id}" for id, message_id in supersedes) or None


def superseded_from(text: str | None) -> tuple[tuple[int, int], ...]:
    if not text:
        return ()
    pairs = (pair.partition(":") for pair in text.split(","))
    return tuple((int(id), int(message_id)) for id, _, message_id in pairs)


def merged(*lists: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    return tuple(sorted({pair for each in lists for pair in each}, key=lambda pair: pair[1]))
