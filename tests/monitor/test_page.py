"""The status page is self-contained, strict and escaped, and a real browser shows it, on a desk and on a phone."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from support.fleet import NOW, fleet_status, reconciliation, topic_status, worker_status

from zithara_worker.monitor import page
from zithara_worker.monitor.fleet import RELAY, FleetStatus, RelayedQueue
from zithara_worker.monitor.health import LoopStatus, relay_health, worker_health
from zithara_worker.monitor.rates import NO_REQUESTS, Minute
from zithara_worker.monitor.server import Listener, Reply
from zithara_worker.queue.failures import FailureCount
from zithara_worker.queue.operator import Pause
from zithara_worker.reasons import find

EVIL = "<script>document.title='owned'</script>\"'><img src=x onerror=alert(1)>"
TOPIC = "zithara.order.events"
NEWEST = int(NOW // 60)


def minute(number: int) -> Minute:
    buckets = [0] * len(NO_REQUESTS)
    buckets[4] = 90 + number % 7 * 3
    buckets[6 + number % 3] = 8
    return Minute(
        minute=number,
        answered=100 + number % 11 * 9,
        superseded=2,
        retried=number % 5,
        failed=number % 3,
        buckets=tuple(buckets),
    )


def fleet(*, topic: str = TOPIC, pause: str = "", worker: str = "shop1") -> FleetStatus:
    busy = topic_status(
        topic=topic,
        minutes=tuple(minute(number) for number in range(NEWEST - 59, NEWEST + 1)),
        new=12_345,
        in_progress=16,
        retry=3,
        error=2,
        oldest_new_seconds=240.0,
        oldest_retry_seconds=90.0,
        retry_due_seconds=25.0,
        drain_seconds=5400.0,
        pause=paused(topic, pause) if pause else None,
    )
    targets = {"api": {"breaker": "closed", "why": ""}, "webhook": {"breaker": "half-open"}, "other": "version"}
    return fleet_status((busy,), (worker_status(host=worker, topics=(topic,), targets=targets),))


def paused(topic: str, by: str) -> Pause:
    return Pause(topic=topic, paused_by=by, paused_at_utc=NOW - 60, reason=by)


def backlog() -> Mapping[int, int]:
    return {number: 8_000 + (number - NEWEST) * 100 + number % 9 * 300 for number in range(NEWEST - 45, NEWEST + 1)}


def rendered(shown: FleetStatus | None, **changes: object) -> str:
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
    words = " ".join(_Outline(rendered(fleet())).text.split())
    for expected in ("12.3k", "next in 25s", "4m00s", "shop1", "webhook half-open", "webhook DOWN"):
        assert expected in words, expected


def test_page_says_what_was_not_sent_and_what_is_not_compared() -> None:
    minutes = (Minute(minute=NEWEST, answered=3, skipped={"unchanged": 1400, EVIL: 2}),)
    document = rendered(fleet_status((topic_status(minutes=minutes, uncompared=True),), (worker_status(),)))
    words = " ".join(_Outline(document).text.split())
    assert "last hour without a request: 1400 unchanged, 2 <script>" in words and "<script" not in document
    assert f"every message of {TOPIC} is sent, because others deliver too" in words


def test_page_sums_up_the_failures_by_reason_with_what_to_do() -> None:
    failures = (
        FailureCount(topic=TOPIC, reason="http_422", messages=1234, since_utc=NOW - 7200, newest_id=99),
        FailureCount(topic=TOPIC, reason=EVIL, messages=1, since_utc=NOW - 60, newest_id=7),
    )
    document = rendered(replace(fleet(), failures=failures))
    words = " ".join(_Outline(document).text.split())
    assert "zithara-worker failed list --topic order --reason http_422" in words and "2h00m ago" in words
    known = find("http_422")
    assert known is not None and known.remedy in words
    assert "<script" not in document and "Failed messages" not in rendered(fleet())


def test_charts_tell_the_present_value_the_highest_and_the_scale() -> None:
    minutes = (Minute(minute=NEWEST - 1, answered=70), Minute(minute=NEWEST, answered=30))
    found = fleet_status((topic_status(minutes=minutes),), (worker_status(),))
    words = " ".join(_Outline(rendered(found)).text.split())
    assert "Messages a minutedonefailednow 30, highest 70" in words and "scale to 100" in words


def test_page_shows_relays_and_what_they_wait_for() -> None:
    queue = RelayedQueue(waiting=1234, state="paused", why=EVIL)
    relay = worker_status(role=RELAY, host="mq1", rabbitmq={TOPIC: queue})
    topic = topic_status(minutes=(Minute(minute=NEWEST, relayed=500),), relays=1, rabbitmq=1234, aside=2)
    dead = worker_status(role=RELAY, alive=False, rabbitmq={TOPIC: RelayedQueue(waiting=9876, state="active")})
    document = rendered(fleet_status((topic,), (worker_status(),), (relay, dead)))
    words = " ".join(_Outline(document).text.split())
    assert "order (dead)" in words and "9876" not in words
    assert "mq1" in words and "1234125/min" in words and "from RabbitMQ kept aside: 2" in words
    assert f"relay mq1 4711 takes nothing of {TOPIC} from RabbitMQ at present: it is paused: <script>" in words
    assert "<script" not in document and "Relays" not in rendered(fleet())
    gone = rendered(fleet_status((topic_status(relay_missing=True),), (worker_status(),)))
    assert f"the relay of {TOPIC} was killed or has died, and none has taken its place: what the shop" in gone


def test_page_shows_the_last_result_of_reconcile() -> None:
    document = rendered(fleet_status((topic_status(),), (worker_status(),), reconciliations=(reconciliation(),)))
    words = " ".join(_Outline(document).text.split())
    assert "Is the CRM complete?" in words and "orders1h00m ago1000984012" in words
    assert "16 of 1000 orders are not with Zithara, as reconcile found 1h00m ago" in words
    assert "Is the CRM complete?" not in rendered(fleet())


def test_nothing_is_loaded_from_elsewhere_and_nothing_is_a_script() -> None:
    outline = _Outline(rendered(fleet()))
    assert not outline.tags & {"script", "img", "iframe", "link", "object", "form", "input"}
    assert not {name for name in outline.attributes if name == "style" or name.startswith("on")}
    assert outline.links == {"/healthz", "/metrics"}


def test_policy_allows_the_one_style_sheet_and_nothing_else() -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", rendered(fleet()), re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    directives = dict(each.strip().split(" ", 1) for each in page.POLICY.split(";"))
    assert directives["default-src"] == "'none'" and directives["style-src"] == f"'sha256-{digest}'"
    assert {directives[each] for each in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert "unsafe" not in page.POLICY and page.HEADERS["Content-Security-Policy"] == page.POLICY


def test_everything_from_outside_is_escaped() -> None:
    document = rendered(fleet(topic=EVIL, pause=EVIL, worker=EVIL), problem=EVIL, reasons=(EVIL,), notes=(EVIL,))
    outline = _Outline(document)
    assert "<script" not in document and "<img" not in document
    assert outline.text.count("<script>document.title='owned'</script>") >= 6
    assert not {name for name in outline.attributes if name.startswith("on")}


def test_trouble_is_on_top() -> None:
    words = _Outline(rendered(None, problem="gone away", reasons=("the worker is stopping",))).text
    assert "the worker is stopping" in words and "cannot be counted: gone away" in words and "ready." not in words
    assert "No worker was seen" in rendered(fleet_status())


def test_paused_topic_says_by_whom_and_why() -> None:
    assert f"topic {TOPIC} is paused (by anna 1m00s ago: anna)" in _Outline(rendered(fleet(pause="anna"))).text


def test_scales_are_round_and_hold_every_value() -> None:
    assert [page.round_top([value], least=1) for value in (0, 1, 3, 7, 12, 500, 501)] == [1, 1, 5, 10, 20, 500, 1000]
    assert page.round_top([None], least=10) == 10


def test_gap_in_a_line_stays_a_gap_and_a_lone_value_is_seen() -> None:
    drawing = page.lines([("main", [1, 2, None, 3])], top=4, label="x")
    assert re.findall(r'points="([^"]*)"', drawing) == ["75.0,89.0 225.0,60.0", "521.0,31.0 529.0,31.0"]


def test_bars_stand_upon_each_other_and_stay_within() -> None:
    drawing = page.bars([("main", [5.0, 100.0]), ("fail", [5.0, 0.0])], top=10, label="x")
    assert re.findall(r'class="(\w+)" x="\S+" y="(\S+)" width="\S+" height="(\S+)"', drawing) == [
        ("main", "60.0", "60.0"),
        ("fail", "0.0", "60.0"),
        ("main", "0.0", "120.0"),
    ]


# ---------------------------------------------------------------- the banner


def healthy() -> FleetStatus:
    seen = fleet()
    return with_topic(replace(seen, workers=(worker_status(),)), error=0)


def with_topic(seen: FleetStatus, **changes: Any) -> FleetStatus:
    return replace(seen, topics=tuple(replace(topic, **changes) for topic in seen.topics))


def test_banner_is_green_when_every_topic_is_served_and_no_queue_is_late() -> None:
    document = rendered(healthy())
    assert 'class="good">Every topic is served' in document and "needs attention" not in document


def test_a_topic_without_a_queue_is_told_and_a_worker_without_a_row_is_not_shown() -> None:
    gone = topic_status(topic="zithara.cart.events", queue=None, workers=0)
    leases_only = worker_status(host="shop2", started_utc=None, registered=False)
    seen = healthy()
    document = rendered(replace(seen, topics=(*seen.topics, gone), workers=(*seen.workers, leases_only)))
    assert "the shop has no queue for zithara.cart.events: run" in document and "shop2" not in document


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"workers": 0}, "no worker is running: start one"),
        ({"oldest_new_seconds": 1200.0}, f"{TOPIC} is late, its oldest new message has waited for 20m00s"),
        ({"pause": paused(TOPIC, "anna")}, f"topic {TOPIC} is paused"),
        ({"error": 3}, f"3 messages of {TOPIC} failed: see &#x27;zithara-worker failed summary"),
    ],
)
def test_banner_is_not_green_when_a_topic_is_not_served_is_late_or_paused(changes: dict[str, Any], told: str) -> None:
    document = rendered(with_topic(healthy(), **changes))
    assert told in document and 'class="good"' not in document


def test_banner_tells_the_breakers_of_all_living_workers() -> None:
    seen = fleet()
    (running,) = seen.workers
    targets = {"webhook": {"breaker": "half-open", "why": "http_503 <down>", "next_probe_seconds": 9.0}}
    running = replace(running, targets=targets)
    told = "webhook DOWN: http_503 &lt;down&gt;: messages wait and lose no attempt, the next probe is in 9s</p>"
    assert f'<p class="bad">{told}' in rendered(replace(seen, workers=(running,)))
    well = replace(running, id="w2", pid=4712, targets={"webhook": {"breaker": "closed"}})
    of_two = told.replace("DOWN", "DOWN, as 1 of 2 workers see it")
    assert f'<p class="warn">{of_two}' in rendered(replace(seen, workers=(running, well)))
    dead = replace(running, id="w2", pid=4712, alive=False)
    assert f'<p class="bad">{told}' in rendered(replace(seen, workers=(running, dead)))


def test_what_health_and_the_fleet_both_tell_is_told_once() -> None:
    loop = LoopStatus(turned_at=0, longest_wait_seconds=1, database_up=True, consumable=False, paused=(TOPIC,))
    health = worker_health(
        loop,
        0.0,
        down={"api": "http_503"},
        delivers_nothing=True,
        stopping=True,
        audit_problem="No space left on device",
    )
    worker = worker_status(
        targets={"api": {"breaker": "open", "why": "http_503", "next_probe_seconds": 9.0}},
        shop_disabled=True,
        audit_problem="No space left on device",
    )
    seen = with_topic(replace(healthy(), workers=(worker,)), pause=paused(TOPIC, "anna"))
    given = {"reasons": health.reasons, "notes": health.notes}
    words = _Outline(rendered(seen, **given)).text
    for said in ("is paused", "switched Zithara off", "cannot be written", "API DOWN", "the worker is stopping"):
        assert words.count(said) == 1, said
    alone = _Outline(rendered(None, **given)).text
    for said in ("is paused", "switched Zithara off", "cannot be written", "API DOWN", "the worker is stopping"):
        assert alone.count(said) == 1, said


def test_what_a_relay_and_the_fleet_both_tell_of_a_queue_is_told_once() -> None:
    loop = LoopStatus(turned_at=0, longest_wait_seconds=1, database_up=True, consumable=True, paused=())
    health = relay_health(loop, 0.0, waiting={TOPIC: "no such queue"}, stopping=False, configuration_problem=None)
    relay = worker_status(role=RELAY, rabbitmq={TOPIC: RelayedQueue(state="waiting", why="no such queue")})
    alone = _Outline(rendered(None, reasons=health.reasons)).text
    assert f"the relay takes nothing of {TOPIC} from RabbitMQ at present: it is waiting: no such queue" in alone
    seen = fleet_status((topic_status(),), (worker_status(),), (relay,))
    assert _Outline(rendered(seen, reasons=health.reasons)).text.count("no such queue") == 1


def test_a_paused_queue_is_not_called_late() -> None:
    document = rendered(with_topic(healthy(), pause=paused(TOPIC, "anna"), oldest_new_seconds=1200.0))
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


@contextmanager
def served(document: str) -> Iterator[str]:
    reply = Reply(content_type="text/html; charset=utf-8", body=document.encode(), headers=page.HEADERS)
    listener = Listener("127.0.0.1:0", {"/": lambda accept: reply})
    listener.start()
    with closing(listener):
        yield f"http://{listener.address}/"


@pytest.mark.parametrize(("name", "width", "height"), [("desk", 1280, 1100), ("phone", 390, 1700)])
def test_browser_shows_the_page_without_complaint(tmp_path: Path, name: str, width: int, height: int) -> None:
    document = rendered(fleet(), notes=("the worker is stopping",))
    with served(document) as address:
        shot = tmp_path / f"{name}.png"
        chromium(tmp_path, f"--window-size={width},{height}", f"--screenshot={shot}", address)
    assert struct.unpack(">II", shot.read_bytes()[16:24]) == (width, height)


def test_browser_runs_nothing_that_came_with_a_message(tmp_path: Path) -> None:
    document = rendered(fleet(topic=EVIL, worker=EVIL), reasons=(EVIL,))
    with served(document) as address:
        seen = chromium(tmp_path, "--dump-dom", address)
    assert "<title>zithara-worker: needs attention</title>" in seen and "<script" not in seen
