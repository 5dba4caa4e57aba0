"""Which orders, customers and carts have a message on the queue that has not ended yet.

The queue has no index by entity, so its pending messages are read once, in slices, and then whatever came since. What
is kept of each is a hash, 8 bytes in a sorted array, so that a backlog of a million takes little memory.
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
#: Hashes that are kept in a set before they become a sorted array.
_RUN = 50_000
_MASK = (1 << 64) - 1


class PendingMessages:
    """The message groups of one queue that have a message NEW, IN_PROGRESS or RETRY_REQUIRED, as it was at the last
    `refresh`: a group whose last message has ended since is still among them."""

    def __init__(self, database: Database, *, queue_id: int) -> None:
        self._database = database
        self._queue_id = queue_id
        self._newest = 0
        self._recent: set[int] = set()
        self._runs: list[array[int]] = []

    def __contains__(self, group_key: str) -> bool:
        wanted = hash(group_key) & _MASK
        if wanted in self._recent:
            return True
        for run in self._runs:
            at = bisect_left(run, wanted)
            if at < len(run) and run[at] == wanted:
                return True
        return False

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
                    self._keep(hash(identify(topic, message_id, body)[0]) & _MASK)
                if not go_on():
                    return False
            after = max(int(row["last"]) for row in rows)
            self._newest = max(self._newest, after)
            if not message_ids and not go_on():
                return False

    def _keep(self, number: int) -> None:
        self._recent.add(number)
        if len(self._recent) >= _RUN:
            self._runs.append(array("Q", sorted(self._recent)))
            self._recent.clear()
