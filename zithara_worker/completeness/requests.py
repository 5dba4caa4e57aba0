"""The request that a message becomes, as a worker of this configuration makes it."""

from __future__ import annotations

from datetime import datetime, timezone

from zithara_worker.completeness.compare import Process
from zithara_worker.messages import Event, Rejection, Request, Skip
from zithara_worker.processors import ShopContext, process
from zithara_worker.settings.sections import ZitharaSettings


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
