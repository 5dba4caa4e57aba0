"""What a processor needs besides the event: values of the shop and the time, because processors read neither."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from zithara_worker.settings.sections import InventedPhone

_MAGENTO_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopContext:
    """The shop's side of a request, as it stands when the message is processed.

    `webhook_url` belongs to the active row of zithara_webhook_config; None or '' = the shop has none.
    `config_ids`: every config_id of that table; None = unknown (a preview without a database), any is accepted.
    `now_utc`: a UTC time, used only where the PHP module filled a missing time with 'now'.
    """

    webhook_url: str | None
    active_config_id: int | None
    config_ids: frozenset[int] | None
    invented_phone: InventedPhone
    now_utc: datetime

    def time_or_now(self, candidate: Any) -> str:
        """`candidate` if it is a time as Magento writes it ('YYYY-MM-DD HH:MM:SS', UTC), else `now_utc` in this form.

        The message's own time is better: it stays the same when the message is delivered late or again.
        """
        if isinstance(candidate, str) and _MAGENTO_TIME.fullmatch(candidate):
            return candidate
        return self.now_utc.strftime("%Y-%m-%d %H:%M:%S")
