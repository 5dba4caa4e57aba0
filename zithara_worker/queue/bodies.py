"""The bodies of pending messages: read in batches, decoded, and kept within limits of bytes.

Lengths are read before bodies, so that neither a statement nor the memory takes more bytes than it may. Plain reads:
nobody waits for them, and they wait for nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import NamedTuple

from zithara_worker.database.session import Database
from zithara_worker.messages import Event, Pending, Rejection
from zithara_worker.queue.queues import body_text
from zithara_worker.reasons import BODY_TOO_LARGE

#: (topic, message id, body) -> (group key, event or rejection). Pure.
Identify = Callable[[str, int, str], tuple[str, Event | Rejection]]
#: What coalescing needs of an event; it is kept for each waiting message. Pure.
Outline = Callable[[Event], Event]

#: Bodies of one statement: how many, and how many bytes together. A larger body is read by a statement of its own.
BODIES_A_STATEMENT = 100
READ_BYTES = 2_000_000
#: Bytes of bodies that one statement lets the server read. LENGTH() reads the whole body: with 100 bodies of 10 MB a
#: statement took 8 s, and each claim needs two. Where bodies are large, a statement asks for fewer of them.
MEASURED_BYTES = 8_000_000
#: Bytes of bodies that a worker holds at a time. One message whose body is larger may be held in addition.
BYTES_IN_HAND = 4_000_000
#: Bytes of bodies whose events are kept for the next claim.
KEPT_BYTES = 1_000_000


class DecodedBody(NamedTuple):
    """What a body says: its message group, and the event or why there is none. `length`: bytes of the body."""

    group: str
    content: Event | Rejection
    length: int


class Bodies:
    """Reads and decodes bodies for one queue and one worker. Not thread-safe.

    `outline`: what coalescing needs of an event; None: messages of this queue are not coalesced.
    """

    def __init__(self, database: Database, *, identify: Identify, outline: Outline | None) -> None:
        self._database = database
        self._identify = identify
        self._outline = outline
        #: Message id -> what was read and is still needed
        self.decoded: dict[int, DecodedBody] = {}
        #: Whether a body larger than BYTES_IN_HAND may be read ahead: not while the worker holds one already
        self.may_read_large = True
        #: How many bodies the next statement may ask for
        self._at_once = BODIES_A_STATEMENT

    @property
    def coalesces(self) -> bool:
        """Whether `outline` is of use."""
        return self._outline is not None

    def read_ahead(self, messages: Sequence[Pending], room: int) -> int:
        """Reads the bodies of the first of these messages, as many as fit into `room` bytes; how many those are.

        The first is read whatever its length, so that every call gets further; except a body larger than BYTES_IN_HAND
        while `may_read_large` is not set. A message that Magento has deleted counts, and has no body.
        """
        taken = 0
        for position, (message, topic, length) in enumerate(self._measured(messages)):
            if (taken and taken + length > room) or (length > BYTES_IN_HAND and not self.may_read_large):
                return position
            self._read_large(message, topic, length)
            taken += length
        return len(messages)

    def read_for_claim(self, messages: Sequence[Pending], *, room: int, large: bool) -> set[Pending]:
        """Reads the bodies of messages that are about to be claimed; those for whose bodies there is no room.

        The first that does not fit into `room` bytes ends the reading, so that it is the next to be claimed. A body
        larger than BYTES_IN_HAND takes nothing of `room`: one is read if `large`, the others are left.
        """
        left: set[Pending] = set()
        for position, (message, topic, length) in enumerate(self._measured(messages)):
            if length > BYTES_IN_HAND:
                if not large:
                    left.add(message)
                    continue
                large = False
            elif length > room:
                return left.union(messages[position:])
            else:
                room -= length
            self._read_large(message, topic, length)
        return left

    def outline(self, message: Pending) -> Event | None:
        """What coalescing needs of a message whose body has been read; None where there is no event in it."""
        body = self.decoded.get(message.message_id)
        if self._outline is None or body is None or not isinstance(body.content, Event):
            return None
        return self._outline(body.content)

    def forget(self, messages: Iterable[Pending]) -> None:
        for message in messages:
            self.decoded.pop(message.message_id, None)

    def forget_most(self, waiting: Container[int]) -> None:
        """Keeps the first KEPT_BYTES for the next claim, and of those only messages that are `waiting`."""
        kept: dict[int, DecodedBody] = {}
        room = KEPT_BYTES
        for message_id, body in self.decoded.items():
            room -= body.length
            if room < 0:
                break
            if message_id in waiting:
                kept[message_id] = body
        self.decoded = kept

    def _measured(self, messages: Sequence[Pending]) -> Iterator[tuple[Pending, str, int]]:
        """Each message with topic and length of its body; length 0 for a message that Magento has deleted.

        Small bodies are read and decoded on the way. Only as many are looked at as the caller asks for, and those that
        come in the same statement.
        """
        ahead = 0
        unread: dict[int, tuple[str, int]] = {}
        for position, message in enumerate(messages):
            if position >= ahead:
                ahead = position + self._at_once
                unread = self._read_small([each.message_id for each in messages[position:ahead]])
            body = self.decoded.get(message.message_id)
            yield (message, "", body.length) if body else (message, *unread.get(message.message_id, ("", 0)))

    def _read_small(self, message_ids: Sequence[int]) -> dict[int, tuple[str, int]]:
        """Reads and decodes small bodies; topic and length of those that are too large to be read unasked."""
        unread: dict[int, tuple[str, int]] = {}
        missing = [each for each in message_ids if each not in self.decoded]
        if not missing:
            return unread
        # Fewer next time, if the statement takes too long and fails.
        allowed, self._at_once = self._at_once, max(1, self._at_once // 4)
        total = 0
        for row in self._database.rows("bodies", message_ids=missing, large=READ_BYTES // len(missing)):
            message_id, topic, length = int(row["id"]), str(row["topic_name"] or ""), int(row["bytes"] or 0)
            total += length
            if row["body"] is None and length:
                unread[message_id] = (topic, length)
            else:
                self._decode(message_id, topic, length, row["body"])
        fitting = MEASURED_BYTES * len(missing) // max(total, 1)
        self._at_once = max(1, min(fitting, max(allowed, 2 * len(missing)), BODIES_A_STATEMENT))
        return unread

    def _read_large(self, message: Pending, topic: str, length: int) -> None:
        message_id, allowed = message.message_id, self._database.max_allowed_packet
        if message_id in self.decoded or not length:
            return
        if length + 4096 > allowed:
            # In MiB: the masking of the logs would take so many digits for a telephone number.
            rejection = Rejection(
                code=BODY_TOO_LARGE,
                detail=f"the body has {length / 2**20:.1f} MiB and the server's max_allowed_packet is "
                f"{allowed / 2**20:.1f}: raise it, then 'zithara-worker failed retry'",
            )
            self.decoded[message_id] = DecodedBody(f"message:{message_id}", rejection, length)
            return
        for row in self._database.rows("bodies", message_ids=[message_id], large=length):
            self._decode(message_id, topic, length, row["body"])

    def _decode(self, message_id: int, topic: str, length: int, body: str | bytes | None) -> None:
        self.decoded[message_id] = DecodedBody(*self._identify(topic, message_id, body_text(body)), length)
