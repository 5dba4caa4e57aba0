"""Makes what the worker needs in the shop's database. Running it again changes nothing that is there."""

from __future__ import annotations

from dataclasses import dataclass

from zithara_worker.magento import statements
from zithara_worker.magento.database import Database
from zithara_worker.magento.topics import PHP_SIDE


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What is there now: the worker's tables, and the four queues with their ids."""

    tables: tuple[str, ...]
    queues: tuple[tuple[str, int], ...]
    optional_index: bool


TABLES = (
    "zithara_message_group",
    "zithara_delivery_failure",
    "zithara_worker",
    "zithara_topic_control",
    "zithara_lock",
)


def install(database: Database) -> Installed:
    """Creates the worker's tables and registers the four queues.

    Needs a user who may CREATE tables and INSERT into `queue`: the shop's own, or an administrator. Raises ShopError
    naming the privilege that is missing.
    """
    prefix = database.prefix
    database.run_script(statements.script("schema.sql", prefix=prefix))
    database.run_script(statements.script("queues.sql", prefix=prefix))
    names = [side.queue for side in PHP_SIDE.values()]
    found = {str(row["name"]): int(row["id"]) for row in database.rows("queues_by_name", names=names)}
    return Installed(
        tables=tuple(prefix + table for table in TABLES),
        queues=tuple(sorted(found.items())),
        optional_index=database.has_pending_index,
    )


def script_text(*, prefix: str, database_name: str, user: str) -> str:
    """Everything `install` would execute, and the grants of a least-privilege user, as SQL to read or to run by hand.

    `user`: an account as the GRANT statement writes it, "'zithara'@'localhost'".
    """
    places = {"prefix": statements.validated_prefix(prefix), "database": f"`{database_name}`", "user": user}
    parts = [statements.fill(statements.read(name), places) for name in ("schema.sql", "queues.sql", "grants.sql")]
    optional = statements.fill(statements.read("optional_index.sql"), places)
    parts.append("\n".join(f"-- {line}".rstrip() for line in optional.splitlines()))
    return "\n".join(parts)
