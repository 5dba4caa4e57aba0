"""Whoever may write the directory of a log neither stops the worker nor directs it elsewhere."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zithara_worker.doctor.finding import Level
from zithara_worker.doctor.host import log_files
from zithara_worker.errors import ConfigurationError
from zithara_worker.logs import handlers as logs
from zithara_worker.logs.audit import AuditFile
from zithara_worker.logs.files import is_named, open_for_append
from zithara_worker.settings.sections import LoggingSettings

log = logging.getLogger("zithara_worker.test")
pytestmark = pytest.mark.usefixtures("root_logger_as_before")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to(path.parent / "target")


def read_fifo(path: Path) -> None:
    """One that somebody reads: opening it would not wait, writing to it would as soon as it is full."""
    os.mkfifo(path)
    os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def second_name(path: Path) -> None:
    (path.parent / "other").touch()
    os.link(path.parent / "other", path)


TRAPS = [fifo, link, read_fifo, second_name]
traps = pytest.mark.parametrize("trap", TRAPS)


@traps
def test_a_trap_is_refused_at_once(trap: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    trap(path)
    with pytest.raises(OSError, match=r"symbolic link|no regular file|second name"):
        open_for_append(path)
    assert not (tmp_path / "target").exists(), "a link's target is not made"


def test_a_device_is_refused() -> None:
    with pytest.raises(OSError, match="no regular file"):
        open_for_append(Path("/dev/null"))


def test_a_new_file_is_for_owner_and_group(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    descriptor = open_for_append(path)
    assert is_named(descriptor, path)
    assert path.stat().st_mode & 0o037 == 0
    path.rename(tmp_path / "worker.log.1")
    assert not is_named(descriptor, path)
    path.symlink_to(tmp_path / "worker.log.1")
    assert not is_named(descriptor, path), "a link to the file is not the file"
    os.close(descriptor)


@traps
def test_a_worker_does_not_start_with_a_trap_for_a_log(trap: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    trap(path)
    with pytest.raises(ConfigurationError, match=r"\[logging\] file: cannot open .*worker\.log.*leave file empty"):
        logs.configure(LoggingSettings(file=path))


@traps
def test_a_trap_at_the_rotation_leaves_the_old_file_in_use(
    trap: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, moved = tmp_path / "worker.log", tmp_path / "worker.log.1"
    logs.configure(LoggingSettings(file=path))
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    path.rename(moved)
    trap(path)
    log.info("one")
    logs.reopen_files()
    log.info("two")
    assert [json.loads(line)["message"] for line in moved.read_text().splitlines()] == ["one", "two"]
    assert told.getvalue().count("cannot go on in") == 1
    path.unlink()
    log.info("three")
    assert "three" in path.read_text(), "and the next file is used as soon as it is one"


@traps
def test_a_trap_for_the_audit_is_told_and_nothing_is_lost(trap: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    trap(path)
    now = [0.0]
    file = AuditFile(path, required=True, monotonic=lambda: now[0])
    file.append([{"kind": "delivery"}])
    assert not file.ready()
    assert file.problem is not None and ("link" in file.problem or "regular" in file.problem or "name" in file.problem)
    path.unlink()
    now[0] += 2.0
    assert file.ready()
    file.close()
    assert path.read_text().count("delivery") == 1


@pytest.mark.parametrize("trap", [fifo, link])
def test_doctor_names_a_trap(trap: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    trap(path)
    [finding] = log_files(LoggingSettings(file=path))
    assert (finding.check, finding.level) == ("log.file", Level.FAILED)
    assert "link or no regular file" in finding.found
