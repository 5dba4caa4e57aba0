"""Coalescing: which of a group's waiting messages is sent in the place of which others. Pure.

What a newer message does not replace is never skipped: it is sent first, in its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from zithara_worker.magento.line import Entry
from zithara_worker.messages import Event, Rejection

#: (newer, older) of one group -> whether the newer one makes the older one superfluous. Must be transitive. Pure.
Supersedes = Callable[[Event, Event], bool]
#: Waiting messages whose bodies are read for one claim to decide what coalesces; the rest is decided next time.
READ_A_CLAIM = 500


def newest_replacing_all_before(
    entries: Sequence[Entry], contents: Mapping[int, Event | Rejection], supersedes: Supersedes
) -> int:
    """Position of the newest of `entries` (oldest first) that supersedes every one before it; 0 if none does.

    [full, address, full] gives 1: the address replaces the first message, and the last does not replace the address.
    A message without contents (deleted meanwhile) or without an event is replaced by none.
    """
    events = [contents.get(entry.message_id) for entry in entries]
    for position in range(len(events) - 1, 0, -1):
        newer = events[position]
        if isinstance(newer, Event) and all(
            isinstance(older, Event) and supersedes(newer, older) for older in events[:position]
        ):
            return position
    return 0
