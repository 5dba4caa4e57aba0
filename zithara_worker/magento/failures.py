"""Rows of zithara_delivery_failure: one for each message that has failed and is not complete."""

from __future__ import annotations

import json
from datetime import datetime, timezone

from zithara_worker.magento.database import Database
from zithara_worker.messages import Outcome


def record(
    database: Database,
    *,
    id: int,
    queue_id: int,
    message_id: int,
    topic: str,
    group_key: str,
    outcome: Outcome,
    worker_id: str,
) -> None:
    """Counts one failed attempt of a message, with its reason, in the caller's transaction."""
    attempt = {
        "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "reason": outcome.reason,
        "http_status": outcome.http_status,
        "worker": worker_id,
    }
    database.execute(
        "failure_record",
        id=id,
        queue_id=queue_id,
        message_id=message_id,
        topic=topic,
        group_key=group_key,
        reason=outcome.reason[:64],
        http_status=outcome.http_status,
        detail=outcome.detail[:1000],
        history=json.dumps(attempt),
    )
