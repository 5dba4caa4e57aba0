"""`scripts/bench`: everything in one go, with ratios and spread; `--quick` is the guard of counted costs."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import completeness, counted, idleness, ledger, relay, report, scale, throughput
from benchmarks.api_server import ApiProcess
from benchmarks.quota import Unavailable
from benchmarks.throughput import Scene
from zithara_worker.sandbox.mariadb import MariaDbServer

RESULTS = Path(__file__).with_name("results")
PARTS = ("throughput", "scale", "idleness", "counted", "ledger", "relay", "completeness")
LIMITS = ("raw_httpx", "raw_urllib3", "raw_queue")
WORKERS = ("worker", "two_workers")
OTHERS = ("php", "huey", "celery")
FEW = ("raw_httpx", "worker", "php")


def main() -> None:
    options = _options()
    results: dict[str, Any] = {"machine": report.machine()}
    markdown = ["# Benchmark results", "", _told(results["machine"]), ""]

    def tell(text: str) -> None:
        print(text, flush=True)
        markdown.append(text)

    def keep() -> None:
        """After each part: a run of an hour that breaks off leaves what it had."""
        report.write(RESULTS, results, "\n".join(markdown) + "\n")

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with MariaDbServer() as server, ApiProcess() as api:
            if options.quick:
                sys.exit(_quick(server, api, directory))
            if "throughput" in options.parts:
                tell("## Throughput\n")
                results["throughput"] = []
                for scene, contestants in _scenes(options.messages)[: options.scenes]:
                    with contextlib.ExitStack() as stack:
                        at = stack.enter_context(ApiProcess(_certificate(directory))) if scene.tls else api
                        try:
                            rounds = throughput.rounds(
                                scene, contestants, count=options.rounds, server=server, api=at, directory=directory
                            )
                        except Unavailable as error:
                            tell(f"### {scene.name}\n\nNot measured: {error}\n")
                            continue
                    results["throughput"].append(report.as_json(scene, rounds))
                    tell(report.throughput_table(scene, rounds))
                    keep()
                report.plot(RESULTS)
            if "counted" in options.parts:
                found = counted.count_all(server, api, directory)
                results["counted"] = [asdict(each) for each in found]
                tell("## Counted costs\n\n" + _counted_table(found))
                keep()
            if "ledger" in options.parts:
                costs = ledger.measure(server, api, directory, rounds=options.rounds, count=options.messages // 3)
                results["ledger"] = [asdict(each) for each in costs]
                tell("## The delivery ledger\n\n" + ledger.table(costs))
                keep()
            if "relay" in options.parts:
                moved = relay.measure(server, api, directory, rounds=options.rounds, count=options.messages)
                results["relay"] = [asdict(each) for each in moved]
                tell("## The relay\n\n" + relay.table(moved))
                keep()
            if "idleness" in options.parts:
                tell("## Latency and idleness\n")
                results["idleness"] = _idleness(server, api, directory, options.memory, tell)
                keep()
        if "completeness" in options.parts:
            tell(f"## reconcile: {options.orders:,} orders\n")
            with MariaDbServer(options=("--innodb-buffer-pool-size=1G",)) as server, ApiProcess() as api:
                proof = completeness.measure(
                    server, api, directory, orders=options.orders, missing=options.orders // 100, live_per_second=20
                )
            results["completeness"] = asdict(proof)
            tell(completeness.table(proof))
            keep()
        if "scale" in options.parts:
            tell("## Scale: claim and settle of a message\n")
            # A shop with millions of rows has more memory for them than a test's server.
            with MariaDbServer(options=("--innodb-buffer-pool-size=1G",)) as server:
                results["scale"] = {
                    title: _scale(server, options.large, tell, title, indexed=indexed)
                    for title, indexed in (("without the optional index", False), ("with the optional index", True))
                }
    keep()
    print(f"written: {RESULTS}/results.json, results.md" + (", results.png" if "throughput" in results else ""))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute: ratios, and fail when a counted cost has grown")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=int, default=10_000, help="in a throughput run")
    parser.add_argument("--memory", type=int, default=50_000, help="messages after which memory is looked at")
    parser.add_argument("--scenes", type=int, default=None, help="only the first so many throughput scenes")
    parser.add_argument("--large", type=int, default=1_000_000, help="rows of the largest table in 'scale'")
    parser.add_argument("--orders", type=int, default=1_000_000, help="in 'completeness'")
    return parser.parse_args()


def _scenes(count: int) -> list[tuple[Scene, tuple[str, ...]]]:
    """The main scene has everyone; the others vary one thing each."""
    few = max(300, count // 10)
    return [
        (Scene(latency_ms=50, threads=64, messages=count), (*LIMITS, *WORKERS, *OTHERS)),
        (Scene(latency_ms=0, threads=64, messages=count), (*LIMITS, *WORKERS, "php")),
        (Scene(latency_ms=0, threads=16, messages=count), ("worker_on_half_a_core", "two_workers_on_half_a_core")),
        (Scene(latency_ms=50, threads=64, tls=True, messages=count), ("raw_httpx", *WORKERS, "php")),
        (Scene(latency_ms=0, threads=64, tls=True, messages=count // 2), FEW),
        (Scene(latency_ms=200, threads=64, messages=count // 2), ("raw_httpx", *WORKERS, "php")),
        (Scene(latency_ms=0, threads=16, messages=count), FEW),
        (Scene(latency_ms=50, threads=16, messages=count // 2), FEW),
        (Scene(latency_ms=200, threads=16, messages=count // 10), FEW),
        (Scene(latency_ms=0, threads=1, messages=few * 2), FEW),
        (Scene(latency_ms=50, threads=1, messages=few // 3), FEW),
        (Scene(latency_ms=200, threads=1, messages=few // 10), FEW),
    ]


def _quick(server: MariaDbServer, api: ApiProcess, directory: Path) -> int:
    """Ratios for people to read, counts for the verdict."""
    scene = Scene(latency_ms=50, threads=64, messages=2_000)
    rounds = throughput.rounds(scene, FEW, count=2, server=server, api=api, directory=directory)
    print(report.throughput_table(scene, rounds))
    print(ledger.table(ledger.measure(server, api, directory, rounds=1, count=1_000)))
    found = counted.count_all(server, api, directory)
    print(_counted_table(found))
    grown = [each for each in found if each.grown]
    for each in grown:
        print(f"{each.name}: {each.value:.1f}, above the limit of {each.limit:g} in benchmarks/counted.py")
    return 1 if grown else 0


def _counted_table(found: list[counted.Counted]) -> str:
    rows = "".join(f"| {each.name} | {each.value:.1f} | {each.limit:g} |\n" for each in found)
    return f"| counted | value | limit |\n| --- | --- | --- |\n{rows}"


def _idleness(server: MariaDbServer, api: ApiProcess, directory: Path, count: int, tell: Any) -> dict[str, Any]:
    quiet = idleness.idle(server, api, directory, samples=100, seconds=15)
    tell(
        f"Commit to request at an idle worker: median {quiet.latency_median_ms:.0f} ms, "
        f"p99 {quiet.latency_p99_ms:.0f} ms. Idle: {quiet.queries_per_second:.1f} queries a second, "
        f"{quiet.cpu_share:.2%} of a core.\n"
    )
    first = idleness.first_request_seconds(server, api, directory)
    imported = idleness.import_seconds()
    tell(
        f"Start to first request: {report.spread(first)} s. `zithara-worker --version`: {report.spread(imported)} s.\n"
    )
    # pymysql loads cryptography where it is installed, for MySQL's caching_sha2_password.
    arrangements: list[tuple[int, tuple[str, ...]]] = [(1, ()), (16, ()), (64, ()), (64, ("cryptography",))]
    memories = [
        idleness.memory(server, api, directory, threads=threads, count=count, without=without)
        for threads, without in arrangements
    ]
    for each in memories:
        tell(
            f"Resident with {each.threads} threads{''.join(f', without {name}' for name in each.without)}: "
            f"{each.early_mib:.1f} MiB after {each.messages // 10:,} messages, "
            f"{each.late_mib:.1f} MiB after {each.messages:,}.\n"
        )
    return {
        **asdict(quiet),
        "first_request_seconds": first,
        "version_seconds": imported,
        "memory": [asdict(each) for each in memories],
    }


def _scale(server: MariaDbServer, large: int, tell: Any, title: str, *, indexed: bool) -> list[dict[str, Any]]:
    costs = scale.measure(server, large=large, indexed=indexed)
    base = costs[0].microseconds
    rows = "".join(
        f"| {each.surroundings} | {each.microseconds / base:.2f} | {each.microseconds:.0f} | {each.p90:.0f} "
        f"| {each.first_claim_ms:.0f} | {each.statements_per_100:.1f} |\n"
        for each in costs
    )
    tell(
        f"### {title}\n\n"
        f"| beside | / empty shop | us a message, median | p90 | first claim, ms | statements per 100 |\n"
        f"| --- | --- | --- | --- | --- | --- |\n{rows}"
    )
    return [asdict(each) for each in costs]


def _certificate(directory: Path) -> str:
    import trustme

    path = directory / "server.pem"
    issued = trustme.CA().issue_cert("127.0.0.1", "localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(str(path))
    return str(path)


def _told(machine: dict[str, Any]) -> str:
    return (
        f"{machine['when']}, {machine['cores']} cores, Python {machine['python']}, load before the run "
        f"{machine['load_before']:.1f}. Ratios are of the same round; (least-most) over the rounds."
    )


if __name__ == "__main__":
    main()
