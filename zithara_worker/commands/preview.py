"""`preview`: what a stored body would become. No database, no network."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import TextIO

import click

from zithara_worker.commands.root import Context, topic_argument
from zithara_worker.logs.escaping import escaped


@click.command()
@topic_argument()
@click.argument("file", type=click.File(encoding="utf-8", errors="surrogateescape"), default="-", metavar="[FILE]")
@click.option("--jsonl", is_flag=True, help="Each line is one stored body; one answer a line.")
@click.pass_obj
def preview(context: Context, topic: str, file: TextIO, jsonl: bool) -> None:
    """Print the request that a stored body (queue_message.body, from FILE or standard input) would become.

    One JSON object a line: {"method","url","headers","json","group"}, {"skip": reason} or {"error": {...}}.

    \b
    Example:
      zithara-worker preview zithara.order.events --jsonl < bodies
    """
    from zithara_worker.commands import preview_lines as pure
    from zithara_worker.processors import ShopContext

    zithara = context.configured.settings.zithara
    shop = ShopContext(
        webhook_url=zithara.webhook_url or None,
        active_config_id=None,
        config_ids=None,
        invented_phone=zithara.invented_phone,
        now_utc=datetime.now(timezone.utc),
    )
    base_url = zithara.base_url
    if jsonl:
        answers = pure.preview_lines(topic, file, shop=shop, base_url=base_url)
    else:
        answers = iter([pure.preview(topic, file.read().rstrip("\r\n"), shop=shop, base_url=base_url)])
    for answer in answers:
        click.echo(escaped(json.dumps(answer, ensure_ascii=False)))
