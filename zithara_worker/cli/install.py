"""`install`: the worker's tables and queues."""

from __future__ import annotations

import click

from zithara_worker.cli.root import Context


@click.command()
@click.option("--print", "only_print", is_flag=True, help="Print all SQL, grants included, and execute nothing.")
@click.option("--user", default="'zithara_worker'@'localhost'", metavar="ACCOUNT", help="The account that grants name.")
@click.pass_obj
def install(context: Context, only_print: bool, user: str) -> None:
    """Create the worker's tables and register the four queues. Running it again changes nothing.

    Needs a database user who may CREATE tables, such as the shop's own: set [magento] root, or for this one call
    ZITHARA_WORKER_DATABASE_USER and ZITHARA_WORKER_DATABASE_PASSWORD.

    \b
    Examples:
      zithara-worker install
      zithara-worker install --print --user "'zithara_worker'@'10.0.0.5'"
    """
    from zithara_worker.app import open_database
    from zithara_worker.operations import install as operations

    settings = context.configured.settings
    if only_print:
        click.echo(
            operations.script_text(
                prefix=settings.database.table_prefix, database_name=settings.database.name or "magento", user=user
            )
        )
        return
    context.start_logging()
    database = open_database(settings)
    try:
        installed = operations.install(database)
    finally:
        database.close()
    for table in installed.tables:
        click.echo(f"table {table}")
    for name, queue_id in installed.queues:
        click.echo(f"queue {name} (id {queue_id})")
    if not installed.optional_index:
        click.echo(
            "index: none over (queue_id, status, message_id); it is optional, "
            "see the end of 'zithara-worker install --print'"
        )
