"""Runs the chaos and says what became of every message; exit code 1 when anything is not as promised.

scripts/chaos --seed 1 --messages 20000
scripts/chaos --short
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from chaos.account import FINDINGS, Row, Verdict, judge, report
from chaos.fleet import LEASE_SECONDS, Fleet, Killer
from chaos.host import TIMEOUT_SECONDS, Host
from chaos.operator import Operator
from chaos.php import PhpConsumer
from chaos.publishers import Published, PublisherThread, groups, publish_witnesses
from chaos.world import Blow, Poison, World
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.session import interruptible
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER

#: Longest time for the last messages once all is calm. The longest way: a lease, a retry's delay, a breaker's pause.
DRAIN_SECONDS = 120.0
#: Between two groups of new messages in that time.
WITNESS_SECONDS = 2.0
#: Option -> default, and default with --short. Kills: blows to workers and database.
_SIZES = {
    "messages": (20_000, 1_500),
    "groups": (2_000, 150),
    "workers": (4, 3),
    "kills": (40, 12),
    "publishers": (3, 2),
    "poison": (40, 9),
}
#: Small, so that a message can run out of it. Chance alone fails 5 in 100 requests.
ATTEMPT_LIMIT = 6
#: Those whose message kills workers: each of its attempts costs a lease. The others take turns.
KILLING = 2


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    with interruptible(), tempfile.TemporaryDirectory(prefix="zithara-chaos-") as directory:
        try:
            return _run(options, Path(directory))
        except KeyboardInterrupt:
            print("chaos: interrupted; everything is removed", file=sys.stderr)
            return 130


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=1, help="what is done to whom, and in which order (1)")
    for name, (value, _) in _SIZES.items():
        parser.add_argument(f"--{name}", type=int, help=f"({value})")
    parser.add_argument("--short", action="store_true", help="about a minute: smaller where nothing else is said")
    options = parser.parse_args(arguments)
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
        with Fleet(_config(directory, shop), host, directory, slots=options.workers) as fleet:
            host.kill = lambda slot: fleet.workers[slot].replace()
            killer = Killer(world, fleet, server, host, seed=options.seed, blows=options.kills, stop=stop)
            publishers = _publishers(options, shop, published, killer.seconds, stop)
            php = PhpConsumer(shop, seed=options.seed)
            operator = Operator(directory / "zithara-worker.conf", seed=options.seed)
            try:
                for publisher in publishers:
                    publisher.start()
                php.start()
                operator.start()
                killer.run()
                for publisher in publishers:
                    publisher.join()
                host.calm = True
                operator.end()
                php.end()
                _free_what_php_held(shop)
                left = _drained(shop, published, fleet, stop)
            finally:
                stop.set()
                php.end()
                operator.end()
            findings = [f"publisher failed: {each.failed!r}" for each in publishers if each.failed]
            if left:
                findings.append(f"{left} messages are not settled {DRAIN_SECONDS:g} s after the last blow")
            fleet.stop(within=30)
            findings += [*fleet.died, *operator.findings]
        verdict = judge(_rows(shop, published, operator.forced), world, php.held, attempt_limit=ATTEMPT_LIMIT)
        findings += _leftovers(shop)
    killed = sum(each.blow is Blow.POISON for each in world.misfortunes)
    print(report(verdict, {**killer.done, Blow.POISON: killed}))
    print("operator          " + ", ".join(f"{command} {count} x" for command, count in sorted(operator.done.items())))
    print(f"time              {time.monotonic() - started:>8.0f}  s")
    for finding in findings:
        print(f"FINDING: {finding}")
    if findings or not verdict.good:
        _show_logs(directory, verdict)
        print(f"\nNot as promised. To play it again: scripts/chaos --seed {options.seed} (and the other options)")
        return 1
    print("\nNothing lost, nothing out of order, every duplicate explained, every poison in ERROR by its own attempts.")
    return 0


def _config(directory: Path, shop: Shop) -> Path:
    sections = {
        "database": dict(shop.worker_settings),
        "zithara": {"timeout": f"{TIMEOUT_SECONDS:g}"},
        "worker": {"lease": f"{LEASE_SECONDS:g}", "concurrency": "8", "batch_size": "40", "poll_interval": "0.2"},
        "retry": {"limit": str(ATTEMPT_LIMIT), "delay": "0.3", "factor": "1.5", "max_delay": "3"},
        "metrics": {"listen": ""},
    }
    path = directory / "zithara-worker.conf"
    path.touch(mode=0o600)
    path.write_text(
        "".join(
            f"[{section}]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())
            for section, keys in sections.items()
        )
    )
    return path


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
        )
        for number in range(options.publishers)
    ]


def _free_what_php_held(shop: Shop) -> None:
    """What Magento's cron does a day later: messages that a PHP consumer died with come back."""
    shop.query(
        "UPDATE {prefix}queue_message_status s LEFT JOIN {prefix}zithara_message_group g "
        "ON g.id = s.id AND g.worker_id IS NOT NULL SET s.status = 5, s.number_of_trials = s.number_of_trials + 1 "
        "WHERE s.status = 3 AND g.id IS NULL"
    )


def _drained(shop: Shop, published: Published, fleet: Fleet, stop: threading.Event) -> int:
    """Waits until nothing is pending; how many still are after DRAIN_SECONDS. Publishes witnesses all the while."""
    started = time.monotonic()
    witnesses = 0
    while True:
        counts = shop.status_counts()
        left = sum(count for status, count in counts.items() if status in (2, 3, 5))
        waited = time.monotonic() - started
        if not left or waited > DRAIN_SECONDS:
            return left
        if waited > (witnesses + 1) * WITNESS_SECONDS:
            publish_witnesses(shop, published, witnesses)
            witnesses += 1
        fleet.look_after()
        stop.wait(0.2)


def _rows(shop: Shop, published: Published, forced: Collection[int]) -> list[Row]:
    told = {
        id: {"failed": reason, "attempts": attempts, "discarded": bool(discarded), "retried": retries > 0}
        for id, reason, attempts, discarded, retries in shop.query(
            "SELECT id, reason_code, attempts, discarded_at IS NOT NULL, retries FROM {prefix}zithara_delivery_failure"
        )
    }
    return [
        Row(
            key=f"{row.queue}-{row.message_id}",
            message_id=row.message_id,
            group=published.groups[row.message_id].name,
            coalesced=row.topic in (TOPIC_CART, TOPIC_CUSTOMER),
            content=published.contents.get(row.message_id, 0),
            status=row.status,
            committed_at=published.committed_at.get(row.message_id),
            forced=row.message_id in forced,
            **told.get(row.relation_id, {}),
        )
        for row in shop.rows()
    ]


def _leftovers(shop: Shop) -> list[str]:
    """What must be gone when everything is settled and every worker has left, and what must be there for PHP.

    A worker that was killed leaves its row in the registry, for `status` to show; it is forgotten after a day.
    """

    def count(statement: str) -> int:
        return int(shop.query(statement)[0][0])

    kept = "(SELECT id FROM {prefix}zithara_delivery_failure WHERE discarded_at IS NOT NULL)"
    failed = "(SELECT id FROM {prefix}queue_message_status WHERE status = 6)"
    found = [
        f"{left} rows are left in {table}"
        for table, condition in (
            ("zithara_message_group", ""),
            ("zithara_delivery_failure", f" WHERE discarded_at IS NULL AND id NOT IN {failed}"),
        )
        if (left := count(f"SELECT COUNT(*) FROM {{prefix}}{table}{condition}"))
    ]
    # None comes with what an operator has discarded: it can be taken back.
    complete = count(f"SELECT COUNT(*) FROM {{prefix}}queue_message_status WHERE status = 4 AND id NOT IN {kept}")
    locks = count("SELECT COUNT(*) FROM {prefix}queue_lock")
    if locks != complete:
        found.append(f"{locks} rows in queue_lock for {complete} complete messages: PHP could process some again")
    return found


def _show_logs(directory: Path, verdict: Verdict) -> None:
    """What the workers said about the messages in question, and at last."""
    wrong = [each for name in FINDINGS for each in getattr(verdict, name)]
    ids = {number for each in wrong[:20] for number in re.findall(r"_queue-(\d+)", each)}
    for log in sorted(directory.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()
        told = [line for line in lines if ids & set(re.findall(r'"message_id": (\d+)', line))]
        others = [line for line in lines if '"level": "INFO"' not in line and '"retry"' not in line]
        print(f"\n--- {log.name}, {len(lines)} lines in all")
        print("\n".join([*told, "...", *others[-10:]]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
