"""How log records look and where they go: one place for fields and files; `masking` knows what may be shown.

A record is a sentence for people plus an `event` and stable fields for machines (`extra={...}`). It is written as

    time (ISO 8601, UTC, milliseconds), level, logger, event, message, then the other fields, exc_info last

Secrets are masked always: the `Secret` type masks itself, fields and JSON keys named like one are masked here. Personal
data is masked unless `[logging] mask = false`. Before `configure` is called, Python's own last resort prints warnings
and errors on standard error.

ERROR is a critical failure, WARNING one that is not, INFO an important operation, DEBUG a detail; bodies of requests
and responses are written at DEBUG only. What a thread logs while it delivers a message (`about`) carries that message's
topic, id, group and attempt. docs/logging.md lists events and fields.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TextIO

from zithara_worker.errors import ConfigurationError
from zithara_worker.logs.escaping import escaped
from zithara_worker.logs.files import is_named, open_for_append
from zithara_worker.logs.masking import MASK, SECRET_NAMES, Place, masked, masked_value, without_emails, without_secrets
from zithara_worker.messages import Message
from zithara_worker.settings.sections import LoggingSettings

#: Fields that hold what a customer, a server or an exception wrote. All others are ours, and only looked at for an '@'.
_FREE_TEXT = frozenset({"answer", "body", "detail", "error", "exc_info", "request", "response"})
#: What stands in such a field when it is JSON. Numbers and texts of other fields are ours; objects have keys of others.
_PLACES = dict.fromkeys(_FREE_TEXT, Place.HIDDEN) | {"response": Place.SAID}

_QUOTE_WORTHY = re.compile(r'[\s"=\]]')

#: What every LogRecord has; whatever else stands in it came with `extra`. taskName is Python 3.12's.
_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"asctime", "event", "message", "taskName"}

log = logging.getLogger(__name__)


# ---------------------------------------------------------------- fields


class _Fields:
    """Turns a record into the fields to write. A record without free text costs no regular expression."""

    def __init__(self, *, mask: bool) -> None:
        self._mask = mask
        self._clean: Callable[[str], str] = masked if mask else without_secrets

    def of(self, record: logging.LogRecord) -> dict[str, Any]:
        fields: dict[str, Any] = {"time": _time(record), "level": record.levelname, "logger": record.name}
        given = record.__dict__
        if "event" in given:
            fields["event"] = given["event"]
        fields["message"] = self._text(record.getMessage())
        for name, value in given.items():
            if name not in _ATTRIBUTES and value is not None:
                fields[name] = self._value(name, value)
        if record.exc_info:
            fields["exc_info"] = self._clean(_FORMATTER.formatException(record.exc_info))
        if record.stack_info:
            fields["stack_info"] = record.stack_info
        return fields

    def _value(self, name: str, value: Any) -> Any:
        if value and name in SECRET_NAMES:
            return MASK
        if isinstance(value, str):
            return self._clean(value) if name in _FREE_TEXT or value[:1] in ("{", "[") else self._text(value)
        if value is None or isinstance(value, int | float):
            return value
        return masked_value(value, personal=self._mask, place=_PLACES.get(name, Place.SHOWN))

    def _text(self, text: str) -> str:
        return without_emails(text) if self._mask else text


_FORMATTER = logging.Formatter()


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


# ---------------------------------------------------------------- formats


def _json_formatters() -> ModuleType:
    try:
        return import_module("pythonjsonlogger.json")
    except ModuleNotFoundError:  # python-json-logger before 3.1
        return import_module("pythonjsonlogger.jsonlogger")


_JsonFormatter: Any = _json_formatters().JsonFormatter
#: One for all lines: json.dumps makes one each time. `_Fields` leaves nothing that JSON cannot hold.
_encode = json.JSONEncoder(ensure_ascii=False).encode


class _Json(_JsonFormatter):  # type: ignore[misc]  # its base is one of two modules', by version
    """One JSON object a line."""

    def __init__(self, fields: _Fields) -> None:
        super().__init__("%(message)s", json_serializer=lambda fields, **_: escaped(_encode(fields)))
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        # Not the library's own choice of fields: both formats write the same ones, masked in one place.
        text: str = self.serialize_log_record(self._fields.of(record))
        return text


class _Text(logging.Formatter):
    """For people: time, level, sentence, and the fields in brackets; a traceback on the lines below."""

    def __init__(self, fields: _Fields) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        fields = self._fields.of(record)
        line = f"{fields.pop('time')} {fields.pop('level'):<7} {_one_line(fields.pop('message'))}"
        below = [fields.pop(name) for name in ("exc_info", "stack_info") if name in fields]
        del fields["logger"]
        if fields:
            line += f"  [{' '.join(f'{name}={_word(value)}' for name, value in fields.items())}]"
        return "\n".join([line, *map(escaped, below)])


def _one_line(text: str) -> str:
    # A line break in what a server wrote must not look like a record of its own.
    return text if text.isprintable() else escaped(json.dumps(text, ensure_ascii=False)[1:-1])


def _word(value: Any) -> str:
    if isinstance(value, str) and value.isprintable() and not _QUOTE_WORTHY.search(value):
        return value
    return escaped(json.dumps(value, ensure_ascii=False))


# ---------------------------------------------------------------- which message a line is about


_about: ContextVar[Message | None] = ContextVar("message", default=None)

#: From now on, what this thread logs is about this message. A field that a record has itself stays.
about: Callable[[Message | None], object] = _about.set


class _Correlation(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        message = _about.get()
        given = record.__dict__
        if message is None or given.get("event") == "suppressed":
            return True
        # A record about another message keeps to that one.
        if given.get("message_id", message.message_id) == message.message_id:
            for name, value in message.log_fields.items():
                given.setdefault(name, value)
        return True


# ---------------------------------------------------------------- the same warning again and again

#: How often the same warning or error is written in so many seconds; what came beyond that is told as a number.
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

    Lines about a message are never left out: each is told once, and is the record of what became of it. How many were
    left out is told with the first line of any kind after the series' time, or when the log is closed.
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
        if record.levelno < logging.WARNING or "message_id" in given or given.get("event") == "suppressed":
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
        """Tells what has been left out so far."""
        self._end_series(begun_until=math.inf)

    def _end_series(self, *, begun_until: float) -> None:
        with self._lock:
            over = [(key, series) for key, series in self._series.items() if series.began <= begun_until]
            for key, _ in over:
                del self._series[key]
            self._due = min((series.began + REPEAT_SECONDS for series in self._series.values()), default=math.inf)
        for (name, level, event, text), series in over:
            if series.left_out:
                fields = {"event": "suppressed", "suppressed_event": event or None, "count": series.left_out}
                said = {"name": name, "levelno": level, "levelname": logging.getLevelName(level)}
                sentence = {"msg": "left out %d more of: %s", "args": (series.left_out, text)}
                self._tell(logging.makeLogRecord({**said, **sentence, **fields}))


# ---------------------------------------------------------------- handlers


if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:  # Python 3.10's cannot be given a parameter
    _StreamHandler = logging.StreamHandler


#: The lines that each handler holds back for this thread, while it is `together`.
_held_back: ContextVar[dict[_Handler, list[str]] | None] = ContextVar("held_back", default=None)


@contextmanager
def together() -> Iterator[None]:
    """What this thread logs in the block is written at its end, by one write for all of it.

    For the lines of a batch of messages: each write, and each look whether logrotate has moved the file, is a system
    call and hands the interpreter's lock over to threads that give it back some milliseconds later.
    """
    held_back: dict[_Handler, list[str]] = {}
    before = _held_back.set(held_back)
    try:
        yield
    finally:
        _held_back.reset(before)
        for handler, lines in held_back.items():
            handler.handle(_Lines(lines))


class _Lines(logging.LogRecord):
    """Lines that were formatted before, to be written as they are."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__(__name__, logging.NOTSET, "", 0, "\n".join(lines), None, None)


class _Handler(logging.Handler):
    """Ours, as opposed to those of a program that embeds the worker; says on standard error that it cannot write."""

    _complained_at = -60.0
    _repetition: _Repetition | None = None

    def emit(self, record: logging.LogRecord) -> None:
        held_back = _held_back.get()
        if held_back is None:
            super().emit(record)
            return
        try:
            held_back.setdefault(self, []).append(self.format(record))
        except Exception:
            # As the standard library's handlers do: a line that cannot be formatted must not stop the program.
            self.handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        return str(record.msg) if isinstance(record, _Lines) else super().format(record)

    def watch_repetition(self, monotonic: Callable[[], float]) -> None:
        # Before the correlation: a warning about the host is the same one whichever message met it.
        self._repetition = _Repetition(self.handle, monotonic)
        self.addFilter(self._repetition)
        self.addFilter(_Correlation())

    def close(self) -> None:
        if self._repetition is not None:
            self._repetition.end()
        super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        # logging's own would print the record unmasked, each time: a full disk would flood the journal.
        self._complain("cannot write the log")

    def _complain(self, what: str) -> None:
        now = time.monotonic()
        if now - self._complained_at >= 60:
            self._complained_at = now
            # Standard error itself may be what is broken; there is nobody left to tell then.
            with suppress(OSError, ValueError):
                sys.stderr.write(f"zithara-worker: {what}: {sys.exc_info()[1]!r}\n")


class _ToStream(_Handler, _StreamHandler):
    pass


class _ToFile(_ToStream):
    """Goes on in a new file when logrotate has moved the old one away. Raises OSError when it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(self._opened())

    def emit(self, record: logging.LogRecord) -> None:
        if _held_back.get() is None:
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


def configure(
    settings: LoggingSettings, stream: TextIO | None = None, *, monotonic: Callable[[], float] = time.monotonic
) -> None:
    """Sends all logs where the settings say; without a file to `stream`, or to standard error.

    Called again it replaces what it set up before, and nothing that others did. Raises ConfigurationError when the file
    cannot be opened; logs then go on as before.
    """
    handler: _ToStream | _ToFile
    if settings.file is None:
        handler = _ToStream(stream or sys.stderr)
    else:
        try:
            handler = _ToFile(settings.file)
        except OSError as error:
            raise ConfigurationError(
                f"[logging] file: cannot open {settings.file} for writing: {error.strerror}; name a file in a "
                "directory of the worker's user, or leave file empty to log to standard error"
            ) from error
    handler.watch_repetition(monotonic)
    fields = _Fields(mask=settings.mask)
    handler.setFormatter(_Json(fields) if settings.format == "json" else _Text(fields))
    # What no line of ours shows need not be found out for each: the caller's place, thread, process and task (Python's
    # logging HOWTO, "Optimization").
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(settings.level)
    for old in list(root.handlers):
        if isinstance(old, _Handler) and old is not handler:
            root.removeHandler(old)
            old.close()


def reopen_files() -> None:
    """Goes on in a new file where the old one was moved or deleted (SIGHUP; writing would notice it too)."""
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
