"""`consume`: take and deliver."""

from __future__ import annotations

import ctypes
import gc
import os

import click

from zithara_worker.commands.root import Context, topic_argument
from zithara_worker.topics import SHORT_NAMES, TOPICS

#: glibc's mallopt(3): the parameters' numbers, and the bytes from which freed memory goes back to the system.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_GIVEN_BACK_BYTES = 1_000_000


@click.command()
@topic_argument(many=True)
@click.option("--all", "every", is_flag=True, help="All four topics in one process.")
@click.option("--max-messages", type=click.IntRange(min=1), metavar="N", help="Stop after N messages.")
@click.option("--stop-when-empty", is_flag=True, help="Stop when nothing is left that is due.")
@click.option("--max-runtime", type=click.FloatRange(min=0), metavar="S", help="Stop after S seconds.")
@click.option("--concurrency", type=click.IntRange(1, 512), metavar="N", help="Requests in flight at once.")
@click.option("--batch-size", type=click.IntRange(1, 1000), metavar="N", help="Messages claimed at once.")
@click.option(
    "--poll-interval",
    type=click.FloatRange(0.01, 3600),
    metavar="S",
    help="Seconds between two looks at an idle queue.",
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
    """Take messages of TOPIC... and deliver them until stopped.

    SIGTERM or SIGINT: stop claiming, let requests in flight finish, put the rest back, exit 0. A second one: exit at
    once; leases bring the messages back. SIGHUP: read the configuration again and reopen the log files.

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

    from zithara_worker.monitor.service_manager import ServiceManager
    from zithara_worker.worker.worker import Limits, Worker

    context.start_logging()
    service_manager = ServiceManager.from_environment(os.environ)
    worker = Worker(context.configured, reconfigure=context.read_again, service_manager=service_manager)
    context.signals.reach(worker)
    # What has been imported stays: the garbage collector need not look through it again and again (4 % of the CPU).
    gc.freeze()
    _give_memory_back()
    worker.run(
        wanted,
        limits=Limits(max_messages=max_messages, max_runtime_seconds=max_runtime, stop_when_empty=stop_when_empty),
    )


def _give_memory_back() -> None:
    """Keeps glibc from raising these limits to the largest body seen, up to 32 MB, in the arena of each thread.

    With twelve bodies of 10 MB, one at a time, the process reached 298 MiB with that and 120 MiB without. Other C
    libraries have no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _GIVEN_BACK_BYTES)
        mallopt(_TRIM_THRESHOLD, _GIVEN_BACK_BYTES)
