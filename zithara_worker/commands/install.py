"""`install`: creates the worker's tables and registers the queues."""

from __future__ import annotations

import click

from zithara_worker.commands.root import Context
from zithara_worker.database import schema


@click.command()
@click.option("--print", "only_print", is_flag=True, help="Print all SQL with the grants; execute nothing.")
@click.option(
    "--from",
    "upgrade_from",
    type=click.IntRange(1, schema.VERSION - 1),
    metavar="N",
    help="With --print: only the upgrade from schema N.",
)
@click.option("--user", default="'zithara_worker'@'localhost'", metavar="ACCOUNT", help="The account that grants name.")
@click.pass_obj
def install(context: Context, only_print: bool, upgrade_from: int | None, user: str) -> None:
    """Create the worker's tables and register the four queues. Running it again changes nothing.

    Tables of an older version are upgraded in place while workers run.
    Needs a database user with CREATE and ALTER, such as the shop's own: set [magento] root, or for this one call
    ZITHARA_WORKER_DATABASE_USER and ZITHARA_WORKER_DATABASE_PASSWORD.

    \b
    Examples:
      zithara-worker install
      zithara-worker install --print --user "'zithara_worker'@'10.0.0.5'"
      zithara-worker install --print --from 1
    """
    if upgrade_from is not None and not only_print:
        raise click.UsageError("--from needs --print: without --print, install finds out which schema is there")
    settings = context.configured.settings
    if only_print:
        click.echo(
            schema.script_text(
                prefix=settings.database.table_prefix,
                database_name=settings.database.name or "magento",
                user=user,
                upgrade_from=upgrade_from,
            )
        )
        return
    context.start_logging()
    with context.database() as database:
        installed = schema.install(database)
    if installed.upgraded_from is not None:
        click.echo(f"schema {installed.upgraded_from} upgraded to {schema.VERSION}; grants: see --print")
    for table in installed.tables:
        click.echo(f"table {table}")
    for name, queue_id in installed.queues:
        click.echo(f"queue {name} (id {queue_id})")
    if not installed.optional_index:
        click.echo(
            "index: none over (queue_id, status, message_id); it is optional, "
            "see the end of 'zithara-worker install --print'"
        )
