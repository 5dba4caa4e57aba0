"""Every reason code that a message can get is explained to whoever meets it."""

from __future__ import annotations

import re
from pathlib import Path

from zithara_worker.delivery import reasons as delivery
from zithara_worker.processors import reasons as processors
from zithara_worker.zithara import reasons as zithara

ROOT = Path(__file__).parent.parent


def test_every_reason_code_stands_in_the_table_of_reasons() -> None:
    documented = set(re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "reasons.md").read_text(), re.MULTILINE))
    in_code = {*delivery.REASONS, *zithara.REASONS, *processors.ALL, "worker_died", "body_too_large"}
    assert in_code <= documented
    assert documented <= in_code
