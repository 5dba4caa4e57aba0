"""A Galera cluster of private nodes on this machine's loopback."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from chaos.world import Blow

from cluster.nodes import Cluster, Node
from zithara_worker.errors import ShopError
from zithara_worker.sandbox.private_server import free_port

#: Where Debian's package galera-4 has the provider.
PROVIDER = Path("/usr/lib/galera/libgalera_smm.so")
#: Seconds without an answer after which the others exclude a node. Galera's own defaults are 5 and 15.
SUSPECT_SECONDS = 2
INACTIVE_SECONDS = 5


class GaleraNode(Node):
    """One node. `ports`: for each node those of the group, of incremental and of full state transfers."""

    def __init__(self, number: int, ports: Sequence[tuple[int, int, int]]) -> None:
        super().__init__(number)
        group, incremental, full = ports[number]
        provider = {
            "gmcast.listen_addr": f"tcp://127.0.0.1:{group}",
            "ist.recv_addr": f"127.0.0.1:{incremental}",
            "evs.keepalive_period": "PT0.5S",
            "evs.suspect_timeout": f"PT{SUSPECT_SECONDS}S",
            "evs.inactive_timeout": f"PT{INACTIVE_SECONDS}S",
            "gcache.size": "64M",
        }
        if len(ports) == 1:
            # Nobody else can bring the majority back: the statement that takes it away would wait for 30 s.
            provider["pc.wait_prim_timeout"] = "PT1S"
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
        # The first start of the first node makes the cluster; every other start joins it.
        self.options = self._joins if number else (*self._joins, "--wsrep-new-cluster")

    def start(self) -> None:
        super().start()
        self.options = self._joins
        self.is_frozen = False

    def status(self, name: str) -> str:
        """A status variable such as wsrep_cluster_status."""
        found = self.ask("SHOW STATUS WHERE Variable_name = %s", name)
        return str(found[0][1]) if found else ""

    def members(self) -> int:
        return int(self.status("wsrep_cluster_size") or 0)

    def _serves(self) -> bool:
        return self.status("wsrep_ready") == "ON" and self.status("wsrep_local_state_comment") == "Synced"


class Galera(Cluster):
    name = "Galera"
    plan: ClassVar[Mapping[Blow, tuple[int, int]]] = {
        Blow.KILL: (6, 1),
        Blow.NODE_KILLED: (3, 0),
        Blow.NODE_STOPPED: (4, 0),
        Blow.NO_MAJORITY: (3, 1),
        Blow.NODE_RESTARTED: (1, 0),
        Blow.NODE_LAGS: (4, 1),
        Blow.SWITCH: (2, 1),
    }
    nodes: list[GaleraNode]

    def __init__(self, count: int = 3) -> None:
        if not PROVIDER.exists():
            raise ShopError(f"there is no {PROVIDER}: install the Debian package galera-4")
        ports = [(free_port(), free_port(), free_port()) for _ in range(count)]
        super().__init__([GaleraNode(number, ports) for number in range(count)])

    def has_majority(self, node: Node) -> bool:
        return isinstance(node, GaleraNode) and node.status("wsrep_cluster_status") == "Primary"

    def switch(self, node: Node) -> None:
        """Each node takes writes at any time."""

    def lag(self, node: Node, seconds: float) -> None:
        """For so long the node goes on reading and applies nothing."""
        with node.connect() as session, session.cursor() as cursor:
            cursor.execute("SET GLOBAL wsrep_desync = ON")
            cursor.execute("FLUSH TABLES WITH READ LOCK")
            time.sleep(seconds)
            cursor.execute("UNLOCK TABLES")
            cursor.execute("SET GLOBAL wsrep_desync = OFF")

    def conflicts(self) -> int:
        names = ("wsrep_local_cert_failures", "wsrep_local_bf_aborts")
        return sum(int(node.status(name) or 0) for node in self.nodes for name in names)
