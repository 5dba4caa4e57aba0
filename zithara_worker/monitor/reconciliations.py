"""The last result of `reconcile` for each kind, as zithara_reconciliation has it. Reads only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zithara_worker.database.session import Database
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER

#: Kind -> its topic, in the order in which they are compared: a customer before what he or she ordered.
TOPIC_OF_KIND = {"customers": TOPIC_CUSTOMER, "orders": TOPIC_ORDER, "carts": TOPIC_CART}
KINDS = tuple(TOPIC_OF_KIND)
#: The classes of entities that Zithara does not have in their latest state, and that are not on their way.
WRONG = ("missing", "stale", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """Times: seconds since the epoch, by the database's clock. `finished_utc`: None while a run is at work, or after
    one that was stopped; `result` is then that of the run before, and empty if there was none."""

    kind: str
    started_utc: float
    finished_utc: float | None
    result: Mapping[str, Any] = field(default_factory=dict)

    @property
    def topic(self) -> str:
        return TOPIC_OF_KIND[self.kind]

    @property
    def judged_utc(self) -> float | None:
        """When the result was found; None: there is none."""
        at = self.result.get("finished_utc")
        return float(at) if isinstance(at, int | float) else None

    @property
    def counts(self) -> Mapping[str, int]:
        """Class -> entities; empty without a result."""
        found = self.result.get("counts")
        return {str(name): int(number) for name, number in found.items()} if isinstance(found, dict) else {}

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def wrong(self) -> int:
        """Entities of the classes WRONG."""
        return sum(self.counts.get(name, 0) for name in WRONG)


def read_results(database: Database) -> list[Reconciliation]:
    """One for each kind that was ever compared."""
    found = {str(row["kind"]): row for row in database.rows("reconciliations")}
    return [
        Reconciliation(
            kind=kind,
            started_utc=float(found[kind]["started_at"]),
            finished_utc=None if found[kind]["finished_at"] is None else float(found[kind]["finished_at"]),
            result=json_object(found[kind]["result"]),
        )
        for kind in KINDS
        if kind in found
    ]


def json_object(text: Any) -> Mapping[str, Any]:
    """A JSON object; empty where another version of the program wrote something else."""
    try:
        value = json.loads(text)
    except (TypeError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
