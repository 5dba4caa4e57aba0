"""`failed retry`, `discard` and `release`: put failed messages or orphans back on the queue, or give messages up."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from zithara_worker.commands.failed_selection import Choice, queues_of, selecting, selection_of, summary_lines, words
from zithara_worker.commands.root import EXIT_FAILED, Context, operator_name
from zithara_worker.commands.terminal import ask_first, print_json, progress
from zithara_worker.completeness.requests import content_of
from zithara_worker.database.session import Database
from zithara_worker.queue import failures, operator


def _changing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of the commands that change messages: which messages, and whether to ask."""
    for option in (
        click.option("--yes", is_flag=True, help="Do not ask before changing more than one message."),
        selecting,
        click.option("--all", "every", is_flag=True, help="All failed messages, or all that the options select."),
        click.argument("ids", type=int, nargs=-1, metavar="[ID]..."),
    ):
        command = option(command)
    return command


@click.command()
@_changing
@click.option("--force", is_flag=True, help="Also messages that would overwrite newer data of their group.")
@click.option("--note", default="", metavar="TEXT", help="Why; kept in the message's history and the audit file.")
@click.option(
    "--json", "as_json", is_flag=True, help='One JSON object: {"retried", "overtaken", "passed", "not_failed"}.'
)
@click.pass_obj
def retry(
    context: Context,
    ids: tuple[int, ...],
    every: bool,
    choice: Choice,
    yes: bool,
    force: bool,
    note: str,
    as_json: bool,
) -> None:
    """Put failed messages back on the queue with all their attempts; given by ID, discarded messages too.

    Without --force, a message is left alone if it would overwrite newer data of its order, customer or cart: newer data
    has been delivered since, or a newer message is on its way. A newer message that only waits is delivered after it.
    Exit code 1 when a message was left alone, or is neither in ERROR nor discarded.

    \b
    Examples:
      zithara-worker failed retry 1234
      zithara-worker failed retry --all --topic zithara.order.events --reason http_400
    """
    with context.database() as database, context.audit() as audit:
        relation_ids, unknown = _chosen(database, context, ids, every, choice, yes=yes, what="put back on the queue")
        with progress(len(relation_ids), "retrying") as on_progress:
            done = operator.retry(
                database, relation_ids, by=operator_name(), force=force, note=note, audit=audit, on_progress=on_progress
            )
    not_failed = (*done.not_failed, *unknown)
    if as_json:
        value = {
            "retried": done.retried,
            "overtaken": done.overtaken,
            "passed": [{"id": id, "newer_id": newer} for id, newer in done.passed],
            "not_failed": not_failed,
        }
        print_json(value)
    else:
        click.echo(f"{len(done.retried)} put back on the queue")
        _warn_not_failed(not_failed, "neither in ERROR nor discarded")
        _warn_left_alone(
            done.overtaken,
            "newer data of the same order, customer or cart has been delivered since and this would overwrite it",
            "see 'failed show ID', then use --force, or discard them",
        )
        _warn_left_alone(
            [f"{id} behind {newer}" for id, newer in done.passed],
            "a newer message of the same order, customer or cart is on its way and may arrive first",
            "give the command again when that one is delivered or has failed (see 'failed show ID'), or use --force",
        )
    if done.overtaken or done.passed or not_failed:
        sys.exit(EXIT_FAILED)


@click.command()
@_changing
@click.option(
    "--note", required=True, type=words, metavar="TEXT", help="Why; kept in its history, the log and the audit file."
)
@click.option("--json", "as_json", is_flag=True, help='One JSON object: {"discarded", "not_failed"}.')
@click.pass_obj
def discard(
    context: Context,
    ids: tuple[int, ...],
    every: bool,
    choice: Choice,
    yes: bool,
    note: str,
    as_json: bool,
) -> None:
    """Give up failed messages: they become COMPLETE without having been delivered.

    'failed retry ID' takes a message back until Magento's cleanup deletes it (7 days after the discard).

    \b
    Examples:
      zithara-worker failed discard 1234 --note "test order"
      zithara-worker failed discard --all --reason not_json --note "broken extension, since removed"
    """
    with context.database() as database, context.audit() as audit:
        relation_ids, unknown = _chosen(database, context, ids, every, choice, yes=yes, what="discarded")
        with progress(len(relation_ids), "discarding") as on_progress:
            done = operator.discard(
                database,
                relation_ids,
                by=operator_name(),
                note=note,
                audit=audit,
                content=content_of(context.configured.settings.zithara),
                on_progress=on_progress,
            )
    not_failed = (*done.not_failed, *unknown)
    if as_json:
        print_json({"discarded": done.discarded, "not_failed": not_failed})
    else:
        click.echo(f"{len(done.discarded)} discarded")
        _warn_not_failed(not_failed, "not in ERROR")
    if not_failed:
        sys.exit(EXIT_FAILED)


@click.command()
@click.argument("ids", type=int, nargs=-1, required=True, metavar="ID...")
@click.option("--note", default="", metavar="TEXT", help="Why; kept in the log and the audit file.")
@click.option(
    "--json", "as_json", is_flag=True, help='One JSON object: {"released", "held", "at_work", "not_in_progress"}.'
)
@click.pass_obj
def release(context: Context, ids: tuple[int, ...], note: str, as_json: bool) -> None:
    """Put messages back on the queue that are in progress though nobody works on them.

    A PHP consumer that died leaves its message so; 'zithara-worker doctor' names them. Messages that a worker holds are
    left alone, and so are those of a queue of which a PHP consumer has taken a message within the last ten minutes.
    Exit code 1 when a message was left alone.

    \b
    Example:
      zithara-worker failed release 1234
    """
    with context.database() as database, context.audit() as audit:
        queue_ids = [queue.queue_id for queue in queues_of(database, context)]
        found, unknown = failures.find(database, queue_ids, list(dict.fromkeys(ids)))
        done = operator.release(database, [each.id for each in found], by=operator_name(), note=note, audit=audit)
    not_in_progress = (*done.not_in_progress, *unknown)
    if as_json:
        value = {"released": done.released, "held": done.held, "at_work": done.at_work}
        print_json({**value, "not_in_progress": not_in_progress})
    else:
        click.echo(f"{len(done.released)} put back on the queue")
        _warn_not_failed(not_in_progress, "not in progress")
        _warn_left_alone(
            done.held,
            "a worker holds their order, customer or cart",
            "it takes them over by itself, or see 'zithara-worker status'",
        )
        _warn_left_alone(
            done.at_work,
            "a PHP consumer has taken a message of their queue within the last ten minutes",
            "stop it (see 'zithara-worker doctor'), and give the command again ten minutes later",
        )
    if done.held or done.at_work or not_in_progress:
        sys.exit(EXIT_FAILED)


def _chosen(
    database: Database, context: Context, ids: tuple[int, ...], every: bool, choice: Choice, *, yes: bool, what: str
) -> tuple[Sequence[int], tuple[int, ...]]:
    """The relation ids of the messages, and the IDs that no message has.

    Asks before more than one is changed; `what`: how, such as "discarded".
    """
    if ids and (every or choice.narrowed):
        raise click.UsageError("give IDs, or --all with options that select, not both")
    if not ids and not every:
        raise click.UsageError("which messages? Give IDs, or --all, alone or with --topic, --reason, --group or an age")
    unknown: tuple[int, ...] = ()
    queues = queues_of(database, context, choice)
    if ids:
        found, unknown = failures.find(database, [queue.queue_id for queue in queues], list(dict.fromkeys(ids)))
        chosen: Sequence[int] = [each.id for each in found]
    else:
        chosen = failures.matching(database, selection_of(queues, choice))
    if chosen and (every or len(chosen) > 1):
        for line in summary_lines(failures.summary(database, chosen, queues)):
            click.echo(line, err=True)
        many = f"{len(chosen)} message{'s' if len(chosen) > 1 else ''}"
        ask_first(f"Shall {many} be {what}?", yes=yes)
    return chosen, unknown


def _warn_left_alone(messages: Sequence[object], because: str, remedy: str) -> None:
    if messages:
        click.echo(f"{len(messages)} left alone, because {because} ({_some(messages)}): {remedy}", err=True)


def _warn_not_failed(ids: Sequence[int], what: str) -> None:
    if ids:
        click.echo(f"{len(ids)} left alone: {what}, or no such message ({_some(ids)})", err=True)


def _some(values: Sequence[object]) -> str:
    """The first ten, as text."""
    return ", ".join(str(each) for each in values[:10]) + (" ..." if len(values) > 10 else "")
