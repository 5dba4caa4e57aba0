"""The plot of the ratios. Runs where matplotlib is: arguments are results.json and the PNG to write."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

BASE = "raw_httpx"


def main() -> None:
    scenes = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["throughput"]["scenes"]
    figure, axes = plt.subplots(len(scenes), 2, figsize=(11, 2.4 * len(scenes)), squeeze=False)
    for row, scene in zip(axes, scenes, strict=True):
        for axis, title, key in zip(row, ("pace", "CPU a message"), ("pace", "cpu"), strict=True):
            ratios = _ratios(scene["rounds"], key)
            names = list(ratios)
            middles = [statistics.median(each) for each in ratios.values()]
            errors = [
                [middle - min(each) for middle, each in zip(middles, ratios.values(), strict=True)],
                [max(each) - middle for middle, each in zip(middles, ratios.values(), strict=True)],
            ]
            axis.barh(names, middles, xerr=errors, color=["#c0392b" if "worker" in n else "#7f8c8d" for n in names])
            axis.axvline(1, color="black", linewidth=0.8)
            base = "raw httpx" if BASE in names else names[0]
            axis.set_title(f"{scene['name']}: {title} / {base}", fontsize=9)
            axis.tick_params(labelsize=8)
            axis.invert_yaxis()
    figure.tight_layout()
    figure.savefig(sys.argv[2], dpi=110)


def _ratios(rounds: list[list[dict[str, float]]], key: str) -> dict[str, list[float]]:
    ratios: dict[str, list[float]] = {}
    for each in rounds:
        values = {
            str(m["contestant"]): (m["messages"] / m["seconds"] if key == "pace" else m["cpu_seconds"] / m["messages"])
            for m in each
        }
        base = values[BASE] if BASE in values else next(iter(values.values()))
        for name, value in values.items():
            ratios.setdefault(name, []).append(value / base)
    return ratios


if __name__ == "__main__":
    main()
