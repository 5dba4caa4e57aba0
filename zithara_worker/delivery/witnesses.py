"""Who was served last on a path: what tells a message that always fails from a path that serves nobody."""

from __future__ import annotations

import threading
from typing import NamedTuple, TypeVar

T = TypeVar("T")

#: Seconds after another group's success in which a failure counts as witnessed. An outage would have to begin within
#: them to be taken for the message's fault; a message whose failure nobody witnessed is tried again as soon as another
#: group is served, so that such a moment always comes.
WITNESS_SECONDS = 60.0


class Success(NamedTuple):
    """One request that was served. Times: monotonic seconds, when it was sent and when its answer was there."""

    group: str
    began_at: float
    answered_at: float


#: Groups that are remembered to have failed.
GROUPS_KEPT = 10_000


class Witnesses:
    """The latest successes of two different groups, and which groups failed. Thread-safe."""

    def __init__(self) -> None:
        #: When a group failed the last time, the oldest first; more exact than what the tables say of its message
        self._failed_at: dict[str, float] = {}
        self._suspects: dict[str, None] = {}
        self._lock = threading.Lock()
        self._latest: Success | None = None
        #: The latest one of a group other than that of `_latest`
        self._other: Success | None = None

    def add(self, success: Success) -> None:
        with self._lock:
            self._suspects.pop(success.group, None)
            self._failed_at.pop(success.group, None)
            latest = self._latest
            if latest is None or latest.group == success.group:
                self._latest = _later(latest, success)
            elif success.began_at >= latest.began_at:
                self._latest, self._other = success, latest
            else:
                self._other = _later(self._other, success)

    @property
    def latest(self) -> Success | None:
        return self._latest

    def other_than(self, group: str) -> Success | None:
        """The latest success of another group."""
        with self._lock:
            return self._other if self._latest is not None and self._latest.group == group else self._latest

    def last_failure(self, group: str, recorded: float | None) -> float | None:
        """When this group failed the last time; `recorded`: when that was written down, None if it was not."""
        return None if recorded is None else min(recorded, self._failed_at.get(group, recorded))

    def failed(self, group: str, at: float) -> None:
        with self._lock:
            self._failed_at.pop(group, None)
            _keep(self._failed_at, group, at)

    def suspects(self, group: str, *, failed_before: bool) -> bool:
        """Whether this group, which has just failed, has ever failed and then seen others served, without being served
        itself since. `failed_before`: it has now, whatever is remembered.

        Its failures are no sign of an outage. Were only its last failure looked at, three such groups could open the
        breaker again between two successes of others, and get their attempts back each time.
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
