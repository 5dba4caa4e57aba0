"""The queues that an operator's command is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zithara_worker.errors import ShopError
from zithara_worker.magento.database import Database
from zithara_worker.magento.shop import QueueRow, find_queues
from zithara_worker.messages import TOPICS


def queues_present(
    database: Database, overrides: Mapping[str, str], topics: Sequence[str] = TOPICS
) -> tuple[list[QueueRow], list[str]]:
    """The queues of these topics, and the topics that have none. Raises ShopError when there is none at all."""
    present: list[QueueRow] = []
    missing: list[str] = []
    problem: ShopError | None = None
    for topic in topics:
        try:
            present += find_queues(database, [topic], overrides)
        except ShopError as error:
            problem = error
            missing.append(topic)
    if not present and problem is not None:
        raise problem
    return present, missing
