"""`doctor`: checks the installation, and says what is wrong and what to do."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import click

from zithara_worker.commands.root import EXIT_FAILED, Context
from zithara_worker.commands.terminal import coloured, print_json, printable
from zithara_worker.doctor import Doctor, Finding, Level, unreadable
from zithara_worker.errors import ConfigurationError

_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILED: "red", Level.UNCHECKED: "cyan"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help='{"ok", "findings": [{"check", "level", "found", "remedy"}]}.')
@click.pass_obj
def doctor(context: Context, as_json: bool) -> None:
    """Check shop, database, API and this host; changes nothing.

    One line for each check: ok, warning, failed or not checked, its name, what was found, and what to do. Exit code 1
    if any failed. Run it as the user who runs the worker, because it checks that user's permissions.

    \b
    Examples:
      zithara-worker doctor
      zithara-worker doctor --json | jq -r '.findings[] | select(.level == "failed") | .remedy'
    """
    try:
        configured = context.configured
    except ConfigurationError as error:
        found = _print(unreadable(error), as_json)
    else:
        with context.database() as database:
            found = _print(Doctor(configured=configured, database=database).examine(), as_json)
    if any(finding.level is Level.FAILED for finding in found):
        sys.exit(EXIT_FAILED)


def _print(findings: Iterable[Finding], as_json: bool) -> list[Finding]:
    """Prints each finding as soon as it is there, or all as one JSON object. Returns them."""
    shown = []
    for finding in findings:
        shown.append(finding)
        if not as_json:
            click.echo(_line(finding))
    if as_json:
        value = {
            "ok": all(finding.level is not Level.FAILED for finding in shown),
            "findings": [
                {
                    "check": finding.check,
                    "level": finding.level.value,
                    "found": finding.found,
                    "remedy": finding.remedy or None,
                }
                for finding in shown
            ],
        }
        print_json(value, indent=2)
    else:
        count = {level: sum(finding.level is level for finding in shown) for level in Level}
        click.echo(", ".join(f"{number} {level.value}" for level, number in count.items()), err=True)
    return shown


def _line(finding: Finding) -> str:
    level = coloured(_COLOURS[finding.level], f"{finding.level.value:<11}", bold=finding.level is Level.FAILED)
    remedy = f" -> {printable(finding.remedy)}" if finding.remedy else ""
    return f"{level} {finding.check:<25} {printable(finding.found)}{remedy}"
