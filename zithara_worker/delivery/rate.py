"""Pace: how many requests a second this process sends, and how long a host that asked for peace is left alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

#: Pauses after 429 without Retry-After, seconds: the first, doubled each time, and the longest.
FIRST_PAUSE_SECONDS = 5.0
MAX_PAUSE_SECONDS = 300.0
#: How often a group is answered 429 while others are served until that costs an attempt, and how many groups are known.
REFUSALS_AN_ATTEMPT = 3
REFUSED_KEPT = 1000


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


class Pause(NamedTuple):
    """What a 429 means. `seconds`: for which the path is left alone, 0 where only the message's own group is meant;
    `times`: how often in all the group was answered so while others were served."""

    seconds: float
    times: int


class Throttle:
    """The pauses that were asked for on one path (429). `clock`: monotonic seconds. Thread-safe.

    A message that is always answered 429 must not stop the others: a group that is answered so again after others were
    served has only itself to blame; and one group alone is believed for no more than MAX_PAUSE_SECONDS.
    """

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._until = 0.0
        self._next_pause = FIRST_PAUSE_SECONDS
        #: Groups that were answered 429: when last, and how often while others were served; the oldest first
        self._refused: dict[str, tuple[float, int]] = {}
        #: Those since the last success
        self._asking: set[str] = set()

    def refused(self, group: str, retry_after_seconds: float | None, *, others_served_at: float | None) -> Pause:
        """A message of this group was answered 429. `others_served_at`: when another group's last success was sent.

        Of several pauses at once the longest holds; they are one event, so the growing while grows once.
        """
        with self._lock:
            now = self._clock()
            before, times = self._refused.pop(group, (None, 0))
            own = before is not None and others_served_at is not None and others_served_at > before
            times += int(own or before is None)
            self._refused[group] = (now, times % REFUSALS_AN_ATTEMPT)
            if len(self._refused) > REFUSED_KEPT:
                del self._refused[next(iter(self._refused))]
            if own:
                return Pause(0.0, times)
            self._asking.add(group)
            if retry_after_seconds is None:
                if now < self._until:
                    return Pause(self._until - now, times)
                retry_after_seconds = self._next_pause
                self._next_pause = min(self._next_pause * 2, MAX_PAUSE_SECONDS)
            elif len(self._asking) == 1:
                retry_after_seconds = min(retry_after_seconds, MAX_PAUSE_SECONDS)
            self._until = max(self._until, now + retry_after_seconds)
            return Pause(self._until - now, times)

    def remaining_seconds(self) -> float:
        """0 when the path may be asked."""
        if self._until == 0.0:
            return 0.0
        return max(0.0, self._until - self._clock())

    def relax(self, group: str) -> None:
        """A message of this group was served: the next pause is a short one again."""
        if self._refused or self._asking or self._next_pause != FIRST_PAUSE_SECONDS:
            with self._lock:
                self._next_pause = FIRST_PAUSE_SECONDS
                self._asking.clear()
                self._refused.pop(group, None)
