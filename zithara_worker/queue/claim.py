"""The transaction of a claim: lock the rows by primary key, win their groups, set IN_PROGRESS.

Rows of Magento's first, then rows of ours: the order that every transaction of the worker keeps, so that none waits for
another in a circle.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from zithara_worker import reasons
from zithara_worker.database.session import Database
from zithara_worker.errors import DatabaseUnavailable
from zithara_worker.messages import Claimed, Lease, Message, Outcome, OutcomeKind, Pending, Rejection
from zithara_worker.queue import failures
from zithara_worker.queue.backlog import as_text, from_text
from zithara_worker.queue.held import Held
from zithara_worker.queue.reader import DecodedBody
from zithara_worker.queue.statuses import Status


class Head(NamedTuple):
    """A message to claim: the head of its group, with the older snapshots that it supersedes.

    `row_id`: the relation id that the group's row names, if it has one; another than the entry's where a newer snapshot
    takes the place of the one that waited. `behind`: newer ones that were tried and let this one go first.
    """

    group: str
    entry: Pending
    supersedes: tuple[Pending, ...]
    row_id: int
    behind: tuple[Pending, ...]
    content: DecodedBody


class Claim:
    """Claims for one queue and one worker."""

    def __init__(
        self,
        database: Database,
        *,
        queue_id: int,
        queue_name: str,
        topic: str,
        held: Held,
        attempt_limit: int,
    ) -> None:
        self._database = database
        self._queue_id = queue_id
        self._queue_name = queue_name
        self._topic = topic
        self._held = held
        self._attempt_limit = attempt_limit

    def take(self, waited: Sequence[Head], fresh: Sequence[Head], limit: int) -> tuple[list[Claimed], list[str]]:
        """Claims up to `limit` of these heads; the messages, and the groups that another worker was faster with.

        `waited`: their groups have a row (a due retry, a released or an expired head). `fresh`: they have none.
        """
        claim = _Number(self._held)
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
            again = self._take_waited([head for head in waited if head.entry.id in locked], locked, claim)
            taken = [head for head, _ in again]
            over = [head for head in taken if locked[head.entry.id]["status"] == Status.IN_PROGRESS]
            suspects = {head.group for head, row in again if row["expired"]}
            won = self._take_fresh([head for head in fresh if head.entry.id in locked], claim)
            taken += won
            if over:
                self._take_over(over, {head.group for head, row in again if row["suspect"]}, claim)
            ids = sorted({head.entry.id for head in taken} - {head.entry.id for head in over})
            if ids and self._database.execute("claim_take", ids=ids) != len(ids):
                # Locked rows cannot change under us; if they did, nothing about this claim is certain.
                raise DatabaseUnavailable("rows locked by a claim changed; the claim was rolled back")
            history = self._history(taken, locked)
            pending = self._pending(taken)
        claimed = [
            self._claimed(
                head,
                locked[head.entry.id],
                history.get(head.entry.id),
                pending,
                taken_over=head in over,
                suspect=head.group in suspects,
                claim=claim,
            )
            for head in taken
        ]
        return claimed, [head.group for head in fresh if head.entry.id in locked and head not in won]

    def replace_head(self, group: str, head: Pending) -> bool:
        """The head of a group's row is no longer pending (completed by PHP, or deleted by Magento's cleanup): the next
        one takes its place, or the group becomes free. Whether there is a next one; does nothing where another worker
        was faster.

        Next is the oldest of the messages that the row names, and of those that have failed and are pending: an
        operator may have retried one, and a worker that knows only a newer message of the group must not pass it.
        """
        with self._database.transaction():
            # Locked before the failures are read: a retry either is in them, or finds the new head or none.
            rows = self._database.rows("claim_lock_groups", queue_id=self._queue_id, group_keys=[group])
            if not rows or int(rows[0]["id"]) != head.id or not (rows[0]["worker_id"] is None or rows[0]["expired"]):
                return False
            failed = self._database.rows("failures_of_groups", queue_id=self._queue_id, group_keys=[group])
            pending = [Pending.from_row(row) for row in failed if int(row["status"]) == Status.RETRY_REQUIRED]
            following = sorted({*from_text(rows[0]["supersedes"]), *pending[:1]})
            if not following:
                self._database.execute("group_forget", queue_id=self._queue_id, group_key=group, id=head.id)
                return False
            self._database.execute(
                "group_yield",
                queue_id=self._queue_id,
                group_key=group,
                head=head.id,
                id=following[0].id,
                message_id=following[0].message_id,
                behind=as_text(following[1:]),
            )
        return True

    def _take_waited(
        self, heads: Sequence[Head], locked: dict[int, dict[str, Any]], claim: _Number
    ) -> list[tuple[Head, dict[str, Any]]]:
        """Takes the groups that wait or whose lease expired, looking again under lock; with their rows before that."""
        if not heads:
            return []
        rows = self._database.rows(
            "claim_lock_groups", queue_id=self._queue_id, group_keys=sorted(head.group for head in heads)
        )
        held = {row["group_key"]: row for row in rows}
        taken = []
        for head in heads:
            row = held.get(head.group)
            if row is None or int(row["id"]) != head.row_id or row["worker_id"] == self._held.worker_id:
                continue
            if not (row["due"] or row["expired"]):
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
                supersedes=as_text((*head.supersedes, *head.behind)),
                worker_id=self._held.worker_id,
                claim=claim.number,
                suspect=int(row["expired"]),
                lease_us=int(self._held.lease_seconds * 1e6),
            )
            taken.append((head, row))
        return taken

    def _take_fresh(self, heads: Sequence[Head], claim: _Number) -> list[Head]:
        """Wins groups that have no row; those that another worker was faster with are left out."""
        if not heads:
            return []
        ordered = sorted(heads, key=lambda head: head.group)
        inserted = self._database.insert_rows(
            "claim_groups",
            [(head.group, head.entry.id, head.entry.message_id, as_text(head.supersedes)) for head in ordered],
            queue_id=self._queue_id,
            worker_id=self._held.worker_id,
            claim=claim.number,
            lease_us=int(self._held.lease_seconds * 1e6),
        )
        if inserted == len(heads):
            return list(heads)
        rows = self._database.rows(
            "claim_groups_won",
            queue_id=self._queue_id,
            group_keys=[head.group for head in ordered],
            worker_id=self._held.worker_id,
            claim=claim.number,
        )
        won = {(row["group_key"], int(row["id"])) for row in rows}
        return [head for head in heads if (head.group, head.entry.id) in won]

    def _history(self, heads: Sequence[Head], locked: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """What was recorded of those that have failed before."""
        ids = [head.entry.id for head in heads if has_history(locked[head.entry.id])]
        return {int(row["id"]): row for row in self._database.rows("claim_failures", ids=ids)} if ids else {}

    def _pending(self, heads: Sequence[Head]) -> set[int]:
        """Which of the older snapshots are pending still. Their groups are won, so no other worker changes that now.

        One that has ended in ERROR elsewhere keeps its reason, and one that PHP has in hand is PHP's.
        """
        ids = sorted({older.id for head in heads for older in head.supersedes})
        if not ids:
            return set()
        rows = self._database.rows("statuses", ids=ids)
        return {int(row["id"]) for row in rows if row["status"] in (Status.NEW, Status.RETRY_REQUIRED)}

    def _take_over(self, heads: Sequence[Head], suspects: Collection[str], claim: _Number) -> None:
        """Their worker died. Only what was a suspect already pays: it was delivered alone, so it is what killed."""
        self._database.execute("claim_take_over", ids=sorted(head.entry.id for head in heads))
        for head in heads:
            failures.record(
                self._database,
                id=head.entry.id,
                queue_id=self._queue_id,
                message_id=head.entry.message_id,
                topic=self._topic,
                group_key=head.group,
                worker_id=self._held.worker_id,
                claim=claim.number,
                paid=head.group in suspects,
                outcome=Outcome(
                    kind=OutcomeKind.RETRY,
                    reason=reasons.WORKER_DIED,
                    detail="the worker that held the message died, or its lease ran out",
                ),
            )

    def _claimed(
        self,
        head: Head,
        row: dict[str, Any],
        failure: dict[str, Any] | None,
        pending: Collection[int],
        *,
        taken_over: bool,
        suspect: bool,
        claim: _Number,
    ) -> Claimed:
        attempts = int(failure["attempts"]) if failure else 0
        content = head.content.content
        if failure and failure["overtaken"]:
            content = Rejection(
                code=reasons.NEWER_DELIVERED,
                detail="newer data of its group was delivered after it had failed, and would be overwritten: "
                f"discard it, or send it with 'zithara-worker failed retry {head.entry.message_id} --force'",
            )
        elif taken_over and attempts >= self._attempt_limit:
            content = Rejection(
                code=reasons.WORKER_DIED,
                detail=f"{attempts} workers died, or lost their lease, while they held this message and no other: "
                "look at their logs, then 'zithara-worker failed retry'",
            )
        message = Message(
            id=head.entry.id,
            message_id=head.entry.message_id,
            queue_id=self._queue_id,
            queue_name=self._queue_name,
            topic=self._topic,
            group_key=head.group,
            number_of_trials=int(row["number_of_trials"]) + int(taken_over),
            claim=claim.number,
            attempts=attempts,
            unwitnessed=int(failure["unwitnessed"]) if failure else 0,
            retries=int(failure["retries"]) if failure else 0,
            suspect=suspect,
            failed_at=claim.begun - float(failure["failed_ago"]) if failure else None,
            length=head.content.length,
            status_before=int(Status.RETRY_REQUIRED) if taken_over else int(row["status"]),
            updated_at_before=str(row["updated_at"]),
            supersedes=tuple(older for older in head.supersedes if older.id in pending),
            behind=head.behind,
            lease=Lease(claim.begun + self._held.lease_seconds),
        )
        return Claimed(message, content)


class _Number:
    """The number of one claim, and when it began, on the clock of leases."""

    def __init__(self, held: Held) -> None:
        self.begun = held.clock()
        self.number = held.next_claim()


def has_history(row: Mapping[str, Any]) -> bool:
    """Whether something may have been recorded of a message, by its row of queue_message_status before the claim."""
    return int(row["number_of_trials"]) > 0 or row["status"] != Status.NEW
