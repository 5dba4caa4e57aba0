"""The expiry guard: no event is deleted undelivered because it waited too long.

Magento's cleanup (cron mysqlmq_clean_messages) deletes NEW messages whose updated_at is older than
system/mysqlmq/new_messages_lifetime minutes. After a long outage or pause that would be our backlog.
"""

from __future__ import annotations

from collections.abc import Collection

from zithara_worker.database.session import Database

#: Rows that one slice of a round reads at most, those of other queues included: some 30 ms.
ROWS_A_SLICE = 1000


class ExpiryGuard:
    """Goes through the NEW messages past half their lifetime, oldest first, a slice at a time."""

    def __init__(self, database: Database, queue_ids: Collection[int]) -> None:
        self._database = database
        self._queue_ids = frozenset(queue_ids)
        self._after: tuple[str, int] | None = None
        #: How many messages this round has kept
        self.kept = 0

    def run_slice(self, lifetime_minutes: int) -> bool:
        """Gives the messages of the next slice that are ours a fresh updated_at; whether the round is over.

        0 minutes: Magento deletes none.
        """
        if self._after is None:
            self._after, self.kept = ("1970-01-02 00:00:00", 0), 0
        if lifetime_minutes <= 0 or not self._queue_ids:
            self._after = None
            return True
        updated_at, id = self._after
        rows = self._database.rows(
            "expiring", age=lifetime_minutes * 30, updated_at=updated_at, after=id, limit=ROWS_A_SLICE
        )
        ours = sorted(int(row["id"]) for row in rows if int(row["queue_id"]) in self._queue_ids)
        if ours:
            self.kept += self._database.execute("keep_from_expiry", ids=ours)
        over = len(rows) < ROWS_A_SLICE
        self._after = None if over else (str(rows[-1]["updated_at"]), int(rows[-1]["id"]))
        return over
