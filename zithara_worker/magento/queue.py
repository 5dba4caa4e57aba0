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

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from zithara_worker.magento.claim import Claim, Head, merged, superseded_from
from zithara_worker.magento.database import Database
from zithara_worker.magento.held import Held
from zithara_worker.magento.line import Entry
from zithara_worker.magento.reader import Identify, Reader
from zithara_worker.magento.settle import Settle, Settled, Settlement, hands_over
from zithara_worker.magento.snapshots import READ_A_CLAIM, Supersedes, newest_replacing_all_before
from zithara_worker.magento.statuses import EDGES, Status
from zithara_worker.messages import Claimed, Message, OutcomeKind


class Candidate(NamedTuple):
    """A head worth trying. `waited`: its group has a row already, whose head is `row_id`."""

    group: str
    entry: Entry
    supersedes: tuple[tuple[int, int], ...]
    row_id: int
    waited: bool


class MessageQueue:
    """Joins reader, claim and settle, and keeps the line in step with them.

    Not thread-safe: the loop's thread owns it and its database session. `held`: what this worker has in
    hand, of all its queues. `attempt_limit`: deaths of workers after which a message counts as poison. `supersedes`:
    coalesce, by this judgement; None: every message is sent.
    """

    def __init__(
        self,
        database: Database,
        *,
        queue_id: int,
        name: str,
        topic: str,
        held: Held,
        identify: Identify,
        supersedes: Supersedes | None = None,
        attempt_limit: int = 8,
        write_php_locks: bool = True,
    ) -> None:
        self.queue_id = queue_id
        self.name = name
        self.topic = topic
        self._database = database
        self._held = held
        self._supersedes = supersedes
        self._reader = Reader(database, queue_id=queue_id, identify=identify, monotonic=held.clock)
        self._line = self._reader.line
        self._claim = Claim(
            database,
            queue_id=queue_id,
            queue_name=name,
            topic=topic,
            held=held,
            attempt_limit=attempt_limit,
        )
        self._settle = Settle(database, queue_id=queue_id, topic=topic, held=held, write_php_locks=write_php_locks)
        self._due = self._expired = True
        #: Whether others were faster with most of what the last claim tried
        self._contended = False
        #: Whether the last claim learned anything: took messages, or found that some groups or messages are not to be
        #: had. Another one may then go further at once, past ten thousand busy groups at the head of the line.
        self.advanced = False

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

    def has_older_pending(self, message: Message) -> bool:
        """Whether an older message of the group of this one waits, one of a late commit included. Raises
        DatabaseUnavailable."""
        self._reader.look_back()
        return any(each.message_id < message.message_id for each in self._line.waiting(message.group_key))

    def claim(self, limit: int) -> list[Claimed]:
        """Up to `limit` messages, set IN_PROGRESS and leased to this worker, each the first of its group; `held` has
        them from now on.

        Raises DatabaseUnavailable; what was claimed in a transaction whose commit is in doubt is then nobody's, and
        `Leases.renew` frees it.
        """
        if limit < 1:
            return []
        claimed: list[Claimed] = []
        try:
            claimed = self._claim_up_to(limit)
        finally:
            self._held.take(message for message, _ in claimed)
        return claimed

    def _claim_up_to(self, limit: int) -> list[Claimed]:
        waited = self._waited_heads(limit)
        fresh: list[Candidate] = []
        busy: set[str] = set()
        if len(waited) < limit:
            groups = {head.group for head in waited} | self._held.groups(self.queue_id)
            # No more than are wanted, however many compete: a body is decoded to know its group, and what another
            # worker takes has been decoded in vain. Whoever loses finds the next ones at once.
            found = self._reader.heads(limit - len(waited), groups)
            try:
                if self._contended:
                    # One look spares a try, and the lock of a row, for each group that somebody holds.
                    busy = self._reader.park_busy([group for group, _ in found])
                    found = [(group, entry) for group, entry in found if group not in busy]
                fresh = self._fresh_heads(found)
                taken, faster = self._take(waited, fresh, limit)
            except BaseException:
                for group, _ in found:
                    self._line.put_back(group)
                raise
        else:
            taken, faster = self._take(waited, fresh, limit)
        for group in faster:
            self._line.block(group)
        gone = self._after_claim(waited + fresh, {each.message.id for each in taken}, limit, lost=len(busy))
        self.advanced = bool(taken or faster or busy or gone)
        return taken

    def _take(
        self, waited: Sequence[Candidate], fresh: Sequence[Candidate], limit: int
    ) -> tuple[list[Claimed], list[str]]:
        """Reads the bodies of these heads and claims them; a head whose message is gone is left out."""
        self._reader.read_contents([head.entry for head in (*waited, *fresh)])
        contents = self._reader.contents
        there = [
            [
                Head(head.group, head.entry, head.supersedes, head.row_id, contents[head.entry.message_id])
                for head in heads
                # Ids begin again after a restore: the one in hand may be another message.
                if head.entry.message_id in contents and head.entry.id not in self._held
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
            rows += self._database.rows(
                "claim_expired", queue_id=self.queue_id, limit=limit, worker_id=self._held.worker_id
            )
        self._due = len(rows) >= limit
        # A group in hand whose row is free: another worker took it over and gave it back. Our request may be under way
        # still, so it is not ours to claim.
        in_hand = self._held.groups(self.queue_id)
        found = [
            (row, Entry(message_id=int(row["message_id"]), id=int(row["id"])), bool(row["expired"]))
            for row in rows[:limit]
            if row["group_key"] not in in_hand
        ]
        # What a dead worker held may have arrived: it is sent again as it was, not in the shape of a newer one.
        waiting = self._waiting_with([(row["group_key"], entry) for row, entry, expired in found if not expired])
        heads = []
        for row, entry, expired in found:
            group, supersedes = row["group_key"], superseded_from(row["supersedes"])
            line = [] if expired else waiting.get(group, [])
            newest = self._newest_replacing(line)
            if len(line) > 1 and line[newest] >= entry:
                supersedes = merged(supersedes, [(each.id, each.message_id) for each in line[:newest]])
                heads.append(Candidate(group, line[newest], supersedes, entry.id, waited=True))
            else:
                heads.append(Candidate(group, entry, supersedes, entry.id, waited=True))
        return heads

    def _fresh_heads(self, found: Sequence[tuple[str, Entry]]) -> list[Candidate]:
        waiting = self._waiting_with(found)
        heads = []
        for group, entry in found:
            line = waiting.get(group, [entry])
            head = line[self._newest_replacing(line)]
            older = tuple((each.id, each.message_id) for each in line if each < head)
            heads.append(Candidate(group, head, older, head.id, waited=False))
        return heads

    def _waiting_with(self, heads: Sequence[tuple[str, Entry]]) -> dict[str, list[Entry]]:
        """What waits in these groups, their heads included, oldest first, with contents read; only where some may
        coalesce, and no more at once than fits in memory."""
        if self._supersedes is None:
            return {}
        waiting: dict[str, list[Entry]] = {}
        room = READ_A_CLAIM
        for group, head in heads:
            line = sorted({head, *self._line.waiting(group)})[:room]
            if len(line) > 1 and head in line:
                waiting[group] = line
                room -= len(line)
        self._reader.read_contents([entry for line in waiting.values() for entry in line])
        return waiting

    def _newest_replacing(self, line: Sequence[Entry]) -> int:
        if self._supersedes is None or len(line) < 2:
            return 0
        contents = self._reader.contents
        known = {each.message_id: contents[each.message_id].content for each in line if each.message_id in contents}
        return newest_replacing_all_before(line, known, self._supersedes)

    def _after_claim(self, candidates: Sequence[Candidate], taken: Collection[int], limit: int, *, lost: int) -> int:
        """Brings the line in step with what the claim found; how many candidates were not pending any more."""
        missed = [head for head in candidates if head.entry.id not in taken]
        for head in candidates:
            if head.entry.id in taken:
                self._line.hold(head.group)
                self._line.drop(head.group, [head.entry.message_id])
        gone = self._after_missing(missed) if missed else 0
        # What was left because the claim was full is nobody's loss.
        lost += gone if len(taken) >= limit else len(missed)
        self._contended = lost > len(taken)
        self._reader.forget_contents()
        return gone

    def _after_missing(self, missed: Sequence[Candidate]) -> int:
        """Takes what is not pending any more out of the line; how many were not."""
        rows = self._database.rows("statuses", ids=[head.entry.id for head in missed])
        status = {int(row["id"]): int(row["status"]) for row in rows}
        pending = (Status.NEW, Status.RETRY_REQUIRED)
        gone = 0
        for head in missed:
            now = status.get(head.entry.id)
            gone += now not in pending
            if head.waited and head.entry.id == head.row_id:
                if now not in (*pending, Status.IN_PROGRESS):
                    self._database.execute("group_forget", queue_id=self.queue_id, group_key=head.group, id=head.row_id)
                if now == Status.COMPLETE:
                    # By a PHP consumer: what failed with us has not failed in the end.
                    self._database.execute("failures_gone", ids=[head.entry.id])
                continue
            if now not in pending:
                # Where a newer snapshot was to take the place of a waiting head, that head still waits.
                self._line.drop(head.group, [head.entry.message_id])
            self._line.put_back(head.group)
        return gone

    def settle(self, settlements: Sequence[Settlement], *, in_doubt: bool = False) -> Settled:
        """Writes outcomes and frees or parks their groups; see `Settle.settle`."""
        messages = [each.message for each in settlements]
        self._held.settling(messages)
        settled = self._settle.settle(settlements, in_doubt=in_doubt)
        self._held.forget(messages)
        for each in settled.done:
            self._after_settling(each)
        for message in settled.lost:
            self._line.block(message.group_key)
        return settled

    def _after_settling(self, settlement: Settlement) -> None:
        message = settlement.message
        if settlement.outcome.kind is OutcomeKind.DELIVERED and message.supersedes:
            self._line.drop(message.group_key, [message_id for _, message_id in message.supersedes])
        if EDGES[settlement.outcome.kind].keeps_group or hands_over(settlement):
            self._line.block(message.group_key)
            if settlement.delay_seconds <= 0:
                self._due = True
        else:
            self._line.free(message.group_key)

    def refund(self, messages: Iterable[Message]) -> int:
        """Gives back attempts that turned out to be the beginning of an outage; see `Settle.refund`."""
        return self._settle.refund(messages)
