"""The timed duties of a turn: poll, sweep, the shop's switches, the registry, the expiry guard.

All in the loop's own session. Each says what it found; the loop decides what to claim and when to end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zithara_worker.database.session import Database
from zithara_worker.monitor.registry import Registry
from zithara_worker.queue.message_queue import ExpiryGuard, MessageQueue
from zithara_worker.shop.configuration import ShopConfiguration, read_configuration
from zithara_worker.shop.deployment_config import DeploymentConfig
from zithara_worker.worker.ending import End

log = logging.getLogger(__name__)

#: Seconds between two looks at the shop's switches, two entries in the registry, two rounds of the expiry guard.
SHOP_INTERVAL = 5.0
REGISTRY_INTERVAL = 5.0
EXPIRY_INTERVAL = 600.0
#: Polls from one sweep to the next, at least: with 1 an idle worker asks 10.5 times a second, with 2 8 times.
SWEEP_POLLS = 2
#: A sweep may take this share of the time, and so may a round of the expiry guard.
SWEEP_SHARE = 0.02
#: Seconds that a lasting condition stays silent between two log lines.
LOG_INTERVAL = 60.0


@dataclass(slots=True)
class Timer:
    """Due at once, then every `interval` seconds after it was last set."""

    interval: float
    next_at: float = 0.0

    def due(self, now: float) -> bool:
        return now >= self.next_at

    def set(self, now: float, interval: float | None = None) -> None:
        self.next_at = now + (self.interval if interval is None else interval)


class PoisonPill:
    """Whether the shop has asked its consumers to restart since this process began: the first version seen counts."""

    def __init__(self) -> None:
        self._first: tuple[str | None] | None = None

    def is_changed(self, version: str | None) -> bool:
        self._first = self._first or (version,)
        return version != self._first[0]


class DebugSwitch:
    """Logs at DEBUG while the shop's zithara_webhook/general/debug is on, and at the configured level otherwise.

    Sets the level of the package's own logger, which overrides the configured one of the root logger. So a reload keeps
    the switch, other libraries stay as quiet as they were, and a level that an embedding program has set comes back.
    """

    def __init__(self) -> None:
        self._logger = logging.getLogger("zithara_worker")
        #: The package's level from before the shop switched DEBUG on; None while it is off
        self._before: int | None = None

    def set(self, *, on: bool) -> None:
        if on and self._before is None:
            self._before = self._logger.level
            self._logger.setLevel(logging.DEBUG)
            log.info("the shop asks for debug logs: logging at DEBUG from now on", extra={"event": "debug_on"})
        elif not on and self._before is not None:
            log.info("the shop no longer asks for debug logs", extra={"event": "debug_off"})
            self._logger.setLevel(self._before)
            self._before = None


class Duties:
    """Runs what is due, and keeps what it found.

    `states` tells the breakers' states for the registry, `minutes` the counters. `configuration`: what the settings in
    force were made from; a change of it asks for a reload.
    """

    def __init__(
        self,
        database: Database,
        *,
        queues: Sequence[MessageQueue],
        registry: Registry,
        configuration: ShopConfiguration,
        files: DeploymentConfig | None,
        poison_pill: PoisonPill,
        debug: DebugSwitch,
        states: Callable[[], Mapping[str, Any]],
        minutes: Callable[[], Mapping[str, Any]],
        metrics_address: str | None,
        on_configuration: Callable[[ShopConfiguration], None],
        monotonic: Callable[[], float],
        poll_interval_seconds: float,
    ) -> None:
        self._database = database
        self._queues = {queue.queue_id: queue for queue in queues}
        self._registry = registry
        self._files = files
        self._poison_pill = poison_pill
        self._debug = debug
        self._in_force = configuration
        self._latest = configuration
        self._states = states
        self._minutes = minutes
        self._metrics_address = metrics_address
        self._on_configuration = on_configuration
        self._monotonic = monotonic
        self._poll = Timer(poll_interval_seconds)
        self._sweep = Timer(SWEEP_POLLS * poll_interval_seconds)
        self._look_at_shop = Timer(SHOP_INTERVAL)
        self._register = Timer(REGISTRY_INTERVAL)
        self._guard = Timer(EXPIRY_INTERVAL)
        self._expiry = ExpiryGuard(database, self._queues)
        self._complain = Timer(LOG_INTERVAL)
        self._sweep_turn = 0
        self._generation = 0
        #: Whether the shop wants its messages delivered at all
        self.consumable = True
        #: Paused topics
        self.paused: frozenset[str] = frozenset()
        #: Whether the shop differs from what the settings in force were made from
        self.changed = False
        #: Why the loop should end, as the shop wishes
        self.end: End | None = None

    @property
    def poll_interval_seconds(self) -> float:
        return self._poll.interval

    @property
    def next_at(self) -> float:
        """When the next poll is due, on the monotonic clock."""
        return self._poll.next_at

    def run(self, now: float, *, in_flight: int) -> None:
        """Does what is due. Raises DatabaseUnavailable."""
        if self._look_at_shop.due(now):
            self.look_at_shop()
        if self._poll.due(now):
            self._poll.set(now)
            self.poll()
            for queue in self._queues.values():
                queue.recheck()
        if self._sweep.due(now):
            self._sweep_one()
        if self._register.due(now):
            self._register.set(now)
            self._registry.seen(
                in_flight=in_flight,
                metrics_address=self._metrics_address,
                state=self._states(),
                minutes=self._minutes(),
            )
        if self._guard.due(now):
            self._guard_expiry()

    def poll(self) -> None:
        """One statement: is there anything newer, due or expired, what is paused, has the shop asked for a restart?"""
        rows = self._database.rows("pulse", queue_ids=sorted(self._queues))
        paused: frozenset[str] = frozenset()
        pill: str | None = None
        for row in rows:
            paused = frozenset(str(row["paused"] or "").split(",")) - {""}
            pill = None if row["poison_pill"] is None else str(row["poison_pill"])
            self._queues[int(row["queue_id"])].update_from_poll(
                newest=int(row["newest"] or 0), due=bool(row["due"]), expired=bool(row["expired"])
            )
        for queue in self._queues.values():
            if (queue.topic in paused) != (queue.topic in self.paused):
                log.info(
                    "topic paused" if queue.topic in paused else "topic resumed",
                    extra={"event": "paused" if queue.topic in paused else "resumed", "topic": queue.topic},
                )
        self.paused = paused
        if self._poison_pill.is_changed(pill):
            log.info("the shop asked its consumers to restart", extra={"event": "poison_pill"})
            self.end = self.end or End.POISON_PILL

    def reconnected(self) -> bool:
        """Whether the session is another one than at the last call (never for the first)."""
        before, self._generation = self._generation, self._database.generation
        return before != 0 and before != self._generation

    def look_at_shop(self) -> None:
        """Reads the shop's settings and rows afresh, and obeys its switches. Raises DatabaseUnavailable, ShopError."""
        self._look_at_shop.set(self._monotonic())
        self._latest = read_configuration(self._database, self._files)
        self._on_configuration(self._latest)
        self._debug.set(on=self._latest.debug)
        consumable = self._latest.consumable
        if not consumable and (self.consumable or self._complain.due(self._monotonic())):
            self._complain.set(self._monotonic())
            log.warning(
                "the shop has switched Zithara off (zithara_webhook/general/enabled = 0 or no active configuration): "
                "messages stay in the queue",
                extra={"event": "shop_disabled"},
            )
        elif consumable and not self.consumable:
            log.info("the shop has switched Zithara on again", extra={"event": "shop_enabled"})
        self.consumable = consumable
        latest, in_force = self._latest, self._in_force
        changed = consumable and (latest.values, latest.unknown) != (in_force.values, in_force.unknown)
        if changed and not self.changed:
            log.info(
                "the shop's credentials or settings changed: reading the configuration again",
                extra={"event": "shop_changed"},
            )
        self.changed = changed

    def _sweep_one(self) -> None:
        """Queues take turns, so that an idle worker stays quiet however many topics it serves."""
        before = self._monotonic()
        queues = list(self._queues.values())
        queues[self._sweep_turn % len(queues)].sweep()
        self._sweep_turn += 1
        now = self._monotonic()
        self._sweep.set(now, max(self._sweep.interval, (now - before) / SWEEP_SHARE))

    def _guard_expiry(self) -> None:
        """A slice of it, and the next one so much later that all of them take a small share of the time."""
        before = self._monotonic()
        self._registry.forget_old()
        over = self._expiry.run_slice(self._latest.new_messages_lifetime_minutes)
        now = self._monotonic()
        self._guard.set(now, None if over else (now - before) / SWEEP_SHARE)
        if over and self._expiry.kept:
            log.info(
                "kept old messages from Magento's cleanup", extra={"event": "expiry_guard", "count": self._expiry.kept}
            )
