"""Blows to the nodes of a cluster and to the workers on them, and the shop that writes to one of the nodes."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pymysql
import pymysql.err
from chaos.fleet import Fleet
from chaos.world import Blow, World
from support.waiting import eventually

from cluster.galera import Galera
from cluster.nodes import JOIN_SECONDS, Cluster, Node
from zithara_worker.errors import DatabaseUnavailable

#: Seconds that a statement of the shop waits for its answer.
ANSWER_SECONDS = 8
#: Seconds between two blows; how long a node stays stopped, killed, behind the others, or without the majority.
BLOW_SECONDS = (1.0, 3.0)
STOP_SECONDS = (3.0, 9.0)
AWAY_SECONDS = (0.0, 3.0)
LAG_SECONDS = (3.0, 6.0)
MINORITY_SECONDS = (7.0, 10.0)


class Writer:
    """The node that the shop writes to, kept while it serves, as a proxy in front of a cluster does."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = list(nodes)
        self.current = nodes[0]
        self._lock = threading.Lock()

    def connect(self, database: str | None = None, **settings: Any) -> pymysql.connections.Connection[Any]:
        """A session at that node, or at the next one that serves. Raises DatabaseUnavailable."""
        with self._lock:
            if not self.current.takes_writes:
                self.current = next((node for node in self._nodes if node.takes_writes), self.current)
            node = self.current
        limits = {"read_timeout": ANSWER_SECONDS, "write_timeout": ANSWER_SECONDS}
        try:
            return node.connect(database, **{**limits, **settings})
        except pymysql.err.Error as error:
            raise DatabaseUnavailable(str(error)) from error

    def move(self, node: Node) -> None:
        """The shop goes to this node with its next connection."""
        with self._lock:
            self.current = node

    @property
    def running(self) -> bool:
        return any(node.running for node in self._nodes)

    @property
    def version(self) -> str:
        return self.current.version


class Striker:
    """Strikes what `plan` says, in an order drawn from `seed`. After each blow the cluster becomes whole again."""

    def __init__(
        self, world: World, fleet: Fleet, cluster: Cluster, writer: Writer, plan: Sequence[Blow], *, seed: int
    ) -> None:
        self._world = world
        self._fleet = fleet
        self._cluster = cluster
        self._writer = writer
        self._random = random.Random(seed)
        self._plan = list(plan)
        self._random.shuffle(self._plan)
        self.done: Counter[Blow] = Counter()
        #: Blow -> longest time until the cluster was whole again, seconds
        self.recovery: dict[Blow, float] = {}

    def run(self, stop: threading.Event) -> None:
        strikes: dict[Blow, Callable[[], None]] = {
            Blow.KILL: self._kill_worker,
            Blow.NODE_KILLED: self._kill_node,
            Blow.NODE_STOPPED: self._stop_node,
            Blow.NO_MAJORITY: self._take_the_majority,
            Blow.NODE_RESTARTED: self._restart_all,
            Blow.NODE_LAGS: self._let_a_node_lag,
            Blow.SWITCH: self._switch,
        }
        started = time.monotonic()
        for blow in self._plan:
            pause_until = time.monotonic() + self._random.uniform(*BLOW_SECONDS)
            while time.monotonic() < pause_until and not stop.wait(0.1):
                self._fleet.look_after()
            if stop.is_set():
                return
            at = time.monotonic()
            print(f"{at - started:7.1f} s  {blow.value}", flush=True)
            strikes[blow]()
            struck = time.monotonic()
            self._cluster.wait_until_whole()
            until = time.monotonic()
            self._world.befell(blow, None, at, until)
            self.done[blow] += 1
            self.recovery[blow] = max(self.recovery.get(blow, 0.0), until - struck)

    def _kill_worker(self) -> None:
        self._random.choice(self._fleet.workers).replace()

    def _kill_node(self) -> None:
        node = self._random.choice(self._cluster.nodes)
        node.kill()
        time.sleep(self._random.uniform(*AWAY_SECONDS))  # that long the node is away
        node.start()

    def _stop_node(self) -> None:
        node = self._random.choice(self._cluster.nodes)
        node.freeze()
        time.sleep(self._random.uniform(*STOP_SECONDS))
        node.thaw()

    def _take_the_majority(self) -> None:
        """Two of three are stopped: the third takes no writes."""
        stopped = self._random.sample(self._cluster.nodes, 2)
        (left,) = (node for node in self._cluster.nodes if node not in stopped)
        for node in stopped:
            node.freeze()
        eventually(lambda: not self._cluster.has_majority(left), within=30)
        time.sleep(self._random.uniform(*MINORITY_SECONDS) / 2)
        for node in stopped:
            node.thaw()

    def _restart_all(self) -> None:
        """One after the other, in order, as at an upgrade."""
        for node in self._cluster.nodes:
            node.restart()
            eventually(lambda node=node: node.serves, within=JOIN_SECONDS)

    def _let_a_node_lag(self) -> None:
        """It goes on reading, and applies nothing: what others have committed is not there yet."""
        assert isinstance(self._cluster, Galera)
        self._cluster.lag(self._random.choice(self._cluster.nodes), self._random.uniform(*LAG_SECONDS))

    def _switch(self) -> None:
        node = self._random.choice([node for node in self._cluster.nodes if node is not self._writer.current])
        self._cluster.switch(node)
        self._writer.move(node)
