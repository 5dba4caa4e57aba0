"""The document about differences keeps up with the code: every repaired defect is explained."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "plugin-cases.jsonl"


def rows_of(document: str) -> dict[str, list[str]]:
    """The rows of the document's tables by the code in their first column."""
    rows: dict[str, list[str]] = {}
    for line in (ROOT / "docs" / document).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        for code in re.findall(r"`([a-z0-9_]+)`", cells[0]) if line.startswith("|") else []:
            rows[code] = cells
    return rows


def test_the_differences_document_names_every_class_of_defect_in_the_cases() -> None:
    lines = FIXTURES.read_text(encoding="utf-8").splitlines()
    classes = {defect for line in lines for defect in json.loads(line)["bug"]}
    assert classes
    assert classes <= set(rows_of("differences.md"))
