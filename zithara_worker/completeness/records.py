"""zithara_reconciliation: the last result of each kind, and which resend is still under way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from zithara_worker.database.session import Database
from zithara_worker.monitor.reconciliations import read_results

#: Seconds after which a resend that was stopped begins anew.
RESEND_SECONDS = 7 * 86_400.0


def begin(database: Database, kind: str, *, resend: bool, now_utc: float) -> float | None:
    """Notes that a run has begun; the last result stays. Returns since when everything counts as to be sent anew: where
    a resend was stopped before its end, since that one began. None: no resend.
    """
    result = _last(database, kind)
    since = result.get("resend_since")
    if resend and (since is None or now_utc - since > RESEND_SECONDS):
        since = result["resend_since"] = now_utc
    database.execute("reconcile_begin", kind=kind, result=json.dumps(result))
    return since if resend else None


def end(database: Database, kind: str, result: Mapping[str, Any], *, resent: bool) -> None:
    """Keeps the result. `resent`: a resend has come to its end; otherwise one that was stopped can still go on."""
    since = _last(database, kind).get("resend_since")
    told = result if resent or since is None else {**result, "resend_since": since}
    database.execute("reconcile_end", kind=kind, result=json.dumps(told))


def _last(database: Database, kind: str) -> dict[str, Any]:
    return next((dict(each.result) for each in read_results(database) if each.kind == kind), {})
