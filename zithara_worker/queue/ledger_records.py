"""What operators ask of the delivery ledger: show an entity, forget it, have its next message sent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

from zithara_worker.database.session import Database
from zithara_worker.logs.audit import Audit, operator_action
from zithara_worker.queue.ledger import Ledger
from zithara_worker.queue.ledger_rules import LEDGER_TOPICS
from zithara_worker.queue.ledger_upkeep import SLICE

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A row as an operator sees it. Times: seconds since the epoch, by the database's clock. `is_sure`: an equal
    request need not be sent. `stale`: an older message came behind a newer one."""

    topic: str
    group_key: str
    destination: str
    message_id: int
    create_id: int
    entity_updated_at: str
    first_accepted_at_utc: float
    last_accepted_at_utc: float
    accepted: int
    #: When the message that was accepted last was published, or a little later; 'YYYY-MM-DD HH:MM:SS' UTC
    published_at: str
    #: SHA-256, see `messages.Accepted`; "" where it is not sure what Zithara has
    content: str
    is_sure: bool
    stale: bool


def records(database: Database, group_key: str) -> list[Record]:
    """What is recorded of an entity."""
    return [
        Record(
            topic=str(row["topic_name"]),
            group_key=str(row["group_key"]),
            destination=str(row["destination"]),
            message_id=int(row["message_id"]),
            create_id=int(row["create_id"]),
            entity_updated_at=str(row["entity_updated_at"] or ""),
            first_accepted_at_utc=float(row["first_accepted_at_utc"]),
            last_accepted_at_utc=float(row["last_accepted_at_utc"]),
            accepted=int(row["accepted"]),
            published_at=str(row["published_at"]),
            content=str(row["content"] or ""),
            is_sure=bool(row["is_sure"]),
            stale=bool(row["stale"]),
        )
        for row in database.rows("ledger_show", topics=LEDGER_TOPICS, group_key=group_key)
    ]


def count(database: Database) -> int:
    """Entities of which something is recorded."""
    return int(database.rows("ledger_count")[0]["entities"])


def count_of_old_ids(database: Database) -> int:
    """Entities whose message ids were given out again since; see `ledger_upkeep.ids_began_again`."""
    return int(database.rows("ledger_of_old_ids")[0]["entities"])


def forget(
    database: Database, group_key: str | None, *, by: str, audit: Audit, on_progress: Callable[[int], object] = int
) -> int:
    """Removes what is recorded of an entity, or of all where `group_key` is None; how many rows it removed."""
    forgotten = 0
    if group_key is not None:
        forgotten = database.execute("ledger_forget", topics=LEDGER_TOPICS, group_keys=[group_key])
    else:
        while removed := database.execute("ledger_forget_slice", limit=SLICE):
            forgotten += removed
            on_progress(removed)
    if forgotten:
        audit([operator_action("ledger_forget", who=by, group=group_key or "all", count=forgotten)])
        log.info(
            "operator: what Zithara accepted is forgotten",
            extra={"event": "operator_ledger_forget", "operator": by, "group": group_key or "all", "count": forgotten},
        )
    return forgotten


def ask_for(database: Database, topic: str, group_keys: Collection[str], *, force: bool = False) -> None:
    """An operator wants the next message of these entities to be sent even if Zithara has accepted the same before;
    with `force` even if it has accepted a newer one."""
    if topic not in LEDGER_TOPICS or not group_keys:
        return
    if force:
        database.execute("ledger_forget", topics=[topic], group_keys=sorted(group_keys))
    else:
        Ledger(database, topic=topic, destination="").doubt(group_keys)
