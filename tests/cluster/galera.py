"""A Galera cluster of private nodes on this machine's loopback."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import pymysql.err
from support.waiting import eventually

from zithara_worker.errors import DatabaseUnavailable, ShopError
from zithara_worker.sandbox.mariadb import MariaDbServer, free_port

#: Where Debian's package galera-4 has the provider.
PROVIDER = Path("/usr/lib/galera/libgalera_smm.so")
#: Seconds without an answer after which the others exclude a node. Galera's own defaults are 5 and 15.
SUSPECT_SECONDS = 2
INACTIVE_SECONDS = 5
#: Seconds in which a node must have joined, a copy of the whole data included.
JOIN_SECONDS = 90.0


class Node(MariaDbServer):
    """One node. `ports`: for each node those of the group, of incremental and of full state transfers."""

    def __init__(self, number: int, ports: Sequence[tuple[int, int, int]], *, creates: bool) -> None:
        super().__init__(tcp=True, start_timeout_seconds=JOIN_SECONDS)
        self.number = number
        self.is_frozen = False
        group, incremental, full = ports[number]
        provider = {
            "gmcast.listen_addr": f"tcp://127.0.0.1:{group}",
            "ist.recv_addr": f"127.0.0.1:{incremental}",
            "evs.keepalive_period": "PT0.5S",
            "evs.suspect_timeout": f"PT{SUSPECT_SECONDS}S",
            "evs.inactive_timeout": f"PT{INACTIVE_SECONDS}S",
            "gcache.size": "64M",
        }
        self._joins = (
            "--wsrep-on=ON",
            f"--wsrep-provider={PROVIDER}",
            "--binlog-format=ROW",
            "--innodb-autoinc-lock-mode=2",
            "--wsrep-cluster-name=zithara",
            f"--wsrep-node-name=node{number + 1}",
            f"--wsrep-node-address=127.0.0.1:{group}",
            f"--wsrep-sst-receive-address=127.0.0.1:{full}",
            "--wsrep-sst-method=rsync",
            "--wsrep-slave-threads=2",
            f"--wsrep-cluster-address=gcomm://{','.join(f'127.0.0.1:{each[0]}' for each in ports)}",
            f"--wsrep-provider-options={';'.join(f'{name}={value}' for name, value in provider.items())}",
        )
        self.options = (*self._joins, "--wsrep-new-cluster") if creates else self._joins

    def start(self) -> None:
        super().start()
        self.options = self._joins
        self.is_frozen = False

    def freeze(self) -> None:
        """SIGSTOP: the process keeps its connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        self.is_frozen = True

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self.is_frozen = False

    def status(self, name: str) -> str:
        """A status variable such as wsrep_cluster_status. Raises DatabaseUnavailable."""
        with self.connect(read_timeout=5) as connection, connection.cursor() as cursor:
            cursor.execute("SHOW STATUS WHERE Variable_name = %s", (name,))
            row = cursor.fetchone()
            return str(row[1]) if row else ""

    @property
    def serves(self) -> bool:
        """Whether it belongs to the majority and has caught up."""
        if self.is_frozen or not self.running:
            return False
        try:
            return self.status("wsrep_ready") == "ON" and self.status("wsrep_local_state_comment") == "Synced"
        except (DatabaseUnavailable, pymysql.err.Error):
            return False


class Galera:
    """Three nodes. As a context manager they run from entry to exit, and leave nothing."""

    def __init__(self, count: int = 3) -> None:
        if not PROVIDER.exists():
            raise ShopError(f"there is no {PROVIDER}: install the Debian package galera-4")
        ports = [(free_port(), free_port(), free_port()) for _ in range(count)]
        self.nodes = [Node(number, ports, creates=number == 0) for number in range(count)]

    def __enter__(self) -> Galera:
        try:
            first, *others = self.nodes
            first.start()
            with ThreadPoolExecutor() as threads:
                # The first node gives its data to one after the other; making their directories takes as long again.
                list(threads.map(Node.start, others))
            self.wait_until_whole()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def wait_until_whole(self, within: float = JOIN_SECONDS) -> None:
        """Until every node serves and sees all the others."""
        size = str(len(self.nodes))
        eventually(
            lambda: all(node.serves and node.status("wsrep_cluster_size") == size for node in self.nodes), within=within
        )
