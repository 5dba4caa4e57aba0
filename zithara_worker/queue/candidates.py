"""Candidates: which messages a claim tries, and what the backlog learns from it. Coalescing is decided here.

Two kinds of groups take part in a claim. A *known group* has a row in zithara_message_group, and the head that the row
names is due. A *new group* has no row, and its head is its oldest message in the backlog. With coalescing, a newer
snapshot is tried in the place of the head. A message that no newer one replaces is never skipped: it is sent first, in
its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from zithara_worker.database.session import Database
from zithara_worker.messages import Event, Pending
from zithara_worker.queue.backlog import Backlog, as_text, from_text
from zithara_worker.queue.bodies import Bodies
from zithara_worker.queue.held import Held
from zithara_worker.queue.ledger import Ended, Ledger
from zithara_worker.queue.reader import IDENTIFIED_BYTES, Reader
from zithara_worker.queue.statuses import PENDING, Status

#: (newer, older) of one group -> whether the newer one makes the older one superfluous. Must be transitive. Pure.
Supersedes = Callable[[Event, Event], bool]

#: Older snapshots that one message may replace. Their rows change in one transaction, and clusters certify it whole.
REPLACED_AT_ONCE = 1000
#: New groups of which one statement asks whether they are busy elsewhere, in claims that ask.
LOOK_AT = 50
#: Groups busy elsewhere of which one statement asks whether they still are.
RECHECK = 500
#: Messages of which one statement asks for the status.
STATUSES_AT_ONCE = 1000
#: Seconds for which claims leave a group out, after another session had locked the row of its head.
LEAVE_OUT_SECONDS = 1.0


class Candidate(NamedTuple):
    """A message to try, with its group.

    `row_head`: relation id of the head that the group's row names; None: the group has no row. It differs from the id
    of the message where a newer snapshot is tried in the place of the head. `supersedes`: the older messages that this
    one replaces. `behind`: newer messages that let this one go first, because one of them was tried before; oldest
    first.
    """

    group: str
    message: Pending
    row_head: int | None = None
    supersedes: tuple[Pending, ...] = ()
    behind: tuple[Pending, ...] = ()

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Candidate:
        """The head that a row of zithara_message_group names."""
        head, others = Pending.from_row(row), from_text(row["supersedes"])
        older = tuple(each for each in others if each < head)
        newer = tuple(each for each in others if each > head)
        return cls(str(row["group_key"]), head, head.id, supersedes=older, behind=newer)


def wanted_new_groups(limit: int, known: int, turn: int) -> int:
    """How many new groups to try in a claim that found `known` groups due: what these leave free, at least half.

    A claim of one message cannot be halved: new groups and known groups take turns.
    """
    share = limit // 2 if limit > 1 else turn % 2
    return max(limit - known, share)


def older_than(head: Candidate, waiting: Iterable[Pending]) -> list[Pending]:
    """The messages that wait in the group of `head` and are older, without those that it supersedes."""
    superseded = frozenset(head.supersedes)
    return [each for each in waiting if each < head.message and each not in superseded]


def with_older_first(head: Candidate, waiting: Sequence[Pending]) -> Candidate | None:
    """The new head of a known group where an older message became visible late; the present one comes behind it, with
    what it supersedes.

    `waiting`: what waits in the group, oldest first. None: nothing older than `head` waits but what it supersedes.
    """
    if not older_than(head, waiting):
        return None
    first = min([waiting[0], *head.supersedes[:1]])
    superseded = (each for each in head.supersedes if each > first)
    return Candidate(head.group, first, first.id, behind=(*superseded, head.message, *head.behind))


def coalesced(
    head: Candidate, waiting: Iterable[Pending], newest_replacing: Callable[[Sequence[Pending]], int]
) -> Candidate:
    """The newest waiting message that replaces the head and all others before it; the head itself if none does.

    `newest_replacing`: position of that message in a list, oldest first. `waiting`: with those `behind` the head that
    are pending. Nothing passes the last of these.
    """
    line = [each for each in sorted({head.message, *waiting}) if not head.behind or each <= head.behind[-1]]
    line = line[: max(0, REPLACED_AT_ONCE - len(head.supersedes)) + 1]
    position = newest_replacing(line) if len(line) > 1 else 0
    if position == 0 or line[position] < head.message:
        return head
    older = tuple(sorted({*head.supersedes, *line[:position]}))
    behind = tuple(each for each in head.behind if each > line[position])
    return head._replace(message=line[position], supersedes=older, behind=behind)


def newest_replacing_all_before(
    messages: Sequence[Pending], outlines: Mapping[int, Event | None], supersedes: Supersedes
) -> int:
    """Position of the newest of `messages` (oldest first) that supersedes every one before it; 0 if none does.

    [full, address, full] gives 1: the address replaces the first message, and the last does not replace the address. A
    message without an outline (deleted meanwhile, or without an event in it) is replaced by none.
    """
    events = [outlines.get(each.message_id) for each in messages]
    for position in range(len(events) - 1, 0, -1):
        newer = events[position]
        if newer is not None and all(older is not None and supersedes(newer, older) for older in events[:position]):
            return position
    return 0


class Candidates:
    """Chooses for one queue and one worker. Not thread-safe. `supersedes`: None if messages are not coalesced."""

    def __init__(
        self,
        database: Database,
        *,
        queue_id: int,
        held: Held,
        backlog: Backlog,
        reader: Reader,
        bodies: Bodies,
        supersedes: Supersedes | None,
        ledger: Ledger | None = None,
    ) -> None:
        self._database = database
        self._queue_id = queue_id
        self._held = held
        self._backlog = backlog
        self._reader = reader
        self._bodies = bodies
        self._supersedes = supersedes
        self._ledger = ledger
        #: Whether some known group may be due, and whether a lease may have expired
        self.due = self.expired = True
        #: Whether the last claim learned anything: it took messages, or found that groups or messages cannot be had.
        #: Then another claim may get further at once, past ten thousand busy groups at the head of the queue.
        self.made_progress = False
        #: Whether the last claim that tried anything lost most of it to other workers
        self._contended = False
        #: How many groups the last choice found to be busy
        self._found_busy = 0
        self._turn = 0
        #: Groups of whose head another session had locked the row -> time until which claims leave them out
        self._left_out: dict[str, float] = {}

    # ---------------------------------------------------------------- before the transaction

    def choose(self, limit: int) -> list[Candidate]:
        """Up to `limit` messages to try, each of another group.

        Known groups come first, but get no more than half of a claim while there are new ones, and the other way round.
        """
        self._turn += 1
        self._reader.moved, self._found_busy = False, 0
        now = self._held.clock()
        self._left_out = {group: until for group, until in self._left_out.items() if until > now}
        # The row of a group in hand is free if another worker took the group over and gave it back. It is not for us to
        # claim, because our request may still be under way.
        unavailable = self._held.groups(self._queue_id) | self._left_out.keys()
        known = self._of_known_groups(limit, unavailable)
        wanted = wanted_new_groups(limit, len(known), self._turn)
        unavailable |= {each.group for each in known}
        new = self._of_new_groups(wanted, unavailable, ask=self._contended or bool(known)) if wanted else []
        chosen = known[: limit - len(new)] + new
        self.due = self.due or len(chosen) < len(known) + len(new)
        return chosen

    def choose_suspect(self) -> list[Candidate]:
        """A message whose worker died, or none. It may have arrived, so it is tried as it was: it is not coalesced."""
        self._found_busy = 0
        rows = self._database.rows("claim_expired", queue_id=self._queue_id, limit=1, worker_id=self._held.worker_id)
        self.expired = bool(rows)
        in_hand = self._held.groups(self._queue_id)
        return [Candidate.from_row(row) for row in rows if row["group_key"] not in in_hand]

    def recheck(self) -> None:
        """Asks which groups that were busy elsewhere still are, and lets older messages of waiting groups go first."""
        groups = self._backlog.busy_elsewhere(RECHECK)
        rows = self._busy(groups)
        for group in set(groups) - {row["group_key"] for row in rows}:
            self._backlog.mark_free(group)
        heads = [Candidate.from_row(row) for row in rows if row["worker_id"] is None]
        self._forget_ended(heads)
        for head in heads:
            self._let_older_go_first(head)

    def _of_known_groups(self, limit: int, unavailable: Collection[str]) -> list[Candidate]:
        if not self.due:
            return []
        most = limit + len(unavailable)
        rows = self._database.rows("claim_due", queue_id=self._queue_id, limit=most)
        self.due = len(rows) >= most
        heads = [Candidate.from_row(row) for row in rows if row["group_key"] not in unavailable][:limit]
        self._forget_ended(heads)
        return [self._next_of_known_group(head) for head in heads]

    def _next_of_known_group(self, head: Candidate) -> Candidate:
        head = self._let_older_go_first(head) or head
        waiting = self._backlog.waiting(head.group)
        if head.behind and self._supersedes:
            # One of these may have been sent, so what it replaces is not sent ahead of it. Somebody else may have them.
            statuses = self._statuses(head.behind)
            pending = [each for each in head.behind if statuses.get(each.id) in PENDING]
            waiting = (*(each for each in waiting if each not in head.behind), *pending)
        return self._coalesced(head, waiting)

    def _forget_ended(self, heads: Iterable[Candidate]) -> None:
        """Forgets messages older than these heads that ended elsewhere since this worker saw them.

        They are not late. If they went first, the group's row would lose what its head supersedes, older snapshots
        would be sent behind a request that may have been processed, and the wait for the head's retry would end.
        """
        older = [(head.group, each) for head in heads for each in older_than(head, self._backlog.waiting(head.group))]
        for start in range(0, len(older), STATUSES_AT_ONCE):
            part = older[start : start + STATUSES_AT_ONCE]
            statuses = self._statuses(message for _, message in part)
            ended = [(group, message) for group, message in part if statuses.get(message.id) not in PENDING]
            self._doubt(ended)
            for group, message in ended:
                self._backlog.drop(group, [message.message_id])

    def _statuses(self, messages: Iterable[Pending]) -> dict[int, int]:
        """The status of each message by relation id, without those that are deleted."""
        ids = [each.id for each in messages]
        rows = self._database.rows("statuses", ids=ids) if ids else []
        return {int(row["id"]): int(row["status"]) for row in rows}

    def _doubt(self, ended: Iterable[tuple[str, Pending]]) -> None:
        """Before the next message of the group is compared: a PHP consumer may have had these."""
        if self._ledger:
            taken_elsewhere = [Ended(group, message.message_id, 0.0) for group, message in ended]
            self._ledger.doubt_what_others_ended(taken_elsewhere, queue_id=self._queue_id, held=True)

    def _let_older_go_first(self, head: Candidate) -> Candidate | None:
        """Writes an older message that became visible late into the group's row, and returns it.

        None: there is none, or another worker was faster.
        """
        older = with_older_first(head, self._backlog.waiting(head.group))
        if older is None or not self._change_head(head, older.message, older.behind):
            return None
        self.due = True
        return older

    def _change_head(self, head: Candidate, to: Pending, behind: Iterable[Pending]) -> bool:
        """Whether the row still named `head`, and nobody held it."""
        changed = self._database.execute(
            "group_yield",
            queue_id=self._queue_id,
            group_key=head.group,
            head=head.row_head,
            id=to.id,
            message_id=to.message_id,
            behind=as_text(behind),
        )
        return bool(changed)

    def _of_new_groups(self, wanted: int, unavailable: Collection[str], *, ask: bool) -> list[Candidate]:
        """Up to `wanted` heads of groups that are free, as far as the backlog knows, and not `unavailable`.

        `ask`: whether some are likely to be busy elsewhere. Then one statement spares a try, and the lock of a row, for
        each.
        """
        # No more than are wanted, however many workers compete. A body is decoded to know its group, so a message that
        # another worker takes has been decoded in vain. The next claim finds the next ones at once.
        found = self._reader.heads(max(wanted, LOOK_AT) if ask else wanted, unavailable)
        busy = {row["group_key"] for row in self._busy([group for group, _ in found])} if ask else set()
        for group in busy:
            self._backlog.mark_busy(group)
        self._found_busy = len(busy)
        free = [Candidate(group, message) for group, message in found if group not in busy]
        return [self._coalesced(head, self._backlog.waiting(head.group)) for head in free[:wanted]]

    def _busy(self, groups: Collection[str]) -> list[dict[str, Any]]:
        """The rows of those of the groups that have one."""
        if not groups:
            return []
        return self._database.rows("groups_busy", queue_id=self._queue_id, group_keys=list(groups))

    def _coalesced(self, head: Candidate, waiting: Sequence[Pending]) -> Candidate:
        if self._supersedes is None:
            return head
        return coalesced(head, waiting, partial(self._newest_replacing, self._supersedes))

    def _newest_replacing(self, supersedes: Supersedes, messages: Sequence[Pending]) -> int:
        outlines = {each.message_id: self._backlog.outline(each.message_id) for each in messages}
        # The heads of known groups may not be in the backlog.
        unknown = [each for each in messages if each.message_id not in self._backlog]
        self._bodies.read_ahead(unknown, IDENTIFIED_BYTES)
        outlines |= {each.message_id: self._bodies.outline(each) for each in unknown}
        return newest_replacing_all_before(messages, outlines, supersedes)

    # ---------------------------------------------------------------- after the transaction

    def update_backlog(
        self, candidates: Sequence[Candidate], claimed: Collection[int], lost: Collection[str], *, limit: int
    ) -> None:
        """Brings the backlog in step with a claim that took the relation ids `claimed`.

        `lost`: groups that another worker won first. `limit`: how many messages the claim was to take at most.
        """
        taken = [each for each in candidates if each.message.id in claimed]
        missed = [each for each in candidates if each.message.id not in claimed]
        statuses = self._statuses(each.message for each in missed)
        gone = [each for each in missed if statuses.get(each.message.id) not in PENDING]
        locked = [each for each in missed if statuses.get(each.message.id) in PENDING and each.group not in lost]
        self._doubt((each.group, each.message) for each in gone)
        self._backlog.update_from_claim(
            claimed=[(each.group, each.message) for each in taken],
            busy=lost,
            gone=[(each.group, each.message) for each in gone],
        )
        for each in gone:
            if each.message.id == each.row_head:
                self._update_known_group(each, statuses.get(each.message.id))
        until = self._held.clock() + LEAVE_OUT_SECONDS
        self._left_out.update((each.group, until) for each in locked)
        # When the claim reached its limit, candidates left over were not lost to another worker, so only those that are
        # no longer pending count as contention.
        faster = self._found_busy + (len(gone) if len(claimed) >= limit else len(missed))
        if candidates or faster:
            self._contended = faster > len(claimed)
        self.made_progress = bool(claimed or lost or self._found_busy or gone or locked or self._reader.moved)

    def _update_known_group(self, head: Candidate, status: int | None) -> None:
        """The head that the group's row names is not pending any more. `status`: what it is; None: deleted."""
        if status != Status.IN_PROGRESS:
            replaced = self._database.again_on_contention(partial(self._replace_head, head))
            self.due = self.due or replaced
        if status == Status.COMPLETE:
            # A PHP consumer delivered it, so the failure that we recorded is over; or an operator discarded it.
            self._database.execute("failure_over", id=head.message.id)

    def _replace_head(self, head: Candidate) -> bool:
        """Gives a known group its next head, or removes its row; whether there is a next head.

        Its head has ended elsewhere: a PHP consumer completed it, or Magento's cleanup deleted it.
        Next is the oldest of the messages that the row names, and of those that have failed and are pending: an
        operator may have retried one, and a worker that knows only a newer message of the group must not pass it.
        Changes nothing where another worker was faster.
        """
        with self._database.transaction():
            # Locked before the failures are read: a retry either is in them, or finds the new head or none.
            rows = self._database.rows("claim_lock_groups", queue_id=self._queue_id, group_keys=[head.group])
            if not rows or int(rows[0]["id"]) != head.row_head:
                return False
            if rows[0]["worker_id"] is not None and not rows[0]["expired"]:
                return False
            failed = self._database.rows("failures_of_groups", queue_id=self._queue_id, group_keys=[head.group])
            pending = [Pending.from_row(row) for row in failed if int(row["status"]) == Status.RETRY_REQUIRED]
            following = sorted({*from_text(rows[0]["supersedes"]), *pending[:1]})
            if following:
                return self._change_head(head, following[0], following[1:])
            self._database.execute("group_forget", queue_id=self._queue_id, group_key=head.group, id=head.row_head)
        return False
