"""`consume`: claim messages and deliver them."""

from __future__ import annotations

import ctypes
import gc
import os

import click

from zithara_worker.commands.root import Context, topic_argument
from zithara_worker.topics import SHORT_NAMES, TOPICS

#: The numbers of glibc's parameters M_TRIM_THRESHOLD and M_MMAP_THRESHOLD (mallopt(3)), and the value for both.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_THRESHOLD_BYTES = 1_000_000


@click.command()
@topic_argument(many=True)
@click.option("--all", "every", is_flag=True, help="All four topics in one process.")
@click.option("--max-messages", type=click.IntRange(min=1), metavar="N", help="Stop after N messages.")
@click.option("--stop-when-empty", is_flag=True, help="Stop when no message is due any more.")
@click.option("--max-runtime", type=click.FloatRange(min=0), metavar="S", help="Stop after S seconds.")
@click.option("--concurrency", type=click.IntRange(1, 512), metavar="N", help="Requests in flight at once.")
@click.option("--batch-size", type=click.IntRange(1, 1000), metavar="N", help="Messages claimed at once.")
@click.option(
    "--poll-interval",
    type=click.FloatRange(0.01, 3600),
    metavar="S",
    help="Seconds between two polls of an idle queue.",
)
@click.pass_obj
def consume(
    context: Context,
    topics: tuple[str, ...],
    every: bool,
    max_messages: int | None,
    stop_when_empty: bool,
    max_runtime: float | None,
    concurrency: int | None,
    batch_size: int | None,
    poll_interval: float | None,
) -> None:
    """Claim messages of TOPIC... and deliver them until stopped.

    SIGTERM or SIGINT: stop claiming, finish the requests in flight, release the other messages, exit 0. A second one:
    exit at once; the messages become free when their leases expire. SIGHUP: read the configuration again and reopen the
    log files.

    \b
    Examples:
      zithara-worker consume zithara.order.events
      zithara-worker consume --all --stop-when-empty
    """
    for key, value in (("concurrency", concurrency), ("batch_size", batch_size), ("poll_interval", poll_interval)):
        if value is not None:
            context.overrides["worker", key] = value
    if every and topics:
        raise click.UsageError("give topics or --all, not both")
    wanted = TOPICS if every else topics or context.configured.settings.worker.topics
    if not wanted:
        raise click.UsageError(f"which topics? Give some of {', '.join(SHORT_NAMES)}, or --all, or set [worker] topics")

    from zithara_worker.limits import Limits
    from zithara_worker.monitor.service_manager import ServiceManager
    from zithara_worker.worker.worker import Worker

    context.start_logging()
    service_manager = ServiceManager.from_environment(os.environ)
    worker = Worker(context.configured, reconfigure=context.read_again, service_manager=service_manager)
    context.signals.direct_to(worker)
    # Modules stay for the life of the process. Without this the garbage collector examines them again and again: 4 % of
    # the CPU.
    gc.freeze()
    fix_malloc_thresholds()
    worker.run(
        wanted,
        limits=Limits(max_messages=max_messages, max_runtime_seconds=max_runtime, stop_when_empty=stop_when_empty),
    )


def fix_malloc_thresholds() -> None:
    """Keeps glibc from raising its thresholds to the size of the largest body, up to 32 MB for each thread.

    With thresholds that grow, freed memory stays with the process: after twelve bodies of 10 MB, one at a time, it had
    298 MiB, and 120 MiB with fixed thresholds. Other C libraries have no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _THRESHOLD_BYTES)
        mallopt(_TRIM_THRESHOLD, _THRESHOLD_BYTES)
