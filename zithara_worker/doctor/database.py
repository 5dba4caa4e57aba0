"""Checks of the database: server, session, tables, privileges."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from zithara_worker.database import schema, statements
from zithara_worker.database.session import Database, knows_skip_locked
from zithara_worker.doctor.finding import Finding, failed, ok, warning
from zithara_worker.errors import ShopError
from zithara_worker.monitor import fleet
from zithara_worker.units import duration

MODULE_TABLE = "zithara_webhook_config"
#: Table and verbs; each is tried by the statement privilege_<table>_<verb>.
PRIVILEGES = (
    ("queue", ("select",)),
    ("queue_message", ("select",)),
    ("queue_poison_pill", ("select",)),
    ("core_config_data", ("select",)),
    ("queue_message_status", ("select", "update")),
    ("queue_lock", ("insert",)),
    (MODULE_TABLE, ("select", "update")),
    *((table, ("select", "insert", "update", "delete")) for table in statements.TABLES),
)
_SKEW_SECONDS = 5.0


def server(database: Database) -> Iterator[Finding]:
    """Version of the server. Raises DatabaseUnavailable or ConfigurationError where there is no connection."""
    database.rows("clock")
    version = database.version
    maria = "mariadb" in version.lower()
    major, minor = (int(part) for part in re.findall(r"\d+", version)[:2])
    name = f"{'MariaDB' if maria else 'MySQL'} {version}"
    if (major, minor) < ((10, 4) if maria else (8, 0)):
        yield failed("database", f"{name} is too old", "upgrade to MySQL 8.0, MariaDB 10.4 or newer")
    elif not knows_skip_locked(version):
        yield warning(
            "database",
            f"{name} has no SKIP LOCKED: several workers wait for each other's claims",
            "upgrade to MariaDB 10.6 or newer",
        )
    else:
        yield ok("database", f"{name}, {database.prefix or 'no'} table prefix")


def encryption(database: Database, *, verified: bool) -> Iterator[Finding]:
    """`verified`: ssl_ca is set. Without it PyMySQL 1.2 encrypts too, but does not check which server answers."""
    cipher = database.cipher
    found = f"encrypted ({cipher})" if cipher else "not encrypted"
    if database.is_local or (cipher and verified):
        yield ok("database.encryption", found if cipher else f"{found}, within this host")
        return
    yield warning(
        "database.encryption",
        f"the connection is {found}{', but not checked to be with the right server' if cipher else ''}: customers' "
        "data and the shop's secret pass over the network",
        "set [database] ssl_ca to the certificate authority of the database server",
    )


def magento_tables(database: Database) -> Iterator[Finding]:
    """Raises ShopError where the queue's tables are not there. Magento makes the others with them, so that what this
    user may not see of those is a matter of `privileges`; the module's own is made when the module is enabled."""
    schema.require_shop(database)
    module = database.prefix + MODULE_TABLE
    if database.rows("tables_present", tables=[module]):
        yield ok("tables.magento", "the tables of Magento's queue and of the module are there")
    else:
        yield failed(
            "tables.magento",
            f"not there, or not for this user to see: {module}",
            "enable Zithara_Webhook and run bin/magento setup:upgrade; if the table is there, run the GRANT statements "
            "of 'zithara-worker install --print'",
        )


def worker_tables(database: Database) -> Iterator[Finding]:
    version = schema.installed_version(database)
    if 0 < version < schema.VERSION:
        yield failed(
            "tables.worker",
            f"the tables are of schema {version}, this program needs schema {schema.VERSION}: its workers wait",
            "run 'zithara-worker install' of this version as a user who may alter them, and the GRANT statements of "
            "its --print; no worker, not even one of the older version, need stop for it",
        )
        return
    rows = database.rows("tables_present", tables=[database.prefix + table for table in statements.TABLES])
    found = {str(row["name"]): row for row in rows}
    missing = [database.prefix + table for table in statements.TABLES if database.prefix + table not in found]
    if missing:
        yield failed(
            "tables.worker",
            f"not there, or not for this user to see: {', '.join(missing)}",
            "run 'zithara-worker install' as a user who may create tables, and the GRANT statements of its --print",
        )
        return
    if version == 0:
        yield failed(
            "tables.worker",
            f"the comment of {database.prefix}zithara_message_group names no schema: something else has altered it",
            f"ALTER TABLE {database.prefix}zithara_message_group COMMENT = 'zithara-worker schema {schema.VERSION}'",
        )
        return
    if version > schema.VERSION:
        yield warning(
            "tables.worker",
            f"the tables are of schema {version}, which a newer version made; this one goes on with them",
            "update zithara-worker on this host",
        )
        return
    plain = sorted(name for name, row in found.items() if str(row["engine"]).lower() != "innodb")
    if plain:
        yield failed(
            "tables.worker",
            f"not InnoDB, so without transactions: {', '.join(plain)}",
            "; ".join(f"ALTER TABLE {name} ENGINE=InnoDB" for name in plain),
        )
        return
    yield ok("tables.worker", f"{len(found)} tables, schema {version}")


def privileges(database: Database) -> Iterator[Finding]:
    """Tries each privilege with a statement that affects no row. Of our own tables and the module's, those that are
    there: that one is not, or may not be seen, is told by a finding about tables."""
    made = (MODULE_TABLE, *statements.TABLES)
    rows = database.rows("tables_present", tables=[database.prefix + table for table in made])
    present = {str(row["name"]) for row in rows}
    absent = [table for table in made if database.prefix + table not in present]
    lacking = []
    for table, verbs in PRIVILEGES:
        if table in absent:
            continue
        for verb in verbs:
            try:
                if verb == "select":
                    database.rows(f"privilege_{table}_{verb}")
                else:
                    database.execute(f"privilege_{table}_{verb}")
            except ShopError:
                # Servers also report a missing table as a missing privilege; tables have findings of their own.
                lacking.append(f"{verb.upper()} on {database.prefix}{table}")
    if lacking:
        yield failed(
            "privileges",
            f"the database user lacks {', '.join(lacking)}",
            "run the GRANT statements that 'zithara-worker install --print' shows",
        )
    else:
        later = (
            "; those on its own tables can be tried after 'zithara-worker install'"
            if set(absent) - {MODULE_TABLE}
            else ""
        )
        yield ok("privileges", f"every privilege that the worker needs{later}")


def session(database: Database) -> Iterator[Finding]:
    """Isolation and binary log. READ COMMITTED cannot write to a statement-based log (MySQL error 1665)."""
    variables = {str(row["Variable_name"]): str(row["Value"]) for row in database.rows("session_variables")}
    isolation = variables.get("transaction_isolation") or variables.get("tx_isolation", "unknown")
    if isolation != "READ-COMMITTED":
        yield failed(
            "database.isolation",
            f"the session runs in {isolation} though READ COMMITTED was asked for",
            "let the user set it; a proxy between worker and server may reset it",
        )
    elif variables.get("log_bin") == "ON" and variables.get("binlog_format") == "STATEMENT":
        yield failed(
            "database.binlog_format",
            "binlog_format is STATEMENT: READ COMMITTED transactions cannot be written to such a log",
            "SET GLOBAL binlog_format = 'ROW' (or 'MIXED'), and in the server's configuration",
        )
    else:
        yield ok("database.isolation", f"READ COMMITTED, binary log {variables.get('binlog_format') or 'off'}")
    if variables.get("read_only", "OFF") not in ("OFF", "0") or variables.get("innodb_read_only", "OFF") == "ON":
        yield failed(
            "database.read_only",
            "the server is read-only: it is a replica",
            "set [database] host to the primary server",
        )


def clock(database: Database, utc: Callable[[], float]) -> Iterator[Finding]:
    """Time zone of the session and the two hosts' clocks."""
    variables = {str(row["Variable_name"]): str(row["Value"]) for row in database.rows("session_variables")}
    if variables.get("time_zone") != "+00:00":
        yield failed(
            "database.time_zone",
            f"the session's time zone is {variables.get('time_zone')}, Magento's is +00:00",
            "let the user set it; a proxy between worker and server may reset it",
        )
        return
    ahead = fleet.now_utc(database) - utc()
    if abs(ahead) > _SKEW_SECONDS:
        yield warning(
            "database.clock",
            f"the database's clock is {duration(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} this host's",
            "synchronise both (timedatectl set-ntp true, or chrony)",
        )
    else:
        yield ok("database.clock", "time zone +00:00, clock agrees with this host's")


def optional_index(database: Database) -> Iterator[Finding]:
    if database.has_pending_index:
        yield ok("database.index", "the optional index is there")
    else:
        yield ok("database.index", "without the optional index; 'zithara-worker install --index' builds it")
