"""`config`: the effective configuration with the source of each value, and a sample file."""

from __future__ import annotations

import textwrap
from typing import NamedTuple

import click

from zithara_worker.commands.root import Context
from zithara_worker.commands.terminal import print_json
from zithara_worker.errors import ConfigurationError, DatabaseUnavailable, ShopError
from zithara_worker.settings.sections import KEYS, QUEUES, SECTIONS
from zithara_worker.settings.sources import LoadedSettings, with_shop_values
from zithara_worker.settings.values import as_ini_text
from zithara_worker.topics import TOPIC_TABLE


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object: {section: {key: {value, source}}}.")
@click.option("--sample", is_flag=True, help="Print a sample file instead, with every key and its default.")
@click.pass_obj
def config(context: Context, as_json: bool, sample: bool) -> None:
    """Print each effective value with its source; secrets are masked.

    Includes the settings in the shop's database, if it can be reached.

    \b
    Examples:
      zithara-worker config
      zithara-worker config --sample > zithara-worker.conf
    """
    from zithara_worker.shop.configuration import complete, read_configuration
    from zithara_worker.shop.deployment_config import deployment_config

    if sample:
        click.echo(sample_file(), nl=False)
        return
    configured = context.configured
    try:
        with context.database() as database:
            shop = read_configuration(database, deployment_config(configured.settings.magento.root))
        configured = complete(configured, shop)
        # The worker reads it when it sends a webhook, because the shop may change it; here it is shown as it is now.
        place = ("zithara", "webhook_url")
        source = f"zithara_webhook_config row {shop.active_config_id}"
        configured = with_shop_values(configured, {place: (shop.webhook_url, source)} if shop.webhook_url else {})
    except (ConfigurationError, DatabaseUnavailable, ShopError) as error:
        click.echo(f"without the settings in the shop's database: {error}", err=True)
    for warning in configured.warnings:
        click.echo(f"warning: {warning}", err=True)
    found = rows(configured)
    if as_json:
        sections: dict[str, dict[str, dict[str, str]]] = {}
        for row in found:
            sections.setdefault(row.section, {})[row.key] = {"value": row.value, "source": row.source}
        print_json(sections, indent=2)
        return
    width = max(len(f"{row.section}.{row.key}") for row in found)
    for row in found:
        click.echo(f"{f'{row.section}.{row.key}':<{width}}  {row.value or '-'}  ({row.source})")


class Row(NamedTuple):
    section: str
    key: str
    value: str
    source: str


def rows(configured: LoadedSettings) -> list[Row]:
    """One row for each key, in the order of the sample file, then the queues that are set; secrets are masked."""
    settings = configured.settings
    values = {key.place: as_ini_text(getattr(getattr(settings, key.section), key.name)) for key in KEYS}
    values |= {(QUEUES, topic): queue for topic, queue in settings.queues.items()}
    return [Row(*place, value, configured.source(*place)) for place, value in values.items()]


def sample_file() -> str:
    """A configuration file with the meaning and the default of every key; each key is commented out."""
    parts = [
        "# Configuration of zithara-worker: every key with its default. Remove the # before a key to set it.\n"
        "# Comments stand on lines of their own. A value ends with its line and is taken as it is, without quotes.",
    ]
    for section in (*SECTIONS, QUEUES):
        parts.append(f"\n[{section}]")
        for key in KEYS:
            if key.section == section:
                parts.append(_comment(f"{key.doc} ({key.unit})" if key.unit else key.doc))
                parts.append(_line(key.name, as_ini_text(key.default)))
    parts.append(_comment("The queue of a topic, where it is not the one that the PHP module declares."))
    parts += [_line(topic.name, topic.queue) for topic in TOPIC_TABLE.values()]
    return "\n".join(parts) + "\n"


def _comment(text: str) -> str:
    return textwrap.fill(text, width=100, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _line(name: str, value: str) -> str:
    return f"#{name} = {value}".rstrip()
