"""The shop as the loop sees it: everything of a turn that is one statement and its meaning."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from zithara_worker.magento import expiry
from zithara_worker.magento.database import Database
from zithara_worker.magento.registry import Registry
from zithara_worker.magento.shop import ShopConfiguration, read_configuration
from zithara_worker.worker.loop import Pulse


class ShopSide:
    """Reads and writes through the loop's own session.

    `states` tells the breakers' states for the registry, `minutes` the counters. `configuration`: what the settings in
    force were made from; a change of it asks for a reload.
    """

    def __init__(
        self,
        database: Database,
        *,
        registry: Registry,
        queue_ids: Collection[int],
        configuration: ShopConfiguration,
        states: Callable[[], Mapping[str, Any]],
        minutes: Callable[[], Mapping[str, Any]],
        metrics_address: str | None,
        on_configuration: Callable[[ShopConfiguration], None],
    ) -> None:
        self._database = database
        self._registry = registry
        self._queue_ids = sorted(queue_ids)
        self._in_force = self._latest = configuration
        self._states = states
        self._minutes = minutes
        self._metrics_address = metrics_address
        self._on_configuration = on_configuration
        self._generation = 0

    def pulse(self, queue_ids: Collection[int]) -> Pulse:
        rows = self._database.rows("pulse", queue_ids=sorted(queue_ids))
        paused: frozenset[str] = frozenset()
        pill: str | None = None
        for row in rows:
            paused = frozenset(str(row["paused"] or "").split(",")) - {""}
            pill = None if row["poison_pill"] is None else str(row["poison_pill"])
        return Pulse(
            queues={
                int(row["queue_id"]): (int(row["newest"] or 0), bool(row["due"]), bool(row["expired"])) for row in rows
            },
            paused=paused,
            poison_pill=pill,
        )

    def consumable(self) -> bool:
        self._latest = read_configuration(self._database)
        self._on_configuration(self._latest)
        return self._latest.consumable

    def changed(self) -> bool:
        """Whether a value that settings may have been made from differs from when they were made."""
        return self._latest.consumable and self._latest.values != self._in_force.values

    def seen(self, in_flight: int) -> None:
        self._registry.seen(
            in_flight=in_flight,
            metrics_address=self._metrics_address,
            state=self._states(),
            minutes=self._minutes(),
        )

    def guard_expiry(self) -> int:
        self._registry.forget_old()
        return expiry.keep_from_expiry(self._database, self._queue_ids, self._latest.new_messages_lifetime_minutes)

    def reconnected(self) -> bool:
        """Whether the session is another one than at the last call (never for the first)."""
        before, self._generation = self._generation, self._database.generation
        return before != 0 and before != self._generation
