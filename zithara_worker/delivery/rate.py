"""Pace: how many requests a second this process sends, and how long a host that asked for peace is left alone."""

from __future__ import annotations

import threading
from collections.abc import Callable

#: Pauses after 429 without Retry-After, seconds: the first, doubled each time, and the longest.
FIRST_PAUSE_SECONDS = 5.0
MAX_PAUSE_SECONDS = 300.0


class TokenBucket:
    """`rate` requests a second on average, `burst` at once; a rate of 0 is no limit.

    `clock`: monotonic seconds. `wait(seconds)`: true when it ended early because the process is to stop; the `wait` of
    a threading.Event is one. A `burst` of 0 is one second's worth.
    """

    def __init__(self, *, rate: float, burst: int, clock: Callable[[], float], wait: Callable[[float], bool]) -> None:
        self._rate = rate
        self._burst = max(1.0, float(burst or rate))
        self._clock = clock
        self._wait = wait
        self._lock = threading.Lock()
        self._tokens = self._burst
        self._at = clock()

    def take(self) -> bool:
        """Waits for this caller's turn, first come first served. False when it is to stop; nothing is used up then."""
        if self._rate <= 0:
            return True
        with self._lock:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
            # Below zero are the turns that are promised already: whoever comes next waits behind them.
            self._tokens -= 1
            seconds = -self._tokens / self._rate
        if seconds <= 0 or not self._wait(seconds):
            return True
        with self._lock:
            self._tokens += 1
        return False


class Throttle:
    """The pause that a host asked for (429). `clock`: monotonic seconds."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._until = 0.0
        self._next_pause = FIRST_PAUSE_SECONDS

    def pause(self, retry_after_seconds: float | None) -> float:
        """Leaves the host alone for so long, or for a growing while when it did not say; returns the pause's seconds.

        Of several pauses at once the longest holds; they are one event, so the while grows once.
        """
        with self._lock:
            now = self._clock()
            if retry_after_seconds is None:
                if now < self._until:
                    return self._until - now
                retry_after_seconds = self._next_pause
                self._next_pause = min(self._next_pause * 2, MAX_PAUSE_SECONDS)
            self._until = max(self._until, now + retry_after_seconds)
            return self._until - now

    def remaining_seconds(self) -> float:
        """0 when the host may be asked."""
        if self._until == 0.0:
            return 0.0
        return max(0.0, self._until - self._clock())

    def relax(self) -> None:
        """The host took a request: the next pause is a short one again."""
        if self._next_pause != FIRST_PAUSE_SECONDS:
            with self._lock:
                self._next_pause = FIRST_PAUSE_SECONDS
