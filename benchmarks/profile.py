"""Where the worker's CPU goes: py-spy on a worker that drains a queue at no latency; folded stacks to standard output.

    python -m benchmarks.profile [messages]

Samples only threads that hold the interpreter's lock, so waiting does not count.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks import messages
from benchmarks.api_server import ApiProcess
from benchmarks.processes import consume
from benchmarks.throughput import bench_python, write_worker_config
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.shop import Shop

#: Samples a second.
RATE = 400


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 6_000
    with (
        tempfile.TemporaryDirectory() as directory,
        ApiProcess() as api,
        MariaDbServer() as server,
        Shop(server) as shop,
    ):
        shop.configure_webhook()
        shop.publish_bodies(messages.TOPIC, messages.bodies(count))
        config = write_worker_config(Path(directory) / "worker.conf", shop, api, threads=64)
        api.reset()
        stacks = Path(directory) / "stacks"
        spy = [str(Path(bench_python()).with_name("py-spy")), "record", "--gil", "--format", "raw"]
        command = consume(config, messages.TOPIC, "--max-messages", str(count))
        done = subprocess.run(
            [*spy, "--rate", str(RATE), "--output", str(stacks), "--", *command],
            capture_output=True,
            text=True,
            check=False,
        )
        if not stacks.exists():
            sys.exit(f"py-spy recorded nothing: {done.stderr[-2000:]}")
        report(stacks.read_text(encoding="utf-8").splitlines())


def report(stacks: list[str]) -> None:
    """Per function, the share of samples in it and below it, and in itself."""
    inclusive: Counter[str] = Counter()
    own: Counter[str] = Counter()
    for line in stacks:
        frames, _, samples = line.rpartition(" ")
        functions = [frame.rpartition(":")[0] for frame in frames.split(";")]
        own[functions[-1]] += int(samples)
        for function in set(functions):
            inclusive[function] += int(samples)
    total = sum(own.values())
    print(f"{total} samples\n\n in and below   in itself")
    for function, samples in inclusive.most_common(90):
        print(f"{samples / total:12.1%} {own[function] / total:11.1%}  {function}")


if __name__ == "__main__":
    main()
