"""The end of a run: waits until nothing is pending, and reads what the account needs from the database."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Collection
from pathlib import Path

from chaos.account import FINDINGS, Row, Verdict
from chaos.fleet import Fleet
from chaos.publishers import Published, publish_witnesses
from chaos.world import message_key
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_WEBHOOK

#: Longest time for the last messages once all is calm. The longest way: a lease, a retry's delay, a breaker's pause.
DRAIN_SECONDS = 120.0
#: Between two groups of new messages in that time.
WITNESS_SECONDS = 2.0
#: Above every message id
IDS = 10**9


def drained(shop: Shop, published: Published, fleet: Fleet, stop: threading.Event) -> int:
    """Waits until nothing is pending; how many still are after DRAIN_SECONDS. Publishes witnesses all the while."""
    started = time.monotonic()
    witnesses = 0
    while True:
        counts = shop.status_counts()
        left = sum(count for status, count in counts.items() if status in (2, 3, 5))
        waited = time.monotonic() - started
        if not left or waited > DRAIN_SECONDS:
            return left
        if waited > (witnesses + 1) * WITNESS_SECONDS:
            publish_witnesses(shop, published, witnesses)
            witnesses += 1
        fleet.look_after()
        stop.wait(0.2)


def rows(shop: Shop, published: Published, forced: Collection[int], epoch: int = 0) -> list[Row]:
    """`epoch`: see `message_key`."""
    told = {
        id: {"failed": reason, "attempts": attempts, "discarded": bool(discarded), "retried": retries > 0}
        for id, reason, attempts, discarded, retries in shop.query(
            "SELECT id, reason_code, attempts, discarded_at IS NOT NULL, retries FROM {prefix}zithara_delivery_failure"
        )
    }
    return [
        Row(
            key=message_key(epoch, row.queue, row.message_id),
            message_id=epoch * IDS + row.message_id,
            group=published.groups[row.message_id].name,
            coalesced=row.topic in (TOPIC_CART, TOPIC_CUSTOMER),
            state=row.topic != TOPIC_WEBHOOK,
            create=row.message_id in published.creates,
            orphan=row.message_id in published.orphans,
            ended_at=published.ended.get(published.groups[row.message_id]),
            content=published.contents.get(row.message_id, 0),
            status=row.status,
            committed_at=published.committed_at.get(row.message_id),
            forced=row.message_id in forced,
            **told.get(row.relation_id, {}),
        )
        for row in shop.rows()
    ]


def leftovers(shop: Shop) -> list[str]:
    """What must be gone when everything is settled and every worker has left, and what must be there for PHP.

    A worker that was killed leaves its row in the registry, for `status` to show; it is forgotten after a day.
    """

    def count(statement: str) -> int:
        return int(shop.query(statement)[0][0])

    kept = "(SELECT id FROM {prefix}zithara_delivery_failure WHERE discarded_at IS NOT NULL)"
    failed = "(SELECT id FROM {prefix}queue_message_status WHERE status = 6)"
    found = [
        f"{left} rows are left in {table}"
        for table, condition in (
            ("zithara_message_group", ""),
            ("zithara_delivery_failure", f" WHERE discarded_at IS NULL AND id NOT IN {failed}"),
        )
        if (left := count(f"SELECT COUNT(*) FROM {{prefix}}{table}{condition}"))
    ]
    # None comes with what an operator has discarded: it can be taken back.
    complete = count(f"SELECT COUNT(*) FROM {{prefix}}queue_message_status WHERE status = 4 AND id NOT IN {kept}")
    locks = count("SELECT COUNT(*) FROM {prefix}queue_lock")
    if locks != complete:
        found.append(f"{locks} rows in queue_lock for {complete} complete messages: PHP could process some again")
    return found


def show_logs(directory: Path, verdict: Verdict) -> None:
    """What the workers said about the messages in question, and at last."""
    wrong = [each for name in FINDINGS for each in getattr(verdict, name)]
    ids = {number for each in wrong[:20] for number in re.findall(r"_queue-(\d+)", each)}
    for log in sorted(directory.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()
        told = [line for line in lines if ids & set(re.findall(r'"message_id": (\d+)', line))]
        others = [line for line in lines if '"level": "INFO"' not in line and '"retry"' not in line]
        print(f"\n--- {log.name}, {len(lines)} lines in all")
        print("\n".join([*told, "...", *others[-10:]]))
