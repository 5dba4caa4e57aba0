"""`failed`: messages that were given up, and what to do with them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click
from click.shell_completion import CompletionItem

from zithara_worker.commands.operating import audit_file, operator, shop_database
from zithara_worker.commands.rendering import Duration, printable, table
from zithara_worker.commands.root import EXIT_FAILED, Context
from zithara_worker.database.session import Database
from zithara_worker.logs.escaping import escaped
from zithara_worker.messages import TOPICS
from zithara_worker.processors import ShopContext
from zithara_worker.queue import operator as operations
from zithara_worker.queue.failures import Selection
from zithara_worker.queue.queues import QueueRow, queues_present
from zithara_worker.queue.statuses import Status
from zithara_worker.reasons import REMEDIES, remedy
from zithara_worker.shop.configuration import read_configuration
from zithara_worker.units import duration, iso

if TYPE_CHECKING:
    _ParamType = click.ParamType[str]
else:
    _ParamType = click.ParamType  # generic only in the newest versions, and there for type checkers alone

#: From how many messages on a progress bar is shown.
_MANY = 100


@click.group(invoke_without_command=False)
def failed() -> None:
    """Messages that were given up (ERROR): why, what would be sent now, and putting them right.

    ID is the message's id (queue_message.id), as in the log and in the Idempotency-Key. Magento's cleanup deletes
    failed messages after 7 days: retry, discard or export them before.

    \b
    Examples:
      zithara-worker failed summary
      zithara-worker failed list --topic zithara.order.events --newer-than 1d
      zithara-worker failed show 1234
      zithara-worker failed retry --all --reason http_500
    """


class ReasonCode(_ParamType):
    """A code of docs/reasons.md."""

    name = "code"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if remedy(str(value)) is None:
            self.fail(
                f"{value!r} is no reason code: --reason selects what failed with a code, such as http_400 "
                "('failed summary' shows those there are); words of your own go into --note",
                param,
                ctx,
            )
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(code) for code in REMEDIES if code.startswith(incomplete)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the operator's options select."""

    topics: tuple[str, ...]
    reasons: tuple[str, ...]
    group: str | None
    older_than: float | None
    newer_than: float | None

    @property
    def narrowed(self) -> bool:
        return bool(self.topics or self.reasons or self.group or self.older_than or self.newer_than)


def _selecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say which messages are meant, as one argument `choice`."""

    @wraps(command)
    def gathered(*arguments: Any, **options: Any) -> Any:
        names = ("topics", "reasons", "group", "older_than", "newer_than")
        return command(*arguments, choice=Choice(**{name: options.pop(name) for name in names}), **options)

    add: Callable[..., Any] = gathered
    for option in (
        click.option("--newer-than", type=Duration(), metavar="AGE", help="Failed more recently than this."),
        click.option("--older-than", type=Duration(), metavar="AGE", help="Failed longer ago: 90s, 15m, 2h, 7d."),
        click.option("--group", metavar="KEY", help="Only of this message group, such as order:000000101."),
        click.option(
            "--reason",
            "reasons",
            type=ReasonCode(),
            multiple=True,
            metavar="CODE",
            help="Only what failed with this reason.",
        ),
        click.option("--topic", "topics", type=click.Choice(TOPICS), multiple=True, help="Only of this topic."),
    ):
        add = option(add)
    return add


def _changing(command: Callable[..., Any]) -> Callable[..., Any]:
    """What the commands that change messages share: which, and whether to ask."""
    for option in (
        click.option("--yes", is_flag=True, help="Do not ask, however many they are."),
        _selecting,
        click.option("--all", "every", is_flag=True, help="All of them, or all that the options select."),
        click.argument("ids", type=int, nargs=-1, metavar="[ID]..."),
    ):
        command = option(command)
    return command


@failed.command()
@_selecting
@click.option("--json", "as_json", is_flag=True, help="A JSON array, one object a topic and reason.")
@click.pass_obj
def summary(context: Context, choice: Choice, as_json: bool) -> None:
    """The failed messages counted by topic and reason: since when, the newest as an example, and what to do.

    \b
    Examples:
      zithara-worker failed summary
      zithara-worker failed summary --newer-than 1d --json
    """
    with shop_database(context) as database:
        queues = _queues(database, context, choice)
        found = operations.summary(database, operations.matching(database, _selection(queues, choice)), queues)
    if as_json:
        values = [
            {
                **{name: value for name, value in asdict(each).items() if name != "since_utc"},
                "since": iso(each.since_utc),
            }
            for each in found
        ]
        click.echo(escaped(json.dumps(values, ensure_ascii=False, indent=2)))
        return
    if not found:
        click.echo("no failed messages" + (" among those" if choice.narrowed else ""))
    for line in _counted(found):
        click.echo(line)
    for reason, text in {each.reason: each.remedy for each in found}.items():
        click.echo(f"{printable(reason)}: {text or 'see docs/reasons.md'}")


@failed.command("list")
@_selecting
@click.option("--waiting", is_flag=True, help="Those that wait for a further attempt (RETRY_REQUIRED) as well.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="The newest N of them.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array, one object a message.")
@click.pass_obj
def list_command(
    context: Context,
    choice: Choice,
    waiting: bool,
    limit: int,
    as_json: bool,
) -> None:
    """The failed messages, newest first.

    The reason 'unrecorded' is that of messages which a PHP consumer rejected.

    \b
    Examples:
      zithara-worker failed list
      zithara-worker failed list --reason http_400 --older-than 2d --json
    """
    with shop_database(context) as database:
        selection = _selection(_queues(database, context, choice), choice, waiting=waiting)
        found, total = operations.newest(database, selection, limit=limit)
    if as_json:
        click.echo(escaped(json.dumps([operations.as_json(each) for each in found], ensure_ascii=False, indent=2)))
        return
    if not found:
        click.echo("no failed messages" + (" among those" if choice.narrowed else ""))
        return
    now = datetime.now(timezone.utc).timestamp()
    lines = table(
        ("ID", "TOPIC", "STATUS", "FAILED", "TRIES", "HTTP", "REASON", "GROUP"),
        [
            (
                str(each.message_id),
                _short(each.topic or "-"),
                each.status.name.lower().replace("_required", ""),
                duration(now - (each.last_failed_utc or each.updated_at_utc)) + " ago",
                str(each.attempts),
                str(each.http_status or "-"),
                printable(each.reason)
                + (" (newer delivered)" if each.newer_delivered else "")
                + (f" ({each.unwitnessed} unwitnessed)" if each.unwitnessed else ""),
                printable(operations.as_json(each)["group"] or "-", width=40),
            )
            for each in found
        ],
        left=(1, 2, 6, 7),
    )
    click.echo("\n".join(lines))
    if total > len(found):
        click.echo(f"{total - len(found)} more; raise --limit, or narrow the list", err=True)


@failed.command()
@click.argument("id", type=int)
@click.option("--unmasked", is_flag=True, help="Show personal data as they are.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def show(context: Context, id: int, unmasked: bool, as_json: bool) -> None:
    """All about message ID: why it failed, when it was tried, and the request that would be sent now.

    \b
    Example:
      zithara-worker failed show 1234
    """
    zithara = context.configured.settings.zithara
    with shop_database(context) as database:
        queues = _queues(database, context)
        found, _ = operations.find(database, [queue.queue_id for queue in queues], [id])
        if not found:
            _fail(f"there is no message {id} in the queues {', '.join(queue.name for queue in queues)}")
        configuration = read_configuration(database, None)
        shop = ShopContext(
            webhook_url=zithara.webhook_url or configuration.webhook_url,
            active_config_id=configuration.active_config_id,
            config_ids=configuration.config_ids,
            invented_phone=zithara.invented_phone,
            now_utc=datetime.now(timezone.utc),
        )
        value = operations.shown(database, found[0], shop=shop, base_url=zithara.base_url, unmasked=unmasked)
    if as_json:
        click.echo(escaped(json.dumps(value, ensure_ascii=False, indent=2)))
        return
    for line in _shown_lines(value):
        click.echo(line)


@failed.command()
@_changing
@click.option("--force", is_flag=True, help="Also where it overwrites newer data of the same group with older.")
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
    """Put failed messages back on the queue, with all attempts before them; by ID, discarded ones too.

    A message that would overwrite newer data of its order, customer or cart with older is left alone, unless --force:
    where newer data has been delivered since, and where a newer message is on its way. A newer one that only waits is
    delivered after it. Exit code 1 when a message was left alone, or is neither in ERROR nor discarded.

    \b
    Examples:
      zithara-worker failed retry 1234
      zithara-worker failed retry --all --topic zithara.order.events --reason http_400
    """
    with shop_database(context) as database, audit_file(context) as audit:
        relation_ids, unknown = _chosen(database, context, ids, every, choice, yes=yes, what="put back on the queue")
        with _progress(len(relation_ids), "retrying") as on_progress:
            done = operations.retry(
                database, relation_ids, by=operator(), force=force, note=note, audit=audit, on_progress=on_progress
            )
    not_failed = (*done.not_failed, *unknown)
    if as_json:
        value = {
            "retried": done.retried,
            "overtaken": done.overtaken,
            "passed": [{"id": id, "newer_id": newer} for id, newer in done.passed],
            "not_failed": not_failed,
        }
        click.echo(escaped(json.dumps(value)))
    else:
        click.echo(f"{len(done.retried)} put back on the queue")
        _say_not_failed(not_failed, "neither in ERROR nor discarded")
        if done.overtaken:
            click.echo(
                f"{len(done.overtaken)} left alone, because newer data of the same order, customer or cart has been "
                f"delivered since and this would overwrite it ({_some(done.overtaken)}): see 'failed show ID', then "
                "use --force, or discard them",
                err=True,
            )
        if done.passed:
            pairs = [f"{id} behind {newer}" for id, newer in done.passed]
            click.echo(
                f"{len(done.passed)} left alone, because a newer message of the same order, customer or cart is on its "
                f"way and may arrive first ({_some(pairs)}): give the command again when that one is delivered or has "
                "failed ('failed show ID' tells), or use --force",
                err=True,
            )
    if done.overtaken or done.passed or not_failed:
        sys.exit(EXIT_FAILED)


@failed.command()
@_changing
@click.option(
    "--note", required=True, metavar="TEXT", help="Why; kept in the message's history, the log and the audit file."
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
    """Give failed messages up: they become COMPLETE without having been delivered.

    'failed retry ID' takes one back, until Magento's cleanup deletes it (7 days after the discard).

    \b
    Examples:
      zithara-worker failed discard 1234 --note "test order"
      zithara-worker failed discard --all --reason not_json --note "broken extension, since removed"
    """
    if not note.strip():
        raise click.UsageError("--note must say why")
    with shop_database(context) as database, audit_file(context) as audit:
        relation_ids, unknown = _chosen(database, context, ids, every, choice, yes=yes, what="discarded")
        with _progress(len(relation_ids), "discarding") as on_progress:
            done = operations.discard(
                database, relation_ids, by=operator(), note=note, audit=audit, on_progress=on_progress
            )
    not_failed = (*done.not_failed, *unknown)
    if as_json:
        click.echo(escaped(json.dumps({"discarded": done.discarded, "not_failed": not_failed})))
    else:
        click.echo(f"{len(done.discarded)} discarded")
        _say_not_failed(not_failed, "not in ERROR")
    if not_failed:
        sys.exit(EXIT_FAILED)


@failed.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), default="-", metavar="[FILE]")
@_selecting
@click.option("--waiting", is_flag=True, help="Those that wait for a further attempt (RETRY_REQUIRED) as well.")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@click.pass_obj
def export(
    context: Context,
    file: Path,
    choice: Choice,
    waiting: bool,
    overwrite: bool,
) -> None:
    """Write failed messages to FILE, or to standard output, as JSON Lines: everything known, the stored body included.

    The file holds personal data, and is readable by its owner alone. It appears when it is complete.

    \b
    Example:
      zithara-worker failed export failed-$(date +%F).jsonl
    """
    with shop_database(context) as database:
        selection = _selection(_queues(database, context, choice), choice, waiting=waiting)
        relation_ids = operations.matching(database, selection)
        written = 0
        with _output(file, overwrite=overwrite) as stream, _progress(len(relation_ids), "exporting") as on_progress:
            for record in operations.export(database, relation_ids):
                stream.write(json.dumps(record, ensure_ascii=True) + "\n")
                written += 1
                on_progress(1)
    click.echo(f"{written} messages exported" + ("" if str(file) == "-" else f" to {file}"), err=True)


# ---------------------------------------------------------------- which messages


def _queues(database: Database, context: Context, choice: Choice | None = None) -> list[QueueRow]:
    topics = choice.topics if choice and choice.topics else TOPICS
    return queues_present(database, context.configured.settings.queues, topics)[0]


def _selection(queues: Sequence[QueueRow], choice: Choice, *, waiting: bool = False) -> Selection:
    return Selection(
        queue_ids=[queue.queue_id for queue in queues],
        statuses=(Status.ERROR, Status.RETRY_REQUIRED) if waiting else (Status.ERROR,),
        reasons=choice.reasons,
        group_key=choice.group,
        older_than_seconds=choice.older_than,
        newer_than_seconds=choice.newer_than,
    )


def _chosen(
    database: Database, context: Context, ids: tuple[int, ...], every: bool, choice: Choice, *, yes: bool, what: str
) -> tuple[Sequence[int], tuple[int, ...]]:
    """The relation ids that are meant, and ids that no message has. Asks before many are `what` ("discarded")."""
    if ids and (every or choice.narrowed):
        raise click.UsageError("give IDs, or --all with options that select, not both")
    if not ids and not every:
        raise click.UsageError("which messages? Give IDs, or --all (with --topic, --reason or an age, if you like)")
    unknown: tuple[int, ...] = ()
    queues = _queues(database, context, choice)
    if ids:
        found, unknown = operations.find(database, [queue.queue_id for queue in queues], list(dict.fromkeys(ids)))
        chosen: Sequence[int] = [each.id for each in found]
    else:
        chosen = operations.matching(database, _selection(queues, choice))
    if chosen and (every or len(chosen) > 1):
        for line in _counted(operations.summary(database, chosen, queues)):
            click.echo(line, err=True)
        many = f"{len(chosen)} message{'s' if len(chosen) > 1 else ''}"
        if not yes:
            if not sys.stdin.isatty():
                raise click.UsageError(
                    f"{many} would be {what}, and there is no terminal to ask: give --yes if they are the ones you mean"
                )
            click.confirm(f"Shall {many} be {what}?", abort=True, err=True)
    return chosen, unknown


# ---------------------------------------------------------------- printing


@contextmanager
def _progress(total: int, label: str) -> Iterator[Callable[[int], object]]:
    """A progress bar on a terminal's standard error, when there are many."""
    if total < _MANY or not sys.stderr.isatty():
        yield lambda number: None
        return
    with click.progressbar(length=total, label=label, file=sys.stderr, show_pos=True) as bar:
        yield bar.update


@contextmanager
def _output(file: Path, *, overwrite: bool) -> Iterator[TextIO]:
    """Standard output, or a file that gets its name when everything is written and safe on the disk."""
    if str(file) == "-":
        yield sys.stdout
        sys.stdout.flush()
        return
    if file.exists() and not overwrite:
        _fail(f"{file} exists: name another file, or give --overwrite")
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        _fail(f"cannot write {file}: {error.strerror or error}")
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _counted(found: Sequence[operations.Reason]) -> list[str]:
    now = datetime.now(timezone.utc).timestamp()
    return (
        table(
            ("TOPIC", "REASON", "MESSAGES", "SINCE", "NEWEST"),
            [
                (
                    _short(each.topic),
                    printable(each.reason),
                    str(each.messages),
                    duration(now - each.since_utc) + " ago",
                    str(each.newest_id),
                )
                for each in found
            ],
            left=(0, 1),
        )
        if found
        else []
    )


def _short(topic: str) -> str:
    return topic.removeprefix("zithara.").removesuffix(".events")


def _shown_lines(value: dict[str, Any]) -> Iterator[str]:
    yield f"message     {value['id']} (row {value['relation_id']} of {value['queue']})"
    yield f"topic       {value['topic']}"
    yield f"group       {printable(value['group'])}"
    retried = f", {value['retries']} times retried by an operator" if value["retries"] else ""
    yield f"status      {value['status']}, {value['attempts']} attempts{retried}"
    if value["discarded_at"]:
        yield f"discarded   {value['discarded_at']}; 'failed retry {value['id']}' takes it back"
    http = f", HTTP {value['http_status']}" if value["http_status"] else ""
    yield f"reason      {printable(value['reason'])}{http}"
    if value["detail"]:
        yield f"answer      {printable(value['detail'])}"
    if value["unwitnessed"]:
        yield (f"unwitnessed {value['unwitnessed']} attempts: it is not given up until another message succeeds there")
    if value["first_failed_at"]:
        yield f"failed      first {value['first_failed_at']}, last {value['last_failed_at']}"
    for each in value["history"]:
        what = f"operator: {each['act']}" if "act" in each else f"{each.get('reason')}"
        code = f" HTTP {each['http_status']}" if each.get("http_status") else ""
        who = each.get("operator") or each.get("worker") or ""
        note = f": {each['note']}" if each.get("note") else ""
        yield f"  {printable(each.get('at'))}  {printable(what)}{code}  {printable(who + note)}"
    if value["newer_delivered"]:
        yield "warning     newer data of this group has been delivered since: a retry would overwrite it (--force)"
    for each in value["later"]:
        yield f"later       {each['id']} {each['status']} {each['updated_at']}"
    yield "request     that would be sent now:"
    request = value["request"]
    if "method" in request:
        yield f"  {request['method']} {request['url']}"
        for name, text in request["headers"].items():
            yield f"  {name}: {text}"
        for line in json.dumps(request["json"], indent=2, ensure_ascii=False).splitlines():
            yield f"  {printable(line)}"
    elif "skip" in request:
        yield f"  none: it would complete as skipped ({request['skip']})"
    else:
        yield f"  none: {request['error']['code']}: {printable(request['error']['detail'])}"


def _say_not_failed(ids: Sequence[int], what: str) -> None:
    if ids:
        click.echo(f"{len(ids)} {what}, or not there, and left as they are ({_some(ids)})", err=True)


def _some(values: Sequence[object]) -> str:
    return ", ".join(str(each) for each in values[:10]) + (" ..." if len(values) > 10 else "")


def _fail(text: str) -> NoReturn:
    click.echo(f"zithara-worker: {text}", err=True)
    sys.exit(EXIT_FAILED)
