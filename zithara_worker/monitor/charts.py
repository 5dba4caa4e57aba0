"""Small SVG charts of the last hour: lines and stacked bars, with no style of their own but classes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

#: The drawing's own units; the page stretches it to whatever width there is.
WIDTH, HEIGHT = 600, 120


def lines(series: Sequence[tuple[str, Sequence[float | None]]], *, top: float, label: str) -> str:
    """One line for each (class, values), oldest first; None leaves a gap, a lone value is a dash. The bottom is 0."""
    parts = []
    for kind, values in series:
        for run in _runs(values):
            if len(run) == 1:
                x, y = _place(run[0], len(values), top)
                parts.append(f'<polyline class="{escape(kind)}" points="{x - 4:.1f},{y:.1f} {x + 4:.1f},{y:.1f}"/>')
            else:
                points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (_place(each, len(values), top) for each in run))
                parts.append(f'<polyline class="{escape(kind)}" points="{points}"/>')
    return _drawing("".join(parts), label)


def bars(series: Sequence[tuple[str, Sequence[float]]], *, top: float, label: str) -> str:
    """Bars stacked upon each other, first series lowest; (class, values), oldest first, equally long."""
    parts = []
    count = max((len(values) for _, values in series), default=0)
    for index in range(count):
        bottom = float(HEIGHT)
        for kind, values in series:
            height = HEIGHT * min(1.0, values[index] / top) if top else 0.0
            if not height:
                continue
            width = WIDTH / count
            bottom -= height
            parts.append(
                f'<rect class="{escape(kind)}" x="{index * width + 1:.1f}" y="{bottom:.1f}" '
                f'width="{max(1.0, width - 2):.1f}" height="{height:.1f}"/>'
            )
    return _drawing("".join(parts), label)


def round_top(values: Sequence[float | None], *, least: float) -> float:
    """The upper end of a scale: 1, 2 or 5 times a power of ten that no value exceeds, at least `least`."""
    highest = max([least, *(each for each in values if each is not None)])
    power = 1e-3
    while True:
        for factor in (1, 2, 5):
            if power * factor >= highest * (1 - 1e-9):
                return power * factor
        power *= 10


def _drawing(parts: str, label: str) -> str:
    grid = "".join(
        f'<line class="grid" x1="0" x2="{WIDTH}" y1="{y}" y2="{y}"/>' for y in (0.5, HEIGHT / 2, HEIGHT - 0.5)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f"{grid}{parts}</svg>"
    )


def _place(point: tuple[int, float], count: int, top: float) -> tuple[float, float]:
    index, value = point
    x = WIDTH * (index + 0.5) / count
    share = min(1.0, max(0.0, value / top)) if top else 0.0
    return x, HEIGHT - 2 - (HEIGHT - 4) * share


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    runs: list[list[tuple[int, float]]] = [[]]
    for index, value in enumerate(values):
        if value is not None:
            runs[-1].append((index, value))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
