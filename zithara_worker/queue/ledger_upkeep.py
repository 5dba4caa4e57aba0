"""Whether the rows of the delivery ledger may be believed, and which are no longer needed: what workers look at in
turns, and `doctor`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from zithara_worker.database.session import Database
from zithara_worker.queue.ledger_rules import LEDGER_TOPICS
from zithara_worker.topics import CART

#: Days after which a cart of which nothing was accepted is forgotten.
CART_DAYS = 30
#: The first version of the worker that keeps the ledger.
FIRST_VERSION = (0, 3)
#: Rows that one statement changes at most, where it changes any number.
SLICE = 1000


def begin(database: Database) -> None:
    """Makes the row of each topic in zithara_ledger, where it is not there yet."""
    for topic in LEDGER_TOPICS:
        database.execute("ledger_begin", topic=topic)


def ids_began_again(database: Database) -> bool:
    """Whether ids that are recorded are given out again, as after a restore; from now on they are older than every
    message. Look at the start, and when the newest id of a queue falls. True for one of those who notice it."""
    rows = database.rows("ledger_newest")
    newest = int(rows[0]["newest"]) if rows else 0
    # A server that does not say which id is next: some id above the newest message. A queue that Magento has cleaned up
    # is then taken for one whose ids begin again, and a message more is sent.
    following = next_id(database) or int(database.rows("newest_message")[0]["id"]) + 1
    if following > newest:
        return False
    return database.execute("ledger_new_epoch", topics=LEDGER_TOPICS, epoch=int(rows[0]["id_epoch"])) > 0


def next_id(database: Database) -> int:
    """The id that the next message gets; 0 where the server does not say."""
    rows = database.rows("ledger_next_id")
    return int(rows[0]["next_id"]) if rows else 0


def forget_old_carts(database: Database) -> int:
    """Removes a slice of the carts of which nothing was accepted for CART_DAYS; how many it removed."""
    return database.execute("ledger_old", topic=CART.name, days=CART_DAYS, limit=SLICE)


def unrecorded_topics(database: Database, queues: Mapping[int, str]) -> frozenset[str]:
    """Topics of which others deliver messages now and record nothing: PHP consumers, and workers of a version without a
    ledger. `queues`: queue id -> topic."""
    found = {queues[int(row["queue_id"])] for row in database.rows("ledger_php_at_work", queue_ids=sorted(queues))}
    for row in database.rows("ledger_at_work"):
        if _version(str(row["version"])) < FIRST_VERSION:
            found |= set(str(row["topics"]).split(",")) & set(queues.values())
    return frozenset(found)


def unlooked_topics(database: Database, *, seconds: float) -> frozenset[str]:
    """Topics of which workers are at work and have not looked for so long what others delivered."""
    at_work: set[str] = set()
    for row in database.rows("ledger_at_work"):
        if _version(str(row["version"])) >= FIRST_VERSION:
            at_work |= set(str(row["topics"]).split(","))
    looked = database.rows("ledger_looked", topics=LEDGER_TOPICS)
    behind = {str(row["topic"]) for row in looked if float(row["now"]) - float(row["looked_until"]) > seconds}
    return frozenset(at_work & behind)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])
