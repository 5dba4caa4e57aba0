"""The status page: one self-contained HTML document for people, from a `Sight`. Pure; every text in it is escaped.

No script, no external file: a reload every ten seconds, one style sheet that the Content-Security-Policy knows by its
hash, and SVG. What it shows is what `zithara-worker status` shows.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources

from zithara_worker.monitor.charts import bars, lines, round_top
from zithara_worker.monitor.sight import AGED_SECONDS, MINUTES, Minute, Queue, Sight, Worker, percentile, summed
from zithara_worker.queue.statuses import Status
from zithara_worker.units import count, duration, milliseconds, moment, percent, rate
from zithara_worker.version import VERSION

REFRESH_SECONDS = 10
#: Minutes, the running one included, whose rates the table shows.
RECENT = 5

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
    sight: Sight | None,
    *,
    problem: str | None,
    backlog: Mapping[int, Mapping[str, int]],
    reasons: Sequence[str],
    notes: Sequence[str],
) -> str:
    """The whole document. `problem`: why the sight is old or missing. `reasons`, `notes`: those of /healthz."""
    bad, warn = _fleet(sight) if sight is not None else ([], [])
    reasons = [*reasons, *bad]
    parts = [_banner(reasons, [*dict.fromkeys([*notes, *warn])], problem)]
    if sight is not None:
        parts += [
            _queues(sight),
            _charts(sight, backlog),
            _workers(sight),
            f"<footer>As of {moment(sight.now_utc)} UTC · zithara-worker {escape(VERSION)} · "
            '<a href="/healthz">health</a> · <a href="/metrics">metrics</a></footer>',
        ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">'
        f"<title>zithara-worker: {_title(sight, reasons)}</title><style>{STYLE}</style></head>"
        f"<body><h1>zithara-worker</h1>{''.join(parts)}</body></html>\n"
    )


def _title(sight: Sight | None, reasons: Sequence[str]) -> str:
    if reasons:
        return "needs a look"
    return "running" if sight is None else f"{count(sum(each.pending for each in sight.queues))} waiting"


def _fleet(sight: Sight) -> tuple[list[str], list[str]]:
    """What is wrong with the whole fleet, and what else a person may want to know; each with what to do."""
    bad = []
    warn = []
    for queue in sight.queues:
        age = queue.oldest_ages.get(Status.NEW, 0.0)
        if not queue.workers:
            bad.append(f"no living worker serves {queue.topic}: start one ('zithara-worker consume {queue.topic}')")
        if queue.paused_by:
            warn.append(f"topic {queue.topic} is paused: 'zithara-worker resume {queue.topic}' goes on")
        elif age > AGED_SECONDS and queue.workers:
            bad.append(
                f"{queue.topic} is late, its oldest new message waits for {duration(age)}: look at the breakers and "
                "the workers' logs; if deliveries go well, raise [worker] concurrency or start another worker"
            )
    for worker in sight.workers:
        for target, state in sorted(worker.breakers.items()):
            if worker.alive and state != "closed":
                why = f" ({worker.why[target]})" if target in worker.why else ""
                warn.append(
                    f"{target} is taken to be down by worker {worker.host} {worker.pid}, its breaker is {state}{why}: "
                    "probes find out when it is back"
                )
    return bad, warn


def _banner(reasons: Sequence[str], notes: Sequence[str], problem: str | None) -> str:
    lines_of = [f'<p class="bad">{escape(each)}</p>' for each in reasons]
    lines_of += [f'<p class="warn">{escape(each)}</p>' for each in notes]
    if problem:
        lines_of.append(f'<p class="bad">The queues cannot be counted: {escape(problem)}</p>')
    return "".join(lines_of) or '<p class="good">Every topic is served, and no queue is late.</p>'


# ---------------------------------------------------------------- queues


def _queues(sight: Sight) -> str:
    heads = ("Topic", "New", "In progress", "Retry", "Error", "Oldest", "Delivered", "Failed", "Response", "Empty in")
    rows = "".join(_queue(each, sight) for each in sight.queues)
    return (
        f"<h2>Queues</h2><table><thead><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _queue(queue: Queue, sight: Sight) -> str:
    this_minute = int(sight.now_utc // 60)
    recent = summed(
        [
            minute
            for (number, topic), minute in sight.minutes.items()
            if topic == queue.topic and this_minute - RECENT < number <= this_minute
        ]
    )
    seconds = min((RECENT - 1) * 60 + sight.now_utc % 60, max((each.age_seconds for each in sight.workers), default=0))
    done = (recent.done + recent.superseded) * 60 / max(1.0, seconds)
    ages = [queue.oldest_ages[status] for status in (Status.NEW, Status.RETRY_REQUIRED) if status in queue.oldest_ages]
    median = percentile(recent.buckets, 0.5)
    slow = percentile(recent.buckets, 0.95)
    topic = escape(queue.topic)
    if queue.paused_by:
        why = f": {queue.pause_reason}" if queue.pause_reason else ""
        topic += f'<small class="warn">paused by {escape(queue.paused_by + why)}</small>'
    retry = count(queue.counts.get(Status.RETRY_REQUIRED, 0))
    if queue.next_retry_seconds is not None and queue.counts.get(Status.RETRY_REQUIRED, 0):
        retry += f"<small>next in {duration(queue.next_retry_seconds)}</small>"
    errors = queue.counts.get(Status.ERROR, 0)
    cells = (
        ("New", count(queue.counts.get(Status.NEW, 0)), ""),
        ("In progress", count(queue.counts.get(Status.IN_PROGRESS, 0)), ""),
        ("Retry", retry, "warn" if queue.counts.get(Status.RETRY_REQUIRED, 0) else ""),
        ("Error", count(errors), "bad" if errors else ""),
        ("Oldest", duration(max(ages)) if ages else "-", ""),
        ("Delivered", f"{rate(done)}/min", ""),
        ("Failed", percent(recent.failure_share), "bad" if (recent.failure_share or 0) > 0.05 else ""),
        ("Response", "-" if median is None else f"{milliseconds(median)}<small>95%: {milliseconds(slow)}</small>", ""),
        ("Empty in", duration(queue.pending / done * 60) if queue.pending and done else "-", ""),
    )
    columns = "".join(
        f'<td data-label="{label}"{f" class={kind}" if kind else ""}><span>{value}</span></td>'
        for label, value, kind in cells
    )
    return f'<tr><th scope="row">{topic}</th>{columns}</tr>'


# ---------------------------------------------------------------- charts


def _charts(sight: Sight, backlog: Mapping[int, Mapping[str, int]]) -> str:
    newest = int(sight.now_utc // 60)
    numbers = range(newest - MINUTES + 1, newest + 1)
    by_minute: dict[int, list[Minute]] = {}
    for (number, _), minute in sight.minutes.items():
        by_minute.setdefault(number, []).append(minute)
    hour = [summed(by_minute.get(number, ())) for number in numbers]
    waiting = [float(sum(backlog[number].values())) if number in backlog else None for number in numbers]
    done = [float(each.done + each.superseded) for each in hour]
    failed = [float(each.retried + each.failed) for each in hour]
    shares = [None if each.failure_share is None else each.failure_share * 100 for each in hour]
    medians = [percentile(each.buckets, 0.5) for each in hour]
    slow = [percentile(each.buckets, 0.95) for each in hour]

    top = round_top(waiting, least=10)
    charts = _chart("Backlog", f"{count(top)} messages", lines([("main", waiting)], top=top, label="Backlog"))
    top = round_top([a + b for a, b in zip(done, failed, strict=True)], least=10)
    drawing = bars([("main", done), ("fail", failed)], top=top, label="Throughput")
    charts += _chart("Throughput", f"{count(top)} a minute", drawing, (("main", "done"), ("fail", "failed")))
    top = min(100.0, round_top(shares, least=1))
    charts += _chart("Failure rate", f"{top:g}%", lines([("fail", shares)], top=top, label="Failure rate"))
    top = round_top(slow, least=10)
    drawing = lines([("second", slow), ("main", medians)], top=top, label="Response times")
    charts += _chart("Response times", milliseconds(top), drawing, (("main", "median"), ("second", "95%")))
    return f'<h2>The last hour</h2><div class="charts">{charts}</div>'


def _chart(title: str, top: str, drawing: str, legend: Sequence[tuple[str, str]] = ()) -> str:
    keys = "".join(f'<span class="key {kind}">{escape(text)}</span>' for kind, text in legend)
    return (
        f"<figure><figcaption><b>{escape(title)}</b>{keys}<span>{escape(top)}</span></figcaption>{drawing}"
        '<div class="axis"><span>60 min ago</span><span>now</span></div></figure>'
    )


# ---------------------------------------------------------------- workers


def _workers(sight: Sight) -> str:
    if not sight.workers:
        return '<h2>Workers</h2><p class="bad">No worker was seen within a day.</p>'
    heads = ("Worker", "Process", "Version", "Since", "Seen", "In flight", "Breakers", "Topics")
    rows = "".join(_worker(each) for each in sight.workers)
    return (
        f"<h2>Workers</h2><table><thead><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _worker(worker: Worker) -> str:
    shut = [f"{target} {state}" for target, state in sorted(worker.breakers.items()) if state != "closed"]
    address = f"<small>{escape(worker.metrics_address)}</small>" if worker.metrics_address else ""
    topics = ", ".join(each.removeprefix("zithara.").removesuffix(".events") for each in worker.topics)
    cells = (
        ("Process", str(worker.pid), ""),
        ("Version", escape(worker.version), ""),
        ("Since", duration(worker.age_seconds), ""),
        ("Seen", f"{duration(worker.silent_seconds)} ago", "" if worker.alive else "bad"),
        ("In flight", count(worker.in_flight), ""),
        ("Breakers", escape(", ".join(shut)) or "closed", "bad" if shut else ""),
        ("Topics", escape(topics), ""),
    )
    columns = "".join(
        f'<td data-label="{label}"{f" class={kind}" if kind else ""}><span>{value}</span></td>'
        for label, value, kind in cells
    )
    return f'<tr><th scope="row">{escape(worker.host)}{address}</th>{columns}</tr>'
