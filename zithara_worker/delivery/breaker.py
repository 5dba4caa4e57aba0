"""A circuit breaker: during an outage nothing is sent but one probe now and then, until a probe succeeds.

CLOSED --(evidence, see below)--> OPEN --(pause over)--> HALF_OPEN --(success)--> CLOSED, a few messages at first
                                    ^                       |
                                    +----(failure, pause doubled)

A message that always fails must never stop the others. Therefore two kinds of failures open the breaker differently:
- no message can cause it (no connection, no access token): UNREACHABLE_IN_A_ROW failures, or one that concerns every
  message;
- it can be an outage or the message itself: failures of three groups without a success between, at least as many
  failures as requests are under way. A group that had failed before others were served does not count.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

#: Failed connections in a row that open a breaker; groups that must have failed to open it.
UNREACHABLE_IN_A_ROW = 5
GROUPS = 3
#: Seconds between two probes: at first, then doubled up to the maximum.
FIRST_PAUSE_SECONDS = 5.0
MAX_PAUSE_SECONDS = 300.0
#: `next_opening_seconds` while a probe is under way, because its end is not known; its result wakes the loop.
PROBING_SECONDS = 1.0
#: Messages that may be claimed at the same time after an outage or a pause. Each success doubles the number, and ends
#: the limit beyond the widest window. Without it everything that waited would reach a host that has just recovered at
#: once.
FIRST_WINDOW = 2
WIDEST_WINDOW = 128


class BreakerState(Enum):
    CLOSED = "closed"
    OPEN = "open"
    #: The pause is over: one message may be sent as a probe, or is under way
    HALF_OPEN = "half-open"


class Permit(Enum):
    """What `admit` returns for a message. The result of the message is recorded with the same permit."""

    NORMAL = "normal"
    #: The one message that is sent to find out whether the outage is over
    PROBE = "probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerStatus:
    """`why`: the failure that opened it or the last probe's, for people; "" if closed."""

    state: BreakerState
    why: str


class CircuitBreaker:
    """The breaker of one target. Thread-safe. `clock`: monotonic seconds.

    Each permit that `admit` gives must end with one of the methods that follow it.
    """

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._under_way = 0
        self._unreachable = 0
        #: Failures since the last success, and the groups of those that count as evidence
        self._failures = 0
        self._groups: set[str] = set()
        #: Whether it is open or half-open
        self.is_open = False
        self._why = ""
        self._pause = FIRST_PAUSE_SECONDS
        self._probe_at = 0.0
        self._probing = False
        self._window: int | None = None

    def allowance(self) -> int | None:
        """How many messages may be claimed at the same time: None for no limit, a few after an outage, 1 for a probe,
        0."""
        if not self.is_open and self._window is None:
            return None
        with self._lock:
            if not self.is_open:
                return self._window
            return 1 if self._may_probe() else 0

    def next_opening_seconds(self) -> float:
        """Seconds until the allowance may rise from 0; 0 if something may be sent now."""
        with self._lock:
            if not self.is_open or self._may_probe():
                return 0.0
            return PROBING_SECONDS if self._probing else self._probe_at - self._clock()

    def narrow(self) -> None:
        """Lets only a few messages go first after the pause that a 429 asked for."""
        with self._lock:
            self._window = FIRST_WINDOW

    def admit(self) -> Permit | None:
        """Takes a permit, whose result one of the methods below must record. None: do not send."""
        with self._lock:
            permit = Permit.NORMAL
            if self.is_open:
                if not self._may_probe():
                    return None
                self._probing = True
                permit = Permit.PROBE
            self._under_way += 1
            return permit

    def record_success(self) -> bool:
        """A message was served. True if this closed the breaker."""
        with self._lock:
            self._under_way -= 1
            self._unreachable = self._failures = 0
            self._groups.clear()
            if self._window is not None:
                self._window = self._window * 2 if self._window < WIDEST_WINDOW else None
            if not self.is_open:
                return False
            self.is_open = self._probing = False
            self._why = ""
            self._window = FIRST_WINDOW
            return True

    def record_failure(self, permit: Permit, why: str, *, group: str | None) -> bool:
        """A message failed, by an outage or by itself. True if this opened the breaker.

        `group`: None if it failed before while others were served, so that it counts as no evidence. The failure of a
        probe doubles the pause; a message that was under way when the breaker opened does not.
        """
        with self._lock:
            self._unreachable = 0
            self._failures += 1
            if group is not None and len(self._groups) < GROUPS:
                self._groups.add(group)
            enough = len(self._groups) >= GROUPS and self._failures >= self._under_way
            return self._failed(permit, why, enough=enough)

    def record_unreachable(self, permit: Permit, why: str, *, for_all: bool) -> bool:
        """The host could not be reached, whatever the message. True if this opened the breaker.

        `for_all`: one failure is enough, because no message could have been sent.
        """
        with self._lock:
            self._unreachable += 1
            return self._failed(permit, why, enough=for_all or self._unreachable >= UNREACHABLE_IN_A_ROW)

    def learn_nothing(self, permit: Permit, why: str) -> None:
        """The message did not reach this target. If it was a probe, the next one waits as after a failure."""
        with self._lock:
            self._failed(permit, why, enough=False)

    def give_back(self, permit: Permit) -> None:
        """The message was not sent, or its answer says nothing about the target."""
        with self._lock:
            self._under_way -= 1
            if permit is Permit.PROBE:
                self._probing = False

    def status(self) -> BreakerStatus:
        with self._lock:
            if not self.is_open:
                state = BreakerState.CLOSED
            else:
                waits = not self._probing and self._clock() < self._probe_at
                state = BreakerState.OPEN if waits else BreakerState.HALF_OPEN
            return BreakerStatus(state=state, why=self._why)

    def _may_probe(self) -> bool:
        return not self._probing and self._clock() >= self._probe_at

    def _failed(self, permit: Permit, why: str, *, enough: bool) -> bool:
        self._under_way -= 1
        if self.is_open:
            if permit is Permit.PROBE:
                self._why = why
                self._probing = False
                self._pause = min(self._pause * 2, MAX_PAUSE_SECONDS)
                self._probe_at = self._clock() + self._pause
            return False
        if not enough:
            return False
        self.is_open = True
        self._why = why
        self._probing = False
        self._pause = FIRST_PAUSE_SECONDS
        self._probe_at = self._clock() + self._pause
        return True
