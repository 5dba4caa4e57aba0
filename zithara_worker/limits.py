"""Why a loop ends, and the limits at which it ends by itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    """When the loop ends by itself. None: never."""

    max_messages: int | None = None
    max_runtime_seconds: float | None = None
    stop_when_empty: bool = False

    def reached(self, *, settled: int, seconds: float) -> End | None:
        """The limit that is reached after so many settled messages and seconds."""
        if self.max_messages is not None and settled >= self.max_messages:
            return End.MESSAGES
        if self.max_runtime_seconds is not None and seconds >= self.max_runtime_seconds:
            return End.RUNTIME
        return None

    def remaining(self, *, settled: int, seconds: float) -> Limits:
        """The limits of the loop that goes on after a reload."""
        messages, runtime = self.max_messages, self.max_runtime_seconds
        return replace(
            self,
            max_messages=None if messages is None else max(0, messages - settled),
            max_runtime_seconds=None if runtime is None else max(0.0, runtime - seconds),
        )
