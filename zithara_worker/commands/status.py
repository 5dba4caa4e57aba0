"""`status`: the queues and the fleet."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from textwrap import wrap
from typing import Any

import click

from zithara_worker.commands.root import Context
from zithara_worker.commands.terminal import (
    Screen,
    ScreenEvent,
    coloured,
    plain_length,
    print_json,
    printable,
    sparkline,
    table,
)
from zithara_worker.database import schema
from zithara_worker.errors import DatabaseUnavailable
from zithara_worker.monitor.conditions import Level, conditions
from zithara_worker.monitor.fleet import (
    DEAD_AFTER_SECONDS,
    FleetStatus,
    RelayedQueue,
    TopicStatus,
    WorkerStatus,
    read_fleet,
)
from zithara_worker.monitor.rates import Minute
from zithara_worker.monitor.reconciliations import WRONG
from zithara_worker.topics import short_name
from zithara_worker.units import count, counts, duration, iso, milliseconds, moment, percent, rate

#: The largest share of the time in which --watch reads: counting a backlog of millions is work for the database.
_READ_SHARE = 0.1


@click.command()
@click.option("--json", "as_json_", is_flag=True, help="One JSON object; with --watch one line for each reading.")
@click.option("--watch", is_flag=True, help="A live screen; q or Ctrl-C ends it, any other key refreshes it.")
@click.option(
    "--interval", type=click.FloatRange(min=0.2), default=2.0, show_default=True, metavar="S", help="For --watch."
)
@click.option("--full", is_flag=True, help="Count completed messages too; reads every row of the queues.")
@click.pass_obj
def status(context: Context, as_json_: bool, watch: bool, interval: float, full: bool) -> None:
    """Show queues, rates and workers of the whole fleet.

    Rates and response times are of the last 5 minutes. OLDEST is the age of the oldest new message. FAILS is the share
    of attempts that failed. DRAIN is the time that the backlog takes at the present rate.

    \b
    Examples:
      zithara-worker status
      zithara-worker status --watch
      zithara-worker status --json | jq .total.error
    """
    with context.database() as database:
        schema.require(database)

        def read() -> FleetStatus:
            return read_fleet(database, context.configured.settings.queues, full=full)

        if not watch:
            found = read()
            if as_json_:
                print_json(as_json(found))
            else:
                click.echo("\n".join(report(found, width=_width(), plain=_plain())))
        elif as_json_ or not sys.stdout.isatty():
            _repeat(read, interval, as_json_=as_json_)
        else:
            _live(read, interval)


def _repeat(read: Callable[[], FleetStatus], interval: float, *, as_json_: bool) -> None:
    """--watch without a terminal: one report after the other until interrupted."""
    try:
        while True:
            began = time.monotonic()
            found = read()
            if as_json_:
                print_json(as_json(found))
            else:
                click.echo("\n".join([*report(found, width=80, plain=_plain()), ""]))
            time.sleep(_seconds_to_wait(interval, time.monotonic() - began))
    except KeyboardInterrupt:
        return


def _live(read: Callable[[], FleetStatus], interval: float) -> None:
    found: FleetStatus | None = None
    problem = ""
    try:
        with Screen() as screen:
            event = ScreenEvent.REFRESH
            due = 0.0
            while event is not ScreenEvent.QUIT:
                if event is ScreenEvent.REFRESH or time.monotonic() >= due:
                    began = time.monotonic()
                    try:
                        found, problem = read(), ""
                    except DatabaseUnavailable as error:
                        problem = str(error)
                    due = time.monotonic() + _seconds_to_wait(interval, time.monotonic() - began)
                columns, rows = screen.size
                screen.draw(picture(found, problem, columns=columns, rows=rows, plain=_plain()))
                event = screen.wait(due - time.monotonic())
    except KeyboardInterrupt:
        return


def _seconds_to_wait(interval: float, took: float) -> float:
    return max(interval, took * (1 / _READ_SHARE - 1))


def _width() -> int:
    return shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100


def _plain() -> bool:
    """Whether the output can show ASCII only."""
    return "utf" not in (sys.stdout.encoding or "").lower()


# ---------------------------------------------------------------- JSON


def as_json(found: FleetStatus) -> dict[str, Any]:
    """What `--json` prints: times as ISO 8601, durations in seconds."""
    topics = []
    for topic in found.topics:
        value = {**asdict(topic), **asdict(topic.rates), "history": _eventful(topic.history)}
        del value["rates"]
        value["paused"] = topic.pause is not None
        value["pause"] = topic.pause and {
            "by": topic.pause.paused_by,
            "since": iso(topic.pause.paused_at_utc),
            "reason": topic.pause.reason,
        }
        value["skipped"] = topic.skipped
        topics.append(value)
    return {
        "at": iso(found.at_utc),
        "conditions": [{**asdict(each), "level": each.level.name.lower()} for each in conditions(found)],
        "topics": topics,
        "workers": [_process(worker) for worker in found.workers],
        "relays": [_process(relay) for relay in found.relays],
        "reconcile": [
            {"kind": each.kind, "at": iso(each.judged_utc), "total": each.total, "wrong": each.wrong, **each.counts}
            for each in found.reconciliations
        ],
        "total": {
            **{name: sum(topic[name] for topic in topics) for name in ("new", "in_progress", "retry", "error")},
            "workers_alive": len(found.alive),
            **asdict(found.rates),
            "history": _eventful(found.history),
        },
    }


def _process(worker: WorkerStatus) -> dict[str, Any]:
    value = {**asdict(worker), "started_at": iso(worker.started_utc)}
    del value["started_utc"], value["minutes"], value["stopped"]
    return value


def _eventful(history: Sequence[Minute]) -> list[dict[str, Any]]:
    """Without the minutes in which nothing happened."""
    return [
        {
            "minute": each.minute,
            "done": each.done,
            "retried": each.retried,
            "failed": each.failed,
            "p95_ms": each.percentile_ms(0.95),
        }
        for each in history
        if each.done or each.retried or each.failed
    ]


# ---------------------------------------------------------------- lines


def picture(found: FleetStatus | None, problem: str, *, columns: int, rows: int, plain: bool) -> list[str]:
    """A whole screen: the report, cut to the height, and a last line with the keys."""
    lines: list[str] = []
    if problem:
        lines += [coloured("red", printable(problem), bold=True), ""]
    if found is not None:
        lines += report(found, width=columns, plain=plain)
    foot = coloured("bright_black", "q quit   any key refresh" + ("   (not up to date)" if problem and found else ""))
    if len(lines) > rows - 1:
        hidden = len(lines) - (rows - 2)
        lines = [*lines[: rows - 2], coloured("bright_black", f"{hidden} more lines: enlarge the window")]
    return [*lines, *[""] * (rows - 1 - len(lines)), foot]


def report(found: FleetStatus, *, width: int, plain: bool = False) -> list[str]:
    """The lines that `status` prints; `width`: columns, at least 80."""
    return [
        *_heading(found, width),
        "",
        *_topics(found, width),
        *_notes(found, width),
        "",
        *_history(found, width, plain=plain),
        "",
        *_workers(found.workers, found.at_utc),
        *_relays(found),
        *_reconciliations(found),
    ]


def _reconciliations(found: FleetStatus) -> list[str]:
    """The last result of `reconcile`. Nothing where it never ran."""
    rows = []
    for each in found.reconciliations:
        if each.judged_utc is None:
            continue
        wrong = [f"{count(each.counts[name])} {name}" for name in WRONG if each.counts.get(name)]
        rows.append(
            [
                each.kind,
                f"{duration(found.at_utc - each.judged_utc)} ago",
                count(each.total),
                count(each.counts.get("complete")),
                count(each.counts.get("waiting")),
                coloured("red", ", ".join(wrong)) if wrong else coloured("green", "nothing"),
            ]
        )
    head = ["RECONCILE", "COMPARED", "IN SHOP", "COMPLETE", "WAITING", "WRONG"]
    return ["", *table([coloured("bright_black", name) for name in head], rows, left=(0, 5))] if rows else []


def _heading(found: FleetStatus, width: int) -> Iterator[str]:
    alive = len(found.alive)
    left = coloured("", "zithara-worker", bold=True) + f"  {moment(found.at_utc)} UTC"
    word = "worker" if alive == 1 else "workers"
    right = coloured("green" if alive else "red", f"{alive} {word} alive", bold=not alive)
    yield left + " " * max(2, width - plain_length(left) - plain_length(right)) + right


def _topics(found: FleetStatus, width: int) -> list[str]:
    wide = width >= 104
    head = ["TOPIC", "NEW", "ACTIVE", "RETRY", "ERROR", "OLDEST", "DONE/MIN", "FAILS", "P95", "DRAIN"]
    if wide:
        head[4:4] = ["DUE IN"]
        head[-2:-1] = ["P50", "P95", "P99"]
    if any(topic.complete is not None for topic in found.topics):
        head.insert(5 + wide, "COMPLETE")
    rows = []
    for topic in found.topics:
        cells = {
            "TOPIC": short_name(topic.topic),
            "NEW": count(topic.new),
            "ACTIVE": count(topic.in_progress),
            "RETRY": coloured("yellow" if topic.retry else "", count(topic.retry)),
            "DUE IN": duration(topic.retry_due_seconds),
            "ERROR": coloured("red" if topic.error else "", count(topic.error), bold=bool(topic.error)),
            "COMPLETE": count(topic.complete),
            "OLDEST": duration(topic.oldest_new_seconds),
            "DONE/MIN": rate(topic.rates.done_per_minute),
            "FAILS": coloured(
                "red" if (topic.rates.failure_rate or 0) >= 0.05 else "", percent(topic.rates.failure_rate)
            ),
            "P50": milliseconds(topic.rates.p50_ms),
            "P95": milliseconds(topic.rates.p95_ms),
            "P99": milliseconds(topic.rates.p99_ms),
            "DRAIN": _drain(topic),
        }
        rows.append([cells[name] for name in head])
    return table([coloured("bright_black", name) for name in head], rows)


def _drain(topic: TopicStatus) -> str:
    if topic.pause is not None:
        return coloured("magenta", "paused")
    if topic.queue is None:
        return coloured("red", "no queue")
    if topic.drain_seconds is None:
        return coloured("yellow", "stalled")
    return duration(topic.drain_seconds)


def _notes(found: FleetStatus, width: int) -> Iterator[str]:
    for each in conditions(found):
        critical = each.level is Level.CRITICAL
        for line in wrap(printable(str(each)), width, subsequent_indent="  "):
            yield coloured("red" if critical else "yellow", line, bold=critical)
    for topic in found.topics:
        name = short_name(topic.topic)
        if topic.groups_waiting and topic.retry_due_seconds is not None:
            groups = "1 group waits" if topic.groups_waiting == 1 else f"{topic.groups_waiting} groups wait"
            yield f"{name}: {groups}, next due in {duration(topic.retry_due_seconds)}"
        if topic.leases_expired:
            yield coloured("yellow", f"{name}: {topic.leases_expired} held by dead workers, to be taken over")
        if topic.skipped:
            yield f"{name}: not sent in 60 min: {printable(counts(topic.skipped))}"


def _history(found: FleetStatus, width: int, *, plain: bool) -> Iterator[str]:
    minutes = found.history[-max(10, min(60, width - 20)) :]
    lines: Sequence[tuple[str, str, list[float], Callable[[float], str]]] = (
        ("done", "green", [float(each.done) for each in minutes], lambda top: f"{count(top)}/min"),
        ("failed", "red", [float(each.failed + each.retried) for each in minutes], lambda top: f"{count(top)}/min"),
        ("p95", "cyan", [each.percentile_ms(0.95) or 0.0 for each in minutes], milliseconds),
    )
    yield coloured("bright_black", f"LAST {len(minutes)} MINUTES")
    for name, colour, values, top in lines:
        yield f"{name:<7}{coloured(colour, sparkline(values, plain=plain))}  max {top(max(values))}"


def _workers(workers: Sequence[WorkerStatus], now: float) -> list[str]:
    if not workers:
        return []
    rows = []
    for worker in workers:
        held = " ".join(f"{short_name(topic)} {number}" for topic, number in sorted(worker.held.items()))
        serves = ",".join(short_name(topic) for topic in worker.topics) or "-"
        rows.append(
            [
                printable(worker.host, width=18),
                str(worker.pid or "-"),
                printable(worker.metrics_address or "-"),
                "-" if worker.started_utc is None else duration(now - worker.started_utc),
                _seen(worker),
                count(worker.in_flight),
                held or "-",
                "all" if len(worker.topics) == 4 else serves,
                _targets(worker),
            ]
        )
    head = ["WORKER", "PID", "ADDRESS", "UP", "SEEN", "ACTIVE", "HOLDS", "TOPICS", "STATE"]
    return table([coloured("bright_black", name) for name in head], rows, left=(0, 2, 6, 7, 8))


def _relays(found: FleetStatus) -> Iterator[str]:
    """Who takes messages from RabbitMQ, and how many wait there. Nothing where a shop has no relay."""
    if not found.relays:
        return
    moved = {topic.topic: rate(topic.rates.relayed_per_minute) for topic in found.topics}
    rows = []
    for relay in found.relays:
        for topic in relay.topics:
            # What a dead one wrote last is not so any more.
            queue = relay.rabbitmq.get(topic, RelayedQueue()) if relay.alive else RelayedQueue(state="-")
            rows.append(
                [
                    printable(relay.host, width=18),
                    str(relay.pid),
                    "-" if relay.started_utc is None else duration(found.at_utc - relay.started_utc),
                    _seen(relay),
                    short_name(topic),
                    count(queue.waiting),
                    moved.get(topic, "-") if queue.active else "-",
                    coloured("yellow" if queue.why else "", printable(queue.state, width=12)),
                ]
            )
    head = ["RELAY", "PID", "UP", "SEEN", "TOPIC", "RABBITMQ", "MOVED/MIN", "STATE"]
    yield ""
    yield from table([coloured("bright_black", name) for name in head], rows, left=(0, 4, 7))


def _seen(worker: WorkerStatus) -> str:
    if worker.alive:
        return coloured("green" if worker.registered else "yellow", duration(worker.last_seen_seconds))
    late = worker.last_seen_seconds >= DEAD_AFTER_SECONDS
    return coloured("red" if late else "yellow", f"{duration(worker.last_seen_seconds)} dead")


def _targets(worker: WorkerStatus) -> str:
    """What keeps it from delivering, or bounds its pace; "ok" where nothing does."""
    said = [coloured("yellow", "limited by rate_limit")] if worker.is_rate_limited else []
    if worker.shop_disabled:
        said.append(coloured("yellow", "switched off by the shop"))
    if worker.turn_problem:
        said.append(coloured("red", f"turns fail ({printable(worker.turn_problem, width=60)})"))
    if worker.audit_problem:
        said.append(coloured("red", f"audit file unwritable ({printable(worker.audit_problem, width=60)})"))
    for each in worker.target_reports:
        target = printable(each.target)
        if each.breaker != "closed":
            why = f" ({printable(each.why, width=60)})" if each.why else ""
            probe = duration(each.next_probe_seconds)
            said.append(coloured("red", f"{target} {printable(each.breaker)}{why}, probe in {probe}"))
        if each.throttled_seconds:
            said.append(coloured("yellow", f"{target} throttled {duration(each.throttled_seconds)}"))
    return " ".join(said) or "ok"
