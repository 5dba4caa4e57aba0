"""The worker's own tables: their version, how `install` creates or upgrades them, the grants of the worker's account.

Knows no table's meaning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from zithara_worker.database import statements
from zithara_worker.database.session import Database
from zithara_worker.errors import SchemaOutdated, ShopError, ZitharaWorkerError
from zithara_worker.topics import TOPIC_TABLE

#: The version that sql/schema.sql creates. A worker uses tables of a newer version, and waits where they are older.
VERSION = 4
#: Seconds between two looks at how far the index is built.
PROGRESS_SECONDS = 0.5
#: The table whose comment carries the version.
_MARKED = "zithara_message_group"
_MARK = re.compile(r"zithara-worker schema (\d+)\Z")


def installed_version(database: Database) -> int:
    """The version of the tables in the database; 0 if there are none, or this user may not see them."""
    return _version_of(database.rows("tables_present", tables=[database.prefix + _MARKED]))


def has_queue_tables(database: Database) -> bool:
    """Whether Magento's queue is in this database, with this table prefix."""
    return not _missing_queue_tables(database)


def require_shop(database: Database) -> None:
    """Raises ShopError where Magento's queue is not there, with the prefixes that tables of the database do have."""
    missing = _missing_queue_tables(database)
    if not missing:
        return
    others = [str(row["name"]).removesuffix("queue_message_status") for row in database.rows("other_prefixes")]
    if others:
        known = ", ".join(f"'{prefix}'" for prefix in others)
        raise ShopError(
            f"the database has no Magento tables with the prefix '{database.prefix}', but with {known}",
            f"set [database] table_prefix to {known if len(others) == 1 else 'the one of this shop'}",
        )
    raise ShopError(
        f"not there, or not for this user to see: {', '.join(missing)}",
        "correct [database] name and table_prefix, or run the GRANT statements of 'zithara-worker install --print'",
    )


def _missing_queue_tables(database: Database) -> list[str]:
    names = [database.prefix + table for table in ("queue", "queue_message", "queue_message_status")]
    present = {str(row["name"]) for row in database.rows("tables_present", tables=names)}
    return [name for name in names if name not in present]


def require(database: Database) -> None:
    """Raises SchemaOutdated if an older version of the worker made the tables, ShopError if there are none."""
    rows = database.rows("tables_present", tables=[database.prefix + _MARKED])
    if not rows:
        require_shop(database)
        raise ShopError(
            f"there is no table {database.prefix}{_MARKED}, or this user may not see it",
            "run 'zithara-worker install' as a user who may create tables, then the GRANT statements of its --print",
        )
    found = _version_of(rows)
    if 0 < found < VERSION:
        raise SchemaOutdated(
            f"the worker's tables are of schema {found}, this version needs schema {VERSION}",
            "run 'zithara-worker install' as a user who may alter them, then the GRANT statements of its --print; "
            "workers need not stop for it",
        )


def _version_of(rows: list[dict[str, object]]) -> int:
    mark = _MARK.match(str(rows[0]["comment"])) if rows else None
    return int(mark[1]) if mark else 0


# ---------------------------------------------------------------- install


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What the database has after `install`: the worker's tables, and the four queues with their ids.

    `upgraded_from`: the older version that was upgraded; None if there was none.
    """

    tables: tuple[str, ...]
    queues: tuple[tuple[str, int], ...]
    optional_index: bool
    upgraded_from: int | None = None


def install(database: Database) -> Installed:
    """Creates the worker's tables, or upgrades those of an older version in place, and registers the four queues.

    Run again, it changes nothing. Workers need not stop for it. Needs a user who may CREATE and ALTER tables and INSERT
    into `queue`: the shop's own, or an administrator. Raises ShopError where there is no shop, and NotGranted.
    """
    require_shop(database)
    prefix = database.prefix
    before = _upgrade(database)
    database.run_script(statements.script("schema.sql", prefix=prefix))
    database.run_script(statements.script("queues.sql", prefix=prefix))
    names = [topic.queue for topic in TOPIC_TABLE.values()]
    found = {str(row["name"]): int(row["id"]) for row in database.rows("queues_by_name", names=names)}
    return Installed(
        tables=tuple(prefix + table for table in statements.TABLES),
        queues=tuple(sorted(found.items())),
        optional_index=database.has_pending_index,
        upgraded_from=before if 0 < before < VERSION else None,
    )


def build_index(builder: Database, watcher: Database, on_progress: Callable[[float], object]) -> None:
    """Builds the optional index while the shop publishes.

    `builder`: a session without limits, of a user who may ALTER; it runs in a thread of its own. `watcher`: another
    session of that user, which asks how far it is, and ends the statement if this function is interrupted.
    `on_progress` is called with the share that is done, twice a second; MySQL does not tell it.
    The server takes the table for itself at the beginning and at the end, and gives up after LOCK_WAIT_TIMEOUT: nobody
    waits longer. Raises ShopError if the server refuses, Contention if a long transaction held the table.
    """
    script = statements.script("optional_index.sql", prefix=builder.prefix)
    session_id = builder.session_id
    with ThreadPoolExecutor(1) as threads:
        # Not again after contention: a build of minutes would begin anew without a word.
        building = threads.submit(partial(builder.run_script, script, again=False))
        try:
            while not wait([building], PROGRESS_SECONDS).done:
                rows = watcher.rows("index_progress")
                on_progress(int(rows[0]["Value"]) / 10_000 if rows else 0.0)
        except BaseException:
            with suppress(ZitharaWorkerError):
                watcher.execute("end_session", id=session_id)
            raise
        building.result()


def _upgrade(database: Database) -> int:
    """Brings older tables to this version, step by step; returns the version from before.

    Skips columns that exist: an upgrade that was interrupted can be run again.
    """
    found = installed_version(database)
    for step in range(found + 1, VERSION + 1) if found else ():
        for name, text in statements.named(statements.read(f"upgrade_{step}.sql")).items():
            table, _, column = name.partition(".")
            if "ADD COLUMN" in text and database.rows("column_present", table=database.prefix + table, column=column):
                continue
            database.run_script([statements.fill(text, {"prefix": database.prefix}).rstrip(";")])
    return found


def script_text(*, prefix: str, database_name: str, user: str, upgrade_from: int | None = None) -> str:
    """All that `install` would execute, and the grants of a least-privilege account, as SQL to read or to run by hand.

    `user`: an account as the GRANT statement writes it, "'zithara'@'localhost'". `upgrade_from`: only the steps from
    that version to this one, and all grants, because a grant may be given again.
    """
    places = {"prefix": statements.validated_prefix(prefix), "database": f"`{database_name}`", "user": user}
    if upgrade_from is not None:
        steps = [f"upgrade_{step}.sql" for step in range(upgrade_from + 1, VERSION + 1)]
        parts = [statements.fill(statements.read(name), places) for name in (*steps, "grants.sql")]
        return "\n".join([*parts, *(_as_comment(name, places) for name in ("publish_grants.sql", "entity_grants.sql"))])
    parts = [statements.fill(statements.read(name), places) for name in ("schema.sql", "queues.sql", "grants.sql")]
    parts += [_as_comment(name, places) for name in ("publish_grants.sql", "entity_grants.sql", "optional_index.sql")]
    return "\n".join(parts)


def operator_text(*, prefix: str, database_name: str, user: str) -> str:
    """The grants of an operator's account: those of a worker, and what `reconcile` and `publish` need besides."""
    places = {"prefix": statements.validated_prefix(prefix), "database": f"`{database_name}`", "user": user}
    names = ("grants.sql", "entity_grants.sql", "publish_grants.sql")
    return "\n".join(statements.fill(statements.read(name), places) for name in names)


def _as_comment(filename: str, places: Mapping[str, str]) -> str:
    """A script that only some shops need, commented out."""
    text = statements.fill(statements.read(filename), places)
    return "\n".join(f"-- {line}".rstrip() for line in text.splitlines())
