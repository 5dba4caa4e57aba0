"""Why a loop ends, and the limits at which it ends by itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class End(Enum):
    """Why the loop ended."""

    STOPPED = "stopped"
    RELOAD = "reload"
    POISON_PILL = "poison pill"
    EMPTY = "queues empty"
    MESSAGES = "message limit reached"
    RUNTIME = "time is up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When to end by oneself. None: never."""

    max_messages: int | None = None
    max_runtime_seconds: float | None = None
    stop_when_empty: bool = False
