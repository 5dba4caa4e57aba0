"""Delivers the Zithara events of a Magento 2 shop's own MySQL queue to the Zithara CRM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zithara_worker.settings.sections import Settings
    from zithara_worker.worker.worker import Worker

__all__ = ["Settings", "Worker"]


def __getattr__(name: str) -> Any:
    """Imports on first use: `import zithara_worker.version` need not load a database driver and an HTTP client."""
    if name == "Worker":
        from zithara_worker.worker.worker import Worker

        return Worker
    if name == "Settings":
        from zithara_worker.settings.sections import Settings

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
