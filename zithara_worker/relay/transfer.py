"""One batch of deliveries, from RabbitMQ into Magento's queue tables in one transaction. Knows no connection to
RabbitMQ.

What makes it exactly one row a message: the transaction also writes the message's key (queue, message_id, SHA-256 of
the body) to zithara_relayed, and the relay acknowledges after COMMIT only. A message that RabbitMQ delivers again,
after a crash, a lost connection or a COMMIT in doubt, is recognised by its key. One without a message_id has none, and
may get a second row then. The row of the queue's lock is held until COMMIT, so a relay that has lost its lock inserts
nothing.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from zithara_worker.database import locks
from zithara_worker.database.session import Database
from zithara_worker.errors import Unstorable, ZitharaWorkerError
from zithara_worker.queue.statuses import Status
from zithara_worker.reasons import INTERNAL_ERROR, RELAY_NOT_TEXT, RELAY_OTHER_TOPIC, RELAY_TOO_LARGE
from zithara_worker.relay.amqp import Delivery
from zithara_worker.relay.aside import ROW_BYTES, STATEMENT_BYTES, escaped_bytes, fits

log = logging.getLogger(__name__)

#: Characters in zithara_relayed.queue_name and message_id.
_KEY_LENGTH = 191
#: Bytes of one piece of a message that is kept aside, at most.
_PIECE_BYTES = 4 * 1024 * 1024


class LockLost(Exception):
    """Another relay has taken the queue over, or the lock's row was deleted. Nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A queue in RabbitMQ. `queue_ids`: each topic that belongs to it -> its queue's id in the database."""

    name: str
    queue_ids: Mapping[str, int]

    @property
    def key(self) -> str:
        """As it stands in the worker's tables."""
        return stored_key(self.name)

    @property
    def lock(self) -> str:
        plain = self.name if self.name.isascii() and self.name.isprintable() and len(self.name) < 180 else None
        return f"relay:{plain or hashlib.sha256(self.name.encode()).hexdigest()}"


@dataclass(slots=True, kw_only=True)
class Transferred:
    """What became of a batch, by topic. `known`: relayed before."""

    stored: Counter[str] = field(default_factory=Counter)
    known: Counter[str] = field(default_factory=Counter)
    aside: Counter[str] = field(default_factory=Counter)

    def add(self, other: Transferred) -> None:
        self.stored += other.stored
        self.known += other.known
        self.aside += other.aside


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfit:
    """Why a message cannot be stored. `detail`: for people."""

    reason: str
    detail: str


def stored_key(text: str) -> str:
    """A message_id or queue name as it stands in zithara_relayed: a long one, or one that is no text, as its digest.
    Trailing blanks do not count, as in comparisons of the database."""
    plain = text.rstrip(" ")
    encoded = plain.encode("utf-8", "backslashreplace")
    if len(plain) <= _KEY_LENGTH and plain.isprintable():
        return plain
    return f"sha256:{hashlib.sha256(encoded).hexdigest()}"


class Transfer:
    """Writes the messages of one queue. `owner`: of the queue's lock, which is renewed for `lease_seconds`."""

    def __init__(self, database: Database, source: Source, *, owner: str, lease_seconds: float) -> None:
        self._database = database
        self._source = source
        self._owner = owner
        self._lease_seconds = lease_seconds

    def store(self, deliveries: Sequence[Delivery]) -> Transferred:
        """Stores each message that is not stored yet, in this order. After any error nothing of the last transaction is
        stored, unless it is a lost connection: then the keys tell. Raises LockLost, ZitharaWorkerError."""
        try:
            return self._run(deliveries, None)
        except Unstorable as error:
            why = Unfit(reason=RELAY_NOT_TEXT, detail=str(error))
        except (ZitharaWorkerError, LockLost):
            raise
        except Exception as error:
            # One bad message must not stop a queue.
            log.exception("a batch cannot be stored", extra={"event": "internal_error", "queue": self._source.name})
            why = Unfit(reason=INTERNAL_ERROR, detail=repr(error))
        if len(deliveries) == 1:
            return self._run(deliveries, why)
        # It is one of them. The others are stored all the same, and each stays in its place.
        together = Transferred()
        for each in deliveries:
            together.add(self.store([each]))
        return together

    def _run(self, deliveries: Sequence[Delivery], aside: Unfit | None) -> Transferred:
        return self._database.again_on_contention(partial(self._transaction, deliveries, aside))

    def _transaction(self, deliveries: Sequence[Delivery], aside: Unfit | None) -> Transferred:
        result = Transferred()
        with self._database.transaction():
            if not locks.keep(self._database, self._source.lock, owner=self._owner, lease_seconds=self._lease_seconds):
                raise LockLost(self._source.name)
            new, marks = self._split(deliveries, result)
            if marks:
                self._database.insert_rows("relay_mark", marks, queue=self._source.key)
            storable: list[tuple[Delivery, str]] = []
            kept: list[tuple[Delivery, Unfit]] = []
            for each in new:
                content = aside or self._content(each)
                if isinstance(content, Unfit):
                    kept.append((each, content))
                else:
                    storable.append((each, content))
            for group in self._statements(storable):
                self._insert(group)
            for each, why in kept:
                self._keep_aside(each, why)
        result.stored.update(each.routing_key for each, _ in storable)
        result.aside.update(each.routing_key for each, _ in kept)
        for each, why in kept:
            log.error(
                "a message cannot be stored in the queue: it was kept aside; see 'zithara-worker failed aside list'",
                extra={
                    "event": "relay_aside",
                    "queue": each.queue,
                    "topic": each.routing_key,
                    "rabbitmq_message_id": each.message_id,
                    "bytes": len(each.body),
                    "reason": why.reason,
                    "detail": why.detail,
                },
            )
        return result

    def _split(
        self, deliveries: Sequence[Delivery], result: Transferred
    ) -> tuple[list[Delivery], list[tuple[str, bytes]]]:
        """The messages that are new, and the keys to write for those that have one."""
        keys = [(stored_key(each.message_id), hashlib.sha256(each.body).digest()) for each in deliveries]
        message_ids = sorted({message_id for message_id, _ in keys if message_id})
        known: set[tuple[str, bytes]] = set()
        if message_ids:
            known.update(
                (str(row["message_id"]), bytes(row["body"]))
                for row in self._database.rows("relay_known", queue=self._source.key, message_ids=message_ids)
            )
        new, marks = [], []
        for each, key in zip(deliveries, keys, strict=True):
            if key in known:
                result.known[each.routing_key] += 1
                continue
            new.append(each)
            if key[0]:
                known.add(key)
                marks.append(key)
        return new, marks

    def _content(self, delivery: Delivery) -> str | Unfit:
        """The body as text, or why it cannot be stored."""
        if delivery.routing_key not in self._source.queue_ids:
            belonging = ", ".join(self._source.queue_ids)
            return Unfit(
                reason=RELAY_OTHER_TOPIC, detail=f"its routing key is {delivery.routing_key!r}, not {belonging}"
            )
        limit = self._database.max_allowed_packet
        if not fits(delivery.body, limit):
            return Unfit(
                reason=RELAY_TOO_LARGE,
                detail=f"the statement would have {escaped_bytes(delivery.body)} bytes, max_allowed_packet is {limit}",
            )
        try:
            return delivery.body.decode()
        except UnicodeDecodeError as error:
            return Unfit(reason=RELAY_NOT_TEXT, detail=f"the byte at offset {error.start} is not UTF-8")

    def _statements(self, storable: Sequence[tuple[Delivery, str]]) -> Iterator[Sequence[tuple[Delivery, str]]]:
        """Runs of messages that fit in one statement each."""
        room = self._database.max_allowed_packet - STATEMENT_BYTES
        group: list[tuple[Delivery, str]] = []
        used = 0
        for each in storable:
            needed = escaped_bytes(each[0].body) + ROW_BYTES
            if group and used + needed > room:
                yield group
                group, used = [], 0
            group.append(each)
            used += needed
        if group:
            yield group

    def _insert(self, group: Sequence[tuple[Delivery, str]]) -> None:
        self._database.insert_rows("relay_messages", [(each.routing_key, body) for each, body in group])
        ids = self._database.rows("relay_ids")[0]
        first, step = int(ids["first"]), int(ids["step"])
        self._database.insert_rows(
            "relay_statuses",
            [(self._source.queue_ids[each.routing_key], first + place * step) for place, (each, _) in enumerate(group)],
            status=int(Status.NEW),
        )

    def _keep_aside(self, delivery: Delivery, why: Unfit) -> None:
        size = min(_PIECE_BYTES, (self._database.max_allowed_packet - STATEMENT_BYTES) // 2 - ROW_BYTES)
        body = delivery.body
        pieces = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
        aside_id = secrets.token_hex(16)
        for place, piece in enumerate(pieces):
            self._database.execute(
                "relay_aside_put",
                id=aside_id,
                piece=place,
                pieces=len(pieces),
                queue=self._source.key,
                topic=delivery.routing_key.encode("utf-8", "backslashreplace").decode()[:255],
                message_id=stored_key(delivery.message_id),
                length=len(body),
                reason=why.reason,
                detail=why.detail[:1000],
                content=piece,
            )
