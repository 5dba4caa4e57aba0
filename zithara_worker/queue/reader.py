"""Finds the pending messages of one queue, and puts them into the backlog.

Three ways of reading, all without locks: a cursor moves forward through the message ids, so that completed rows are
read once; each read also looks back over what the cursor has just passed; a sweep goes through the whole queue, round
and round, for messages that became visible behind the cursor long ago.

Each statement reads a bounded number of rows of this queue. Rows are counted, not ids, because ids are shared with all
other queues of the shop.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from zithara_worker.database.session import Database
from zithara_worker.messages import Event, Pending
from zithara_worker.queue.backlog import Backlog
from zithara_worker.queue.bodies import BODIES_A_STATEMENT, Bodies

#: Rows of the queue that one statement reads at most: some 10 ms.
SLICE_ROWS = 10_000
#: Rows of the queue that each read looks back over for late commits: a millisecond or two.
LOOK_BACK_ROWS = 2_000
#: How many seconds back each read and each sweep looks for late commits.
LATELY_SECONDS = 10
#: Statements of one claim that read ahead, at most.
READS_A_CLAIM = 10
#: Messages, and bytes of bodies, that one claim or one sweep decodes to learn their groups. A larger body is decoded
#: alone. An event takes up to ten times the bytes of its body.
IDENTIFIED_AT_ONCE = 2_000
IDENTIFIED_BYTES = 2_000_000


class Slice(NamedTuple):
    """The pending messages of a slice of the queue, oldest first.

    `up_to`: the message id up to which the slice was read. `more`: whether more rows follow.
    """

    messages: list[Pending]
    up_to: int
    more: bool


class Reader:
    """Reads for one queue and one worker. Not thread-safe. `clock`: seconds."""

    def __init__(
        self,
        database: Database,
        *,
        queue_id: int,
        backlog: Backlog,
        bodies: Bodies,
        clock: Callable[[], float],
    ) -> None:
        #: Whether `heads` has read further in the queue; whoever asks sets it to False before
        self.moved = False
        self._database = database
        self._queue_id = queue_id
        self._backlog = backlog
        self._bodies = bodies
        self._clock = clock
        self._generation = 0
        #: Message id up to which the queue has been read; None before the first read
        self._cursor: int | None = None
        #: (time, cursor) of the last seconds, oldest first
        self._marks: list[tuple[float, int]] = []
        #: The highest message id that is known to exist
        self._newest = self._polled_newest = 0
        self._rows_at_once = 0
        self._sweep_from = self._sweep_to = 0
        #: What may still be decoded in this claim or sweep
        self._room_bytes = self._room_messages = 0

    def check_session(self) -> None:
        """Forgets everything that is known by message id if the session is a new one.

        After a failover that lost the last transactions, other messages get the ids of those that were lost.
        """
        _ = self._database.has_pending_index  # opens the session, if it is not open
        if self._generation != self._database.generation:
            self._generation = self._database.generation
            self._backlog.clear()
            self._bodies.decoded.clear()
            self._marks.clear()
            self._cursor = None
            self._newest = self._rows_at_once = self._sweep_from = self._sweep_to = 0

    def update_from_poll(self, newest: int) -> None:
        """`newest`: the highest message id of the queue."""
        if newest < self._polled_newest:
            # Ids may begin again: what is known by id, decoded bodies too, may belong to other messages.
            self._generation = 0
        self._polled_newest = newest
        self.check_session()
        self._newest = max(self._newest, newest)
        if self._cursor is not None:
            now = self._clock()
            while len(self._marks) > 1 and self._marks[1][0] <= now - LATELY_SECONDS:
                self._marks.pop(0)
            if self._marks[-1][1] != self._cursor:
                self._marks.append((now, self._cursor))

    @property
    def may_have_work(self) -> bool:
        """Whether there is something to read, or a group to try."""
        return self._backlog.has_free or self._backlog.overflow_to_read() is not None or self._has_more

    @property
    def _has_more(self) -> bool:
        return (self._cursor is None or self._newest > self._cursor) and not self._backlog.full

    # ---------------------------------------------------------------- reading ahead

    def heads(self, wanted: int, without: Collection[str]) -> list[tuple[str, Pending]]:
        """Up to `wanted` heads of free groups, except the groups `without`. Reads on behind the cursor as needed.

        Call `Backlog.put_back_heads` when the claim is over; before that, these groups are not offered again.
        """
        heads: dict[str, Pending] = {}
        self._room_bytes, self._room_messages = IDENTIFIED_BYTES, IDENTIFIED_AT_ONCE
        read = max(wanted, 50)
        for _ in range(READS_A_CLAIM):
            for group, message in self._backlog.heads():
                if group in without:
                    continue
                # A group comes a second time if reading on found an older message of it.
                heads[group] = message
                if len(heads) >= wanted:
                    return list(heads.items())
            if self._room_bytes <= 0 or self._room_messages <= 0 or not self._read_on(read):
                break
            read = min(2 * read, IDENTIFIED_AT_ONCE)
        return list(heads.items())

    def _read_on(self, wanted: int) -> bool:
        """Takes more pending messages into the backlog; whether it got any further."""
        overflow = self._backlog.overflow_to_read()
        if overflow is not None:
            self._read_overflow(*overflow)
            return True
        if not self._has_more:
            return False
        moved = self._read_forward(wanted)
        self.moved = self.moved or moved
        return moved

    def _read_forward(self, wanted: int) -> bool:
        if self._cursor is None:
            self._cursor = 0
            self._marks.append((self._clock(), 0))
        newest, before = self._newest, self._cursor
        rows = min(SLICE_ROWS, max(wanted, self._rows_at_once))
        messages, up_to, more = self._slice(before, rows)
        # Where little is pending among many completed rows, the next slice is longer.
        sparse = more and len(messages) < wanted // 2
        self._rows_at_once = 4 * rows if sparse else 0
        if len(messages) > wanted:
            messages, up_to, more = messages[:wanted], messages[wanted - 1].message_id, True
        if messages and before:
            # A long transaction can commit a message behind the cursor while a newer message of the same group is
            # already visible ahead of it. Therefore each read also looks behind the cursor again before it hands out
            # what it found; otherwise the newer message would be delivered first.
            _, left = self._take_in(self._look_back(LOOK_BACK_ROWS, up_to=before))
            if left is not None:
                return True
        _, left = self._take_in(messages)
        if left is not None:
            up_to, more = left - 1, True
        # At the end of the queue the cursor goes to the newest id. What is committed below it later, the sweep finds.
        self._cursor = up_to if more else max(before, newest, up_to)
        self._newest = max(self._newest, self._cursor + more)
        return self._cursor > before

    def _read_overflow(self, group: str, message_ids: Sequence[int]) -> None:
        """Looks up the next messages of a group of which the backlog has only message ids."""
        rows = self._database.rows("pending_of", queue_id=self._queue_id, message_ids=list(message_ids))
        messages = sorted(map(Pending.from_row, rows))
        outlines: dict[int, Event | None] = {}
        if self._bodies.coalesces:
            for start in range(0, len(messages), BODIES_A_STATEMENT):
                chunk = messages[start : start + BODIES_A_STATEMENT]
                done = self._bodies.read_ahead(chunk, self._room_bytes)
                outlines |= {each.message_id: self._bodies.outline(each) for each in chunk[:done]}
                self._bodies.forget(chunk)
                if done < len(chunk) or self._room_bytes <= 0:
                    messages = messages[: start + done]
                    message_ids = [each for each in message_ids if each <= messages[-1].message_id]
                    break
        self._backlog.forget_overflow(group, len(message_ids))
        for each in messages:
            self._backlog.add(group, each, outlines.get(each.message_id))

    def _slice(self, after: int, rows: int, *, up_to: int | None = None) -> Slice:
        """The pending messages among the next `rows` of the queue; with the optional index, `rows` pending messages."""
        indexed = self._database.has_pending_index
        found = self._database.rows(
            "pending_slice" if indexed else "slice",
            queue_id=self._queue_id,
            after=after,
            up_to=2**63 - 1 if up_to is None else up_to,
            limit=rows,
        )
        # Without the index, a row with id 0 stands for all rows that are not pending.
        messages = sorted(Pending.from_row(row) for row in found if row["id"])
        more = (len(found) if indexed else sum(int(row["seen"]) for row in found)) == rows
        last = max((int(row["message_id"]) for row in found), default=after)
        return Slice(messages, last if more or up_to is None else up_to, more)

    # ---------------------------------------------------------------- late commits

    def sweep(self) -> bool:
        """Reads the next stretch for pending messages that became visible behind the cursor; whether it found any.

        First what the cursor passed in the last seconds, where a slow checkout commits; then on through the whole
        queue. A round ends where the cursor stood when it began, so it ends however fast the cursor moves.
        """
        self.check_session()
        if not self._cursor:
            return False
        self._room_bytes, self._room_messages = IDENTIFIED_BYTES, IDENTIFIED_AT_ONCE
        found = False
        if self._cursor_lately() < self._cursor:
            found, _ = self._take_in(self._look_back(SLICE_ROWS, up_to=self._cursor))
        if self._sweep_from >= self._sweep_to:
            self._sweep_from, self._sweep_to = 0, self._cursor
        stretch = self._slice(self._sweep_from, SLICE_ROWS, up_to=self._sweep_to)
        any_here, left = self._take_in(stretch.messages)
        self._sweep_from = stretch.up_to if left is None else left - 1
        return found or any_here

    def sweep_all(self) -> None:
        """A whole round of the sweep at once, before `--stop-when-empty` believes that nothing is left."""
        self._sweep_from = self._sweep_to = 0
        self.sweep()
        while self._sweep_from < self._sweep_to:
            self.sweep()

    def look_back(self) -> None:
        """Takes in what has become visible a short way behind the cursor."""
        if self._cursor:
            self._room_bytes, self._room_messages = IDENTIFIED_BYTES, IDENTIFIED_AT_ONCE
            self._take_in(self._look_back(LOOK_BACK_ROWS, up_to=self._cursor))

    def _look_back(self, rows: int, *, up_to: int) -> list[Pending]:
        """The pending messages among the last `rows` that the cursor has passed in the last seconds."""
        after = self._cursor_lately()
        if self._database.has_pending_index:
            return self._slice(after, rows, up_to=up_to).messages
        found = self._database.rows("look_back", queue_id=self._queue_id, after=after, up_to=up_to, limit=rows)
        return [Pending.from_row(row) for row in found]

    def _cursor_lately(self) -> int:
        """Where the cursor stood LATELY_SECONDS ago; 0 where that is not known."""
        return self._marks[0][1] if self._marks else 0

    def _take_in(self, messages: Collection[Pending]) -> tuple[bool, int | None]:
        """Decodes messages that the backlog does not know, and adds them, oldest first.

        Whether there were any, and the message id of the first that is left for the next call, because this claim or
        sweep has decoded enough.
        """
        unknown = self._backlog.unknown(messages)
        for start in range(0, len(unknown), BODIES_A_STATEMENT):
            chunk = unknown[start : start + BODIES_A_STATEMENT]
            if start and (self._room_bytes <= 0 or self._room_messages <= 0):
                return True, chunk[0].message_id
            done = self._bodies.read_ahead(chunk, self._room_bytes)
            for each in chunk[:done]:
                body = self._bodies.decoded.get(each.message_id)
                if body is not None:
                    self._backlog.add(body.group, each, self._bodies.outline(each))
                    self._room_bytes -= body.length
                    # Kept for the claim that may follow; the bodies of messages behind a head would fill the memory.
                    if not self._backlog.is_next(body.group, each):
                        del self._bodies.decoded[each.message_id]
            self._room_messages -= done
            if done < len(chunk):
                self._bodies.forget(chunk[done:])
                return True, chunk[done].message_id
        return bool(unknown), None
