"""A replication group of private MySQL servers on this machine's loopback, in single-primary mode."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import ClassVar

import pymysql.err
from chaos.world import Blow

from cluster.nodes import Cluster, Node
from zithara_worker.errors import DatabaseUnavailable
from zithara_worker.sandbox.private_server import free_port

#: Recovers a member from another one; the password never leaves this machine.
_ACCOUNT = ("recovery", "recovery-of-the-sandbox")
_STATE = (
    "SELECT MEMBER_STATE, MEMBER_ROLE FROM performance_schema.replication_group_members WHERE MEMBER_ID = @@server_uuid"
)


class Member(Node):
    """One server of the group. `ports`: on which each of them talks to the others."""

    def __init__(self, number: int, ports: Sequence[int], group: str) -> None:
        super().__init__(number)
        self._joined = False
        self.options = (
            "--performance-schema=ON",
            "--log-bin=binlog",
            "--gtid-mode=ON",
            "--enforce-gtid-consistency=ON",
            f"--server-id={number + 1}",
            "--report-host=127.0.0.1",
            # Without it a member that has restarted and not joined yet takes writes of its own, as any server does.
            "--super-read-only=ON",
            "--plugin-load-add=group_replication.so",
            f"--loose-group-replication-group-name={group}",
            "--loose-group-replication-start-on-boot=OFF",
            "--loose-group-replication-single-primary-mode=ON",
            "--loose-group-replication-communication-stack=XCOM",
            f"--loose-group-replication-local-address=127.0.0.1:{ports[number]}",
            f"--loose-group-replication-group-seeds={','.join(f'127.0.0.1:{port}' for port in ports)}",
            "--loose-group-replication-recovery-get-public-key=ON",
        )

    def start(self) -> None:
        super().start()
        self.is_frozen = False
        with self.connect() as session, session.cursor() as cursor:
            if not self._joined:
                cursor.execute("SET GLOBAL super_read_only = OFF")
                cursor.execute("SET sql_log_bin = 0")
                cursor.execute("CREATE USER %s@'%%' IDENTIFIED BY %s", _ACCOUNT)
                cursor.execute("GRANT REPLICATION SLAVE, CONNECTION_ADMIN ON *.* TO %s@'%%'", _ACCOUNT[:1])
                cursor.execute(
                    "CHANGE REPLICATION SOURCE TO SOURCE_USER = %s, SOURCE_PASSWORD = %s "
                    "FOR CHANNEL 'group_replication_recovery'",
                    _ACCOUNT,
                )
                cursor.execute("SET sql_log_bin = 1")
            bootstraps = self.number == 0 and not self._joined
            if bootstraps:
                cursor.execute("SET GLOBAL group_replication_bootstrap_group = ON")
            if self._joined:
                # Refused (3092) until the group has expelled what this server was before; the operator tries again.
                with suppress(pymysql.err.Error):
                    cursor.execute("START GROUP_REPLICATION")
            else:
                cursor.execute("START GROUP_REPLICATION")
            if bootstraps:
                cursor.execute("SET GLOBAL group_replication_bootstrap_group = OFF")
        self._joined = True

    def members(self) -> int:
        found = self.ask(
            "SELECT COUNT(*) FROM performance_schema.replication_group_members WHERE MEMBER_STATE = 'ONLINE'"
        )
        return int(found[0][0])

    def rejoin(self) -> None:
        """What an operator does with a member that the group has expelled."""
        for statement in ("STOP GROUP_REPLICATION", "START GROUP_REPLICATION"):
            with suppress(pymysql.err.Error, DatabaseUnavailable):
                self.ask(statement)

    @property
    def takes_writes(self) -> bool:
        return self.serves and self.ask(_STATE)[0][1] == "PRIMARY"

    @property
    def is_expelled(self) -> bool:
        try:
            found = self.ask(_STATE)
        except (DatabaseUnavailable, pymysql.err.Error):
            return False
        return not found or found[0][0] in ("ERROR", "OFFLINE")

    def _serves(self) -> bool:
        found = self.ask(_STATE)
        return bool(found) and found[0][0] == "ONLINE"


class Group(Cluster):
    name = "Group Replication"
    plan: ClassVar[Mapping[Blow, tuple[int, int]]] = {
        Blow.KILL: (4, 1),
        Blow.NODE_KILLED: (2, 0),
        Blow.NODE_STOPPED: (2, 0),
        Blow.NO_MAJORITY: (1, 1),
        Blow.NODE_RESTARTED: (1, 0),
        Blow.SWITCH: (3, 1),
    }
    nodes: list[Member]

    def __init__(self, count: int = 3) -> None:
        ports = [free_port() for _ in range(count)]
        group = str(uuid.uuid4())
        super().__init__([Member(number, ports, group) for number in range(count)])

    def wait_until_whole(self, within: float = 120.0) -> None:
        deadline = time.monotonic() + within
        while True:
            try:
                super().wait_until_whole(5.0)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                for member in self.nodes:
                    if member.is_expelled:
                        member.rejoin()
            else:
                return

    def has_majority(self, node: Node) -> bool:
        return isinstance(node, Member) and node.members() > len(self.nodes) // 2

    def switch(self, node: Node) -> None:
        node.ask("SELECT group_replication_set_as_primary(%s)", node.ask("SELECT @@server_uuid")[0][0])

    def conflicts(self) -> int:
        found = self.nodes[0].ask(
            "SELECT SUM(COUNT_CONFLICTS_DETECTED) FROM performance_schema.replication_group_member_stats"
        )
        return int(found[0][0] or 0)
