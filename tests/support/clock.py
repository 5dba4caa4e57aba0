"""A clock that a test moves."""

from __future__ import annotations

import time


class Clock:
    """Seconds that stand still until they are moved; unless a start is given, since the epoch."""

    def __init__(self, now: float | None = None) -> None:
        self.now = float(int(time.time())) if now is None else now

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
