"""`reconcile`: is the CRM complete? Publish what is missing."""

from __future__ import annotations

import logging
import os
import re
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import click

from zithara_worker.commands.failed_selection import age
from zithara_worker.commands.root import EXIT_FAILED, Context, as_operator, operator_name
from zithara_worker.commands.terminal import ask_first, coloured, print_json, printable, progress, table
from zithara_worker.errors import BrokerUnavailable, ConfigurationError, ShopError, ZitharaWorkerError
from zithara_worker.monitor.reconciliations import KINDS
from zithara_worker.units import duration, moment

if TYPE_CHECKING:
    from zithara_worker.completeness.reconcile import Reconcile, Result, Surroundings, Window
    from zithara_worker.database.session import Database
    from zithara_worker.logs.audit import Audit
    from zithara_worker.queue.queues import QueueRow
    from zithara_worker.settings.sections import Settings

log = logging.getLogger(__name__)

#: Days of the window, unless one is given.
_DAYS: Mapping[str, int] = {"customers": 7, "orders": 7, "carts": 1}
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(?:[ T]\d{2}:\d{2}(?::\d{2})?)?")


def moment_of(text: str) -> str:
    """'YYYY-MM-DD HH:MM:SS' UTC of a date, with or without time, or of an age such as 7d. Raises click.BadParameter."""
    try:
        if _DATE.fullmatch(text):
            found = datetime.fromisoformat(text)
        else:
            found = datetime.now(timezone.utc) - timedelta(seconds=age(text))
    except (click.BadParameter, ValueError, OverflowError) as error:
        raise click.BadParameter(
            f"{text!r} is neither an age nor a date: write 90m, 12h or 7d, or 2026-11-01 or '2026-11-01 13:30' (UTC)"
        ) from error
    if found.year < 1970:
        raise click.BadParameter(f"{text!r} lies before 1970, where the shop's times begin: --all takes everything")
    return f"{found:%Y-%m-%d %H:%M:%S}"


@click.command()
@click.argument("kinds", type=click.Choice(KINDS), nargs=-1, metavar="[orders|customers|carts]...")
@click.option(
    "--since", type=moment_of, metavar="WHEN", help="What changed since then: an age (7d, 12h) or a date (UTC)."
)
@click.option("--until", type=moment_of, metavar="WHEN", help="What changed before then.")
@click.option("--all", "every", is_flag=True, help="From the beginning: with --publish, the historical import.")
@click.option("--publish", "publishing", is_flag=True, help="Put a message on the queue for each missing or stale one.")
@click.option("--resend", is_flag=True, help="Publish everything of the window anew, as after a loss in the CRM.")
@click.option("--print", "printing", is_flag=True, help="Print the messages as JSON lines instead of publishing them.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Publish or print N of each kind at most.")
@click.option("--yes", is_flag=True, help="Do not ask before publishing; needed for more than 1 GB.")
@click.option(
    "--json", "as_json", is_flag=True, help='{"complete", "kinds": [{"kind", "total", "counts", ...}], "error"}.'
)
@click.pass_obj
def reconcile(
    context: Context,
    kinds: tuple[str, ...],
    since: str | None,
    until: str | None,
    every: bool,
    publishing: bool,
    resend: bool,
    printing: bool,
    limit: int | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Is the CRM complete? Compare the shop's own tables with what Zithara accepted.

    Without --since or --all: orders and customers that changed within 7 days, carts of the last day. Nothing is sent
    without --publish or --resend; both give way to what the shop publishes meanwhile, and can be stopped and run again
    at any time. Exit code 0: nothing is missing, stale or failed, or it is on its way now; 1 otherwise.

    Needs an account that may read the shop's tables, and to publish may write to Magento's queue:
    'zithara-worker install --print --operator ACCOUNT'.

    \b
    Examples:
      zithara-worker reconcile
      zithara-worker reconcile orders --since 30d --publish
      zithara-worker reconcile --all --publish --yes
    """
    if every and since:
        raise click.UsageError("give --since or --all, not both")
    if since and until and since >= until:
        raise click.UsageError("the window ends before it begins: --until must be later than --since")
    if printing and (publishing or as_json):
        raise click.UsageError("--print writes the messages and nothing else: leave out --publish and --json")
    if limit is not None and not (publishing or resend or printing):
        raise click.UsageError("--limit is for --publish, --resend and --print")
    asked = Asked(
        publishing=(publishing or resend) and not printing, resend=resend, printing=printing, limit=limit, yes=yes
    )
    wanted = [kind for kind in KINDS if not kinds or kind in kinds]
    with (
        context.database() as database,
        context.audit() as audit,
        interruptible() as stopping,
        as_operator(),
    ):
        run = _Run(
            context, database, audit, asked, stopping, show=not as_json, is_default=not (since or until or every)
        )
        found: list[Result] = []
        for kind in wanted:
            if stopping.is_set():
                break
            try:
                found.append(run.one(kind, _window(since, until, days=None if every else _DAYS[kind])))
            except (ZitharaWorkerError, click.ClickException) as error:
                if as_json:
                    _print_found(found, complete=False, error={"kind": kind, "text": str(error)})
                raise
    complete = len(found) == len(wanted) and all(each.is_complete for each in found)
    if as_json:
        _print_found(found, complete=complete, error=None)
    sys.exit(0 if complete or (printing and all(not each.ended for each in found)) else EXIT_FAILED)


def _print_found(found: Sequence[Result], *, complete: bool, error: Mapping[str, str] | None) -> None:
    print_json({"complete": complete, "kinds": [each.as_json() for each in found], "error": error}, indent=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the options ask for."""

    publishing: bool
    resend: bool
    printing: bool
    limit: int | None
    yes: bool


def _options_of(window: Window) -> str:
    """The options that give this window again."""
    since = f" --since '{window.since}'" if window.since else " --all"
    return since + (f" --until '{window.until}'" if window.until else "")


def _window(since: str | None, until: str | None, *, days: int | None) -> Window:
    from zithara_worker.completeness.reconcile import Window

    if since is None and days is not None:
        end = datetime.now(timezone.utc) if until is None else datetime.fromisoformat(until)
        since = f"{end - timedelta(days=days):%Y-%m-%d %H:%M:%S}"
    return Window(since=since, until=until)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM set the event; a second one ends the process at once."""
    stopping = threading.Event()

    def stop(number: int, frame: object) -> None:
        if stopping.is_set():
            os._exit(EXIT_FAILED)
        stopping.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Run:
    """The kinds of one call, one after the other."""

    def __init__(
        self,
        context: Context,
        database: Database,
        audit: Audit,
        asked: Asked,
        stopping: threading.Event,
        *,
        show: bool,
        is_default: bool,
    ) -> None:
        from zithara_worker.completeness.reconcile import Surroundings
        from zithara_worker.completeness.requests import request_of
        from zithara_worker.database import schema
        from zithara_worker.queue.ledger_rules import destination
        from zithara_worker.shop.configuration import complete, read_configuration
        from zithara_worker.shop.deployment_config import deployment_config

        self._database = database
        self._audit = audit
        self._asked = asked
        self._show = show
        #: Whether no window was given
        self._is_default = is_default
        self._stopping = stopping
        schema.require(database)
        shop = read_configuration(database, deployment_config(context.configured.settings.magento.root))
        self._settings: Settings = complete(context.configured, shop).settings
        if asked.publishing:
            # Before hours of work, not after them.
            database.execute("privilege_publish_message")
            database.execute("privilege_publish_status")
        self._surroundings: Surroundings = Surroundings(
            destination=destination(self._settings.zithara),
            process=request_of(self._settings.zithara),
            concurrency=self._settings.worker.concurrency,
            owner=f"{socket.gethostname()[:40]}-{os.getpid()}",
            stopped=stopping.is_set,
            sleep=stopping.wait,
        )

    def one(self, kind: str, window: Window) -> Result:
        """Compares one kind, and publishes or prints what is asked for."""
        from dataclasses import replace

        from zithara_worker.completeness.reconcile import Reconcile
        from zithara_worker.queue.queues import find_queues
        from zithara_worker.shop.readers import READERS

        reader = next(each for each in READERS if each.kind == kind)(self._database)
        queue = find_queues(self._database, [reader.topic], self._settings.queues)[0]
        in_rabbitmq = waiting_in_rabbitmq(self._settings, queue, needed=self._asked.publishing)
        surroundings = replace(self._surroundings, in_rabbitmq=lambda topic: in_rabbitmq)
        total = reader.count(since=window.since, until=window.until) if sys.stderr.isatty() else 0
        with Reconcile(self._database, reader, queue, surroundings) as run:
            with progress(total, f"comparing {kind}") as on_progress:
                found = run.compare(window, resend=self._asked.resend, on_progress=on_progress)
            if self._asked.printing:
                self._print(run, queue)
            elif self._asked.publishing and found.publishable and not found.ended:
                try:
                    found = self._publish(run, found)
                except (click.UsageError, click.Abort):
                    # A no, or nobody to ask. To compare a whole shop takes minutes.
                    self._end(run, found)
                    raise
            self._end(run, found)
        return found

    def _end(self, run: Reconcile, found: Result) -> None:
        run.keep(found)
        if self._show:
            for line in report(found, window_options="" if self._is_default else _options_of(found.window)):
                click.echo(line, err=self._asked.printing)

    def _print(self, run: Reconcile, queue: QueueRow) -> None:
        for each in run.messages(limit=self._asked.limit):
            print_json({"topic": queue.topic, "group": each.entity.group_key, "body": each.body})

    def _publish(self, run: Reconcile, found: Result) -> Result:
        from zithara_worker.completeness.reconcile import MANY_BYTES
        from zithara_worker.logs.audit import operator_action

        count = min(found.publishable, self._asked.limit or found.publishable)
        size = found.publishable_bytes * count / found.publishable
        if not found.in_rabbitmq:
            confirm(count, size, found.kind, yes=self._asked.yes, many=size > MANY_BYTES)
        try:
            with progress(count, f"publishing {found.kind}") as on_progress:
                return run.publish(
                    found,
                    limit=self._asked.limit,
                    max_bytes=None if self._asked.yes else MANY_BYTES,
                    on_progress=on_progress,
                )
        finally:
            if run.published:
                who = operator_name()
                action = "reconcile_resend" if self._asked.resend else "reconcile_publish"
                self._audit([operator_action(action, who=who, reconciled=found.kind, count=run.published)])
                log.info(
                    "operator: %d messages published by reconcile",
                    run.published,
                    extra={"event": f"operator_{action}", "operator": who, "kind": found.kind, "count": run.published},
                )


def confirm(count: int, size: float, kind: str, *, yes: bool, many: bool) -> None:
    """Asks before more than one message is published. Raises click.UsageError where nobody can be asked."""
    if yes or (count <= 1 and not many):
        return
    what = f"{count} {kind} (about {max(1, round(size / 1e6))} MB)"
    if many:
        raise click.UsageError(
            f"{what} would be put on the queue, whose tables the shop keeps for days: give --yes if the database has "
            "room for them, or --limit"
        )
    ask_first(f"Shall {what} be published?", yes=yes)


def waiting_in_rabbitmq(settings: Settings, queue: QueueRow, *, needed: bool) -> int | None:
    """Messages of the queue that RabbitMQ still holds; None where the shop has no RabbitMQ, or it cannot be asked.

    Raises ShopError if the number is `needed`: what RabbitMQ holds comes later and would put older over newer.
    """
    if not settings.relay.host:
        return None
    try:
        from zithara_worker.relay.connection import count_waiting

        found = count_waiting(settings.relay, [queue.name])[queue.name]
    except (BrokerUnavailable, ConfigurationError, ModuleNotFoundError) as error:
        why = "needs python3-pika" if isinstance(error, ModuleNotFoundError) else str(error)
        text = (
            f"RabbitMQ at {settings.relay.host} cannot be asked whether it still holds messages of {queue.name} ({why})"
        )
        if needed:
            raise ShopError(f"{text}: nothing is published before that is known") from error
        click.echo(f"zithara-worker: {text}", err=True)
        return None
    return 0 if found is None else found.messages


# ---------------------------------------------------------------- lines

#: Verdict -> colour, what it means, what to do; {kind}, {window}, {again}, {noun} (also the topic's short name) and
#: {label} are filled in.
_TOLD: Mapping[str, tuple[str, str, str]] = {
    "complete": ("green", "Zithara has accepted their latest state", ""),
    "waiting": ("", "a message is on the queue: workers deliver it", ""),
    "missing": ("red", "Zithara has accepted nothing of them", "zithara-worker reconcile {kind}{window} {again}"),
    "stale": ("red", "changed since Zithara accepted them", "zithara-worker reconcile {kind}{window} {again}"),
    "failed": ("red", "their newest message is in ERROR", "zithara-worker failed list --topic {noun}"),
    "refused": ("", "an operator discarded their present state", "zithara-worker trace {noun} {label}"),
    "ambiguous": ("yellow", "one number in several stores: Zithara cannot tell them apart", ""),
    "invalid": ("yellow", "the shop's rows make no valid message", "zithara-worker trace {noun} {label}"),
    "unsettled": ("", "changed within the last 15 minutes: judged next time", ""),
}
_ENDED: Mapping[str, str] = {
    "stopped": "stopped before the end: run it again, it goes on where it was",
    "stuck": (
        "gave up: the queue has not moved for five minutes. Start a worker ('zithara-worker consume --all'), or see "
        "'zithara-worker status'; then run it again"
    ),
    "many_bytes": "1 GB of messages was published: run it again for the rest, or give --yes",
    "in_rabbitmq": (
        "nothing was published: RabbitMQ still holds messages of this kind, which would come later and put older over "
        "newer. Run 'zithara-worker relay {noun} --stop-when-empty' first"
    ),
}


def report(found: Result, *, window_options: str = "") -> Iterator[str]:
    """The lines about one kind. `window_options`: what gives its window again."""
    from zithara_worker.completeness.compare import Verdict

    noun = found.kind.removesuffix("s")  # and the topic's short name
    again = "--publish" if found.resend_since_utc is None else "--resend"
    window = found.window
    bounds = [f"{word} {time} UTC" for word, time in (("since", window.since), ("before", window.until)) if time]
    changed = f"changed {' and '.join(bounds)}" if bounds else "from the beginning"
    title = f"{found.total} {found.kind} of the shop, {changed}"
    yield f"{coloured('', title, bold=True)}  ({duration(found.seconds)})"
    rows = []
    for verdict in Verdict:
        count = found.counts[verdict]
        if not count and verdict is not Verdict.COMPLETE:
            continue
        colour, meaning, to_do = _TOLD[verdict.value]
        named = found.named.get(verdict, [])
        label = shlex.quote(printable(named[0][0])) if named else ""
        if verdict is Verdict.STALE and found.resend_since_utc is not None:
            meaning = "not accepted since this resend began"
        step = to_do.format(kind=found.kind, window=window_options, again=again, noun=noun, label=label)
        told = meaning if not step else f"{meaning}: {step}"
        rows.append(["  " + verdict.value, coloured(colour if count else "", str(count)), told])
    yield from table(["", "", ""], rows, left=(0, 2))[1:]
    for verdict in Verdict:
        if verdict not in (Verdict.WAITING, Verdict.UNSETTLED) and found.named.get(verdict):
            yield f"  {verdict.value}: {_examples(found.named[verdict], found.counts[verdict])}"
    if found.in_rabbitmq:
        yield f"  RabbitMQ still holds {found.in_rabbitmq} messages of them: they are not counted here"
    if found.resend_since_utc is not None:
        yield (
            f"  resent: all that Zithara has not accepted since {moment(found.resend_since_utc)} UTC, when this resend "
            "began. To begin anew: zithara-worker ledger forget --all, then --publish"
        )
    if found.published:
        yield coloured("green", f"  {found.published} published: workers deliver them now")
    if found.ended:
        yield coloured("red", "  " + _ENDED[found.ended].format(noun=noun))
    elif found.is_complete:
        yield coloured("green", "  Nothing is missing." if not found.published else "  Nothing else is missing.")


def _examples(named: Sequence[tuple[str, str]], count: int) -> str:
    shown = ", ".join(printable(label) + (f" ({reason})" if reason else "") for label, reason in named)
    return shown + (f" and {count - len(named)} more" if count > len(named) else "")
