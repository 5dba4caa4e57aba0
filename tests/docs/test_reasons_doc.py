"""Every reason code that a message can get is explained to whoever meets it."""

from __future__ import annotations

import re
from pathlib import Path

from zithara_worker.delivery import reasons as delivery
from zithara_worker.queue.failures import NEWER_DELIVERED, UNRECORDED
from zithara_worker.reasons import REMEDIES, remedy
from zithara_worker.processors import reasons as processors
from zithara_worker.zithara import reasons as zithara

ROOT = Path(__file__).parents[2]


def test_every_reason_code_stands_in_the_table_of_reasons() -> None:
    documented = set(re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "reasons.md").read_text(), re.MULTILINE))
    queue = {"worker_died", "body_too_large", NEWER_DELIVERED, UNRECORDED}
    in_code = {*delivery.REASONS, *zithara.REASONS, *processors.ALL, *queue}
    assert in_code <= documented
    assert documented <= in_code


def test_what_to_do_is_the_same_in_the_document_and_on_the_screen() -> None:
    """Whoever adds a code adds its line to operations/reasons.py, or `failed list --reason` does not know it."""
    document = (ROOT / "docs" / "reasons.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `([^`]+)` \| [^|]+ \| [^|]+ \| ([^|]+) \|$", document, re.MULTILINE)) == REMEDIES


def test_any_http_status_is_a_reason_and_nothing_else_that_is_not_listed() -> None:
    assert remedy("http_422") == REMEDIES["http_<status>"]
    assert [remedy(code) for code in ("http_", "http_4220", "test order", "")] == [None] * 4
