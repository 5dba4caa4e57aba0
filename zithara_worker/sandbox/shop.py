"""The database of one Magento shop: tables, settings, a publisher, cron, and a user for the worker."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import pymysql
import pymysql.err

from zithara_worker.database import statements
from zithara_worker.queue.statuses import Status
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.php_consumer import PhpConsumer
from zithara_worker.sandbox.publisher import Publisher
from zithara_worker.settings.sections import DatabaseSettings
from zithara_worker.settings.values import Secret
from zithara_worker.topics import TOPIC_TABLE

#: system/mysqlmq/*, Magento's defaults in minutes (MysqlMq/etc/config.xml).
_SUCCESSFUL_MESSAGES_LIFETIME = 10080
_FAILED_MESSAGES_LIFETIME = 10080
_NEW_MESSAGES_LIFETIME = 10080
_RETRY_INPROGRESS_AFTER = 1440


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageRow:
    """A row of queue_message_status, with the names of its queue and topic."""

    relation_id: int
    message_id: int
    queue: str
    topic: str
    status: int
    number_of_trials: int
    #: 'YYYY-MM-DD HH:MM:SS' UTC
    updated_at: str


class Shop(Publisher):
    """A separate database on a sandbox server. Not thread-safe: each thread takes its own `connect()`.

    As a context manager it creates the database at entry and drops it at exit. `worker_tables=False` leaves out the
    tables that `zithara-worker install` creates, and the worker's privileges (see `grant_worker`).
    """

    def __init__(self, server: MariaDbServer, *, prefix: str = "", worker_tables: bool = True) -> None:
        self.server = server
        self.prefix = self._prefix = statements.validated_prefix(prefix)
        self._with_worker_tables = worker_tables
        self.name = f"shop_{secrets.token_hex(6)}"
        #: The worker's user; it has the privileges of sql/grants.sql and no others
        self.user = f"worker_{secrets.token_hex(6)}"
        self.password = secrets.token_urlsafe(18)
        self._operator: pymysql.connections.Connection[Any] | None = None

    def __enter__(self) -> Shop:
        self.create()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.drop()

    # --- create and drop -------------------------------------------------------------------------------------

    def create(self) -> None:
        """Creates the database, Magento's tables, the module's queues, the worker's tables and its user."""
        with self.server.connect() as root, root.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {self.name} CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci")
            cursor.execute(f"CREATE USER '{self.user}'@'%%' IDENTIFIED BY %s", (self.password,))
        # MySQL keeps the password's digest after a first login over the socket or TLS. Through TcpProxy, which is TCP
        # for the client and a socket for the server, the two do not agree on how to send a password without it.
        self.server.connect(user=self.user, password=self.password).close()
        self.run_script("magento_queue.sql")
        # setup:upgrade creates these rows for the module's topology, although that names another connection.
        for topic in TOPIC_TABLE.values():
            self.add_queue(topic.queue)
        if self._with_worker_tables:
            self.run_script("schema.sql")
            self.grant_worker()

    def grant_worker(self) -> None:
        """Gives the worker's user the privileges of sql/grants.sql. The worker's tables must exist."""
        self.run_script("grants.sql", database=self.name, user=f"'{self.user}'@'%'")

    def grant_publishing(self) -> None:
        """Gives the worker's user the privileges of sql/publish_grants.sql, which `relay` needs."""
        self.run_script("publish_grants.sql", database=self.name, user=f"'{self.user}'@'%'")

    def drop(self) -> None:
        """Drops the database and the user. Does nothing if the server no longer runs."""
        self._close_operator()
        if not self.server.running:
            return
        with self.server.connect() as root, root.cursor() as cursor:
            # A failed test may have left a transaction open, and DROP would wait a day for its lock.
            cursor.execute("SELECT id FROM information_schema.processlist WHERE db = %s", (self.name,))
            for (connection_id,) in cursor.fetchall():
                with suppress(pymysql.err.OperationalError):  # 1094: the session has ended already
                    cursor.execute("KILL %s", (connection_id,))
            cursor.execute(f"DROP DATABASE IF EXISTS {self.name}")
            cursor.execute(f"DROP USER IF EXISTS '{self.user}'@'%'")

    def run_script(self, filename: str, **places: str) -> None:
        """Runs a file of sql/ as root, e.g. "optional_index.sql"."""
        with self.operator.cursor() as cursor:
            for statement in statements.script(filename, prefix=self.prefix, **places):
                cursor.execute(statement)

    # --- connections ------------------------------------------------------------------------------------------

    @property
    def operator(self) -> pymysql.connections.Connection[Any]:
        """Root's own autocommit connection to this shop, for assertions; a new one where the old one was lost."""
        if self._operator is not None:
            try:
                self._operator.ping(reconnect=False)
            except (pymysql.err.Error, OSError):
                self._close_operator()
        if self._operator is None:
            self._operator = self.connect()
        return self._operator

    def publishing_connection(self) -> pymysql.connections.Connection[Any]:
        return self.operator

    def connect(self, **settings: Any) -> pymysql.connections.Connection[Any]:
        """A new connection of root to this shop; `settings` as for pymysql.connect() (autocommit unless told)."""
        return self.server.connect(self.name, **settings)

    @property
    def database_settings(self) -> DatabaseSettings:
        """`worker_settings` for a session in this process."""
        return DatabaseSettings(
            unix_socket=str(self.server.socket_path),
            user=self.user,
            password=Secret(self.password),
            name=self.name,
            table_prefix=self.prefix,
        )

    @property
    def worker_settings(self) -> Mapping[str, str]:
        """The [database] section of a worker's configuration for this shop: its socket and least-privilege user."""
        return {
            "unix_socket": str(self.server.socket_path),
            "user": self.user,
            "password": self.password,
            "name": self.name,
            "table_prefix": self.prefix,
        }

    def query(self, statement: str, parameters: Iterable[object] = ()) -> list[tuple[Any, ...]]:
        """Runs one statement as root; `{prefix}` stands for the table prefix, %s for parameters. The rows, if any."""
        with self.operator.cursor() as cursor:
            cursor.execute(statement.replace("{prefix}", self.prefix), tuple(parameters) or None)
            return list(cursor.fetchall())

    # --- publishing -------------------------------------------------------------------------------------------

    def add_queue(self, name: str) -> None:
        """Adds a row to `queue` unless it exists, as setup:upgrade does for each queue of the topology."""
        if not self.query("SELECT 1 FROM {prefix}queue WHERE name = %s", (name,)):
            self.query("INSERT INTO {prefix}queue (name) VALUES (%s)", (name,))

    @contextmanager
    def transaction(self) -> Iterator[Publisher]:
        """A publisher in a separate transaction, like an observer during a checkout.

        Its messages become visible when the block ends; a block that raises publishes nothing. Ids are assigned at
        once, so messages that others publish meanwhile have higher ids and are visible earlier.
        """
        connection = self.connect(autocommit=False)
        try:
            yield Publisher(connection, prefix=self.prefix)
            connection.commit()
        finally:
            connection.close()  # an open transaction rolls back

    # --- read back ------------------------------------------------------------------------------------

    def rows(self, topic: str | None = None) -> list[MessageRow]:
        """All rows of queue_message_status, or a topic's, in the order of message ids."""
        found = self.query(
            "SELECT s.id, s.message_id, q.name, m.topic_name, s.status, s.number_of_trials, "
            "DATE_FORMAT(s.updated_at, '%%Y-%%m-%%d %%H:%%i:%%s') "
            "FROM {prefix}queue_message_status s JOIN {prefix}queue q ON q.id = s.queue_id "
            "JOIN {prefix}queue_message m ON m.id = s.message_id "
            "WHERE %s IS NULL OR m.topic_name = %s ORDER BY s.message_id",
            (topic, topic),
        )
        return [
            MessageRow(
                relation_id=row[0],
                message_id=row[1],
                queue=row[2],
                topic=row[3],
                status=row[4],
                number_of_trials=row[5],
                updated_at=row[6],
            )
            for row in found
        ]

    def row(self, relation_id: int) -> MessageRow:
        """Raises LookupError if the row has been deleted, as Magento's cleanup does."""
        for row in self.rows():
            if row.relation_id == relation_id:
                return row
        raise LookupError(f"queue_message_status has no row {relation_id}")

    def statuses(self, topic: str | None = None) -> list[int]:
        """The status of each message, in the order of message ids."""
        return [row.status for row in self.rows(topic)]

    def status_counts(self, topic: str | None = None) -> dict[int, int]:
        """How many messages have each status, cheap for large backlogs."""
        return {
            int(status): int(count)
            for status, count in self.query(
                "SELECT s.status, COUNT(*) FROM {prefix}queue_message_status s "
                "JOIN {prefix}queue_message m ON m.id = s.message_id "
                "WHERE %s IS NULL OR m.topic_name = %s GROUP BY s.status",
                (topic, topic),
            )
        }

    def body(self, message_id: int) -> str | None:
        """queue_message.body."""
        found = self.query("SELECT body FROM {prefix}queue_message WHERE id = %s", (message_id,))
        if not found:
            raise LookupError(f"queue_message has no row {message_id}")
        body: str | None = found[0][0]
        return body

    # --- as an administrator ---------------------------------------------------------------------------

    def configure_webhook(
        self,
        *,
        config_id: int = 1,
        client_id: str | None = "sandbox-client",
        client_secret: str | None = "sandbox-secret",
        webhook_url: str | None = None,
        event_types: str = "customer_create,customer_login,order_payment,update_order,cancel_order",
        access_token: str | None = None,
        token_expiry: str | None = None,
        is_active: bool = True,
    ) -> None:
        """Saves a row of zithara_webhook_config. Clears the token unless one is given, as the module's form does.

        `token_expiry`: 'YYYY-MM-DD HH:MM:SS' UTC.
        """
        self.query(
            "REPLACE INTO {prefix}zithara_webhook_config (config_id, client_id, client_secret, webhook_url, "
            "event_types, access_token, token_expiry, is_active) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            (config_id, client_id, client_secret, webhook_url, event_types, access_token, token_expiry, int(is_active)),
        )

    def set_config(self, path: str, value: str | None) -> None:
        """Stores a value in core_config_data, default scope: set_config("zithara_webhook/general/enabled", "0")."""
        self.query(
            "INSERT INTO {prefix}core_config_data (scope, scope_id, path, value) VALUES ('default', 0, %s, %s) "
            "ON DUPLICATE KEY UPDATE value = VALUES(value)",
            (path, value),
        )

    def change_poison_pill(self) -> str:
        """`bin/magento queue:consumers:restart`; the new version. Source: ResourceModel\\PoisonPill::put."""
        version = f"version-{secrets.token_hex(7)}"
        if self.query("SELECT version FROM {prefix}queue_poison_pill"):
            self.query("UPDATE {prefix}queue_poison_pill SET version = %s", (version,))
        else:
            self.query("INSERT INTO {prefix}queue_poison_pill (version) VALUES (%s)", (version,))
        return version

    # --- Magento's own processes ------------------------------------------------------------------------------

    def php_consumer(self, topic: str) -> PhpConsumer:
        """A PHP consumer of the topic's queue, on a separate connection."""
        return PhpConsumer(self.connect(), topic, prefix=self.prefix)

    def make_older(self, *, minutes: float, relation_ids: Iterable[int] | None = None) -> None:
        """Moves updated_at of all or some messages into the past, so that a test need not wait."""
        ids = [row.relation_id for row in self.rows()] if relation_ids is None else list(relation_ids)
        for relation_id in ids:
            self.query(
                "UPDATE {prefix}queue_message_status SET updated_at = updated_at - INTERVAL %s SECOND WHERE id = %s",
                (round(minutes * 60), relation_id),
            )

    def run_cleanup_cron(
        self,
        *,
        successful_messages_lifetime: int = _SUCCESSFUL_MESSAGES_LIFETIME,
        failed_messages_lifetime: int = _FAILED_MESSAGES_LIFETIME,
        new_messages_lifetime: int = _NEW_MESSAGES_LIFETIME,
        retry_inprogress_after: int = _RETRY_INPROGRESS_AFTER,
    ) -> Counter[str]:
        """The cron job mysqlmq_clean_messages, row by row as Magento does it; lifetimes in minutes, 0 = rule off.

        Returns how many rows it 'marked' and 'retried', and how many messages it 'deleted'.
        Source: QueueManagement::markMessagesForDelete, ResourceModel\\Queue::deleteMarkedMessages.
        """
        lifetimes = {
            Status.COMPLETE: successful_messages_lifetime,
            Status.ERROR: failed_messages_lifetime,
            Status.NEW: new_messages_lifetime,
            Status.IN_PROGRESS: retry_inprogress_after,
        }
        done: Counter[str] = Counter(marked=0, retried=0, deleted=0)
        for status, minutes in lifetimes.items():
            if minutes <= 0:
                continue
            expired = self.query(
                "SELECT id FROM {prefix}queue_message_status "
                "WHERE status = %s AND updated_at < NOW() - INTERVAL %s MINUTE",
                (int(status), minutes),
            )
            for (relation_id,) in expired:
                if status is Status.IN_PROGRESS:
                    self.query(
                        "UPDATE {prefix}queue_message_status SET status = 5, number_of_trials = number_of_trials+1 "
                        "WHERE id = %s",
                        (relation_id,),
                    )
                    done["retried"] += 1
                else:
                    self.query("UPDATE {prefix}queue_message_status SET status = 7 WHERE id = %s", (relation_id,))
                    done["marked"] += 1
        kept = [
            row[0]
            for row in self.query("SELECT DISTINCT message_id FROM {prefix}queue_message_status WHERE status <> 7")
        ]
        with self.operator.cursor() as cursor:
            condition = " WHERE id NOT IN %s" if kept else ""
            done["deleted"] = int(
                cursor.execute(f"DELETE FROM {self.prefix}queue_message{condition}", (kept,) if kept else None)
            )
        return done

    # --- inside -----------------------------------------------------------------------------------------------

    def _close_operator(self) -> None:
        connection, self._operator = self._operator, None
        if connection is not None and connection.open:
            connection.close()
