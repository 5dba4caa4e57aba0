"""What claim and settle cost a message beside other rows: completed ones, other queues' backlogs, blocked groups, skew.

Only the queue is driven here, without HTTP: each message counts as delivered once it is claimed. Time on the server is
in it, which CPU of the worker alone would not show.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from benchmarks import messages
from zithara_worker.database.session import Database
from zithara_worker.messages import Accepted, Entity, Message, Outcome, OutcomeKind
from zithara_worker.processors import identify, outline, supersedes
from zithara_worker.queue.held import Held
from zithara_worker.queue.ledger import Ledger
from zithara_worker.queue.ledger_upkeep import begin
from zithara_worker.queue.message_queue import MessageQueue
from zithara_worker.queue.queues import find_queues
from zithara_worker.queue.settle import Settlement
from zithara_worker.reasons import UNCHANGED
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.publisher import stored_body
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_TABLE

#: Messages of one batch, and how many batches are timed.
BATCH = 100
BATCHES = 20
#: Messages of which statements are counted: they are the same in each batch.
COUNTED = 5 * BATCH
#: Where the numbering of orders begins whose groups are blocked: none of those that are measured.
_OTHERS = 50_000_000
#: Claims in vain until something must be wrong.
_TRIES = 1_000
DELIVERED = Outcome(kind=OutcomeKind.DELIVERED, http_status=200)
_UNCHANGED = Outcome(kind=OutcomeKind.SKIPPED, reason=UNCHANGED)
_ACCEPTED = Accepted(entity=Entity(state=None), request="0" * 64, content="0" * 64)
_RECORDED = replace(DELIVERED, accepted=_ACCEPTED)

#: A stored body and a status row for each number of a range (MariaDB's own tables of numbers).
_FILL_MESSAGES = (
    "INSERT INTO {prefix}queue_message (topic_name, body) "
    "SELECT %s, REPLACE(%s, 'NUMBER', %s + seq) FROM seq_1_to_{rows}"
)
#: Bodies of neighbours are small, nobody reads them. Those behind in our own line are orders of their own.
_EMPTY = '"{}"'
_SMALL_ORDER = stored_body({"order": {"increment_id": "NUMBER"}})
_FILL_STATUSES = (
    "INSERT INTO {prefix}queue_message_status (queue_id, message_id, status) "
    "SELECT q.id, m.id, %s FROM {prefix}queue_message m JOIN {prefix}queue q ON q.name = %s "
    "WHERE m.id > %s AND m.topic_name = %s"
)
_FILL_LEDGER = (
    "INSERT INTO {prefix}zithara_delivery (topic_name, group_key, destination, message_id, published_at, create_id, "
    "covers, request, content, first_accepted_at, last_accepted_at, confirmed_at, accepted) "
    "SELECT %s, CONCAT('order:', %s + seq), %s, %s + seq, NOW() - INTERVAL 60 DAY, %s + seq, '', SHA2(seq, 256), "
    "SHA2(seq, 256), NOW() - INTERVAL 60 DAY, NOW() - INTERVAL 60 DAY, NOW() - INTERVAL 60 DAY, 1 FROM seq_1_to_{rows}"
)
#: Rows that one statement of a filling inserts at most, and messages that are made at once.
_AT_ONCE = 1_000_000
_MADE_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one message: claimed and settled. `microseconds`: median batch; `p90`: the ninth of ten."""

    surroundings: str
    microseconds: float
    p90: float
    #: Until the first message was had, fruitless claims included
    first_claim_ms: float
    statements_per_100: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """How other groups get past one with many messages ahead of them.

    `first_seconds`: until the first message of another one was claimed. `microseconds`: of each of the others, from the
    start until all were settled. `claimed`, `completed`: messages of the one group meanwhile, the latter with those
    that a newer snapshot replaced.
    """

    surroundings: str
    first_seconds: float
    microseconds: float
    claimed: int
    completed: int
    statements_per_100: float


def measure(server: MariaDbServer, *, large: int, indexed: bool = False) -> Iterator[Cost]:
    """Each surrounding on a shop of its own, with the delivery ledger. `large`: rows of the largest, e.g. 1,000,000."""
    cost = partial(_cost, server, indexed=indexed, recorded=True)
    completed = partial(fill, topic=messages.TOPIC, status=4)
    others = partial(fill, topic=TOPIC_CART, count=large, status=2)
    yield cost("empty shop")
    yield cost(f"{large // 10:,} completed rows", partial(completed, count=large // 10))
    yield cost(f"{large:,} completed rows", partial(completed, count=large))
    yield cost(f"{large:,} rows of another queue", others)
    yield cost(f"{large:,} completed and {large:,} of another queue", partial(completed, count=large), others)
    yield cost(f"{large // 100:,} blocked groups ahead", partial(_block, groups=large // 100))
    yield cost("empty shop, again")
    yield cost("own backlog of 1,000", count=1_000)
    behind = partial(fill, topic=messages.TOPIC, count=large, status=2, body=_SMALL_ORDER)
    yield cost(f"own backlog of {large:,}", behind=behind)
    yield cost("half of the messages in one group", skewed=True)


def measure_group(server: MariaDbServer, *, count: int) -> Iterator[Passed]:
    """Of carts, which are coalesced, and orders, which are not: with nothing ahead, and with `count` of one group."""
    for topic, name, bodies in ((TOPIC_CART, "cart", messages.carts), (messages.TOPIC, "order", messages.bodies)):
        for ahead in (0, count):
            with Shop(server) as shop, closing(Database(shop.database_settings)) as database:
                for start in range(0, ahead, _MADE_AT_ONCE):
                    shop.publish_bodies(topic, bodies(min(_MADE_AT_ONCE, ahead - start), groups=1, first=_OTHERS))
                shop.publish_bodies(topic, bodies(BATCH * BATCHES))
                yield _passed(database, topic, _group(shop, topic, 1), f"{ahead:,} messages of one {name} ahead")


def _passed(database: Database, topic: str, group: str, name: str) -> Passed:
    began, statements = time.monotonic(), database.statements_sent
    first_at, others, claimed, completed = 0.0, 0, 0, 0
    for batch in handled(database, queue_of(database, topic, recorded=True), outcome=_RECORDED):
        of_group = [each for each in batch.messages if each.group_key == group]
        if len(of_group) < len(batch.messages):
            first_at = first_at or batch.claimed_at
        others += len(batch.messages) - len(of_group)
        claimed += len(of_group)
        completed += len(of_group) + sum(len(each.supersedes) for each in of_group)
        if others >= BATCH * BATCHES - 1:
            break
    return Passed(
        surroundings=name,
        first_seconds=first_at - began,
        microseconds=(time.monotonic() - began) / others * 1e6,
        claimed=claimed,
        completed=completed,
        statements_per_100=(database.statements_sent - statements) / others * 100,
    )


def measure_ledger(server: MariaDbServer, *, rows: int) -> Iterator[Cost]:
    """Of orders spread evenly over those of which the ledger tells already."""
    step = max(1, rows // (BATCH * BATCHES))
    cost = partial(_cost, server, recorded=True, step=step)
    yield cost("empty ledger")
    yield cost(f"{rows:,} rows in the ledger", partial(_fill_ledger, rows=rows))
    yield cost("empty ledger, again")


def table_passed(found: Sequence[Passed]) -> str:
    rows = "".join(
        f"| {each.surroundings} | {each.first_seconds:.2f} | {each.microseconds:,.0f} | {each.claimed:,} "
        f"| {each.completed:,} | {each.statements_per_100:.1f} |\n"
        for each in found
    )
    return (
        f"| {BATCH * BATCHES:,} of other groups, behind | first claimed after, s | us each, until all were settled "
        f"| claimed of the one group meanwhile | completed of it | statements per 100 of the others |\n"
        f"| --- | --- | --- | --- | --- | --- |\n{rows}"
    )


def table(costs: Sequence[Cost]) -> str:
    base = costs[0]
    rows = "".join(
        f"| {each.surroundings} | {each.microseconds / base.microseconds:.2f} | {each.microseconds:.0f} "
        f"| {each.p90:.0f} | {each.first_claim_ms:.0f} | {each.statements_per_100:.1f} |\n"
        for each in costs
    )
    return (
        f"| beside | / {base.surroundings} | us a message, median | p90 | first claim, ms | statements per 100 |\n"
        f"| --- | --- | --- | --- | --- | --- |\n{rows}"
    )


def plain(server: MariaDbServer, *, recorded: bool = False) -> Cost:
    """On a shop with nothing else. `recorded`: with the delivery ledger."""
    return _cost(server, "empty shop", recorded=recorded, count=COUNTED)


def plain_unchanged(server: MariaDbServer) -> Cost:
    """The same with the delivery ledger, of messages that tell what was accepted before."""
    with Shop(server) as shop, closing(Database(shop.database_settings)) as database:
        for outcome in (_RECORDED, _UNCHANGED):
            shop.publish_bodies(messages.TOPIC, messages.bodies(COUNTED))
            cost = drain(database, "unchanged", COUNTED, recorded=True, outcome=outcome)
        return cost


def _cost(
    server: MariaDbServer,
    name: str,
    *before: Callable[[Shop], object],
    behind: Callable[[Shop], object] = lambda shop: None,
    indexed: bool = False,
    count: int = BATCH * BATCHES,
    step: int = 1,
    skewed: bool = False,
    recorded: bool = False,
) -> Cost:
    """`before` and `behind`: what the shop has before and after the `count` messages that are measured. `step`: from
    one order's number to the next."""
    with Shop(server) as shop:
        if indexed:
            shop.run_script("optional_index.sql")
        for prepare in before:
            prepare(shop)
        bodies = list(messages.bodies(count, step=step))
        if skewed:
            bodies[: count // 2] = bodies[:1] * (count // 2)
        shop.publish_bodies(messages.TOPIC, bodies)
        behind(shop)
        with closing(Database(shop.database_settings)) as database:
            return drain(database, name, count // 2 if skewed else count, recorded=recorded)


def queue_of(database: Database, topic: str = messages.TOPIC, *, recorded: bool = False) -> MessageQueue:
    """As a worker has it: carts are coalesced. `recorded`: with the delivery ledger."""
    row = find_queues(database, [topic], {})[0]
    if recorded:
        begin(database)
    return MessageQueue(
        database,
        queue_id=row.queue_id,
        name=row.name,
        topic=topic,
        held=Held(worker_id="bench", lease_seconds=60, clock=time.monotonic),
        identify=identify,
        supersedes=supersedes if topic == TOPIC_CART else None,
        outline=outline,
        ledger=Ledger(database, topic=topic, destination=_ACCEPTED.request) if recorded else None,
    )


class Handled(NamedTuple):
    """A batch that was claimed and settled. `seconds`: both together."""

    messages: list[Message]
    claimed_at: float
    seconds: float


def handled(database: Database, queue: MessageQueue, *, outcome: Outcome = DELIVERED) -> Iterator[Handled]:
    """Claims and settles a batch each time, as long as there is one, and polls in between."""
    in_vain = 0
    while in_vain <= _TRIES:
        poll(database, queue)
        started = time.monotonic()
        # Heads whose groups are busy elsewhere: looked at, remembered, and passed by at once, as by the loop.
        while not (taken := [message for message, _ in queue.claim(BATCH)]) and in_vain <= _TRIES:
            in_vain += 1
            started = time.monotonic()
        if taken:
            claimed_at = time.monotonic()
            queue.settle([Settlement(message=message, outcome=outcome) for message in taken])
            yield Handled(taken, claimed_at, time.monotonic() - started)
    raise RuntimeError("nothing is left to claim")


def drain(database: Database, name: str, wanted: int, *, recorded: bool, outcome: Outcome | None = None) -> Cost:
    queue = queue_of(database, recorded=recorded)
    costs: list[float] = []
    began, first_claim, done, statements = time.monotonic(), 0.0, 0, database.statements_sent
    for batch in handled(database, queue, outcome=outcome or (_RECORDED if recorded else DELIVERED)):
        first_claim = first_claim or batch.claimed_at - began
        costs.append(batch.seconds / len(batch.messages) * 1e6)
        done += len(batch.messages)
        if done >= wanted:
            break
    poll(database, queue)
    return Cost(
        surroundings=name,
        microseconds=statistics.median(costs),
        p90=statistics.quantiles(costs, n=10)[-1] if len(costs) > 1 else costs[0],
        first_claim_ms=first_claim * 1000,
        statements_per_100=(database.statements_sent - statements) / done * 100,
    )


def poll(database: Database, queue: MessageQueue) -> None:
    """What the loop does four times a second."""
    row = database.rows("poll", queue_ids=[queue.queue_id])[0]
    queue.update_from_poll(newest=int(row["newest"] or 0), due=bool(row["due"]), expired=bool(row["expired"]))
    queue.recheck()


def fill(shop: Shop, topic: str, count: int, *, status: int, body: str = _EMPTY) -> None:
    """Adds `count` messages of one status to the topic's queue. `body`: NUMBER in it is another one in each."""
    numbered = 0
    for rows in _slices(count):
        [(newest,)] = shop.query("SELECT COALESCE(MAX(id), 0) FROM {prefix}queue_message")
        shop.query(_FILL_MESSAGES.replace("{rows}", str(rows)), (topic, body, 700_000_000 + numbered))
        shop.query(_FILL_STATUSES, (status, TOPIC_TABLE[topic].queue, newest, topic))
        numbered += rows


def _fill_ledger(shop: Shop, rows: int) -> None:
    """Orders that were accepted long ago; ids of messages go on behind theirs."""
    start = 0
    for some in _slices(rows):
        numbers = (messages.FIRST_ORDER + start - 1, _ACCEPTED.request, start, start)
        shop.query(_FILL_LEDGER.replace("{rows}", str(some)), (messages.TOPIC, *numbers))
        start += some
    shop.query(f"ALTER TABLE {{prefix}}queue_message AUTO_INCREMENT = {rows + 1}")


def _slices(count: int) -> Iterator[int]:
    for start in range(0, count, _AT_ONCE):
        yield min(_AT_ONCE, count - start)


def _block(shop: Shop, groups: int) -> None:
    """Another worker holds so many groups, and each has a message that waits at the head of the line."""
    shop.publish_bodies(messages.TOPIC, messages.bodies(groups, first=_OTHERS))
    rows = shop.rows(messages.TOPIC)
    [(queue_id,)] = shop.query("SELECT id FROM {prefix}queue WHERE name = 'zithara_order_queue'")
    with shop.operator.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {shop.prefix}zithara_message_group "
            "(queue_id, group_key, id, message_id, worker_id, lease_until) "
            "VALUES (%s, %s, %s, %s, 'another', '2037-01-01 00:00:00')",
            [(queue_id, _group(shop, messages.TOPIC, row.message_id), 0, 0) for row in rows],
        )


def _group(shop: Shop, topic: str, message_id: int) -> str:
    return identify(topic, message_id, shop.body(message_id) or "")[0]
