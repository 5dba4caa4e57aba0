"""The options by which the `failed` commands select messages, and what they select."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click

from zithara_worker.commands.root import Context, topic_option
from zithara_worker.commands.terminal import printable, table
from zithara_worker.database.session import Database
from zithara_worker.queue.failures import FailureCount, Selection
from zithara_worker.queue.queues import QueueRow, queues_present
from zithara_worker.queue.statuses import Status
from zithara_worker.reasons import REASONS, find
from zithara_worker.topics import TOPICS, short_name
from zithara_worker.units import duration

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def age(text: str) -> float:
    """Seconds of '90s', '15m', '2h', '7d', or of a plain number. Raises click.BadParameter."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text.strip())
    if match is None:
        raise click.BadParameter(f"{text!r} is no duration: write 90s, 15m, 2h or 7d")
    return float(match[1]) * _SECONDS[match[2] or "s"]


def words(text: str) -> str:
    """What an operator says; not blank. Raises click.BadParameter."""
    if not text.strip():
        raise click.BadParameter("it must say why")
    return text


def reason_code(text: str) -> str:
    """A code of docs/reasons.md. Raises click.BadParameter."""
    if find(text) is None:
        raise click.BadParameter(
            f"{text!r} is no reason code: --reason selects what failed with a code, such as http_400 "
            "('failed summary' shows those there are); words of your own go into --note"
        )
    return text


def _complete_reason(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """What the shell's completion offers."""
    return [code for code in REASONS if code.startswith(incomplete)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The values of the options that select messages."""

    topics: tuple[str, ...]
    reasons: tuple[str, ...]
    group: str | None
    older_than: float | None
    newer_than: float | None

    @property
    def narrowed(self) -> bool:
        return bool(self.topics or self.reasons or self.group or self.older_than or self.newer_than)


def selecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that select messages; the command gets them as one argument `choice`."""

    @wraps(command)
    def gathered(*arguments: Any, **options: Any) -> Any:
        names = ("topics", "reasons", "group", "older_than", "newer_than")
        return command(*arguments, choice=Choice(**{name: options.pop(name) for name in names}), **options)

    add: Callable[..., Any] = gathered
    for option in (
        click.option("--newer-than", type=age, metavar="AGE", help="Failed more recently than this."),
        click.option("--older-than", type=age, metavar="AGE", help="Failed longer ago: 90s, 15m, 2h, 7d."),
        click.option("--group", metavar="KEY", help="Only of this message group, such as order:000000101."),
        click.option(
            "--reason",
            "reasons",
            type=reason_code,
            shell_complete=_complete_reason,
            multiple=True,
            metavar="CODE",
            help="Only what failed with this reason.",
        ),
        topic_option(),
    ):
        add = option(add)
    return add


def queues_of(database: Database, context: Context, choice: Choice | None = None) -> list[QueueRow]:
    """The queues of the topics that are selected: all, unless some are named."""
    topics = choice.topics if choice and choice.topics else TOPICS
    return queues_present(database, context.configured.settings.queues, topics)[0]


def selection_of(queues: Sequence[QueueRow], choice: Choice, *, waiting: bool = False) -> Selection:
    """`waiting`: messages that wait for a further attempt as well."""
    return Selection(
        queue_ids=[queue.queue_id for queue in queues],
        statuses=(Status.ERROR, Status.RETRY_REQUIRED) if waiting else (Status.ERROR,),
        reasons=choice.reasons,
        group_key=choice.group,
        older_than_seconds=choice.older_than,
        newer_than_seconds=choice.newer_than,
    )


def summary_lines(found: Sequence[FailureCount]) -> list[str]:
    """Messages by topic and reason as a table; no line where there are none."""
    if not found:
        return []
    now = time.time()
    return table(
        ("TOPIC", "REASON", "MESSAGES", "SINCE", "NEWEST"),
        [
            (
                short_name(each.topic),
                printable(each.reason),
                str(each.messages),
                duration(now - each.since_utc) + " ago",
                str(each.newest_id),
            )
            for each in found
        ],
        left=(0, 1),
    )
