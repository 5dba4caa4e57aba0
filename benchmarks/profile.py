"""Where the worker's CPU goes: py-spy on a worker that delivers orders; per function, the share of samples.

    python -m benchmarks.profile                              as many at once as it can, 64 threads at no latency
    python -m benchmarks.profile --threads 16 --latency-ms 50    the default arrangement
    python -m benchmarks.profile --every 0.1 --messages 600      one message at a time, as a shop publishes

Samples only threads that hold the interpreter's lock, so waiting does not count.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=6_000)
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--latency-ms", type=int, default=0)
    parser.add_argument("--every", type=float, default=0.0, help="seconds between two messages; 0: all at once")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        ApiProcess() as api,
        MariaDbServer() as server,
        Shop(server) as shop,
    ):
        shop.configure_webhook()
        config = write_worker_config(Path(directory) / "worker.conf", shop, api, threads=options.threads)
        api.reset(latency_seconds=options.latency_ms / 1000)
        stacks = Path(directory) / "stacks"
        spy = [str(Path(bench_python()).with_name("py-spy")), "record", "--gil", "--format", "raw"]
        command = consume(config, messages.TOPIC, "--max-messages", str(options.messages))
        publishing = threading.Thread(target=_publish, args=(shop, options.messages, options.every))
        publishing.start()
        if not options.every:
            publishing.join()
        done = subprocess.run(
            [*spy, "--rate", str(RATE), "--output", str(stacks), "--", *command],
            capture_output=True,
            text=True,
            check=False,
        )
        publishing.join()
        if not stacks.exists():
            sys.exit(f"py-spy recorded nothing: {done.stderr[-2000:]}")
        report(stacks.read_text(encoding="utf-8").splitlines())


def _publish(shop: Shop, count: int, every_seconds: float) -> None:
    if not every_seconds:
        shop.publish_bodies(messages.TOPIC, messages.bodies(count))
        return
    for body in messages.bodies(count):
        shop.publish_body(messages.TOPIC, body)
        time.sleep(every_seconds)


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
