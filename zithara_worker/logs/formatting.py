"""How a log record becomes a line: its fields, what of them is masked, and the two formats.

A record is a sentence for people plus an `event` and stable fields for machines (`extra={...}`). It is written as

    time (ISO 8601, UTC, milliseconds), level, logger, event, message, then the other fields, exc_info last

What a thread logs after `set_current_message` carries that message's topic, id, group and attempt. Secrets are always
masked: the `Secret` type masks itself, fields and JSON keys named like one are masked here. Personal data is masked
unless `[logging] mask = false`; `masking` decides what is personal. docs/logging.md lists events and fields.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from contextvars import ContextVar
from importlib import import_module
from types import ModuleType
from typing import Any

from zithara_worker.logs.escaping import escaped
from zithara_worker.logs.masking import MASK, SECRET_NAMES, Place, masked, masked_value, without_emails, without_secrets
from zithara_worker.messages import Message
from zithara_worker.units import iso_milliseconds

#: Fields whose text was written by a customer, a server or an exception, so all of it is masked. Texts of other fields
#: are this program's: only email addresses are looked for.
_FREE_TEXT = frozenset({"answer", "body", "detail", "error", "exc_info", "request", "response"})
#: How JSON in such a field is masked. Objects in other fields have keys of others, but numbers and texts of ours.
_PLACES = dict.fromkeys(_FREE_TEXT, Place.HIDDEN) | {"response": Place.SAID}

_QUOTE_WORTHY = re.compile(r'[\s"=\]]')

#: What every LogRecord has; any other attribute came with `extra`. Python 3.12 added taskName.
_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"asctime", "event", "message", "taskName"}
#: The event of a line that counts repeated warnings: it is about no message, whatever its thread delivers.
SUPPRESSED = "suppressed"

_TRACEBACKS = logging.Formatter()
_current_message: ContextVar[Message | None] = ContextVar("current_message", default=None)


def set_current_message(message: Message | None) -> None:
    """From now on, the lines that this thread logs carry the fields of this message."""
    _current_message.set(message)


class Fields:
    """Turns a record into the fields to write. A record without free text costs no regular expression."""

    def __init__(self, *, mask: bool) -> None:
        self._mask = mask
        self._clean: Callable[[str], str] = masked if mask else without_secrets

    def of(self, record: logging.LogRecord) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "time": iso_milliseconds(record.created),
            "level": record.levelname,
            "logger": record.name,
        }
        given = record.__dict__
        event = given.get("event")
        if event is not None:
            fields["event"] = event
        fields["message"] = self._text(record.getMessage())
        for name, value in given.items():
            if name not in _ATTRIBUTES and value is not None:
                fields[name] = self._value(name, value)
        message = _current_message.get()
        # A record that names another message is about that one.
        if message and event != SUPPRESSED and given.get("message_id", message.message_id) == message.message_id:
            for name, value in message.log_fields.items():
                if name not in given:
                    fields[name] = self._value(name, value)
        if record.exc_info:
            fields["exc_info"] = self._clean(_TRACEBACKS.formatException(record.exc_info))
        if record.stack_info:
            fields["stack_info"] = record.stack_info
        return fields

    def _value(self, name: str, value: Any) -> Any:
        if value and name in SECRET_NAMES:
            return MASK
        if isinstance(value, str):
            return self._clean(value) if name in _FREE_TEXT or value[:1] in ("{", "[") else self._text(value)
        if isinstance(value, int | float):
            return value
        return masked_value(value, personal=self._mask, place=_PLACES.get(name, Place.SHOWN))

    def _text(self, text: str) -> str:
        return without_emails(text) if self._mask else text


def _json_formatters() -> ModuleType:
    try:
        return import_module("pythonjsonlogger.json")
    except ModuleNotFoundError:  # python-json-logger before 3.1
        return import_module("pythonjsonlogger.jsonlogger")


_JsonFormatter: Any = _json_formatters().JsonFormatter
#: One encoder for all lines; json.dumps would make one each time. `Fields` leaves nothing that JSON cannot hold.
_encode = json.JSONEncoder(ensure_ascii=False).encode


class JsonLines(_JsonFormatter):  # type: ignore[misc]  # its base is one of two modules', by version
    """One JSON object a line."""

    def __init__(self, fields: Fields) -> None:
        super().__init__("%(message)s", json_serializer=lambda fields, **_: escaped(_encode(fields)))
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        # The library would choose the fields itself: both formats write the same ones, masked in one place.
        text: str = self.serialize_log_record(self._fields.of(record))
        return text


class TextLines(logging.Formatter):
    """For people: time, level, sentence, and the fields in brackets; a traceback on the lines below."""

    def __init__(self, fields: Fields) -> None:
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
