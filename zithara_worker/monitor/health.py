"""What is wrong, how bad it is, and what to do: of this worker (/healthz) and of the fleet (the banner of the page)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from zithara_worker.monitor.fleet import FleetStatus
from zithara_worker.settings.sections import Settings
from zithara_worker.units import duration

#: A loop that has not turned for its longest rest and so many seconds more is stuck. One statement may take 20 seconds,
#: and a turn has several.
STUCK_SECONDS = 90.0
#: Exchanges that one delivery may be made of, each with [zithara] timeout: the request, two more where there was no
#: connection, a new token, and the request with it.
EXCHANGES = 5

#: A new message that waits longer than this means that its queue does not keep up; the alert ZitharaWorkerQueueOld
#: fires then too.
AGED_SECONDS = 900.0


def longest_delivery_seconds(settings: Settings) -> float:
    """A delivery that has been under way for so long hangs: no answer, no rate limit and no retry explains it."""
    worker = settings.worker
    waiting = worker.concurrency / worker.rate_limit if worker.rate_limit else 0.0
    return EXCHANGES * settings.zithara.timeout + waiting + STUCK_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopStatus:
    """The state of a worker's loop. Times are seconds.

    `turned_at`: when its last turn began, on the monotonic clock. `longest_wait_seconds`: the longest wait between two
    turns. `oldest_request_seconds`: how long the oldest request in flight has been with its delivery thread, 0 without
    one. `paused`: topics.
    """

    turned_at: float
    longest_wait_seconds: float
    database_up: bool
    #: False: the shop has switched Zithara off
    consumable: bool
    paused: tuple[str, ...]
    oldest_request_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """`live`: the loop turns and no delivery hangs; a supervisor may restart what is not. `ready`: messages can be
    taken and delivered.

    `reasons`: why not; `notes`: what else a person may want to know. Sentences, each with what to do or to expect.
    """

    live: bool
    ready: bool
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        return {"live": self.live, "ready": self.ready, "reasons": list(self.reasons), "notes": list(self.notes)}


def judge(
    loop: LoopStatus | None,
    now: float,
    *,
    shut: Mapping[str, str],
    serves_none: bool = False,
    stopping: bool,
    audit_problem: str | None,
    configuration_problem: str | None = None,
    longest_delivery_seconds: float = float("inf"),
) -> Health:
    """`loop`: None before the first connection to the database. `now`: on the clock of `LoopStatus.turned_at`.

    `shut`: host or path that is taken to serve nobody -> why; `serves_none`: no topic can be sent.
    `audit_problem`: why no audit line can be written, where one must.
    `configuration_problem`: why a changed configuration cannot be used.
    """
    reasons: list[str] = []
    notes: list[str] = []
    live = True
    if stopping:
        reasons.append("the worker is stopping")
    if loop is None:
        reasons.append("the database is not available yet: the worker waits for it, its log tells the error")
        return Health(live=True, ready=False, reasons=tuple(reasons))
    silent = now - loop.turned_at
    if silent > loop.longest_wait_seconds + STUCK_SECONDS:
        live = False
        reasons.append(f"the loop has not turned for {silent:.0f} seconds: restart the worker, and keep its log")
    if loop.oldest_request_seconds > longest_delivery_seconds:
        live = False
        reasons.append(
            f"a delivery has been under way for {loop.oldest_request_seconds:.0f} seconds, which no timeout "
            "explains: restart the worker, and keep its log"
        )
    if not loop.database_up:
        reasons.append("the database is not available: the worker waits for it, its log tells the error")
    if not loop.consumable:
        reasons.append(
            "the shop has switched Zithara off (zithara_webhook/general/enabled = 0 or no active configuration)"
        )
    if audit_problem is not None:
        reasons.append(f"the audit file cannot be written ({audit_problem}), and audit_required is set")
    told = [
        f"{gate} is taken to be down ({why}): probes find out when it is back" for gate, why in sorted(shut.items())
    ]
    if serves_none:
        reasons += told
    else:
        notes += told
    if configuration_problem is not None:
        notes.append(f"the changed configuration cannot be used, the one in force stays: {configuration_problem}")
    notes += [_paused(topic) for topic in loop.paused]
    return Health(live=live, ready=live and not reasons, reasons=tuple(reasons), notes=tuple(notes))


def judge_fleet(fleet: FleetStatus) -> tuple[list[str], list[str]]:
    """What is wrong with the fleet, and what else a person may want to know. Sentences, each with what to do."""
    reasons = []
    notes = []
    for topic in fleet.topics:
        if topic.queue is None:
            continue
        age = topic.oldest_new_seconds or 0.0
        if not topic.workers:
            reasons.append(f"no living worker serves {topic.topic}: start one ('zithara-worker consume {topic.topic}')")
        if topic.pause is not None:
            notes.append(_paused(topic.topic))
        elif age > AGED_SECONDS and topic.workers:
            reasons.append(
                f"{topic.topic} is late, its oldest new message waits for {duration(age)}: look at the breakers and "
                "the workers' logs; if deliveries go well, raise [worker] concurrency or start another worker"
            )
    for worker in fleet.alive:
        for target in sorted(worker.target_reports, key=lambda each: each.target):
            if target.breaker != "closed":
                why = f" ({target.why})" if target.why else ""
                notes.append(
                    f"{target.target} is taken to be down by worker {worker.host} {worker.pid}, its breaker is "
                    f"{target.breaker}{why}: probes find out when it is back"
                )
    return reasons, notes


def _paused(topic: str) -> str:
    return f"topic {topic} is paused: 'zithara-worker resume {topic}' goes on"
