"""Runs the chaos and says what became of every message; exit code 1 when anything is not as promised.

scripts/chaos --seed 1 --messages 20000
scripts/chaos --short
scripts/chaos --relay
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from chaos.account import Row, judge, report
from chaos.ending import DRAIN_SECONDS, drained, leftovers, rows, show_logs
from chaos.fleet import Fleet, Killer, write_config
from chaos.host import Host
from chaos.operator import Operator
from chaos.php import PhpConsumer
from chaos.publishers import (
    ORPHAN_SHARE,
    PUT_BACK,
    AbandonedCarts,
    Cron,
    Group,
    Published,
    PublisherThread,
    groups,
    publish_again,
)
from chaos.world import Blow, Poison, World
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.session import interruptible
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_WEBHOOK

#: Option -> default, and default with --short. Kills: blows to workers and database.
_SIZES = {
    "messages": (20_000, 1_500),
    "groups": (2_000, 150),
    "workers": (4, 3),
    "kills": (40, 12),
    "publishers": (3, 2),
    "poison": (40, 9),
    "carts": (20, 6),
}
#: Starting RabbitMQ again takes a while.
RELAY_SHORT_KILLS = 8
#: Entities that are published after message ids have begun again.
AGAIN = 60
#: Small, so that a message can run out of it. Chance alone fails 5 in 100 requests.
ATTEMPT_LIMIT = 6
#: Those whose message kills workers: each of its attempts costs a lease. The others take turns.
KILLING = 2


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    with interruptible(), tempfile.TemporaryDirectory(prefix="zithara-chaos-") as directory:
        try:
            if options.relay:
                # Imported here: it needs pika.
                from chaos import relay

                return relay.run(options, Path(directory), attempt_limit=ATTEMPT_LIMIT)
            return _run(options, Path(directory))
        except KeyboardInterrupt:
            print("chaos: interrupted; everything is removed", file=sys.stderr)
            return 130


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=1, help="what is done to whom, and in which order (1)")
    for name, (value, _) in _SIZES.items():
        parser.add_argument(f"--{name}", type=int, help=f"({value})")
    parser.add_argument(
        "--relay", action="store_true", help="a shop on RabbitMQ: relays and RabbitMQ are killed too; no poison, no PHP"
    )
    parser.add_argument(
        "--quorum", action="store_true", help="with --relay: quorum queues, which drop after 20 deliveries"
    )
    parser.add_argument("--short", action="store_true", help="about a minute: smaller where nothing else is said")
    options = parser.parse_args(arguments)
    if options.relay and options.short and options.kills is None:
        options.kills = RELAY_SHORT_KILLS
    for name, (value, short) in _SIZES.items():
        if getattr(options, name) is None:
            setattr(options, name, short if options.short else value)
    return options


def _run(options: argparse.Namespace, directory: Path) -> int:
    started = time.monotonic()
    published, stop = Published(), threading.Event()
    world = World(poison=published.poison)
    with (
        MariaDbServer() as server,
        Shop(server) as shop,
        Host(world, slots=options.workers, seed=options.seed) as host,
    ):
        client_id, client_secret = host.client
        shop.configure_webhook(client_id=client_id, client_secret=client_secret)
        print(f"seed {options.seed}, {server.version}", flush=True)
        config = write_config(directory / "zithara-worker.conf", shop.worker_settings, attempt_limit=ATTEMPT_LIMIT)
        with Fleet(config, host, directory, slots=options.workers) as fleet:
            host.kill = lambda slot: fleet.workers[slot].replace()
            killer = Killer(world, fleet, server, host, seed=options.seed, blows=options.kills, stop=stop)
            publishers = _publishers(options, shop, published, killer.seconds, stop)
            carts = AbandonedCarts(shop, published, carts=options.carts, seed=options.seed, stop=stop)
            cron = Cron(shop, published, seed=options.seed, stop=stop)
            php = PhpConsumer(shop, seed=options.seed)
            operator = Operator(directory / "zithara-worker.conf", seed=options.seed)
            judged: list[Row] = []
            every: set[Group] = set()
            findings: list[str] = []
            try:
                for thread in (*publishers, carts, cron):
                    thread.start()
                php.start()
                operator.start()
                killer.run()
                for publisher in publishers:
                    publisher.join()
                carts.end()
                host.calm = True
                operator.end()
                php.end()
                cron.end()
                _put_back_what_php_held(shop)
                left = drained(shop, published, fleet, stop)
                judged += rows(shop, published, operator.forced, world.epoch)
                every.update(published.groups.values())
                findings += leftovers(shop)
                for off in (False, True):
                    left += _begin_again(shop, published, world, fleet, stop, off=off, seed=options.seed)
                    judged += rows(shop, published, (), world.epoch)
            finally:
                stop.set()
                php.end()
                operator.end()
            findings += [f"{each.name} failed: {each.failed!r}" for each in (*publishers, carts, cron) if each.failed]
            if left:
                findings.append(f"{left} messages are not settled {DRAIN_SECONDS:g} s after the last blow")
            fleet.stop(within=30)
            findings += [*fleet.died, *operator.findings]
        verdict = judge(judged, world, php.held, attempt_limit=ATTEMPT_LIMIT, marked=_marked(shop, every))
    killed = sum(each.blow is Blow.POISON for each in world.misfortunes)
    print(report(verdict, {**killer.done, Blow.POISON: killed}))
    print("operator          " + ", ".join(f"{command} {count} x" for command, count in sorted(operator.done.items())))
    print(f"time              {time.monotonic() - started:>8.0f}  s")
    for finding in findings:
        print(f"FINDING: {finding}")
    if findings or not verdict.good:
        show_logs(directory, verdict)
        print(f"\nNot as promised. To play it again: scripts/chaos --seed {options.seed} (and the other options)")
        return 1
    print(
        "\nNothing lost, nothing out of order, nothing older over newer, no news skipped, every duplicate explained, "
        "every poison in ERROR by its own attempts."
    )
    return 0


def _publishers(
    options: argparse.Namespace, shop: Shop, published: Published, seconds: float, stop: threading.Event
) -> list[PublisherThread]:
    every = groups(options.groups)
    others = [each for each in Poison if each is not Poison.KILLS]
    poison = [Poison.KILLS] * min(KILLING, options.poison // 5)
    poison += [others[number % len(others)] for number in range(options.poison - len(poison))]
    return [
        PublisherThread(
            shop,
            published,
            mine=every[number :: options.publishers],
            messages=len(range(number, options.messages, options.publishers)),
            seconds=seconds,
            seed=options.seed * 1000 + number,
            stop=stop,
            poisons=poison[number :: options.publishers],
            orphan_share=ORPHAN_SHARE,
        )
        for number in range(options.publishers)
    ]


def _put_back_what_php_held(shop: Shop) -> None:
    """What Magento's cron does a day later: messages that a PHP consumer died with come back."""
    shop.query(PUT_BACK)
    shop.query(
        "UPDATE {prefix}queue_message_status s LEFT JOIN {prefix}zithara_message_group g "
        "ON g.id = s.id AND g.worker_id IS NOT NULL SET s.status = 5, s.number_of_trials = s.number_of_trials + 1 "
        "WHERE s.status = 3 AND g.id IS NULL"
    )


def _begin_again(
    shop: Shop, published: Published, world: World, fleet: Fleet, stop: threading.Event, *, off: bool, seed: int
) -> int:
    """The queue's tables are emptied while the workers run, or are `off`, and entities that are known are published
    under low ids, some into the hands of a PHP consumer that dies. How many messages are not settled in the end."""
    known = list(dict.fromkeys(group for group in published.groups.values() if group.topic != TOPIC_WEBHOOK))
    if off:
        fleet.stop(within=30)
    shop.query("SET SESSION foreign_key_checks = 0")
    for table in ("queue_lock", "queue_message_status", "queue_message"):
        shop.query(f"TRUNCATE {{prefix}}{table}")
    shop.query("SET SESSION foreign_key_checks = 1")
    published.begin_again()
    world.epoch += 1
    ended = threading.Event()
    cron = Cron(shop, published, seed=seed, stop=ended)
    cron.start()
    publish_again(shop, published, [each for each in known if each not in published.ended][:AGAIN], seed=seed)
    if off:
        for worker in fleet.workers:
            worker.replace()
    try:
        return drained(shop, published, fleet, stop)
    finally:
        ended.set()
        cron.join()


def _marked(shop: Shop, groups: Collection[Group]) -> set[str]:
    """Groups that the ledger has marked for reconcile."""
    stale = {key for (key,) in shop.query("SELECT group_key FROM {prefix}zithara_delivery WHERE stale")}
    return {group.name for group in groups if group.key in stale}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
