"""One Magento queue, seen by one worker: the delivery protocol on Magento's queue tables.

    claim    candidates by plain reads (`reader`), then one short transaction (`claim`)
    settle   the outcomes of many messages in one transaction (`settle`)

Guarantees, and what they rest on:
- one message of a group at a time: the primary key of zithara_message_group;
- in message id order: only the lowest message of a group that this worker can see is ever tried, and a message that was
  claimed once and is still pending keeps its group's row, so nothing newer passes it;
- a worker that lost its lease changes nothing: see `settle`.

Knows the tables; knows neither HTTP nor what a message means: the group comes from the callable `identify`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from zithara_worker.magento.claim import Claim, Head, merged, superseded_from
from zithara_worker.magento.database import Database
from zithara_worker.magento.line import Entry
from zithara_worker.magento.reader import Identify, Reader
from zithara_worker.magento.settle import Settle, Settled, Settlement
from zithara_worker.magento.statuses import EDGES, Status
from zithara_worker.messages import Message, OutcomeKind


class Candidate(NamedTuple):
    """A head worth trying. `waited`: its group has a row already, whose head is `row_id`."""

    group: str
    entry: Entry
    supersedes: tuple[tuple[int, int], ...]
    row_id: int
    waited: bool


class MessageQueue:
    """Joins reader, claim and settle, and keeps the line in step with them.

    Not thread-safe: the loop's thread owns it and its database session. `lease_seconds`: how long a claim lasts without
    a renewal. `attempt_limit`: deaths of workers after which a message counts as poison.
    """

    def __init__(
        self,
        database: Database,
        *,
        queue_id: int,
        name: str,
        topic: str,
        worker_id: str,
        lease_seconds: float,
        identify: Identify,
        monotonic: Callable[[], float],
        coalesce: bool = False,
        attempt_limit: int = 8,
        write_php_locks: bool = True,
    ) -> None:
        self.queue_id = queue_id
        self.name = name
        self.topic = topic
        self._database = database
        self._coalesce = coalesce
        self._reader = Reader(database, queue_id=queue_id, identify=identify, monotonic=monotonic)
        self._line = self._reader.line
        self._claim = Claim(
            database,
            queue_id=queue_id,
            queue_name=name,
            topic=topic,
            worker_id=worker_id,
            lease_seconds=lease_seconds,
            attempt_limit=attempt_limit,
            monotonic=monotonic,
        )
        self._settle = Settle(
            database, queue_id=queue_id, topic=topic, worker_id=worker_id, write_php_locks=write_php_locks
        )
        self._due = self._expired = True
        self._multiple = 1

    def notice(self, *, newest: int, due: bool, expired: bool) -> None:
        """What the poll's one statement saw: the highest message id, and whether a retry is due or a lease expired."""
        self._reader.notice(newest)
        self._due = due
        self._expired = expired

    @property
    def promising(self) -> bool:
        """Whether a claim may find something: what the last poll said, and what is known of the line."""
        return self._due or self._expired or self._reader.promising

    @property
    def parked(self) -> int:
        """Messages that have been seen and wait for their group."""
        return len(self._line)

    def sweep(self) -> bool:
        """Looks for messages that became visible behind the cursor, a short range at a time; whether it found any."""
        return self._reader.sweep()

    def sweep_all(self) -> None:
        """A whole round of the sweep at once: before `--stop-when-empty` believes that nothing is left."""
        self._reader.sweep_all()

    def recheck(self) -> None:
        """Looks which of the groups that were busy elsewhere still are."""
        self._reader.recheck()

    def claim(self, limit: int) -> list[Message]:
        """Up to `limit` messages, set IN_PROGRESS and leased to this worker, each the first of its group.

        Raises DatabaseUnavailable; `reconcile` puts back what was claimed in a transaction whose commit is in doubt.
        """
        if limit < 1:
            return []
        waited = self._waited_heads(limit)
        fresh: list[Candidate] = []
        if len(waited) < limit:
            groups = {head.group for head in waited}
            found = self._reader.heads((limit - len(waited)) * self._multiple, groups)
            try:
                fresh = [self._fresh_head(group, entry) for group, entry in found]
                taken, faster = self._take(waited, fresh, limit)
            except BaseException:
                for group, _ in found:
                    self._line.put_back(group)
                raise
        else:
            taken, faster = self._take(waited, fresh, limit)
        for group in faster:
            self._line.block(group)
        self._after_claim(waited + fresh, {message.id for message in taken})
        return taken

    def _take(
        self, waited: Sequence[Candidate], fresh: Sequence[Candidate], limit: int
    ) -> tuple[list[Message], list[str]]:
        """Reads the bodies of these heads and claims them; a head whose message is gone is left out."""
        self._reader.read_contents([head.entry for head in (*waited, *fresh)])
        contents = self._reader.contents
        there = [
            [
                Head(head.group, head.entry, head.supersedes, head.row_id, contents[head.entry.message_id])
                for head in heads
                if head.entry.message_id in contents
            ]
            for heads in (waited, fresh)
        ]
        if not there[0] and not there[1]:
            return [], []
        return self._database.again_on_contention(partial(self._claim.take, there[0], there[1], limit))

    def _waited_heads(self, limit: int) -> list[Candidate]:
        rows: list[dict[str, Any]] = []
        if self._due:
            rows += self._database.rows("claim_due", queue_id=self.queue_id, limit=limit)
        if self._expired:
            rows += self._database.rows("claim_expired", queue_id=self.queue_id, limit=limit)
        self._due = len(rows) >= limit
        heads = []
        for row in rows[:limit]:
            entry = Entry(message_id=int(row["message_id"]), id=int(row["id"]))
            supersedes = superseded_from(row["supersedes"])
            row_id = entry.id
            waiting = self._line.waiting(row["group_key"]) if self._coalesce and not row["expired"] else ()
            if waiting and waiting[-1] > entry:
                older = [each for each in waiting[:-1] if each != entry]
                supersedes = merged(supersedes, [(each.id, each.message_id) for each in (entry, *older)])
                entry = waiting[-1]
            heads.append(Candidate(row["group_key"], entry, supersedes, row_id, waited=True))
        return heads

    def _fresh_head(self, group: str, entry: Entry) -> Candidate:
        if self._coalesce:
            waiting = self._line.waiting(group)
            if len(waiting) > 1:
                older = tuple((each.id, each.message_id) for each in waiting[:-1])
                return Candidate(group, waiting[-1], older, waiting[-1].id, waited=False)
        return Candidate(group, entry, (), entry.id, waited=False)

    def _after_claim(self, candidates: Sequence[Candidate], taken: Collection[int]) -> None:
        """Brings the line in step with what the claim found."""
        missed = [head for head in candidates if head.entry.id not in taken]
        for head in candidates:
            if head.entry.id in taken:
                self._line.hold(head.group)
                self._line.drop(head.group, [head.entry.message_id])
        if missed:
            self._after_missing(missed)
        # Competing workers should not fight over the same head of the line: look further while others are faster.
        if len(missed) > len(taken):
            self._multiple = min(8, self._multiple * 2)
        elif not missed:
            self._multiple = max(1, self._multiple // 2)
        self._reader.forget_contents()

    def _after_missing(self, missed: Sequence[Candidate]) -> None:
        rows = self._database.rows("statuses", ids=[head.entry.id for head in missed])
        status = {int(row["id"]): int(row["status"]) for row in rows}
        pending = (Status.NEW, Status.RETRY_REQUIRED)
        for head in missed:
            now = status.get(head.entry.id)
            if head.waited:
                if now not in (*pending, Status.IN_PROGRESS):
                    self._database.execute("group_forget", queue_id=self.queue_id, group_key=head.group, id=head.row_id)
                continue
            if now not in pending:
                self._line.drop(head.group, [head.entry.message_id])
            self._line.put_back(head.group)

    def settle(self, settlements: Sequence[Settlement], *, in_doubt: bool = False) -> Settled:
        """Writes outcomes and frees or parks their groups; see `Settle.settle`."""
        settled = self._settle.settle(settlements, in_doubt=in_doubt)
        for each in settled.done:
            self._after_settling(each)
        for message in settled.lost:
            self._line.block(message.group_key)
        return settled

    def _after_settling(self, settlement: Settlement) -> None:
        message = settlement.message
        if settlement.outcome.kind is OutcomeKind.DELIVERED and message.supersedes:
            self._line.drop(message.group_key, [message_id for _, message_id in message.supersedes])
        if EDGES[settlement.outcome.kind].keeps_group:
            self._line.block(message.group_key)
            if settlement.delay_seconds <= 0:
                self._due = True
        else:
            self._line.free(message.group_key)

    def refund(self, messages: Iterable[Message]) -> int:
        """Gives back attempts that turned out to be the beginning of an outage; see `Settle.refund`."""
        return self._settle.refund(messages)

    def reconcile(self, held: Collection[int]) -> int:
        """Puts back claims whose commit was in doubt; how many. See `Settle.reconcile`."""
        groups = self._settle.reconcile(held)
        for group in groups:
            self._line.block(group)
            self._due = True
        return len(groups)
