"""Which orders, customers and carts have a message on the queue that has not ended yet.

The queue has no index by entity, so its pending messages are read once, in slices, and then whatever came since. What
is kept of each is a hash and the message id, 16 bytes in sorted arrays, so that a backlog of a million takes little
memory.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable

from zithara_worker.database.session import Database
from zithara_worker.processors import identify
from zithara_worker.queue import failures

#: Rows of the queue that one statement looks at, and bodies that are read at once.
SLICE = 5000
#: A publisher takes its id within its transaction, so a lower id can become visible after a higher one: so many ids
#: are looked at again.
LOOK_BACK = 1000
#: Hashes that are kept in a dictionary before they become a sorted array.
_RUN = 50_000
_MASK = (1 << 64) - 1


class PendingMessages:
    """The message groups of one queue that have a message NEW, IN_PROGRESS or RETRY_REQUIRED, as it was at the last
    `refresh`: a group whose last message has ended since is still among them."""

    def __init__(self, database: Database, *, queue_id: int) -> None:
        self._database = database
        self._queue_id = queue_id
        self._newest = 0
        #: Hash -> message id
        self._recent: dict[int, int] = {}
        #: Hashes, ascending, and the message id of each
        self._runs: list[tuple[array[int], array[int]]] = []

    def newest(self, group_key: str) -> int:
        """The id of the group's newest message that was pending; 0: none was."""
        wanted = hash(group_key) & _MASK
        found = self._recent.get(wanted, 0)
        for hashes, message_ids in self._runs:
            at = bisect_left(hashes, wanted)
            if at < len(hashes) and hashes[at] == wanted:
                found = max(found, message_ids[at])
        return found

    def refresh(self, go_on: Callable[[], bool] = lambda: True) -> bool:
        """Reads what came since the last time; the first time everything. `go_on` is asked between statements; where it
        says no, the rest is not read. Whether all was read. Raises DatabaseUnavailable, ShopError."""
        after = max(0, self._newest - LOOK_BACK * self._database.id_step) if self._newest else 0
        while True:
            rows = self._database.rows("reconcile_pending", queue_id=self._queue_id, after=after, limit=SLICE)
            if not rows:
                return True
            message_ids = sorted(int(row["message_id"]) for row in rows if row["message_id"])
            for start in range(0, len(message_ids), failures.BODIES):
                for message_id, topic, body in failures.bodies(
                    self._database, message_ids[start : start + failures.BODIES]
                ):
                    self._keep(hash(identify(topic, message_id, body)[0]) & _MASK, message_id)
                if not go_on():
                    return False
            after = max(int(row["last"]) for row in rows)
            self._newest = max(self._newest, after)
            if not message_ids and not go_on():
                return False

    def _keep(self, number: int, message_id: int) -> None:
        self._recent[number] = message_id
        if len(self._recent) >= _RUN:
            hashes = array("Q", sorted(self._recent))
            self._runs.append((hashes, array("Q", map(self._recent.__getitem__, hashes))))
            self._recent.clear()
