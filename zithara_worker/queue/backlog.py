"""What one worker has seen of one queue's line: who waits, in which group, and who may go next.

Pure memory: knows no SQL and no clock. The tables decide; this only says what to try, so that a claim reads neither
completed rows nor the messages of busy groups again and again. What is forgotten here is found again by a sweep.

A group keeps its first GROUP_LIMIT messages; of those behind them only the message ids, eight bytes each, so that a
hundred thousand messages of one waiting group neither fill the memory nor stop the reading for others.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import islice

from zithara_worker.messages import Event, Pending

#: Messages of one group that are kept whole; the next ones are looked up when these are gone.
GROUP_LIMIT = 1_000
#: Messages kept whole for all groups together, some 150 bytes each. Beyond it each group keeps its first one only; at
#: twice as many, which takes as many busy groups, reading on waits.
BACKLOG_LIMIT = 100_000
#: Messages behind the kept ones, 8 bytes each, at which reading on waits.
BEHIND_LIMIT = 4_000_000


class Backlog:
    """Pending messages by group, in message id order; groups are free (may be tried) or busy (known to be held)."""

    def __init__(self) -> None:
        self._groups: dict[str, list[Pending]] = {}
        self._behind: dict[str, array[int]] = {}  # group -> message ids behind those that are kept, ascending
        self._behind_count = 0
        self._busy: dict[str, bool] = {}  # group -> held by this very worker
        self._free: list[tuple[int, str]] = []  # heap over (message id of the head, group); stale pairs are skipped
        self._known: dict[int, Event | None] = {}  # message id -> what coalescing needs of its event
        self._recheck: dict[str, None] = {}  # groups busy elsewhere, in the order in which to look again

    def __len__(self) -> int:
        """How many messages wait here."""
        return len(self._known) + self._behind_count

    def __contains__(self, message_id: int) -> bool:
        """Whether the message is kept whole."""
        return message_id in self._known

    @property
    def full(self) -> bool:
        """Whether nothing more should be read ahead."""
        return len(self._known) >= 2 * BACKLOG_LIMIT or self._behind_count >= BEHIND_LIMIT

    def clear(self) -> None:
        """Forgets the messages; which groups are busy stays."""
        self._groups.clear()
        self._behind.clear()
        self._behind_count = 0
        self._free.clear()
        self._known.clear()

    def unknown(self, entries: Collection[Pending]) -> list[Pending]:
        """Those of `entries` that have not been seen, oldest first."""
        if not entries:
            return []
        first, last = min(entries).message_id, max(entries).message_id
        behind: set[int] = set()
        for ids in self._behind.values():
            behind.update(ids[bisect_left(ids, first) : bisect_right(ids, last)])
        return sorted(
            entry for entry in entries if entry.message_id not in self._known and entry.message_id not in behind
        )

    def add(self, group: str, entry: Pending, outline: Event | None = None) -> None:
        """A pending message has been seen. A late one finds its place by its id.

        `outline`: what coalescing will need of its event.
        """
        if entry.message_id in self._known:
            return
        behind = self._behind.get(group)
        if behind and entry.message_id >= behind[0]:
            self._put_behind(group, entry.message_id)
            return
        waiting = self._groups.setdefault(group, [])
        insort(waiting, entry)
        self._known[entry.message_id] = outline
        if len(waiting) > (GROUP_LIMIT if len(self._known) <= BACKLOG_LIMIT else 1):
            last = waiting.pop()
            del self._known[last.message_id]
            self._put_behind(group, last.message_id)
        if waiting[0] is entry and group not in self._busy:
            heappush(self._free, (entry.message_id, group))

    def _put_behind(self, group: str, message_id: int) -> None:
        behind = self._behind.setdefault(group, array("Q"))
        place = bisect_left(behind, message_id)
        if place == len(behind) or behind[place] != message_id:
            behind.insert(place, message_id)
            self._behind_count += 1

    def exhausted(self) -> tuple[str, Sequence[int]] | None:
        """A group of which only message ids are left, with the first of these; None: there is none."""
        for group, behind in self._behind.items():
            if group not in self._groups:
                return group, behind[:GROUP_LIMIT]
        return None

    def bring_up(self, group: str, message_ids: Sequence[int]) -> None:
        """The first message ids behind a group's kept messages have been looked up: those still pending are added."""
        behind = self._behind[group]
        del behind[: len(message_ids)]
        self._behind_count -= len(message_ids)
        if not behind:
            del self._behind[group]

    def outline(self, message_id: int) -> Event | None:
        """What coalescing needs of a waiting message's event."""
        return self._known.get(message_id)

    def offers(self, group: str, entry: Pending) -> bool:
        """Whether this message is the head of a free group."""
        waiting = self._groups.get(group)
        return waiting is not None and waiting[0] == entry and group not in self._busy

    @property
    def has_free(self) -> bool:
        """Whether some group may be tried (or was a moment ago)."""
        return bool(self._free)

    def heads(self) -> Iterator[tuple[str, Pending]]:
        """Heads of the free groups, lowest message id first. Iterate, decide, then tell what became of each.

        What is yielded is out of the heap: whoever does not claim, block or drop it puts it back with `put_back`.
        """
        seen: set[str] = set()
        while self._free:
            message_id, group = heappop(self._free)
            waiting = self._groups.get(group)
            if waiting is None or group in self._busy or group in seen or waiting[0].message_id != message_id:
                continue
            seen.add(group)
            yield group, waiting[0]

    def put_back(self, group: str) -> None:
        """The group was looked at and left as it is: it may be tried again."""
        waiting = self._groups.get(group)
        if waiting and group not in self._busy:
            heappush(self._free, (waiting[0].message_id, group))

    def waiting(self, group: str) -> tuple[Pending, ...]:
        """The messages of the group that are kept, oldest first."""
        return tuple(self._groups.get(group, ()))

    def first(self, group: str) -> int | None:
        """The message id of the oldest message of the group that waits here."""
        waiting = self._groups.get(group)
        if waiting:
            return waiting[0].message_id
        behind = self._behind.get(group)
        return behind[0] if behind else None

    def is_busy(self, group: str) -> bool:
        return group in self._busy

    def mark_ours(self, group: str) -> None:
        """This worker has won the group."""
        self._busy[group] = True

    def mark_busy(self, group: str) -> None:
        """The group is busy elsewhere, or waits for its retry: its messages stay parked until it is seen free."""
        if self._busy.get(group) is not False:
            self._busy[group] = False
            self._recheck[group] = None

    def mark_free(self, group: str) -> None:
        """The group is not busy any more."""
        self._busy.pop(group, None)
        self.put_back(group)

    def drop(self, group: str, message_ids: Iterable[int]) -> None:
        """These messages are not pending any more (or this worker has claimed them)."""
        waiting = self._groups.get(group)
        if waiting is None:
            return
        gone = set(message_ids)
        for message_id in gone:
            self._known.pop(message_id, None)
        waiting[:] = [entry for entry in waiting if entry.message_id not in gone]
        if not waiting:
            del self._groups[group]

    def busy_elsewhere(self, limit: int) -> list[str]:
        """Up to `limit` groups with parked messages that were last seen busy elsewhere; takes turns among them all."""
        result: list[str] = []
        for group in list(islice(self._recheck, 4 * limit)):
            if len(result) == limit:
                break
            del self._recheck[group]
            if self._busy.get(group) is not False:
                continue  # freed or won since: it is queued again when it blocks again
            if group not in self._groups and group not in self._behind:
                del self._busy[group]
                continue
            self._recheck[group] = None
            result.append(group)
        return result


def as_text(messages: Iterable[Pending]) -> str | None:
    """The text of the column zithara_message_group.supersedes, "id:message_id,..."; None for no messages."""
    return ",".join(f"{each.id}:{each.message_id}" for each in messages) or None


def from_text(text: str | None) -> tuple[Pending, ...]:
    """The messages that `as_text` wrote, in the same order."""
    pairs = (pair.partition(":") for pair in text.split(",")) if text else ()
    return tuple(Pending(int(message_id), int(id)) for id, _, message_id in pairs)
