"""`failed aside`: messages from RabbitMQ that the queue cannot hold. They have no queue_message.id."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

import click

from zithara_worker.commands.failed_selection import words
from zithara_worker.commands.root import EXIT_FAILED, Context, operator_name
from zithara_worker.commands.terminal import ask_first, output, print_json, printable, table
from zithara_worker.database.session import Database
from zithara_worker.errors import ShopError
from zithara_worker.logs.audit import operator_action
from zithara_worker.queue.queues import queues_present
from zithara_worker.relay import aside
from zithara_worker.relay.aside import Aside
from zithara_worker.topics import short_name
from zithara_worker.units import duration, iso


@click.group("aside")
def aside_command() -> None:
    """Messages that the relay took from RabbitMQ and the queue cannot hold: too large, no text, or of another topic.

    ID is 32 hexadecimal digits, as `failed aside list` shows it.

    \b
    Example:
      zithara-worker failed aside list
    """


def aside_lines(found: Sequence[Aside]) -> list[str]:
    """A table of these messages, for people."""
    now = datetime.now(timezone.utc).timestamp()
    return table(
        ("ID", "TOPIC", "KEPT", "BYTES", "REASON", "DETAIL"),
        [
            (
                each.id,
                printable(short_name(each.topic), width=30),
                duration(now - each.kept_at_utc) + " ago",
                str(each.length_bytes),
                printable(each.reason),
                printable(each.detail, width=60),
            )
            for each in found
        ],
        left=(0, 1, 4, 5),
    )


@aside_command.command("list")
@click.option("--json", "as_json", is_flag=True, help="A JSON array, one object a message.")
@click.pass_obj
def list_command(context: Context, as_json: bool) -> None:
    """The messages that are kept aside, oldest first.

    \b
    Example:
      zithara-worker failed aside list --json
    """
    with context.database() as database:
        found = aside.find(database)
        total = aside.count(database)
    if len(found) < total:
        click.echo(f"the oldest {len(found)} of {total}:", err=True)
    if as_json:
        values = [
            {
                "id": each.id,
                "queue": each.queue,
                "topic": each.topic,
                "rabbitmq_message_id": each.rabbitmq_message_id,
                "bytes": each.length_bytes,
                "reason": each.reason,
                "detail": each.detail,
                "kept_at": iso(each.kept_at_utc),
            }
            for each in found
        ]
        print_json(values, indent=2)
        return
    for line in aside_lines(found) if found else ["no messages are kept aside"]:
        click.echo(line)


@aside_command.command()
@click.argument("aside_id", metavar="ID")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), default="-", metavar="[FILE]")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@click.pass_obj
def export(context: Context, aside_id: str, file: Path, overwrite: bool) -> None:
    """Write the body of message ID to FILE, or to standard output, byte for byte.

    The file holds personal data and is readable by its owner only. It appears when it is complete.

    \b
    Example:
      zithara-worker failed aside export 0f3a5c7e9b1d2f4a6c8e0b2d4f6a8c0e body.bin
    """
    with context.database() as database, output(file, overwrite=overwrite) as stream:
        for piece in aside.pieces(database, aside_id):
            stream.write(piece)
    if str(file) != "-":
        click.echo(f"exported to {file}", err=True)


@aside_command.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "every", is_flag=True, help="All of them.")
@click.option("--yes", is_flag=True, help="Do not ask before putting more than one message on the queue.")
@click.pass_obj
def retry(context: Context, ids: tuple[str, ...], every: bool, yes: bool) -> None:
    """Put messages on the queue, as its newest ones, if the database can hold them by now; the others stay.

    Needs a database user who may INSERT into the queue's tables. Exit code 1 when one stays.

    \b
    Example:
      zithara-worker failed aside retry --all
    """
    with context.database() as database, context.audit() as audit:
        queue_ids = {
            queue.topic: queue.queue_id for queue in queues_present(database, context.configured.settings.queues)[0]
        }
        stay = 0
        for each in _chosen(database, ids, every=every, yes=yes, what="put on the queue"):
            try:
                message_id = aside.retry(database, each, queue_ids)
            except ShopError as error:
                click.echo(str(error), err=True)
                stay += 1
                continue
            audit([operator_action("aside retry", who=operator_name(), topic=each.topic, message_ids=[message_id])])
            click.echo(f"{each.id} is message {message_id} now")
    if stay:
        sys.exit(EXIT_FAILED)


@aside_command.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "every", is_flag=True, help="All of them.")
@click.option("--yes", is_flag=True, help="Do not ask before deleting more than one message.")
@click.option("--note", required=True, type=words, metavar="TEXT", help="Why; kept in the audit file.")
@click.pass_obj
def discard(context: Context, ids: tuple[str, ...], every: bool, yes: bool, note: str) -> None:
    """Delete messages that are kept aside, for good: export them before.

    \b
    Example:
      zithara-worker failed aside discard 0f3a5c7e9b1d2f4a6c8e0b2d4f6a8c0e --note "test message"
    """
    with context.database() as database, context.audit() as audit:
        for each in _chosen(database, ids, every=every, yes=yes, what="deleted for good"):
            if aside.discard(database, [each.id]):
                audit(
                    [
                        operator_action(
                            "aside discard",
                            who=operator_name(),
                            topic=each.topic,
                            reason=note,
                            rabbitmq_message_id=each.rabbitmq_message_id,
                            bytes=each.length_bytes,
                        )
                    ]
                )
                click.echo(f"{each.id} deleted")


def _chosen(database: Database, ids: Sequence[str], *, every: bool, yes: bool, what: str) -> Iterator[Aside]:
    """The messages with these ids, or all, oldest first. Asks before more than one is changed. Raises ShopError for an
    id that is none."""
    if every == bool(ids):
        raise click.UsageError("give IDs or --all")
    found = aside.find(database, ids)
    if unknown := set(ids).difference(each.id for each in found):
        raise ShopError(f"not kept aside: {', '.join(sorted(unknown))}; see 'zithara-worker failed aside list'")
    count = aside.count(database) if every else len(found)
    if count > 1:
        ask_first(f"Shall {count} messages be {what}?", yes=yes)
    seen: set[str] = set()
    while found:
        yield from found
        # Those that stay come again.
        seen.update(each.id for each in found)
        further = aside.find(database, limit=len(seen) + aside.SLICE) if every else []
        found = [each for each in further if each.id not in seen]
