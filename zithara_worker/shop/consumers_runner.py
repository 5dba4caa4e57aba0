"""Which PHP consumers of our queues Magento's own cron starts, after app/etc/env.php.

Source: Magento\\MessageQueue\\Model\\Cron\\ConsumersRunner: `cron_consumers_runner/cron_run` (true when absent) and
`cron_consumers_runner/consumers` (empty: all).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zithara_worker.shop.php_array import read_returned_array
from zithara_worker.topics import PHP_SIDE


def started_by_cron(path: Path) -> tuple[str, ...]:
    """The names of the module's consumers that cron would start. Raises ConfigurationError when nobody can tell."""
    shop: Any = read_returned_array(path)
    ours = tuple(side.consumer for side in PHP_SIDE.values())
    runner = shop.get("cron_consumers_runner") if isinstance(shop, dict) else None
    if not isinstance(runner, dict):
        return ours
    if "cron_run" in runner and runner["cron_run"] in (False, 0, "", "0", "false"):
        return ()
    chosen = runner.get("consumers")
    if not isinstance(chosen, dict) or not chosen:
        return ours
    return tuple(name for name in ours if name in chosen.values())
