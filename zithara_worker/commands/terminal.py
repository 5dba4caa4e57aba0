"""What the commands share to print: JSON, tables, colours, sparklines, a progress bar, and the live screen.

Control sequences are those of ECMA-48 and xterm's alternate screen, which every current terminal, tmux and screen
understand.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import click

from zithara_worker.errors import ZitharaWorkerError
from zithara_worker.logs.escaping import blanked, escaped
from zithara_worker.units import rate

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = "_.-=+*%#"
_STYLE = re.compile(r"(\x1b\[[0-9;]*m)")
#: Number of steps from which a progress bar is shown.
_MANY = 100

_ENTER_SCREEN = "\x1b[?1049h\x1b[?25l\x1b[2J"
_LEAVE_SCREEN = "\x1b[?25h\x1b[?1049l"


# ---------------------------------------------------------------- lines


def print_json(value: object, *, indent: int | None = None) -> None:
    """Prints `value` as JSON on standard output; characters that would control the terminal are escaped."""
    click.echo(escaped(json.dumps(value, ensure_ascii=False, indent=indent)))


def printable(text: object, *, width: int = 0) -> str:
    """`text` on one line, without characters that would control the terminal; cut to `width` unless that is 0."""
    line = blanked(str(text))
    return line if not width or len(line) <= width else line[: max(0, width - 1)] + "…"


def coloured(colour: str, text: str, *, bold: bool = False) -> str:
    """`text` in a colour of click's ("" for none), unless the variable NO_COLOR is set (no-color.org)."""
    if os.environ.get("NO_COLOR") or not text or not (colour or bold):
        return text
    return click.style(text, fg=colour or None, bold=bold or None)


def plain_length(text: str) -> int:
    """The columns that a coloured text takes."""
    return len(_STYLE.sub("", text))


def fit(text: str, width: int) -> str:
    """A coloured line, cut to `width` columns."""
    if plain_length(text) <= width:
        return text
    shown = ""
    columns = 0
    for part in _STYLE.split(text):
        if part.startswith("\x1b"):
            shown += part
            continue
        shown += part[: width - columns]
        columns += min(len(part), width - columns)
    return shown


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[int] = (0,)) -> list[str]:
    """Lines with aligned columns: the columns of `left` to the left, the others to the right. Cells may be coloured."""
    cells = [list(head), *(list(row) for row in rows)]
    widths = [max(plain_length(row[column]) for row in cells) for column in range(len(head))]
    lines = []
    for row in cells:
        parts = []
        for column, cell in enumerate(row):
            padding = " " * (widths[column] - plain_length(cell))
            parts.append(cell + padding if column in left else padding + cell)
        lines.append("  ".join(parts).rstrip())
    return lines


def sparkline(values: Sequence[float], *, plain: bool = False) -> str:
    """One character for each value: a blank for 0, a full block for the highest. `plain`: ASCII only."""
    blocks = _ASCII_BLOCKS if plain else _BLOCKS
    top = max(values, default=0)
    if top <= 0:
        return " " * len(values)
    return "".join(
        " " if value <= 0 else blocks[min(len(blocks) - 1, int(value / top * (len(blocks) - 0.001)))]
        for value in values
    )


@contextmanager
def progress(total: int, label: str) -> Iterator[Callable[[int], object]]:
    """A progress bar on standard error with remaining time and rate, if that is a terminal and there are many steps;
    call it with steps done."""
    if total < _MANY or not sys.stderr.isatty():
        yield lambda steps: None
        return
    started = time.monotonic()

    def shown(done: int | None) -> str:
        return "" if done is None else f"{rate(done / max(time.monotonic() - started, 0.001))}/s"

    with click.progressbar(length=total, label=label, file=sys.stderr, show_pos=True, item_show_func=shown) as bar:
        yield lambda steps: bar.update(steps, bar.pos + steps)


# ---------------------------------------------------------------- questions and files


def ask_first(question: str, *, yes: bool) -> None:
    """Asks on the terminal before something is done, unless `yes`. Raises click.Abort on a no, and click.UsageError
    where there is no terminal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} There is no terminal to ask: give --yes if that is what you want")
    # Ctrl-C at the question is an answer.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        click.confirm(question, abort=True, err=True)
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def output(file: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """Standard output, or a file that its owner alone can read. It gets its name after everything is written and synced
    to the disk. Raises ZitharaWorkerError if it exists and is not to be overwritten, or cannot be written."""
    if str(file) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if file.exists() and not overwrite:
        raise ZitharaWorkerError(f"{file} exists: name another file, or give --overwrite")
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ZitharaWorkerError(f"cannot write {file}: {error.strerror or error}") from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


# ---------------------------------------------------------------- the live screen


class ScreenEvent(Enum):
    """What ended a wait."""

    TIME_IS_UP = "time is up"
    QUIT = "quit"
    REFRESH = "refresh"
    RESIZED = "resized"


class Screen:
    """The whole terminal, given back at the end as it was. Shows lines, reads keys, follows the size of the window.

    Use it as a context manager in the main thread, because it handles signals. SIGTERM and SIGHUP raise
    KeyboardInterrupt inside.
    """

    def __init__(self) -> None:
        self._keys = _keyboard()
        self._before: list[Any] | None = None
        self._wake_read = self._wake_write = -1
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Screen:
        self._wake_read, self._wake_write = os.pipe()
        for end in (self._wake_read, self._wake_write):
            os.set_blocking(end, False)
        signals = {
            signal.SIGWINCH: self._resized,
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
        # Asked of the terminal itself: the variables COLUMNS and LINES do not follow the window.
        try:
            found = os.get_terminal_size(sys.stdout.fileno())
        except OSError:
            found = shutil.get_terminal_size()
        return max(20, found.columns), max(5, found.lines)

    def draw(self, lines: Sequence[str]) -> None:
        """Shows these lines, each cut to the width, and nothing else."""
        columns, rows = self.size
        shown = [fit(line, columns) for line in lines[:rows]]
        # Each line is written over the old one: clearing the screen first would flicker over a slow connection.
        _write("\x1b[H" + "\x1b[0m\x1b[K\r\n".join(shown) + "\x1b[0m\x1b[K\x1b[J")

    def wait(self, seconds: float) -> ScreenEvent:
        """Until a key is pressed, the window gets another size, or the time is up."""
        watched = [self._wake_read] if self._keys is None else [self._wake_read, self._keys]
        ready, _, _ = select.select(watched, [], [], max(0.0, seconds))
        if self._wake_read in ready:
            numbers = os.read(self._wake_read, 512)
            if signal.SIGWINCH in numbers or signal.SIGCONT in numbers or signal.SIGTSTP in numbers:
                return ScreenEvent.RESIZED
        if self._keys is not None and self._keys in ready:
            return self._key_pressed(self._keys)
        return ScreenEvent.TIME_IS_UP

    def _key_pressed(self, keys: int) -> ScreenEvent:
        try:
            typed = os.read(keys, 64)
        except OSError:
            typed = b""
        if not typed:  # the end of the input: no key will come any more; Ctrl-C still works
            self._keys = None
            return ScreenEvent.TIME_IS_UP
        if any(key in typed for key in (b"q", b"Q", b"\x03", b"\x04")):
            return ScreenEvent.QUIT
        return ScreenEvent.REFRESH

    def _take_terminal(self) -> None:
        if self._keys is not None:
            self._before = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys)
        _write(_ENTER_SCREEN)

    def _give_terminal_back(self) -> None:
        _write(_LEAVE_SCREEN)
        if self._before is not None:
            # A terminal that has gone away needs no restoring.
            with suppress(termios.error, OSError):
                termios.tcsetattr(
                    sys.stdin.fileno() if self._keys is None else self._keys, termios.TCSADRAIN, self._before
                )

    def _resized(self, number: int, frame: FrameType | None) -> None:
        """`wait` reads the signal's number from the wakeup descriptor."""

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def _suspended(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z: gives the terminal to the shell, and takes it again after `fg`."""
        self._give_terminal_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take_terminal()


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _keyboard() -> int | None:
    """The descriptor of standard input, or None when that is no terminal."""
    try:
        return sys.stdin.fileno() if sys.stdin.isatty() else None
    except (ValueError, OSError):
        return None
