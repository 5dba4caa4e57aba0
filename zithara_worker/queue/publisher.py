"""Puts a message on the queue exactly as Magento would store it, for operators and tests."""

from __future__ import annotations

import json
import re

from zithara_worker.database.session import Database
from zithara_worker.queue.statuses import Status

#: An even number of backslashes before it belongs to escaped ones.
_ESCAPED_DEL = re.compile(r"(?<!\\)((?:\\\\)*)\\u007f")


def stored_body(published: str) -> str:
    """What Magento's MessageEncoder makes of the string that the module publishes: PHP's json_encode of it.

    PHP escapes / and everything beyond ASCII; Python escapes the latter alike, and DEL too, which PHP does not.
    Example: 'a/b' becomes '"a\\/b"'.
    """
    return _ESCAPED_DEL.sub("\\1\x7f", json.dumps(published)).replace("/", "\\/")


def publish(database: Database, *, topic: str, queue_id: int, body: str) -> int:
    """Stores one message (Magento\\MysqlMq\\Model\\Driver\\Queue::push); its queue_message.id.

    Needs INSERT on queue_message and queue_message_status, which the worker's own user does not have.
    """
    with database.transaction():
        message_id = database.insert("publish_message", topic=topic, body=body)
        database.execute("publish_status", queue_id=queue_id, message_id=message_id, status=int(Status.NEW))
    return message_id
