"""The request that a message becomes, as a worker of this configuration makes it, and the digest of what it tells."""

from __future__ import annotations

from datetime import datetime, timezone

from zithara_worker.completeness.compare import Process
from zithara_worker.messages import Event, Rejection, Request, Skip
from zithara_worker.processors import ShopContext, identify, process
from zithara_worker.queue.operator import Content
from zithara_worker.settings.sections import ZitharaSettings
from zithara_worker.zithara.api import content_digest


def request_of(settings: ZitharaSettings) -> Process:
    """Event -> its request, or why it becomes none."""

    def made(event: Event) -> Request | Skip | Rejection:
        context = ShopContext(
            webhook_url=None,
            active_config_id=None,
            config_ids=None,
            invented_phone=settings.invented_phone,
            now_utc=datetime.now(timezone.utc),
        )
        return process(event, context)

    return made


def content_of(settings: ZitharaSettings) -> Content:
    """Topic and stored body -> the digest of what the message tells of its entity; "" if it becomes no request."""
    made = request_of(settings)

    def digest(topic: str, body: str) -> str:
        event = identify(topic, 0, body)[1]
        request = made(event) if isinstance(event, Event) else event
        return content_digest(request.entity) if isinstance(request, Request) and request.entity is not None else ""

    return digest
