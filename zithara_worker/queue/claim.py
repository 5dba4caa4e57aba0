"""The transaction of a claim: lock the rows by primary key, win their groups, set IN_PROGRESS.

Rows of Magento's tables are locked first, then rows of ours. Every transaction of the worker keeps this order, so that
two of them never wait for each other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from zithara_worker import reasons
from zithara_worker.database.session import Database
from zithara_worker.errors import DatabaseUnavailable
from zithara_worker.messages import Claimed, Known, Lease, Message, Outcome, OutcomeKind, Rejection
from zithara_worker.queue import failures
from zithara_worker.queue.backlog import as_text
from zithara_worker.queue.bodies import DecodedBody
from zithara_worker.queue.candidates import Candidate
from zithara_worker.queue.held import Held
from zithara_worker.queue.ledger import Ledger
from zithara_worker.queue.statuses import PENDING, Status


class _Won(NamedTuple):
    """A candidate whose group this claim has won."""

    candidate: Candidate
    #: Its row of queue_message_status before the claim
    row: Mapping[str, Any]
    #: The lease of its group had expired: the worker that held the message died
    expired: bool = False
    #: It was held alone when that happened, as it had been held by another worker that died
    suspect: bool = False

    @property
    def id(self) -> int:
        return self.candidate.message.id

    @property
    def taken_over(self) -> bool:
        return bool(self.row["status"] == Status.IN_PROGRESS)


class Claim:
    """Claims for one queue and one worker. `attempt_limit`: deaths of workers after which a message is rejected."""

    def __init__(
        self,
        database: Database,
        *,
        queue_id: int,
        queue_name: str,
        topic: str,
        held: Held,
        attempt_limit: int,
        ledger: Ledger | None,
    ) -> None:
        self._database = database
        self._queue_id = queue_id
        self._queue_name = queue_name
        self._topic = topic
        self._held = held
        self._attempt_limit = attempt_limit
        self._ledger = ledger

    def run(
        self, candidates: Sequence[Candidate], bodies: Mapping[int, DecodedBody], *, limit: int
    ) -> tuple[list[Claimed], set[str]]:
        """Claims up to `limit` candidates in one transaction; the messages, and the groups that another worker won.

        `bodies`: by message id. A candidate without one has been deleted by Magento, and is left out.
        """
        # Message ids begin again after a restore, so what is in hand under the same id may be another message.
        there = [each for each in candidates if each.message.message_id in bodies and each.message.id not in self._held]
        if not there:
            return [], set()
        with self._database.in_step():
            return self._database.again_on_contention(partial(self._run, there, bodies, limit))

    def _run(
        self, candidates: Sequence[Candidate], bodies: Mapping[int, DecodedBody], limit: int
    ) -> tuple[list[Claimed], set[str]]:
        known = [each for each in candidates if each.row_head is not None]
        new = [each for each in candidates if each.row_head is None]
        begun, claim = self._held.clock(), self._held.next_claim()
        with self._database.transaction():
            # The head of an expired group is still IN_PROGRESS. One without a group row belongs to a PHP consumer.
            rows = self._lock(known, (*PENDING, Status.IN_PROGRESS), limit)
            rows |= self._lock(new, PENDING, limit - len(rows))
            won = self._win_known_groups([each for each in known if each.message.id in rows], rows, claim)
            locked = [each for each in new if each.message.id in rows]
            won += self._win_new_groups(locked, rows, claim)
            self._take([each for each in won if not each.taken_over])
            self._take_over([each for each in won if each.taken_over], claim)
            recorded = self._failures(won)
            pending = self._pending(won)
            accepted = self._ledger.read([each.candidate.group for each in won]) if self._ledger else {}
            accepted = {**accepted, **self._doubted(won, pending, accepted)}
        claimed = [
            self._claimed(
                each,
                bodies[each.candidate.message.message_id],
                recorded.get(each.id),
                accepted.get(each.candidate.group),
                pending,
                begun,
                claim,
            )
            for each in won
        ]
        return claimed, {each.group for each in locked} - {each.candidate.group for each in won}

    def _lock(
        self, candidates: Sequence[Candidate], statuses: Collection[Status], limit: int
    ) -> dict[int, dict[str, Any]]:
        """The rows of up to `limit` candidates that have one of these statuses, locked; by relation id."""
        if not candidates or limit <= 0:
            return {}
        ids = sorted(each.message.id for each in candidates)
        rows = self._database.rows("claim_lock", ids=ids, statuses=[int(each) for each in statuses], limit=limit)
        return {int(row["id"]): row for row in rows}

    def _win_known_groups(
        self, candidates: Sequence[Candidate], rows: Mapping[int, dict[str, Any]], claim: int
    ) -> list[_Won]:
        """Wins groups that wait or whose lease has expired. Their rows are read again under lock."""
        if not candidates:
            return []
        found = self._database.rows(
            "claim_lock_groups", queue_id=self._queue_id, group_keys=sorted(each.group for each in candidates)
        )
        groups = {row["group_key"]: row for row in found}
        won = []
        for each in candidates:
            group = groups.get(each.group)
            if group is None or int(group["id"]) != each.row_head or group["worker_id"] == self._held.worker_id:
                continue
            if not (group["due"] or group["expired"]):
                continue
            row = rows[each.message.id]
            if row["status"] == Status.IN_PROGRESS and not group["expired"]:
                # A PHP consumer took the retry that waited here.
                self._database.execute("group_defer", queue_id=self._queue_id, group_key=each.group, id=each.row_head)
                continue
            self._database.execute(
                "claim_group_again",
                queue_id=self._queue_id,
                group_key=each.group,
                id=each.message.id,
                message_id=each.message.message_id,
                supersedes=as_text((*each.supersedes, *each.behind)),
                worker_id=self._held.worker_id,
                claim=claim,
                suspect=int(group["expired"]),
                lease_us=int(self._held.lease_seconds * 1e6),
            )
            won.append(_Won(each, row, expired=bool(group["expired"]), suspect=bool(group["suspect"])))
        return won

    def _win_new_groups(
        self, candidates: Sequence[Candidate], rows: Mapping[int, dict[str, Any]], claim: int
    ) -> list[_Won]:
        """Wins groups that have no row, unless another worker inserts it first."""
        if not candidates:
            return []
        ordered = sorted(candidates, key=lambda each: each.group)
        inserted = self._database.insert_rows(
            "claim_groups",
            [(each.group, each.message.id, each.message.message_id, as_text(each.supersedes)) for each in ordered],
            queue_id=self._queue_id,
            worker_id=self._held.worker_id,
            claim=claim,
            lease_us=int(self._held.lease_seconds * 1e6),
        )
        if inserted != len(candidates):
            found = self._database.rows(
                "claim_groups_won",
                queue_id=self._queue_id,
                group_keys=[each.group for each in ordered],
                worker_id=self._held.worker_id,
                claim=claim,
            )
            ours = {(row["group_key"], int(row["id"])) for row in found}
            candidates = [each for each in candidates if (each.group, each.message.id) in ours]
        return [_Won(each, rows[each.message.id]) for each in candidates]

    def _take(self, won: Sequence[_Won]) -> None:
        ids = sorted(each.id for each in won)
        if ids and self._database.execute("claim_take", ids=ids) != len(ids):
            # Locked rows cannot change. If they did, nothing about this claim is certain.
            raise DatabaseUnavailable("rows locked by a claim changed; the claim was rolled back")

    def _take_over(self, won: Sequence[_Won], claim: int) -> None:
        """Takes messages whose worker died. Only a suspect pays an attempt: it was held alone, so it is to blame."""
        if not won:
            return
        self._database.execute("claim_take_over", ids=sorted(each.id for each in won))
        if self._ledger:
            # Its request may be on its way still, and arrive after the next ones.
            self._ledger.doubt([each.candidate.group for each in won])
        for each in won:
            failures.record(
                self._database,
                id=each.id,
                queue_id=self._queue_id,
                message_id=each.candidate.message.message_id,
                topic=self._topic,
                group_key=each.candidate.group,
                worker_id=self._held.worker_id,
                claim=claim,
                paid=each.suspect,
                outcome=Outcome(
                    kind=OutcomeKind.RETRY,
                    reason=reasons.WORKER_DIED,
                    detail="the worker that held the message died, or its lease ran out",
                ),
            )

    def _failures(self, won: Sequence[_Won]) -> dict[int, dict[str, Any]]:
        """The rows of zithara_delivery_failure of messages that have failed before, by relation id."""
        groups = {
            each.id: each.candidate.group
            for each in won
            if int(each.row["number_of_trials"]) > 0 or each.row["status"] != Status.NEW
        }
        rows = self._database.rows("claim_failures", ids=sorted(groups)) if groups else []
        # Ids begin again after a restore: a row of another group tells of a message that had this id before.
        if others := [int(row["id"]) for row in rows if row["group_key"] != groups[int(row["id"])]]:
            self._database.execute("failures_gone", ids=others)
        return {int(row["id"]): row for row in rows if int(row["id"]) not in others}

    def _pending(self, won: Sequence[_Won]) -> set[int]:
        """Which of the older snapshots are still pending. Their groups are won, so no other worker changes that now.

        One that has ended in ERROR elsewhere keeps its reason, and one that a PHP consumer holds is left to it.
        """
        ids = sorted({older.id for each in won for older in each.candidate.supersedes})
        rows = self._database.rows("statuses", ids=ids) if ids else []
        return {int(row["id"]) for row in rows if row["status"] in PENDING}

    def _doubted(
        self, won: Sequence[_Won], pending: Collection[int], accepted: Mapping[str, Known]
    ) -> dict[str, Known]:
        """What is known of the groups of which somebody else took an older snapshot, a PHP consumer for one: its
        request has gone over what is recorded, or will."""
        doubted = {
            each.candidate.group: replace(known, request="")
            for each in won
            for older in each.candidate.supersedes
            if (known := accepted.get(each.candidate.group))
            and older.id not in pending
            and older.message_id > known.message_id
        }
        if self._ledger:
            self._ledger.doubt(doubted)
        return doubted

    def _claimed(
        self,
        won: _Won,
        body: DecodedBody,
        failure: Mapping[str, Any] | None,
        known: Known | None,
        pending: Collection[int],
        begun: float,
        claim: int,
    ) -> Claimed:
        """`pending`: relation ids of older snapshots. `begun`: when the claim began, on the clock of leases."""
        candidate, row = won.candidate, won.row
        attempts = int(failure["attempts"]) if failure else 0
        content = body.content
        if failure and failure["overtaken"]:
            content = Rejection(
                code=reasons.NEWER_DELIVERED,
                detail="newer data of its group was delivered after it had failed, and would be overwritten: "
                f"discard it, or send it with 'zithara-worker failed retry {candidate.message.message_id} --force'",
            )
        elif won.taken_over and attempts >= self._attempt_limit:
            content = Rejection(
                code=reasons.WORKER_DIED,
                detail=f"{attempts} workers died, or lost their lease, while they held this message and no other: "
                "look at their logs, then 'zithara-worker failed retry'",
            )
        message = Message(
            id=won.id,
            message_id=candidate.message.message_id,
            queue_id=self._queue_id,
            queue_name=self._queue_name,
            topic=self._topic,
            group_key=candidate.group,
            number_of_trials=int(row["number_of_trials"]) + int(won.taken_over),
            claim=claim,
            attempts=attempts,
            unwitnessed=int(failure["unwitnessed"]) if failure else 0,
            retries=int(failure["retries"]) if failure else 0,
            suspect=won.expired,
            failed_at=begun - float(failure["failed_ago"]) if failure else None,
            length=body.length,
            status_before=int(Status.RETRY_REQUIRED) if won.taken_over else int(row["status"]),
            updated_at_before=str(row["updated_at"]),
            supersedes=tuple(older for older in candidate.supersedes if older.id in pending),
            behind=candidate.behind,
            known=known,
            lease=Lease(begun + self._held.lease_seconds),
        )
        return Claimed(message, content)
