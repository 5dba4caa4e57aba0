"""How values become lines: durations, numbers, sparklines, tables, colours. Knows no command and no database."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import click

from zithara_worker.logs.escaping import blanked

if TYPE_CHECKING:
    _ParamType = click.ParamType[float]
else:
    _ParamType = click.ParamType  # generic only in the newest versions, and there for type checkers alone

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = "_.-=+*%#"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_STYLES = re.compile(r"\x1b\[[0-9;]*m")


def duration(seconds: float | None) -> str:
    """'-', '12s', '3m05s', '2h10m', '4d03h': two units at most, so that columns stay narrow."""
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


def count(number: float | None) -> str:
    """'-', '950', '12.4k', '3.1M'."""
    if number is None:
        return "-"
    for size, unit in ((1_000_000_000, "G"), (1_000_000, "M"), (10_000, "k")):
        if abs(number) >= size:
            return f"{number / (1000 if unit == 'k' else size):.1f}{unit}"
    return f"{number:.0f}"


def rate(number: float | None) -> str:
    """'-', '0', '0.4', '12', '1200'."""
    if number is None:
        return "-"
    return f"{number:.1f}" if 0 < number < 10 else count(number)


def percent(share: float | None) -> str:
    """'-', '0%', '0.3%', '12%'."""
    if share is None:
        return "-"
    value = share * 100
    return f"{value:.1f}%" if 0 < value < 10 else f"{value:.0f}%"


def milliseconds(value: float | None) -> str:
    """'-', '85ms', '1.2s'."""
    if value is None:
        return "-"
    return f"{value:.0f}ms" if value < 1000 else f"{value / 1000:.1f}s"


def moment(seconds: float | None) -> str:
    """'2026-11-24 01:02:03' UTC."""
    if seconds is None:
        return "-"
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def sparkline(values: Sequence[float], *, plain: bool = False) -> str:
    """One character a value, the highest as a full block, nothing at all as a blank."""
    blocks = _ASCII_BLOCKS if plain else _BLOCKS
    top = max(values, default=0)
    if top <= 0:
        return " " * len(values)
    return "".join(
        " " if value <= 0 else blocks[min(len(blocks) - 1, int(value / top * (len(blocks) - 0.001)))]
        for value in values
    )


def printable(text: object, *, width: int = 0) -> str:
    """One line without control characters: what a server wrote must not steer the terminal. `width`: cut to it."""
    line = blanked(str(text))
    return line if not width or len(line) <= width else line[: max(0, width - 1)] + "…"


def plain_length(text: str) -> int:
    """Columns of a styled text."""
    return len(_STYLES.sub("", text))


def fit(text: str, width: int) -> str:
    """A styled line cut to `width` columns."""
    if plain_length(text) <= width:
        return text
    shown = ""
    columns = 0
    for part in re.split(r"(\x1b\[[0-9;]*m)", text):
        if part.startswith("\x1b"):
            shown += part
            continue
        shown += part[: width - columns]
        columns += min(len(part), width - columns)
    return shown


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: Iterable[int] = (0,)) -> list[str]:
    """Aligned columns, numbers to the right; the columns of `left` to the left. Cells may be styled."""
    cells = [list(head), *(list(row) for row in rows)]
    widths = [max(plain_length(row[column]) for row in cells) for column in range(len(head))]
    to_left = set(left)
    lines = []
    for row in cells:
        parts = []
        for column, cell in enumerate(row):
            padding = " " * (widths[column] - plain_length(cell))
            parts.append(cell + padding if column in to_left else padding + cell)
        lines.append("  ".join(parts).rstrip())
    return lines


class Duration(_ParamType):
    """'90s', '15m', '2h', '7d', or seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no duration: write 90s, 15m, 2h or 7d", param, ctx)
        return float(match[1]) * _UNITS[match[2] or "s"]
