"""Reads the statements of `sql/`, and fills in the shop's table prefix. Knows no connection."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources

from zithara_worker.errors import ConfigurationError

#: The files of named statements, one for each part of the worker that uses the database.
QUERIES = (
    "database.sql",
    "queue.sql",
    "ledger.sql",
    "operator.sql",
    "reconcile.sql",
    "trace.sql",
    "monitor.sql",
    "shop.sql",
    "entities.sql",
    "doctor.sql",
    "relay.sql",
)
#: The worker's own tables, without the prefix.
TABLES = (
    "zithara_message_group",
    "zithara_delivery_failure",
    "zithara_worker",
    "zithara_topic_control",
    "zithara_lock",
    "zithara_delivery",
    "zithara_ledger",
    "zithara_reconciliation",
    "zithara_relayed",
    "zithara_relay_aside",
)

_PREFIX = re.compile(r"[A-Za-z0-9_]{0,32}\Z")
_NAME = re.compile(r"^-- ([\w.]+) --$", re.MULTILINE)
_PLACE = re.compile(r"\{(\w+)\}")


def validated_prefix(prefix: str) -> str:
    """The prefix itself. Identifiers are not escaped in our statements, so only harmless characters are accepted."""
    if not _PREFIX.match(prefix):
        raise ConfigurationError(
            f"table prefix {prefix!r} may hold only letters, digits and _ (at most 32): "
            "correct [database] table_prefix, or db.table_prefix in app/etc/env.php"
        )
    return prefix


def read(filename: str) -> str:
    """The text of one file of `sql/`. A wheel, an editable install and the Debian package have the same files."""
    return resources.files("zithara_worker.sql").joinpath(filename).read_text(encoding="utf-8")


def fill(text: str, places: Mapping[str, str]) -> str:
    """Replaces each `{name}` by its value. Raises KeyError for a name without a value."""
    return _PLACE.sub(lambda match: places[match.group(1)], text)


def script(filename: str, *, prefix: str, **places: str) -> list[str]:
    """The statements of a script in their order, without comments. They may hold no ; and no -- inside a literal."""
    text = re.sub(r"--[^\n]*", "", fill(read(filename), {"prefix": validated_prefix(prefix), **places}))
    return [statement.strip() for statement in text.split(";") if statement.strip()]


@cache
def queries() -> Mapping[str, str]:
    """Every statement of `QUERIES` by its name. Raises ValueError if two have the same name."""
    texts: dict[str, str] = {}
    for filename in QUERIES:
        found = named(read(filename))
        if twice := texts.keys() & found.keys():
            raise ValueError(f"sql/{filename} has statements whose names another file has: {', '.join(sorted(twice))}")
        texts.update(found)
    return texts


def named(text: str) -> dict[str, str]:
    """The statements of a text in which `-- name --` begins each: name -> statement without comments."""
    parts = _NAME.split(text)
    return {name: re.sub(r"\s*--[^\n]*", "", text).strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}
