"""`failed`: messages that were given up, and what to do with them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

from zithara_worker.cli.operating import audit_file, operator, shop_database
from zithara_worker.cli.rendering import Duration, duration, printable, table
from zithara_worker.cli.root import EXIT_FAILED, Context
from zithara_worker.magento.database import Database
from zithara_worker.magento.failures import Selection
from zithara_worker.magento.shop import read_configuration
from zithara_worker.magento.statuses import Status
from zithara_worker.messages import TOPICS
from zithara_worker.operations import failed as operations
from zithara_worker.operations.queues import queues_present
from zithara_worker.processors import ShopContext

#: From how many messages on a progress bar is shown.
_MANY = 100


@click.group(invoke_without_command=False)
def failed() -> None:
    """Messages that were given up (ERROR): why, what would be sent now, and putting them right.

    ID is the message's id (queue_message.id), as in the log and in the Idempotency-Key. Magento's cleanup deletes
    failed messages after 7 days: retry, discard or export them before.

    \b
    Examples:
      zithara-worker failed list --topic zithara.order.events --newer-than 1d
      zithara-worker failed show 1234
      zithara-worker failed retry --all --reason http_500
    """


def _selecting(*, reason: Sequence[str] = ("--reason", "--reason-code")) -> Callable[..., Any]:
    """Options that say which messages are meant; `reason`: what the one for the reason of the failure is called."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option("--newer-than", type=Duration(), metavar="AGE", help="Failed more recently than this."),
            click.option("--older-than", type=Duration(), metavar="AGE", help="Failed longer ago: 90s, 15m, 2h, 7d."),
            click.option("--group", metavar="KEY", help="Only of this message group, such as order:000000101."),
            click.option(*reason, "reasons", multiple=True, metavar="CODE", help="Only what failed with this reason."),
            click.option("--topic", "topics", type=click.Choice(TOPICS), multiple=True, help="Only of this topic."),
        ):
            command = option(command)
        return command

    return add


@failed.command("list")
@_selecting()
@click.option("--waiting", is_flag=True, help="Those that wait for a further attempt (RETRY_REQUIRED) as well.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="The newest N of them.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array, one object a message.")
@click.pass_obj
def list_command(
    context: Context,
    topics: tuple[str, ...],
    reasons: tuple[str, ...],
    group: str | None,
    older_than: float | None,
    newer_than: float | None,
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
        selection = _selection(database, context, topics, reasons, group, older_than, newer_than, waiting=waiting)
        found, total = operations.newest(database, selection, limit=limit)
    if as_json:
        click.echo(json.dumps([operations.as_json(each) for each in found], ensure_ascii=False, indent=2))
        return
    if not found:
        click.echo("no failed messages" + (" among those" if topics or reasons or group or older_than else ""))
        return
    now = datetime.now(timezone.utc).timestamp()
    lines = table(
        ("ID", "TOPIC", "STATUS", "FAILED", "TRIES", "HTTP", "REASON", "GROUP"),
        [
            (
                str(each.message_id),
                (each.topic or "-").removeprefix("zithara.").removesuffix(".events"),
                each.status.name.lower().replace("_required", ""),
                duration(now - (each.last_failed_utc or each.updated_at_utc)) + " ago",
                str(each.attempts),
                str(each.http_status or "-"),
                printable(each.reason) + (" (newer delivered)" if each.newer_delivered else ""),
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
        queues, _ = queues_present(database, context.configured.settings.queues)
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
        click.echo(json.dumps(value, ensure_ascii=False, indent=2))
        return
    for line in _shown_lines(value):
        click.echo(line)


@failed.command()
@click.argument("ids", type=int, nargs=-1, metavar="[ID]...")
@click.option("--all", "every", is_flag=True, help="All of them, or all that the options select.")
@_selecting()
@click.option("--force", is_flag=True, help="Also where newer data of the same group has been delivered since.")
@click.option("--json", "as_json", is_flag=True, help='One JSON object: {"retried", "overtaken", "not_failed"}.')
@click.pass_obj
def retry(
    context: Context,
    ids: tuple[int, ...],
    every: bool,
    topics: tuple[str, ...],
    reasons: tuple[str, ...],
    group: str | None,
    older_than: float | None,
    newer_than: float | None,
    force: bool,
    as_json: bool,
) -> None:
    """Put failed messages back on the queue, with all attempts before them.

    A message whose order, customer or cart has had newer data delivered since would overwrite that with older data:
    it is left alone, unless --force. Exit code 1 when a message was left alone or is not in ERROR.

    \b
    Examples:
      zithara-worker failed retry 1234 1235
      zithara-worker failed retry --all --topic zithara.order.events --reason http_400
    """
    narrowed = bool(topics or reasons or group or older_than or newer_than)
    with shop_database(context) as database, audit_file(context) as audit:
        relation_ids, unknown = _chosen(
            database, context, ids, every, narrowed, (topics, reasons, group, older_than, newer_than)
        )
        with _progress(len(relation_ids), "retrying") as on_progress:
            done = operations.retry(
                database, relation_ids, by=operator(), force=force, audit=audit, on_progress=on_progress
            )
    not_failed = (*done.not_failed, *unknown)
    if as_json:
        value = {"retried": done.retried, "overtaken": done.overtaken, "not_failed": not_failed}
        click.echo(json.dumps(value))
    else:
        click.echo(f"{len(done.retried)} put back on the queue")
        _say_not_failed(not_failed)
        if done.overtaken:
            click.echo(
                f"{len(done.overtaken)} left alone, because newer data of the same order, customer or cart has been "
                f"delivered since and this would overwrite it ({_some(done.overtaken)}): see 'failed show ID', then "
                "use --force, or discard them",
                err=True,
            )
    if done.overtaken or not_failed:
        sys.exit(EXIT_FAILED)


@failed.command()
@click.argument("ids", type=int, nargs=-1, metavar="[ID]...")
@click.option("--all", "every", is_flag=True, help="All of them, or all that the options select.")
@_selecting(reason=("--reason-code",))
@click.option("--reason", required=True, metavar="TEXT", help="Why; kept in the log and the audit file.")
@click.option("--json", "as_json", is_flag=True, help='One JSON object: {"discarded", "not_failed"}.')
@click.pass_obj
def discard(
    context: Context,
    ids: tuple[int, ...],
    every: bool,
    topics: tuple[str, ...],
    reasons: tuple[str, ...],
    group: str | None,
    older_than: float | None,
    newer_than: float | None,
    reason: str,
    as_json: bool,
) -> None:
    """Give failed messages up for good: they become COMPLETE without having been delivered.

    \b
    Examples:
      zithara-worker failed discard 1234 --reason "test order"
      zithara-worker failed discard --all --reason-code not_json --reason "broken extension, since removed"
    """
    narrowed = bool(topics or reasons or group or older_than or newer_than)
    if not reason.strip():
        raise click.UsageError("--reason must say why")
    with shop_database(context) as database, audit_file(context) as audit:
        relation_ids, unknown = _chosen(
            database, context, ids, every, narrowed, (topics, reasons, group, older_than, newer_than)
        )
        with _progress(len(relation_ids), "discarding") as on_progress:
            done = operations.discard(
                database, relation_ids, by=operator(), reason=reason, audit=audit, on_progress=on_progress
            )
    not_failed = (*done.not_failed, *unknown)
    if as_json:
        click.echo(json.dumps({"discarded": done.discarded, "not_failed": not_failed}))
    else:
        click.echo(f"{len(done.discarded)} discarded")
        _say_not_failed(not_failed)
    if not_failed:
        sys.exit(EXIT_FAILED)


@failed.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), default="-", metavar="[FILE]")
@_selecting()
@click.option("--waiting", is_flag=True, help="Those that wait for a further attempt (RETRY_REQUIRED) as well.")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@click.pass_obj
def export(
    context: Context,
    file: Path,
    topics: tuple[str, ...],
    reasons: tuple[str, ...],
    group: str | None,
    older_than: float | None,
    newer_than: float | None,
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
        selection = _selection(database, context, topics, reasons, group, older_than, newer_than, waiting=waiting)
        relation_ids = operations.matching(database, selection)
        written = 0
        with _output(file, overwrite=overwrite) as stream, _progress(len(relation_ids), "exporting") as on_progress:
            for record in operations.export(database, relation_ids):
                stream.write(json.dumps(record, ensure_ascii=True) + "\n")
                written += 1
                on_progress(1)
    click.echo(f"{written} messages exported" + ("" if str(file) == "-" else f" to {file}"), err=True)


# ---------------------------------------------------------------- which messages


def _selection(
    database: Database,
    context: Context,
    topics: tuple[str, ...],
    reasons: tuple[str, ...],
    group: str | None,
    older_than: float | None,
    newer_than: float | None,
    *,
    waiting: bool = False,
) -> Selection:
    queues, _ = queues_present(database, context.configured.settings.queues, topics or TOPICS)
    return Selection(
        queue_ids=[queue.queue_id for queue in queues],
        statuses=(Status.ERROR, Status.RETRY_REQUIRED) if waiting else (Status.ERROR,),
        reasons=reasons,
        group_key=group,
        older_than_seconds=older_than,
        newer_than_seconds=newer_than,
    )


def _chosen(
    database: Database,
    context: Context,
    ids: tuple[int, ...],
    every: bool,
    narrowed: bool,
    options: tuple[tuple[str, ...], tuple[str, ...], str | None, float | None, float | None],
) -> tuple[Sequence[int], tuple[int, ...]]:
    """The relation ids that are meant, and ids that no message has."""
    if ids and (every or narrowed):
        raise click.UsageError("give IDs, or --all with options that select, not both")
    if not ids and not every:
        raise click.UsageError(
            "which messages? Give IDs, or --all (with --topic, --reason-code or an age, if you like)"
        )
    if ids:
        queues, _ = queues_present(database, context.configured.settings.queues)
        found, unknown = operations.find(database, [queue.queue_id for queue in queues], list(dict.fromkeys(ids)))
        return [each.id for each in found], unknown
    return operations.matching(database, _selection(database, context, *options)), ()


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


def _shown_lines(value: dict[str, Any]) -> Iterator[str]:
    yield f"message     {value['id']} (row {value['relation_id']} of {value['queue']})"
    yield f"topic       {value['topic']}"
    yield f"group       {printable(value['group'])}"
    yield f"status      {value['status']}, {value['attempts']} attempts"
    http = f", HTTP {value['http_status']}" if value["http_status"] else ""
    yield f"reason      {printable(value['reason'])}{http}"
    if value["detail"]:
        yield f"answer      {printable(value['detail'])}"
    if value["first_failed_at"]:
        yield f"failed      first {value['first_failed_at']}, last {value['last_failed_at']}"
    for each in value["history"]:
        what = f"operator: {each['act']}" if "act" in each else f"{each.get('reason')}"
        code = f" HTTP {each['http_status']}" if each.get("http_status") else ""
        who = each.get("operator") or each.get("worker") or ""
        yield f"  {printable(each.get('at'))}  {printable(what)}{code}  {printable(who)}"
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


def _say_not_failed(ids: Sequence[int]) -> None:
    if ids:
        click.echo(f"{len(ids)} not in ERROR, or not there, and left as they are ({_some(ids)})", err=True)


def _some(ids: Sequence[int]) -> str:
    return ", ".join(str(id) for id in ids[:10]) + (" ..." if len(ids) > 10 else "")


def _fail(text: str) -> NoReturn:
    click.echo(f"zithara-worker: {text}", err=True)
    sys.exit(EXIT_FAILED)
