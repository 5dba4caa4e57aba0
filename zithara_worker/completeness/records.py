"""zithara_reconciliation: the last result of each kind, and which resend is still under way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from zithara_worker.database.session import Database
from zithara_worker.monitor.reconciliations import read_results


def begin(database: Database, kind: str, *, resend: bool, now_utc: float) -> float | None:
    """Notes that a run has begun; the last result stays. Returns since when everything counts as to be sent anew: where
    a resend was stopped before its end, since that one began. None: no resend.
    """
    found = next((each for each in read_results(database) if each.kind == kind), None)
    result = dict(found.result) if found is not None else {}
    if resend:
        result.setdefault("resend_since", now_utc)
    database.execute("reconcile_begin", kind=kind, result=json.dumps(result))
    return float(result["resend_since"]) if resend else None


def end(database: Database, kind: str, result: Mapping[str, Any]) -> None:
    """Keeps the result; a resend has come to its end."""
    database.execute("reconcile_end", kind=kind, result=json.dumps(result))
