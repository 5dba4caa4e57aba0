"""The audit file: lines in order, whatever happens to the file, its name and its disk."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.clock import Clock

from zithara_worker.logs import audit
from zithara_worker.logs.audit import AuditFile, operator_action


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def test_lines_are_appended_to_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_text('{"kept":1}\n')
    file = AuditFile(path, utc=lambda: 1_700_000_000.25)
    file.append([{"kind": "delivery"}, {"kind": "operator", "text": 'a "quoted"\nline \udc80'}])
    file.close()
    assert lines(path) == [
        {"kept": 1},
        {"time": "2023-11-14T22:13:20.250Z", "kind": "delivery"},
        {"time": "2023-11-14T22:13:20.250Z", "kind": "operator", "text": 'a "quoted"\nline \udc80'},
    ]


def test_new_file_is_not_for_everybody(tmp_path: Path) -> None:
    file = AuditFile(tmp_path / "audit.log")
    file.append([{"kind": "delivery"}])
    assert (tmp_path / "audit.log").stat().st_mode & 0o007 == 0
    file.close()


def test_rotated_file_is_followed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    file = AuditFile(path)
    file.append([{"n": 1}])
    path.rename(tmp_path / "audit.log.1")
    file.append([{"n": 2}])
    file.close()
    assert [line["n"] for line in lines(tmp_path / "audit.log.1")] == [1]
    assert [line["n"] for line in lines(path)] == [2]


def test_reopen_follows_a_name_that_became_another_file(tmp_path: Path) -> None:
    name, moved = tmp_path / "audit.log", tmp_path / "moved"
    file = AuditFile(name)
    file.append([{"n": 1}])
    name.rename(moved)
    file.reopen()
    file.append([{"n": 2}])
    file.close()
    assert [[line["n"] for line in lines(path)] for path in (moved, name)] == [[1], [2]]


def test_full_disk_keeps_the_lines_and_writes_them_in_order_later(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "audit.log"

    def full(descriptor: int, written: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(audit.os, "write", full)
    file = AuditFile(path, required=True, monotonic=clock)
    assert file.ready()
    file.append([{"n": 1}])
    assert file.problem == "No space left on device" and not file.ready()
    monkeypatch.undo()
    assert not file.ready(), "tried again within a second"
    clock.now += 1.0
    assert file.ready()
    file.append([{"n": 2}])
    file.close()
    assert [line["n"] for line in lines(path)] == [1, 2]
    assert (file.lines_written, file.lines_lost) == (2, 0)
    assert [record.event for record in caplog.records] == ["audit_unwritable", "audit_writable"]  # type: ignore[attr-defined]


def test_lasting_trouble_is_told_once_a_minute(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    file = AuditFile(tmp_path / "no" / "such" / "directory", required=True, monotonic=clock)
    for _ in range(121):
        assert not file.ready()
        clock.now += 1.0
    assert len(caplog.records) == 3
    assert "No such file or directory" in caplog.text and "no messages are taken" in caplog.text


def test_torn_line_is_ended_and_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    path = tmp_path / "audit.log"
    file = AuditFile(path, monotonic=clock)
    write = os.write
    monkeypatch.setattr(audit.os, "write", lambda descriptor, data: write(descriptor, data[:60]))
    file.append([{"n": 1}, {"n": 2}])
    assert file.problem == "only a part could be written"
    monkeypatch.undo()
    clock.now += 1.0
    assert file.ready()
    file.close()
    whole, torn, again = path.read_text().splitlines()
    assert json.loads(whole)["n"] == 1 and json.loads(again)["n"] == 2
    assert again.startswith(torn) and len(torn) < len(again)


def test_little_space_stops_new_work_but_not_the_lines_of_what_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    path = tmp_path / "audit.log"
    monkeypatch.setattr(audit, "RESERVE_BYTES", 1 << 80)
    file = AuditFile(path, required=True, monotonic=clock)
    assert not file.ready()
    file.append([{"n": 1}])
    assert [line["n"] for line in lines(path)] == [1]
    monkeypatch.undo()
    assert file.ready()
    file.close()


def test_lines_that_nobody_may_wait_for_are_bounded_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(audit, "KEPT", 10)
    file = AuditFile(tmp_path / "no" / "audit.log", monotonic=clock)
    file.append([{"n": n} for n in range(25)])
    (tmp_path / "no").mkdir()
    file.close()
    assert [line["n"] for line in lines(tmp_path / "no" / "audit.log")] == list(range(15, 25))
    assert file.lines_lost == 15


def test_lines_left_at_the_end_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = AuditFile(tmp_path / "no" / "audit.log")
    file.append([{"n": 1}])
    file.close()
    assert caplog.records[-1].event == "audit_lost"  # type: ignore[attr-defined]
    assert file.lines_lost == 1


def test_operator_action_says_who_and_what() -> None:
    record = operator_action(
        "retry", who="anna@shop1", topic="zithara.order.events", message_ids=[4, 5], reason="fixed"
    )
    assert record.pop("host")
    assert record == {
        "kind": "operator",
        "action": "retry",
        "who": "anna@shop1",
        "topic": "zithara.order.events",
        "message_ids": [4, 5],
        "reason": "fixed",
    }
    assert operator_action("pause")["who"] == audit.current_user() != ""
