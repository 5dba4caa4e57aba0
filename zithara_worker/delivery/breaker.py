"""A circuit breaker: stops sending to a host that is down, and finds out cheaply when it is back.

CLOSED --(threshold failures in a row, or trip)--> OPEN --(pause over)--> HALF_OPEN --(success)--> CLOSED
                                                     ^                        |
                                                     +------(failure, pause doubled)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

#: Host failures in a row that open a breaker, and its pauses between probes, seconds: first, and at most.
THRESHOLD = 5
FIRST_PAUSE_SECONDS = 5.0
MAX_PAUSE_SECONDS = 300.0
#: What `next_opening_seconds` says while a probe is under way: nobody knows, and its result wakes the loop anyway.
PROBING_SECONDS = 1.0


class BreakerState(Enum):
    CLOSED = "closed"
    OPEN = "open"
    #: The pause is over: one message may go, or is on its way
    HALF_OPEN = "half-open"


class Permit(Enum):
    """What a message gets on its way in, and shows again with its result."""

    NORMAL = "normal"
    #: The one message that tries whether the host is back
    PROBE = "probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerStatus:
    """`since`: on the breaker's clock, seconds. `next_probe_in`: seconds, None when closed or a probe is under way."""

    state: BreakerState
    since: float
    next_probe_in: float | None
    failures_in_a_row: int


class CircuitBreaker:
    """One host's. Thread-safe; `clock`: monotonic seconds."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        threshold: int = THRESHOLD,
        first_pause_seconds: float = FIRST_PAUSE_SECONDS,
        max_pause_seconds: float = MAX_PAUSE_SECONDS,
    ) -> None:
        self._clock = clock
        self._threshold = threshold
        self._first_pause = first_pause_seconds
        self._max_pause = max_pause_seconds
        self._lock = threading.Lock()
        self._failures = 0
        self._open = False
        self._pause = first_pause_seconds
        self._probe_at = 0.0
        self._probing = False
        self._since = clock()

    @property
    def is_open(self) -> bool:
        """Open or half-open: the host is taken to be down."""
        return self._open

    def allowance(self) -> int | None:
        """How many messages may be claimed for this host: None as many as one likes, 1 a probe, 0."""
        if not self._open:
            return None
        with self._lock:
            if not self._open:
                return None
            return 1 if self._may_probe() else 0

    def next_opening_seconds(self) -> float:
        """Seconds until the allowance may rise from 0; 0 when something may be sent now."""
        with self._lock:
            if not self._open or self._may_probe():
                return 0.0
            return PROBING_SECONDS if self._probing else self._probe_at - self._clock()

    def admit(self) -> Permit | None:
        """Takes a permit, whose result must be told by one of the methods below; None: do not send."""
        if not self._open:  # read without the lock: a message that slips through only fails a moment later
            return Permit.NORMAL
        with self._lock:
            if not self._open:
                return Permit.NORMAL
            if not self._may_probe():
                return None
            self._probing = True
            return Permit.PROBE

    def record_success(self) -> bool:
        """The host answered, whatever it thinks of the message. True when that has just closed the breaker."""
        if not self._open and self._failures == 0:
            return False
        with self._lock:
            self._failures = 0
            if not self._open:
                return False
            self._open = self._probing = False
            self._pause = self._first_pause
            self._since = self._clock()
            return True

    def record_failure(self, permit: Permit) -> bool:
        """The host failed. True when that has just opened the breaker: those before were of the outage too.

        The probe's failure doubles the pause; that of a message already under way when the breaker opened does not.
        """
        with self._lock:
            self._failures += 1
            if not self._open:
                return self._failures >= self._threshold and self._open_now()
            if permit is Permit.PROBE:
                self._pause_again()
            return False

    def trip(self, permit: Permit) -> bool:
        """Opens at once: no message could be sent, whichever it is. True when it was closed."""
        with self._lock:
            self._failures += 1
            if not self._open:
                return self._open_now()
            if permit is Permit.PROBE:
                self._pause_again()
            return False

    def give_back(self, permit: Permit) -> None:
        """The message was not sent after all, or its answer says nothing about the host."""
        if permit is Permit.PROBE:
            with self._lock:
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
                failures_in_a_row=self._failures,
            )

    def _may_probe(self) -> bool:
        return not self._probing and self._clock() >= self._probe_at

    def _open_now(self) -> bool:
        self._open = True
        self._probing = False
        self._pause = self._first_pause
        self._since = self._clock()
        self._probe_at = self._since + self._pause
        return True

    def _pause_again(self) -> None:
        self._probing = False
        self._pause = min(self._pause * 2, self._max_pause)
        self._probe_at = self._clock() + self._pause
