"""The backlog: the waiting messages of one queue that this worker has seen, by group.

It is memory only, without SQL and without a clock. The tables decide what may be claimed; the backlog says what to try,
so that a claim does not read completed rows, or the messages of busy groups, again and again. What is lost from here is
found again by a sweep (`reader`).

A group keeps its first GROUP_LIMIT messages. Of the messages after them it keeps only the message ids, eight bytes
each, so that a hundred thousand messages of one waiting group neither fill the memory nor stop the reading for other
groups.
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
#: Messages that are kept whole for all groups together, some 150 bytes each. Beyond it each group keeps its first one
#: only. At twice as many, which takes as many busy groups, nothing more is read ahead.
BACKLOG_LIMIT = 100_000
#: Message ids that are kept for all groups together, 8 bytes each, at which nothing more is read ahead.
OVERFLOW_LIMIT = 4_000_000


class Backlog:
    """Pending messages by group, in the order of message ids.

    A group is free (it may be tried) or busy: this worker holds it, or it was last seen held elsewhere or waiting.
    """

    def __init__(self) -> None:
        self._groups: dict[str, list[Pending]] = {}
        self._overflow: dict[str, array[int]] = {}  # group -> message ids after those that are kept whole, ascending
        self._overflow_count = 0
        self._ours: set[str] = set()  # groups that this worker holds
        self._elsewhere: dict[str, None] = {}  # groups busy elsewhere, in the order in which to look again
        # Heap over (message id of the head, group). Each free group's head is in it, or in `_offered`. Pairs that are
        # no longer true are skipped.
        self._free: list[tuple[int, str]] = []
        self._offered: list[str] = []  # groups that `heads` took out of the heap
        self._known: dict[int, Event | None] = {}  # message id -> what coalescing needs of its event

    def __len__(self) -> int:
        """How many messages wait here."""
        return len(self._known) + self._overflow_count

    def __contains__(self, message_id: object) -> bool:
        """Whether the message is kept whole."""
        return message_id in self._known

    @property
    def full(self) -> bool:
        """Whether nothing more should be read ahead."""
        return len(self._known) >= 2 * BACKLOG_LIMIT or self._overflow_count >= OVERFLOW_LIMIT

    def clear(self) -> None:
        """Forgets the messages, and remembers which groups are busy."""
        self._groups.clear()
        self._overflow.clear()
        self._overflow_count = 0
        self._free.clear()
        self._offered.clear()
        self._known.clear()

    # ---------------------------------------------------------------- messages

    def unknown(self, messages: Collection[Pending]) -> list[Pending]:
        """Those of `messages` that have not been seen, oldest first."""
        if not messages:
            return []
        first, last = min(messages).message_id, max(messages).message_id
        overflow: set[int] = set()
        for ids in self._overflow.values():
            overflow.update(ids[bisect_left(ids, first) : bisect_right(ids, last)])
        return sorted(
            each for each in messages if each.message_id not in self._known and each.message_id not in overflow
        )

    def add(self, group: str, message: Pending, outline: Event | None = None) -> None:
        """Adds a pending message at its place in the order of message ids.

        `outline`: what coalescing will need of its event.
        """
        if message.message_id in self._known:
            return
        overflow = self._overflow.get(group)
        if overflow and message.message_id >= overflow[0]:
            self._add_overflow(group, message.message_id)
            return
        waiting = self._groups.setdefault(group, [])
        insort(waiting, message)
        self._known[message.message_id] = outline
        if len(waiting) > (GROUP_LIMIT if len(self._known) <= BACKLOG_LIMIT else 1):
            last = waiting.pop()
            del self._known[last.message_id]
            self._add_overflow(group, last.message_id)
        if waiting[0] is message:
            self._push(group)

    def _add_overflow(self, group: str, message_id: int) -> None:
        ids = self._overflow.setdefault(group, array("Q"))
        place = bisect_left(ids, message_id)
        if place == len(ids) or ids[place] != message_id:
            ids.insert(place, message_id)
            self._overflow_count += 1

    def overflow_to_read(self) -> tuple[str, Sequence[int]] | None:
        """A group of which only message ids are left, and the first of these; None: there is none."""
        for group, ids in self._overflow.items():
            if group not in self._groups:
                return group, ids[:GROUP_LIMIT]
        return None

    def forget_overflow(self, group: str, count: int) -> None:
        """Forgets the first `count` message ids of the group's overflow: they have been read, and are added next."""
        ids = self._overflow[group]
        del ids[:count]
        self._overflow_count -= count
        if not ids:
            del self._overflow[group]

    def drop(self, group: str, message_ids: Iterable[int]) -> None:
        """Removes messages that are not pending any more, or that this worker has claimed."""
        waiting = self._groups.get(group)
        if waiting is None:
            return
        gone = set(message_ids)
        for message_id in gone:
            self._known.pop(message_id, None)
        head = waiting[0]
        waiting[:] = [each for each in waiting if each.message_id not in gone]
        if not waiting:
            del self._groups[group]
        elif waiting[0] is not head:
            self._push(group)

    def outline(self, message_id: int) -> Event | None:
        """What coalescing needs of a waiting message's event."""
        return self._known.get(message_id)

    def waiting(self, group: str) -> Sequence[Pending]:
        """The messages of the group that are kept whole, oldest first."""
        return tuple(self._groups.get(group, ()))

    def first(self, group: str) -> int | None:
        """The message id of the group's oldest message."""
        waiting = self._groups.get(group)
        if waiting:
            return waiting[0].message_id
        overflow = self._overflow.get(group)
        return overflow[0] if overflow else None

    # ---------------------------------------------------------------- groups

    @property
    def has_free(self) -> bool:
        """Whether some group may be tried, or could be tried a moment ago."""
        return bool(self._free)

    def is_next(self, group: str, message: Pending) -> bool:
        """Whether this message is the head of a free group."""
        waiting = self._groups.get(group)
        return waiting is not None and waiting[0] == message and not self._is_busy(group)

    def heads(self) -> Iterator[tuple[str, Pending]]:
        """The heads of the free groups, lowest message id first; each once until `put_back_heads` is called."""
        seen: set[str] = set()
        while self._free:
            message_id, group = heappop(self._free)
            waiting = self._groups.get(group)
            if not waiting or waiting[0].message_id != message_id or group in seen or self._is_busy(group):
                continue
            seen.add(group)
            self._offered.append(group)
            yield group, waiting[0]

    def update_from_claim(
        self,
        *,
        claimed: Iterable[tuple[str, Pending]],
        busy: Iterable[str],
        gone: Iterable[tuple[str, Pending]],
    ) -> None:
        """A claim took messages, found groups that another worker won, and messages that are not pending any more."""
        for group, message in claimed:
            self.mark_ours(group)
            self.drop(group, [message.message_id])
        for group in busy:
            self.mark_busy(group)
        for group, message in gone:
            self.drop(group, [message.message_id])
        self.put_back_heads()

    def put_back_heads(self) -> None:
        """Lets the groups that `heads` yielded, and that are still free, be tried again."""
        for group in self._offered:
            self._push(group)
        self._offered.clear()

    def _push(self, group: str) -> None:
        waiting = self._groups.get(group)
        if waiting and not self._is_busy(group):
            heappush(self._free, (waiting[0].message_id, group))

    def _is_busy(self, group: str) -> bool:
        return group in self._ours or group in self._elsewhere

    def mark_ours(self, group: str) -> None:
        """This worker has won the group."""
        self._ours.add(group)
        self._elsewhere.pop(group, None)

    def mark_busy(self, group: str) -> None:
        """The group is held elsewhere, or waits for its retry: its messages are not tried until it is seen free."""
        self._ours.discard(group)
        self._elsewhere.setdefault(group)

    def mark_free(self, group: str) -> None:
        """The group is not busy any more."""
        self._ours.discard(group)
        self._elsewhere.pop(group, None)
        self._push(group)

    def busy_elsewhere(self, limit: int) -> list[str]:
        """Up to `limit` groups with waiting messages that were last seen busy elsewhere; calls take turns among all."""
        result: list[str] = []
        for group in list(islice(self._elsewhere, 4 * limit)):
            if len(result) == limit:
                break
            del self._elsewhere[group]
            if group in self._groups or group in self._overflow:
                self._elsewhere[group] = None
                result.append(group)
        return result


def as_text(messages: Iterable[Pending]) -> str | None:
    """The text of the column zithara_message_group.supersedes, "id:message_id,..."; None for no messages."""
    return ",".join(f"{each.id}:{each.message_id}" for each in messages) or None


def from_text(text: str | None) -> tuple[Pending, ...]:
    """The messages that `as_text` wrote, in the same order."""
    pairs = (pair.partition(":") for pair in text.split(",")) if text else ()
    return tuple(Pending(int(message_id), int(id)) for id, _, message_id in pairs)
