"""Ratios with their spread, as a table, JSON and a plot. Times depend on the machine; ratios are compared."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.processes import Measured
from benchmarks.throughput import Scene, bench_python

BASE = "raw_httpx"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, with least and most where they differ: '0.96 (0.94-0.97)'."""
    middle, least, most = (f"{each:.{digits}f}" for each in (statistics.median(values), min(values), max(values)))
    return middle if least == most else f"{middle} ({least}-{most})"


def throughput_table(scene: Scene, rounds: Sequence[Sequence[Measured]]) -> str:
    """One row a contestant: its ratios to the raw httpx loop, or to the first where that takes no part; and ratios
    between others."""
    names = [measured.contestant for measured in rounds[0]]
    base = names.index(BASE) if BASE in names else 0
    called = names[base].replace("_", " ")
    lines = [
        f"### {scene.name}",
        "",
        f"| contestant | pace / {called} | CPU / {called} | messages a second | CPU a message, us | connections |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for each in range(len(names)):
        of_rounds = [measured[each] for measured in rounds]
        pace = [measured[each].per_second / measured[base].per_second for measured in rounds]
        cpu = [measured[each].cpu_us / measured[base].cpu_us for measured in rounds]
        lines.append(
            f"| {of_rounds[0].contestant} | {spread(pace, 3)} | {spread(cpu)} "
            f"| {statistics.median(m.per_second for m in of_rounds):,.0f} "
            f"| {statistics.median(m.cpu_us for m in of_rounds):,.0f} | {of_rounds[0].connections} |"
        )
    lines += [f"\n{line}" for line in _between(rounds)]
    return "\n".join(lines) + "\n"


def _between(rounds: Sequence[Sequence[Measured]]) -> list[str]:
    names = [measured.contestant for measured in rounds[0]]
    said = []
    for first, second in (
        ("worker", "php"),
        ("2 workers", "worker"),
        ("2 workers, 0.5 core each", "worker, 0.5 core each"),
        ("worker", "huey"),
        ("worker", "celery"),
    ):
        if first in names and second in names:
            one, other = names.index(first), names.index(second)
            ratios = [measured[one].per_second / measured[other].per_second for measured in rounds]
            said.append(f"{first} / {second}: {spread(ratios)} times the pace.")
    return said


def machine() -> dict[str, Any]:
    return {
        "when": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def write(directory: Path, results: dict[str, Any], markdown: str) -> None:
    """results.json and results.md."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (directory / "results.md").write_text(markdown, encoding="utf-8")


def plot(directory: Path) -> None:
    """results.png; drawn in the environment that has matplotlib, which is no dependency of the worker or its tests."""
    subprocess.run(
        [bench_python(), "-m", "benchmarks.plot", str(directory / "results.json"), str(directory / "results.png")],
        check=True,
    )


def as_json(scene: Scene, rounds: Sequence[Sequence[Measured]]) -> dict[str, Any]:
    return {"scene": asdict(scene), "name": scene.name, "rounds": [[asdict(m) for m in each] for each in rounds]}
