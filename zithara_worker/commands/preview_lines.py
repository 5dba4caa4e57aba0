"""What a stored body would become, without a database and without a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from zithara_worker.messages import Event, Rejection, Request, Skip, Target
from zithara_worker.processors import ShopContext, identify, process

#: Stands where the token will be: a preview knows none, and would not show one.
MASKED = "***"


def preview(topic: str, body: str, *, shop: ShopContext, base_url: str, line: int = 1) -> dict[str, Any]:
    """One of {"method", "url", "headers", "json", "group"}, {"skip": reason}, {"error": {"code", "detail"}}.

    `base_url` is the API's, with its version ("https://pos-api.zithara.com/v1"). A body that names no entity has no
    message id yet; its group shows the `line` it came from instead ("message:3"). The Idempotency-Key is not shown:
    it needs the message id too.
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
    """A preview of each line (one stored body each, its line end aside), in order and as soon as it is read.

    A blank line is an empty body and gets its own answer, so that the n-th answer is always that of the n-th line.
    """
    for number, line in enumerate(lines, start=1):
        yield preview(topic, line.rstrip("\r\n"), shop=shop, base_url=base_url, line=number)


def _headers(request: Request) -> dict[str, str]:
    return {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Authorization": MASKED,
        **request.headers,
    }
