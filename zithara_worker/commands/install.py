"""`install`: creates the worker's tables and registers the queues."""

from __future__ import annotations

import click

from zithara_worker.commands.root import Context
from zithara_worker.commands.terminal import ask_first, progress
from zithara_worker.database import schema
from zithara_worker.errors import Contention, NotGranted, ShopError
from zithara_worker.pages import page

_AS_ADMINISTRATOR = (
    "do it as a database user who may CREATE and ALTER tables, such as the shop's own, since the worker's own has no "
    "right to that: set [magento] root, or ZITHARA_WORKER_DATABASE_USER and ZITHARA_WORKER_DATABASE_PASSWORD_FILE for "
    "this one call, or let an administrator run what 'zithara-worker install --print' prints"
)


@click.command()
@click.option("--print", "only_print", is_flag=True, help="Print all SQL with the grants; execute nothing.")
@click.option(
    "--from",
    "upgrade_from",
    type=click.IntRange(1, schema.VERSION - 1),
    metavar="N",
    help="With --print: only the upgrade from schema N.",
)
@click.option("--index", is_flag=True, help="Also build the optional index, while the shop publishes.")
@click.option("--yes", is_flag=True, help="With --index: do not ask, on a cluster either.")
@click.option("--user", default="'zithara_worker'@'localhost'", metavar="ACCOUNT", help="The account that grants name.")
@click.option(
    "--operator", metavar="ACCOUNT", help="With --print: only the grants of an operator's account, which may reconcile."
)
@click.pass_obj
def install(
    context: Context,
    only_print: bool,
    upgrade_from: int | None,
    index: bool,
    yes: bool,
    user: str,
    operator: str | None,
) -> None:
    """Create the worker's tables and register the four queues. Running it again changes nothing.

    Tables of an older version are upgraded in place while workers run.
    Needs a database user with CREATE and ALTER, such as the shop's own: set [magento] root, or for this one call
    ZITHARA_WORKER_DATABASE_USER and ZITHARA_WORKER_DATABASE_PASSWORD.

    \b
    Examples:
      zithara-worker install
      zithara-worker install --index
      zithara-worker install --print --user "'zithara_worker'@'10.0.0.5'"
      zithara-worker install --print --from 1
      zithara-worker install --print --operator "'zithara_operator'@'localhost'"
    """
    if operator is not None and (not only_print or upgrade_from is not None):
        raise click.UsageError(
            "--operator needs --print, and no --from: it prints that account's grants and nothing else"
        )
    if upgrade_from is not None and not only_print:
        raise click.UsageError("--from needs --print: without --print, install finds out which schema is there")
    if index and only_print:
        raise click.UsageError("--print has the optional index at its end: leave out --index")
    settings = context.configured.settings
    database_name = settings.database.name or "magento"
    if operator is not None:
        click.echo(
            schema.operator_text(prefix=settings.database.table_prefix, database_name=database_name, user=operator)
        )
        return
    if only_print:
        click.echo(
            schema.script_text(
                prefix=settings.database.table_prefix,
                database_name=database_name,
                user=user,
                upgrade_from=upgrade_from,
            )
        )
        return
    context.start_logging()
    with context.database() as database:
        try:
            installed = schema.install(database)
        except NotGranted as error:
            raise NotGranted(error.seen, _AS_ADMINISTRATOR) from error
    if installed.upgraded_from is not None:
        click.echo(f"schema {installed.upgraded_from} upgraded to {schema.VERSION}; grants: see --print")
    for table in installed.tables:
        click.echo(f"table {table}")
    for name, queue_id in installed.queues:
        click.echo(f"queue {name} (id {queue_id})")
    if index and not installed.optional_index:
        _build_index(context, yes=yes)
    elif not installed.optional_index:
        click.echo(
            "index: none over (queue_id, status, message_id); it is optional, see 'zithara-worker install --index'"
        )
    else:
        click.echo("index: there")


def _build_index(context: Context, *, yes: bool) -> None:
    with (
        context.database() as watcher,
        context.database(addresses=watcher.addresses, statement_limit=False) as builder,
    ):
        cluster = watcher.rows("cluster_variables")
        if any(row["Variable_name"] == "group_replication_group_name" and row["Value"] for row in cluster):
            click.echo("the other members build the index afterwards, and lag for so long", err=True)
        if watcher.is_galera:
            click.echo(
                "This is a Galera cluster: while the index is built, no node takes writes to any table, for about as "
                "long as a single server would need. Node by node (wsrep_OSU_method = RSU) nobody waits: "
                f"{page('databases.md')} has the steps.",
                err=True,
            )
            ask_first("Build it at once on all nodes?", yes=yes)
        with progress(100, "building the index") as on_percent:
            done = 0

            def on_progress(share: float) -> None:
                nonlocal done
                percent = min(99, int(share * 100))
                on_percent(percent - done)
                done = percent

            try:
                schema.build_index(builder, watcher, on_progress)
            except Contention as error:
                raise ShopError(
                    f"the index was not built: a transaction held the table for too long ({error}); nothing changed. "
                    "Run it again, at a quieter hour"
                ) from error
    click.echo("index: built; running workers use it once they are reloaded (SIGHUP) or restarted")
