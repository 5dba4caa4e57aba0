"""The table of reasons, and the page that is made from it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from reasons_page import reasons_page
from zithara_worker import reasons
from zithara_worker.reasons import REASONS, Reason, find, http_status

ROOT = Path(__file__).parents[1]


def test_the_page_about_reasons_is_current() -> None:
    page = (ROOT / "docs" / "reasons.md").read_text(encoding="utf-8")
    assert page == reasons_page(), "write it again: python packaging/generated/reasons_page.py > docs/reasons.md"


@pytest.mark.parametrize("reason", REASONS.values(), ids=list(REASONS))
def test_each_reason_fits_its_column_and_a_row_of_the_page(reason: Reason) -> None:
    """zithara_delivery_failure.reason_code is VARCHAR(64)."""
    assert re.fullmatch(r"[a-z_]{1,64}|http_<status>", reason.code)
    for text in (reason.effect, reason.meaning, reason.remedy):
        assert text
        assert "|" not in text and "\n" not in text


def test_each_code_is_given_once_and_under_its_own_name() -> None:
    """A second row with the same code would replace the first one without a word."""
    names = {name: value for name, value in vars(reasons).items() if name.isupper() and isinstance(value, str)}
    named = {name: code for name, code in names.items() if name != "_HTTP_STATUS"}
    assert {name: name.lower() for name in named} == named
    assert set(names.values()) == set(REASONS)


def test_no_code_is_spelled_out_beside_the_table() -> None:
    """A literal would escape the table: neither the page nor `failed summary` would know it."""
    spelled = [
        f"{path.relative_to(ROOT)}:{keyword.value.lineno}"
        for path in (ROOT / "zithara_worker").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg in ("reason", "code") and isinstance(keyword.value, ast.Constant) and keyword.value.value
    ]
    assert spelled == []


def test_any_http_status_is_a_reason_and_nothing_else_that_is_not_listed() -> None:
    assert find(http_status(422)) is REASONS["http_<status>"]
    assert [find(code) for code in ("http_", "http_4220", "test order", "")] == [None] * 4
