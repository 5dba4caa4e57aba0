"""How log records look: one place for format, masking and files.

A record is a sentence for people and an `event` with stable fields for machines (`extra={...}`). Secrets are a type
that masks itself; personal data in fields is masked here, unless `[logging] mask = false`.
"""

from __future__ import annotations

import logging
import logging.handlers
import re
import sys
import time
from collections.abc import Iterable
from importlib import import_module
from typing import Any, TextIO

from zithara_worker.settings import LoggingSettings

try:
    _formatters = import_module("pythonjsonlogger.json")
except ImportError:  # before python-json-logger 3.1: Debian 12
    _formatters = import_module("pythonjsonlogger.jsonlogger")
_JsonFormatter: Any = _formatters.JsonFormatter

#: Fields that may hold what a customer or a server wrote; all others are ours.
_FREE_TEXT = ("detail", "body", "request", "answer", "group")
_EMAIL = re.compile(r"[^\s@\"'<>,;:]+@[^\s@\"'<>,;:]+\.[A-Za-z]{2,}")
_PHONE = re.compile(r"(?<![\w.-])\+?\d[\d ().-]{7,}\d(?![\w.-])")
_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

log = logging.getLogger(__name__)


def masked(text: str) -> str:
    """`text` with e-mail addresses and telephone numbers made unrecognisable: 'a***@***', '***32'."""
    if "@" in text:
        text = _EMAIL.sub(lambda match: f"{match.group()[0]}***@***", text)
    return _PHONE.sub(lambda match: f"***{match.group()[-2:]}", text)


class _Masking(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        for name in _FREE_TEXT:
            value = record.__dict__.get(name)
            if isinstance(value, str):
                record.__dict__[name] = masked(value)
        return True


class _Json(_JsonFormatter):  # type: ignore[misc]  # one of two modules, by version
    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s %(levelname)s %(name)s %(message)s",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            json_ensure_ascii=False,
        )

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's name
        return _time(record)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in _extras(record))
        line = f"{_time(record)} {record.levelname:<7} {record.getMessage()}" + (f"  [{fields}]" if fields else "")
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _time(record: logging.LogRecord) -> str:
    """ISO 8601, UTC, milliseconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _extras(record: logging.LogRecord) -> Iterable[tuple[str, Any]]:
    return ((name, value) for name, value in vars(record).items() if name not in _ATTRIBUTES and value is not None)


def configure(settings: LoggingSettings, stream: TextIO | None = None) -> None:
    """Sends all logs where the settings say; `stream` instead of standard error. May be called again.

    Raises OSError when the log file cannot be opened.
    """
    handler: logging.Handler
    if settings.file:
        # Opens the file anew when logrotate has moved it away.
        handler = logging.handlers.WatchedFileHandler(settings.file, encoding="utf-8")
    else:
        handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json() if settings.format == "json" else _Text())
    if settings.mask:
        handler.addFilter(_Masking())
    root = logging.getLogger()
    for old in list(root.handlers):
        if isinstance(old.formatter, (_Json, _Text)):
            root.removeHandler(old)
            old.close()
    root.addHandler(handler)
    root.setLevel(settings.level)
    # The HTTP client tells each request at INFO; ours are told once, with their outcome.
    for chatty in ("httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.raiseExceptions = False


def reopen_files() -> None:
    """After SIGHUP: writes on in a fresh file where the old one was moved or deleted."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.handlers.WatchedFileHandler):
            handler.reopenIfNeeded()


def warn_of(warnings: Iterable[str]) -> None:
    for warning in warnings:
        log.warning("%s", warning, extra={"event": "configuration_warning"})
