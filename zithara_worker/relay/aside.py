"""Messages from RabbitMQ that the queue's tables cannot hold: kept in zithara_relay_aside, in pieces, until an operator
exports, retries or discards them. Needs no pika.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from zithara_worker.database.session import Database
from zithara_worker.errors import ShopError
from zithara_worker.queue.queues import store_message

#: The bytes that the driver escapes with a backslash, and what a row and a statement need beside the body.
_ESCAPED = (b"\\", b'"', b"'", b"\n", b"\r", b"\0", b"\x1a")
ROW_BYTES, STATEMENT_BYTES = 400, 1024
#: Messages that are listed, or read at once.
SLICE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Aside:
    """A message that is kept aside. Its id is 32 hexadecimal digits."""

    id: str
    queue: str
    topic: str
    rabbitmq_message_id: str
    length_bytes: int
    reason: str
    detail: str
    kept_at_utc: float


def escaped_bytes(body: bytes) -> int:
    """The length of the body within a statement."""
    return len(body) + sum(map(body.count, _ESCAPED))


def fits(body: bytes, max_allowed_packet: int) -> bool:
    """Whether the server takes the statement that stores the body."""
    return escaped_bytes(body) + ROW_BYTES + STATEMENT_BYTES <= max_allowed_packet


def count(database: Database) -> int:
    """How many messages are kept aside."""
    return sum(int(row["messages"]) for row in database.rows("relay_aside_counts"))


def find(database: Database, ids: Collection[str] = (), *, limit: int | None = None) -> list[Aside]:
    """The messages with these ids, oldest first; without ids the oldest `limit` (SLICE) of all."""
    return [
        Aside(
            id=str(row["id"]),
            queue=str(row["queue_name"]),
            topic=str(row["topic_name"]),
            rabbitmq_message_id=str(row["message_id"]),
            length_bytes=int(row["length"]),
            reason=str(row["reason_code"]),
            detail=str(row["detail"]),
            kept_at_utc=float(row["kept_at"]),
        )
        for row in database.rows("relay_asides", every=not ids, ids=[*ids, ""], limit=len(ids) or limit or SLICE)
    ]


def pieces(database: Database, aside_id: str) -> Iterator[bytes]:
    """The body, a piece at a time. Raises ShopError if there is no such message, or a piece of it is missing."""
    piece, count = 0, 1
    while piece < count:
        rows = database.rows("relay_aside_piece", id=aside_id, piece=piece)
        if not rows:
            raise ShopError(f"no message {aside_id} is kept aside (piece {piece} is missing): see 'failed aside list'")
        count = int(rows[0]["pieces"])
        yield bytes(rows[0]["content"])
        piece += 1


def retry(database: Database, message: Aside, queue_ids: Mapping[str, int]) -> int:
    """Puts the message on its topic's queue, as the newest one, and forgets it here; returns its queue_message.id.

    `queue_ids`: topic -> id of its queue. Raises ShopError if the queue can still not hold it; it is kept then. Needs
    INSERT on the queue's two tables.
    """
    queue_id = queue_ids.get(message.topic)
    if queue_id is None:
        raise ShopError(f"message {message.id}: the shop has no queue for {message.topic!r}; export it, or discard it")
    body = b"".join(pieces(database, message.id))
    if not fits(body, database.max_allowed_packet):
        raise ShopError(
            f"message {message.id}: its statement would have {escaped_bytes(body)} bytes, and max_allowed_packet is "
            f"{database.max_allowed_packet}: raise it on the server, and give the command again"
        )
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise ShopError(
            f"message {message.id}: the byte at offset {error.start} is not UTF-8; export it, or discard it"
        ) from error
    with database.transaction():
        # Deleted first: of two operators, the second one finds nothing.
        if not database.execute("relay_aside_delete", ids=[message.id]):
            raise ShopError(f"message {message.id} was retried or discarded meanwhile")
        return store_message(database, topic=message.topic, queue_id=queue_id, body=text)


def discard(database: Database, ids: Sequence[str]) -> int:
    """Deletes messages that are kept aside; how many there were."""
    return sum(1 for each in ids if database.execute("relay_aside_delete", ids=[each]))
