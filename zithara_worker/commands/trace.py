"""`trace`: everything that is known of one order, customer, cart or message, and what an operator can do."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click

from zithara_worker.commands.failed import as_record, history_lines, masked_group
from zithara_worker.commands.failed_selection import queues_of
from zithara_worker.commands.ledger import as_value as accepted_value
from zithara_worker.commands.prospects import RETRY_TEXTS, SENT, Prospects
from zithara_worker.commands.root import EXIT_FAILED, Context
from zithara_worker.commands.terminal import print_json, printable, progress, table
from zithara_worker.completeness.trace import (
    MESSAGE,
    WEBHOOK_ORDER,
    Block,
    Entity,
    InShop,
    Traced,
    TracedMessage,
    Wait,
    entity_of_message,
)
from zithara_worker.completeness.trace import trace as trace_entity
from zithara_worker.database.session import Database
from zithara_worker.errors import ShopError
from zithara_worker.logs.masking import masked_value
from zithara_worker.pages import page
from zithara_worker.processors.groups import entity_key
from zithara_worker.queue.queues import QueueRow
from zithara_worker.reasons import find
from zithara_worker.shop.readers import READERS
from zithara_worker.topics import ORDER, TOPIC_TABLE, short_name
from zithara_worker.units import counts, duration, iso, moment

_READERS = {TOPIC_TABLE[each.topic].entity: each for each in READERS}
#: Messages that are printed: of those that have ended the newest, of the others the oldest; and the newest attempts of
#: each. Ids that a command names one by one.
_MESSAGES, _ATTEMPTS, _IDS = 10, 5, 10
#: Seconds of a search before its progress is shown.
_PATIENCE = 1.0


@click.command()
@click.argument("what", type=click.Choice([*_READERS, MESSAGE]), metavar="order|customer|cart|message")
@click.argument("name", metavar="NUMBER|ID")
@click.option(
    "--newest", type=click.IntRange(min=1), metavar="N", help="Search only the newest N messages of each queue."
)
@click.option("--unmasked", is_flag=True, help="Do not mask personal data.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def trace(context: Context, what: str, name: str, newest: int | None, unmasked: bool, as_json: bool) -> None:
    """Everything known of one order (by its number), customer, cart or message (by its id).

    Its state in the shop, what Zithara last accepted, each message that the tables still hold with its attempts, what
    waits and why, and what to do next. Of a message: of the order, customer or cart that it is about. Ctrl-C ends the
    search for messages, and what was found is shown. Exit code 1 when nothing is known.

    \b
    Examples:
      zithara-worker trace order 000000101
      zithara-worker trace message 1234 --json
    """
    with context.database() as database:
        queues = queues_of(database, context)
        entity = _entity(database, what, name, queues)
        prospects = Prospects(context, database)
        reader = _READERS.get(entity.kind)
        with _progress() as on_progress:
            found = trace_entity(
                database,
                entity,
                queues=queues,
                reader=reader(database) if reader else None,
                rules=prospects,
                newest=newest,
                on_progress=on_progress,
            )
    audit_file = context.configured.settings.logging.audit_file
    if as_json:
        print_json(as_value(found, unmasked=unmasked), indent=2)
    else:
        for line in report(found, unmasked=unmasked, audit_file=audit_file):
            click.echo(line)
    sys.exit(0 if found.is_known else EXIT_FAILED)


def _entity(database: Database, what: str, name: str, queues: Sequence[QueueRow]) -> Entity:
    if what != MESSAGE:
        group_key = entity_key(what, name)
        if group_key is None:
            raise click.UsageError(f"which {what}? Give its {'number' if what == ORDER.entity else 'id'}")
        return Entity(kind=what, name=name, group_key=group_key)
    if not name.isascii() or not name.isdecimal():
        raise click.UsageError(f"{name!r} is no message id: give the number that the log and 'failed list' show")
    entity = entity_of_message(database, int(name), queues)
    if entity is None:
        raise ShopError(
            f"there is no message {name} in the queues {', '.join(queue.name for queue in queues)}, and Zithara has "
            "accepted no state by it: Magento deletes messages after 7 days"
        )
    return entity


@contextmanager
def _progress() -> Iterator[Callable[[int, int], object]]:
    """A progress bar for a search that takes long. Is called with steps done and in all."""
    began, shown = time.monotonic(), 0
    step: Callable[[int], object] | None = None
    with ExitStack() as stack:

        def on_progress(done: int, total: int) -> None:
            nonlocal step, shown
            if step is None and time.monotonic() - began > _PATIENCE:
                step = stack.enter_context(progress(total, "searching (Ctrl-C ends the search)"))
            if step is not None:
                step(done - shown)
                shown = done

        yield on_progress


# ---------------------------------------------------------------- the next step


def steps(found: Traced) -> Iterator[tuple[str | None, str]]:
    """What an operator can do, the most urgent first: command, why. No command: nothing is to be done, or in the
    shop."""
    for block in found.blocks:
        command, remedy = _BLOCK_STEPS[block.why](short_name(block.topic))
        yield command, block.remedy or remedy
    if of_php := [str(wait.message_id) for wait in found.waits if wait.why == "php"]:
        yield f"zithara-worker failed release {' '.join(of_php)}", "once no PHP consumer is at work"
    yield from _steps_of_failed([each for each in found.messages if each.ended == "failed"])
    if len(found.in_shop) > 1:
        yield None, "give the orders of one store other numbers: Zithara cannot tell these apart"
    elif not any(not each.ended or each.ended == "failed" for each in found.messages):
        discarded = [each.row.message_id for each in found.messages[-1:] if each.ended == "discarded"]
        for each in found.in_shop:
            if each.has_latest is False and discarded:
                yield (
                    f"zithara-worker failed retry {discarded[0]}",
                    "takes the discard back, if it is to be sent after all",
                )
            elif each.has_latest is False:
                yield (
                    f"zithara-worker reconcile {found.entity.kind}s {_window(each.entity.updated_at)} --publish",
                    "publishes it, once it has not changed for 15 minutes",
                )


def _window(updated_at: str) -> str:
    """Options of reconcile by which it looks at what changed in that second, or, without a time, at everything."""
    try:
        until = datetime.fromisoformat(updated_at) + timedelta(seconds=1)
    except ValueError:  # old shops have rows with the time 0000-00-00
        return "--all"
    return f"--since '{updated_at}' --until '{until}'"


def _steps_of_failed(failed: Sequence[TracedMessage]) -> Iterator[tuple[str, str]]:
    """One command for all that a retry would send, since the older ones go first; one for each other verdict."""
    by_verdict: dict[str, list[TracedMessage]] = {}
    for each in failed:
        by_verdict.setdefault(each.retry or SENT, []).append(each)
    for verdict, messages in by_verdict.items():
        ids = " ".join(str(each.row.message_id) for each in messages)
        # The options select by what is recorded, which it is not of messages that PHP rejected.
        groups = {(each.row.topic, each.row.group_key) for each in failed}
        if len(messages) > _IDS and len(by_verdict) == len(groups) == 1 and (None, None) not in groups:
            ids = f"--all --topic {short_name(messages[0].topic)} --group {shlex.quote(str(messages[0].row.group_key))}"
        if verdict == SENT:
            reason = messages[-1].row.reason
            known = find(reason)
            yield (
                f"zithara-worker failed retry {ids}",
                f"{reason}: {known.remedy if known else 'see ' + page('reasons.md')}",
            )
        else:
            yield f"zithara-worker failed discard {ids} --note '...'", f"a retry {RETRY_TEXTS[verdict]}"


_BLOCK_STEPS: dict[str, Callable[[str], tuple[str | None, str]]] = {
    "paused": lambda topic: (f"zithara-worker resume {topic}", "if the reason of the pause has gone"),
    "shop_disabled": lambda topic: (
        "zithara-worker doctor",
        "what is switched off in the shop, and how to switch it on",
    ),
    "no_worker": lambda topic: (f"zithara-worker consume {topic}", "or start the service"),
    "breaker": lambda topic: ("zithara-worker status", ""),
}


# ---------------------------------------------------------------- JSON


def as_value(found: Traced, *, unmasked: bool) -> dict[str, Any]:
    """What `--json` prints. Programs read it: a field may be added, none goes away or changes its meaning."""
    return {
        "at": iso(found.at_utc),
        "kind": found.entity.kind,
        "name": _name(found, unmasked=unmasked),
        "group": found.entity.group_key if unmasked else masked_group(found.entity.group_key),
        "shop": {
            "problem": found.shop_problem or None,
            "ambiguous": len(found.in_shop) > 1,
            "entities": [
                {
                    "entity_id": each.entity.id,
                    "store_id": each.entity.store_id,
                    "created_at": _magento_iso(each.entity.created_at),
                    "updated_at": _magento_iso(each.entity.updated_at),
                    "zithara_has_it": each.has_latest,
                    "request": each.request and (each.request.json if unmasked else masked_value(each.request.json)),
                }
                for each in found.in_shop
            ],
        },
        "accepted": found.accepted and {**accepted_value(found.accepted), "other_account": found.other_account},
        "messages": [_message_value(each, unmasked=unmasked) for each in found.messages],
        "waits": [
            {
                "message_id": each.message_id,
                "why": each.why,
                "until": iso(each.until_utc),
                "other_id": each.other_id,
                "worker": each.worker,
            }
            for each in found.waits
        ],
        "blocks": [{"topic": each.topic, "why": each.why, "detail": each.detail} for each in found.blocks],
        "next": [{"command": command, "why": why} for command, why in steps(found)],
        "searched": {"messages": found.searched.messages, "complete": found.searched.complete},
    }


def _message_value(message: TracedMessage, *, unmasked: bool) -> dict[str, Any]:
    value = as_record(message.row, unmasked=unmasked)
    if not _has_failed(message):
        value["reason"] = None
    for known in ("group", "newer_delivered", "unwitnessed"):
        del value[known]
    return {
        **value,
        "topic": message.topic,
        "endpoint": message.told.endpoint,
        "entity_updated_at": _magento_iso(message.told.entity_updated_at),
        "ended": message.ended or None,
        "retry": message.retry,
    }


def _has_failed(message: TracedMessage) -> bool:
    return message.ended == "failed" or message.row.first_failed_utc is not None


def _magento_iso(text: str) -> str | None:
    """A time of Magento's tables, which is UTC."""
    return f"{text.replace(' ', 'T')}Z" if text else None


def _name(found: Traced, *, unmasked: bool) -> str:
    group = found.entity.group_key if unmasked else masked_group(found.entity.group_key)
    return found.entity.name if unmasked else group.partition(":")[2]


# ---------------------------------------------------------------- lines


def report(found: Traced, *, unmasked: bool, audit_file: Path | None) -> Iterator[str]:
    """The lines that `trace` prints."""
    kind = "order with entity id" if found.entity.kind == WEBHOOK_ORDER else found.entity.kind
    yield f"{kind} {printable(_name(found, unmasked=unmasked))}"
    yield from _lines("in the shop", _shop_lines(found))
    yield from _lines("at Zithara", _accepted_lines(found))
    yield from _lines("messages", _message_lines(found, unmasked=unmasked, audit_file=audit_file))
    more = len(found.waits) - _MESSAGES
    behind = [f"{more} more go after these"] if more > 0 else []
    yield from _lines("waits", [*map(_wait_text, found.waits[:_MESSAGES]), *behind, *map(_block_text, found.blocks)])
    if found.is_known:
        told = [line for command, why in steps(found) for line in ((command, f"  {why}") if command else (why,))]
        yield from _lines("next", told or ["nothing is to be done"])


def _lines(head: str, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield f"  {'' if number else head:<13}{line}".rstrip()


def _shop_lines(found: Traced) -> Iterator[str]:
    if found.shop_problem:
        yield printable(found.shop_problem)
    elif not found.in_shop and found.entity.kind in _READERS:
        is_id = found.entity.kind == ORDER.entity or found.entity.name.isdecimal()
        yield "not there: " + ("deleted, or never committed" if is_id else "its ids are numbers")
    if len(found.in_shop) > 1:
        yield f"{len(found.in_shop)} stores have an order of this number, and Zithara cannot tell them apart:"
    for each in found.in_shop:
        entity = each.entity
        yield (
            f"entity {entity.id} of store {entity.store_id}, created {entity.created_at}, "
            f"changed {entity.updated_at} UTC{_state(each)}"
        )
        if each.has_latest is not None:
            yield "Zithara has this state" if each.has_latest else "Zithara does not have this state"
        elif each.request is None:
            yield "no message is made of it: it has ended or lacks what a message needs"


def _state(each: InShop) -> str:
    """What is no personal data of what would be sent of it."""
    value = each.request.json if each.request else {}
    value = value.get("order") or value.get("cart") or {}
    told = [value.get("status"), value.get("current_total_price") or value.get("total_price"), value.get("currency")]
    return f": {printable(' '.join(str(one) for one in told if one))}" if any(told) else ""


def _accepted_lines(found: Traced) -> Iterator[str]:
    record = found.accepted
    if record is None:
        if found.entity.kind in _READERS:
            yield "nothing of it was accepted since version 0.3"
        return
    ago = duration(found.at_utc - record.last_accepted_at_utc)
    by = f"message {record.message_id}" if record.message_id else "a message of before ids began again"
    yield (
        f"accepted {moment(record.last_accepted_at_utc)} UTC ({ago} ago) by {by}; {record.accepted} requests since "
        f"{moment(record.first_accepted_at_utc)}"
    )
    if found.other_account:
        yield "by another account than the one in use, which has nothing of it"
    if record.stale:
        yield "an older message came behind a newer one: the shop may have a newer state"
    if not record.is_sure:
        yield "a request may still arrive, or an operator asked for one: the next message is sent, whatever it tells"


def _message_lines(found: Traced, *, unmasked: bool, audit_file: Path | None) -> Iterator[str]:
    ended = [each for each in found.messages if each.ended and each.ended != "accepted"]
    left_out = [*ended[:-_MESSAGES], *[each for each in found.messages if not each.ended][_MESSAGES:]]
    hidden = {each.row.id for each in left_out}
    shown = [each for each in found.messages if each.row.id not in hidden]
    if shown:
        head, *rows = table(
            ("ID", "TOPIC", "STATUS", "SINCE", "TRIES", "BECAME"), map(_cells, shown), left=(1, 2, 3, 5)
        )
        yield head
        for message, line in zip(shown, rows, strict=True):
            yield line
            for attempt in history_lines(message.row.history[-_ATTEMPTS:]):
                yield f"    {attempt}"
            if message.row.detail and _has_failed(message):
                yield f"    answer: {printable(as_record(message.row, unmasked=unmasked)['detail'])}"
    else:
        yield "none in the tables"
    if left_out:
        told = Counter(_BECAME[each.ended] for each in left_out)
        yield f"left out here: {counts(told)}; --json has them"
    if not found.searched.complete:
        yield f"only the newest {found.searched.messages} messages were searched: there may be more"
    if audit_file and any(each.ended == "complete" for each in found.messages):
        line = shlex.quote(f'"group":{json.dumps(found.entity.group_key)}')
        yield f"how each ended: grep -h {line} {shlex.quote(str(audit_file))}*"


def _cells(message: TracedMessage) -> tuple[str, ...]:
    row = message.row
    reason = f" ({printable(row.reason)}{f', HTTP {row.http_status}' if row.http_status else ''})"
    return (
        str(row.message_id),
        short_name(message.topic),
        row.status.name.lower(),
        moment(row.updated_at_utc),
        str(row.attempts),
        _BECAME[message.ended] + (reason if _has_failed(message) else ""),
    )


_BECAME = {
    "accepted": "accepted by Zithara",
    "complete": "delivered, or no request was needed",
    "discarded": "discarded by an operator",
    "failed": "given up",
    "to_be_deleted": "to be deleted by Magento",
    "": "not ended",
}


def _wait_text(wait: Wait) -> str:
    until, worker = f"{moment(wait.until_utc)} UTC", printable(wait.worker)
    return (
        f"{wait.message_id}: "
        + {
            "held": f"worker {worker} has it, with a lease until {until}",
            "taken_over": f"worker {worker} had it until {until}, and died or stalls: another takes it over",
            "php": "a PHP consumer has it, or died with it; Magento's cron puts it back after a day",
            "together": f"completes together with {wait.other_id}, which is newer",
            "behind": f"message {wait.other_id} goes first",
            "backoff": f"waits until {until} for its next attempt",
            "due": "is taken next",
        }[wait.why]
    )


def _block_text(block: Block) -> str:
    topic = short_name(block.topic)
    return (
        f"{topic}: "
        + {
            "paused": f"paused {printable(block.detail)}",
            "shop_disabled": "the shop has switched Zithara off",
            "no_worker": "no living worker serves it",
            "breaker": printable(block.detail),
        }[block.why]
    )
