"""`pause` and `resume`: stop and start topics on all hosts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from zithara_worker.commands.root import Context, operator_name, topic_argument
from zithara_worker.commands.terminal import print_json, printable
from zithara_worker.queue import operator
from zithara_worker.topics import SHORT_NAMES, TOPICS
from zithara_worker.units import moment


def _wanted(topics: tuple[str, ...], every: bool) -> tuple[str, ...]:
    if every == bool(topics):
        raise click.UsageError(f"which topics? Give some of {', '.join(SHORT_NAMES)}, or --all")
    return TOPICS if every else tuple(dict.fromkeys(topics))


def _shared(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="A JSON array, one object a topic."),
        click.option("--all", "every", is_flag=True, help="All four topics."),
        topic_argument(many=True),
    ):
        command = option(command)
    return command


@click.command()
@_shared
@click.option("--reason", default="", metavar="TEXT", help="Why; `status` shows it.")
@click.pass_obj
def pause(context: Context, topics: tuple[str, ...], every: bool, reason: str, as_json: bool) -> None:
    """Stop claiming messages of TOPIC... on every host until `resume`. Requests in flight are finished.

    Workers see the pause with their next poll, and it outlasts their restart. The messages stay in the queue; a running
    worker keeps Magento's cleanup from deleting them.

    \b
    Example:
      zithara-worker pause zithara.order.events --reason "CRM import until 18:00"
    """
    wanted = _wanted(topics, every)
    with context.database() as database, context.audit() as audit:
        _print(operator.pause(database, wanted, by=operator_name(), reason=reason, audit=audit), as_json)


@click.command()
@_shared
@click.pass_obj
def resume(context: Context, topics: tuple[str, ...], every: bool, as_json: bool) -> None:
    """Claim messages of TOPIC... again.

    \b
    Example:
      zithara-worker resume zithara.order.events
    """
    wanted = _wanted(topics, every)
    with context.database() as database, context.audit() as audit:
        _print(operator.resume(database, wanted, by=operator_name(), audit=audit), as_json)


def _print(changes: list[operator.Changed], as_json: bool) -> None:
    if as_json:
        values = [
            {
                "topic": each.topic,
                "changed": each.changed,
                "paused": each.pause is not None,
                "by": each.pause.paused_by if each.pause else None,
                "reason": each.pause.reason if each.pause else None,
            }
            for each in changes
        ]
        print_json(values)
        return
    for each in changes:
        if each.pause is None:
            click.echo(f"{each.topic}: {'resumed' if each.changed else 'was not paused'}")
        else:
            since = f"by {printable(each.pause.paused_by)} since {moment(each.pause.paused_at_utc)} UTC"
            reason = f": {printable(each.pause.reason)}" if each.pause.reason else ""
            click.echo(f"{each.topic}: {'paused' if each.changed else 'was paused already'} {since}{reason}")
