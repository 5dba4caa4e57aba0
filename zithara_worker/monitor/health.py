"""What is wrong with this worker or relay, and what to do: /healthz. What is wrong with the fleet: `conditions`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from zithara_worker.delivery import down as words
from zithara_worker.monitor.conditions import SHOP_DISABLED, audit_unwritable, paused, turns_fail, untaken
from zithara_worker.settings.sections import Settings
from zithara_worker.units import duration

#: A loop is stuck when it has not turned for its longest wait and this many seconds more. One statement may take 20
#: seconds, and a turn has several.
STUCK_SECONDS = 90.0
#: The most exchanges of one delivery, each limited by [zithara] timeout: the request, two more after failed
#: connections, the request for a new token, and the request with that token.
EXCHANGES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopStatus:
    """The state of a worker's loop. Times are seconds.

    `turned_at`: when its last turn began, on the monotonic clock. `longest_wait_seconds`: the longest wait between two
    turns. `oldest_request_seconds`: how long the oldest request has been under way, 0 without one. `paused`:
    topics. `turn_problem`: why the last turn failed though the database answers, "" if it did not.
    """

    turned_at: float
    longest_wait_seconds: float
    database_up: bool
    #: False: the shop has switched Zithara off
    consumable: bool
    paused: tuple[str, ...]
    oldest_request_seconds: float = 0.0
    turn_problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """`live`: the loop turns and no delivery hangs; otherwise a supervisor may restart the worker. `ready`: the worker
    can claim and deliver messages.

    `reasons`: why it is not live or not ready. `notes`: what else a person may want to know. Each is a sentence that
    says what to do or what happens next.
    """

    live: bool
    ready: bool
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        return {"live": self.live, "ready": self.ready, "reasons": list(self.reasons), "notes": list(self.notes)}


def longest_delivery_seconds(settings: Settings) -> float:
    """A request that takes longer hangs: timeouts do not explain it. Its wait for the rate limit is not part of it."""
    return EXCHANGES * settings.zithara.timeout + STUCK_SECONDS


def worker_health(
    loop: LoopStatus | None,
    now: float,
    *,
    down: Mapping[str, str],
    delivers_nothing: bool = False,
    stopping: bool,
    audit_problem: str | None,
    configuration_problem: str | None = None,
    longest_delivery_seconds: float = float("inf"),
) -> Health:
    """`loop`: None before the first connection to the database. `now`: on the clock of `LoopStatus.turned_at`.

    `down`: target whose circuit breaker is not closed -> why. `delivers_nothing`: every topic has such a target.
    `audit_problem`: why the audit file cannot be written, if it must be. `configuration_problem`: why a changed
    configuration cannot be used.
    """
    reasons: list[str] = []
    notes: list[str] = []
    live = True
    if stopping:
        reasons.append("the worker is stopping")
    if loop is None:
        reasons.append("the database is not available yet: the worker waits for it, and logs the error")
        return Health(live=True, ready=False, reasons=tuple(reasons))
    silent = now - loop.turned_at
    if silent > loop.longest_wait_seconds + STUCK_SECONDS:
        live = False
        reasons.append(f"the loop has not turned for {duration(silent)}: restart the worker, and keep its log")
    if loop.oldest_request_seconds > longest_delivery_seconds:
        live = False
        reasons.append(
            f"a delivery has been under way for {duration(loop.oldest_request_seconds)}, longer than all timeouts "
            "allow: restart the worker, and keep its log"
        )
    if loop.turn_problem:
        reasons.append(": ".join(turns_fail(loop.turn_problem)))
    elif not loop.database_up:
        reasons.append("the database is not available: the worker waits for it, and logs the error")
    if not loop.consumable:
        reasons.append(str(SHOP_DISABLED))
    if audit_problem is not None:
        reasons.append(": ".join(audit_unwritable(audit_problem)))
    stopped = [f"{words.down(target, why)}: {words.remedy(target, why)}" for target, why in sorted(down.items())]
    if delivers_nothing:
        reasons += stopped
    else:
        notes += stopped
    if configuration_problem is not None:
        notes.append(f"the changed configuration cannot be used, the old one stays in force: {configuration_problem}")
    notes += [str(paused(topic)) for topic in loop.paused]
    return Health(live=live, ready=live and not reasons, reasons=tuple(reasons), notes=tuple(notes))


def relay_health(
    loop: LoopStatus,
    now: float,
    *,
    waiting: Mapping[str, str],
    stopping: bool,
    configuration_problem: str | None,
) -> Health:
    """Of a relay. `waiting`: topic whose queue cannot be consumed -> why; see `worker_health` for the others."""
    reasons = [str(untaken(topic, "waiting", why)) for topic, why in sorted(waiting.items())]
    if stopping:
        reasons.append("the relay is stopping")
    if not loop.database_up:
        reasons.append("the database takes no messages: the relay waits for it, and logs the error")
    silent = now - loop.turned_at
    live = silent <= loop.longest_wait_seconds + STUCK_SECONDS
    if not live:
        reasons.append(f"the loop has not turned for {duration(silent)}: restart the relay, and keep its log")
    notes = []
    if configuration_problem is not None:
        notes.append(f"the changed configuration cannot be used, the old one stays in force: {configuration_problem}")
    return Health(live=live, ready=not reasons, reasons=tuple(reasons), notes=tuple(notes))
