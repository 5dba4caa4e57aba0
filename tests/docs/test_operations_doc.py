"""The runbook explains every finding of doctor and every alert, and it and the README nothing that does not exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from zithara_worker.commands.root import command
from zithara_worker.settings.sections import KEYS, QUEUES, SECTIONS

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCTOR = ROOT / "zithara_worker" / "doctor"
#: Functions whose first argument is the name of a check.
NAMING = {"ok", "warning", "failed", "_guarded", "_log_file"}
COMMANDS = command.list_commands(click.Context(command)) if isinstance(command, click.Group) else []


def names_in(source: str) -> Iterator[str]:
    """Names of checks, as arguments and as values of a variable `check`; what is filled in is a '*'."""
    for node in ast.walk(ast.parse(source)):
        named: ast.expr | None = None
        if isinstance(node, ast.Call) and node.args:
            function = node.func
            called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            named = node.args[0] if called in NAMING else None
        elif isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["check"]:
            named = node.value
        if isinstance(named, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in named.values)
        elif isinstance(named, ast.Constant):
            yield str(named.value)
        else:
            assert named is None or (isinstance(named, ast.Name) and named.id in ("check", "error")), ast.dump(named)


def section(title: str) -> str:
    """What stands below '## title', up to the next one."""
    return RUNBOOK.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def explained(text: str) -> list[str]:
    """First column of tables whose three columns are all filled."""
    return re.findall(r"^\| `([^`]+)` \| [^|]+ \| [^|]+ \|$", text, re.MULTILINE)


def test_names_of_checks_are_found_in_each_form() -> None:
    source = 'ok("a", "x")\nself._guarded("b.c", look)\ncheck = f"d.{topic}"\nfailed(check, "x", "y")\nother("z")'
    assert sorted(names_in(source)) == ["a", "b.c", "d.*"]


def test_every_finding_of_doctor_is_explained() -> None:
    in_code = {name for file in sorted(DOCTOR.glob("*.py")) for name in names_in(file.read_text(encoding="utf-8"))}
    documented = explained(section("What doctor finds"))
    assert len(documented) == len(set(documented))
    assert set(documented) == in_code


def test_every_alert_is_explained() -> None:
    rules = (ROOT / "packaging" / "monitoring" / "zithara-worker.rules.yml").read_text(encoding="utf-8")
    assert explained(section("Alerts")) == re.findall(r"- alert: (\w+)", rules)


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([\w.]*)(?:#([\w-]+))?\)", RUNBOOK)
    assert len(links) > 5
    for target, anchor in links:
        text = (ROOT / "docs" / target).read_text(encoding="utf-8") if target else RUNBOOK
        titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
        assert not anchor or anchor in anchors, f"{target}#{anchor}"


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 10
    assert [target for target in links if not (ROOT / target.partition("#")[0]).exists()] == []


def test_keys_of_the_readme_exist() -> None:
    sections = dict(re.findall(r"^\| `\[(\w+)\]` \| (.+) \|$", README, re.MULTILINE))
    assert set(sections) == {*SECTIONS, QUEUES}
    for section, keys in sections.items():
        known = {key.name for key in KEYS if key.section == section}
        assert section == QUEUES or set(re.findall(r"`(\w+)`", keys)) <= known


def invocations(text: str) -> list[str]:
    """What follows the program's name, wherever the page runs it, up to a pipe, a quote or the line's end."""
    pattern = r"\b(?:zithara-worker|zw|zo)((?: (?:--config|--log-format) \S+)* (?:%s)\b[^|`'\n]*)"
    return sorted({match.strip() for match in re.findall(pattern % "|".join(sorted(COMMANDS)), text)})


@pytest.mark.parametrize("line", sorted({*invocations(RUNBOOK), *invocations(README)}))
def test_commands_and_options_exist(line: str) -> None:
    at: click.Command = command
    parents = click.Context(command)
    options = {name for parameter in command.params for name in parameter.opts}
    for word in re.sub(r'"[^"]*"', "TEXT", line).split():
        if isinstance(at, click.Group) and (found := at.get_command(parents, word)):
            at = found
            options |= {name for parameter in at.params for name in parameter.opts}
        elif word.startswith("--"):
            assert word in options, f"{at.name} has no {word}"


def test_every_command_is_shown() -> None:
    shown = " ".join(invocations(RUNBOOK))
    assert [name for name in COMMANDS if not re.search(rf"\b{name}\b", shown)] == []
    assert [name for name in COMMANDS if not re.search(rf"^\| `{name}\b|, `{name}`", README, re.MULTILINE)] == []
