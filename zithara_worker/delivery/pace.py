"""When something may be sent: the rate limit, the pause that a 429 asks for, and the delay before the next attempt."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from zithara_worker.settings.sections import RetrySettings

#: Jitter moves a delay by up to this share of it, so that messages that failed together do not return together.
JITTER_SHARE = 0.2
#: Pause after a 429 without Retry-After, in seconds: the first one, which doubles each time, and the longest.
FIRST_THROTTLE_SECONDS = 5.0
MAX_THROTTLE_SECONDS = 300.0
#: A group that is answered 429 this many times while other groups are served loses an attempt.
REFUSALS_PER_ATTEMPT = 3
#: A throttle remembers the 429 answers of at most this many groups, and forgets the oldest first.
MAX_REFUSED_GROUPS = 1000


def delay_before(attempt: int, policy: RetrySettings, jitter: float) -> float:
    """Seconds to wait after failed attempt `attempt` (1 = first); `jitter` in [-1, 1] spreads by +-20 %.

    With the defaults and no jitter: 30, 90, 270, 810, 2430, 7290, 21600. Raises ValueError for an attempt below 1 or a
    jitter out of range.
    """
    if attempt < 1:
        raise ValueError(f"attempt {attempt}: the first is 1")
    if not -1 <= jitter <= 1:
        raise ValueError(f"jitter {jitter}: must be between -1 and 1")
    try:
        delay = policy.delay * policy.factor ** (attempt - 1)
    except OverflowError:  # after some hundred attempts, or sooner with a large factor
        delay = policy.max_delay
    return min(policy.max_delay, delay) * (1 + JITTER_SHARE * jitter)


class TokenBucket:
    """The rate limit: `rate` requests a second on average, `burst` at once. A rate of 0 is no limit, a burst of 0
    means one second's worth of requests. Thread-safe.

    `clock`: monotonic seconds. `wait(seconds)` returns true if it ended early because the worker stops; the `wait` of a
    threading.Event does so.
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
        """Waits until the caller may send, in the order of the calls. False if the worker stops first; then no token is
        used up."""
        if self._rate <= 0:
            return True
        with self._lock:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
            # A negative balance counts requests that already wait for a token. A new caller waits behind them, so
            # tokens are given in the order of the calls.
            self._tokens -= 1
            seconds = -self._tokens / self._rate
        if seconds <= 0 or not self._wait(seconds):
            return True
        with self._lock:
            self._tokens += 1
        return False


class Pause(NamedTuple):
    """What follows from a 429. `seconds`: how long nothing is sent to the path; 0 if only the message's own group
    waits. `times`: how often the group was answered 429 while others were served, this time included."""

    seconds: float
    times: int


class Throttle:
    """The pauses that one path asked for with 429. `clock`: monotonic seconds. Thread-safe.

    A message that is always answered 429 must not stop the others. Therefore a group that is answered 429 again after
    other groups were served pauses only itself, and a pause that a single group brought ends after
    MAX_THROTTLE_SECONDS.
    """

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._until = 0.0
        self._next_pause = FIRST_THROTTLE_SECONDS
        #: Group -> when it was answered 429 the last time, and how often while others were served; oldest first
        self._refused: dict[str, tuple[float, int]] = {}
        #: Groups that were answered 429 since the last success
        self._asking: set[str] = set()

    def refused(self, group: str, retry_after_seconds: float | None, *, others_served_at: float | None) -> Pause:
        """A message of this group was answered 429. `others_served_at`: when the latest successful request of another
        group was sent.

        Of several pauses at the same time the longest holds. Answers without Retry-After during a pause belong to the
        same event, so the next pause doubles only once.
        """
        with self._lock:
            now = self._clock()
            before, times = self._refused.pop(group, (None, 0))
            own = before is not None and others_served_at is not None and others_served_at > before
            times += int(own or before is None)
            self._refused[group] = (now, times % REFUSALS_PER_ATTEMPT)
            if len(self._refused) > MAX_REFUSED_GROUPS:
                del self._refused[next(iter(self._refused))]
            if own:
                return Pause(0.0, times)
            self._asking.add(group)
            if retry_after_seconds is None:
                if now < self._until:
                    return Pause(self._until - now, times)
                retry_after_seconds = self._next_pause
                self._next_pause = min(self._next_pause * 2, MAX_THROTTLE_SECONDS)
            elif len(self._asking) == 1:
                retry_after_seconds = min(retry_after_seconds, MAX_THROTTLE_SECONDS)
            self._until = max(self._until, now + retry_after_seconds)
            return Pause(self._until - now, times)

    def remaining_seconds(self) -> float:
        """Seconds until the path may be sent to; 0 if it may be now."""
        if self._until == 0.0:
            return 0.0
        return max(0.0, self._until - self._clock())

    def relax(self, group: str) -> None:
        """A message of this group was served, so the next pause begins with FIRST_THROTTLE_SECONDS again."""
        if self._refused or self._asking or self._next_pause != FIRST_THROTTLE_SECONDS:
            with self._lock:
                self._next_pause = FIRST_THROTTLE_SECONDS
                self._asking.clear()
                self._refused.pop(group, None)
