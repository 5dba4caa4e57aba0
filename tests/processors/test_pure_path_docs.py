"""The documents keep up with the code: every code and every repaired defect is explained."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from zithara_worker.processors import reasons

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


@pytest.mark.parametrize("code", sorted(reasons.ALL))
def test_the_reasons_document_says_what_each_code_means_and_what_to_do(code: str) -> None:
    _, kind, meaning, remedy = rows_of("reasons.md")[code]
    assert kind
    assert meaning
    assert remedy


def test_the_list_of_codes_has_every_constant() -> None:
    constants = {value for name, value in vars(reasons).items() if name.isupper() and isinstance(value, str)}
    assert constants == reasons.ALL
    assert all(re.fullmatch(r"[a-z_]{1,64}", code) for code in constants)


def test_the_differences_document_names_every_class_of_defect_in_the_cases() -> None:
    lines = FIXTURES.read_text(encoding="utf-8").splitlines()
    classes = {defect for line in lines for defect in json.loads(line)["bug"]}
    assert classes
    assert classes <= set(rows_of("differences.md"))
