"""`publish`: puts messages on a queue as Magento would."""

from __future__ import annotations

from typing import TextIO

import click

from zithara_worker.commands.root import Context, as_operator, topic_argument


@click.command()
@topic_argument()
@click.argument("file", type=click.File(encoding="utf-8"), default="-", metavar="[FILE]")
@click.option("--jsonl", is_flag=True, help="One message a line.")
@click.pass_obj
def publish(context: Context, topic: str, file: TextIO, jsonl: bool) -> None:
    """Put a message (FILE or standard input: what the module would publish) on TOPIC's queue; print its message id.

    Needs a database user with INSERT on Magento's queue tables, which the worker's own user does not have.

    \b
    Examples:
      zithara-worker publish zithara.order.events order.json
      zithara-worker publish zithara.cart.events --jsonl < carts.jsonl
    """
    from zithara_worker.queue import operator

    context.start_logging()
    texts = (line.rstrip("\r\n") for line in file if line.strip()) if jsonl else [file.read().strip()]
    with context.database() as database, as_operator():
        for message_id in operator.publish(database, topic, texts, context.configured.settings.queues):
            click.echo(message_id)
