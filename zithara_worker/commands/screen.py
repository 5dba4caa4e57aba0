"""A live screen on a terminal: draws lines, hears keys, follows the window's size, and leaves the terminal as it was.

Knows no command. Control sequences are those of ECMA-48 and xterm's alternate screen, which every terminal of today
and tmux and screen understand.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from types import FrameType
from typing import Any, TextIO

from zithara_worker.commands.rendering import fit

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"
_LEAVE = "\x1b[?25h\x1b[?1049l"


class Heard(Enum):
    """What ended a wait."""

    NOTHING = "nothing"
    QUIT = "quit"
    REFRESH = "refresh"
    RESIZED = "resized"


class Screen:
    """Use as a context manager, in the main thread: signals belong to it. SIGTERM raises KeyboardInterrupt inside."""

    def __init__(self, output: TextIO | None = None, keys: int | None = None) -> None:
        self._output = output or sys.stdout
        self._keys: int | None = keys if keys is not None else _keyboard()
        self._before: list[Any] | None = None
        self._wake_read = self._wake_write = -1
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Screen:
        self._wake_read, self._wake_write = os.pipe()
        for end in (self._wake_read, self._wake_write):
            os.set_blocking(end, False)
        signals = {
            signal.SIGWINCH: self._ignored,
            signal.SIGTERM: self._interrupted,
            signal.SIGHUP: self._interrupted,
            signal.SIGTSTP: self._suspended,
        }
        for number, handler in signals.items():
            self._handlers[number] = signal.signal(number, handler)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._take_terminal()
        return self

    def __exit__(self, *_: object) -> None:
        self._give_terminal_back()
        signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._wake_read)
        os.close(self._wake_write)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, at least 20 by 5."""
        # Asked of the terminal itself: COLUMNS and LINES, where exported, do not follow the window.
        try:
            found = os.get_terminal_size(self._output.fileno())
        except OSError:
            found = shutil.get_terminal_size()
        return max(20, found.columns), max(5, found.lines)

    def draw(self, lines: Sequence[str]) -> None:
        """Shows these lines, each cut to the width, and nothing else."""
        columns, rows = self.size
        shown = [fit(line, columns) for line in lines[:rows]]
        # Line by line over the old picture: clearing first would flicker over a slow connection.
        self._write("\x1b[H" + "\x1b[0m\x1b[K\r\n".join(shown) + "\x1b[0m\x1b[K\x1b[J")

    def wait(self, seconds: float) -> Heard:
        """Until a key, a new size, or the time is up."""
        watched = [self._wake_read] if self._keys is None else [self._wake_read, self._keys]
        ready, _, _ = select.select(watched, [], [], max(0.0, seconds))
        if self._wake_read in ready:
            numbers = os.read(self._wake_read, 512)
            if signal.SIGWINCH in numbers or signal.SIGCONT in numbers or signal.SIGTSTP in numbers:
                return Heard.RESIZED
        if self._keys is not None and self._keys in ready:
            return self._heard(self._keys)
        return Heard.NOTHING

    def _heard(self, keys: int) -> Heard:
        try:
            typed = os.read(keys, 64)
        except OSError:
            typed = b""
        if not typed:  # nobody can type any more; Ctrl-C still works
            self._keys = None
            return Heard.NOTHING
        if any(key in typed for key in (b"q", b"Q", b"\x03", b"\x04")):
            return Heard.QUIT
        return Heard.REFRESH

    def _take_terminal(self) -> None:
        if self._keys is not None:
            self._before = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys)
        self._write(_ENTER)

    def _give_terminal_back(self) -> None:
        self._write(_LEAVE)
        if self._before is not None:
            # Also where typing has ended meanwhile; a terminal that is gone needs nothing back.
            with _gone_is_fine():
                termios.tcsetattr(
                    sys.stdin.fileno() if self._keys is None else self._keys, termios.TCSADRAIN, self._before
                )

    def _write(self, text: str) -> None:
        self._output.write(text)
        self._output.flush()

    def _ignored(self, number: int, frame: FrameType | None) -> None:
        """The wakeup descriptor tells it."""

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def _suspended(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z: the shell gets its terminal, and the screen comes back with `fg`."""
        self._give_terminal_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take_terminal()


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except (termios.error, OSError):
        return


def _keyboard() -> int | None:
    """Standard input, where somebody may type; None when it is no terminal."""
    try:
        return sys.stdin.fileno() if sys.stdin.isatty() else None
    except (ValueError, OSError):
        return None
