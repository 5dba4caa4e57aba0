"""One session with the shop's database: connect, run statements and transactions, retry on contention.

Knows pymysql and the dialects of the servers; knows no table's meaning. A `Database` belongs to one thread.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import pymysql
from pymysql.connections import Connection
from pymysql.constants import CLIENT
from pymysql.cursors import Cursor, DictCursor
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, stop_after_delay, wait_random

from zithara_worker.database import statements
from zithara_worker.database.addresses import DEFAULT_PORT, Address, Addresses, none_serves, why_not_written
from zithara_worker.database.server_errors import NO_CONNECTION, NO_SUCH_LOGIN, NO_TLS, RAISED, translated
from zithara_worker.errors import (
    Contention,
    DatabaseRefused,
    DatabaseUnavailable,
    ShopError,
    ZitharaWorkerError,
)
from zithara_worker.settings.sections import DatabaseSettings

#: Seconds to wait for a connection, and for an answer. ANSWER_TIMEOUT ends a connection whose packets are dropped. It
#: is well below any sensible lease.
CONNECT_TIMEOUT = 5
ANSWER_TIMEOUT = 20
#: Seconds after which the server itself ends a statement. Shorter than ANSWER_TIMEOUT: otherwise the server would go on
#: with a statement that we gave up, beside the same statement of our next session. MySQL applies this to SELECT only.
STATEMENT_TIMEOUT = ANSWER_TIMEOUT - 2
#: Seconds that a statement waits for the lock of a row, and for a table that is being altered.
LOCK_WAIT_TIMEOUT = 3
#: Value of wsrep_sync_wait: reads, updates and deletes, and inserts wait for what other nodes have committed.
SYNC_ALL = 7
#: Seconds after which `again_on_contention` stops, however many tries are left.
CONTENTION_SECONDS = 6

#: The sockets of Debian's and Red Hat's servers, and of one built from source.
SOCKETS = ("/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock", "/tmp/mysql.sock")  # noqa: S108 - a server's own

_SHARED = re.compile(r"%\((\w+)\)s")
#: An INSERT of `insert_rows`: what comes before the row, the row, and what may follow.
_INSERT = re.compile(r"(.*?\bVALUES )(\(.*?\))(\s+ON DUPLICATE KEY UPDATE\b.*)?", re.DOTALL)

T = TypeVar("T")


if TYPE_CHECKING:
    _Base = Connection[Cursor]
else:  # no generic class at run time
    _Base = Connection


class _Connection(_Base):
    """Sends nothing unencrypted if `encrypted`.

    PyMySQL before 1.2 continues unencrypted if the server, or an impostor, offers no TLS. It sends every packet of the
    log-in through `write_packet`, beginning with the request for TLS.
    """

    server_capabilities: int
    _secure: bool

    def __init__(self, *, encrypted: bool, **arguments: Any) -> None:
        self._encrypted = encrypted
        super().__init__(**arguments)

    def write_packet(self, payload: bytes) -> None:
        if self._encrypted and not self.server_capabilities & CLIENT.SSL:
            raise pymysql.err.OperationalError(NO_TLS, f"the server at {self.host}:{self.port} offers no TLS")
        super().write_packet(payload)


class _Refused:
    """Refuses to log in by the password itself, which an impostor could ask for."""

    def __init__(self, connection: _Connection) -> None:
        self._host = connection.host

    def authenticate(self, packet: object) -> NoReturn:
        raise pymysql.err.OperationalError(
            NO_SUCH_LOGIN,
            f"{self._host} asks for the password in clear ({' or '.join(_IN_CLEAR)}), which is not sent over a "
            "connection without [database] ssl_ca: set it, or use unix_socket",
        )


#: Authentication plugins that send the password itself; PAM and LDAP need them.
_IN_CLEAR = ("mysql_clear_password", "dialog")


class Database:
    """One session with the shop's database, opened on first use, and again after the connection was lost.

    `addresses`: those of another session of the same settings, so that both use the same server. `clock`: seconds since
    the epoch, which every statement then sees as NOW() instead of the server's time, for tests and simulations.
    `statement_limit`: whether a statement is given up after STATEMENT_TIMEOUT.
    """

    def __init__(
        self,
        settings: DatabaseSettings,
        *,
        addresses: Addresses | None = None,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        statement_limit: bool = True,
    ) -> None:
        self._settings = settings
        self.addresses = addresses or Addresses(settings)
        self._clock = clock
        self._limited = statement_limit
        self._sleep = sleep
        self._connection: _Connection | None = None
        self._texts = statements.queries()
        self._places: dict[str, str] = {"prefix": statements.validated_prefix(settings.table_prefix)}
        self._filled: dict[str, str] = {}
        self._in_transaction = False
        self.max_allowed_packet = 0
        #: auto_increment_increment: by how much the next message id of one server is higher
        self.id_step = 1
        self.version = ""
        #: Where the session was opened last; None before
        self.server: Address | None = None
        #: Whether the server is a node of a Galera cluster
        self.is_galera = False
        self._in_step = False
        #: Statements sent so far; tests and benchmarks count them.
        self.statements_sent = 0
        #: Number of connections so far. Code that remembers what a lost connection puts in doubt compares it.
        self.generation = 0

    # ---------------------------------------------------------------- connection

    @property
    def prefix(self) -> str:
        return self._places["prefix"]

    @property
    def has_pending_index(self) -> bool:
        """Whether the shop has the optional index over (queue_id, status, message_id)."""
        self._open()
        return "pending" in self._places

    @property
    def has_status_index(self) -> bool:
        """Whether the shop has Magento's index over (status, updated_at)."""
        self._open()
        return bool(self._places["by_status"])

    @property
    def orders_ids(self) -> bool:
        """Whether one server gives out all message ids. A Galera cluster may get more nodes at any time."""
        self._open()
        return self.id_step == 1 and not self.is_galera

    @property
    def cipher(self) -> str:
        """The cipher of the session, e.g. TLS_AES_256_GCM_SHA384; empty if it is not encrypted."""
        return str(self.rows("cipher")[0]["Value"])

    @property
    def is_local(self) -> bool:
        """Whether the server is on this host, so that no network needs encryption."""
        return all(address.is_local for address in self.addresses.all)

    @property
    def session_id(self) -> int:
        """The number by which the server knows the session. Opens it, if it is not open."""
        return int(self._open().thread_id())  # type: ignore[no-untyped-call]  # pymysql leaves it untyped

    def log_in_as(self, settings: DatabaseSettings) -> None:
        """Uses the user and password of these settings from the next connection on.

        Does nothing if the settings differ in anything else, because they then mean another database.
        """
        mine = self._settings
        if settings == replace(
            mine, user=settings.user, password=settings.password, password_file=settings.password_file
        ):
            self._settings = settings

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # Raises if the server has gone, or for a second close: there is nothing left to close then.
            with suppress(pymysql.err.Error, OSError):
                connection.close()

    def _open(self) -> _Connection:
        if self._connection is None:
            failures: dict[Address, ZitharaWorkerError] = {}
            for address in self.addresses.in_order():
                try:
                    return self._open_at(address)
                except DatabaseUnavailable as error:
                    failures[address] = error
            raise none_serves(failures) from next(iter(failures.values()))
        return self._connection

    def _open_at(self, address: Address) -> _Connection:
        try:
            connection = self._connection = self._connected(address)
            self._learn_server()
        except (RuntimeError, *RAISED) as error:
            self.close()
            raise translated(error, at=_default_socket(address, self._settings) or str(address)) from error
        except BaseException:
            self.close()
            raise
        self.generation += 1
        self.server = address
        self.addresses.serves(address)
        return connection

    def _connected(self, address: Address) -> _Connection:
        settings = self._settings
        unix_socket = address.unix_socket or _default_socket(address, settings)
        where: dict[str, Any] = (
            {"unix_socket": unix_socket} if unix_socket else {"host": address.host, "port": address.port}
        )
        if settings.ssl_ca:
            where["ssl"] = _trusting(settings.ssl_ca)
        elif not unix_socket:
            where["auth_plugin_map"] = dict.fromkeys(_IN_CLEAR, _Refused)
        connection = _Connection(
            **where,
            encrypted=bool(settings.ssl_ca),
            user=settings.user,
            # As bytes, because pymysql encodes a text as Latin-1.
            password=settings.password.reveal().encode(),
            database=settings.name,
            charset="utf8mb4",
            # Count rows found, not rows changed: a renewal in the same second changes no row, and would otherwise look
            # like a lost lease.
            client_flag=CLIENT.FOUND_ROWS,
            autocommit=True,
            # PyMySQL 1.2 encrypts wherever the server offers TLS. Over a socket that would protect nothing.
            ssl_disabled=bool(unix_socket) and not settings.ssl_ca,
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=ANSWER_TIMEOUT if self._limited else None,
            write_timeout=ANSWER_TIMEOUT,
            defer_connect=True,
        )
        if unix_socket:
            # As pymysql sets it for a socket that it opens itself. Without it, the driver would encrypt the password
            # for MySQL 8 with RSA, and the server, which trusts a socket, would take that for the password itself.
            connection._secure = True
        connection.connect(_connected_socket(address, unix_socket))
        limit = STATEMENT_TIMEOUT if self._limited else 0
        with connection.cursor(Cursor) as cursor:
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
            cursor.execute(
                "SET SESSION time_zone = '+00:00', innodb_lock_wait_timeout = %s, lock_wait_timeout = %s, sql_mode = "
                "'STRICT_TRANS_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION'"
                # Each server executes its own kind of comment. MariaDB takes seconds, MySQL milliseconds.
                " /*M! , max_statement_time = %s */"
                " /*!80000 , max_execution_time = %s, information_schema_stats_expiry = 0 */",
                (LOCK_WAIT_TIMEOUT, LOCK_WAIT_TIMEOUT, limit, round(limit * 1000)),
            )
        return connection

    def _learn_server(self) -> None:
        """Asks the server what it is, if that is not known or may change: where there are several, or a cluster.

        Raises DatabaseUnavailable where another address should be tried.
        """
        if self.version and not self.is_galera and not self.addresses.several:
            return
        server = {str(row["Variable_name"]): str(row["Value"]) for row in self.rows("server")}
        self.is_galera = server.get("wsrep_on", "OFF") == "ON"
        if self.addresses.several:
            status: dict[str, str] = {}
            if self.is_galera:
                status = {str(row["Variable_name"]): str(row["Value"]) for row in self.rows("galera_node")}
            elif server.get("group_replication_group_name"):
                with suppress(ShopError):  # the privilege is optional
                    member = self.rows("group_member")
                    status["group_member"] = str(member[0]["state"]) if member else "OFFLINE"
            left = why_not_written(server, status)
            if left:
                raise DatabaseUnavailable(left)
        if self.is_galera:
            self.execute("sync_wait", statements=SYNC_ALL if self._in_step else 0)
        # Servers of one version may differ in these, and Galera's step is the number of nodes.
        self.max_allowed_packet = int(server["max_allowed_packet"])
        self.id_step = int(server["auto_increment_increment"])
        if self.version == server["version"]:
            return
        self.version = server["version"]
        self._filled.clear()
        self._places["skip_locked"] = "SKIP LOCKED" if knows_skip_locked(self.version) else ""
        table = f"{self.prefix}queue_message_status"
        by_columns = {str(row["column_names"]): str(row["name"]) for row in self.rows("indexes_of_status", table=table)}
        if "queue_id,message_id" in by_columns:
            self._places["unique"] = _identifier(by_columns["queue_id,message_id"])
        if "queue_id,status,message_id" in by_columns:
            self._places["pending"] = _identifier(by_columns["queue_id,status,message_id"])
        # Magento creates this index. A shop that has lost it is read without.
        by_status = by_columns.get("status,updated_at")
        self._places["by_status"] = f"FORCE INDEX ({_identifier(by_status)})" if by_status else ""

    # ---------------------------------------------------------------- statements

    def text(self, name: str) -> str:
        """The statement with its identifiers filled in and its parameters not."""
        filled = self._filled.get(name)
        if filled is None:
            try:
                filled = self._filled[name] = statements.fill(self._texts[name], self._places)
            except KeyError as missing:
                raise ShopError(
                    f"table {self.prefix}queue_message_status is missing or has no index over (queue_id, message_id), "
                    "which Magento makes: correct [database] name and table_prefix, or run bin/magento setup:upgrade"
                ) from missing
        return filled

    def rows(self, statement: str, /, **parameters: object) -> list[dict[str, Any]]:
        """Runs a statement that reads, and returns its rows as dictionaries."""

        def read(cursor: Cursor) -> Iterable[Any]:
            cursor.execute(self.text(statement), parameters)
            return cursor.fetchall()

        return list(self._run(read, DictCursor))

    def execute(self, statement: str, /, **parameters: object) -> int:
        """Runs a statement that writes, and returns how many rows it found, changed or not."""
        return self._run(lambda cursor: int(cursor.execute(self.text(statement), parameters)))

    def insert(self, statement: str, /, **parameters: object) -> int:
        """Inserts one row, and returns its auto-increment id."""

        def write(cursor: Cursor) -> int:
            cursor.execute(self.text(statement), parameters)
            return int(cursor.lastrowid)

        return self._run(write)

    def insert_rows(self, name: str, rows: Sequence[tuple[object, ...]], /, **shared: object) -> int:
        """Inserts many rows with one statement, and returns how many were inserted.

        `rows` fill the %s of the statement's VALUES; `shared`, its named parameters, are the same for every row.
        pymysql's executemany would send one statement per row as soon as VALUES holds an expression (RE_INSERT_VALUES).
        """

        def write(cursor: Cursor) -> int:
            insert = _INSERT.fullmatch(self.text(name))
            if insert is None:
                raise ValueError(f"{name} is no INSERT of one row")
            head, template, tail = insert.groups(default="")
            row = _SHARED.sub(lambda place: cursor.mogrify("%s", (shared[place[1]],)).replace("%", "%%"), template)
            text = cursor.mogrify(",".join([row] * len(rows)), tuple(chain.from_iterable(rows)))
            return int(cursor.execute(f"{head}{text}{tail}"))

        return self._run(write)

    def run_script(self, texts: Sequence[str], *, again: bool = True) -> None:
        """Runs the statements of a script of `sql/` as they stand. `again`: after contention too."""
        for text in texts:
            run = partial(Cursor.execute, query=text)
            if again:
                self._run(run)
            else:
                self._run_once(run, Cursor)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Runs the block in a transaction: COMMIT at its end, ROLLBACK if it raises."""
        connection = self._open()
        try:
            self.statements_sent += 1
            connection.begin()
        except RAISED as error:
            self._fail(error)
        self._in_transaction = True
        try:
            yield
            self.statements_sent += 1
            connection.commit()
        except RAISED as error:
            self._rollback()
            self._fail(error)
        except BaseException:
            self._rollback()
            raise
        finally:
            self._in_transaction = False

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Within the block, statements see all that any node of a Galera cluster had committed before.

        Without it a node that lags could answer that a lease is gone, or not there yet. Sends nothing elsewhere.
        """
        self._open()
        try:
            self._set_in_step(True)
            yield
        finally:
            # The session may be lost by now, and the next one begins without.
            with suppress(DatabaseUnavailable):
                self._set_in_step(False)

    def _set_in_step(self, wanted: bool) -> None:
        self._in_step = wanted
        if self.is_galera and self._connection is not None:
            self.execute("sync_wait", statements=SYNC_ALL if wanted else 0)

    def again_on_contention(self, run: Callable[[], T], *, tries: int = 5) -> T:
        """Runs a whole transaction, and runs it again after contention and a short random pause.

        Raises Contention if it goes on.
        """
        attempts = Retrying(
            retry=retry_if_exception_type(Contention),
            stop=stop_after_attempt(tries) | stop_after_delay(CONTENTION_SECONDS),
            wait=wait_random(0.005, 0.1),
            sleep=self._sleep,
            reraise=True,
        )
        return attempts(run)

    def _run(self, run: Callable[[Cursor], T], kind: type[Cursor] = Cursor) -> T:
        """Runs one statement, and again after contention; not within a transaction, because contention has ended it."""
        try:
            return self._run_once(run, kind)
        except Contention:
            if self._in_transaction:
                raise
        return self.again_on_contention(lambda: self._run_once(run, kind))

    def _run_once(self, run: Callable[[Cursor], T], kind: type[Cursor]) -> T:
        connection = self._open()
        try:
            with connection.cursor(kind) as cursor:
                self._set_clock(cursor)
                self.statements_sent += 1
                return run(cursor)
        except RAISED as error:
            self._fail(error)

    def _rollback(self) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            connection.rollback()
        except RAISED:
            self.close()

    def _set_clock(self, cursor: Cursor) -> None:
        if self._clock is not None:
            cursor.execute("SET SESSION timestamp = %s", (self._clock(),))

    def _fail(self, error: Exception) -> NoReturn:
        ours = translated(error)
        if isinstance(ours, DatabaseUnavailable) and not isinstance(ours, Contention):
            self.close()
        raise ours from error


@lru_cache(maxsize=8)
def knows_skip_locked(version: str) -> bool:
    """MySQL 8.0 and MariaDB 10.6 introduced it. Without it, claim_lock waits for other claims, which are short."""
    major, minor = (int(part) for part in re.findall(r"\d+", version)[:2])
    return (major, minor) >= ((10, 6) if "mariadb" in version.lower() else (8, 0))


def _default_socket(address: Address, settings: DatabaseSettings) -> str:
    """The server's usual socket for host 'localhost', which PHP connects to by the socket and not by the network."""
    if address != Address("localhost", DEFAULT_PORT) or settings.ssl_ca:
        return ""
    return next((path for path in SOCKETS if Path(path).is_socket()), "")


def _trusting(ssl_ca: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ssl_ca))
    except OSError as error:  # an ssl.SSLError is one, too
        raise DatabaseRefused(
            f"[database] ssl_ca: {ssl_ca} cannot be used: {error.strerror or error}; name a PEM file that the worker's "
            "user may read"
        ) from error


def _connected_socket(address: Address, unix_socket: str) -> socket.socket:
    """A socket that is connected to the server, which has begun to speak.

    pymysql would leave a socket file open if nobody answers there, and would wait ANSWER_TIMEOUT for the first word of
    a server that is stopped, with the other addresses untried.
    """
    wire: socket.socket | None = None
    try:
        if unix_socket:
            wire = socket.socket(socket.AF_UNIX)
            wire.settimeout(CONNECT_TIMEOUT)
            wire.connect(unix_socket)
        else:
            wire = socket.create_connection((address.host, address.port), CONNECT_TIMEOUT)
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        wire.recv(1, socket.MSG_PEEK)
        wire.settimeout(None)
    except OSError as error:
        if wire is not None:
            wire.close()
        missing = isinstance(error, FileNotFoundError)
        seen = (
            f"there is no socket {unix_socket}" if missing else f"no connection to {unix_socket or address} ({error})"
        )
        raise pymysql.err.OperationalError(NO_CONNECTION, seen) from error
    return wire


def _identifier(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
