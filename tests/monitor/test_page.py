"""The status page is self-contained, strict and escaped, and a real browser shows it, on a desk and on a phone."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import struct
import subprocess
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from zithara_worker.monitor import charts, page
from zithara_worker.monitor.fleet import BUCKETS_MS
from zithara_worker.monitor.server import Listener, Reply
from zithara_worker.monitor.sight import Minute, Queue, Sight, Worker
from zithara_worker.queue.statuses import Status

NOW = 1_800_000_000.0
EVIL = "<script>document.title='owned'</script>\"'><img src=x onerror=alert(1)>"
TOPIC = "zithara.order.events"


def minute(number: int) -> Minute:
    buckets = [0] * (len(BUCKETS_MS) + 1)
    buckets[4] = 90 + number % 7 * 3
    buckets[6 + number % 3] = 8
    return Minute(
        done=100 + number % 11 * 9, superseded=2, retried=number % 5, failed=number % 3, buckets=tuple(buckets)
    )


def sight(*, topic: str = TOPIC, pause: str = "", worker: str = "shop1") -> Sight:
    newest = int(NOW // 60)
    queue = Queue(
        topic=topic,
        name="zithara_order_queue",
        counts={Status.NEW: 12_345, Status.IN_PROGRESS: 16, Status.RETRY_REQUIRED: 3, Status.ERROR: 2},
        oldest_ages={Status.NEW: 240.0, Status.RETRY_REQUIRED: 90.0},
        next_retry_seconds=25.0,
        workers=1,
        paused_by=pause,
        pause_reason=pause,
    )
    running = Worker(
        id="w1",
        host=worker,
        pid=4711,
        version="0.1.0",
        topics=(topic,),
        age_seconds=7200.0,
        silent_seconds=2.0,
        in_flight=16,
        metrics_address="127.0.0.1:9209",
        breakers={"api": "closed", "webhook": "half-open"},
    )
    minutes = {(number, topic): minute(number) for number in range(newest - 59, newest + 1)}
    return Sight(now_utc=NOW, queues=(queue,), workers=(running,), minutes=minutes)


def backlog() -> Mapping[int, Mapping[str, int]]:
    newest = int(NOW // 60)
    return {
        number: {TOPIC: 8_000 + (number - newest) * 100 + number % 9 * 300} for number in range(newest - 45, newest + 1)
    }


def rendered(shown: Sight | None, **changes: object) -> str:
    given: dict[str, object] = {"problem": None, "backlog": backlog(), "reasons": (), "notes": (), **changes}
    return page.render(shown, **given)  # type: ignore[arg-type]


class _Outline(HTMLParser):
    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: set[str] = set()
        self.text = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links |= {value or "" for name, value in attrs if name in ("href", "src")}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_says_how_the_queue_is() -> None:
    words = " ".join(_Outline(rendered(sight())).text.split())
    for expected in ("12.3k", "next in 25s", "4m00s", "shop1", "webhook half-open", "its breaker is half-open"):
        assert expected in words, expected


def test_nothing_is_loaded_from_elsewhere_and_nothing_is_a_script() -> None:
    outline = _Outline(rendered(sight()))
    assert not outline.tags & {"script", "img", "iframe", "link", "object", "form", "input"}
    assert not {name for name in outline.attributes if name == "style" or name.startswith("on")}
    assert outline.links == {"/healthz", "/metrics"}


def test_policy_allows_the_one_style_sheet_and_nothing_else() -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", rendered(sight()), re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    directives = dict(each.strip().split(" ", 1) for each in page.POLICY.split(";"))
    assert directives["default-src"] == "'none'" and directives["style-src"] == f"'sha256-{digest}'"
    assert {directives[each] for each in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert "unsafe" not in page.POLICY and page.HEADERS["Content-Security-Policy"] == page.POLICY


def test_everything_from_outside_is_escaped() -> None:
    document = rendered(sight(topic=EVIL, pause=EVIL, worker=EVIL), problem=EVIL, reasons=(EVIL,), notes=(EVIL,))
    outline = _Outline(document)
    assert "<script" not in document and "<img" not in document
    assert outline.text.count("<script>document.title='owned'</script>") >= 6
    assert not {name for name in outline.attributes if name.startswith("on")}


def test_trouble_is_on_top() -> None:
    words = _Outline(rendered(None, problem="gone away", reasons=("the worker is stopping",))).text
    assert "the worker is stopping" in words and "cannot be counted: gone away" in words and "ready." not in words
    assert "No worker was seen" in rendered(Sight(now_utc=NOW, queues=(), workers=(), minutes={}))


def test_paused_topic_says_by_whom_and_why() -> None:
    assert "paused by anna: anna" in _Outline(rendered(sight(pause="anna"))).text


def test_scales_are_round_and_hold_every_value() -> None:
    assert [charts.round_top([value], least=1) for value in (0, 1, 3, 7, 12, 500, 501)] == [1, 1, 5, 10, 20, 500, 1000]
    assert charts.round_top([None], least=10) == 10


def test_gap_in_a_line_stays_a_gap_and_a_lone_value_is_seen() -> None:
    drawing = charts.lines([("main", [1, 2, None, 3])], top=4, label="x")
    assert re.findall(r'points="([^"]*)"', drawing) == ["75.0,89.0 225.0,60.0", "521.0,31.0 529.0,31.0"]


def test_bars_stand_upon_each_other_and_stay_within() -> None:
    drawing = charts.bars([("main", [5.0, 100.0]), ("fail", [5.0, 0.0])], top=10, label="x")
    assert re.findall(r'class="(\w+)" x="\S+" y="(\S+)" width="\S+" height="(\S+)"', drawing) == [
        ("main", "60.0", "60.0"),
        ("fail", "0.0", "60.0"),
        ("main", "0.0", "120.0"),
    ]


# ---------------------------------------------------------------- the banner


def healthy() -> Sight:
    seen = sight()
    (running,) = seen.workers
    return replace(seen, workers=(replace(running, breakers={"api": "closed"}),))


def with_queue(seen: Sight, **changes: Any) -> Sight:
    return replace(seen, queues=tuple(replace(queue, **changes) for queue in seen.queues))


def test_banner_is_green_when_every_topic_is_served_and_no_queue_is_late() -> None:
    document = rendered(healthy())
    assert 'class="good">Every topic is served' in document and "needs a look" not in document


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"workers": 0}, f"no living worker serves {TOPIC}: start one"),
        ({"oldest_ages": {Status.NEW: 1200.0}}, f"{TOPIC} is late, its oldest new message waits for 20"),
        ({"paused_by": "anna"}, f"topic {TOPIC} is paused"),
    ],
)
def test_banner_is_not_green_when_a_topic_is_not_served_is_late_or_paused(changes: dict[str, Any], told: str) -> None:
    document = rendered(with_queue(healthy(), **changes))
    assert told in document and 'class="good"' not in document


def test_banner_tells_the_breakers_of_all_living_workers() -> None:
    seen = sight()
    (running,) = seen.workers
    assert "webhook is taken to be down by worker shop1 4711, its breaker is half-open: probes" in rendered(seen)
    told = replace(seen, workers=(replace(running, why={"webhook": "http_503 <down>"}),))
    assert "half-open (http_503 &lt;down&gt;): probes" in rendered(told)
    dead = replace(seen, workers=(running, replace(running, id="w2", pid=4712, alive=False)))
    assert "worker shop1 4712" not in rendered(dead)


def test_a_pause_that_health_tells_too_is_told_once() -> None:
    note = f"topic {TOPIC} is paused: 'zithara-worker resume {TOPIC}' goes on"
    document = rendered(with_queue(healthy(), paused_by="anna"), notes=(note,))
    assert document.count("is paused:") == 1


def test_a_paused_queue_is_not_called_late() -> None:
    document = rendered(with_queue(healthy(), paused_by="anna", oldest_ages={Status.NEW: 1200.0}))
    assert "is late" not in document


# ---------------------------------------------------------------- in a browser


def chromium(directory: Path, *arguments: str) -> str:
    found = shutil.which("chromium")
    assert found, "no chromium on this machine: apt-get install chromium (scripts/test does it)"
    quiet = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
    more = ("--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={directory}/profile")
    command = [found, "--headless", "--no-sandbox", *quiet, *more, "--enable-logging=stderr", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    violations = [line for line in result.stderr.splitlines() if "CONSOLE" in line and "favicon" not in line]
    assert not violations, violations
    return result.stdout


@pytest.mark.parametrize(("name", "width", "height"), [("desk", 1280, 1100), ("phone", 390, 1700)])
def test_browser_shows_the_page_without_complaint(tmp_path: Path, name: str, width: int, height: int) -> None:
    document = rendered(sight(), notes=("webhook is taken to be down",)).encode()
    listener = Listener(
        "127.0.0.1:0",
        {"/": lambda accept: Reply(content_type="text/html; charset=utf-8", body=document, headers=page.HEADERS)},
    )
    listener.start()
    with closing(listener):
        shot = tmp_path / f"{name}.png"
        chromium(tmp_path, f"--window-size={width},{height}", f"--screenshot={shot}", f"http://{listener.address}/")
    assert struct.unpack(">II", shot.read_bytes()[16:24]) == (width, height)


def test_browser_runs_nothing_that_came_with_a_message(tmp_path: Path) -> None:
    document = rendered(sight(topic=EVIL, worker=EVIL), reasons=(EVIL,)).encode()
    listener = Listener(
        "127.0.0.1:0",
        {"/": lambda accept: Reply(content_type="text/html; charset=utf-8", body=document, headers=page.HEADERS)},
    )
    listener.start()
    with closing(listener):
        seen = chromium(tmp_path, "--dump-dom", f"http://{listener.address}/")
    assert "<title>zithara-worker: needs a look</title>" in seen and "<script" not in seen
