"""`relay`: move messages from RabbitMQ into the shop's queue."""

from __future__ import annotations

import os
from importlib.util import find_spec

import click

from zithara_worker.commands.root import Context, topic_argument
from zithara_worker.errors import ConfigurationError
from zithara_worker.topics import SHORT_NAMES, TOPICS

NO_PIKA = (
    "relay needs the Python library pika, which is not installed: install the Debian package python3-pika, or "
    "pip install 'zithara-worker[relay]'"
)


@click.command()
@topic_argument(many=True)
@click.option("--all", "every", is_flag=True, help="All four topics in one process.")
@click.option("--max-messages", type=click.IntRange(min=1), metavar="N", help="Stop after N messages.")
@click.option("--stop-when-empty", is_flag=True, help="Stop when RabbitMQ has no more messages.")
@click.option("--max-runtime", type=click.FloatRange(min=0), metavar="S", help="Stop after S seconds.")
@click.pass_obj
def relay(
    context: Context,
    topics: tuple[str, ...],
    every: bool,
    max_messages: int | None,
    stop_when_empty: bool,
    max_runtime: float | None,
) -> None:
    """Move messages of TOPIC... from RabbitMQ into the shop's queue in its database, unchanged and in order.

    For shops that have RabbitMQ; the worker delivers the messages from there. SIGTERM or SIGINT: store what RabbitMQ
    has sent, exit 0. A second one: exit at once; RabbitMQ sends the messages again. SIGHUP: read the configuration
    again and reopen the log files.

    \b
    Examples:
      zithara-worker relay --all
      zithara-worker relay order --stop-when-empty
    """
    if every and topics:
        raise click.UsageError("give topics or --all, not both")
    wanted = TOPICS if every else topics
    if not wanted:
        raise click.UsageError(f"which topics? Give some of {', '.join(SHORT_NAMES)}, or --all")
    if find_spec("pika") is None:
        raise ConfigurationError(NO_PIKA)

    from zithara_worker.commands.consume import fix_malloc_thresholds
    from zithara_worker.limits import Limits
    from zithara_worker.monitor.service_manager import ServiceManager
    from zithara_worker.relay.relay import Relay

    context.start_logging()
    process = Relay(
        context.configured,
        reconfigure=context.read_again,
        service_manager=ServiceManager.from_environment(os.environ),
    )
    context.signals.direct_to(process)
    fix_malloc_thresholds()
    process.run(
        wanted,
        limits=Limits(max_messages=max_messages, max_runtime_seconds=max_runtime, stop_when_empty=stop_when_empty),
    )
