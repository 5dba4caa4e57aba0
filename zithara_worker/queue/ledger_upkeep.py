"""Whether the rows of the delivery ledger may be believed, and which are no longer needed: what workers look at in
turns, and `doctor`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from zithara_worker.database.session import Database
from zithara_worker.topics import CART

#: Days after which a cart of which nothing was accepted is forgotten.
CART_DAYS = 30
#: The first version of the worker that keeps the ledger.
FIRST_VERSION = (0, 3)
#: Rows that one statement changes at most, where it changes any number.
SLICE = 1000


def forget_ids_that_began_again(database: Database) -> int:
    """How many rows were recorded under ids that are given out again, as after a restore: from now on they are older
    than every message. Look at the start, and when the newest id of a queue falls."""
    newest = int(database.rows("ledger_newest")[0]["newest"])
    following = database.rows("ledger_next_id")
    next_id = int(following[0]["next_id"]) if following else 0
    if next_id == 0 or next_id > newest:  # 0: the server does not say
        return 0
    count = 0
    while changed := database.execute("ledger_renumbered", limit=SLICE):
        count += changed
    return count


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


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])
