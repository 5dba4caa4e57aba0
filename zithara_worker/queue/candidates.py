"""Coalescing: which of a group's waiting messages is sent in the place of which others. Pure.

What a newer message does not replace is never skipped: it is sent first, in its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from zithara_worker.messages import Event, Pending

#: (newer, older) of one group -> whether the newer one makes the older one superfluous. Must be transitive. Pure.
Supersedes = Callable[[Event, Event], bool]


def newest_replacing_all_before(
    entries: Sequence[Pending], outlines: Mapping[int, Event], supersedes: Supersedes
) -> int:
    """Position of the newest of `entries` (oldest first) that supersedes every one before it; 0 if none does.

    [full, address, full] gives 1: the address replaces the first message, and the last does not replace the address.
    A message without an outline (deleted meanwhile, or no event is in it) is replaced by none.
    """
    events = [outlines.get(entry.message_id) for entry in entries]
    for position in range(len(events) - 1, 0, -1):
        newer = events[position]
        if newer is not None and all(older is not None and supersedes(newer, older) for older in events[:position]):
            return position
    return 0
