"""Candidates: what one worker reads of one queue before it locks anything.

Plain reads only; nobody waits for them and they wait for nobody. A cursor moves forward through the message ids, so
that completed rows are read once; sweeps find what became visible behind it; the line keeps what was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from zithara_worker.magento.database import Database
from zithara_worker.magento.line import Entry, Line
from zithara_worker.messages import Event, Rejection

#: (topic, message id, body) -> (group key, content). Pure.
Identify = Callable[[str, int, str], tuple[str, Event | Rejection]]

#: Bytes above which a body is read by itself.
LARGE_BODY = 1_000_000
#: Parked messages (of busy groups) up to which the line reads on; some 120 bytes each.
PARKED_LIMIT = 100_000
#: Reads of one claim behind the cursor at most, so that a turn of the loop stays short.
READS_A_CLAIM = 10
#: Message ids that one slice of a sweep covers without the optional index: some 10 ms of completed rows.
SWEEP_RANGE = 10_000
#: Seconds back from which a checkout's late commit is looked for at every sweep.
LATELY_SECONDS = 10
#: Message ids back to which it is looked for at every read as well: a millisecond or two of completed rows.
LOOK_BACK = 2_000
#: Decoded messages that are kept for the next claim, and the length of body up to which one is.
KEPT_CONTENTS = 400
KEPT_LENGTH = 50_000
#: Parked groups that are looked up at once whether they are still busy.
RECHECK = 500


class Content(NamedTuple):
    """A body, decoded: its message group, the event or why there is none, and its length in bytes."""

    group: str
    content: Event | Rejection
    length: int


class Reader:
    """One worker's view of one queue's line. Not thread-safe."""

    def __init__(
        self, database: Database, *, queue_id: int, identify: Identify, monotonic: Callable[[], float]
    ) -> None:
        self.line = Line()
        self.contents: dict[int, Content] = {}
        self._database = database
        self._queue_id = queue_id
        self._identify = identify
        self._monotonic = monotonic
        self._cursor: int | None = None
        self._newest = 0
        self._sweep_from = 0
        #: (monotonic time, cursor) marks of the last seconds, oldest first
        self._marks: list[tuple[float, int]] = []

    def notice(self, newest: int) -> None:
        """The highest message id that the last poll saw."""
        self._newest = max(self._newest, newest)

    @property
    def promising(self) -> bool:
        """Whether there is something to read or to try."""
        return self._cursor is None or self._newest > self._cursor or self.line.has_free

    def heads(self, wanted: int, but: Collection[str]) -> list[tuple[str, Entry]]:
        """Up to `wanted` heads of free groups other than `but`, reading on behind the cursor as needed.

        They are out of the line's heap: whoever does not claim or drop one puts it back.
        """
        heads: dict[str, Entry] = {}
        skipped: list[str] = []
        try:
            for _ in range(READS_A_CLAIM):
                for group, entry in self.line.heads():
                    if group in but:
                        skipped.append(group)
                        continue
                    # Once more than before, if reading on brought an older message of the group to light.
                    heads[group] = entry
                    if len(heads) >= wanted:
                        return list(heads.items())
                if not self._read_forward(max(wanted, 50)):
                    break
            return list(heads.items())
        except BaseException:
            skipped += heads
            raise
        finally:
            for group in skipped:
                self.line.put_back(group)

    def sweep(self) -> bool:
        """Looks for pending messages that became visible behind the cursor, one short range at a time.

        First what lies a few seconds back, where a checkout that took longer commits; then on through the whole queue,
        round and round. Whether it found any.
        """
        if self._cursor is None:
            return False
        now = self._monotonic()
        while len(self._marks) > 1 and self._marks[1][0] <= now - LATELY_SECONDS:
            self._marks.pop(0)
        found = False
        lately = max(self._lately(), self._cursor - SWEEP_RANGE) if self._marks else self._cursor
        if lately < self._cursor:
            found = self._take_in(self._between(lately, self._cursor))
        if not self._marks or self._marks[-1][1] != self._cursor:
            self._marks.append((now, self._cursor))
        elif len(self._marks) == 1:
            self._marks[0] = (now, self._cursor)
        if self._sweep_from >= self._cursor:
            self._sweep_from = 0
        if self._sweep_from == 0:
            first = self._database.rows("sweep_first", queue_id=self._queue_id)
            self._sweep_from = max(0, int(first[0]["message_id"]) - 1) if first else self._cursor
        up_to = min(self._cursor, self._sweep_from + SWEEP_RANGE)
        if self._database.has_pending_index:
            up_to = self._cursor
        found = self._take_in(self._between(self._sweep_from, up_to)) or found
        self._sweep_from = up_to
        return found

    def sweep_all(self) -> None:
        """A whole round of the sweep at once: before `--stop-when-empty` believes that nothing is left."""
        if self._cursor is None:
            return
        self._sweep_from = 0
        self.sweep()
        while self._sweep_from < self._cursor:
            self.sweep()

    def recheck(self) -> None:
        """Looks which of the groups that were busy elsewhere still are, some hundred at a time, in turns."""
        groups = self.line.busy_elsewhere(RECHECK)
        for group in set(groups) - self._busy(groups):
            self.line.free(group)

    def park_busy(self, groups: Collection[str]) -> set[str]:
        """Which of these groups are busy elsewhere; their messages are parked."""
        busy = self._busy(groups)
        for group in busy:
            self.line.block(group)
        return busy

    def _busy(self, groups: Collection[str]) -> set[str]:
        if not groups:
            return set()
        rows = self._database.rows("groups_busy", queue_id=self._queue_id, group_keys=list(groups))
        return {row["group_key"] for row in rows}

    def _read_forward(self, limit: int) -> bool:
        """Takes the next pending messages behind the cursor into the line; whether there were any."""
        if self._cursor is None:
            self._cursor = self._first_cursor()
            self._marks.append((self._monotonic(), 0))
        elif self._newest <= self._cursor:
            return False
        if len(self.line) >= PARKED_LIMIT:
            return False
        newest, before = self._newest, self._cursor
        rows = self._database.rows("read_forward", queue_id=self._queue_id, after=before, limit=limit)
        entries = [Entry(message_id=int(row["message_id"]), id=int(row["id"])) for row in rows]
        if entries and before:
            # A message of a long transaction can have become visible behind the cursor, and the next one of its group
            # in front of it: whoever sees the newer one must have looked for the older one since.
            entries += self._lately_committed(before)
        self._take_in(entries)
        if len(rows) == limit:
            self._cursor = int(rows[-1]["message_id"])
            self._newest = max(self._newest, self._cursor + 1)
            return True
        # Nothing pending is left up to here. What is committed below this point later, the sweep finds.
        self._cursor = max([self._cursor, newest, *(int(row["message_id"]) for row in rows)])
        self._newest = max(self._newest, self._cursor)
        return bool(rows)

    def look_back(self) -> None:
        """Takes in what has become visible a short way behind the cursor."""
        if self._cursor:
            self._take_in(self._lately_committed(self._cursor))

    def _lately_committed(self, before: int) -> list[Entry]:
        return self._between(max(self._lately(), before - LOOK_BACK), before)

    def _lately(self) -> int:
        """Where the cursor stood some seconds ago; 0 where that is not known."""
        return self._marks[0][1] if self._marks else 0

    def _first_cursor(self) -> int:
        if not self._database.has_pending_index:
            return 0
        first = self._database.rows("first_pending", queue_id=self._queue_id)[0]["message_id"]
        return int(first) - 1 if first is not None else self._newest

    def _between(self, after: int, up_to: int) -> list[Entry]:
        statement = "sweep_pending" if self._database.has_pending_index else "sweep_range"
        rows = self._database.rows(statement, queue_id=self._queue_id, after=after, up_to=up_to, limit=PARKED_LIMIT)
        return [Entry(message_id=int(row["message_id"]), id=int(row["id"])) for row in rows]

    def _take_in(self, entries: Iterable[Entry]) -> bool:
        """Identifies messages that the line does not know and adds them; whether there were any.

        The heads of waiting groups are known to zithara_message_group and come from there: their group is busy.
        """
        unknown = [entry for entry in entries if entry.message_id not in self.line]
        for start in range(0, len(unknown), 1000):
            self.read_contents(unknown[start : start + 1000])
            for entry in unknown[start : start + 1000]:
                content = self.contents.get(entry.message_id)
                if content is not None:
                    self.line.add(content.group, entry)
            if len(unknown) > 1000:
                self.contents.clear()  # a long sweep's find: bodies are read again when their turn comes
        return bool(unknown)

    def read_contents(self, entries: Sequence[Entry]) -> None:
        missing = [entry.message_id for entry in entries if entry.message_id not in self.contents]
        if not missing:
            return
        for row in self._database.rows("bodies", message_ids=missing, large=LARGE_BODY):
            message_id, topic, length = int(row["id"]), str(row["topic_name"] or ""), int(row["bytes"] or 0)
            body = row["body"]
            if length > LARGE_BODY:
                body = self._large_body(message_id, length)
            group: str
            content: Event | Rejection
            if body is None and length > LARGE_BODY:
                group, content = f"message:{message_id}", _too_large(length, self._database.max_allowed_packet)
            else:
                group, content = self._identify(topic, message_id, body or "")
            self.contents[message_id] = Content(group, content, length)

    def _large_body(self, message_id: int, length: int) -> str | None:
        if length + 4096 > self._database.max_allowed_packet:
            return None
        rows = self._database.rows("body", message_id=message_id)
        return str(rows[0]["body"]) if rows else ""

    def forget_contents(self) -> None:
        """Keeps a few decoded messages that still wait, for the next claim."""
        kept = (message_id for message_id in self.contents if message_id in self.line)
        self.contents = {
            message_id: self.contents[message_id]
            for message_id in islice(kept, KEPT_CONTENTS)
            if self.contents[message_id].length < KEPT_LENGTH
        }


def _too_large(length: int, allowed: int) -> Rejection:
    return Rejection(
        code="body_too_large",
        detail=f"the body has {length} bytes and the server's max_allowed_packet is {allowed}: raise it, "
        "then 'zithara-worker failed retry'",
    )
