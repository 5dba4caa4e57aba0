"""Wherever the installation is told, it is told the same."""

from __future__ import annotations

import subprocess
from pathlib import Path

import click
import pytest

from install_steps import STEPS, after_installation, block, command_lines
from manual import command_manual
from sample_configuration import packaged_configuration
from zithara_worker.commands.root import command
from zithara_worker.database import schema
from zithara_worker.version import VERSION

ROOT = Path(__file__).parents[2]


def test_readme_and_the_packages_last_words_tell_these_steps() -> None:
    assert block() in (ROOT / "README.md").read_text(encoding="utf-8")
    postinst = (ROOT / "packaging" / "deb" / "debian" / "zithara-worker.postinst").read_text(encoding="utf-8")
    assert f"stands for the shop's database):\n{after_installation()}Each line" in postinst


def test_the_page_about_installation_tells_them_in_order() -> None:
    lines = (ROOT / "docs" / "install.md").read_text(encoding="utf-8").splitlines()
    at = 0
    for command_line in command_lines():
        at = lines.index(f"    {command_line}", at) + 1


def test_the_manual_and_the_configurations_head_tell_them() -> None:
    assert isinstance(command, click.Group)
    manual = command_manual(command, date="2026-11-28").replace("\\-", "-").replace("\\(ti", "~")
    told = packaged_configuration()
    for step in STEPS:
        for line in step.commands:
            assert line in manual
    for step in STEPS[1:]:
        for line in step.commands:
            assert (f"#   {line}\n" in told) == (not line.startswith("editor ")), "the file is what is edited"


def test_every_upgrade_from_an_older_schema_is_told_with_its_command() -> None:
    """Version 0.N came with schema N, and the workers of a newer one wait until the tables are upgraded."""
    postinst = (ROOT / "packaging" / "deb" / "debian" / "zithara-worker.postinst").read_text(encoding="utf-8")
    told = postinst.partition("            restart_supervised\n")[2].partition("        else\n")[0]
    for version, number in [("0.1.0", 1), ("0.2.0", 2), ("0.3.0", 3), (VERSION, schema.VERSION)]:
        said = subprocess.run(
            ["sh", "-euc", told, "sh", "configure", version], capture_output=True, text=True, check=True
        )
        commands = [line.strip() for line in said.stdout.splitlines() if "--from" in line]
        wanted = f"zithara-worker install --print --from {number} | mariadb magento"
        assert commands == ([wanted] if number < schema.VERSION else [])
    newest = f"    zithara-worker install --print --from {schema.VERSION - 1} | mariadb magento\n"
    for page in ("README.md", "docs/install.md", "packaging/deb/debian/NEWS"):
        assert newest in (ROOT / page).read_text(encoding="utf-8"), page


@pytest.mark.parametrize("earlier", ["apt install python3-cryptography", "usermod --append"])
def test_what_the_root_of_the_shop_needs_comes_before_it(earlier: str) -> None:
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert text.index(earlier) < text.index("    sed -i 's|^#root =.*|root = /var/www/html|'")
    assert packaged_configuration().count("\n#root =") == 1, "the sed finds that line, and no other"
    assert text.index("supervisorctl start") > text.index("zithara-worker doctor")
