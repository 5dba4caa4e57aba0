"""The timed duties of a turn: poll, sweep, the shop's switches, the row in zithara_worker, the expiry guard.

They use the loop's own session. Each keeps what it found; the loop decides what to claim and when to end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zithara_worker.database.session import Database
from zithara_worker.limits import End
from zithara_worker.monitor.registry import Registry
from zithara_worker.queue import failures
from zithara_worker.queue.message_queue import ExpiryGuard, MessageQueue
from zithara_worker.shop.configuration import ShopConfiguration, read_configuration
from zithara_worker.shop.deployment_config import DeploymentConfig
from zithara_worker.worker.ledger_duties import LedgerDuties

log = logging.getLogger(__name__)

#: Seconds between two reads of the shop's switches, two updates of the row in zithara_worker, two rounds of the expiry
#: guard.
SHOP_INTERVAL = 5.0
REGISTRY_INTERVAL = 5.0
EXPIRY_INTERVAL = 600.0
#: Seconds until a look at what others delivered goes on, while it has not seen everything.
LOOK_ON_INTERVAL = 0.5
#: Polls from one sweep to the next, at least. An idle worker sends 10.5 queries a second with 1, and 8 with 2.
SWEEP_POLLS = 2
#: Share of the time that sweeps may take, and as much for the expiry guard.
SWEEP_SHARE = 0.02
#: Seconds between two log lines about a condition that lasts.
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
    """Whether the shop asked its consumers to restart since this process began. The first version that is seen is the
    one to compare with, so this lives as long as the process."""

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
            log.info("debug logs end: logging at the configured level again", extra={"event": "debug_off"})
            self._logger.setLevel(self._before)
            self._before = None


class Duties:
    """Runs the duties that are due.

    `shop`: what the settings in force were made from; when it changes, a reload is wanted. `files`: the shop's
    configuration files, None where there are none. `register`: updates the row in zithara_worker, with the number of
    messages in hand. `on_shop`: is told the shop's configuration each time it is read.
    """

    def __init__(
        self,
        database: Database,
        queues: Sequence[MessageQueue],
        *,
        shop: ShopConfiguration,
        files: DeploymentConfig | None,
        poison_pill: PoisonPill,
        debug: DebugSwitch,
        registry: Registry,
        register: Callable[[int], None],
        on_shop: Callable[[ShopConfiguration], None],
        ledger: LedgerDuties,
        monotonic: Callable[[], float],
        poll_interval_seconds: float,
    ) -> None:
        self._database = database
        self._queues = {queue.queue_id: queue for queue in queues}
        self._in_force = self._latest = shop
        self._files = files
        self._poison_pill = poison_pill
        self._debug = debug
        self._registry = registry
        self._register = register
        self._on_shop = on_shop
        self._ledger = ledger
        self._monotonic = monotonic
        self._poll = Timer(poll_interval_seconds)
        self._sweep = Timer(SWEEP_POLLS * poll_interval_seconds)
        self._look_at_shop = Timer(SHOP_INTERVAL)
        self._look_at_others = Timer(SHOP_INTERVAL)
        self._registration = Timer(REGISTRY_INTERVAL)
        self._guard = Timer(EXPIRY_INTERVAL)
        self._expiry = ExpiryGuard(database, self._queues)
        self._complain = Timer(LOG_INTERVAL)
        self._next_swept = 0
        self._generation = 0
        #: Whether the shop wants its messages to be delivered at all
        self.consumable = True
        #: Those of its topics that are paused
        self.paused: frozenset[str] = frozenset()
        #: Whether the shop's configuration differs from the one that the settings in force were made from
        self.shop_changed = False
        #: Why the shop wants the loop to end
        self.end: End | None = None

    @property
    def poll_interval_seconds(self) -> float:
        return self._poll.interval

    @property
    def next_at(self) -> float:
        """When the next poll is due, on the monotonic clock."""
        return self._poll.next_at

    def run(self, *, in_hand: int) -> None:
        """Does what is due. Raises DatabaseUnavailable."""
        now = self._monotonic()
        if self._look_at_shop.due(now):
            self.look_at_shop()
        if self._look_at_others.due(now):
            complete = self._ledger.look_at_others()
            self._look_at_others.set(now, None if complete else LOOK_ON_INTERVAL)
        if self._poll.due(now):
            self._poll.set(now)
            self.poll()
            for queue in self._queues.values():
                queue.recheck()
        if self._sweep.due(now):
            self._sweep_one()
        if self._registration.due(now):
            self.register(in_hand)
        if self._guard.due(now):
            self._guard_expiry()

    def register(self, in_hand: int) -> None:
        """Updates the row in zithara_worker. Raises DatabaseUnavailable, ShopError."""
        self._registration.set(self._monotonic())
        self._register(in_hand)

    def poll(self) -> None:
        """One statement for all queues: is there anything newer, due or expired, which topics are paused, has the shop
        asked for a restart?"""
        own = frozenset(queue.topic for queue in self._queues.values())
        paused: frozenset[str] = frozenset()
        pill: str | None = None
        newest: dict[int, int] = {}
        for row in self._database.rows("poll", queue_ids=sorted(self._queues)):
            paused = own & set(str(row["paused"] or "").split(","))
            pill = None if row["poison_pill"] is None else str(row["poison_pill"])
            queue_id = int(row["queue_id"])
            newest[queue_id] = int(row["newest"] or 0)
            self._queues[queue_id].update_from_poll(
                newest=newest[queue_id], due=bool(row["due"]), expired=bool(row["expired"])
            )
        self._ledger.polled(newest)
        for queue in self._queues.values():
            if (queue.topic in paused) != (queue.topic in self.paused):
                log.info(
                    "topic paused" if queue.topic in paused else "topic resumed",
                    extra={"event": "paused" if queue.topic in paused else "resumed", "topic": queue.topic},
                )
        self.paused = paused
        if self._poison_pill.is_changed(pill):
            log.info("the shop asked its consumers to restart", extra={"event": "poison_pill"})
            self.end = End.POISON_PILL

    def nothing_left(self) -> bool:
        """Whether no queue has a message that could be claimed now. Looks everywhere before it says so. Raises
        DatabaseUnavailable."""
        if not self.consumable:
            return True
        self.poll()
        for queue in self._queues.values():
            if queue.topic in self.paused:
                continue
            if queue.may_have_work or queue.may_have_suspects:
                return False
            queue.sweep_all()
            queue.recheck()
            if queue.may_have_work or queue.may_have_suspects:
                return False
        return True

    def reconnected(self) -> bool:
        """Whether the session is another one than at the last call; False at the first call."""
        before, self._generation = self._generation, self._database.generation
        return before != 0 and before != self._generation

    def look_at_shop(self) -> None:
        """Reads the shop's configuration afresh and obeys its switches. Raises DatabaseUnavailable, ShopError."""
        self._look_at_shop.set(self._monotonic())
        latest, in_force = read_configuration(self._database, self._files), self._in_force
        self._latest = latest
        self._on_shop(latest)
        self._debug.set(on=latest.debug)
        if not latest.consumable and (self.consumable or self._complain.due(self._monotonic())):
            self._complain.set(self._monotonic())
            log.warning(
                "the shop has switched Zithara off (zithara_webhook/general/enabled = 0 or no active configuration): "
                "messages stay in the queue",
                extra={"event": "shop_disabled"},
            )
        elif latest.consumable and not self.consumable:
            log.info("the shop has switched Zithara on again", extra={"event": "shop_enabled"})
        self.consumable = latest.consumable
        # The settings of a shop that is switched off may be incomplete: they are read when it is switched on.
        changed = latest.consumable and (latest.values, latest.unknown) != (in_force.values, in_force.unknown)
        if changed and not self.shop_changed:
            log.info(
                "the shop's credentials or settings changed: reading the configuration again",
                extra={"event": "shop_changed"},
            )
        self.shop_changed = changed

    def _sweep_one(self) -> None:
        """Sweeps one queue; the queues take turns, so that the cost does not grow with the number of topics."""
        before = self._monotonic()
        queues = list(self._queues.values())
        queues[self._next_swept % len(queues)].sweep()
        self._next_swept += 1
        now = self._monotonic()
        self._sweep.set(now, max(self._sweep.interval, (now - before) / SWEEP_SHARE))

    def _guard_expiry(self) -> None:
        """One slice of the guard's round. The next one comes so much later that all of them take SWEEP_SHARE of the
        time."""
        before = self._monotonic()
        self._registry.remove_stale()
        failures.forget_deleted(self._database)
        over = self._ledger.clean() & self._expiry.run_slice(self._latest.new_messages_lifetime_minutes)
        now = self._monotonic()
        self._guard.set(now, None if over else (now - before) / SWEEP_SHARE)
        if over and self._expiry.kept:
            log.info(
                "kept old messages from Magento's cleanup", extra={"event": "expiry_guard", "count": self._expiry.kept}
            )
