"""The addresses of the database's servers, in the order in which they are tried.

A cluster without an address that moves is named by its servers. One of them is written to, and kept while it serves:
sessions that share `Addresses` follow each other to the same server. Knows no driver.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zithara_worker.errors import DatabaseRefused, DatabaseUnavailable, ZitharaWorkerError
from zithara_worker.settings.sections import DatabaseSettings
from zithara_worker.settings.values import is_loopback, split_hosts

log = logging.getLogger(__name__)

DEFAULT_PORT = 3306


@dataclass(frozen=True, slots=True)
class Address:
    """Where one server listens: a host and a port, or a socket file on this host."""

    host: str = ""
    port: int = DEFAULT_PORT
    unix_socket: str = ""

    def __str__(self) -> str:
        """'db1:3306', '[::1]:3306' or the path of the socket."""
        return self.unix_socket or f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether the server is on this host, so that no network needs encryption."""
        return bool(self.unix_socket) or is_loopback(self.host)


class Addresses:
    """The addresses that [database] host and unix_socket name. May be shared by sessions of several threads."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self.all = _addresses(settings)
        self._lock = threading.Lock()
        #: The one that served last; before the first connection, the first
        self._preferred = self.all[0]
        self._served = False

    @property
    def several(self) -> bool:
        return len(self.all) > 1

    def in_order(self) -> Sequence[Address]:
        """The one that served last, and then the others in the order of the setting."""
        with self._lock:
            return [self._preferred, *(each for each in self.all if each != self._preferred)]

    def serves(self, address: Address) -> None:
        """A session was opened there: the next one is tried there first."""
        with self._lock:
            moved = not self._served or address != self._preferred
            self._preferred, self._served = address, True
        if moved and self.several:
            log.info("uses this server of the database", extra={"event": "database_server", "server": str(address)})


def why_not_written(variables: Mapping[str, str], status: Mapping[str, str]) -> str:
    """Why a server is left for the next address, by its variables and its state in a cluster; "" if it serves.

    A replica, and a primary that was switched over, are read-only. A Galera node outside the majority answers 1047. A
    member that has restarted and not joined its replication group takes writes that the group never gets.
    """
    if any(variables.get(name, "OFF").upper() not in ("OFF", "0") for name in ("read_only", "super_read_only")):
        return "it is read-only, as a replica is"
    if status.get("wsrep_ready", "ON") != "ON":
        state = status.get("wsrep_cluster_status", "unknown")
        return f"its Galera node is not ready (wsrep_cluster_status {state})"
    if status.get("group_member", "ONLINE") != "ONLINE":
        return f"it is outside its replication group (member state {status['group_member']})"
    return ""


def none_serves(failures: Mapping[Address, ZitharaWorkerError]) -> ZitharaWorkerError:
    """One error for all addresses that were tried: DatabaseRefused only where each of them refuses the user."""
    if len(failures) == 1:
        return next(iter(failures.values()))
    refused = all(isinstance(error, DatabaseRefused) for error in failures.values())
    tried = "; ".join(f"{address}: {error.seen}" for address, error in failures.items())
    return (DatabaseRefused if refused else DatabaseUnavailable)(
        f"none of the {len(failures)} addresses of [database] host serves: {tried}",
        next(iter(failures.values())).remedy,
    )


def _addresses(settings: DatabaseSettings) -> tuple[Address, ...]:
    if settings.unix_socket:
        return (Address(unix_socket=settings.unix_socket),)
    hosts = split_hosts(settings.host)
    return tuple(dict.fromkeys(Address(host, settings.port if port is None else port) for host, port in hosts))
