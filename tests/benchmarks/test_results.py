"""What `scripts/bench` keeps of its results."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

# The benchmarks are a package of the project's directory, not of the installed distribution.
sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.report import Results


@dataclass
class Found:
    seconds: float


def test_each_piece_is_kept_at_once_and_a_run_of_one_part_keeps_the_others(tmp_path: Path) -> None:
    titles = {"first": "First part", "second": "Second part"}
    for part, piece in (("second", "old"), ("first", "kept"), ("second", "new")):
        section = Results(tmp_path, titles).begin(part)
        section.add(f"{piece} text", one=Found(1.5), many=[Found(2.5)], plain={"a": 1})
        section.add("more", seconds=[3.5])
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["second"]["text"] == ["new text", "more"]
    assert kept["first"]["one"] == {"seconds": 1.5} and kept["first"]["many"] == [{"seconds": 2.5}]
    assert kept["first"]["plain"] == {"a": 1} and kept["first"]["seconds"] == [3.5]
    assert kept["first"]["machine"]["cores"] >= 1
    page = (tmp_path / "results.md").read_text()
    assert page.index("## First part") < page.index("kept text") < page.index("## Second part") < page.index("new text")
    assert "old text" not in page
