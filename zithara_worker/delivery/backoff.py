"""How long a message waits between two attempts."""

from __future__ import annotations

from dataclasses import dataclass

#: How far jitter may move a delay: messages that failed together should not come back together.
JITTER_SHARE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """The [retry] section. `limit`: attempts in all, the first included."""

    limit: int = 8
    delay_seconds: float = 30.0
    factor: float = 3.0
    max_delay_seconds: float = 21_600.0


def delay_before(attempt: int, policy: RetryPolicy, jitter: float) -> float:
    """Seconds to wait after failed attempt `attempt` (1 = first); `jitter` in [-1, 1] spreads by +-20 %.

    With the defaults and no jitter: 30, 90, 270, 810, 2430, 7290, 21600. Raises ValueError below 1, or for a jitter
    out of range.
    """
    if attempt < 1:
        raise ValueError(f"attempt {attempt}: the first is 1")
    if not -1 <= jitter <= 1:
        raise ValueError(f"jitter {jitter}: must be between -1 and 1")
    try:
        delay = policy.delay_seconds * policy.factor ** (attempt - 1)
    except OverflowError:  # a number_of_trials in the hundreds
        delay = policy.max_delay_seconds
    return min(policy.max_delay_seconds, delay) * (1 + JITTER_SHARE * jitter)
