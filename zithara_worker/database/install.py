"""Makes what the worker needs in the shop's database, or brings it to this version. Run again, it changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from zithara_worker.database import schema, statements
from zithara_worker.database.session import Database
from zithara_worker.topics import TOPIC_TABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What is there now: the worker's tables, and the four queues with their ids. `upgraded_from`: the schema that was
    there, None where it was this version's or there was none."""

    tables: tuple[str, ...]
    queues: tuple[tuple[str, int], ...]
    optional_index: bool
    upgraded_from: int | None = None


TABLES = (
    "zithara_message_group",
    "zithara_delivery_failure",
    "zithara_worker",
    "zithara_topic_control",
    "zithara_lock",
)


def install(database: Database) -> Installed:
    """Creates the worker's tables, or upgrades those of an older version in place, and registers the four queues.

    Workers need not stop for it. Needs a user who may CREATE and ALTER tables and INSERT into `queue`: the shop's own,
    or an administrator. Raises ShopError naming the privilege that is missing.
    """
    prefix = database.prefix
    before = schema.upgrade(database)
    database.run_script(statements.script("schema.sql", prefix=prefix))
    database.run_script(statements.script("queues.sql", prefix=prefix))
    names = [topic.queue for topic in TOPIC_TABLE.values()]
    found = {str(row["name"]): int(row["id"]) for row in database.rows("queues_by_name", names=names)}
    return Installed(
        tables=tuple(prefix + table for table in TABLES),
        queues=tuple(sorted(found.items())),
        optional_index=database.has_pending_index,
        upgraded_from=before if 0 < before < schema.VERSION else None,
    )


def script_text(*, prefix: str, database_name: str, user: str, upgrade_from: int | None = None) -> str:
    """Everything `install` would execute, and the grants of a least-privilege user, as SQL to read or to run by hand.

    `user`: an account as the GRANT statement writes it, "'zithara'@'localhost'". `upgrade_from`: only what leads from
    that schema to this version's; the grants are whole, as a grant may be given again.
    """
    places = {"prefix": statements.validated_prefix(prefix), "database": f"`{database_name}`", "user": user}
    if upgrade_from is not None:
        steps = [f"upgrade_{step}.sql" for step in range(upgrade_from + 1, schema.VERSION + 1)]
        return "\n".join(statements.fill(statements.read(name), places) for name in (*steps, "grants.sql"))
    parts = [statements.fill(statements.read(name), places) for name in ("schema.sql", "queues.sql", "grants.sql")]
    optional = statements.fill(statements.read("optional_index.sql"), places)
    parts.append("\n".join(f"-- {line}".rstrip() for line in optional.splitlines()))
    return "\n".join(parts)
