"""The statements of `sql/`, without a database."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from zithara_worker.database import statements

ROOT = Path(__file__).parent.parent.parent
SQL = ROOT / "sql"
#: The package that is tested, which need not be this checkout's.
CODE = Path(statements.__file__).parent.parent


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


# ---------------------------------------------------------------- what clusters refuse

#: Galera and Percona XtraDB Cluster refuse, or do not share between nodes, locks of tables and names, and XA; Group
#: Replication refuses SERIALIZABLE where several servers write; CREATE TABLE ... SELECT is refused with GTIDs. A
#: savepoint is kept out because a certification failure at COMMIT ends the whole transaction anyway.
REFUSED = re.compile(
    r"\b(GET_LOCK|RELEASE_LOCK|RELEASE_ALL_LOCKS|IS_FREE_LOCK|IS_USED_LOCK|LOCK\s+TABLES?|UNLOCK\s+TABLES|FLUSH\s+TABLES?"
    r"|SAVEPOINT|XA\s+\w+|SERIALIZABLE|LOAD\s+DATA|CREATE\s+TEMPORARY|TRUNCATE|ENGINE\s*=\s*(?!InnoDB\b)\w+"
    r"|CREATE\s+TABLE\b[^;]*\bSELECT)\b",
    re.IGNORECASE,
)
WRITES = re.compile(r"\s*(UPDATE|DELETE)\b", re.IGNORECASE)
#: Conditions that name the rows by the first column of a primary key or by all of it: the number of rows is that of the
#: caller's list.
BY_KEY = re.compile(
    r"\bWHERE\s+(?:\w+\.)?(?:id|config_id|topic|name|kind) (?:=|IN) %\(\w+\)s"
    r"|\bWHERE queue_id = %\(queue_id\)s AND group_key (?:=|IN) %\(\w+\)s"
    r"|\bWHERE topic_name (?:=|IN) %\(\w+\)s\s+AND group_key (?:=|IN) %\(\w+\)s"
    r"|\bWHERE 1 = 0"
)


def problem_on_a_cluster(text: str) -> str:
    """Why a cluster refuses the statement, or may take it for too large; "" if it does not."""
    if refused := REFUSED.search(text):
        return f"{refused[0]} is refused by clusters"
    if re.match(r"\s*CREATE\s+TABLE\b", text, re.IGNORECASE) and "PRIMARY KEY" not in text:
        return "a table without primary key"
    if WRITES.match(text) and not re.search(r"\bLIMIT %\(limit\)s\Z", text.rstrip()) and not BY_KEY.search(text):
        return "changes any number of rows: give it a LIMIT, or a list of primary keys"
    return ""


def every_statement() -> Iterator[tuple[str, str]]:
    """(where, statement) of all of sql/, but for Magento's own tables, and of the code that has SQL of its own."""
    for path in sorted(SQL.glob("*.sql")):
        if path.name in statements.QUERIES:
            yield from ((f"{path.name} {name}", text) for name, text in statements.named(path.read_text()).items())
        elif path.name != "magento_queue.sql":
            places = {"prefix": "", "database": "shop", "user": "worker"}
            texts = re.sub(r"--[^\n]*", "", statements.fill(path.read_text(), places)).split(";")
            yield from ((path.name, text.strip()) for text in texts if text.strip())
    for path in sorted(CODE.rglob("*.py")):
        if {"sandbox", "doctor"} & set(path.parts):
            continue  # One plays the shop's part, on a server of its own; the other prints statements for people.
        tree = ast.parse(path.read_text())
        documents = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in documents:
                continue
            if re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|SET|CREATE|ALTER|SHOW|LOCK|SAVEPOINT|BEGIN)\b", node.value):
                yield f"{path.name}, line {node.lineno}", node.value


def test_no_statement_is_one_that_a_cluster_refuses() -> None:
    found = dict(every_statement())
    assert len(found) > 150 and any("session.py" in where for where in found), "it reads what it should read"
    assert {where: problem for where, text in every_statement() if (problem := problem_on_a_cluster(text))} == {}


@pytest.mark.parametrize(
    "text",
    [
        "SELECT GET_LOCK('a', 1)",
        "LOCK TABLES a WRITE",
        "SAVEPOINT a",
        "CREATE TABLE a (b INT) ENGINE=InnoDB",
        "CREATE TABLE a (b INT, PRIMARY KEY (b)) ENGINE=MyISAM",
        "UPDATE a SET b = 1 WHERE c > 5",
        "DELETE FROM a WHERE seen < NOW(3) - INTERVAL 1 DAY",
        "DELETE FROM a",
        "UPDATE a SET b = 1 WHERE topic_name = %(topic)s",
        "UPDATE a SET b = 1 WHERE queue_id = %(queue_id)s AND worker_id = %(worker_id)s",
    ],
)
def test_what_a_cluster_refuses_is_recognised(text: str) -> None:
    assert problem_on_a_cluster(text)
