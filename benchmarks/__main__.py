"""`scripts/bench`: everything in one go, with ratios and spread; `--quick` is the guard of counted costs."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import (
    carry,
    completeness,
    counted,
    huge,
    idleness,
    ledger,
    memory,
    pieces,
    relay,
    report,
    scale,
    stress,
    throughput,
)
from benchmarks.api_server import ApiProcess
from benchmarks.quota import Unavailable
from benchmarks.report import Section
from benchmarks.throughput import Scene
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.shop import Shop

RESULTS = Path(__file__).with_name("results")
LIMITS = ("raw_httpx", "raw_urllib3", "raw_queue")
WORKERS = ("worker", "two_workers")
OTHERS = ("php", "huey", "celery")
FEW = ("raw_httpx", "worker", "php")
#: A shop with millions of rows has more memory for them than a test's server, and a larger log.
LARGE_SERVER = ("--innodb-buffer-pool-size=1G", "--loose-innodb-log-file-size=1G")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What a part finds: a server and an API of its own, and what it tells its results to."""

    server: MariaDbServer
    api: ApiProcess
    directory: Path
    options: argparse.Namespace
    section: Section


@dataclass(frozen=True, slots=True)
class Part:
    title: str
    measure: Callable[[Stage], None]
    #: Of the server
    server_options: tuple[str, ...] = ()


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if options.quick:
            with MariaDbServer() as server, ApiProcess() as api:
                sys.exit(_quick(server, api, directory))
        results = report.Results(RESULTS, {name: part.title for name, part in PARTS.items()})
        done = [_run(PARTS[name], results.begin(name), directory, options) for name in options.parts]
    print(f"written: {RESULTS}/results.json, results.md")
    sys.exit(0 if all(done) else 1)


def _run(part: Part, section: Section, directory: Path, options: argparse.Namespace) -> bool:
    """Whether the part came to its end. The next ones are measured if it did not."""
    print(f"## {part.title}\n", flush=True)
    began = time.monotonic()
    try:
        with MariaDbServer(options=part.server_options) as server, ApiProcess() as api:
            part.measure(Stage(server=server, api=api, directory=directory, options=options, section=section))
    except Exception as error:
        traceback.print_exc()
        section.add(f"Broken off: {type(error).__name__}: {error}\n")
        return False
    section.add(f"Measured in {time.monotonic() - began:,.0f} s.\n")
    return True


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute: ratios, and fail when a counted cost has grown")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--messages", type=int, default=10_000, help="in a run of 'throughput', 'ledger', 'relay' and 'carry'"
    )
    parser.add_argument("--scenes", type=int, default=None, help="only the first so many throughput scenes")
    parser.add_argument("--memory", type=int, default=200_000, help="messages of the steady load in 'memory'")
    parser.add_argument(
        "--bodies", type=int, default=100, help="bodies of 10 MB in 'memory'; ten times as many of 1 MB"
    )
    parser.add_argument("--large", type=int, default=1_000_000, help="rows of the largest queue in 'scale'")
    parser.add_argument(
        "--fleet", type=int, default=10_000, help="messages for 50 workers, and beside poison, in 'scale'"
    )
    parser.add_argument(
        "--rows", type=int, default=10_000_000, help="of the ledger in 'scale', and completed in 'huge'"
    )
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


def _throughput(stage: Stage) -> None:
    done = []
    for scene, contestants in _scenes(stage.options.messages)[: stage.options.scenes]:
        with ExitStack() as stack:
            api = stack.enter_context(ApiProcess(_certificate(stage.directory))) if scene.tls else stage.api
            try:
                rounds = throughput.rounds(
                    scene,
                    contestants,
                    count=stage.options.rounds,
                    server=stage.server,
                    api=api,
                    directory=stage.directory,
                )
            except Unavailable as error:
                stage.section.add(f"### {scene.name}\n\nNot measured: {error}\n")
                continue
        done.append(report.as_json(scene, rounds))
        stage.section.add(report.throughput_table(scene, rounds), scenes=done)
    report.plot(RESULTS)


def _counted(stage: Stage) -> None:
    found = counted.count_all(stage.server, stage.api, stage.directory)
    stage.section.add(_counted_table(found), counted=found)


def _pieces(stage: Stage) -> None:
    found = pieces.measure(stage.server, stage.api, stage.directory, rounds=stage.options.rounds)
    stage.section.add(pieces.table(found), pieces=found)


def _counted_table(found: list[counted.Counted]) -> str:
    rows = "".join(f"| {each.name} | {each.value:.1f} | {each.limit:g} |\n" for each in found)
    return f"| counted | value | limit |\n| --- | --- | --- |\n{rows}"


def _ledger(stage: Stage) -> None:
    options = stage.options
    found = ledger.measure(stage.server, stage.api, stage.directory, rounds=options.rounds, count=options.messages // 3)
    stage.section.add(ledger.table(found), rounds=found)


def _relay(stage: Stage) -> None:
    options = stage.options
    found = relay.measure(stage.server, stage.api, stage.directory, rounds=options.rounds, count=options.messages)
    stage.section.add(relay.table(found), rounds=found)


def _idleness(stage: Stage) -> None:
    place = (stage.server, stage.api, stage.directory)
    quiet = idleness.idle(*place, samples=100, seconds=15)
    stage.section.add(
        f"Commit to request at an idle worker: median {quiet.latency_median_ms:.0f} ms, "
        f"p99 {quiet.latency_p99_ms:.0f} ms. Idle: {quiet.queries_per_second:.1f} queries a second, "
        f"{quiet.cpu_share:.2%} of a core. A message that comes alone: {quiet.single_cpu_us:.0f} us of CPU and "
        f"{quiet.single_statements:.1f} statements beyond that.\n",
        idle=quiet,
    )
    first, version = idleness.first_request_seconds(*place), idleness.import_seconds()
    stage.section.add(
        f"Start to first request: {report.spread(first)} s. `zithara-worker --version`: {report.spread(version)} s.\n",
        first_request_seconds=first,
        version_seconds=version,
    )


def _memory(stage: Stage) -> None:
    place, count = (stage.server, stage.api, stage.directory), stage.options.memory
    found = memory.by_threads(*place, count=count // 20)
    stage.section.add(memory.table(found), by_threads=found)
    steady = memory.steady(*place, count=count)
    stage.section.add(memory.table([steady]), steady=steady)
    large = memory.large_bodies(*place, count=stage.options.bodies)
    stage.section.add(memory.table(large), large_bodies=large)
    programs = memory.together(*place)
    stage.section.add(memory.table_together(programs), together=programs)


def _completeness(stage: Stage) -> None:
    orders = stage.options.orders
    proof = completeness.measure(
        stage.server, stage.api, stage.directory, orders=orders, missing=orders // 100, live_per_second=20
    )
    stage.section.add(f"{orders:,} orders\n\n" + completeness.table(proof), proof=proof)


def _scale(stage: Stage) -> None:
    place, options, section = (stage.server, stage.api, stage.directory), stage.options, stage.section
    fleets = stress.fleets(*place, count=options.fleet)
    section.add("### Many workers\n\n" + stress.table_fleets(fleets), fleets=fleets)
    poisoned = stress.poisoned(*place, rounds=options.rounds, count=options.fleet)
    section.add("### Poison\n\n" + stress.table_poisoned(poisoned), poisoned=poisoned)
    kept = stress.expiry(*place, rows=options.large * 3 // 10)
    section.add("### An old backlog\n\n" + stress.table_kept(kept), expiry=kept)
    passed = list(scale.measure_group(stage.server, count=options.large // 10))
    section.add("### Many messages of one group\n\n" + scale.table_passed(passed), passed=passed)
    costs = list(scale.measure_ledger(stage.server, rows=options.rows))
    section.add("### Rows in the delivery ledger\n\n" + scale.table(costs), ledger=costs)
    for title, indexed in (("without the optional index", False), ("with the optional index", True)):
        costs = list(scale.measure(stage.server, large=options.large, indexed=indexed))
        section.add(f"### Other rows, {title}\n\n" + scale.table(costs), **{"indexed" if indexed else "plain": costs})


def _huge(stage: Stage) -> None:
    rows = stage.options.rows
    with Shop(stage.server) as shop:
        huge.fill(shop, rows)
        steps = huge.measure(shop)
        stage.section.add(
            f"### {rows:,} completed rows, without the optional index\n\n" + huge.table(steps), plain=steps
        )
        built = huge.build(shop)
        stage.section.add(huge.told(built), built=built)
        steps = huge.measure(shop)
        stage.section.add("### With the optional index\n\n" + huge.table(steps), indexed=steps)


def _carry(stage: Stage) -> None:
    costs = carry.measure(stage.server, stage.api, stage.directory, count=stage.options.messages)
    found = carry.carried(costs)
    stage.section.add(carry.table(costs, found), costs=costs, carried=found)


def _certificate(directory: Path) -> str:
    import trustme

    path = directory / "server.pem"
    issued = trustme.CA().issue_cert("127.0.0.1", "localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(str(path))
    return str(path)


#: In the order in which they run, and stand in the results
PARTS: Mapping[str, Part] = {
    "throughput": Part("Throughput", _throughput),
    "counted": Part("Counted costs", _counted),
    "pieces": Part("Where a message's CPU goes", _pieces),
    "ledger": Part("The delivery ledger", _ledger),
    "relay": Part("The relay", _relay),
    "idleness": Part("Latency and idleness", _idleness),
    "memory": Part("Memory", _memory, ("--max-allowed-packet=64M",)),
    "completeness": Part("reconcile", _completeness, LARGE_SERVER),
    "scale": Part("Scale", _scale, LARGE_SERVER),
    "carry": Part("How far it carries", _carry),
    "huge": Part("Millions of completed rows", _huge, LARGE_SERVER),
}


if __name__ == "__main__":
    main()
