"""A claimed message, with defaults."""

from __future__ import annotations

from typing import Any

from zithara_worker.messages import Lease, Message
from zithara_worker.topics import TOPIC_ORDER


def message_of(id: int, **changes: Any) -> Message:
    """An order's message with this relation id."""
    given: dict[str, Any] = {
        "message_id": id,
        "queue_id": 1,
        "queue_name": "zithara_order_queue",
        "topic": TOPIC_ORDER,
        "group_key": f"order:{id}",
        "number_of_trials": 0,
        "claim": 1,
        "status_before": 2,
        "updated_at_before": "2026-11-24 12:00:00",
        "lease": Lease(60.0),
    }
    return Message(id=id, **{**given, **changes})
