"""Durations, times, counts and rates as people read them: one way for the terminal, the status page and `doctor`.

A value that is not known (None) is written as '-'.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timezone


def duration(seconds: float | None) -> str:
    """'12s', '3m05s', '2h10m', '4d03h': two units at most, so that columns stay narrow."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"


def milliseconds(value: float | None) -> str:
    """'85ms', '1.2s'."""
    if value is None:
        return "-"
    return f"{value:.0f}ms" if value < 999.5 else f"{value / 1000:.1f}s"


def moment(seconds: float | None) -> str:
    """'2026-11-24 01:02:03', in UTC. `seconds`: since the epoch."""
    if seconds is None:
        return "-"
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def iso(seconds: float | None) -> str | None:
    """'2026-11-24T01:02:03Z', for JSON; None stays None. `seconds`: since the epoch."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def iso_milliseconds(seconds: float) -> str:
    """'2026-11-24T01:02:03.045Z', for logs and audits. `seconds`: since the epoch."""
    whole, milliseconds = divmod(int(seconds * 1000), 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{milliseconds:03d}Z"


def count(number: float | None) -> str:
    """'950', '12.4k', '3.1M'."""
    if number is None:
        return "-"
    # Each limit is where rounding reaches the next unit: 999,950 is 1.0M, not 1000.0k.
    for limit, size, unit in ((999_950_000, 1e9, "G"), (999_950, 1e6, "M"), (9_999.5, 1e3, "k")):
        if abs(number) >= limit:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def counts(numbers: Mapping[str, float]) -> str:
    """'12.4k unchanged, 2 overtaken', in the order given; '-' without any."""
    return ", ".join(f"{count(number)} {name}" for name, number in numbers.items()) or "-"


def rate(number: float | None) -> str:
    """'0', '0.4', '12', '12.4k'."""
    if number is None:
        return "-"
    return f"{number:.1f}" if 0 < number < 10 else count(number)


def percent(share: float | None) -> str:
    """'0%', '0.3%', '12%'. `share`: 0 to 1."""
    if share is None:
        return "-"
    value = share * 100
    return f"{value:.1f}%" if 0 < value < 10 else f"{value:.0f}%"
