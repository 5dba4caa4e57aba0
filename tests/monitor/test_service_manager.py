"""The service manager hears what it needs, through a real socket."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.processes import WorkerProcess

from zithara_worker.monitor.service_manager import ServiceManager
from zithara_worker.sandbox.shop import Shop


class Manager:
    """A service manager's end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.settimeout(10)

    def next(self) -> dict[str, str]:
        """The next datagram's states; TimeoutError when none comes."""
        lines = self._socket.recv(4096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def until(self, state: str) -> list[dict[str, str]]:
        """Everything up to the datagram that has this state, itself the last."""
        heard = [self.next()]
        while state not in heard[-1]:
            heard.append(self.next())
        return heard

    def silent(self) -> bool:
        return not select.select([self._socket], [], [], 0)[0]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


def test_without_a_service_manager_nothing_is_sent_and_nothing_fails() -> None:
    service_manager = ServiceManager.from_environment({})
    service_manager.ready("works")
    service_manager.alive()
    service_manager.stopping(within_seconds=1)
    assert service_manager.interval_seconds is None


def test_signs_of_life_come_at_a_third_of_the_watchdogs_patience(manager: Manager) -> None:
    now = [100.0]
    service_manager = ServiceManager(manager.address, watchdog_seconds=30, monotonic=lambda: now[0])
    assert service_manager.interval_seconds == 10
    service_manager.ready("works")
    assert manager.next() == {"READY": "1", "WATCHDOG": "1", "STATUS": "works"}
    now[0] += 9.9
    service_manager.alive()
    assert manager.silent()
    now[0] += 0.2
    service_manager.alive()
    service_manager.alive()
    assert manager.next() == {"WATCHDOG": "1"}
    assert manager.silent()


def test_waiting_is_ready_the_first_time_and_a_status_afterwards(manager: Manager) -> None:
    service_manager = ServiceManager(manager.address)
    service_manager.waiting("waits for\nthe database")
    assert manager.next()["READY"] == "1"
    service_manager.waiting("still waits")
    assert manager.next() == {"STATUS": "still waits"}


def test_stopping_asks_for_the_time_it_needs(manager: Manager) -> None:
    ServiceManager(manager.address).stopping(within_seconds=45)
    assert manager.next() == {"STOPPING": "1", "STATUS": "stopping", "EXTEND_TIMEOUT_USEC": "45000000"}


def test_watchdog_of_another_process_is_not_ours() -> None:
    environment = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "3000000"}
    assert ServiceManager.from_environment(environment).interval_seconds == 1
    ours = ServiceManager.from_environment({**environment, "WATCHDOG_PID": str(os.getpid())})
    assert ours.interval_seconds == 1
    other = ServiceManager.from_environment({**environment, "WATCHDOG_PID": str(os.getpid() + 1)})
    assert other.interval_seconds is None


def test_abstract_sockets_are_reached() -> None:
    name = f"zithara-notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        listener.settimeout(10)
        ServiceManager("@" + name).ready("works")
        assert listener.recv(100).startswith(b"READY=1")


def test_service_manager_that_is_gone_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ServiceManager(str(tmp_path / "nobody")).ready("works")
    assert [record.__dict__["event"] for record in caplog.records] == ["notify_failed"]


def test_worker_tells_its_whole_life(worker_config: Callable[..., Path], shop: Shop, manager: Manager) -> None:
    # A rest of an hour between two polls must not starve the watchdog.
    config = worker_config(worker={"poll_interval": "3600", "lease": "7200", "shutdown_timeout": "7"})
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "300000"}
    with WorkerProcess(config, "consume", "--all", environment=environment) as worker:
        assert manager.until("READY")[-1]["STATUS"].startswith("takes zithara.")
        assert manager.next() == {"WATCHDOG": "1"}
        worker.send_signal(signal.SIGHUP)
        assert manager.until("RELOADING")[-1]["MONOTONIC_USEC"].isdigit()
        manager.until("READY")
        worker.terminate()
        assert manager.until("STOPPING")[-1]["EXTEND_TIMEOUT_USEC"] == "22000000"
        assert worker.wait() == 0


def test_worker_that_waits_for_its_database_is_ready_and_alive(
    worker_config: Callable[..., Path], tmp_path: Path, manager: Manager
) -> None:
    config = worker_config(database={"unix_socket": str(tmp_path / "no-server")})
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "300000"}
    with WorkerProcess(config, "consume", "--all", environment=environment) as worker:
        assert manager.until("READY")[-1]["STATUS"] == "waits for the database"
        manager.until("WATCHDOG")
        worker.terminate()
        assert worker.wait() == 0
