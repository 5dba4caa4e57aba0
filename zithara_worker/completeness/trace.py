"""The life of one order, customer or cart: in the shop, at Zithara, and each of its messages that the tables still
hold.

Reads only, with plain reads of bounded rows and bytes. An index finds what Zithara accepted, the group that is in
flight or waits, and recorded failures. The other messages are searched for, newest first; the search may be
interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from zithara_worker.completeness.compare import Process
from zithara_worker.database.session import Database
from zithara_worker.delivery.down import down, remedy, targets_of
from zithara_worker.errors import ShopError
from zithara_worker.messages import Event, Rejection, Request, Skip
from zithara_worker.monitor.fleet import WorkerStatus, living_by_topic, now_utc, read_workers
from zithara_worker.processors import identify
from zithara_worker.queue import failures
from zithara_worker.queue.failures import Failure
from zithara_worker.queue.ledger_records import Record, records
from zithara_worker.queue.operator import paused
from zithara_worker.queue.queues import QueueRow
from zithara_worker.queue.search import bounds, search
from zithara_worker.queue.statuses import PENDING, Status
from zithara_worker.shop.entities import EntityReader, ShopEntity
from zithara_worker.topics import ORDER, TOPIC_TABLE, WEBHOOK
from zithara_worker.zithara.api import content_digest

#: Messages with a recorded failure that are looked up by their index; the newest of them.
MOST_FAILURES = 1000
#: Kinds of `Entity` beside those of the topics: a message that names no entity (see `groups.own_key`), and an order as
#: webhook messages name it.
MESSAGE, WEBHOOK_ORDER = "message", "webhook"


class Place(NamedTuple):
    """Where messages of an entity may be: a queue, and the group that they have there."""

    queue: QueueRow
    group_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """What is traced. `kind`: order, customer, cart; webhook: an order under its entity_id, as webhook messages name
    it; message: a message that names no entity. `name`: the order's number, else the id."""

    kind: str
    name: str
    group_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InShop:
    """`has_latest`: whether Zithara has accepted this state last; None: that is not sure, or the entity makes no
    message (a cart that was ordered). `request`: what its rows make."""

    entity: ShopEntity
    has_latest: bool | None
    request: Request | None


class Told(NamedTuple):
    """What a body says. `endpoint`: of the request that it makes; None if it makes none. `entity_updated_at`: of orders
    their own time, 'YYYY-MM-DD HH:MM:SS' UTC, or ""."""

    endpoint: str | None
    entity_updated_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedMessage:
    """`ended`: accepted (its state is the one that Zithara accepted last, or as a create), complete (delivered, or no
    request was needed: the tables do not say which), discarded, failed, to_be_deleted; "": not yet. `retry`: what a
    retry would do, of those that failed or were discarded."""

    row: Failure
    topic: str
    told: Told
    ended: str
    retry: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Why a message has not ended. `why`: held, taken_over, php, together, behind, backoff, due. `other_id`: the
    message that goes first, or that it completes with. `until_utc`: seconds since the epoch."""

    message_id: int
    why: str
    other_id: int | None = None
    until_utc: float | None = None
    worker: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What keeps a topic's messages from being delivered. `why`: paused, shop_disabled, no_worker, breaker.
    `remedy`: of a breaker, since it depends on what failed."""

    topic: str
    why: str
    detail: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """How much of the queues was looked through: `messages`, and whether that was all of them."""

    messages: int
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """Messages and waits: oldest message first. `shop_problem`: why the shop's tables could not be read, or "".
    `other_account`: whether `accepted` is what another account than the one in use has."""

    entity: Entity
    at_utc: float
    in_shop: tuple[InShop, ...]
    shop_problem: str
    accepted: Record | None
    other_account: bool
    messages: tuple[TracedMessage, ...]
    waits: tuple[Wait, ...]
    blocks: tuple[Block, ...]
    searched: Searched

    @property
    def is_known(self) -> bool:
        return bool(self.in_shop or self.accepted or self.messages)


class Rules(Protocol):
    """What a worker would do now."""

    #: Of the account in use; None: not known
    destination: str | None
    #: Whether the shop wants its messages delivered
    enabled: bool

    def process(self, event: Event) -> Request | Skip | Rejection:
        """The request that an event becomes, or why it becomes none."""
        ...

    def retry(self, message: Failure, topic: str, group_key: str, content: Event | Rejection) -> str:
        """What a retry of a message in ERROR, or of a discarded one, would do."""
        ...


# ---------------------------------------------------------------- what is traced


def entity_of_message(database: Database, message_id: int, queues: Sequence[QueueRow]) -> Entity | None:
    """The entity that a message is about. Of a message that Magento has deleted: if Zithara accepted it last."""
    queue_ids = [each.queue_id for each in queues]
    if database.rows("relations_of_messages", queue_ids=queue_ids, message_ids=[message_id]):
        for _, topic, body in failures.bodies(database, [message_id]):
            return entity_of_group(identify(topic, message_id, body)[0], topic)
    for row in database.rows("entity_of_message", message_id=message_id):
        return entity_of_group(str(row["group_key"]), str(row["topic_name"]))
    return None


def entity_of_group(group_key: str, topic: str) -> Entity:
    kind, _, name = group_key.partition(":")
    # As `webhook.group_key` has it.
    return Entity(
        kind=WEBHOOK_ORDER if topic == WEBHOOK.name and kind == ORDER.entity else kind, name=name, group_key=group_key
    )


def trace(
    database: Database,
    entity: Entity,
    *,
    queues: Sequence[QueueRow],
    reader: EntityReader | None,
    rules: Rules,
    newest: int | None = None,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> Traced:
    """`reader`: of the shop's entities of this kind, None where there are none. `newest`: so many messages of each
    queue are looked through, None: all. `on_progress`: is called with message ids done and in all.

    KeyboardInterrupt ends the search, and what was found is returned. Raises ShopError, DatabaseUnavailable.
    """
    accepted = None if entity.kind == WEBHOOK_ORDER else next(iter(records(database, entity.group_key)), None)
    other_account = accepted is not None and rules.destination not in (None, accepted.destination)
    here = None if other_account else accepted
    in_shop, problem = _in_shop(database, reader, entity, here, rules.process)
    places = _places(entity, queues, in_shop)
    groups = {place: _group(database, place) for place in places}
    found = _by_index(database, groups, accepted, rules.process)
    searched = _search(database, places, found, rules.process, newest=newest, on_progress=on_progress)
    now = now_utc(database)
    messages = [each for place in places for each in _messages(database, place, found[place], accepted, rules)]
    messages.sort(key=lambda each: each.row.message_id)
    waits = [
        wait
        for place in places
        for wait in _waits(
            [each.row for each in messages if each.row.queue_id == place.queue.queue_id], groups[place], now
        )
    ]
    waiting = {each.row.queue_id for each in messages if not each.ended}
    workers = read_workers(database, queues, now)
    blocks = [
        block
        for place in places
        if place.queue.queue_id in waiting
        for block in _blocks(database, place.queue.topic, workers, enabled=rules.enabled)
    ]
    return Traced(
        entity=entity,
        at_utc=now,
        in_shop=tuple(in_shop),
        shop_problem=problem,
        accepted=accepted,
        other_account=other_account,
        messages=tuple(messages),
        waits=tuple(waits),
        blocks=tuple(blocks),
        searched=searched,
    )


# ---------------------------------------------------------------- the shop


def _in_shop(
    database: Database,
    reader: EntityReader | None,
    entity: Entity,
    here: Record | None,
    process: Process,
) -> tuple[list[InShop], str]:
    """The entities of this name, and why they could not be read. `here`: what the account in use has."""
    if reader is None:
        return [], ""
    try:
        # The server compares numbers without regard to case.
        same = [each for each in reader.find([entity.name]) if each.group_key == entity.group_key]
        rebuilt = reader.build([each.id for each in same])
    except ShopError as error:
        return [], str(error)
    found = []
    for each in same:
        requests = []
        if each.id in rebuilt:
            payloads = rebuilt[each.id].forms(here.published_at if here else "")
            requests = [process(Event(topic=reader.topic, payload=payload)) for payload in payloads]
        digests = {content_digest(made.entity) for made in requests if isinstance(made, Request) and made.entity}
        has_latest = (
            None if not digests or (here and not here.content) else here is not None and here.content in digests
        )
        first = requests[0] if requests else None
        found.append(InShop(entity=each, has_latest=has_latest, request=first if isinstance(first, Request) else None))
    return found, ""


# ---------------------------------------------------------------- the messages


def _places(entity: Entity, queues: Sequence[QueueRow], in_shop: Sequence[InShop]) -> list[Place]:
    """The queues that may have messages of the entity."""
    places = []
    for queue in queues:
        keys = {entity.group_key}
        if queue.topic == WEBHOOK.name and entity.kind == ORDER.entity:
            # The module's own events name the entity_id, those of an extension may name the number.
            keys |= {f"{ORDER.entity}:{each.entity.id}" for each in in_shop}
        elif queue.topic != WEBHOOK.name and entity.kind not in (TOPIC_TABLE[queue.topic].entity, MESSAGE):
            continue
        places += [Place(queue, key) for key in sorted(keys)]
    return places


class _Group(NamedTuple):
    """A row of zithara_message_group. Times: seconds since the epoch. `with_it`: message ids of `supersedes`."""

    message_id: int
    with_it: frozenset[int]
    worker_id: str | None
    lease_until_utc: float | None
    not_before_utc: float | None


def _group(database: Database, place: Place) -> _Group | None:
    for row in database.rows("entity_group", queue_id=place.queue.queue_id, group_key=place.group_key):
        named = str(row["supersedes"] or "")
        return _Group(
            message_id=int(row["message_id"]),
            with_it=frozenset(int(each.partition(":")[2]) for each in named.split(",") if ":" in each),
            worker_id=row["worker_id"],
            lease_until_utc=None if row["lease_until_utc"] is None else float(row["lease_until_utc"]),
            not_before_utc=None if row["not_before_utc"] is None else float(row["not_before_utc"]),
        )
    return None


def _by_index(
    database: Database, groups: Mapping[Place, _Group | None], accepted: Record | None, process: Process
) -> dict[Place, dict[int, Told]]:
    """Message id -> what its body says, of the messages that an index names."""
    found: dict[Place, dict[int, Told]] = {}
    for place, group in groups.items():
        rows = database.rows(
            "entity_failures", queue_id=place.queue.queue_id, group_key=place.group_key, limit=MOST_FAILURES
        )
        ids = {int(row["message_id"]) for row in rows}
        if group is not None:
            ids |= {group.message_id, *group.with_it}
        if accepted is not None:
            ids |= {accepted.message_id, accepted.create_id}
        if place.group_key.startswith(f"{MESSAGE}:"):
            ids.add(int(place.group_key.partition(":")[2]))
        found[place] = {}
        for message_id, topic, body in failures.bodies(database, sorted(ids)):
            # After a restore, ids name other messages.
            key, content = identify(topic, message_id, body)
            if key == place.group_key:
                found[place][message_id] = _told(content, process)
    return found


def _search(
    database: Database,
    places: Sequence[Place],
    found: Mapping[Place, dict[int, Told]],
    process: Process,
    *,
    newest: int | None,
    on_progress: Callable[[int, int], object],
) -> Searched:
    """Adds what a search finds to `found`."""
    messages, complete = 0, True
    try:
        ranges = {place: bounds(database, place.queue.queue_id) for place in places}
        total = sum(highest - lowest + 1 for highest, lowest in ranges.values() if highest)
        done = 0
        for place, (highest, lowest) in ranges.items():
            below, looked_at = highest + 1, 0
            for part in search(database, place.queue.queue_id, place.group_key, rows=newest):
                found[place].update((each.message_id, _told(each.content, process)) for each in part.found)
                messages, looked_at = messages + part.rows, looked_at + part.rows
                done, below = done + below - part.lowest, part.lowest
                on_progress(done, total)
            complete = complete and (newest is None or looked_at < newest or below <= lowest)
    except KeyboardInterrupt:
        # What the server still answers belongs to no statement that follows.
        database.close()
        complete = False
    return Searched(messages=messages, complete=complete)


def _told(content: Event | Rejection, process: Process) -> Told:
    made = process(content) if isinstance(content, Event) else content
    if not isinstance(made, Request):
        return Told(None, "")
    return Told(f"{made.method} {made.path}", made.entity.updated_at if made.entity else "")


def _messages(
    database: Database, place: Place, found: Mapping[int, Told], accepted: Record | None, rules: Rules
) -> Iterator[TracedMessage]:
    rows = failures.of_messages(database, [place.queue.queue_id], sorted(found))
    given_up = {each.message_id: each for each in rows if each.status is Status.ERROR or each.discarded_utc}
    judged = {
        id: (topic, rules.retry(given_up[id], topic, place.group_key, identify(topic, id, body)[1]))
        for id, topic, body in failures.bodies(database, list(given_up))
    }
    for row in rows:
        topic, verdict = judged.get(row.message_id, (place.queue.topic, None))
        yield TracedMessage(
            row=row,
            topic=topic,
            told=found[row.message_id],
            ended=_ended(row, accepted if place.queue.topic != WEBHOOK.name else None),
            retry=verdict,
        )


def _ended(row: Failure, accepted: Record | None) -> str:
    if row.status is Status.COMPLETE:
        if row.discarded_utc:
            return "discarded"
        if accepted is not None and row.message_id in (accepted.message_id, accepted.create_id):
            return "accepted"
        return "complete"
    return {Status.ERROR: "failed", Status.TO_BE_DELETED: "to_be_deleted"}.get(row.status, "")


# ---------------------------------------------------------------- what waits


def _waits(rows: Sequence[Failure], group: _Group | None, now: float) -> Iterator[Wait]:
    """`rows`: the messages of one group in one queue, oldest first."""
    pending = [each.message_id for each in rows if each.status in PENDING]
    for row in rows:
        id = row.message_id
        if row.status is Status.IN_PROGRESS and (group is None or id not in (group.message_id, *group.with_it)):
            yield Wait(message_id=id, why="php")
        elif row.status not in (*PENDING, Status.IN_PROGRESS):
            continue
        elif group is not None and id != group.message_id:
            together = id in group.with_it and id < group.message_id
            yield Wait(message_id=id, why="together" if together else "behind", other_id=group.message_id)
        elif group is None:
            first = pending[0]
            yield Wait(message_id=id, why="due") if id == first else Wait(message_id=id, why="behind", other_id=first)
        elif group.lease_until_utc is not None:
            held = group.lease_until_utc >= now
            yield Wait(
                message_id=id,
                why="held" if held else "taken_over",
                until_utc=group.lease_until_utc,
                worker=group.worker_id,
            )
        elif group.not_before_utc is not None and group.not_before_utc > now:
            yield Wait(message_id=id, why="backoff", until_utc=group.not_before_utc)
        else:
            yield Wait(message_id=id, why="due")


def _blocks(database: Database, topic: str, workers: Sequence[WorkerStatus], *, enabled: bool) -> Iterator[Block]:
    pause = paused(database).get(topic)
    if pause is not None:
        yield Block(
            topic=topic, why="paused", detail=f"by {pause.paused_by}" + (f": {pause.reason}" if pause.reason else "")
        )
    if not enabled:
        yield Block(topic=topic, why="shop_disabled")
    if not living_by_topic(workers)[topic]:
        yield Block(topic=topic, why="no_worker")
    targets = targets_of(TOPIC_TABLE[topic].target, TOPIC_TABLE[topic].path)
    seen = {}
    for worker in workers:
        for report in worker.target_reports:
            if worker.alive and report.target in targets and report.breaker != "closed":
                seen[report.target] = report.why
    for target, why in sorted(seen.items()):
        yield Block(topic=topic, why="breaker", detail=down(target, why), remedy=remedy(target, why))
