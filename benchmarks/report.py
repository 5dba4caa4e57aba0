"""Ratios with their spread, as a table, JSON and a plot. Times depend on the machine; ratios are compared."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
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


class Results:
    """results.json and results.md: what each part found when it last ran. A run of some parts keeps the others."""

    def __init__(self, directory: Path, titles: Mapping[str, str]) -> None:
        self.directory = directory
        self._titles = titles
        self._file = directory / "results.json"
        self._parts = json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else {}

    def begin(self, part: str) -> Section:
        self._parts[part] = {"machine": machine(), "text": []}
        return Section(self, self._parts[part])

    def write(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(self._parts, indent=1) + "\n", encoding="utf-8")
        lines = ["# Benchmark results", "", "Ratios are of the same round; (least-most) over the rounds.", ""]
        for part in filter(self._parts.__contains__, self._titles):
            found = self._parts[part]
            lines += [f"## {self._titles[part]}", "", _told(found["machine"]), "", *found["text"]]
        (self.directory / "results.md").write_text("\n".join(lines), encoding="utf-8")


class Section:
    """One part of the results. Written after each piece: a run of an hour that breaks off leaves what it had."""

    def __init__(self, results: Results, found: dict[str, Any]) -> None:
        self._results = results
        self._found = found

    def add(self, text: str, **values: Any) -> None:
        """A paragraph or table for people, and what it was made from: dataclasses, or lists of them."""
        print(text, flush=True)
        self._found["text"].append(text)
        self._found.update({name: _plain(value) for name, value in values.items()})
        self._results.write()


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _told(machine: dict[str, Any]) -> str:
    return (
        f"{machine['when']}, {machine['cores']} cores, Python {machine['python']}, load before the run "
        f"{machine['load_before']:.1f}."
    )


def plot(directory: Path) -> None:
    """results.png; drawn in the environment that has matplotlib, which is no dependency of the worker or its tests."""
    subprocess.run(
        [bench_python(), "-m", "benchmarks.plot", str(directory / "results.json"), str(directory / "results.png")],
        check=True,
    )


def as_json(scene: Scene, rounds: Sequence[Sequence[Measured]]) -> dict[str, Any]:
    return {"scene": asdict(scene), "name": scene.name, "rounds": [[asdict(m) for m in each] for each in rounds]}
