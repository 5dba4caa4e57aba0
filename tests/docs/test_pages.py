"""Messages send their reader to pages and folders that this host has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from zithara_worker import pages

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "zithara_worker").rglob("*.py"))


def texts(tree: ast.AST) -> Iterator[str]:
    """The text constants of a module that are no docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and _is_text(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def _is_text(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return bool(node.body) and isinstance(node.body[0], ast.Expr)


def test_each_page_and_folder_that_a_message_names_is_one_of_the_project() -> None:
    named = [
        call for source in SOURCES for call in re.findall(r"\b(page|folder)\(['\"]([\w./-]+)['\"]", source.read_text())
    ]
    assert len(named) >= 8
    for kind, name in named:
        assert (ROOT / (f"docs/{name}" if kind == "page" else name)).exists(), name


def test_no_message_names_a_page_as_only_a_clone_has_it() -> None:
    for source in SOURCES:
        if source.name != "pages.py":
            told = texts(ast.parse(source.read_text()))
            assert not [text for text in told if re.search(r"docs/\w+\.md|/usr/share/(zithara|doc)", text)], source


def test_a_page_is_where_this_host_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pages.page("install.md") == str(ROOT / "docs" / "install.md")
    assert pages.folder("packaging/magento") == str(ROOT / "packaging" / "magento")
    monkeypatch.setattr(pages, "_CLONE", tmp_path / "dist-packages")
    monkeypatch.setitem(pages._INSTALLED, "docs", tmp_path)
    assert pages.page("install.md") == "docs/install.md of the project"
    (tmp_path / "install.md").touch()
    assert pages.page("install.md") == str(tmp_path / "install.md")


def test_the_debian_package_puts_them_there_uncompressed() -> None:
    debian = ROOT / "packaging" / "deb" / "debian"
    rules = (debian / "rules").read_text()
    assert "dh_installdocs $(wildcard README.md docs/*.md)" in rules and "dh_compress --exclude=.md" in rules
    assert "packaging/magento usr/share/zithara-worker\n" in (debian / "zithara-worker.install").read_text()
    assert "packaging/monitoring\n" in (debian / "zithara-worker.examples").read_text()


def test_no_page_or_message_sets_the_modules_paths_by_a_command_that_does_not_know_them() -> None:
    """The module has no system.xml, so `bin/magento config:set` answers that the path does not exist."""
    pages_of_project = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("packaging/**/*.md"), *SOURCES]
    assert len(pages_of_project) > 100
    for file in pages_of_project:
        assert not re.search(r"config:set [^`\n]*zithara_webhook/", file.read_text(encoding="utf-8")), file
