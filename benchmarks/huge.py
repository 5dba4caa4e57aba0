"""What a shop with millions of completed rows costs: the start, the sweep, the look back, and building the index."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

from benchmarks import messages, scale
from zithara_worker.database.schema import build_index
from zithara_worker.database.session import Database
from zithara_worker.messages import Message
from zithara_worker.sandbox.publisher import Publisher
from zithara_worker.sandbox.shop import Shop
from zithara_worker.settings.sections import DatabaseSettings
from zithara_worker.settings.values import Secret

#: Messages that are published behind all completed ones.
NEW = 100


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    what: str
    seconds: float
    statements: int
    longest_ms: float
    longest_statement: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The index, while a publisher goes on: `published` messages, and how long one took."""

    seconds: float
    published: int
    median_ms: float
    longest_ms: float


def fill(shop: Shop, rows: int) -> None:
    scale.fill(shop, messages.TOPIC, rows, status=4)


def measure(shop: Shop) -> list[Step]:
    """The oldest message of all waits for a retry, and a hundred new ones are behind all that is complete."""
    shop.publish_bodies(messages.TOPIC, list(messages.bodies(NEW)))
    shop.query("UPDATE {prefix}queue_message_status SET status = 5 ORDER BY id LIMIT 1")
    with closing(Timed(shop.database_settings)) as database:
        queue = scale.queue_of(database)
        taken: list[Message] = []

        def claim_all() -> None:
            for batch in scale.handled(database, queue):
                taken.extend(batch.messages)
                if len(taken) > NEW:
                    return

        counts = "queue_counts_indexed" if database.has_pending_index else "queue_counts"
        steps: dict[str, Callable[[], object]] = {
            "from the start until all are claimed": claim_all,
            "a whole round of the sweep": queue.sweep_all,
            "a look back": lambda: queue.has_older_pending(taken[-1]),
            "the poll": partial(scale.poll, database, queue),
            "counts for status": partial(database.rows, counts, queue_ids=[queue.queue_id]),
        }
        return [_timed(what, database, run) for what, run in steps.items()]


def _timed(what: str, database: Timed, run: Callable[[], object]) -> Step:
    database.took.clear()
    began = time.monotonic()
    run()
    seconds = time.monotonic() - began
    longest, name = max(database.took, default=(0.0, "none"))
    return Step(
        what=what,
        seconds=seconds,
        statements=len(database.took),
        longest_ms=longest * 1000,
        longest_statement=name,
    )


def build(shop: Shop) -> Built:
    stop = threading.Event()
    waits: list[float] = []

    def publish() -> None:
        with closing(shop.connect()) as session:
            publisher = Publisher(session, prefix=shop.prefix)
            while True:
                began = time.monotonic()
                publisher.publish_order("900000001")
                waits.append(time.monotonic() - began)
                if stop.wait(0.02):
                    return

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
        return Built(
            seconds=time.monotonic() - began,
            published=len(waits),
            median_ms=statistics.median(waits) * 1000,
            longest_ms=max(waits) * 1000,
        )


def table(steps: Sequence[Step]) -> str:
    rows = "".join(
        f"| {each.what} | {each.seconds:.2f} | {each.statements:,} | {each.longest_ms:.0f} | {each.longest_statement} |"
        "\n"
        for each in steps
    )
    return f"| | seconds | statements | longest, ms | which |\n| --- | --- | --- | --- | --- |\n{rows}"


def told(built: Built) -> str:
    return (
        f"`install --index`: {built.seconds:.1f} s; {built.published:,} messages published meanwhile, median "
        f"{built.median_ms:.1f} ms, longest {built.longest_ms:.0f} ms.\n"
    )
