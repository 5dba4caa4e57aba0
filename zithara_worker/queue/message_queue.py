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

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from zithara_worker.database.session import Database
from zithara_worker.messages import Claimed, Event, Message, OutcomeKind, Pending, Rejection
from zithara_worker.queue.backlog import as_text, from_text
from zithara_worker.queue.candidates import Supersedes, newest_replacing_all_before
from zithara_worker.queue.claim import Claim, Head
from zithara_worker.queue.held import Held
from zithara_worker.queue.reader import BYTES_IN_HAND, Identify, Outline, Reader
from zithara_worker.queue.settle import Settle, Settled, Settlement, hands_over
from zithara_worker.queue.statuses import EDGES, Status

#: Groups that are looked at together whether somebody holds them, where some are known to be held.
LOOK_AT = 50
#: Seconds for which a head is passed by whose row another session has locked.
PASSED_BY_SECONDS = 1.0
#: Rows that one slice of the expiry guard reads at most, rows of other queues included: some 30 ms.
EXPIRY_ROWS_A_SLICE = 1000


class Candidate(NamedTuple):
    """A head worth trying. `waited`: its group has a row already, whose head is `row_id`."""

    group: str
    entry: Pending
    supersedes: tuple[Pending, ...]
    row_id: int
    waited: bool
    behind: tuple[Pending, ...] = ()


class MessageQueue:
    """Joins reader, claim and settle, and keeps the line in step with them.

    Not thread-safe: the loop's thread owns it and its database session. `held`: what this worker has in
    hand, of all its queues. `attempt_limit`: deaths of workers after which a message counts as poison. `supersedes`:
    coalesce, by this judgement of what `outline` keeps of an event; None: every message is sent.
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
        outline: Outline = lambda event: event,
        attempt_limit: int = 8,
        write_php_locks: bool = True,
    ) -> None:
        self.queue_id = queue_id
        self.name = name
        self.topic = topic
        self._database = database
        self._held = held
        self._supersedes = supersedes
        self._reader = Reader(
            database,
            queue_id=queue_id,
            identify=identify,
            monotonic=held.clock,
            outline=outline if supersedes else None,
        )
        self._backlog = self._reader.backlog
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
        self.made_progress = False
        #: Whether a message had to wait because there was no room for its body: it goes before others
        self.short_of_room = False
        self._turn = 0
        #: Groups whose head's row another session has locked -> until when they are passed by
        self._passed_by: dict[str, float] = {}

    def update_from_poll(self, *, newest: int, due: bool, expired: bool) -> None:
        """What the poll's one statement saw: the highest message id, and whether a retry is due or a lease expired."""
        self._reader.update_from_poll(newest)
        now = self._held.clock()
        self._passed_by = {group: until for group, until in self._passed_by.items() if until > now}
        self._due = due
        self._expired = expired

    @property
    def may_have_work(self) -> bool:
        """Whether a claim may find something: what the last poll said, and what is known of the line."""
        return self._due or self._reader.may_have_work

    @property
    def parked(self) -> int:
        """Messages that have been seen and wait for their group."""
        return len(self._backlog)

    def sweep(self) -> bool:
        """Looks for messages that became visible behind the cursor, a short range at a time; whether it found any."""
        return self._reader.sweep()

    def sweep_all(self) -> None:
        """A whole round of the sweep at once: before `--stop-when-empty` believes that nothing is left."""
        self._reader.sweep_all()

    def recheck(self) -> None:
        """Looks which of the groups that were busy elsewhere still are, and whether one that waits has an older message
        now."""
        for row in self._reader.recheck():
            if row["worker_id"] is None:
                self._let_older_go_first(row)

    def has_older_pending(self, message: Message) -> bool:
        """Whether an older message of the group of this one waits, one of a late commit included. Raises
        DatabaseUnavailable."""
        self._reader.look_back()
        first = self._backlog.first(message.group_key)
        return first is not None and first < message.message_id

    def read_again(self, message: Message) -> Event | Rejection | None:
        """What is in a message that this worker holds; None if Magento has deleted it. Raises DatabaseUnavailable."""
        self._reader.read_contents([Pending(message_id=message.message_id, id=message.id)], message.length)
        content = self._reader.contents.get(message.message_id)
        self._reader.forget_contents()
        return content.content if content else None

    def claim(self, limit: int, *, room: int = BYTES_IN_HAND, large: bool = True) -> list[Claimed]:
        """Up to `limit` messages, set IN_PROGRESS and leased to this worker, each the first of its group; `held` has
        them from now on.

        `room`: how many bytes their bodies may have together; `large`: whether one may be among them whose body is
        larger than BYTES_IN_HAND.
        Raises DatabaseUnavailable; what was claimed in a transaction whose commit is in doubt is then nobody's, and
        `Leases.renew` frees it.
        """
        if limit < 1:
            return []
        return self._held_from(partial(self._claim_up_to, limit, room=room, large=large))

    @property
    def suspects_wait(self) -> bool:
        """Whether the last poll saw a lease that has expired: `claim_suspect` may find something."""
        return self._expired

    def claim_suspect(self) -> list[Claimed]:
        """One message whose worker died, or none. It may be what killed it: whoever claims it has nothing else in hand,
        and takes nothing else before there is an outcome, so that nothing else can be blamed.

        It may have arrived: it is sent again as it was, not in the shape of a newer one. Raises DatabaseUnavailable.
        """
        return self._held_from(self._claim_suspect)

    def _claim_suspect(self) -> list[Claimed]:
        self._reader.check_session()
        rows = self._database.rows("claim_expired", queue_id=self.queue_id, limit=1, worker_id=self._held.worker_id)
        self._expired = bool(rows)
        in_hand = self._held.groups(self.queue_id)
        heads = [
            Candidate(row["group_key"], entry, supersedes, entry.id, waited=True, behind=behind)
            for row in rows
            for supersedes, behind in [_older_and_newer(row)]
            for entry in [Pending.from_row(row)]
            if row["group_key"] not in in_hand
        ]
        if not heads:
            return []
        # Nothing else is in hand, so there is room for one of any size.
        entries = [head.entry for head in heads]
        self._reader.read_for_claim(entries, room=BYTES_IN_HAND, large=True)
        taken, _ = self._take(heads, 1)
        self._after_claim(heads, {each.message.id for each in taken}, 1, lost=0)
        return taken

    def _held_from(self, claim: Callable[[], list[Claimed]]) -> list[Claimed]:
        claimed: list[Claimed] = []
        try:
            claimed = claim()
        finally:
            self._held.take(message for message, _ in claimed)
        return claimed

    def _claim_up_to(self, limit: int, *, room: int, large: bool) -> list[Claimed]:
        self._reader.check_session()
        self._reader.moved = False
        self._reader.may_read_large = large
        self._turn += 1
        waited = self._waited_heads(limit)
        # Heads that waited get half of a claim at most while there are fresh ones, and the other way round.
        share = limit // 2 if limit > 1 else self._turn % 2
        groups = {head.group for head in waited} | self._held.groups(self.queue_id) | self._passed_by.keys()
        fresh: list[Candidate] = []
        found: list[tuple[str, Pending]] = []
        busy: set[str] = set()
        try:
            wanted = max(limit - len(waited), share)
            if wanted:
                # No more than are wanted, however many compete: a body is decoded to know its group, and what another
                # worker takes has been decoded in vain. Whoever loses finds the next ones at once.
                look = self._contended or bool(waited)
                found = self._reader.heads(max(wanted, LOOK_AT) if look else wanted, groups)
                if look:
                    # One look spares a try, and the lock of a row, for each group that somebody holds or that waits.
                    busy = self._reader.park_busy([group for group, _ in found])
                free = [(group, entry) for group, entry in found if group not in busy]
                for group, _ in free[wanted:]:
                    self._backlog.put_back(group)
                fresh = self._fresh_heads(free[:wanted])
            candidates = waited[: limit - len(fresh)] + fresh
            self._due = self._due or len(candidates) < len(waited) + len(fresh)
            left = self._reader.read_for_claim([head.entry for head in candidates], room=room, large=large)
            for head in fresh:
                if head.entry in left:
                    self._backlog.put_back(head.group)
            candidates = [head for head in candidates if head.entry not in left]
            taken, faster = self._take(candidates, limit)
        except BaseException:
            for group, _ in found:
                self._backlog.put_back(group)
            raise
        self.short_of_room = bool(left)
        for group in faster:
            self._backlog.mark_busy(group)
        gone, locked = self._after_claim(candidates, {each.message.id for each in taken}, limit, lost=len(busy))
        self.made_progress = bool(taken or faster or busy or gone or locked or self._reader.moved)
        return taken

    def _take(self, candidates: Sequence[Candidate], limit: int) -> tuple[list[Claimed], list[str]]:
        """Claims these heads, whose bodies have been read; a head whose message is gone is left out."""
        contents = self._reader.contents
        there = [
            [
                Head(head.group, head.entry, head.supersedes, head.row_id, head.behind, contents[head.entry.message_id])
                for head in candidates
                # Ids begin again after a restore: the one in hand may be another message.
                if head.waited is waited and head.entry.message_id in contents and head.entry.id not in self._held
            ]
            for waited in (True, False)
        ]
        if not there[0] and not there[1]:
            return [], []
        return self._database.again_on_contention(partial(self._claim.take, there[0], there[1], limit))

    def _waited_heads(self, limit: int) -> list[Candidate]:
        """Heads that are due, but for those that are passed by."""
        # A group in hand whose row is free: another worker took it over and gave it back. Our request may be under way
        # still, so it is not ours to claim.
        but = self._held.groups(self.queue_id) | self._passed_by.keys()
        due: list[dict[str, Any]] = []
        if self._due:
            due = self._database.rows("claim_due", queue_id=self.queue_id, limit=limit + len(but))
            self._due = len(due) >= limit + len(but)
        found = [(row, Pending.from_row(row)) for row in due if row["group_key"] not in but][:limit]
        waiting = self._waiting_with([(row["group_key"], entry) for row, entry in found])
        heads = []
        for row, entry in found:
            group, (supersedes, behind) = row["group_key"], _older_and_newer(row)
            if older := self._let_older_go_first(row):
                entry, supersedes, behind = older
            line = [each for each in waiting.get(group, []) if not behind or each < behind[0]]
            newest = self._newest_replacing(line)
            if len(line) > 1 and line[newest] >= entry:
                supersedes = tuple(sorted({*supersedes, *line[:newest]}))
                heads.append(Candidate(group, line[newest], supersedes, entry.id, waited=True, behind=behind))
            else:
                heads.append(Candidate(group, entry, supersedes, entry.id, waited=True, behind=behind))
        return heads

    def _let_older_go_first(
        self, row: Mapping[str, Any]
    ) -> tuple[Pending, tuple[Pending, ...], tuple[Pending, ...]] | None:
        """Makes an older message that became visible late the head of a waiting group; the head of now comes behind it.

        The new head, what it supersedes (nothing) and what is behind it; None: nothing older waits, or another worker
        was faster.
        """
        head = Pending.from_row(row)
        supersedes, behind = _older_and_newer(row)
        waiting = self._backlog.waiting(row["group_key"])
        if not any(each < head and each not in supersedes for each in waiting):
            return None
        first = min([waiting[0], *supersedes[:1]])
        behind = (head, *behind)
        if not self._database.execute(
            "group_yield",
            queue_id=self.queue_id,
            group_key=row["group_key"],
            head=head.id,
            id=first.id,
            message_id=first.message_id,
            behind=as_text(behind),
        ):
            return None
        self._due = True
        return first, (), behind

    def _fresh_heads(self, found: Sequence[tuple[str, Pending]]) -> list[Candidate]:
        waiting = self._waiting_with(found)
        heads = []
        for group, entry in found:
            line = waiting.get(group, [entry])
            head = line[self._newest_replacing(line)]
            older = tuple(each for each in line if each < head)
            heads.append(Candidate(group, head, older, head.id, waited=False))
        return heads

    def _waiting_with(self, heads: Sequence[tuple[str, Pending]]) -> dict[str, list[Pending]]:
        """What waits in these groups, their heads included, oldest first; only where some may coalesce."""
        if self._supersedes is None:
            return {}
        waiting: dict[str, list[Pending]] = {}
        for group, head in heads:
            line = sorted({head, *self._backlog.waiting(group)})
            if len(line) > 1:
                waiting[group] = line
        return waiting

    def _newest_replacing(self, line: Sequence[Pending]) -> int:
        if self._supersedes is None or len(line) < 2:
            return 0
        return newest_replacing_all_before(line, self._reader.outlines(line), self._supersedes)

    def _after_claim(
        self, candidates: Sequence[Candidate], taken: Collection[int], limit: int, *, lost: int
    ) -> tuple[int, int]:
        """Brings the line in step with what the claim found: how many candidates were not pending any more, and of how
        many another session has locked the row."""
        missed = [head for head in candidates if head.entry.id not in taken]
        for head in candidates:
            if head.entry.id in taken:
                self._backlog.mark_ours(head.group)
                self._backlog.drop(head.group, [head.entry.message_id])
        gone, locked = self._after_missing(missed) if missed else (0, 0)
        # What was left because the claim was full is nobody's loss.
        lost += gone if len(taken) >= limit else len(missed)
        self._contended = lost > len(taken)
        self._reader.forget_contents()
        return gone, locked

    def _after_missing(self, missed: Sequence[Candidate]) -> tuple[int, int]:
        """Takes what is not pending any more out of the line, and passes by for a while what could not be locked."""
        rows = self._database.rows("statuses", ids=[head.entry.id for head in missed])
        status = {int(row["id"]): int(row["status"]) for row in rows}
        pending = (Status.NEW, Status.RETRY_REQUIRED)
        gone = locked = 0
        until = self._held.clock() + PASSED_BY_SECONDS
        for head in missed:
            now = status.get(head.entry.id)
            gone += now not in pending
            faster = not head.waited and self._backlog.is_busy(head.group)
            if now in pending and head.group not in self._passed_by and not faster:
                locked += 1
                self._passed_by[head.group] = until
            if head.waited and head.entry.id == head.row_id:
                if now not in pending:
                    self._backlog.drop(head.group, [head.entry.message_id])
                if now not in (*pending, Status.IN_PROGRESS):
                    replace = partial(self._claim.replace_head, head.group, head.entry)
                    self._due = self._database.again_on_contention(replace) or self._due
                if now == Status.COMPLETE:
                    # By a PHP consumer: what failed with us has not failed in the end.
                    self._database.execute("failures_gone", ids=[head.entry.id])
                continue
            if now not in pending:
                # Where a newer snapshot was to take the place of a waiting head, that head still waits.
                self._backlog.drop(head.group, [head.entry.message_id])
            self._backlog.put_back(head.group)
        return gone, locked

    def settle(self, settlements: Sequence[Settlement], *, in_doubt: bool = False) -> Settled:
        """Writes outcomes and frees or parks their groups; see `Settle.settle`."""
        messages = [each.message for each in settlements]
        self._held.settling(messages)
        settled = self._settle.settle(settlements, in_doubt=in_doubt)
        self._held.forget(messages)
        for each in settled.done:
            self._after_settling(each)
        for message in settled.lost:
            self._backlog.mark_busy(message.group_key)
        return settled

    def _after_settling(self, settlement: Settlement) -> None:
        message = settlement.message
        if settlement.outcome.kind is OutcomeKind.DELIVERED and message.supersedes:
            self._backlog.drop(message.group_key, [older.message_id for older in message.supersedes])
        if EDGES[settlement.outcome.kind].keeps_group or hands_over(settlement):
            self._backlog.mark_busy(message.group_key)
            if settlement.delay_seconds <= 0:
                self._due = True
        else:
            self._backlog.mark_free(message.group_key)

    def refund(self, settlements: Iterable[Settlement]) -> int:
        """Gives back attempts that turned out to be the beginning of an outage; see `Settle.refund`."""
        refunded = self._settle.refund(settlements)
        self._due = self._due or refunded > 0
        return refunded

    def wake(self, messages: Iterable[Message]) -> None:
        """Makes these messages due, which wait for their retry; see `Settle.wake`."""
        self._settle.wake(messages)
        self._due = True


def _older_and_newer(row: Mapping[str, Any]) -> tuple[tuple[Pending, ...], tuple[Pending, ...]]:
    """What the head of a group's row supersedes, and the newer ones that let it go first."""
    others, head = from_text(row["supersedes"]), Pending.from_row(row)
    return tuple(each for each in others if each < head), tuple(each for each in others if each > head)


class ExpiryGuard:
    """Keeps messages that waited too long from being deleted undelivered.

    Magento's cleanup (cron mysqlmq_clean_messages) deletes NEW messages whose updated_at is older than
    system/mysqlmq/new_messages_lifetime minutes. After a long outage or pause, that would be the backlog. The guard
    goes through the NEW messages past half of that age, oldest first, a slice at a time.
    """

    def __init__(self, database: Database, queue_ids: Collection[int]) -> None:
        self._database = database
        self._queue_ids = frozenset(queue_ids)
        self._after: tuple[str, int] | None = None
        #: How many messages this round has kept
        self.kept = 0

    def run_slice(self, lifetime_minutes: int) -> bool:
        """Gives the messages of the next slice that are ours a fresh updated_at; whether the round is over.

        0 minutes: Magento deletes none.
        """
        if self._after is None:
            self._after, self.kept = ("1970-01-02 00:00:00", 0), 0
        if lifetime_minutes <= 0 or not self._queue_ids:
            self._after = None
            return True
        updated_at, id = self._after
        rows = self._database.rows(
            "expiring", age=lifetime_minutes * 30, updated_at=updated_at, after=id, limit=EXPIRY_ROWS_A_SLICE
        )
        ours = sorted(int(row["id"]) for row in rows if int(row["queue_id"]) in self._queue_ids)
        if ours:
            self.kept += self._database.execute("keep_from_expiry", ids=ours)
        over = len(rows) < EXPIRY_ROWS_A_SLICE
        self._after = None if over else (str(rows[-1]["updated_at"]), int(rows[-1]["id"]))
        return over
