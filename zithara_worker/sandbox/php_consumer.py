"""A PHP consumer, statement by statement, so that a test can act between any two of them.

Source: Magento\\MysqlMq\\Model\\ResourceModel\\Queue and QueueManagement,
Magento\\Framework\\MessageQueue\\MessageController and Magento\\MessageQueue\\Model\\ResourceModel\\Lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pymysql

from zithara_worker.queue.settle import message_code
from zithara_worker.queue.statuses import Status
from zithara_worker.topics import TOPIC_TABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """A row of getMessages(). It was read without a lock, so it may be stale when it is used."""

    relation_id: int
    message_id: int
    topic: str
    body: str | None
    number_of_trials: int


class PhpConsumer:
    """`select`, `take`, `lock`, then `complete`, `reject` or `requeue`. `consume_one` calls them in Magento's order.

    `connection`: autocommit, and without CLIENT.FOUND_ROWS, because PHP counts changed rows.
    """

    def __init__(self, connection: pymysql.connections.Connection[Any], topic: str, *, prefix: str = "") -> None:
        self._connection = connection
        self._prefix = prefix
        self.queue, self.name = TOPIC_TABLE[topic].queue, TOPIC_TABLE[topic].php_consumer

    def select(self) -> Selected | None:
        """The oldest message that is NEW or RETRY_REQUIRED, None when there is none."""
        with self._connection.cursor() as cursor:
            cursor.execute(
                "SELECT queue_message_status.id, queue_message_status.message_id, queue_message.topic_name, "
                "queue_message.body, queue_message_status.number_of_trials "
                f"FROM {self._prefix}queue_message AS queue_message "
                f"INNER JOIN {self._prefix}queue_message_status AS queue_message_status "
                "ON queue_message.id = queue_message_status.message_id "
                f"INNER JOIN {self._prefix}queue AS queue ON queue.id = queue_message_status.queue_id "
                "WHERE queue_message_status.status IN (2, 5) AND queue.name = %s "
                "ORDER BY queue_message_status.updated_at ASC, queue_message_status.id ASC LIMIT 1",
                (self.queue,),
            )
            row = cursor.fetchone()
        if row is None:
            return None
        return Selected(relation_id=row[0], message_id=row[1], topic=row[2], body=row[3], number_of_trials=row[4])

    def take(self, selected: Selected) -> bool:
        """Sets IN_PROGRESS whatever the status is. Returns whether the row changed, which PHP takes for success."""
        return self._set_status(selected, Status.IN_PROGRESS) == 1

    def lock(self, selected: Selected) -> bool:
        """Inserts the queue_lock row. False if the code exists: PHP then completes the message unprocessed."""
        with self._connection.cursor() as cursor:
            cursor.execute(
                f"SELECT id FROM {self._prefix}queue_lock WHERE message_code = %s", (self._message_code(selected),)
            )
            if cursor.fetchone() is not None:
                return False
            cursor.execute(
                f"INSERT INTO {self._prefix}queue_lock (message_code) VALUES (%s)", (self._message_code(selected),)
            )
        return True

    def complete(self, selected: Selected) -> None:
        self._set_status(selected, Status.COMPLETE)

    def reject(self, selected: Selected) -> None:
        """What PHP does when its handler throws: sets ERROR at once and deletes the queue_lock row."""
        self._set_status(selected, Status.ERROR)
        with self._connection.cursor() as cursor:
            cursor.execute(
                f"DELETE FROM {self._prefix}queue_lock WHERE message_code = %s", (self._message_code(selected),)
            )

    def requeue(self, selected: Selected) -> None:
        """What PHP does when the poison pill changed after it took the message."""
        with self._connection.cursor() as cursor:
            cursor.execute(
                f"UPDATE {self._prefix}queue_message_status SET status = 5, number_of_trials = number_of_trials+1 "
                "WHERE id = %s",
                (selected.relation_id,),
            )

    def consume_one(self) -> Selected | None:
        """Takes and completes the next message. Returns what its handler received; None if it received nothing."""
        selected = self.select()
        if selected is None or not self.take(selected):
            return None
        handled = self.lock(selected)
        self.complete(selected)
        return selected if handled else None

    def _set_status(self, selected: Selected, status: Status) -> int:
        with self._connection.cursor() as cursor:
            return int(
                cursor.execute(
                    f"UPDATE {self._prefix}queue_message_status SET status = %s WHERE id = %s",
                    (int(status), selected.relation_id),
                )
            )

    def _message_code(self, selected: Selected) -> str:
        return message_code(self.name, selected.message_id)
