"""The statements of `sql/`, without a database."""

from __future__ import annotations

from pathlib import Path

import pytest

from zithara_worker.database import statements

SQL = Path(__file__).parent.parent.parent / "sql"


def test_every_file_of_named_statements_is_read() -> None:
    holding = {path.name for path in SQL.glob("*.sql") if "\n-- " in (text := path.read_text()) and " --\n" in text}
    assert set(statements.QUERIES) == {name for name in holding if not name.startswith("upgrade_")}


def test_two_statements_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "QUERIES", ("queue.sql", "shop.sql", "queue.sql"))
    with pytest.raises(ValueError, match=r"sql/queue\.sql has statements whose names another file has: bodies"):
        statements.queries.__wrapped__()


def test_each_statement_stands_in_its_file_once() -> None:
    """A second one of the same name would replace the first without a word."""
    for filename in statements.QUERIES:
        opened = statements._NAME.findall(statements.read(filename))
        assert len(opened) == len(set(opened)), filename
