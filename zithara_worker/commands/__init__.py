"""How the program is typed and printed: parses, calls one function of the library, renders what it returns.

This package alone turns error classes into exit codes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import NoReturn

__all__ = ["main"]

#: Options of the command itself that take a value: what follows one of them is no command.
_VALUED = ("--config", "--log-level", "--log-format")


def main() -> NoReturn:
    """The console script. Signals come first: importing the rest takes a tenth of a second and more, in which a signal
    would end the process by its default."""
    from zithara_worker.commands.signals import Signals

    signals = Signals()
    if _command(sys.argv[1:]) == "consume":
        signals.catch()

    from zithara_worker.commands import root

    root.main(signals)


def _command(arguments: Iterable[str]) -> str | None:
    """The first word that is neither an option nor an option's value."""
    words = iter(arguments)
    for word in words:
        if word in _VALUED:
            next(words, None)
        elif not word.startswith("-"):
            return word
    return None
