"""`config`: the effective configuration and its sources."""

from __future__ import annotations

import json

import click

from zithara_worker.commands.root import Context
from zithara_worker.errors import ConfigurationError, DatabaseUnavailable, ShopError


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object: {section: {key: {value, source}}}.")
@click.option("--sample", is_flag=True, help="Print a configuration file with every key and its default instead.")
@click.pass_obj
def config(context: Context, as_json: bool, sample: bool) -> None:
    """Print each effective value with where it came from; secrets are masked.

    Asks the shop's database as well, if it can be reached.

    \b
    Examples:
      zithara-worker config
      zithara-worker config --sample > zithara-worker.conf
    """
    from zithara_worker.commands.config_rows import rows
    from zithara_worker.shop.configuration import read_configuration
    from zithara_worker.shop.deployment_config import deployment_config
    from zithara_worker.worker.worker import complete, open_database

    if sample:
        from zithara_worker.settings.sources import sample_file

        click.echo(sample_file(), nl=False)
        return
    configured = context.configured
    database = open_database(configured.settings)
    try:
        configured = complete(
            configured, read_configuration(database, deployment_config(configured.settings.magento.root))
        )
    except (ConfigurationError, DatabaseUnavailable, ShopError) as error:
        click.echo(f"without what the shop's database says: {error}", err=True)
    finally:
        database.close()
    for warning in configured.warnings:
        click.echo(f"warning: {warning}", err=True)
    found = rows(configured)
    if as_json:
        sections: dict[str, dict[str, dict[str, str]]] = {}
        for row in found:
            sections.setdefault(row.section, {})[row.key] = {"value": row.value, "source": row.source}
        click.echo(json.dumps(sections, indent=2))
        return
    width = max(len(f"{row.section}.{row.key}") for row in found)
    for row in found:
        click.echo(f"{f'{row.section}.{row.key}':<{width}}  {row.value or '-'}  ({row.source})")
