"""The shop's queues: finds the queue of a topic, and puts messages on it as Magento would."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zithara_worker.database.session import Database
from zithara_worker.errors import ShopError
from zithara_worker.queue.statuses import Status
from zithara_worker.topics import TOPIC_TABLE, TOPICS

#: json.dumps escapes DEL. An even number of backslashes before it belongs to escaped backslashes.
_ESCAPED_DEL = re.compile(r"(?<!\\)((?:\\\\)*)\\u007f")


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A row of Magento's table `queue`, and the topic that it serves."""

    queue_id: int
    name: str
    topic: str


def find_queues(database: Database, topics: Sequence[str], overrides: Mapping[str, str]) -> list[QueueRow]:
    """The queue of each topic: the name in `overrides`, else the PHP module's, else one named like the topic.

    Raises ShopError naming every topic that has no queue.
    """
    found, missing = _look_up(database, topics, overrides)
    if missing:
        raise _no_queue(database, missing, overrides)
    return found


def queues_present(
    database: Database, overrides: Mapping[str, str], topics: Sequence[str] = TOPICS
) -> tuple[list[QueueRow], list[str]]:
    """The queues of these topics, and the topics that have none. Raises ShopError when there is none at all."""
    found, missing = _look_up(database, topics, overrides)
    if missing and not found:
        raise _no_queue(database, missing, overrides)
    return found, missing


def stored_body(published: str) -> str:
    """What Magento's MessageEncoder stores for the string that the module publishes: PHP's json_encode of it.

    Example: 'a/b' becomes '"a\\/b"'. PHP also escapes every character beyond ASCII, as Python does, but not DEL.
    """
    text = json.dumps(published)
    if "\\u007f" in text:  # a search for the whole pattern takes as long as all the rest
        text = _ESCAPED_DEL.sub("\\1\x7f", text)
    return text.replace("/", "\\/")


def body_text(body: str | bytes | None) -> str:
    """A value of queue_message.body as text: the driver returns bytes if the column is a BLOB.

    Bytes that are not UTF-8 become text that is not JSON, so that the message is rejected as such.
    """
    return body.decode("utf-8", "backslashreplace") if isinstance(body, bytes) else body or ""


def put_message(database: Database, *, topic: str, queue_id: int, body: str) -> int:
    """Stores one message in a transaction of its own; returns its queue_message.id."""
    with database.transaction():
        return store_message(database, topic=topic, queue_id=queue_id, body=body)


def store_message(database: Database, *, topic: str, queue_id: int, body: str) -> int:
    """Stores one message in the caller's transaction (Magento\\MysqlMq\\Model\\Driver\\Queue::push); returns its
    queue_message.id.

    Needs INSERT on queue_message and queue_message_status, which the worker's own database user does not have.
    """
    message_id = database.insert("publish_message", topic=topic, body=body)
    database.execute("publish_status", queue_id=queue_id, message_id=message_id, status=int(Status.NEW))
    return message_id


def _look_up(
    database: Database, topics: Sequence[str], overrides: Mapping[str, str]
) -> tuple[list[QueueRow], list[str]]:
    """The queue of each topic that has one, and the topics that have none."""
    wanted = sorted({name for topic in topics for name in _names(topic, overrides)})
    ids = {str(row["name"]): int(row["id"]) for row in database.rows("queues_by_name", names=wanted)}
    found: list[QueueRow] = []
    missing: list[str] = []
    for topic in dict.fromkeys(topics):
        name = next((name for name in _names(topic, overrides) if name in ids), None)
        if name is None:
            missing.append(topic)
        else:
            found.append(QueueRow(ids[name], name, topic))
    return found, missing


def _names(topic: str, overrides: Mapping[str, str]) -> tuple[str, ...]:
    """The names that a topic's queue may have, the preferred one first."""
    if topic in overrides:
        return (overrides[topic],)
    return (TOPIC_TABLE[topic].queue, topic) if topic in TOPIC_TABLE else (topic,)


def _no_queue(database: Database, topics: Sequence[str], overrides: Mapping[str, str]) -> ShopError:
    told = "; ".join(f"{topic} (looked for {' and '.join(_names(topic, overrides))})" for topic in topics)
    return ShopError(
        f"no row in table {database.prefix}queue for {told}",
        "run 'zithara-worker install', or name the queue in section [queues]",
    )
