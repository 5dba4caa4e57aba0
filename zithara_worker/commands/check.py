"""`check`: one line and an exit code for Nagios, Icinga, Zabbix and Monit.

The output follows the Monitoring Plugins' development guidelines: exit codes 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN;
one line; performance data behind a `|`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import click

from zithara_worker.commands.failed_selection import age
from zithara_worker.commands.root import Context, topic_argument
from zithara_worker.database import schema
from zithara_worker.errors import DatabaseUnavailable, SchemaOutdated, ZitharaWorkerError
from zithara_worker.monitor.conditions import THRESHOLDS, Condition, Level, Thresholds, conditions
from zithara_worker.monitor.fleet import FleetStatus, read_fleet
from zithara_worker.topics import TOPICS, short_name

UNKNOWN = 3
_WORDS = {0: "OK", 1: "WARNING", 2: "CRITICAL", UNKNOWN: "UNKNOWN"}
#: The ages of THRESHOLDS as an operator writes them.
_MINUTES = tuple(None if seconds is None else f"{seconds / 60:g}m" for seconds in THRESHOLDS.age_seconds)
#: Conditions in the line, at most; the rest is counted.
_SHOWN = 3


class _Check(click.Command):
    """A wrong command line is UNKNOWN, not 2, which would ring as CRITICAL."""

    def make_context(self, *arguments: Any, **more: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **more)
        except click.UsageError as error:
            _end(UNKNOWN, error.format_message())


def _limits(name: str, default: Sequence[object], what: str, kind: Any, metavar: str) -> Callable[[Any], Any]:
    """Adds --NAME-warning and --NAME-critical."""

    def add(command: Any) -> Any:
        for level, value in (("critical", default[1]), ("warning", default[0])):
            command = click.option(
                f"--{name}-{level}",
                type=kind,
                default=value,
                show_default=value is not None,
                metavar=metavar,
                help=f"{level.upper()} from {what} on.",
            )(command)
        return command

    return add


@click.command(cls=_Check)
@topic_argument(many=True)
@_limits("age", _MINUTES, "this age of a topic's oldest new message", age, "AGE")
@_limits("failed", THRESHOLDS.failed, "so many failed messages of a topic", click.IntRange(min=0), "N")
@_limits("pending", THRESHOLDS.pending, "so many waiting messages of a topic", click.IntRange(min=0), "N")
@click.pass_obj
def check(
    context: Context,
    topics: tuple[str, ...],
    age_warning: float,
    age_critical: float,
    failed_warning: int,
    failed_critical: int,
    pending_warning: int | None,
    pending_critical: int | None,
) -> None:
    """Say in one line whether all is well, for Nagios, Icinga, Zabbix and Monit.

    Exit code 0: OK. 1: WARNING. 2: CRITICAL, also when the database does not answer, or the worker's tables are of an
    older version. 3: UNKNOWN. Without TOPIC those of [worker] topics are checked, or else all four. Ready-made
    configurations: packaging/monitoring, which the Debian package has in /usr/share/doc/zithara-worker/examples.

    \b
    Example:
      zithara-worker check order customer --age-critical 30m
    """
    try:
        settings = context.configured.settings
        wanted = topics or settings.worker.topics or TOPICS
        with context.database() as database:
            schema.require(database)
            fleet = read_fleet(database, settings.queues)
    except (DatabaseUnavailable, SchemaOutdated) as error:
        _end(Level.CRITICAL, str(error))
    except ZitharaWorkerError as error:
        _end(UNKNOWN, str(error))
    thresholds = Thresholds(
        age_seconds=(age_warning, age_critical),
        failed=(failed_warning, failed_critical),
        pending=(pending_warning, pending_critical),
    )
    found = [
        each
        for each in conditions(fleet, thresholds)
        if each.level is not Level.NOTE and (not each.topic or each.topic in wanted)
    ]
    worst = max((each.level for each in found), default=Level.NOTE)
    _end(worst, _told(found, fleet, wanted), " ".join(_performance(fleet, wanted, thresholds)))


def _told(found: Sequence[Condition], fleet: FleetStatus, wanted: Sequence[str]) -> str:
    if not found:
        waiting = sum(topic.pending for topic in fleet.topics if topic.topic in wanted)
        return f"workers alive: {len(fleet.alive)}, messages waiting: {waiting}"
    more = f" (and {len(found) - _SHOWN} more)" if len(found) > _SHOWN else ""
    return "; ".join(map(str, found[:_SHOWN])) + more


def _performance(fleet: FleetStatus, wanted: Sequence[str], thresholds: Thresholds) -> Iterator[str]:
    """label=value[unit];warning;critical;minimum"""

    def limits(of: tuple[float | None, float | None]) -> str:
        return ";".join("" if limit is None else f"{limit:.15g}" for limit in of)

    for topic in fleet.topics:
        if topic.topic not in wanted or topic.queue is None:
            continue
        name = short_name(topic.topic)
        yield f"{name}_pending={topic.pending};{limits(thresholds.pending)};0"
        yield f"{name}_oldest={topic.oldest_new_seconds or 0:.0f}s;{limits(thresholds.age_seconds)};0"
        yield f"{name}_failed={topic.error};{limits(thresholds.failed)};0"
        yield f"{name}_workers={topic.workers};;1:;0"
        yield f"{name}_done_per_minute={topic.rates.done_per_minute:.15g};;;0"


def _end(code: int, text: str, performance: str = "") -> NoReturn:
    # A bar would begin the performance data, and everything behind a line break is hidden in overviews.
    text = re.sub(r"\s+", " ", text.replace("|", "/")).strip()
    click.echo(f"ZITHARA {_WORDS[code]} - {text}" + (f" | {performance}" if performance else ""))
    sys.exit(code)
