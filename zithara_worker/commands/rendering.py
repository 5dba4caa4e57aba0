"""How values become lines: sparklines, tables, colours. Knows no command and no database."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
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
#: Number of steps from which a progress bar is shown.
_MANY = 100
_STYLES = re.compile(r"\x1b\[[0-9;]*m")


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


@contextmanager
def progress(total: int, label: str) -> Iterator[Callable[[int], object]]:
    """A progress bar on standard error, if that is a terminal and there is much to do."""
    if total < _MANY or not sys.stderr.isatty():
        yield lambda number: None
        return
    with click.progressbar(length=total, label=label, file=sys.stderr, show_pos=True) as bar:
        yield bar.update


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
