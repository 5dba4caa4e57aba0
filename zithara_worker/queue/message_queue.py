"""One Magento queue as the loop uses it: the delivery protocol on Magento's queue tables.

    claim    choose candidates (`candidates`), read their bodies (`bodies`), one short transaction (`claim`), update the
             backlog (`candidates`)
    settle   the outcomes of many messages in one transaction (`settle`)

Guarantees, and what they rest on:
- one message of a group at a time: the primary key of zithara_message_group;
- in the order of message ids: only the lowest message of a group that this worker can see is tried, and a message that
  was claimed once and is still pending keeps its group's row, so nothing newer passes it;
- a worker that lost its lease changes nothing: see `settle`.

This room knows the tables. It knows neither HTTP nor what a message means: the group comes from the callable
`identify`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from zithara_worker.database.session import Database
from zithara_worker.messages import Claimed, Event, Message, Pending, Rejection
from zithara_worker.queue.backlog import Backlog
from zithara_worker.queue.bodies import BYTES_IN_HAND, Bodies, Identify, Outline
from zithara_worker.queue.candidates import Candidate, Candidates, Supersedes
from zithara_worker.queue.claim import Claim
from zithara_worker.queue.held import Held
from zithara_worker.queue.ledger import Ledger
from zithara_worker.queue.ledger_rules import arrived
from zithara_worker.queue.reader import Reader
from zithara_worker.queue.settle import Settle, Settled, Settlement, hands_over
from zithara_worker.queue.statuses import EDGES

#: Rows that one slice of the expiry guard reads at most, rows of other queues included: some 30 ms.
EXPIRY_ROWS_A_SLICE = 1000


class MessageQueue:
    """Joins reader, candidates, claim and settle, and keeps the backlog in step with them.

    Not thread-safe: the loop's thread owns it and its database session. `held`: what this worker holds, of all its
    queues. `attempt_limit`: deaths of workers after which a message is rejected. `supersedes`: messages are coalesced,
    as it judges by what `outline` keeps of an event; None: every message is sent.
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
        ledger: Ledger | None = None,
    ) -> None:
        self.queue_id = queue_id
        self.name = name
        self.topic = topic
        #: Whether a message had to wait because there was no room for its body. It goes before the other queues'
        #: messages.
        self.short_of_room = False
        self._held = held
        self._backlog = Backlog()
        self._bodies = Bodies(database, identify=identify, outline=outline if supersedes else None)
        self._reader = Reader(database, queue_id=queue_id, backlog=self._backlog, bodies=self._bodies, clock=held.clock)
        self._candidates = Candidates(
            database,
            queue_id=queue_id,
            held=held,
            backlog=self._backlog,
            reader=self._reader,
            bodies=self._bodies,
            supersedes=supersedes,
            ledger=ledger,
        )
        self._claim = Claim(
            database,
            queue_id=queue_id,
            queue_name=name,
            topic=topic,
            held=held,
            attempt_limit=attempt_limit,
            ledger=ledger,
        )
        self._settle = Settle(
            database, queue_id=queue_id, topic=topic, held=held, write_php_locks=write_php_locks, ledger=ledger
        )

    # ---------------------------------------------------------------- polls

    def update_from_poll(self, *, newest: int, due: bool, expired: bool) -> None:
        """What a poll saw: the highest message id, and whether a retry is due or a lease has expired."""
        self._reader.update_from_poll(newest)
        self._candidates.due, self._candidates.expired = due, expired

    @property
    def may_have_work(self) -> bool:
        """Whether a claim may find something, by the last poll and by what the backlog knows."""
        return self._candidates.due or self._reader.may_have_work

    @property
    def may_have_suspects(self) -> bool:
        """Whether `claim_suspect` may find something: the last poll saw an expired lease."""
        return self._candidates.expired

    @property
    def made_progress(self) -> bool:
        """Whether the last claim learned anything, so that another one may get further at once."""
        return self._candidates.made_progress

    def sweep(self) -> bool:
        """Looks for messages that became visible behind the cursor, a slice at a time; whether it found any."""
        return self._reader.sweep()

    def sweep_all(self) -> None:
        """A whole round of the sweep at once, before `--stop-when-empty` believes that nothing is left."""
        self._reader.sweep_all()

    def recheck(self) -> None:
        """Asks which of the groups that were busy elsewhere still are."""
        self._candidates.recheck()

    # ---------------------------------------------------------------- claim

    def claim(self, limit: int, *, room: int = BYTES_IN_HAND, large: bool = True) -> list[Claimed]:
        """Up to `limit` messages, each the next of its group, set IN_PROGRESS and leased to this worker.

        `held` has them from now on.
        `room`: how many bytes their bodies may have together; `large`: whether one may be among them whose body is
        larger than BYTES_IN_HAND. Raises DatabaseUnavailable. Messages of a claim whose commit is in doubt are not
        handed out; `Leases.renew` puts them back.
        """
        if limit < 1:
            return []
        self._bodies.may_read_large = large
        return self._claim_chosen(partial(self._candidates.choose, limit), limit, room=room, large=large)

    def claim_suspect(self) -> list[Claimed]:
        """One message whose worker died, or none. Raises DatabaseUnavailable.

        It may be what killed the worker. Whoever calls this must hold nothing else, and must claim nothing else before
        the outcome is known, so that another message cannot be blamed for the next death. Therefore there is room for
        its body whatever its size.
        """
        return self._claim_chosen(self._candidates.choose_suspect, 1, room=BYTES_IN_HAND, large=True)

    def _claim_chosen(
        self, choose: Callable[[], list[Candidate]], limit: int, *, room: int, large: bool
    ) -> list[Claimed]:
        claimed: list[Claimed] = []
        try:
            self._reader.check_session()
            chosen = choose()
            left = self._bodies.read_for_claim([each.message for each in chosen], room=room, large=large)
            candidates = [each for each in chosen if each.message not in left]
            messages, lost = self._claim.run(candidates, self._bodies.decoded, limit=limit)
            ids = {message.id for message, _ in messages}
            self._candidates.update_backlog(candidates, ids, lost, limit=limit)
            self._bodies.forget_most(waiting=self._backlog)
            self.short_of_room = bool(left)
            claimed = messages
        finally:
            self._backlog.put_back_heads()
            self._held.take(message for message, _ in claimed)
        return claimed

    # ---------------------------------------------------------------- what a 404 asks

    def has_older_pending(self, message: Message) -> bool:
        """Whether an older message of its group waits, late commits included. Raises DatabaseUnavailable."""
        self._reader.look_back()
        first = self._backlog.first(message.group_key)
        return first is not None and first < message.message_id

    def read_again(self, message: Message) -> Event | Rejection | None:
        """What is in a message that this worker holds; None if Magento has deleted it. Raises DatabaseUnavailable."""
        self._bodies.read_ahead([Pending(message.message_id, message.id)], message.length)
        body = self._bodies.decoded.get(message.message_id)
        self._bodies.forget_most(waiting=self._backlog)
        return body.content if body else None

    # ---------------------------------------------------------------- settle

    def settle(self, settlements: Sequence[Settlement], *, in_doubt: bool = False) -> Settled:
        """Writes outcomes, and lets the groups go on or wait; see `Settle.settle`."""
        messages = [each.message for each in settlements]
        self._held.settling(messages)
        settled = self._settle.settle(settlements, in_doubt=in_doubt)
        self._held.forget(messages)
        for each in settled.done:
            self._update_backlog(each)
        for message in settled.lost:
            self._backlog.mark_busy(message.group_key)
        return settled

    def _update_backlog(self, settlement: Settlement) -> None:
        message = settlement.message
        if arrived(settlement.outcome) and message.supersedes:
            self._backlog.drop(message.group_key, [older.message_id for older in message.supersedes])
        if EDGES[settlement.outcome.kind].keeps_group or hands_over(settlement):
            self._backlog.mark_busy(message.group_key)
            if settlement.delay_seconds <= 0:
                self._candidates.due = True
        else:
            self._backlog.mark_free(message.group_key)

    def refund(self, settlements: Iterable[Settlement]) -> int:
        """Gives back attempts that turned out to be the beginning of an outage; see `Settle.refund`."""
        refunded = self._settle.refund(settlements)
        self._candidates.due = self._candidates.due or refunded > 0
        return refunded

    def wake(self, messages: Sequence[Message]) -> None:
        """Makes groups due that wait for the retry of these messages; see `Settle.wake`."""
        self._settle.wake(messages)
        self._candidates.due = True


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
