"""Runs a shop on a cluster, does to it what clusters suffer, and says what became of every message.

scripts/test-cluster
scripts/test-cluster --short
scripts/with-server sid scripts/test-cluster        Group Replication, where the server is MySQL
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from chaos.account import judge, report
from chaos.ending import DRAIN_SECONDS, drained, leftovers, rows, show_logs
from chaos.fleet import Fleet, write_config
from chaos.host import Host
from chaos.publishers import Published, PublisherThread, groups
from chaos.world import World

from cluster.galera import Galera
from cluster.group import Group
from cluster.nodes import Cluster
from cluster.strikes import Striker, Writer
from zithara_worker.sandbox.mariadb import find_server
from zithara_worker.sandbox.session import interruptible
from zithara_worker.sandbox.shop import Shop

#: Messages, their groups, publishers, workers; and with --short. Publishing goes on for so many seconds.
ATTEMPT_LIMIT = 8
MESSAGES, GROUPS, PUBLISHERS, WORKERS, SECONDS = (8000, 600), (600, 90), (3, 2), (6, 3), (230.0, 24.0)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/test-cluster", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1, help="what is done to whom, and in which order (1)")
    parser.add_argument("--short", action="store_true", help="about a minute")
    options = parser.parse_args(arguments)
    with interruptible(), tempfile.TemporaryDirectory(prefix="zithara-cluster-") as directory:
        try:
            cluster = Galera() if "mariadb" in find_server().name else Group()
            good = _run(cluster, Path(directory), seed=options.seed, short=options.short)
        except KeyboardInterrupt:
            print("test-cluster: interrupted; everything is removed", file=sys.stderr)
            return 130
    return 0 if good else 1


def _run(cluster: Cluster, directory: Path, *, seed: int, short: bool) -> bool:
    started = time.monotonic()
    plan = [blow for blow, times in cluster.plan.items() for _ in range(times[short])]
    published, stop = Published(), threading.Event()
    world = World()
    slots = WORKERS[short]
    with cluster, Host(world, slots=slots, seed=seed) as host:
        host.calm = True  # what is judged here is the database
        writer = Writer(cluster.nodes)
        shop = Shop(writer)  # type: ignore[arg-type]  # all that a shop asks of its server
        with shop:
            client_id, client_secret = host.client
            shop.configure_webhook(client_id=client_id, client_secret=client_secret)
            print(
                f"\n{cluster.name}, {len(cluster.nodes)} nodes of {writer.version}, {slots} workers, seed {seed}",
                flush=True,
            )

            def own_node_first(slot: int) -> dict[str, str]:
                ordered = [cluster.nodes[(slot + number) % len(cluster.nodes)] for number in range(len(cluster.nodes))]
                hosts = ",".join(f"127.0.0.1:{node.tcp_port}" for node in ordered)
                return {"ZITHARA_WORKER_DATABASE_HOST": hosts}

            account = {"user": shop.user, "password": shop.password, "name": shop.name}
            config = write_config(directory / "zithara-worker.conf", account, attempt_limit=ATTEMPT_LIMIT)
            with Fleet(config, host, directory, slots=slots, environment=own_node_first) as fleet:
                publishers = _publishers(shop, published, stop, seed=seed, short=short)
                striker = Striker(world, fleet, cluster, writer, plan, seed=seed)
                try:
                    for publisher in publishers:
                        publisher.start()
                    striker.run(stop)
                    for publisher in publishers:
                        publisher.join()
                    left = drained(shop, published, fleet, stop)
                finally:
                    stop.set()
                findings = [f"publisher failed: {each.failed!r}" for each in publishers if each.failed]
                if left:
                    findings.append(f"{left} messages are not settled {DRAIN_SECONDS:g} s after the last blow")
                fleet.stop(within=30)
                findings += fleet.died
            conflicts = cluster.conflicts()
            verdict = judge(rows(shop, published, ()), world)
            findings += leftovers(shop)
    print(report(verdict, striker.done))
    print(
        f"conflicts         {conflicts:>8}  transactions that lost against another node, as far as the nodes still know"
    )
    print("whole again       " + ", ".join(f"{blow.value} {took:.1f} s" for blow, took in striker.recovery.items()))
    print(f"time              {time.monotonic() - started:>8.0f}  s")
    for finding in findings:
        print(f"FINDING: {finding}")
    if findings or not verdict.good:
        show_logs(directory, verdict)
        return False
    print("Nothing lost, nothing out of order, every duplicate explained.")
    return True


def _publishers(
    shop: Shop, published: Published, stop: threading.Event, *, seed: int, short: bool
) -> list[PublisherThread]:
    every, count = groups(GROUPS[short]), PUBLISHERS[short]
    return [
        PublisherThread(
            shop,
            published,
            mine=every[number::count],
            messages=MESSAGES[short] // count,
            seconds=SECONDS[short],
            seed=seed * 1000 + number,
            stop=stop,
        )
        for number in range(count)
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
