"""The version of the worker's own tables, and the way there from an older one. Knows no table's meaning."""

from __future__ import annotations

import re

from zithara_worker.database import statements
from zithara_worker.database.session import Database
from zithara_worker.errors import SchemaOutdated, ShopError

#: What sql/schema.sql makes. A worker goes on with newer tables, and waits where they are older.
VERSION = 2
#: The table whose comment carries the version.
_MARKED = "zithara_message_group"
_MARK = re.compile(r"zithara-worker schema (\d+)\Z")


def version_of(comment: str) -> int:
    """The version in a comment of zithara_message_group; 0 when there is none."""
    mark = _MARK.match(comment)
    return int(mark[1]) if mark else 0


def installed(database: Database) -> int:
    """The version of the tables that are there; 0 when there are none, or none for this user to see."""
    rows = database.rows("tables_present", tables=[database.prefix + _MARKED])
    return version_of(str(rows[0]["comment"])) if rows else 0


def require(database: Database) -> None:
    """Raises SchemaOutdated where an older version of the worker made the tables, ShopError where there are none."""
    rows = database.rows("tables_present", tables=[database.prefix + _MARKED])
    if not rows:
        raise ShopError(
            f"there is no table {database.prefix}{_MARKED}, or this user may not see it: run 'zithara-worker install' "
            "as a user who may create tables, then the GRANT statements of its --print"
        )
    found = version_of(str(rows[0]["comment"]))
    if 0 < found < VERSION:
        raise SchemaOutdated(
            f"the worker's tables are of schema {found}, this version needs schema {VERSION}: run "
            "'zithara-worker install' as a user who may alter them, then the GRANT statements of its --print; workers "
            "need not stop for it"
        )


def upgrade(database: Database) -> int:
    """Brings older tables to this version, step by step; the version that was there. Leaves out steps taken before."""
    found = installed(database)
    for step in range(found + 1, VERSION + 1) if found else ():
        for name, text in statements.named(f"upgrade_{step}.sql").items():
            table, _, column = name.partition(".")
            if "ADD COLUMN" not in text or not _has_column(database, table, column):
                database.run_script([statements.fill(text, {"prefix": database.prefix}).rstrip(";")])
    return found


def _has_column(database: Database, table: str, column: str) -> bool:
    return bool(database.rows("column_present", table=database.prefix + table, column=column))
