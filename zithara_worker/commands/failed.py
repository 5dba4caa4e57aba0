"""`failed`: the messages that were given up, why they failed, and what would be sent now.

`failed retry`, `discard` and `release`: `failed_actions.py`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from zithara_worker.commands import failed_actions
from zithara_worker.commands.failed_aside import aside_command, aside_lines
from zithara_worker.commands.failed_selection import (
    Choice,
    queues_of,
    selecting,
    selection_of,
    summary_lines,
)
from zithara_worker.commands.preview import preview_body
from zithara_worker.commands.prospects import RETRY_TEXTS, Prospects
from zithara_worker.commands.root import Context
from zithara_worker.commands.terminal import output, print_json, printable, progress, table
from zithara_worker.database.session import Database
from zithara_worker.errors import ShopError
from zithara_worker.logs.masking import masked, masked_value
from zithara_worker.pages import page
from zithara_worker.processors import identify
from zithara_worker.queue import failures, search
from zithara_worker.queue.failures import Failure
from zithara_worker.queue.statuses import Status
from zithara_worker.reasons import UNRECORDED, find
from zithara_worker.relay import aside
from zithara_worker.topics import short_name
from zithara_worker.units import duration, iso
from zithara_worker.zithara.api import encoded, idempotency_key


@click.group()
def failed() -> None:
    """Messages that were given up (ERROR): show why, then retry, discard or export them.

    ID is the message's id (queue_message.id), as in the log and in the Idempotency-Key. Magento's cleanup deletes
    failed messages after 7 days: retry, discard or export them before.

    \b
    Examples:
      zithara-worker failed summary
      zithara-worker failed list --topic zithara.order.events --newer-than 1d
      zithara-worker failed show 1234
      zithara-worker failed retry --all --reason http_500
    """


failed.add_command(failed_actions.retry)
failed.add_command(failed_actions.discard)
failed.add_command(failed_actions.release)
failed.add_command(aside_command)


@failed.command()
@selecting
@click.option("--json", "as_json", is_flag=True, help="A JSON array, one object a topic and reason.")
@click.pass_obj
def summary(context: Context, choice: Choice, as_json: bool) -> None:
    """The failed messages counted by topic and reason: since when, the newest as an example, and what to do.

    \b
    Examples:
      zithara-worker failed summary
      zithara-worker failed summary --newer-than 1d --json
    """
    with context.database() as database:
        queues = queues_of(database, context, choice)
        found = failures.summary(database, failures.matching(database, selection_of(queues, choice)), queues)
    remedies = {each.reason: known.remedy if (known := find(each.reason)) else "" for each in found}
    if as_json:
        values = [
            {
                "topic": each.topic,
                "reason": each.reason,
                "messages": each.messages,
                "newest_id": each.newest_id,
                "remedy": remedies[each.reason],
                "since": iso(each.since_utc),
            }
            for each in found
        ]
        print_json(values, indent=2)
        return
    if not found:
        click.echo("no failed messages" + (" match these options" if choice.narrowed else ""))
    for line in summary_lines(found):
        click.echo(line)
    for code, remedy in remedies.items():
        click.echo(f"{printable(code)}: {remedy or 'see ' + page('reasons.md')}")


@failed.command("list")
@selecting
@click.option("--waiting", is_flag=True, help="Also messages that wait for a further attempt (RETRY_REQUIRED).")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="The newest N of them.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array, one object a message.")
@click.pass_obj
def list_command(context: Context, choice: Choice, waiting: bool, limit: int, as_json: bool) -> None:
    """The failed messages, newest first.

    The reason 'unrecorded' marks messages that a PHP consumer rejected.

    \b
    Examples:
      zithara-worker failed list
      zithara-worker failed list --reason http_400 --older-than 2d --json
    """
    with context.database() as database:
        selection = selection_of(queues_of(database, context, choice), choice, waiting=waiting)
        found, total = failures.newest(database, selection, limit=limit)
        kept = [] if choice.narrowed or as_json else aside.find(database, limit=limit)
    if as_json:
        print_json([as_record(each) for each in found], indent=2)
        return
    if kept:
        click.echo(
            "from RabbitMQ, kept aside because the queue cannot hold them ('zithara-worker failed aside --help'):"
        )
        click.echo("\n".join(aside_lines(kept)) + "\n")
    if not found:
        click.echo("no failed messages" + (" match these options" if choice.narrowed else ""))
        return
    now = time.time()
    lines = table(
        ("ID", "TOPIC", "STATUS", "FAILED", "TRIES", "HTTP", "REASON", "GROUP"),
        [
            (
                str(each.message_id),
                short_name(each.topic or "-"),
                each.status.name.lower().replace("_required", ""),
                duration(now - (each.last_failed_utc or each.updated_at_utc)) + " ago",
                str(each.attempts),
                str(each.http_status or "-"),
                printable(each.reason)
                + (" (newer delivered)" if each.newer_delivered else "")
                + (f" ({each.unwitnessed} unwitnessed)" if each.unwitnessed else ""),
                printable(as_record(each)["group"] or "-", width=40),
            )
            for each in found
        ],
        left=(1, 2, 6, 7),
    )
    click.echo("\n".join(lines))
    if total > 1:
        click.echo("counted by reason, with what to do: zithara-worker failed summary", err=True)
    if total > len(found):
        click.echo(f"{total - len(found)} more; raise --limit, or narrow the list", err=True)


@failed.command()
@click.argument("id", type=int)
@click.option("--unmasked", is_flag=True, help="Do not mask personal data.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def show(context: Context, id: int, unmasked: bool, as_json: bool) -> None:
    """Show message ID: why it failed, when it was tried, what Zithara last accepted of the same entity, what a retry
    would do, and the request that would be sent now.

    \b
    Example:
      zithara-worker failed show 1234
    """
    with context.database() as database:
        queues = queues_of(database, context)
        found, _ = failures.find(database, [queue.queue_id for queue in queues], [id])
        if not found:
            raise ShopError(f"there is no message {id} in the queues {', '.join(queue.name for queue in queues)}")
        prospects, base_url = Prospects(context, database), context.configured.settings.zithara.base_url
        value = full_record(database, found[0], prospects=prospects, base_url=base_url, unmasked=unmasked)
    if as_json:
        print_json(value, indent=2)
        return
    for line in _shown_lines(value):
        click.echo(line)


@failed.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), default="-", metavar="[FILE]")
@selecting
@click.option("--waiting", is_flag=True, help="Also messages that wait for a further attempt (RETRY_REQUIRED).")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@click.pass_obj
def export(context: Context, file: Path, choice: Choice, waiting: bool, overwrite: bool) -> None:
    """Write failed messages to FILE, or to standard output, as JSON Lines: all that is recorded, and the stored body.

    The file holds personal data and is readable by its owner only. It appears when it is complete.

    \b
    Example:
      zithara-worker failed export failed-$(date +%F).jsonl
    """
    with context.database() as database:
        selection = selection_of(queues_of(database, context, choice), choice, waiting=waiting)
        relation_ids = failures.matching(database, selection)
        kept = 0 if choice.narrowed else aside.count(database)
        written = 0
        with output(file, overwrite=overwrite) as stream, progress(len(relation_ids), "exporting") as on_progress:
            for record in export_records(database, relation_ids):
                stream.write(f"{json.dumps(record)}\n".encode("ascii"))
                written += 1
                on_progress(1)
    click.echo(f"{written} messages exported" + ("" if str(file) == "-" else f" to {file}"), err=True)
    if kept:
        click.echo(
            f"{kept} from RabbitMQ are kept aside and not among them: 'zithara-worker failed aside export'", err=True
        )


# ---------------------------------------------------------------- values


def full_record(
    database: Database, failure: Failure, *, prospects: Prospects, base_url: str, unmasked: bool
) -> dict[str, Any]:
    """One message: what is recorded of it, what Zithara last accepted of its entity, what a retry would do, later
    messages of its group, and the request that would be sent now.

    Personal data is masked unless `unmasked`.
    """
    found = list(failures.bodies(database, [failure.message_id]))
    if not found:
        raise ShopError(f"message {failure.message_id} has been deleted since")
    _, topic, body = found[0]
    group, content = identify(topic, failure.message_id, body)
    accepted = prospects.accepted(topic, group)
    request = preview_body(topic, body, shop=prospects.shop, base_url=base_url, line=failure.message_id)
    if "headers" in request:
        path = request["url"].removeprefix(base_url.rstrip("/"))
        key = f"{failure.queue}-{failure.message_id}"
        request["headers"]["Idempotency-Key"] = idempotency_key(
            key, request["method"], path, encoded(request["json"]), failure.retries
        )
    later = [
        {"id": each.message_id, "status": each.status.name, "updated_at": iso(each.updated_at_utc)}
        for each in search.later(database, failure, group)
    ]
    return {
        **as_record(failure, unmasked=unmasked),
        "topic": topic,
        "group": group if unmasked else masked_group(group),
        "body_characters": len(body),
        "accepted": accepted
        and {
            "message_id": accepted.message_id or None,
            "at": iso(accepted.last_accepted_at_utc),
            "is_newer": accepted.message_id > failure.message_id,
            "same_account": accepted.destination == prospects.destination,
        },
        "retry": prospects.retry(failure, topic, group, content)
        if failure.status is Status.ERROR or failure.discarded_utc
        else None,
        "later": later,
        "request": request if unmasked else _masked_request(request),
    }


def as_record(failure: Failure, *, unmasked: bool = False) -> dict[str, Any]:
    """The value that JSON and export show."""
    group = failure.group_key
    return {
        "id": failure.message_id,
        "relation_id": failure.id,
        "queue": failure.queue,
        "topic": failure.topic,
        "status": failure.status.name,
        "reason": failure.reason,
        "http_status": failure.http_status,
        "detail": failure.detail if unmasked else masked(failure.detail),
        "group": group if unmasked or group is None else masked_group(group),
        "attempts": failure.attempts,
        "number_of_trials": failure.number_of_trials,
        "first_failed_at": iso(failure.first_failed_utc),
        "last_failed_at": iso(failure.last_failed_utc),
        "updated_at": iso(failure.updated_at_utc),
        "newer_delivered": failure.newer_delivered,
        "unwitnessed": failure.unwitnessed,
        "retries": failure.retries,
        "discarded_at": iso(failure.discarded_utc),
        "history": list(failure.history),
    }


def export_records(database: Database, relation_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    """All that is recorded of each message, and its stored body: enough to publish it again."""
    for failure, topic, body in failures.with_bodies(database, relation_ids):
        yield {**as_record(failure, unmasked=True), "topic": topic, "body": body}


def masked_group(group: str) -> str:
    """A group key, which may hold an email address."""
    kind, _, name = group.partition(":")
    return f"{kind}:{masked(name)}" if "@" in name else group


def _masked_request(request: dict[str, Any]) -> dict[str, Any]:
    shown = {key: masked_value(value) if key == "json" else value for key, value in request.items()}
    if "url" in shown:
        address, question, _ = str(shown["url"]).partition("?")
        shown["url"] = f"{address}?***" if question else address
    if "group" in shown:
        shown["group"] = masked_group(str(shown["group"]))
    if "error" in shown:
        shown["error"] = {**shown["error"], "detail": masked(shown["error"]["detail"])}
    return shown


# ---------------------------------------------------------------- printing


def _shown_lines(value: dict[str, Any]) -> Iterator[str]:
    yield f"message     {value['id']} (row {value['relation_id']} of {value['queue']})"
    yield f"topic       {value['topic']}"
    yield f"group       {printable(value['group'])}"
    retried = f", {value['retries']} times retried by an operator" if value["retries"] else ""
    yield f"status      {value['status']}, {value['attempts']} attempts{retried}"
    if value["discarded_at"]:
        yield f"discarded   {value['discarded_at']}; 'failed retry {value['id']}' takes it back"
    http = f", HTTP {value['http_status']}" if value["http_status"] else ""
    complete = value["status"] == Status.COMPLETE.name and not value["discarded_at"]
    if complete:
        yield f"reason      none, it is complete: 'zithara-worker trace message {value['id']}' tells how it ended"
    elif value["reason"] == UNRECORDED and value["status"] != Status.ERROR.name:
        yield "reason      none, it has not failed"
    else:
        yield f"reason      {printable(value['reason'])}{http}"
    if value["detail"]:
        yield f"answer      {printable(value['detail'])}"
    if value["unwitnessed"]:
        yield f"unwitnessed {value['unwitnessed']} attempts: it is not given up until another message succeeds there"
    if value["first_failed_at"]:
        yield f"failed      first {value['first_failed_at']}, last {value['last_failed_at']}"
    for line in history_lines(value["history"]):
        yield f"  {line}"
    if accepted := value["accepted"]:
        by = f"message {accepted['message_id']}" if accepted["message_id"] else "a message of before ids began again"
        newer = ", which is newer" if accepted["is_newer"] else ""
        account = "" if accepted["same_account"] else "; not by the account in use"
        yield f"accepted    {accepted['at']} {by}{newer}{account}"
    if value["retry"]:
        yield f"retry       {RETRY_TEXTS[value['retry']]}"
    for each in value["later"]:
        yield f"later       {each['id']} {each['status']} {each['updated_at']}"
    yield "request     " + ("that it makes; nothing more is sent:" if complete else "that would be sent now:")
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


def history_lines(history: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """An attempt or an operator's action a line: when, what, and by whom."""
    for each in history:
        what = f"operator: {each['act']}" if "act" in each else f"{each.get('reason')}"
        code = f" HTTP {each['http_status']}" if each.get("http_status") else ""
        who = each.get("operator") or each.get("worker") or ""
        note = f": {each['note']}" if each.get("note") else ""
        yield f"{printable(each.get('at'))}  {printable(what)}{code}  {printable(who + note)}"
