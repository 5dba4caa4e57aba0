"""Writes docs/reasons.md from the table of reasons:

python packaging/generated/reasons_page.py > docs/reasons.md
"""

from __future__ import annotations

import sys

from zithara_worker.reasons import REASONS


def reasons_page() -> str:
    """The whole text of docs/reasons.md."""
    rows = [f"| `{each.code}` | {each.effect} | {each.meaning} | {each.remedy} |\n" for each in REASONS.values()]
    return _BEFORE + "".join(rows)


_BEFORE = """\
# Reason codes

This page is made from the table in `zithara_worker/reasons.py`.

Each code keeps its meaning: it stands in the database, in logs, in metrics and in `zithara-worker failed list`.

- A *rejection* is decided before anything is sent; the message is in ERROR until somebody retries or discards it.
- A *failure* ends in ERROR too.
- A *retry* counts an attempt; the message is sent again after a delay.
- A *release* puts the message back as it was; no attempt is counted.
- A *skip* completes the message without a request.
- A message *kept aside* was taken from RabbitMQ and is on no queue; `zithara-worker failed list` shows it.
- A *warning* is counted and logged, and the message is delivered.

| code | effect | meaning | what to do |
| --- | --- | --- | --- |
"""


if __name__ == "__main__":
    sys.stdout.write(reasons_page())
