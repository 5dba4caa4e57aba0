"""What claim and settle cost a message beside other rows: completed ones, other queues' backlogs, blocked groups, skew.

Only the queue is driven here, without HTTP: each message counts as delivered once it is claimed. Time on the server is
in it, which CPU of the worker alone would not show.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

from benchmarks import messages
from zithara_worker.database.session import Database
from zithara_worker.messages import Accepted, Entity, Outcome, OutcomeKind
from zithara_worker.processors import identify
from zithara_worker.queue.held import Held
from zithara_worker.queue.ledger import Ledger
from zithara_worker.queue.ledger_upkeep import begin
from zithara_worker.queue.message_queue import MessageQueue
from zithara_worker.queue.queues import find_queues
from zithara_worker.queue.settle import Settlement
from zithara_worker.reasons import UNCHANGED
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART

#: Messages of one batch, and how many batches are timed.
BATCH = 100
BATCHES = 20
#: Messages of which statements are counted: they are the same in each batch.
COUNTED = 5 * BATCH
#: Where the numbering of orders begins whose groups are blocked: none of those that are measured.
_OTHERS = 50_000_000
#: Claims in vain until something must be wrong.
_TRIES = 1_000
_DELIVERED = Outcome(kind=OutcomeKind.DELIVERED, http_status=200)
_UNCHANGED = Outcome(kind=OutcomeKind.SKIPPED, reason=UNCHANGED)
_ACCEPTED = Accepted(entity=Entity(state=None), request="0" * 64, content="0" * 64)

#: A stored body and a status row for each number of a range (MariaDB's own tables of numbers).
_FILL_MESSAGES = "INSERT INTO {prefix}queue_message (topic_name, body) SELECT %s, %body FROM seq_1_to_%s"
#: Bodies of neighbours are small, nobody reads them. Those behind in our own line are orders of their own.
_EMPTY = "'\"{}\"'"
_ORDER = """CONCAT('{"order": {"increment_id": "7', LPAD(seq, 9, '0'), '"}}')"""
_FILL_STATUSES = (
    "INSERT INTO {prefix}queue_message_status (queue_id, message_id, status) "
    "SELECT q.id, m.id, %s FROM {prefix}queue_message m JOIN {prefix}queue q ON q.name = %s "
    "WHERE m.id > %s AND m.topic_name = %s"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one message: claimed and settled. `microseconds`: median batch; `p90`: the ninth of ten."""

    surroundings: str
    microseconds: float
    p90: float
    #: Until the first message was had, fruitless claims included
    first_claim_ms: float
    statements_per_100: float


def measure(server: MariaDbServer, *, large: int, indexed: bool = False) -> list[Cost]:
    """Each surrounding on a shop of its own. `large`: rows of the largest, e.g. 1,000,000."""
    surroundings: Mapping[str, Callable[[Shop], None]] = {
        "empty shop": lambda shop: None,
        f"{large // 10:,} completed rows": lambda shop: fill(shop, messages.TOPIC, large // 10, status=4),
        f"{large:,} completed rows": lambda shop: fill(shop, messages.TOPIC, large, status=4),
        f"{large:,} rows of another queue": lambda shop: fill(shop, TOPIC_CART, large, status=2),
        f"{large:,} completed and {large:,} of another queue": _both(large),
        f"{large // 100:,} blocked groups ahead": lambda shop: _block(shop, large // 100),
    }
    costs = [_cost(server, name, fill, indexed=indexed) for name, fill in surroundings.items()]
    costs.append(_cost(server, "empty shop, again", indexed=indexed))
    costs.append(_cost(server, "own backlog of 1,000", indexed=indexed, count=1_000))
    behind = partial(fill, topic=messages.TOPIC, count=large, status=2, body=_ORDER)
    costs.append(_cost(server, f"own backlog of {large:,}", behind=behind, indexed=indexed))
    costs.append(_cost(server, "half of the messages in one group", indexed=indexed, skewed=True))
    return costs


def plain(server: MariaDbServer, *, recorded: bool = False) -> Cost:
    """On a shop with nothing else. `recorded`: with the delivery ledger."""
    return _cost(server, "empty shop", recorded=recorded, count=COUNTED)


def plain_unchanged(server: MariaDbServer) -> Cost:
    """The same with the delivery ledger, of messages that tell what was accepted before."""
    with Shop(server) as shop, closing(Database(shop.database_settings)) as database:
        for outcome in (_DELIVERED, _UNCHANGED):
            shop.publish_bodies(messages.TOPIC, messages.bodies(COUNTED))
            cost = _drain(database, "unchanged", COUNTED, recorded=True, outcome=outcome)
        return cost


def _cost(
    server: MariaDbServer,
    name: str,
    fill: Callable[[Shop], None] = lambda shop: None,
    *,
    behind: Callable[[Shop], None] = lambda shop: None,
    indexed: bool = False,
    count: int = BATCH * BATCHES,
    skewed: bool = False,
    recorded: bool = False,
) -> Cost:
    """`fill` and `behind`: what comes before and after the `count` messages that are measured."""
    with Shop(server) as shop:
        if indexed:
            shop.run_script("optional_index.sql")
        fill(shop)
        bodies = list(messages.bodies(count))
        if skewed:
            one = next(iter(messages.bodies(1)))
            bodies[: count // 2] = [one] * (count // 2)
        shop.publish_bodies(messages.TOPIC, bodies)
        behind(shop)
        with closing(Database(shop.database_settings)) as database:
            return _drain(database, name, count // 2 if skewed else count, recorded=recorded)


def _drain(database: Database, name: str, wanted: int, *, recorded: bool, outcome: Outcome = _DELIVERED) -> Cost:
    row = find_queues(database, [messages.TOPIC], {})[0]
    if recorded:
        begin(database)
    queue = MessageQueue(
        database,
        queue_id=row.queue_id,
        name=row.name,
        topic=messages.TOPIC,
        held=Held(worker_id="bench", lease_seconds=60, clock=time.monotonic),
        identify=identify,
        ledger=Ledger(database, topic=messages.TOPIC, destination=_ACCEPTED.request) if recorded else None,
    )
    if recorded and outcome is _DELIVERED:
        outcome = replace(outcome, accepted=_ACCEPTED)
    batches: list[float] = []
    empty_handed, began = 0, time.monotonic()
    past_seconds = 0.0
    done, statements = 0, database.statements_sent
    poll(database, queue)
    while done < wanted:
        started = time.monotonic()
        taken = [message for message, _ in queue.claim(BATCH)]
        if not taken:
            # Heads whose groups are busy elsewhere: looked at, remembered, and passed by at once, as by the loop.
            empty_handed += 1
            if empty_handed > _TRIES:
                raise RuntimeError(f"{name}: nothing to claim after {done} of {wanted} messages")
            continue
        if not batches:
            past_seconds = time.monotonic() - began
        queue.settle([Settlement(message=message, outcome=outcome) for message in taken])
        batches.append((time.monotonic() - started) / len(taken) * 1e6)
        done += len(taken)
        poll(database, queue)
    return Cost(
        surroundings=name,
        microseconds=statistics.median(batches),
        p90=statistics.quantiles(batches, n=10)[-1] if len(batches) > 1 else batches[0],
        first_claim_ms=past_seconds * 1000,
        statements_per_100=(database.statements_sent - statements) / done * 100,
    )


def poll(database: Database, queue: MessageQueue) -> None:
    """What the loop does four times a second."""
    row = database.rows("poll", queue_ids=[queue.queue_id])[0]
    queue.update_from_poll(newest=int(row["newest"] or 0), due=bool(row["due"]), expired=bool(row["expired"]))
    queue.recheck()


def fill(shop: Shop, topic: str, count: int, *, status: int, body: str = _EMPTY) -> None:
    newest = shop.query("SELECT COALESCE(MAX(id), 0) FROM {prefix}queue_message")[0][0]
    shop.query(_FILL_MESSAGES.replace("seq_1_to_%s", f"seq_1_to_{count}").replace("%body", body), (topic,))
    queue = shop.query("SELECT name FROM {prefix}queue WHERE name LIKE %s", (f"zithara_{topic.split('.')[1]}_queue",))
    shop.query(_FILL_STATUSES, (status, queue[0][0], newest, topic))


def _both(large: int) -> Callable[[Shop], None]:
    def fill_both(shop: Shop) -> None:
        fill(shop, messages.TOPIC, large, status=4)
        fill(shop, TOPIC_CART, large, status=2)

    return fill_both


def _block(shop: Shop, groups: int) -> None:
    """Another worker holds so many groups, and each has a message that waits at the head of the line."""
    shop.publish_bodies(messages.TOPIC, messages.bodies(groups, first=_OTHERS))
    rows = shop.rows(messages.TOPIC)
    with shop.operator.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {shop.prefix}zithara_message_group "
            "(queue_id, group_key, id, message_id, worker_id, lease_until) "
            "VALUES (%s, %s, %s, %s, 'another', '2037-01-01 00:00:00')",
            [(_queue_id(shop), _group(shop, row.message_id), 0, 0) for row in rows],
        )


def _queue_id(shop: Shop) -> int:
    return int(shop.query("SELECT id FROM {prefix}queue WHERE name = 'zithara_order_queue'")[0][0])


def _group(shop: Shop, message_id: int) -> str:
    return identify(messages.TOPIC, message_id, shop.body(message_id) or "")[0]
