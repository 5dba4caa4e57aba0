"""docs/differences.md keeps up with the code: every repaired defect of the PHP module is explained."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_differences_document_names_every_class_of_defect_in_the_cases() -> None:
    cases = (ROOT / "tests" / "fixtures" / "plugin-cases.jsonl").read_text(encoding="utf-8").splitlines()
    classes = {defect for case in cases for defect in json.loads(case)["bug"]}
    document = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8")
    first_cells = re.findall(r"^\| ([^|]+) \|", document, re.MULTILINE)
    assert classes
    assert classes <= {code for cell in first_cells for code in re.findall(r"`([a-z0-9_]+)`", cell)}
