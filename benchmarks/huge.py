"""What a shop with millions of completed rows costs: the start, the sweep, the look back, and building the index.

python -m benchmarks.huge --rows 10000000
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

from benchmarks import messages, scale
from zithara_worker.database.schema import build_index
from zithara_worker.database.session import Database
from zithara_worker.messages import Message, Outcome, OutcomeKind
from zithara_worker.processors import identify
from zithara_worker.queue.held import Held
from zithara_worker.queue.message_queue import MessageQueue
from zithara_worker.queue.queues import find_queues
from zithara_worker.queue.settle import Settlement
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.publisher import Publisher
from zithara_worker.sandbox.shop import Shop
from zithara_worker.settings.sections import DatabaseSettings
from zithara_worker.settings.values import Secret

#: Rows that one statement of the filling inserts.
CHUNK = 1_000_000
#: Messages that are published behind all completed ones.
NEW = 100
_DELIVERED = Outcome(kind=OutcomeKind.DELIVERED, http_status=200)


class Timed(Database):
    """Knows how long each statement took, seconds."""

    def __init__(self, settings: DatabaseSettings) -> None:
        super().__init__(settings)
        self.took: list[tuple[float, str]] = []

    def rows(self, statement: str, /, **parameters: object) -> list[dict[str, object]]:
        began = time.monotonic()
        found = super().rows(statement, **parameters)
        self.took.append((time.monotonic() - began, statement))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    rows = parser.parse_args().rows
    with MariaDbServer(options=("--innodb-buffer-pool-size=512M",)) as server, Shop(server) as shop:
        print(f"{server.version}, {rows:,} completed rows of one queue")
        began = time.monotonic()
        for start in range(0, rows, CHUNK):
            scale.fill(shop, messages.TOPIC, min(CHUNK, rows - start), status=4)
        print(f"filled in {time.monotonic() - began:.0f} s", flush=True)
        _measure(shop, "without the index")
        _build(shop)
        _measure(shop, "with the index")


def _measure(shop: Shop, title: str) -> None:
    print(f"\n{title}")
    # The oldest message of all waits for a retry, and a hundred new ones behind all that is complete.
    shop.publish_bodies(messages.TOPIC, list(messages.bodies(NEW)))
    shop.query("UPDATE {prefix}queue_message_status SET status = 5 ORDER BY id LIMIT 1")
    with closing(Timed(shop.database_settings)) as database:
        row = find_queues(database, [messages.TOPIC], {})[0]
        queue = MessageQueue(
            database,
            queue_id=row.queue_id,
            name=row.name,
            topic=messages.TOPIC,
            held=Held(worker_id="bench", lease_seconds=60, clock=time.monotonic),
            identify=identify,
        )

        taken: list[Message] = []

        def claim_all() -> None:
            while len(taken) <= NEW:
                scale.poll(database, queue)
                claimed = [message for message, _ in queue.claim(NEW)]
                queue.settle([Settlement(message=message, outcome=_DELIVERED) for message in claimed])
                taken.extend(claimed)

        _tell("from the start until all are claimed", database, claim_all)
        _tell("a whole round of the sweep", database, queue.sweep_all)
        _tell("a look back", database, lambda: queue.has_older_pending(taken[-1]))
        _tell("the poll", database, lambda: scale.poll(database, queue))
        _tell("counts for status", database, lambda: _counts(database, row.queue_id))


def _counts(database: Database, queue_id: int) -> None:
    database.rows("queue_counts_indexed" if database.has_pending_index else "queue_counts", queue_ids=[queue_id])


def _tell(what: str, database: Timed, run: Callable[[], object]) -> None:
    database.took.clear()
    began = time.monotonic()
    run()
    took = time.monotonic() - began
    longest, name = max(database.took, default=(0.0, "none"))
    print(
        f"  {what:<52} {took:8.2f} s, {len(database.took)} statements, longest {longest * 1000:.0f} ms ({name})",
        flush=True,
    )


def _build(shop: Shop) -> None:
    """Builds the index while a publisher goes on."""
    stop = threading.Event()
    waits: list[float] = []

    def publish() -> None:
        with closing(shop.connect()) as session:
            publisher = Publisher(session, prefix=shop.prefix)
            while not stop.wait(0.02):
                began = time.monotonic()
                publisher.publish_order("900000001")
                waits.append(time.monotonic() - began)

    root = replace(shop.database_settings, user="root", password=Secret())
    thread = threading.Thread(target=publish)
    with closing(Database(root, statement_limit=False)) as builder, closing(Database(root)) as watcher:
        thread.start()
        began = time.monotonic()
        try:
            build_index(builder, watcher, lambda share: None)
        finally:
            stop.set()
            thread.join()
        print(
            f"\ninstall --index: {time.monotonic() - began:.1f} s; {len(waits)} messages published meanwhile, "
            f"median {statistics.median(waits) * 1000:.1f} ms, longest {max(waits) * 1000:.0f} ms"
        )


if __name__ == "__main__":
    main()
