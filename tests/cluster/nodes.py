"""What a Galera cluster and a replication group have in common, for whoever strikes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, ClassVar

import pymysql.err
from chaos.world import Blow
from support.waiting import eventually

from zithara_worker.errors import DatabaseUnavailable
from zithara_worker.sandbox.mariadb import MariaDbServer

#: Seconds in which a node must have joined, a copy of the whole data included.
JOIN_SECONDS = 120.0


class Node(MariaDbServer, ABC):
    """One server of a cluster."""

    def __init__(self, number: int) -> None:
        super().__init__(tcp=True, start_timeout_seconds=JOIN_SECONDS)
        self.number = number
        self.is_frozen = False

    def freeze(self) -> None:
        super().freeze()
        self.is_frozen = True

    def thaw(self) -> None:
        super().thaw()
        self.is_frozen = False

    def ask(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Runs one statement as root. Raises DatabaseUnavailable or an error of pymysql."""
        with self.connect(read_timeout=JOIN_SECONDS) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall())

    @property
    def serves(self) -> bool:
        """Whether it belongs to the majority and has caught up."""
        if self.is_frozen or not self.running:
            return False
        try:
            return self._serves()
        except (DatabaseUnavailable, pymysql.err.Error):
            return False

    @property
    def takes_writes(self) -> bool:
        return self.serves

    @abstractmethod
    def members(self) -> int:
        """How many nodes it sees in its cluster, itself included."""

    @abstractmethod
    def _serves(self) -> bool:
        """As `serves`. Raises DatabaseUnavailable or an error of pymysql."""


class Cluster(ABC):
    """Some nodes. As a context manager they run from entry to exit, and leave nothing."""

    name: ClassVar[str]
    #: Blow -> how often, and how often in a short run
    plan: ClassVar[Mapping[Blow, tuple[int, int]]]

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = list(nodes)

    def __enter__(self) -> Cluster:
        try:
            first, *others = self.nodes
            first.start()
            if others:
                with ThreadPoolExecutor(len(others)) as threads:
                    list(threads.map(type(first).start, others))
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
        count = len(self.nodes)
        eventually(lambda: all(node.serves and node.members() == count for node in self.nodes), within=within)

    @abstractmethod
    def has_majority(self, node: Node) -> bool:
        """Whether this node sees more than half of them."""

    @abstractmethod
    def switch(self, node: Node) -> None:
        """From now on this node is to be written to."""

    @abstractmethod
    def conflicts(self) -> int:
        """Transactions that lost against one of another node, as far as the nodes still know."""
