"""The expiry guard: no event is deleted undelivered because it waited too long.

Magento's cleanup (cron mysqlmq_clean_messages) deletes NEW messages whose updated_at is older than
system/mysqlmq/new_messages_lifetime minutes. After a long outage or pause that would be our backlog.
"""

from __future__ import annotations

from collections.abc import Sequence

from zithara_worker.magento.database import Database

_AT_ONCE = 1000


def keep_from_expiry(database: Database, queue_ids: Sequence[int], lifetime_minutes: int) -> int:
    """Gives NEW messages past half their lifetime a fresh updated_at; how many. 0 minutes: Magento deletes none."""
    if lifetime_minutes <= 0 or not queue_ids:
        return 0
    kept = 0
    while True:
        rows = database.rows("expiring", age=lifetime_minutes * 30, queue_ids=list(queue_ids), limit=_AT_ONCE)
        if not rows:
            return kept
        kept += database.execute("keep_from_expiry", ids=[int(row["id"]) for row in rows])
        if len(rows) < _AT_ONCE:
            return kept
