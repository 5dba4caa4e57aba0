"""Finds the messages of one entity. No index knows what a body holds, so a queue is searched in slices, newest first.

Each statement reads a bounded number of rows, and of bytes; the server sends the bodies that may be the entity's only.
Plain reads: nobody waits for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from zithara_worker.database.session import Database
from zithara_worker.messages import Event, Rejection
from zithara_worker.processors import identify
from zithara_worker.queue.bodies import MEASURED_BYTES
from zithara_worker.queue.failures import Failure, bodies, of_messages

#: Rows of the first slice of a search, and of its largest: their number follows the bytes that the last slice had.
FIRST_ROWS = 20
MOST_ROWS = 2000
#: Messages that came later, among which those of the same group are looked for.
LATER = 1000
#: Names that stand in each body about them as they are: PHP escapes quotes and slashes, and of names that are not ASCII
#: the group has the digest.
_PLAIN = re.compile(r"(?!sha256:)[\w.#:+-]+", re.ASCII)


class Found(NamedTuple):
    """A message of the entity."""

    message_id: int
    content: Event | Rejection


class Slice(NamedTuple):
    """What one statement of a search has read. `lowest`: the lowest message id among it. `found`: in any order; reads
    the bodies as it goes, so that few are in memory at once."""

    rows: int
    lowest: int
    found: Iterator[Found]


def search(
    database: Database, queue_id: int, group_key: str, *, above: int = 0, rows: int | None = None
) -> Iterator[Slice]:
    """Looks through the messages of a queue with ids above `above`, and no more than `rows` of them.

    Not found: an id that a body has as a number with an exponent, or in escapes that PHP does not write.
    """
    if group_key.startswith("message:"):  # a message that names no entity is a group of its own
        return
    text = _in_each_body(group_key)
    below, limit, left = 2**64 - 1, FIRST_ROWS, rows
    while left is None or left > 0:
        asked = limit if left is None else min(limit, left)
        read = database.rows("search_slice", queue_id=queue_id, text=text, above=above, below=below, limit=asked)
        if not read:
            return
        below = min(int(row["lowest"]) for row in read)
        seen = sum(int(row["seen"]) for row in read)
        likely = [int(row["message_id"]) for row in read if row["message_id"]]
        yield Slice(seen, below, _of_group(database, likely, group_key))
        if seen < asked:
            return
        left = None if left is None else left - seen
        fitting = MEASURED_BYTES * seen // max(sum(int(row["bytes"]) for row in read), 1)
        limit = max(1, min(fitting, 4 * limit, MOST_ROWS))


def bounds(database: Database, queue_id: int) -> tuple[int, int]:
    """The highest and the lowest message id of a queue; 0 for an empty one. All queues of the shop share the ids."""
    row = database.rows("search_bounds", queue_id=queue_id)[0]
    return int(row["newest"] or 0), int(row["oldest"] or 0)


def later(database: Database, message: Failure, group_key: str) -> list[Failure]:
    """The messages of this group that came after `message`, in order: those among the newest LATER of its queue."""
    slices = search(database, message.queue_id, group_key, above=message.message_id, rows=LATER)
    found = [each.message_id for part in slices for each in part.found]
    return sorted(of_messages(database, [message.queue_id], found), key=lambda each: each.message_id)


def _in_each_body(group_key: str) -> str:
    """A text that each body of the group holds as it is; "" where none is known."""
    name = group_key.partition(":")[2]
    return name if _PLAIN.fullmatch(name) else ""


def _of_group(database: Database, likely: Sequence[int], group_key: str) -> Iterator[Found]:
    for message_id, topic, body in bodies(database, likely):
        group, content = identify(topic, message_id, body)
        if group == group_key:
            yield Found(message_id, content)
