"""The audit file: one JSON line for each delivery attempt and each operator's action, in their order.

Knows files and nothing of queues. `worker.outcomes` makes the line of a delivery. The line of an operator's action is
made here, because several commands need it.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from zithara_worker.logs.escaping import escaped
from zithara_worker.logs.files import is_named, open_for_append
from zithara_worker.units import iso_milliseconds

log = logging.getLogger(__name__)

#: Lines kept in memory while the file cannot be written. With audit_required a worker stops claiming long before.
KEPT = 10_000
#: Seconds between two tries to write to a file that could not be written; between two log lines about it.
RETRY_SECONDS = 1.0
LOG_SECONDS = 60.0
#: With less space left than this the file counts as unwritable, so that nothing more is claimed: the lines of messages
#: in flight must still fit.
RESERVE_BYTES = 1024 * 1024

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode

#: Takes the lines for the audit file.
Audit = Callable[[Sequence[Mapping[str, Any]]], object]


class AuditFile:
    """Appends lines, many with one write; thread-safe. `monotonic`: seconds; `utc`: seconds since the epoch.

    The file is opened on first use and again when it was moved away (logrotate) or after `reopen`. What cannot be
    written is kept, up to KEPT lines, and written before anything newer.
    """

    def __init__(
        self,
        path: Path,
        *,
        required: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
        utc: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._required = required
        self._monotonic = monotonic
        self._utc = utc
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._torn = False
        self._waiting: deque[bytes] = deque()
        self._retry_at = 0.0
        self._complain_at = 0.0
        #: Why the last write failed; None when it succeeded
        self.problem: str | None = None
        self.lines_written = 0
        #: Lines that were given up because the file could not be written for too long
        self.lines_lost = 0

    def is_for(self, path: Path | None, *, required: bool) -> bool:
        """Whether these settings ask for this audit file."""
        return (self._path, self._required) == (path, required)

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Writes one line for each record, `time` first. An error of the file system is logged, not raised."""
        if not records:
            return
        now = iso_milliseconds(self._utc())
        lines = [_line({"time": now, **record}) for record in records]
        with self._lock:
            self._waiting.extend(lines)
            self._write(at_once=False)

    def ready(self) -> bool:
        """Whether the next lines can be written; where not, tries again at most once a second and logs once a minute.

        When the file is required, also False when less than RESERVE_BYTES are left on its disk.
        """
        with self._lock:
            self._write(at_once=False)
            return self.problem is None

    def reopen(self) -> None:
        """After SIGHUP: the next line opens the file again by its name."""
        with self._lock:
            self._close()

    def close(self) -> None:
        """Writes what waits, if it can, and closes the file."""
        with self._lock:
            self._write(at_once=True)
            if self._waiting:
                self.lines_lost += len(self._waiting)
                log.error(
                    "audit lines lost: %s could not be written",
                    self._path,
                    extra={"event": "audit_lost", "file": str(self._path), "count": len(self._waiting)},
                )
                self._waiting.clear()
            self._close()

    # ---------------------------------------------------------------- with the lock held

    def _write(self, *, at_once: bool) -> None:
        now = self._monotonic()
        if now < self._retry_at and not at_once:
            self._drop_oldest()
            return
        try:
            descriptor = self._open()
            while self._waiting:
                many = [self._waiting[index] for index in range(min(len(self._waiting), 1000))]
                self._write_lines(descriptor, many)
            problem = self._lack_of_space(descriptor) if self._required else None
        except OSError as error:
            self._close()
            self._retry_at = now + RETRY_SECONDS
            self._failed(f"{error.strerror or error}", now)
            self._drop_oldest()
        else:
            if problem is not None:
                self._failed(problem, now)
            else:
                self._recovered()

    def _write_lines(self, descriptor: int, lines: Sequence[bytes]) -> None:
        """One write. Complete lines are dropped from memory; a line that was written in part is written again whole,
        after a line break."""
        start = b"\n" if self._torn else b""
        left = os.write(descriptor, start + b"".join(lines)) - len(start)
        if left < 0:
            raise OSError(0, "nothing could be written")
        self._torn = False
        for line in lines:
            if left < len(line):
                self._torn = left > 0
                raise OSError(0, "only a part could be written")
            left -= len(line)
            self._waiting.popleft()
            self.lines_written += 1

    def _open(self) -> int:
        """The open file. Opens it again when another file has its name now (logrotate)."""
        if self._descriptor is not None:
            if is_named(self._descriptor, self._path):
                return self._descriptor
            self._close()
        self._descriptor = open_for_append(self._path)
        return self._descriptor

    def _close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            # A network file system may report here that earlier writes failed; their lines are no longer in memory.
            with suppress(OSError):
                os.close(descriptor)

    def _lack_of_space(self, descriptor: int) -> str | None:
        space = os.fstatvfs(descriptor)
        if not space.f_blocks or space.f_bavail * space.f_frsize >= RESERVE_BYTES:
            return None
        return f"less than {RESERVE_BYTES // 1024} KiB are left on its file system"

    def _failed(self, problem: str, now: float) -> None:
        if self.problem is None or now >= self._complain_at:
            self._complain_at = now + LOG_SECONDS
            log.error(
                "the audit file %s cannot be written: %s; free space or correct its permissions, or name another file "
                "in [logging] audit_file%s",
                self._path,
                problem,
                " (no messages are taken until then)" if self._required else "",
                extra={"event": "audit_unwritable", "file": str(self._path), "waiting": len(self._waiting)},
            )
        self.problem = problem

    def _recovered(self) -> None:
        if self.problem is not None:
            log.info("the audit file can be written again", extra={"event": "audit_writable", "file": str(self._path)})
        self.problem = None

    def _drop_oldest(self) -> None:
        while len(self._waiting) > KEPT:
            self._waiting.popleft()
            self.lines_lost += 1


def operator_action(
    action: str,
    *,
    who: str | None = None,
    topic: str | None = None,
    message_ids: Sequence[int] = (),
    reason: str = "",
    **more: Any,
) -> dict[str, Any]:
    """The line of an operator's action: `AuditFile(path).append([operator_action("retry", message_ids=[7])])`.

    `who`: None = the user who runs this process. The values are what the operator typed, and no data of customers.
    """
    record: dict[str, Any] = {
        "kind": "operator",
        "action": action,
        "who": who or current_user(),
        "host": socket.gethostname(),
    }
    if topic is not None:
        record["topic"] = topic
    if message_ids:
        record["message_ids"] = list(message_ids)
    if reason:
        record["reason"] = reason
    return {**record, **more}


def current_user() -> str:
    """The user who runs this process; under sudo also the one who called it."""
    import getpass

    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        name = f"uid {os.getuid()}"
    caller = os.environ.get("SUDO_USER")
    return f"{caller} as {name}" if caller and caller != name else name


def _line(record: Mapping[str, Any]) -> bytes:
    # Half a surrogate pair, as a file name or a group key may hold, has no UTF-8: it is escaped.
    return escaped(_encode(record)).encode("utf-8", "backslashreplace") + b"\n"
