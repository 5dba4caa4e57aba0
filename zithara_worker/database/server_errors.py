"""Every error of the driver as one of ours.

The server's error number decides who must act: the operator, the shop's administrator, or nobody, because the worker
waits and tries again. Numbers: MariaDB's and MySQL's error references; those of clusters were measured.
"""

from __future__ import annotations

import struct

import pymysql

from zithara_worker.database.statements import TABLES
from zithara_worker.errors import (
    Contention,
    DatabaseRefused,
    DatabaseUnavailable,
    NotGranted,
    ShopError,
    Unstorable,
    ZitharaWorkerError,
)

_ACCESS_DENIED = {1045, 1698}
#: The user may log in, but may not use the database, or there is none of this name: MariaDB says 1044 for both.
_NO_DATABASE_PRIVILEGE = {1044}
_NO_PRIVILEGE = {1142, 1143, 1227, 1370}
_NO_SUCH_TABLE = {1146}
_NO_SUCH_DATABASE = {1049}
#: Unknown column, unknown index
_WRONG_SHAPE = {1054, 1176}
#: Record changed since last read (MariaDB 11.6 and later), lock wait timeout, deadlock (Galera's conflicts too), table
#: altered, conflict found when a group certifies the transaction (Group Replication), row locked (MySQL's NOWAIT)
_CERTIFICATION = 3101
_CONTENTION = {1020, 1205, 1213, 1412, 3572, _CERTIFICATION}
_NO_MAJORITY = "this server has left its group, or the group has lost its majority"
#: Packet too large; invalid characters, also for the column's character set; too long for the column; a character set
#: that cannot be converted
_UNSTORABLE = {1153, 1300, 1366, 1406, 3854, 3988}
#: A cluster that changes its primary, has lost its majority or is still catching up: what each number means then
_FAILOVER = {
    1047: "this node belongs to no majority of its cluster, or is still catching up",
    1290: "this server is read-only",
    1792: "this server is read-only",
    1836: "this server is read-only",
    3098: _NO_MAJORITY,
    3100: _NO_MAJORITY,
}
#: Numbers whose own texts speak of tables, hooks and plugins, of which none is to blame
_MISLEADING = {_CERTIFICATION, 3098, 3100}
#: The client's own numbers: no connection (CR_CONN_HOST_ERROR); the connection cannot be encrypted
#: (CR_SSL_CONNECTION_ERROR); the server asks for a way to log in that the client does not offer
#: (CR_AUTH_PLUGIN_CANNOT_LOAD)
NO_CONNECTION = 2003
NO_TLS = 2026
NO_SUCH_LOGIN = 2059

#: What pymysql raises when it receives bytes that are not of the protocol
_GARBLED = (struct.error, IndexError, AssertionError)
#: All that a statement or a connection may raise
RAISED = (pymysql.err.Error, OSError, *_GARBLED)


def translated(error: Exception, *, at: str = "") -> ZitharaWorkerError:
    """Our error for one of the driver's: one of `RAISED`, or RuntimeError while it connects. The caller raises it from
    the original. `at`: the address, while it connects."""
    code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    text = str(error.args[1]) if len(error.args) > 1 else str(error)
    told = f"(error {code})" if code in _MISLEADING else f"(error {code}: {text})"
    if code == _CERTIFICATION:
        return Contention(f"another server of the cluster changed the same rows first {told}")
    if code in _CONTENTION:
        return Contention(text)
    if code == NO_CONNECTION:
        where = "unix_socket" if at.startswith("/") else "host and port"
        return DatabaseUnavailable(
            f"database not available: {text}", f"check that the server runs there, and [database] {where}"
        )
    if code in _ACCESS_DENIED:
        return DatabaseRefused(
            f"the database{at and f' at {at}'} refused the user ({text})",
            "correct [database] user and password, or create the user with the grants that 'zithara-worker install "
            "--print' shows",
        )
    if code in _NO_DATABASE_PRIVILEGE:
        return DatabaseRefused(
            f"the password is right, but this user has no such database{at and f' at {at}'} ({text})",
            "correct [database] name, or run the GRANT statements that 'zithara-worker install --print' shows",
        )
    if code == NO_TLS:
        return DatabaseRefused(
            f"the database is not used without encryption, which [database] ssl_ca asks for: {text}; nothing was sent",
            "set up TLS on the server, or correct [database] host and port",
        )
    if code == NO_SUCH_LOGIN:
        return DatabaseRefused(f"logging in to the database: {text}")
    if code in _NO_SUCH_DATABASE:
        return DatabaseRefused(f"there is no such database{at and f' at {at}'} ({text})", "correct [database] name")
    if code in _NO_SUCH_TABLE:
        # "Table 'DATABASE.TABLE' doesn't exist"
        is_ours = any(f"{table}'" in text for table in TABLES)
        return ShopError(
            text,
            "run 'zithara-worker install' as a user who may create tables"
            if is_ours
            else "correct [database] name and table_prefix, or run bin/magento setup:upgrade",
        )
    if code in _NO_PRIVILEGE:
        return NotGranted(
            text,
            "grant it ('zithara-worker install --print' shows all grants the worker needs), or, if there is no such "
            "table, correct [database] name and table_prefix",
        )
    if code in _WRONG_SHAPE:
        return ShopError(
            f"{text}: the tables are not as this version needs them",
            "run 'zithara-worker install', or, if it is one of Magento's tables, bin/magento setup:upgrade",
        )
    if code in _UNSTORABLE:
        return Unstorable(f"the database cannot hold a value (error {code}: {text})")
    if code in _FAILOVER:
        return DatabaseUnavailable(f"the database takes no writes now: {_FAILOVER[code]} {told}")
    if isinstance(error, RuntimeError):
        # pymysql names the package that it needs for this way to log in, and does not depend on.
        return DatabaseRefused(f"the database's way to log in needs more: {error}")
    if isinstance(error, _GARBLED):
        return DatabaseUnavailable(f"database not available: its answer is not understood ({error!r})")
    if isinstance(
        error, (pymysql.err.InterfaceError, pymysql.err.OperationalError, pymysql.err.InternalError, OSError)
    ):
        return DatabaseUnavailable(f"database not available: {text}")
    return ShopError(
        f"the database refuses a statement of this program (error {code}: {text})",
        "run 'zithara-worker doctor'; if it finds nothing, report this text",
    )
