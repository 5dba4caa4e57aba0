"""The effective configuration, each value with where it came from."""

from __future__ import annotations

from typing import NamedTuple

from zithara_worker.config import Configured
from zithara_worker.settings import KEYS, written


class Row(NamedTuple):
    section: str
    key: str
    value: str
    source: str


def rows(configured: Configured) -> list[Row]:
    """One row a key, in the order of the sample file; secrets masked."""
    found = [
        Row(
            key.section,
            key.name,
            written(getattr(getattr(configured.settings, key.section), key.name)),
            configured.source(key.section, key.name),
        )
        for key in KEYS
    ]
    queues = configured.settings.queues
    found += [Row("queues", topic, queue, configured.source("queues", topic)) for topic, queue in queues.items()]
    return found
