"""The private server keeps what was committed, whatever happens to its process, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pymysql
import pytest
from support.waiting import eventually

from zithara_worker.errors import ConfigurationError, DatabaseUnavailable, ShopError
from zithara_worker.sandbox import mariadb as mariadb_module
from zithara_worker.sandbox.mariadb import MariaDbServer


def test_committed_rows_survive_kill_and_restart() -> None:
    with MariaDbServer() as server:
        with server.connect() as root, root.cursor() as cursor:
            cursor.execute("CREATE DATABASE kept")
            cursor.execute("CREATE TABLE kept.word (word VARCHAR(20)) ENGINE=InnoDB")
            cursor.execute("INSERT INTO kept.word VALUES ('committed')")
        before = server.pid

        server.kill()
        with pytest.raises(DatabaseUnavailable, match="refuses"):
            server.connect()
        server.restart()

        assert server.pid != before
        with server.connect("kept") as root, root.cursor() as cursor:
            cursor.execute("SELECT word FROM word")
            assert cursor.fetchall() == (("committed",),)


def test_port_stays_over_a_restart() -> None:
    with MariaDbServer(tcp=True) as server:
        with server.connect() as root, root.cursor() as cursor:  # MySQL makes root for its socket only
            cursor.execute("CREATE USER guest@'127.0.0.1'")
        port = server.tcp_port
        server.restart()
        assert server.tcp_port == port
        with pymysql.connect(host="127.0.0.1", port=port or 0, user="guest", password="") as guest:
            assert guest.open


def test_nothing_is_left_after_the_end() -> None:
    with MariaDbServer() as server:
        directory, pid = server.directory, server.pid
    assert not directory.exists()
    assert not Path(f"/proc/{pid}").exists()


def has_ended(pid: int) -> bool:
    """Gone, or a zombie: in a container nobody may be there to reap an orphan."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_nothing_is_left_when_the_program_that_started_it_is_killed() -> None:
    program = (
        "from zithara_worker.sandbox.mariadb import MariaDbServer\n"
        "server = MariaDbServer()\n"
        "server.start()\n"
        "print(server.pid, server.directory, flush=True)\n"
        "input()\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None
        pid, directory = owner.stdout.readline().split()
        owner.send_signal(signal.SIGKILL)
    eventually(lambda: has_ended(int(pid)), within=10)
    eventually(lambda: not Path(directory).exists(), within=10)


def test_session_speaks_utc_though_the_server_lives_elsewhere(mariadb: MariaDbServer) -> None:
    with mariadb.connect() as root, root.cursor() as cursor:
        cursor.execute("SELECT @@global.time_zone, @@session.time_zone, TIMESTAMPDIFF(SECOND, UTC_TIMESTAMP(), NOW())")
        assert cursor.fetchone() == ("+05:30", "+00:00", 0)


def test_strict_mode_is_the_default(mariadb: MariaDbServer) -> None:
    with mariadb.connect() as root, root.cursor() as cursor:
        cursor.execute("SELECT @@sql_mode")
        assert "STRICT_TRANS_TABLES" in cursor.fetchone()[0]


def test_machine_without_a_server_is_told_the_package_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(mariadb_module.SERVER_VARIABLE, raising=False)
    monkeypatch.setattr(mariadb_module, "_SEARCH_PATH", str(tmp_path))
    with pytest.raises(ShopError, match="apt-get install mariadb-server") as caught, MariaDbServer():
        pass
    assert "\n" not in str(caught.value)


def test_variable_that_names_no_program_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(mariadb_module.SERVER_VARIABLE, str(tmp_path / "mysqld"))
    with pytest.raises(ConfigurationError, match="ZITHARA_SANDBOX_SERVER"), MariaDbServer():
        pass


def test_server_that_cannot_start_shows_its_log_and_leaves_nothing() -> None:
    server = MariaDbServer(options=["--no-such-option=1"])
    with pytest.raises(ShopError, match="no-such-option"):
        server.start()
    assert not server.running
    with pytest.raises(DatabaseUnavailable):
        _ = server.directory


def test_data_belong_to_the_account_that_the_server_runs_as(mariadb: MariaDbServer) -> None:
    owner = (mariadb.directory / "data").stat().st_uid
    running_as = Path(f"/proc/{mariadb.pid}").stat().st_uid
    assert owner == running_as
    assert (os.geteuid() == 0) or owner == os.geteuid()
