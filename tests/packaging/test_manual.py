"""The manual pages say all that the program says of itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from manual import command_manual, configuration_manual
from zithara_worker.commands.root import command
from zithara_worker.settings.sections import KEYS, SECTIONS
from zithara_worker.topics import TOPICS

GENERATED = Path(__file__).parents[2] / "packaging" / "generated"


def plain(page: str) -> str:
    """What a reader sees of the characters that matter here."""
    return page.replace("\\-", "-").replace("\\e", "\\").replace("\\&", "")


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name in group.list_commands(context):
        each = group.get_command(context, name)
        assert each is not None
        found.append(((*path, name), each))
        if isinstance(each, click.Group):
            found += commands(each, (*path, name))
    return found


def test_command_page_has_every_command_with_every_option() -> None:
    page = plain(command_manual(command, date="2026-01-31"))
    sections = dict(re.findall(r"^\.SS (.*)\n((?:(?!\.S[SH]).*\n)*)", page, re.MULTILINE))
    assert commands(command)
    for path, each in commands(command):
        section = sections[" ".join(path)]
        for parameter in each.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert f".B {parameter.opts[0]}" in section, f"{path} {parameter.opts}"


def test_configuration_page_has_every_section_and_key() -> None:
    page = plain(configuration_manual(date="2026-01-31"))
    for section in (*SECTIONS, "queues"):
        assert f"\n.SH [{section}]\n" in page
    for key in KEYS:
        assert f"\n.BI {key.name} " in page
        assert key.environment in page
        assert key.doc in page
    for topic in TOPICS:
        assert topic in page


def test_no_line_of_help_becomes_a_request_of_roff() -> None:
    @click.group()
    def group() -> None:
        """Reads files.

        \b
        Example:
          .TH this is no title
          'so neither
        """

    page = command_manual(group, program="tool", date="2026-01-31")
    assert "\n\\&.TH this is no title\n" in page
    assert "\n\\&'so neither\n" in page
    assert page.count("\n.TH") == 0 and page.startswith(".TH")


def test_backslashes_and_other_scripts_survive() -> None:
    @click.group()
    def group() -> None:
        r"""Takes C:\temp and ₹."""

    page = command_manual(group, date="2026-01-31")
    assert r"C:\etemp" in page and r"\[u20B9]" in page
    page.encode("ascii")


def test_two_builds_make_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        subprocess.run(
            [sys.executable, str(GENERATED), str(tmp_path / name)],
            env={"SOURCE_DATE_EPOCH": "1700000000", "PATH": "/usr/bin:/bin"},
            check=True,
        )
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert [str(file) for file in files] == [
        "_zithara-worker",
        "completions/zithara-worker",
        "zithara-worker.1",
        "zithara-worker.conf",
        "zithara-worker.conf.5",
    ]
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert "2023-11-14" in (tmp_path / "one" / "zithara-worker.1").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["completions/zithara-worker", "_zithara-worker"])
def test_completion_asks_the_program_itself(tmp_path: Path, name: str) -> None:
    subprocess.run(
        [sys.executable, str(GENERATED), str(tmp_path)],
        env={"SOURCE_DATE_EPOCH": "1700000000", "PATH": "/usr/bin:/bin"},
        check=True,
    )
    assert "_ZITHARA_WORKER_COMPLETE=" in (tmp_path / name).read_text(encoding="utf-8")
