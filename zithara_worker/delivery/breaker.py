"""A circuit breaker: stops sending where nobody is served, and finds out cheaply when that is over.

CLOSED --(evidence, see below)--> OPEN --(pause over)--> HALF_OPEN --(success)--> CLOSED, a few messages at first
                                    ^                       |
                                    +----(failure, pause doubled)

Evidence comes in two kinds, because a message that always fails must never stop the others:
- what no message can cause (no connection, no access token): so many failures in a row, or one that speaks for all;
- what an outage would explain, and so would the message: failures of three groups, none of which had failed before
  others were served, as many failures as requests are under way, and no success between.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

#: Failed connections in a row that open a breaker, and groups that must have failed.
UNREACHABLE_IN_A_ROW = 5
GROUPS = 3
#: Pauses between probes, seconds: first, and at most.
FIRST_PAUSE_SECONDS = 5.0
MAX_PAUSE_SECONDS = 300.0
#: What `next_opening_seconds` says while a probe is under way: nobody knows, and its result wakes the loop anyway.
PROBING_SECONDS = 1.0
#: Messages that may be claimed at once after an outage or a pause: doubled by each success, up to the point where the
#: limit is lifted. What waited must not fall all at once on a host that has just come back.
FIRST_WINDOW = 2
WIDEST_WINDOW = 128


class BreakerState(Enum):
    CLOSED = "closed"
    OPEN = "open"
    #: The pause is over: one message may go, or is on its way
    HALF_OPEN = "half-open"


class Permit(Enum):
    """What a message gets on its way in, and shows again with its result."""

    NORMAL = "normal"
    #: The one message that tries whether others are served again
    PROBE = "probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerStatus:
    """`since`: on the breaker's clock, seconds. `next_probe_in`: seconds, None when closed or a probe is under way.

    `why`: the last failure while it is not closed, for people; "" when it is.
    """

    state: BreakerState
    since: float
    next_probe_in: float | None
    why: str


class CircuitBreaker:
    """One host's, or one path's. Thread-safe; `clock`: monotonic seconds.

    Each permit that `admit` gives ends with one of the methods below it.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        first_pause_seconds: float = FIRST_PAUSE_SECONDS,
        max_pause_seconds: float = MAX_PAUSE_SECONDS,
    ) -> None:
        self._clock = clock
        self._first_pause = first_pause_seconds
        self._max_pause = max_pause_seconds
        self._lock = threading.Lock()
        self._under_way = 0
        self._unreachable = 0
        #: Failures since the last success, and the groups among them that had no failure on record
        self._failures = 0
        self._groups: set[str] = set()
        self._open = False
        self._why = ""
        self._pause = first_pause_seconds
        self._probe_at = 0.0
        self._probing = False
        self._window: int | None = None
        self._since = clock()

    @property
    def is_open(self) -> bool:
        """Open or half-open: nobody is taken to be served."""
        return self._open

    def allowance(self) -> int | None:
        """How many messages may be in hand: None as many as one likes; a few after an outage; 1 a probe; 0."""
        if not self._open and self._window is None:
            return None
        with self._lock:
            if not self._open:
                return self._window
            return 1 if self._may_probe() else 0

    def next_opening_seconds(self) -> float:
        """Seconds until the allowance may rise from 0; 0 when something may be sent now."""
        with self._lock:
            if not self._open or self._may_probe():
                return 0.0
            return PROBING_SECONDS if self._probing else self._probe_at - self._clock()

    def narrow(self) -> None:
        """After a pause that was asked for, a few messages go first."""
        with self._lock:
            self._window = FIRST_WINDOW

    def admit(self) -> Permit | None:
        """Takes a permit, whose result must be told by one of the methods below; None: do not send."""
        with self._lock:
            permit = Permit.NORMAL
            if self._open:
                if not self._may_probe():
                    return None
                self._probing = True
                permit = Permit.PROBE
            self._under_way += 1
            return permit

    def record_success(self) -> bool:
        """Somebody was served. True when that has just closed the breaker."""
        with self._lock:
            self._under_way -= 1
            self._unreachable = self._failures = 0
            self._groups.clear()
            if self._window is not None:
                self._window = self._window * 2 if self._window < WIDEST_WINDOW else None
            if not self._open:
                return False
            self._open = self._probing = False
            self._why = ""
            self._window = FIRST_WINDOW
            self._since = self._clock()
            return True

    def record_failure(self, permit: Permit, why: str, *, group: str | None) -> bool:
        """A message failed in a way that may be its own. True when that has just opened the breaker.

        `group`: None for one that has failed before while others were served. The probe's failure doubles the pause;
        that of a message already under way when the breaker opened does not.
        """
        with self._lock:
            self._unreachable = 0
            self._failures += 1
            if group is not None and len(self._groups) < GROUPS:
                self._groups.add(group)
            enough = len(self._groups) >= GROUPS and self._failures >= self._under_way
            return self._failed(permit, why, enough=enough)

    def record_unreachable(self, permit: Permit, why: str, *, for_all: bool) -> bool:
        """The host is not there, whatever the message. True when that has just opened the breaker.

        `for_all`: once is enough, no message could have been sent.
        """
        with self._lock:
            self._unreachable += 1
            return self._failed(permit, why, enough=for_all or self._unreachable >= UNREACHABLE_IN_A_ROW)

    def learn_nothing(self, permit: Permit, why: str) -> None:
        """The message did not get as far as here: a probe is over, and the next one waits as after a failure."""
        with self._lock:
            self._failed(permit, why, enough=False)

    def give_back(self, permit: Permit) -> None:
        """The message was not sent after all, or its answer says nothing about others."""
        with self._lock:
            self._under_way -= 1
            if permit is Permit.PROBE:
                self._probing = False

    def status(self) -> BreakerStatus:
        with self._lock:
            now = self._clock()
            if not self._open:
                state = BreakerState.CLOSED
            else:
                state = BreakerState.HALF_OPEN if self._probing or now >= self._probe_at else BreakerState.OPEN
            return BreakerStatus(
                state=state,
                since=self._since,
                next_probe_in=max(0.0, self._probe_at - now) if self._open and not self._probing else None,
                why=self._why,
            )

    def _may_probe(self) -> bool:
        return not self._probing and self._clock() >= self._probe_at

    def _failed(self, permit: Permit, why: str, *, enough: bool) -> bool:
        self._under_way -= 1
        if self._open:
            if permit is Permit.PROBE:
                self._why = why
                self._probing = False
                self._pause = min(self._pause * 2, self._max_pause)
                self._probe_at = self._clock() + self._pause
            return False
        if not enough:
            return False
        self._open = True
        self._why = why
        self._probing = False
        self._pause = self._first_pause
        self._since = self._clock()
        self._probe_at = self._since + self._pause
        return True
