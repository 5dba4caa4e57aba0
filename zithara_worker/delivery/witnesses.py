"""The latest successes on a path: they tell a message that always fails from an outage of the path.

A failure has a witness if another group was served on the same path at about the same time.
"""

from __future__ import annotations

import threading
from typing import NamedTuple, TypeVar

T = TypeVar("T")

#: A failure within this many seconds after another group's success counts as witnessed. Only an outage that begins
#: within them can be mistaken for the message's fault. A message whose failure had no witness is tried again as soon as
#: another group is served, so each message gets a witness sooner or later.
WITNESS_SECONDS = 60.0


class Success(NamedTuple):
    """A request that was served. Times: monotonic seconds, when it was sent and when its answer arrived."""

    group: str
    began_at: float
    answered_at: float


#: At most this many failed groups are remembered; the oldest are forgotten first.
GROUPS_KEPT = 10_000


class Witnesses:
    """The latest successes of two different groups, and which groups failed, on one path. Thread-safe."""

    def __init__(self) -> None:
        #: Group -> when it failed the last time, oldest first; earlier than the time at which that was settled
        self._failed_at: dict[str, float] = {}
        #: Groups whose failures are no evidence of an outage; see `suspects`
        self._suspects: dict[str, None] = {}
        self._lock = threading.Lock()
        self.latest: Success | None = None
        #: The latest success of a group other than that of `latest`
        self._other: Success | None = None

    def add(self, success: Success) -> None:
        with self._lock:
            self._suspects.pop(success.group, None)
            self._failed_at.pop(success.group, None)
            latest = self.latest
            if latest is None or latest.group == success.group:
                self.latest = _later(latest, success)
            elif success.began_at >= latest.began_at:
                self.latest, self._other = success, latest
            else:
                self._other = _later(self._other, success)

    def other_than(self, group: str) -> Success | None:
        """The latest success of another group."""
        with self._lock:
            return self._other if self.latest is not None and self.latest.group == group else self.latest

    def last_failure(self, group: str, recorded: float | None) -> float | None:
        """When this group failed the last time. `recorded`: when that failure was settled; None without one."""
        return None if recorded is None else min(recorded, self._failed_at.get(group, recorded))

    def failed(self, group: str, at: float) -> None:
        with self._lock:
            self._failed_at.pop(group, None)
            _keep(self._failed_at, group, at)

    def suspects(self, group: str, *, failed_before: bool) -> bool:
        """Whether this group, which has just failed, is a suspect: it once failed while others were served, and has
        not been served since. `failed_before`: it is one from now on.

        The failures of a suspect are no evidence of an outage. If only its last failure were considered, three such
        groups could open the breaker between two successes of others, and would get their attempts back each time.
        """
        with self._lock:
            if failed_before:
                _keep(self._suspects, group, None)
            return group in self._suspects


def _keep(groups: dict[str, T], group: str, value: T) -> None:
    groups[group] = value
    if len(groups) > GROUPS_KEPT:
        del groups[next(iter(groups))]


def _later(one: Success | None, other: Success) -> Success:
    return other if one is None or other.began_at >= one.began_at else one
