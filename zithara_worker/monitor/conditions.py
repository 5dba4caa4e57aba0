"""What is wrong with the fleet, how bad it is, and what to do: the list that `check`, the page and `status` show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from zithara_worker.delivery.down import down, remedy
from zithara_worker.monitor.fleet import FleetStatus, TargetReport, TopicStatus, WorkerStatus
from zithara_worker.queue.operator import Pause
from zithara_worker.units import count, duration

#: A message that is in progress for so long is in nobody's hands, unless the rate limit explains it.
UNHELD_SECONDS = 900.0


class Level(IntEnum):
    """The worse, the higher. A NOTE rings no alarm."""

    NOTE = 0
    WARNING = 1
    CRITICAL = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """`topic`: "" if it concerns all. `remedy`: what to do, or what happens next."""

    level: Level
    topic: str = ""
    text: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.text}: {self.remedy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """From which value on a topic is WARNING and CRITICAL: the age of its oldest new message, its failed messages, and
    its messages that wait; None: never."""

    age_seconds: tuple[float | None, float | None] = (900.0, 3600.0)
    failed: tuple[float | None, float | None] = (1, 100)
    pending: tuple[float | None, float | None] = (None, None)


#: Those of the page and of `status`, and the defaults of `check`. The alert ZitharaWorkerQueueOld has the same age.
THRESHOLDS = Thresholds()


_NOBODY = Condition(
    level=Level.CRITICAL, text="no worker is running", remedy="start one with 'zithara-worker consume --all'"
)


#: What a worker that takes nothing for this reason, and the fleet, say of it.
SHOP_DISABLED = Condition(
    level=Level.WARNING,
    text="the shop has switched Zithara off (zithara_webhook/general/enabled = 0 or no active configuration), and "
    "messages stay in the queue",
    remedy="'zithara-worker doctor' says how to switch it on",
)


def conditions(fleet: FleetStatus, thresholds: Thresholds = THRESHOLDS) -> list[Condition]:
    """The worst first."""
    served = any(topic.workers for topic in fleet.topics)
    found = [
        *([] if served else [_NOBODY]),
        *_of_targets(fleet.alive),
        *([SHOP_DISABLED] if any(worker.shop_disabled for worker in fleet.alive) else []),
        *_of_workers(fleet.alive, lambda worker: worker.audit_problem, audit_unwritable),
        *_of_workers(fleet.alive, lambda worker: worker.turn_problem, turns_fail),
        *(each for topic in fleet.topics for each in _of_topic(topic, thresholds, fleet.at_utc, others_served=served)),
        *_of_relays(fleet),
        *_of_reconciliations(fleet),
    ]
    return sorted(found, key=lambda each: -each.level)


def audit_unwritable(problem: str, who: str = "") -> tuple[str, str]:
    """What is wrong where an audit file is required and cannot be written, and what to do."""
    return (
        f"nothing is taken{who}, because the audit file cannot be written ({problem}) and [logging] audit_required is "
        "set",
        "free space or correct its permissions, or name another file in [logging] audit_file",
    )


def untaken(topic: str, state: str, why: str, *, who: str = "the relay") -> Condition:
    """Of a relay that takes nothing of a topic. `state`, `why`: of `fleet.RelayedQueue`."""
    return Condition(
        level=Level.WARNING,
        topic=topic,
        text=f"{who} takes nothing of {topic} from RabbitMQ at present",
        remedy=f"it is {state}: {why}",
    )


def turns_fail(problem: str, who: str = "") -> tuple[str, str]:
    """What is wrong where the turns of a worker's loop fail though the database answers, and what to do."""
    return (
        f"nothing is delivered{who}, because its turns fail: {problem}",
        "it tries again; see 'zithara-worker doctor'",
    )


def paused(topic: str, pause: Pause | None = None, *, now: float = 0.0) -> Condition:
    """`pause`: by whom and why, where that is known."""
    by = ""
    if pause is not None:
        why = f": {pause.reason}" if pause.reason else ""
        by = f" (by {pause.paused_by} {duration(now - pause.paused_at_utc)} ago{why})"
    return Condition(
        level=Level.WARNING,
        topic=topic,
        text=f"topic {topic} is paused{by}",
        remedy=f"continue it with 'zithara-worker resume {topic}'",
    )


def _of_topic(topic: TopicStatus, thresholds: Thresholds, now: float, *, others_served: bool) -> Iterator[Condition]:
    name = topic.topic

    def condition(level: Level, text: str, remedy: str) -> Condition:
        return Condition(level=level, topic=name, text=text, remedy=remedy)

    if topic.queue is None:
        yield condition(Level.CRITICAL, f"the shop has no queue for {name}", "run 'zithara-worker install'")
        return
    if not topic.workers and others_served:
        yield condition(
            Level.CRITICAL, f"no living worker serves {name}", f"start one ('zithara-worker consume {name}')"
        )
    if topic.pause is not None:
        yield paused(name, topic.pause, now=now)
    waited = topic.oldest_new_seconds or 0.0
    if topic.workers and topic.pause is None and (level := _reached(waited, thresholds.age_seconds)):
        yield condition(
            level,
            f"{name} is late, its oldest new message has waited for {duration(waited)}",
            "see what else is wrong here, and the workers' logs; if deliveries succeed, raise [worker] concurrency or "
            "start another worker",
        )
    if level := _reached(topic.pending, thresholds.pending):
        yield condition(level, f"{_messages(topic.pending, name)} not delivered yet", "see 'zithara-worker status'")
    if level := _reached(topic.error, thresholds.failed):
        yield condition(
            level,
            f"{_messages(topic.error, name)} failed",
            "see 'zithara-worker failed summary'; Magento deletes what has failed, after a week by default",
        )
    if (topic.oldest_in_progress_seconds or 0) > UNHELD_SECONDS and topic.in_progress > topic.groups_in_flight:
        yield condition(
            Level.WARNING,
            f"messages of {name} are in progress that no worker holds, the oldest for "
            f"{duration(topic.oldest_in_progress_seconds)}",
            "see 'zithara-worker doctor'",
        )
    if topic.relay_missing:
        yield condition(
            Level.CRITICAL,
            f"the relay of {name} was killed or has died, and none has taken its place: what the shop publishes "
            "stays in RabbitMQ",
            f"start it ('zithara-worker relay {name}'), and look at its log",
        )
    if topic.aside:
        yield condition(
            Level.WARNING,
            f"{_messages(topic.aside, name)} from RabbitMQ kept aside, because the queue cannot hold such messages",
            "see 'zithara-worker failed aside list'",
        )
    if topic.uncompared:
        yield condition(
            Level.NOTE,
            f"every message of {name} is sent, because others deliver too and do not record it (PHP consumers, or "
            "workers older than 0.3)",
            "see 'zithara-worker doctor'",
        )


def _messages(number: int, topic: str) -> str:
    return f"{count(number)} {'message' if number == 1 else 'messages'} of {topic}"


def _reached(value: float, limits: tuple[float | None, float | None]) -> Level:
    warning, critical = limits
    if critical is not None and value >= critical:
        return Level.CRITICAL
    return Level.WARNING if warning is not None and value >= warning else Level.NOTE


def _of_targets(workers: Sequence[WorkerStatus]) -> Iterator[Condition]:
    """Hosts and paths to which nothing is sent but probes, worst where all workers agree."""
    reports: defaultdict[str, list[TargetReport]] = defaultdict(list)
    for worker in workers:
        for report in worker.target_reports:
            reports[report.target].append(report)
    for target, all_of_it in sorted(reports.items()):
        found = [report for report in all_of_it if report.breaker != "closed"]
        if not found:
            continue
        every = len(found) == len(all_of_it)
        why = next((report.why for report in found if report.why), "")
        seen = "" if every else f", as {len(found)} of {len(all_of_it)} workers see it"
        probe = min((report.next_probe_seconds or 0.0 for report in found), default=0.0)
        yield Condition(
            level=Level.CRITICAL if every else Level.WARNING,
            text=down(target, why, seen=seen),
            remedy=remedy(target, why, probe=f"the next probe is in {duration(probe)}"),
        )


def _of_workers(
    workers: Sequence[WorkerStatus],
    problem: Callable[[WorkerStatus], str],
    words: Callable[[str, str], tuple[str, str]],
) -> Iterator[Condition]:
    """What keeps workers from delivering anything, worst where it keeps all of them."""
    found = [worker for worker in workers if problem(worker)]
    if found:
        who = f" by worker {', '.join(f'{worker.host} {worker.pid}' for worker in found)}"
        text, remedy = words(problem(found[0]), who)
        yield Condition(level=Level.CRITICAL if len(found) == len(workers) else Level.WARNING, text=text, remedy=remedy)


def _of_relays(fleet: FleetStatus) -> Iterator[Condition]:
    for relay in fleet.relays:
        if not relay.alive:
            continue
        for topic, queue in sorted(relay.rabbitmq.items()):
            if queue.why:
                yield untaken(topic, queue.state, queue.why, who=f"relay {relay.host} {relay.pid}")


def _of_reconciliations(fleet: FleetStatus) -> Iterator[Condition]:
    for kind in fleet.reconciliations:
        if kind.wrong:
            yield Condition(
                level=Level.WARNING,
                topic=kind.topic,
                text=f"{count(kind.wrong)} of {count(kind.total)} {kind.kind} are not with Zithara, as reconcile found "
                f"{duration(fleet.at_utc - (kind.judged_utc or fleet.at_utc))} ago",
                remedy=f"see 'zithara-worker reconcile {kind.kind}' (--publish sends what is missing)",
            )
