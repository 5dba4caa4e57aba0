"""The delivery ledger: what Zithara last accepted of each order, customer and cart, and what need not be sent.

The rules are pure functions of a message, its request and the row that the claim has read. `Ledger` reads rows within
the transaction of a claim and writes them within that of a settle: whoever holds the group is the only one who writes.
Webhooks are events, not states, and have no row.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from zithara_worker.database.session import Database
from zithara_worker.logs.audit import Audit, operator_action
from zithara_worker.messages import Accepted, Entity, Known, Message, Outcome, OutcomeKind, Request
from zithara_worker.queue.statuses import Status
from zithara_worker.reasons import OVERTAKEN, UNCHANGED
from zithara_worker.settings.sections import ZitharaSettings
from zithara_worker.topics import CART, TOPIC_TABLE

log = logging.getLogger(__name__)

#: Seconds for which a request without an answer may still arrive: it may wait in a gateway, or with a worker that was
#: stopped. Until then an acceptance does not prove what the CRM holds in the end.
DOUBT_SECONDS = 600
#: Topics whose messages tell the state of an entity.
LEDGER_TOPICS = tuple(name for name, topic in TOPIC_TABLE.items() if topic.entity)
#: Days after which a cart of which nothing was accepted is forgotten.
CART_DAYS = 30
#: The first version of the worker that keeps the ledger.
FIRST_VERSION = (0, 3)
#: Rows that one statement changes at most, where it changes any number.
SLICE = 1000


def arrived(outcome: Outcome) -> bool:
    """Whether Zithara has what the message tells: it accepted the request, or the same one before."""
    return outcome.kind is OutcomeKind.DELIVERED or (
        outcome.kind is OutcomeKind.SKIPPED and outcome.reason == UNCHANGED
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is not sent. `unchanged_for`: seconds for which an accepted request need not be repeated; 0: each is sent.

    `digest`: SHA-256 of a request, as `Accepted.request`. `ordered_ids`: see `overtakes`.
    """

    digest: Callable[[Request], str]
    unchanged_for: float
    ordered_ids: bool = True

    def reason_not_to_send(self, message: Message, request: Request) -> str:
        """OVERTAKEN, UNCHANGED, or "" for a message that is to be sent."""
        known, entity = message.known, request.entity
        if known is None or entity is None:
            return ""
        if overtakes(known, message, entity, ordered_ids=self.ordered_ids):
            return OVERTAKEN
        # The digest costs a few microseconds: only where it can be the same.
        if known.request and known.accepted_ago < self.unchanged_for and self.digest(request) == known.request:
            return UNCHANGED
        return ""


def overtakes(known: Known, message: Message, entity: Entity, *, ordered_ids: bool = True) -> bool:
    """Whether what Zithara has accepted is newer than this message, and tells all of it.

    `ordered_ids`: one server gives out all ids, so that within one second they tell which message came first. With
    several writing servers they do not, and a message in doubt is sent: an older state is mended by the next message or
    by reconcile, a lost one by nobody.
    """
    return (
        message.message_id < known.message_id
        # Its worker died with it: it may have been sent behind the newer one already, and nobody knows.
        and not message.suspect
        and not _is_later(message, entity, known, ordered_ids)
        and covers(known, entity, message.message_id)
    )


def _is_later(message: Message, entity: Entity, known: Known, ordered_ids: bool) -> bool:
    """Whether a message with a lower id was published later: ids begin again after a restore, and servers of a cluster
    take theirs in turn. What was tried before has another time in its row, so only NEW rows tell."""
    if entity.updated_at and known.entity_updated_at and entity.updated_at != known.entity_updated_at:
        return entity.updated_at > known.entity_updated_at
    if message.status_before != Status.NEW:
        return False
    published_at = message.updated_at_before
    return published_at > known.published_at or (published_at == known.published_at and not ordered_ids)


def covers(known: Known, entity: Entity, message_id: int) -> bool:
    """Whether what was accepted tells everything that this message would: as for coalescing, and a create, which alone
    tells customer and items of an order, is covered by a newer create only."""
    if entity.is_create:
        return known.create_id > message_id
    return not entity.names or set(entity.names.split("\n")) <= set(known.names.split("\n"))


def destination(settings: ZitharaSettings) -> str:
    """SHA-256 that tells one account of one API from any other."""
    return hashlib.sha256(f"{settings.base_url}\0{settings.client_id}".encode()).hexdigest()


class Ledger:
    """The rows of one topic at one destination. Its methods run within a transaction of the caller.

    `destination`: see `destination`; a row of another one counts as absent.
    """

    def __init__(self, database: Database, *, topic: str, destination: str) -> None:
        self._database = database
        self._topic = topic
        self._destination = destination

    # ---------------------------------------------------------------- claim

    def read(self, group_keys: Collection[str]) -> Mapping[str, Known]:
        """What is known of these entities, by group."""
        if not group_keys:
            return {}
        rows = self._database.rows(
            "ledger_read", topic=self._topic, group_keys=sorted(group_keys), destination=self._destination
        )
        return {
            row["group_key"]: Known(
                message_id=int(row["message_id"]),
                published_at=str(row["published_at"]),
                create_id=int(row["create_id"]),
                names=str(row["covers"]),
                request=str(row["request"] or ""),
                entity_updated_at=str(row["entity_updated_at"] or ""),
                accepted_ago=float(row["accepted_ago"]),
            )
            for row in rows
        }

    def doubt(self, group_keys: Collection[str]) -> None:
        """A request of these entities may still arrive, or an operator wants one to be sent."""
        if group_keys:
            rows = [(group_key,) for group_key in sorted(group_keys)]
            self._database.insert_rows("ledger_doubt", rows, topic=self._topic, seconds=DOUBT_SECONDS)

    # ---------------------------------------------------------------- settle

    def write(self, outcomes: Sequence[tuple[Message, Outcome]]) -> list[Message]:
        """Writes what became of these messages. Returns those that cannot complete as unchanged, since an operator has
        asked for the entity to be sent since the claim."""
        by_group = {message.group_key: (message, outcome) for message, outcome in outcomes}
        unchanged = [message for message, outcome in outcomes if outcome.reason == UNCHANGED]
        asked_for = self._unchanged(unchanged) if unchanged else []
        self._record([each for each in outcomes if each[1].accepted is not None])
        self.doubt([group for group, (_, outcome) in by_group.items() if outcome.may_arrive])
        for message, outcome in outcomes:
            known = message.known
            if known is not None and message.message_id < known.message_id and outcome.may_arrive:
                self._database.execute(
                    "ledger_allow", topic=self._topic, group_key=message.group_key, message_id=message.message_id
                )
        late = [
            message.group_key
            for message, outcome in outcomes
            if outcome.reason == OVERTAKEN and message.status_before == Status.NEW
        ]
        if late:
            # It became visible behind a newer one. Its transaction may have committed the newer state all the same.
            self._database.execute("ledger_stale", topic=self._topic, group_keys=sorted(late))
        return asked_for

    def _unchanged(self, messages: Sequence[Message]) -> list[Message]:
        rows = self._database.rows(
            "ledger_lock",
            topic=self._topic,
            group_keys=sorted(message.group_key for message in messages),
            destination=self._destination,
        )
        found = {row["group_key"]: str(row["request"] or "") for row in rows}
        same = [each for each in messages if each.known and found.get(each.group_key) == each.known.request]
        if same:
            self._database.insert_rows(
                "ledger_unchanged",
                [(each.group_key, each.message_id, each.updated_at_before) for each in _by_group(same)],
                topic=self._topic,
                destination=self._destination,
            )
        return [each for each in messages if each not in same]

    def _record(self, accepted: Sequence[tuple[Message, Outcome]]) -> None:
        rows = []
        for message, outcome in sorted(accepted, key=lambda each: each[0].group_key):
            news, known = outcome.accepted, message.known
            if news is None:
                continue
            create_id = message.message_id if news.entity.is_create else 0
            if known is not None and message.message_id < known.message_id and not _replaces(message, news, known):
                self._database.execute(
                    "ledger_record_older",
                    topic=self._topic,
                    group_key=message.group_key,
                    destination=self._destination,
                    create_id=create_id,
                )
                continue
            rows.append(
                (
                    message.group_key,
                    message.message_id,
                    message.updated_at_before,
                    create_id,
                    news.entity.names,
                    news.request,
                    news.content,
                    news.entity.updated_at or None,
                )
            )
        if rows:
            self._database.insert_rows("ledger_record", rows, topic=self._topic, destination=self._destination)


def _replaces(message: Message, news: Accepted, known: Known) -> bool:
    """Whether a message with a lower id than the recorded one was published later: its state is the newer one."""
    return _is_later(message, news.entity, known, ordered_ids=False)


def _by_group(messages: Sequence[Message]) -> list[Message]:
    return sorted(messages, key=lambda message: message.group_key)


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


# ---------------------------------------------------------------- what operators ask for


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
            is_sure=bool(row["is_sure"]),
            stale=bool(row["stale"]),
        )
        for row in database.rows("ledger_show", topics=LEDGER_TOPICS, group_key=group_key)
    ]


def count(database: Database) -> int:
    """Entities of which something is recorded."""
    return int(database.rows("ledger_count")[0]["entities"])


def count_of_old_ids(database: Database) -> int:
    """Entities whose message ids were given out again since; see `forget_ids_that_began_again`."""
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
