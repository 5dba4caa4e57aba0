"""When something may be sent: the rate limit, the pause that a 429 asks for, and the delay before the next attempt."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from zithara_worker.errors import ZitharaWorkerError
from zithara_worker.settings.sections import RetrySettings

log = logging.getLogger(__name__)

#: Seconds after which a turn of the rate limit that was not used lapses.
LAPSE_SECONDS = 0.1
#: Turns of one request that may lapse.
LAPSED_TURNS = 3
#: A worker that uses all its turns reserves those of so many seconds at once, to spare statements.
AHEAD_SECONDS = 0.1
#: Workers that may wait with reserved turns at the same time. The line of turns is no longer than theirs, unless
#: another rate was in force, or the database's clock went back.
MOST_WORKERS = 200
#: Seconds until turns are asked for again while the database does not answer.
DATABASE_AWAY_SECONDS = 1.0
#: `is_limiting` looks so many seconds back.
LIMITING_SECONDS = 10.0
#: Jitter moves a delay by up to this share of it, so that messages that failed together do not return together.
JITTER_SHARE = 0.2
#: Pause after a 429 without Retry-After, in seconds: the first one, which doubles each time, and the longest.
FIRST_THROTTLE_SECONDS = 5.0
MAX_THROTTLE_SECONDS = 300.0
#: A group that is answered 429 this many times while other groups are served loses an attempt.
REFUSALS_PER_ATTEMPT = 3
#: A throttle remembers the 429 answers of at most this many groups, and forgets the oldest first.
MAX_REFUSED_GROUPS = 1000


class Turns(NamedTuple):
    """How the turns of a rate limit follow each other, so that in any second no more than rate + burst requests leave,
    though each may leave up to LAPSE_SECONDS late. `seconds_each`: the time between two turns. `credit_seconds`: how
    far turns may lie in the past: so much of an idle time can be made up for at once. `line_seconds`: how far they may
    lie in the future."""

    seconds_each: float
    credit_seconds: float
    line_seconds: float


def turns_of(rate: float, burst: int) -> Turns:
    """`rate`: requests a second, 0 for no limit. `burst`: 0 means one second's worth, at least 1.

    A span of one second holds at most credit / each + (1 + LAPSE_SECONDS) / each + 1 requests, which is made equal to
    rate + burst. A small burst leaves no credit, and makes the turns a little rarer than the rate.
    """
    if not rate:
        return Turns(0.0, 0.0, 0.0)
    most = rate + (burst or max(1.0, rate)) - 1
    paced = min(rate, most / (1 + LAPSE_SECONDS))
    return Turns(1 / paced, max(0.0, most / paced - (1 + LAPSE_SECONDS)), MOST_WORKERS * (1 / paced + AHEAD_SECONDS))


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


class RateLimit:
    """The rate limit of the whole fleet. Thread-safe.

    Requests get turns that follow each other at the rate. `reserve(count)` takes the next `count` turns of the fleet or
    more; it returns in how many seconds the first of them is, which may be in the past, and how many they are. None: no
    limit. `seconds_each`: the time between two turns. `clock`: monotonic seconds. `wait(seconds)` returns true if it
    ended early because the worker stops; the `wait` of a threading.Event does so.
    """

    def __init__(
        self,
        reserve: Callable[[int], tuple[float, int]] | None,
        *,
        seconds_each: float,
        clock: Callable[[], float],
        wait: Callable[[float], bool],
    ) -> None:
        self._reserve = reserve
        self._seconds_each = seconds_each
        self._clock = clock
        self._wait = wait
        #: Held by the thread that waits for this worker's next turn; the others wait for that thread
        self._lock = threading.Lock()
        self._turns: deque[float] = deque()
        #: How many turns to reserve at once: more while all of them are used in time
        self._ahead = 1
        self._limited_at = -math.inf
        self._stopped = False

    @property
    def is_limiting(self) -> bool:
        """Whether a request has waited for its turn within the last LIMITING_SECONDS."""
        return self._clock() - self._limited_at < LIMITING_SECONDS

    def take(self) -> bool:
        """Waits until the caller may send. False if the worker stops first.

        One thread at a time has a turn: a worker that dies, or gets another rate, leaves no long line of turns behind
        that nobody uses and the fleet waits for. A turn that was not used within LAPSE_SECONDS lapses, so that no
        second gets more requests than it may; after LAPSED_TURNS the next one is used however late, because on a host
        that is always late nothing would be sent. While the database does not answer nobody has a turn: other workers
        may be sending.
        """
        if self._reserve is None:
            return True
        lapsed = 0
        with self._lock:
            while not self._stopped:
                turn = self._next_turn(self._reserve)
                seconds = DATABASE_AWAY_SECONDS if turn is None else turn - self._clock()
                if seconds > 0:
                    self._limited_at = self._clock() + seconds
                    self._stopped = self._wait(seconds)
                if turn is not None and not self._stopped:
                    if lapsed == LAPSED_TURNS or self._clock() <= turn + LAPSE_SECONDS:
                        return True
                    lapsed += 1
        return False

    def _next_turn(self, reserve: Callable[[int], tuple[float, int]]) -> float | None:
        """When the caller may send; None: the database does not answer."""
        now = self._clock()
        while self._turns and self._turns[0] + LAPSE_SECONDS < now:
            self._turns.popleft()
            self._ahead = 1
        if not self._turns:
            try:
                seconds, count = reserve(self._ahead)
            except ZitharaWorkerError as error:
                log.warning(
                    "nothing is sent, because the rate limit cannot be shared with the other workers",
                    extra={"event": "rate_limit_unknown", "detail": str(error)},
                )
                return None
            now = self._clock()
            self._turns.extend(max(now, now + seconds + n * self._seconds_each) for n in range(count))
            self._ahead = max(1, min(2 * count, int(AHEAD_SECONDS / self._seconds_each)))
        return self._turns.popleft()


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
