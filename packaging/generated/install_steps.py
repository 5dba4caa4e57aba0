"""The steps from nothing to a worker that delivers. README, docs/install.md, the manual page, the text after the
package's installation and the head of its configuration tell these; a test compares those that are written by hand.

    PYTHONPATH=. python packaging/generated/install_steps.py       the block of README
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zithara_worker.version import VERSION

PASSWORD_FILE = "/etc/zithara-worker/database-password"  # noqa: S105 - the path, not the password


@dataclass(frozen=True, slots=True)
class Step:
    """`what`: a title; `commands`: lines to copy, as root; `magento` stands for the shop's database."""

    what: str
    commands: tuple[str, ...]


STEPS = (
    Step("the package", (f"apt install ./zithara-worker_{VERSION}_all.deb supervisor",)),
    Step(
        "the configuration",
        (
            f"head -c 24 /dev/urandom | base64 | install -m 0640 -g zithara-worker /dev/stdin {PASSWORD_FILE}",
            "editor /etc/zithara-worker/zithara-worker.conf",
        ),
    ),
    Step(
        "the database user, its rights, and the worker's tables",
        (
            f"echo \"CREATE USER 'zithara_worker'@'localhost' IDENTIFIED BY '$(cat {PASSWORD_FILE})'\" | mariadb",
            "zithara-worker install --print | mariadb magento",
        ),
    ),
    Step("check", ("runuser -u zithara-worker -- zithara-worker doctor",)),
    # `update` alone leaves programs alone that supervisor tried to start before they were configured (FATAL).
    Step("start", ("supervisorctl update; supervisorctl start 'zithara-worker:*'",)),
    Step("see", ("runuser -u zithara-worker -- zithara-worker status",)),
)


def command_lines() -> Iterator[str]:
    """All lines to copy, in order."""
    for step in STEPS:
        yield from step.commands


def block() -> str:
    """The lines to copy as a block of Markdown."""
    return "".join(f"    {line}\n" for line in command_lines())


def after_installation() -> str:
    """What the package says once it is installed: the steps that are left."""
    lines = []
    for number, step in enumerate(STEPS[1:], 1):
        lines += [f"  {number}. {step.what}:", *(f"       {line}" for line in step.commands)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(block(), end="")
