"""The status page: one self-contained HTML document with its charts, from a `FleetStatus`. Pure; every text in it is
escaped.

It has no script and no external file: it reloads every ten seconds, its charts are SVG, and the Content-Security-Policy
allows its one style sheet by hash. It shows what `zithara-worker status` shows.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib import resources

from zithara_worker.monitor.conditions import Level, conditions
from zithara_worker.monitor.fleet import FleetStatus, RelayedQueue, TopicStatus, WorkerStatus
from zithara_worker.monitor.reconciliations import WRONG
from zithara_worker.reasons import find
from zithara_worker.topics import short_name
from zithara_worker.units import count, counts, duration, milliseconds, moment, percent, rate
from zithara_worker.version import VERSION

REFRESH_SECONDS = 10
#: The size of a chart, in its own units: the page stretches it to the width that there is.
WIDTH, HEIGHT = 600, 120

STYLE = resources.files("zithara_worker.monitor").joinpath("page.css").read_text(encoding="utf-8")
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def render(
    fleet: FleetStatus | None,
    *,
    problem: str | None,
    backlog: Mapping[int, int],
    reasons: Sequence[str],
    notes: Sequence[str],
) -> str:
    """The whole document. `problem`: why the status is old or missing. `backlog`: minute since the epoch -> pending
    messages. `reasons`, `notes`: those of /healthz."""
    of_fleet = [] if fleet is None else conditions(fleet)

    def only_here(line: str) -> bool:
        """Whether no condition of the fleet says what /healthz says of this worker."""
        return not any(line.startswith(f"{each.text}: ") or line.endswith(f": {each.remedy}") for each in of_fleet)

    critical = [str(each) for each in of_fleet if each.level is Level.CRITICAL]
    minor = [str(each) for each in of_fleet if each.level is not Level.CRITICAL]
    reasons = [*filter(only_here, reasons), *critical]
    parts = [_banner(reasons, [*filter(only_here, notes), *minor], problem)]
    title = "running"
    if fleet is not None:
        title = f"{count(sum(topic.pending for topic in fleet.topics))} waiting"
        parts += [
            _queues(fleet),
            _failures(fleet),
            _charts(fleet, backlog),
            _workers(fleet),
            _relays(fleet),
            _reconciliations(fleet),
            f"<footer>As of {moment(fleet.at_utc)} UTC · zithara-worker {escape(VERSION)} · "
            '<a href="/healthz">health</a> · <a href="/metrics">metrics</a></footer>',
        ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">'
        f"<title>zithara-worker: {'needs attention' if reasons else title}</title><style>{STYLE}</style></head>"
        f"<body><h1>zithara-worker</h1>{''.join(parts)}</body></html>\n"
    )


def _banner(reasons: Sequence[str], notes: Sequence[str], problem: str | None) -> str:
    lines_of = [f'<p class="bad">{escape(each)}</p>' for each in reasons]
    lines_of += [f'<p class="warn">{escape(each)}</p>' for each in notes]
    if problem:
        lines_of.append(f'<p class="bad">The queues cannot be counted: {escape(problem)}</p>')
    return "".join(lines_of) or '<p class="good">Every topic is served, no queue is late, and nothing has failed.</p>'


# ---------------------------------------------------------------- tables


def _table(heads: Sequence[str], rows: Iterable[str]) -> str:
    return (
        f"<table><thead><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _row(name: str, cells: Sequence[tuple[str, str, str]]) -> str:
    """`cells`: label, which a narrow screen shows; content; class."""
    columns = "".join(
        f'<td data-label="{label}"{f" class={kind}" if kind else ""}><span>{value}</span></td>'
        for label, value, kind in cells
    )
    return f'<tr><th scope="row">{name}</th>{columns}</tr>'


def _queues(fleet: FleetStatus) -> str:
    heads = ("Topic", "New", "In progress", "Retry", "Error", "Oldest", "Delivered", "Failed", "Response", "Empty in")
    return f"<h2>Queues</h2>{_table(heads, (_queue(topic) for topic in fleet.topics if topic.queue is not None))}"


def _queue(topic: TopicStatus) -> str:
    name = escape(topic.topic)
    if topic.pause is not None:
        name += '<small class="warn">paused</small>'
    if topic.skipped:
        name += f"<small>last hour without a request: {escape(counts(topic.skipped))}</small>"
    if topic.aside:
        name += f'<small class="bad">from RabbitMQ kept aside: {count(topic.aside)}</small>'
    retry = count(topic.retry)
    if topic.retry_due_seconds is not None and topic.retry:
        retry += f"<small>next in {duration(topic.retry_due_seconds)}</small>"
    ages = [age for age in (topic.oldest_new_seconds, topic.oldest_retry_seconds) if age is not None]
    recent = topic.rates
    response = milliseconds(recent.p50_ms)
    if recent.p95_ms is not None:
        response += f"<small>95%: {milliseconds(recent.p95_ms)}</small>"
    return _row(
        name,
        (
            ("New", count(topic.new), ""),
            ("In progress", count(topic.in_progress), ""),
            ("Retry", retry, "warn" if topic.retry else ""),
            ("Error", count(topic.error), "bad" if topic.error else ""),
            ("Oldest", duration(max(ages, default=None)), ""),
            ("Delivered", f"{rate(recent.done_per_minute)}/min", ""),
            ("Failed", percent(recent.failure_rate), "bad" if (recent.failure_rate or 0) > 0.05 else ""),
            ("Response", response, ""),
            ("Empty in", duration(topic.drain_seconds or None), ""),
        ),
    )


def _failures(fleet: FleetStatus) -> str:
    """Failed messages by reason, and what to do. Nothing where none has failed."""
    if not fleet.failures:
        return ""
    rows = []
    for each in fleet.failures:
        topic, known = short_name(each.topic), find(each.reason)
        select = f"--topic {topic} --reason {each.reason}"
        rows.append(
            _row(
                f"{escape(topic)}<small>{escape(each.reason)}</small>",
                (
                    ("Messages", count(each.messages), "bad"),
                    ("Since", f"{duration(fleet.at_utc - each.since_utc)} ago", ""),
                    ("Newest", str(each.newest_id), ""),
                    ("What to do", escape(known.remedy if known else ""), "text"),
                    ("Command", f"<code>{escape(f'zithara-worker failed list {select}')}</code>", "text"),
                ),
            )
        )
    heads = ("Failed", "Messages", "Since", "Newest", "What to do", "Command")
    return f"<h2>Failed messages</h2>{_table(heads, rows)}"


def _workers(fleet: FleetStatus) -> str:
    workers = [worker for worker in fleet.workers if worker.started_utc is not None]
    if not workers:
        return '<h2>Workers</h2><p class="bad">No worker was seen within a day.</p>'
    heads = ("Worker", "Process", "Version", "Since", "Seen", "In flight", "Breakers", "Pace", "Topics")
    return f"<h2>Workers</h2>{_table(heads, (_worker(each, fleet.at_utc) for each in workers))}"


def _worker(worker: WorkerStatus, now: float) -> str:
    reports = sorted(worker.target_reports, key=lambda each: each.target)
    down = [f"{each.target} {each.breaker}" for each in reports if each.breaker != "closed"]
    topics = ", ".join(short_name(each) for each in worker.topics)
    address = f"<small>{escape(worker.metrics_address)}</small>" if worker.metrics_address else ""
    return _row(
        f"{escape(worker.host)}{address}",
        (
            ("Process", str(worker.pid), ""),
            ("Version", escape(worker.version), ""),
            ("Since", duration(now - (worker.started_utc or now)), ""),
            ("Seen", f"{duration(worker.last_seen_seconds)} ago", "" if worker.alive else "bad"),
            ("In flight", count(worker.in_flight), ""),
            ("Breakers", escape(", ".join(down)) or "closed", "bad" if down else ""),
            ("Pace", "limited by rate_limit" if worker.is_rate_limited else "", ""),
            ("Topics", escape(topics), ""),
        ),
    )


def _reconciliations(fleet: FleetStatus) -> str:
    """The last result of `reconcile`. Nothing where it never ran."""
    found = [each for each in fleet.reconciliations if each.judged_utc is not None]
    if not found:
        return ""
    rows = [
        _row(
            escape(each.kind),
            (
                ("Compared", f"{duration(fleet.at_utc - (each.judged_utc or 0.0))} ago", ""),
                ("In the shop", count(each.total), ""),
                ("Complete", count(each.counts.get("complete")), ""),
                ("Waiting", count(each.counts.get("waiting")), ""),
                *(
                    (name.capitalize(), count(each.counts.get(name)), "bad" if each.counts.get(name) else "")
                    for name in WRONG
                ),
            ),
        )
        for each in found
    ]
    heads = ("Kind", "Compared", "In the shop", "Complete", "Waiting", "Missing", "Stale", "Failed")
    return f"<h2>Is the CRM complete?</h2>{_table(heads, rows)}"


def _relays(fleet: FleetStatus) -> str:
    """Who takes messages from RabbitMQ, and how many wait there. Nothing where a shop has no relay."""
    if not fleet.relays:
        return ""
    moved = {topic.topic: f"{rate(topic.rates.relayed_per_minute)}/min" for topic in fleet.topics}
    rows = [
        _relay(relay, topic, moved.get(topic, "-"), fleet.at_utc) for relay in fleet.relays for topic in relay.topics
    ]
    return f"<h2>Relays</h2>{_table(('Relay', 'Process', 'Since', 'Seen', 'Topic', 'RabbitMQ', 'Moved'), rows)}"


def _relay(relay: WorkerStatus, topic: str, moved: str, now: float) -> str:
    # What a dead one wrote last is not so any more.
    queue = relay.rabbitmq.get(topic, RelayedQueue()) if relay.alive else RelayedQueue(state="dead")
    name = short_name(topic)
    address = f"<small>{escape(relay.metrics_address)}</small>" if relay.metrics_address else ""
    return _row(
        f"{escape(relay.host)}{address}",
        (
            ("Process", f"{relay.pid}<small>{escape(relay.version)}</small>", ""),
            ("Since", duration(now - (relay.started_utc or now)), ""),
            ("Seen", f"{duration(relay.last_seen_seconds)} ago", "" if relay.alive else "bad"),
            ("Topic", escape(f"{name} ({queue.state})"), ""),
            ("RabbitMQ", count(queue.waiting), ""),
            ("Moved", moved if queue.active else "-", ""),
        ),
    )


# ---------------------------------------------------------------- charts


def _charts(fleet: FleetStatus, backlog: Mapping[int, int]) -> str:
    hour = fleet.history
    waiting = [float(backlog[each.minute]) if each.minute in backlog else None for each in hour]
    done = [float(each.done) for each in hour]
    failed = [float(each.retried + each.failed) for each in hour]
    shares = [None if each.failure_rate is None else each.failure_rate * 100 for each in hour]
    medians = [each.percentile_ms(0.50) for each in hour]
    slow = [each.percentile_ms(0.95) for each in hour]

    top = round_top(waiting, least=10)
    charts = _chart("Backlog", waiting, count, top, lines([("main", waiting)], top=top, label="Backlog"))
    both = [a + b for a, b in zip(done, failed, strict=True)]
    top = round_top(both, least=10)
    drawing = bars([("main", done), ("fail", failed)], top=top, label="Throughput")
    charts += _chart("Messages a minute", both, count, top, drawing, (("main", "done"), ("fail", "failed")))
    top = min(100.0, round_top(shares, least=1))
    drawing = lines([("fail", shares)], top=top, label="Failure rate")
    charts += _chart("Failure rate", shares, lambda value: f"{value:.3g}%", top, drawing)
    top = round_top(slow, least=10)
    drawing = lines([("second", slow), ("main", medians)], top=top, label="Response times")
    charts += _chart("Response times", slow, milliseconds, top, drawing, (("main", "median"), ("second", "95%")))
    return f'<h2>The last hour</h2><div class="charts">{charts}</div>'


def _chart(
    title: str,
    values: Sequence[float | None],
    written: Callable[[float], str],
    top: float,
    drawing: str,
    legend: Sequence[tuple[str, str]] = (),
) -> str:
    """`values`: those whose latest and highest are told. `top`: the upper end of the scale."""
    keys = "".join(f'<span class="key {kind}">{escape(text)}</span>' for kind, text in legend)
    seen = [each for each in values if each is not None]
    now = written(values[-1]) if values and values[-1] is not None else "-"
    highest = written(max(seen)) if seen else "-"
    return (
        f"<figure><figcaption><b>{escape(title)}</b>{keys}<span>now {escape(now)}, highest {escape(highest)}</span>"
        f"</figcaption>{drawing}"
        f'<div class="axis"><span>60 min ago</span><span>scale to {escape(written(top))}</span><span>now</span></div>'
        "</figure>"
    )


def lines(series: Sequence[tuple[str, Sequence[float | None]]], *, top: float, label: str) -> str:
    """One line for each (class, values), oldest first, from 0 to `top`. None is a gap; a value between two gaps is a
    dash."""
    parts = []
    for kind, values in series:
        for run in _runs(values):
            if len(run) == 1:
                x, y = _place(run[0], len(values), top)
                parts.append(f'<polyline class="{escape(kind)}" points="{x - 4:.1f},{y:.1f} {x + 4:.1f},{y:.1f}"/>')
            else:
                points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (_place(each, len(values), top) for each in run))
                parts.append(f'<polyline class="{escape(kind)}" points="{points}"/>')
    return _drawing("".join(parts), label)


def bars(series: Sequence[tuple[str, Sequence[float]]], *, top: float, label: str) -> str:
    """Stacked bars, the first series at the bottom; (class, values), oldest first, all of the same length."""
    parts = []
    columns = max((len(values) for _, values in series), default=0)
    for index in range(columns):
        bottom = float(HEIGHT)
        for kind, values in series:
            height = HEIGHT * min(1.0, values[index] / top) if top else 0.0
            if not height:
                continue
            width = WIDTH / columns
            bottom -= height
            parts.append(
                f'<rect class="{escape(kind)}" x="{index * width + 1:.1f}" y="{bottom:.1f}" '
                f'width="{max(1.0, width - 2):.1f}" height="{height:.1f}"/>'
            )
    return _drawing("".join(parts), label)


def round_top(values: Sequence[float | None], *, least: float) -> float:
    """The upper end of a scale: the least of 1, 2 or 5 times a power of ten that is not below a value or `least`."""
    highest = max([least, *(each for each in values if each is not None)])
    power = 1e-3
    while True:
        for factor in (1, 2, 5):
            if power * factor >= highest * (1 - 1e-9):
                return power * factor
        power *= 10


def _drawing(parts: str, label: str) -> str:
    grid = "".join(
        f'<line class="grid" x1="0" x2="{WIDTH}" y1="{y}" y2="{y}"/>' for y in (0.5, HEIGHT / 2, HEIGHT - 0.5)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f"{grid}{parts}</svg>"
    )


def _place(point: tuple[int, float], columns: int, top: float) -> tuple[float, float]:
    index, value = point
    x = WIDTH * (index + 0.5) / columns
    share = min(1.0, max(0.0, value / top)) if top else 0.0
    return x, HEIGHT - 2 - (HEIGHT - 4) * share


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    runs: list[list[tuple[int, float]]] = [[]]
    for index, value in enumerate(values):
        if value is not None:
            runs[-1].append((index, value))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
