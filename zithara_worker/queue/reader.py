"""Candidates: what one worker reads of one queue before it locks anything.

Plain reads only; nobody waits for them and they wait for nobody. A cursor moves forward through the message ids, so
that completed rows are read once; sweeps find what became visible behind it; the line keeps what was seen.

Every statement reads a bounded number of rows of this queue, whatever the ids: they are shared with all other queues of
the shop. What is decoded at a time is bounded in bytes, and lengths are read before bodies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from zithara_worker.database.session import Database
from zithara_worker.messages import Event, Pending, Rejection
from zithara_worker.queue.backlog import Backlog
from zithara_worker.reasons import BODY_TOO_LARGE

#: (topic, message id, body) -> (group key, content). Pure.
Identify = Callable[[str, int, str], tuple[str, Event | Rejection]]
#: What coalescing needs of an event, which is kept for each waiting message. Pure.
Outline = Callable[[Event], Event]

#: Rows of the queue that one statement reads at most: some 10 ms.
SLICE_ROWS = 10_000
#: Rows of the queue back to which a late commit is looked for at every read: a millisecond or two.
LOOK_BACK_ROWS = 2_000
#: Seconds back from which it is looked for, at every read and every sweep.
LATELY_SECONDS = 10
#: For one claim at most: statements that read ahead, and messages that are identified; for one sweep the latter.
READS_A_CLAIM = 10
IDENTIFIED_AT_ONCE = 2_000
#: Bodies of one statement: how many, and how many bytes together; a larger one is read by itself.
BODIES_A_STATEMENT = 100
READ_BYTES = 2_000_000
#: Bytes of bodies that one claim or sweep decodes to learn their groups; a larger one is decoded alone. An event takes
#: up to ten times the bytes of its body.
IDENTIFIED_BYTES = 2_000_000
#: Bytes of bodies that a worker holds at a time; one message whose body is larger may come on top of them.
BYTES_IN_HAND = 4_000_000
#: Bytes of bodies whose events are kept for the next claim.
KEPT_BYTES = 1_000_000
#: Parked groups that are looked up at once whether they are still busy.
RECHECK = 500


class DecodedBody(NamedTuple):
    """A body, decoded: its message group, the event or why there is none, and its length in bytes."""

    group: str
    content: Event | Rejection
    length: int


class Slice(NamedTuple):
    """Pending messages of a stretch of the queue, oldest first; the message id up to which it was read, and whether
    there is more behind it."""

    entries: list[Pending]
    up_to: int
    more: bool


class Reader:
    """One worker's view of one queue's line. Not thread-safe.

    `outline`: coalesce, judging by what it keeps of an event; None: nothing is kept.
    """

    def __init__(
        self,
        database: Database,
        *,
        queue_id: int,
        identify: Identify,
        monotonic: Callable[[], float],
        outline: Outline | None = None,
    ) -> None:
        self.backlog = Backlog()
        self.contents: dict[int, DecodedBody] = {}
        #: Whether the last look for heads got further in the queue
        self.moved = False
        #: Whether a body larger than BYTES_IN_HAND may be decoded: not while one is in hand
        self.may_read_large = True
        self._database = database
        self._queue_id = queue_id
        self._identify = identify
        self._monotonic = monotonic
        self._outline = outline
        self._generation = 0
        self._cursor: int | None = None
        self._newest = 0
        self._rows_at_once = 0
        self._sweep_from = 0
        self._sweep_to = 0
        #: What may still be identified in this claim or sweep
        self._room_bytes = self._room_messages = 0
        #: (monotonic time, cursor) marks of the last seconds, oldest first
        self._marks: list[tuple[float, int]] = []

    def check_session(self) -> None:
        """Forgets all that is known by message id when the session is a new one.

        After a failover that lost the last transactions, other messages get the ids of those that vanished.
        """
        _ = self._database.has_pending_index  # opens the session, if it is not open
        if self._generation != self._database.generation:
            self._generation = self._database.generation
            self.backlog.clear()
            self.contents.clear()
            self._marks.clear()
            self._cursor = None
            self._newest = self._rows_at_once = self._sweep_from = self._sweep_to = 0

    def update_from_poll(self, newest: int) -> None:
        """The highest message id that the last poll saw."""
        self.check_session()
        self._newest = max(self._newest, newest)
        if self._cursor is not None:
            now = self._monotonic()
            while len(self._marks) > 1 and self._marks[1][0] <= now - LATELY_SECONDS:
                self._marks.pop(0)
            if self._marks[-1][1] != self._cursor:
                self._marks.append((now, self._cursor))

    @property
    def may_have_work(self) -> bool:
        """Whether there is something to read or to try."""
        return self.backlog.has_free or self.backlog.exhausted() is not None or self._has_more

    @property
    def _has_more(self) -> bool:
        return (self._cursor is None or self._newest > self._cursor) and not self.backlog.full

    def heads(self, wanted: int, but: Collection[str]) -> list[tuple[str, Pending]]:
        """Up to `wanted` heads of free groups other than `but`, reading on behind the cursor as needed.

        They are out of the line's heap: whoever does not claim or drop one puts it back.
        """
        heads: dict[str, Pending] = {}
        skipped: list[str] = []
        self.moved = False
        self._room_bytes, self._room_messages = IDENTIFIED_BYTES, IDENTIFIED_AT_ONCE
        read = max(wanted, 50)
        try:
            for _ in range(READS_A_CLAIM):
                for group, entry in self.backlog.heads():
                    if group in but:
                        skipped.append(group)
                        continue
                    # Once more than before, if reading on brought an older message of the group to light.
                    heads[group] = entry
                    if len(heads) >= wanted:
                        return list(heads.items())
                if self._room_bytes <= 0 or self._room_messages <= 0 or not self._read_on(read):
                    break
                read = min(2 * read, IDENTIFIED_AT_ONCE)
            return list(heads.items())
        except BaseException:
            skipped += heads
            raise
        finally:
            for group in skipped:
                self.backlog.put_back(group)

    def sweep(self) -> bool:
        """Looks for pending messages that became visible behind the cursor, a stretch at a time; whether it found any.

        First what lies a few seconds back, where a checkout that took longer commits; then on through the whole queue,
        round and round. A round ends where the cursor stood when it began, so it ends however fast the cursor moves.
        """
        self.check_session()
        if not self._cursor:
            return False
        self._room_bytes, self._room_messages = IDENTIFIED_BYTES, IDENTIFIED_AT_ONCE
        found = False
        if self._lately() < self._cursor:
            found, _ = self._take_in(self._look_back(SLICE_ROWS, up_to=self._cursor))
        if self._sweep_from >= self._sweep_to:
            self._sweep_from, self._sweep_to = 0, self._cursor
        stretch = self._slice(self._sweep_from, SLICE_ROWS, up_to=self._sweep_to)
        any_here, left = self._take_in(stretch.entries)
        self._sweep_from = stretch.up_to if left is None else left - 1
        return found or any_here

    def sweep_all(self) -> None:
        """A whole round of the sweep at once: before `--stop-when-empty` believes that nothing is left."""
        self._sweep_from = self._sweep_to = 0
        self.sweep()
        while self._sweep_from < self._sweep_to:
            self.sweep()

    def recheck(self) -> list[dict[str, Any]]:
        """The rows of the groups that were busy elsewhere and still are; some hundred are looked at, in turns."""
        groups = self.backlog.busy_elsewhere(RECHECK)
        rows = self._busy(groups)
        for group in set(groups) - {row["group_key"] for row in rows}:
            self.backlog.mark_free(group)
        return rows

    def park_busy(self, groups: Collection[str]) -> set[str]:
        """Which of these groups are busy elsewhere; their messages are parked."""
        busy = {row["group_key"] for row in self._busy(groups)}
        for group in busy:
            self.backlog.mark_busy(group)
        return busy

    def _busy(self, groups: Collection[str]) -> list[dict[str, Any]]:
        if not groups:
            return []
        return self._database.rows("groups_busy", queue_id=self._queue_id, group_keys=list(groups))

    # ---------------------------------------------------------------- reading ahead

    def _read_on(self, wanted: int) -> bool:
        """Takes more pending messages into the line; whether it got any further."""
        exhausted = self.backlog.exhausted()
        if exhausted is not None:
            self._bring_up(*exhausted)
            return True
        if not self._has_more:
            return False
        moved = self._read_forward(wanted)
        self.moved = self.moved or moved
        return moved

    def _read_forward(self, wanted: int) -> bool:
        if self._cursor is None:
            self._cursor = 0
            self._marks.append((self._monotonic(), 0))
        newest, before = self._newest, self._cursor
        rows = min(SLICE_ROWS, max(wanted, self._rows_at_once))
        stretch = self._slice(before, rows)
        # Where little is pending among many completed rows, the next stretch is longer.
        sparse = stretch.more and len(stretch.entries) < wanted // 2
        self._rows_at_once = 4 * rows if sparse else 0
        entries, up_to, more = stretch
        if len(entries) > wanted:
            entries, up_to, more = entries[:wanted], entries[wanted - 1].message_id, True
        if entries and before:
            # A message of a long transaction can have become visible behind the cursor, and the next one of its group
            # in front of it: whoever sees the newer one must have looked for the older one since.
            _, left = self._take_in(self._look_back(LOOK_BACK_ROWS, up_to=before))
            if left is not None:
                return True
        _, left = self._take_in(entries)
        if left is not None:
            up_to, more = left - 1, True
        # Where nothing pending is left: what is committed below this point later, the sweep finds.
        self._cursor = up_to if more else max(before, newest, up_to)
        self._newest = max(self._newest, self._cursor + more)
        return self._cursor > before

    def _bring_up(self, group: str, message_ids: Sequence[int]) -> None:
        """The next messages of a group of which only message ids were kept."""
        rows = self._database.rows("pending_of", queue_id=self._queue_id, message_ids=list(message_ids))
        entries = sorted(Pending.from_row(row) for row in rows)
        outlines: dict[int, Event | None] = {}
        if self._outline is not None:
            for start in range(0, len(entries), BODIES_A_STATEMENT):
                chunk = entries[start : start + BODIES_A_STATEMENT]
                done = self.read_contents(chunk, self._room_bytes)
                outlines |= {entry.message_id: self._outlined(entry) for entry in chunk[:done]}
                self._forget(chunk)
                if done < len(chunk) or self._room_bytes <= 0:
                    entries = entries[: start + done]
                    message_ids = [each for each in message_ids if each <= entries[-1].message_id]
                    break
        self.backlog.bring_up(group, message_ids)
        for entry in entries:
            self.backlog.add(group, entry, outlines.get(entry.message_id))

    def _slice(self, after: int, rows: int, *, up_to: int | None = None) -> Slice:
        """The pending ones of the next `rows` messages of the queue; with the optional index the next `rows` pending
        ones."""
        values = {"queue_id": self._queue_id, "after": after, "up_to": 2**63 - 1 if up_to is None else up_to}
        if self._database.has_pending_index:
            found = self._database.rows("pending_slice", limit=rows, **values)
            entries = [Pending.from_row(row) for row in found]
            more = len(entries) == rows
            last = entries[-1].message_id if entries else after
        else:
            found = self._database.rows("slice", limit=rows, **values)
            entries = sorted(Pending.from_row(row) for row in found if int(row["id"]))
            more = sum(int(row["seen"]) for row in found) == rows
            last = max((int(row["message_id"]) for row in found), default=after)
        return Slice(entries, last if more or up_to is None else up_to, more)

    def _look_back(self, rows: int, *, up_to: int) -> list[Pending]:
        """Pending messages that the cursor has passed in the last seconds: of the last `rows` messages of the queue."""
        if self._database.has_pending_index:
            return self._slice(self._lately(), rows, up_to=up_to).entries
        found = self._database.rows("look_back", queue_id=self._queue_id, after=self._lately(), up_to=up_to, limit=rows)
        return [Pending.from_row(row) for row in found]

    def look_back(self) -> None:
        """Takes in what has become visible a short way behind the cursor."""
        if self._cursor:
            self._room_bytes, self._room_messages = IDENTIFIED_BYTES, IDENTIFIED_AT_ONCE
            self._take_in(self._look_back(LOOK_BACK_ROWS, up_to=self._cursor))

    def _lately(self) -> int:
        """Where the cursor stood some seconds ago; 0 where that is not known."""
        return self._marks[0][1] if self._marks else 0

    # ---------------------------------------------------------------- bodies

    def _take_in(self, entries: Collection[Pending]) -> tuple[bool, int | None]:
        """Identifies messages that the line does not know and adds them, oldest first.

        Whether there were any, and the message id of the first that is left for the next time, because this claim or
        sweep has identified enough. The heads of waiting groups are known to zithara_message_group and come from there:
        their group is busy.
        """
        unknown = self.backlog.unknown(entries)
        for start in range(0, len(unknown), BODIES_A_STATEMENT):
            chunk = unknown[start : start + BODIES_A_STATEMENT]
            if start and (self._room_bytes <= 0 or self._room_messages <= 0):
                return True, chunk[0].message_id
            done = self.read_contents(chunk, self._room_bytes)
            for entry in chunk[:done]:
                content = self.contents.get(entry.message_id)
                if content is not None:
                    self.backlog.add(content.group, entry, self._outlined(entry))
                    self._room_bytes -= content.length
                    if not self.backlog.offers(content.group, entry):
                        del self.contents[entry.message_id]
            self._room_messages -= done
            if done < len(chunk):
                self._forget(chunk[done:])
                return True, chunk[done].message_id
        return bool(unknown), None

    def _outlined(self, entry: Pending) -> Event | None:
        content = self.contents.get(entry.message_id)
        if self._outline is None or content is None or not isinstance(content.content, Event):
            return None
        return self._outline(content.content)

    def read_contents(self, entries: Sequence[Pending], room: int) -> int:
        """Reads and decodes the bodies of the first of these that fit into `room` bytes together; how many those are.

        The first one is read whatever its length, so that whoever comes again gets on; but for one larger than
        BYTES_IN_HAND while another is in hand. A message that is gone from
        queue_message counts, and has no contents.
        """
        unread = self._read_small(entries)
        taken = 0
        for position, entry in enumerate(entries):
            length = self._length(entry, unread)
            if (taken and taken + length > room) or (length > BYTES_IN_HAND and not self.may_read_large):
                return position
            self._read_large(entry, unread)
            taken += length
        return len(entries)

    def read_for_claim(self, entries: Sequence[Pending], *, room: int, large: bool) -> set[Pending]:
        """Reads the bodies of messages that are to be claimed; those that are left because there is no room for them.

        The first that does not fit into `room` bytes ends it, so that it is the next one. A body of more than
        BYTES_IN_HAND takes no part in that: one is read if `large`, the others are passed over.
        """
        unread = self._read_small(entries)
        left: set[Pending] = set()
        for position, entry in enumerate(entries):
            length = self._length(entry, unread)
            if length > BYTES_IN_HAND:
                if not large:
                    left.add(entry)
                    continue
                large = False
            elif length > room:
                return left.union(entries[position:])
            else:
                room -= length
            self._read_large(entry, unread)
        return left

    def outlines(self, entries: Sequence[Pending]) -> dict[int, Event]:
        """What coalescing needs of these messages: of those in the line, and of heads that wait in the table, whose
        bodies are read for it."""
        known = {entry.message_id: self.backlog.outline(entry.message_id) for entry in entries}
        heads = [entry for entry in entries if entry.message_id not in self.backlog]
        self.read_contents(heads, IDENTIFIED_BYTES)
        known |= {entry.message_id: self._outlined(entry) for entry in heads}
        return {message_id: outline for message_id, outline in known.items() if outline is not None}

    def _read_small(self, entries: Sequence[Pending]) -> dict[int, tuple[str, int]]:
        """Reads and decodes small bodies; topic and length of those that are too large to be read unasked."""
        unread: dict[int, tuple[str, int]] = {}
        missing = [entry.message_id for entry in entries if entry.message_id not in self.contents]
        for start in range(0, len(missing), BODIES_A_STATEMENT):
            some = missing[start : start + BODIES_A_STATEMENT]
            for row in self._database.rows("bodies", message_ids=some, large=READ_BYTES // len(some)):
                message_id, topic, length = int(row["id"]), str(row["topic_name"] or ""), int(row["bytes"] or 0)
                if row["body"] is None and length:
                    unread[message_id] = (topic, length)
                else:
                    self._keep(message_id, topic, length, _text(row["body"]))
        return unread

    def _length(self, entry: Pending, unread: Mapping[int, tuple[str, int]]) -> int:
        """0 for a message that is gone from queue_message."""
        content = self.contents.get(entry.message_id)
        return content.length if content else unread.get(entry.message_id, ("", 0))[1]

    def _read_large(self, entry: Pending, unread: Mapping[int, tuple[str, int]]) -> None:
        if entry.message_id in self.contents or entry.message_id not in unread:
            return
        message_id, (topic, length) = entry.message_id, unread[entry.message_id]
        if length + 4096 > self._database.max_allowed_packet:
            rejection = _too_large(length, self._database.max_allowed_packet)
            self.contents[message_id] = DecodedBody(f"message:{message_id}", rejection, length)
            return
        for row in self._database.rows("bodies", message_ids=[message_id], large=length):
            self._keep(message_id, topic, length, _text(row["body"]))

    def _keep(self, message_id: int, topic: str, length: int, body: str) -> None:
        self.contents[message_id] = DecodedBody(*self._identify(topic, message_id, body), length)

    def _forget(self, entries: Sequence[Pending]) -> None:
        for entry in entries:
            self.contents.pop(entry.message_id, None)

    def forget_contents(self) -> None:
        """Keeps a few decoded messages that still wait, for the next claim."""
        kept: dict[int, DecodedBody] = {}
        room = KEPT_BYTES
        for message_id, content in self.contents.items():
            room -= content.length
            if room < 0:
                break
            if message_id in self.backlog:
                kept[message_id] = content
        self.contents = kept


def _text(body: str | bytes | None) -> str:
    """A body as text; bytes that are no UTF-8, in a column that is no text, become what is no JSON either."""
    return body.decode("utf-8", "backslashreplace") if isinstance(body, bytes) else body or ""


def _too_large(length: int, allowed: int) -> Rejection:
    # In MiB: a number of bytes has so many digits that it would be masked as a telephone number.
    return Rejection(
        code=BODY_TOO_LARGE,
        detail=f"the body has {length / 2**20:.1f} MiB and the server's max_allowed_packet is {allowed / 2**20:.1f}: "
        "raise it, then 'zithara-worker failed retry'",
    )
