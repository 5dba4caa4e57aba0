"""`preview`: the request that a stored body would become. Uses no database and no network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from typing import Any, TextIO

import click

from zithara_worker.commands.root import Context, topic_argument
from zithara_worker.commands.terminal import print_json
from zithara_worker.messages import Event, Rejection, Request, Skip, Target
from zithara_worker.processors import ShopContext, identify, process


@click.command()
@topic_argument()
@click.argument("file", type=click.File(encoding="utf-8", errors="surrogateescape"), default="-", metavar="[FILE]")
@click.option("--jsonl", is_flag=True, help="Each line is one stored body and gets one line of output.")
@click.pass_obj
def preview(context: Context, topic: str, file: TextIO, jsonl: bool) -> None:
    """Print the request that a stored body (queue_message.body, from FILE or standard input) would become.

    One JSON object a line: {"method","url","headers","json","group"}, {"skip": reason} or {"error": {...}}.

    \b
    Example:
      zithara-worker preview zithara.order.events --jsonl < bodies
    """
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
        answers = preview_lines(topic, file, shop=shop, base_url=base_url)
    else:
        answers = iter([preview_body(topic, file.read().rstrip("\r\n"), shop=shop, base_url=base_url)])
    for answer in answers:
        print_json(answer)


#: Stands for the access token.
MASKED = "***"


def preview_body(topic: str, body: str, *, shop: ShopContext, base_url: str, line: int = 1) -> dict[str, Any]:
    """One of {"method", "url", "headers", "json", "group"}, {"skip": reason}, {"error": {"code", "detail"}}.

    `base_url`: the API's, with its version ("https://pos-api.zithara.com/v1"). `line` stands for the message id in the
    group of a body that names no entity ("message:3"). There is no Idempotency-Key, because it contains the message id.
    """
    group, content = identify(topic, line, body)
    result = process(content, shop) if isinstance(content, Event) else content
    if isinstance(result, Rejection):
        return {"error": {"code": result.code, "detail": result.detail}}
    if isinstance(result, Skip):
        return {"skip": result.reason}
    return {
        "method": result.method,
        "url": result.path if result.target is Target.WEBHOOK else base_url.rstrip("/") + result.path,
        "headers": _headers(result),
        "json": result.json,
        "group": group,
    }


def preview_lines(topic: str, lines: Iterable[str], *, shop: ShopContext, base_url: str) -> Iterator[dict[str, Any]]:
    """A preview of each line (one stored body without its line end), in order and as soon as it is read.

    A blank line is an empty body, so that the n-th preview always belongs to the n-th line.
    """
    for number, line in enumerate(lines, start=1):
        yield preview_body(topic, line.rstrip("\r\n"), shop=shop, base_url=base_url, line=number)


def _headers(request: Request) -> dict[str, str]:
    return {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Authorization": MASKED,
        **request.headers,
    }
