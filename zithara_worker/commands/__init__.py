"""The command line: one file for each command parses its arguments, calls the library and prints the result."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import NoReturn

__all__ = ["main"]

#: Options before the command that take a value.
_VALUED = ("--config", "--log-level", "--log-format")


def main() -> NoReturn:
    """The console script.

    `consume` and `relay` catch signals before the other imports, which take more than 0.1 s: in that time a signal
    would end the process with its default action.
    """
    from zithara_worker.commands.signals import Signals

    signals = Signals()
    if _command(sys.argv[1:]) in ("consume", "relay"):
        signals.catch()

    from zithara_worker.commands import root

    root.main(signals)


def _command(arguments: Iterable[str]) -> str | None:
    """The first argument that is neither an option nor the value of one."""
    words = iter(arguments)
    for word in words:
        if word in _VALUED:
            next(words, None)
        elif not word.startswith("-"):
            return word
    return None
