"""docs/configuration.md says what the table of keys says."""

from __future__ import annotations

from pathlib import Path

from configuration_page import configuration_page


def test_the_page_about_configuration_is_current() -> None:
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == configuration_page(), (
        "write it again: python packaging/generated/configuration_page.py > docs/configuration.md"
    )
