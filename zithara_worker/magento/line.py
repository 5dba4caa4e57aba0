"""What one worker has seen of one queue's line: who waits, in which group, and who may go next.

Pure memory: knows no SQL and no clock. The tables decide; this only says what to try, so that a claim reads neither
completed rows nor the messages of busy groups again and again. What is forgotten here is found again by a sweep.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from itertools import islice
from typing import NamedTuple


class Entry(NamedTuple):
    """A pending message as the line knows it; entries sort by message id, the order of delivery within a group."""

    message_id: int
    id: int


class Line:
    """Pending messages by group, in message id order; groups are free (may be tried) or busy (known to be held)."""

    def __init__(self) -> None:
        self._groups: dict[str, deque[Entry]] = {}
        self._busy: dict[str, bool] = {}  # group -> held by this very worker
        self._free: list[tuple[int, str]] = []  # heap over (message id of the head, group); stale pairs are skipped
        self._known: set[int] = set()
        self._recheck: dict[str, None] = {}  # groups busy elsewhere, in the order in which to look again

    def __len__(self) -> int:
        """How many messages wait here."""
        return len(self._known)

    def __contains__(self, message_id: int) -> bool:
        return message_id in self._known

    def add(self, group: str, entry: Entry) -> None:
        """A pending message has been seen. A late one finds its place by its id."""
        if entry.message_id in self._known:
            return
        self._known.add(entry.message_id)
        waiting = self._groups.get(group)
        if waiting is None:
            waiting = self._groups[group] = deque()
        if waiting and waiting[-1] > entry:
            ordered = list(waiting)
            insort(ordered, entry)
            waiting = self._groups[group] = deque(ordered)
        else:
            waiting.append(entry)
        if waiting[0] is entry and group not in self._busy:
            heappush(self._free, (entry.message_id, group))

    @property
    def has_free(self) -> bool:
        """Whether some group may be tried (or was a moment ago)."""
        return bool(self._free)

    def heads(self) -> Iterator[tuple[str, Entry]]:
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

    def waiting(self, group: str) -> tuple[Entry, ...]:
        """All messages of the group that wait here, oldest first."""
        return tuple(self._groups.get(group, ()))

    def hold(self, group: str) -> None:
        """This worker has won the group."""
        self._busy[group] = True

    def block(self, group: str) -> None:
        """The group is busy elsewhere, or waits for its retry: its messages stay parked until it is seen free."""
        if self._busy.get(group) is not False:
            self._busy[group] = False
            self._recheck[group] = None

    def free(self, group: str) -> None:
        """The group is not busy any more."""
        self._busy.pop(group, None)
        self.put_back(group)

    def drop(self, group: str, message_ids: Iterable[int]) -> None:
        """These messages are not pending any more (or this worker has claimed them)."""
        waiting = self._groups.get(group)
        if waiting is None:
            return
        gone = set(message_ids)
        self._known -= gone
        if waiting[0].message_id in gone and len(gone) == 1:
            waiting.popleft()
        else:
            waiting = self._groups[group] = deque(entry for entry in waiting if entry.message_id not in gone)
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
            if group not in self._groups:
                del self._busy[group]
                continue
            self._recheck[group] = None
            result.append(group)
        return result
