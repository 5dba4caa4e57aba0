"""Where log lines go: standard error or a file, repeated warnings counted instead of written, batches in one write.

Before `configure` is called, Python's own last resort prints warnings and errors on standard error.

ERROR is a critical failure, WARNING one that is not, INFO an important operation, DEBUG a detail; bodies of requests
and responses are written at DEBUG only.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from zithara_worker.errors import ConfigurationError
from zithara_worker.logs.files import is_named, open_for_append
from zithara_worker.logs.formatting import SUPPRESSED, Fields, JsonLines, TextLines
from zithara_worker.settings.sections import LoggingSettings

log = logging.getLogger(__name__)


# ---------------------------------------------------------------- repeated warnings

#: How often the same warning or error is written in so many seconds; of further ones the count is written.
REPEATS = 5
REPEAT_SECONDS = 60.0


@dataclass(slots=True)
class _Series:
    """One sentence since `began`: how often it was written, and how often left out."""

    began: float
    written: int = 0
    left_out: int = 0


class _Repetition(logging.Filter):
    """Leaves out a sentence at WARNING or above that is repeated (same logger, level, event and text).

    Lines that name a message are never left out: each is the record of what became of that message. How many lines were
    left out is written with the first line of any kind after the series' time, or when the log is closed.
    """

    def __init__(self, tell: Callable[[logging.LogRecord], object], monotonic: Callable[[], float]) -> None:
        super().__init__()
        self._tell = tell
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._series: dict[tuple[str, int, str, str], _Series] = {}
        #: When the oldest series ends
        self._due = math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        if self._monotonic() >= self._due:
            self._end_series(begun_until=self._due - REPEAT_SECONDS)
        given = record.__dict__
        # A warning about the host is the same one whichever message met it, so only the record's own fields count.
        if record.levelno < logging.WARNING or "message_id" in given or given.get("event") == SUPPRESSED:
            return True
        key = (record.name, record.levelno, str(given.get("event", "")), record.getMessage())
        with self._lock:
            series = self._series.get(key)
            if series is None:
                series = self._series[key] = _Series(self._monotonic())
                self._due = min(self._due, series.began + REPEAT_SECONDS)
            if series.written < REPEATS:
                series.written += 1
                return True
            series.left_out += 1
            return False

    def end(self) -> None:
        """Writes the counts of all that has been left out so far."""
        self._end_series(begun_until=math.inf)

    def _end_series(self, *, begun_until: float) -> None:
        with self._lock:
            over = [(key, series) for key, series in self._series.items() if series.began <= begun_until]
            for key, _ in over:
                del self._series[key]
            self._due = min((series.began + REPEAT_SECONDS for series in self._series.values()), default=math.inf)
        for (name, level, event, text), series in over:
            if series.left_out:
                fields = {"event": SUPPRESSED, "suppressed_event": event or None, "count": series.left_out}
                said = {"name": name, "levelno": level, "levelname": logging.getLevelName(level)}
                sentence = {"msg": "left out %d more of: %s", "args": (series.left_out, text)}
                self._tell(logging.makeLogRecord({**said, **sentence, **fields}))


# ---------------------------------------------------------------- handlers


if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:  # Python 3.10's cannot be given a parameter
    _StreamHandler = logging.StreamHandler


#: The lines that each handler keeps for this thread until its block of `batched_writes` ends.
_batches: ContextVar[dict[_ToStream, list[str]] | None] = ContextVar("batches", default=None)


@contextmanager
def batched_writes() -> Iterator[None]:
    """What this thread logs in the block is written at its end, by one write for all of it.

    For the lines of a batch of messages: each write, and each look whether logrotate has moved the file, is a system
    call and hands the interpreter's lock over to threads that give it back some milliseconds later.
    """
    batches: dict[_ToStream, list[str]] = {}
    before = _batches.set(batches)
    try:
        yield
    finally:
        _batches.reset(before)
        for handler, lines in batches.items():
            handler.handle(_Lines(lines))


class _Lines(logging.LogRecord):
    """Lines that were formatted before, to be written as they are."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__(__name__, logging.NOTSET, "", 0, "\n".join(lines), None, None)


class _ToStream(_StreamHandler):
    """Writes to a stream; says on standard error, once a minute, that it cannot.

    `configure` knows this worker's handlers by this class, and leaves those of an embedding program alone.
    """

    def __init__(self, stream: TextIO, monotonic: Callable[[], float]) -> None:
        super().__init__(stream)
        self._complained_at = -math.inf
        self._repetition = _Repetition(self.handle, monotonic)
        self.addFilter(self._repetition)

    def emit(self, record: logging.LogRecord) -> None:
        batches = _batches.get()
        if batches is None:
            super().emit(record)
            return
        try:
            batches.setdefault(self, []).append(self.format(record))
        except Exception:
            # As the standard library's handlers do: a line that cannot be formatted must not stop the program.
            self.handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        return str(record.msg) if isinstance(record, _Lines) else super().format(record)

    def close(self) -> None:
        self._repetition.end()
        super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        # logging's own would print the record unmasked, each time: a full disk would flood the journal.
        self._complain("cannot write the log")

    def _complain(self, what: str) -> None:
        now = time.monotonic()
        if now - self._complained_at >= 60:
            self._complained_at = now
            # Standard error itself may be what is broken; nothing is left then to which it could be said.
            with suppress(OSError, ValueError):
                sys.stderr.write(f"zithara-worker: {what}: {sys.exc_info()[1]!r}\n")


class _ToFile(_ToStream):
    """Goes on in a new file when logrotate has moved the old one away. Raises OSError when it cannot be opened."""

    def __init__(self, path: Path, monotonic: Callable[[], float]) -> None:
        self._path = path
        super().__init__(self._opened(), monotonic)

    def emit(self, record: logging.LogRecord) -> None:
        if _batches.get() is None:
            self.reopen()
        super().emit(record)

    def reopen(self) -> None:
        """With the lock held. Where the new file cannot be opened, the old one stays in use, and this is said."""
        try:
            if is_named(self.stream.fileno(), self._path):
                return
            old, self.stream = self.stream, self._opened()
        except (OSError, ValueError):  # ValueError: closed meanwhile
            self._complain(f"cannot go on in {self._path}")
        else:
            old.close()

    def close(self) -> None:
        super().close()
        with suppress(OSError):
            self.stream.close()

    def _opened(self) -> TextIO:
        return os.fdopen(open_for_append(self._path), "a", encoding="utf-8", errors="backslashreplace")


# ---------------------------------------------------------------- setting up


def configure(
    settings: LoggingSettings, stream: TextIO | None = None, *, monotonic: Callable[[], float] = time.monotonic
) -> None:
    """Sends all logs where the settings say; without a file to `stream`, or to standard error.

    Called again it replaces what it set up before, and nothing that others did. Raises ConfigurationError when the file
    cannot be opened; logs then go on as before.
    """
    if settings.file is None:
        handler = _ToStream(stream or sys.stderr, monotonic)
    else:
        try:
            handler = _ToFile(settings.file, monotonic)
        except OSError as error:
            raise ConfigurationError(
                f"[logging] file: cannot open {settings.file} for writing: {error.strerror}; name a file in a "
                "directory of the worker's user, or leave file empty to log to standard error"
            ) from error
    fields = Fields(mask=settings.mask)
    handler.setFormatter(JsonLines(fields) if settings.format == "json" else TextLines(fields))
    # No line of ours shows the caller's place, thread, process or task, so none need be found out for each record
    # (Python's logging HOWTO, "Optimization").
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(settings.level)
    for old in list(root.handlers):
        if isinstance(old, _ToStream) and old is not handler:
            root.removeHandler(old)
            old.close()


def reopen_files() -> None:
    """Goes on in a new file where the old one was moved or deleted (SIGHUP; the next line would notice it too)."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _ToFile):
            handler.acquire()
            try:
                handler.reopen()
            finally:
                handler.release()


def warn_of(warnings: Iterable[str]) -> None:
    """Logs the warnings of `LoadedSettings`."""
    for warning in warnings:
        log.warning("%s", warning, extra={"event": "configuration_warning"})
