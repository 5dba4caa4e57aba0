"""`ledger`: what Zithara accepted of an order, customer or cart, and how to have it sent anew."""

from __future__ import annotations

import sys
import time

import click

from zithara_worker.commands.root import EXIT_FAILED, Context, operator_name
from zithara_worker.commands.terminal import ask_first, print_json, printable, progress
from zithara_worker.queue import ledger_records
from zithara_worker.topics import short_name
from zithara_worker.units import duration, iso, moment


@click.group()
def ledger() -> None:
    """What Zithara accepted last of each order, customer and cart.

    GROUP is an entity as the log names it: order:000000101, customer:42, cart:7001.

    \b
    Examples:
      zithara-worker ledger show order:000000101
      zithara-worker ledger forget cart:7001
    """


@ledger.command()
@click.argument("group")
@click.option("--json", "as_json", is_flag=True, help="A JSON array, one object a topic and account.")
@click.pass_obj
def show(context: Context, group: str, as_json: bool) -> None:
    """What Zithara accepted of GROUP. Exit code 1 when nothing is known of it.

    \b
    Example:
      zithara-worker ledger show order:000000101
    """
    with context.database() as database:
        found = ledger_records.records(database, group)
    if as_json:
        print_json([as_value(each) for each in found], indent=2)
    elif not found:
        click.echo(f"nothing is known of {printable(group)}: Zithara has accepted no message of it since version 0.3")
    for each in () if as_json else found:
        click.echo(f"{short_name(each.topic)} {printable(each.group_key)}")
        for name, value in _told(each):
            click.echo(f"  {name:<16} {value}")
    sys.exit(0 if found else EXIT_FAILED)


def _told(record: ledger_records.Record) -> list[tuple[str, str]]:
    ago = duration(time.time() - record.last_accepted_at_utc)
    told = [
        ("accepted", f"{moment(record.last_accepted_at_utc)} UTC ({ago} ago), {record.accepted} requests"),
        ("first accepted", f"{moment(record.first_accepted_at_utc)} UTC"),
        ("newest message", str(record.message_id) if record.message_id else "unknown: message ids have begun again"),
    ]
    if record.create_id:
        told.append(("newest create", str(record.create_id)))
    if record.entity_updated_at:
        told.append(("its own time", f"{record.entity_updated_at} UTC"))
    if record.stale:
        told.append(("stale", "an older message came behind a newer one: the shop may have a newer state"))
    if not record.is_sure:
        told.append(("next message", "is sent, whatever it tells"))
    return told


def as_value(record: ledger_records.Record) -> dict[str, object]:
    """The value that JSON shows."""
    return {
        "topic": record.topic,
        "group": record.group_key,
        "destination": record.destination,
        "message_id": record.message_id,
        "create_id": record.create_id or None,
        "entity_updated_at": record.entity_updated_at or None,
        "first_accepted_at": iso(record.first_accepted_at_utc),
        "last_accepted_at": iso(record.last_accepted_at_utc),
        "accepted": record.accepted,
        "sure": record.is_sure,
        "stale": record.stale,
    }


@ledger.command()
@click.argument("group", required=False)
@click.option("--all", "every", is_flag=True, help="Everything of all orders, customers and carts.")
@click.option("--yes", is_flag=True, help="Do not ask before forgetting everything.")
@click.pass_obj
def forget(context: Context, group: str | None, every: bool, yes: bool) -> None:
    """Forget what Zithara accepted of GROUP: its next message is sent, whatever it tells.

    For a CRM that lost data. Nothing is sent by this itself. Exit code 1 when nothing is known of GROUP.

    \b
    Examples:
      zithara-worker ledger forget cart:7001
      zithara-worker ledger forget --all
    """
    if every == (group is not None):
        raise click.UsageError("which? Give GROUP, or --all")
    with context.database() as database, context.audit() as audit:
        total = ledger_records.count(database) if every else 0
        if every:
            ask_first(f"Forget what Zithara accepted of {total} orders, customers and carts?", yes=yes)
        with progress(total, "forgetting") as on_progress:
            forgotten = ledger_records.forget(database, group, by=operator_name(), audit=audit, on_progress=on_progress)
    click.echo(f"{forgotten} forgotten" if forgotten or every else f"nothing is known of {printable(group)}")
    sys.exit(0 if forgotten or every else EXIT_FAILED)
