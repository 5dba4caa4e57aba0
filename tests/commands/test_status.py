"""What `status` prints: its report, its live screen and its JSON."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from support.fleet import NOW, counted, fleet_status, reconciliation, register, topic_status, worker_status

from zithara_worker.commands.status import as_json, picture, report
from zithara_worker.commands.terminal import fit, plain_length, printable, sparkline, table
from zithara_worker.database.session import Database
from zithara_worker.messages import OutcomeKind
from zithara_worker.monitor.conditions import Condition, Level, conditions
from zithara_worker.monitor.fleet import RELAY, RelayedQueue, WorkerStatus, read_fleet
from zithara_worker.monitor.rates import Minute
from zithara_worker.queue.operator import pause
from zithara_worker.sandbox.publisher import stored_body
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER
from zithara_worker.units import iso


def plain(lines: list[str]) -> list[str]:
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]


def test_messages_in_progress_without_a_lease_are_told_after_a_while(shop: Shop, database: Database) -> None:
    shop.publish_order()
    shop.query("UPDATE {prefix}queue_message_status SET status = 3")
    assert not any("doctor" in line for line in report(read_fleet(database, {}), width=80))
    shop.make_older(minutes=16)
    (line,) = (line for line in plain(report(read_fleet(database, {}), width=200)) if "in progress that" in line)
    assert line.startswith(f"messages of {TOPIC_ORDER} are in progress that no worker holds, the oldest for 16m")
    assert line.endswith("see 'zithara-worker doctor'")


def test_a_breaker_that_is_not_closed_is_told_with_its_reason() -> None:
    api = {"breaker": "open", "why": "http_503", "next_probe_seconds": 12.0, "throttled_seconds": 0}
    hook = {"breaker": "closed", "throttled_seconds": 61}
    lines = report(fleet_status(workers=(worker_status(targets={"api": api, "webhook": hook, "x": 1}),)), width=80)
    assert any("api open (http_503), probe in 12s webhook throttled 1m01s" in line for line in plain(lines))


@pytest.mark.parametrize(
    ("ill", "why", "remedy"),
    [
        (worker_status(pid=4712, audit_problem="No space left on device"), "the audit file", "free space"),
        (
            worker_status(pid=4712, turn_problem="INSERT denied"),
            "its turns fail: INSERT denied",
            "zithara-worker doctor",
        ),
    ],
)
def test_what_keeps_one_worker_from_delivering_is_critical_only_if_no_other_takes_messages(
    ill: WorkerStatus, why: str, remedy: str
) -> None:
    well = worker_status()

    def told(*workers: WorkerStatus) -> list[Condition]:
        return [each for each in conditions(fleet_status((topic_status(),), workers)) if why in each.text]

    assert told(well) == []
    (one,) = told(well, ill)
    assert one.level is Level.WARNING and "by worker shop1 4712, because" in one.text and remedy in one.remedy
    assert [each.level for each in told(ill)] == [Level.CRITICAL]
    assert told(well, replace(ill, alive=False)) == [], "what a dead one wrote last is not so any more"


def test_a_topic_without_a_queue_is_told() -> None:
    lines = report(fleet_status((topic_status(topic=TOPIC_CART, queue=None),)), width=80)
    assert f"the shop has no queue for {TOPIC_CART}: run 'zithara-worker install'" in plain(lines)


def test_what_was_not_sent_and_what_is_not_compared_is_told_in_80_columns() -> None:
    skipped = {"unchanged": 84_600, "cart_inactive": 120, "cart_not_found": 14}
    minutes = (Minute(minute=int(NOW // 60), answered=950, skipped=skipped),)
    found = fleet_status((topic_status(topic=TOPIC_CART, minutes=minutes, uncompared=True),), (worker_status(),))
    lines = plain(report(found, width=80))
    assert "cart: not sent in 60 min: 84.6k unchanged, 120 cart_inactive, 14 cart_not_found" in lines
    assert f"every message of {TOPIC_CART} is sent, because others deliver too and do" in lines
    assert max(map(len, lines)) <= 80
    assert as_json(found)["topics"][0]["skipped"] == skipped


def test_relays_are_shown_with_what_waits_and_why_in_80_columns() -> None:
    waits = RelayedQueue(waiting=1234, state="paused", why="10000 messages are pending, [relay] max_pending")
    alive = worker_status(role=RELAY, pid=12, topics=(TOPIC_ORDER, TOPIC_CART), rabbitmq={TOPIC_ORDER: waits})
    dead = worker_status(
        role=RELAY,
        pid=13,
        topics=(TOPIC_CART,),
        alive=False,
        last_seen_seconds=600.0,
        rabbitmq={TOPIC_CART: RelayedQueue(waiting=9, state="active")},
    )
    order = topic_status(minutes=(Minute(minute=int(NOW // 60), relayed=500),), relays=1, rabbitmq=1234, aside=2)
    cart = topic_status(topic=TOPIC_CART, relay_missing=True)
    lines = plain(report(fleet_status((order, cart), (worker_status(),), (alive, dead)), width=80))
    told = " ".join(line.strip() for line in lines)
    assert "it is paused: 10000 messages are pending, [relay] max_pending" in told
    assert f"2 messages of {TOPIC_ORDER} from RabbitMQ kept aside" in told
    assert (
        f"the relay of {TOPIC_CART} was killed or" in told and f"start it ('zithara-worker relay {TOPIC_CART}')" in told
    )
    at = next(number for number, line in enumerate(lines) if line.startswith("RELAY"))
    rows = [line.split() for line in lines[at + 1 :]]
    assert rows[0] == ["shop1", "12", "2h00m", "2s", "order", "1234", "125", "paused"]
    assert rows[1] == ["shop1", "12", "2h00m", "2s", "cart", "-", "-", "standby"]
    assert rows[2] == ["shop1", "13", "2h00m", "10m00s", "dead", "cart", "-", "-", "-"]
    assert max(map(len, lines)) <= 100
    assert not any(line.startswith("RELAY") for line in report(fleet_status((order,)), width=80))


def test_the_fields_of_the_json_are_these() -> None:
    """Programs read them: a field may be added, none goes away or changes its meaning."""
    value = as_json(fleet_status((topic_status(minutes=()),), (worker_status(),)))
    rates = {"done_per_minute", "relayed_per_minute", "failure_rate", "p50_ms", "p95_ms", "p99_ms"}
    assert value.keys() == {"at", "conditions", "topics", "workers", "relays", "reconcile", "total"}
    assert value["topics"][0].keys() == rates | {
        *("topic", "queue", "new", "in_progress", "retry", "error", "complete", "oldest_new_seconds"),
        *("oldest_in_progress_seconds", "oldest_retry_seconds", "oldest_error_seconds", "retry_due_seconds", "workers"),
        *("groups_in_flight", "groups_waiting", "leases_expired", "drain_seconds", "pause", "paused", "history"),
        *("skipped", "uncompared", "relays", "relay_missing", "rabbitmq", "aside"),
    }
    assert value["workers"][0].keys() == {
        *("id", "host", "pid", "version", "topics", "started_at", "last_seen_seconds", "alive", "registered"),
        *(
            "in_flight",
            "held",
            "metrics_address",
            "targets",
            "uncompared",
            "role",
            "rabbitmq",
            "is_rate_limited",
            "audit_problem",
            "shop_disabled",
            "turn_problem",
        ),
    }
    assert value["total"].keys() == rates | {"new", "in_progress", "retry", "error", "workers_alive", "history"}


def test_the_last_result_of_reconcile_is_told() -> None:
    clean = reconciliation("carts", result={"finished_utc": NOW, "counts": {"complete": 7}})
    at_work = reconciliation("customers", finished_utc=None, result={})
    found = fleet_status(reconciliations=(at_work, reconciliation(), clean))
    lines = plain(report(found, width=80))
    at = next(number for number, line in enumerate(lines) if line.startswith("RECONCILE"))
    assert lines[at + 1].split() == [
        *("orders", "1h00m", "ago", "1000", "984", "0", "12", "missing,", "3", "stale,", "1", "failed")
    ]
    assert lines[at + 2].split() == ["carts", "0s", "ago", "7", "7", "-", "nothing"]
    assert len(lines) == at + 3
    _, orders, _ = as_json(found)["reconcile"]
    assert (orders["kind"], orders["total"], orders["wrong"], orders["missing"]) == ("orders", 1000, 16, 12)
    assert orders["at"] == iso(NOW - 3600)


def test_minutes_without_any_outcome_are_left_out_of_the_json() -> None:
    newest = int(NOW // 60)
    minutes = (Minute(minute=newest, answered=3, superseded=2), Minute(minute=newest - 2, retried=1, failed=4))
    (topic,) = as_json(fleet_status((topic_status(minutes=minutes),)))["topics"]
    assert topic["history"] == [
        {"minute": newest - 2, "done": 0, "retried": 1, "failed": 4, "p95_ms": None},
        {"minute": newest, "done": 5, "retried": 0, "failed": 0, "p95_ms": None},
    ]


def test_json_says_what_the_table_says(shop: Shop, database: Database) -> None:
    shop.publish_samples()
    register(database, minutes=counted({OutcomeKind.DELIVERED: 5}))
    pause(database, [TOPIC_ORDER], by="anna@shop1", reason="import", audit=lambda lines: None)
    value = json.loads(json.dumps(as_json(read_fleet(database, {}))))
    orders = next(each for each in value["topics"] if each["topic"] == TOPIC_ORDER)
    assert (orders["new"], orders["paused"], orders["pause"]["reason"]) == (2, True, "import")
    assert value["total"]["new"] == len(shop.rows()) and value["total"]["workers_alive"] == 1
    assert [minute["done"] for minute in value["total"]["history"]] == [5]
    assert value["workers"][0]["started_at"].endswith("Z")


def test_a_report_fits_80_columns_and_a_wide_one_shows_more(shop: Shop, database: Database) -> None:
    shop.publish_bodies(TOPIC_ORDER, [stored_body({"order_id": str(n)}) for n in range(3)])
    shop.make_older(minutes=3000)
    trouble = {OutcomeKind.DELIVERED: 500, OutcomeKind.FAILED: 77}
    register(database, "shop1-7-abcd", minutes=counted(trouble, ms=1234.5), in_flight=123)
    found = read_fleet(database, {})
    narrow, wide = report(found, width=80), report(found, width=120)
    assert max(plain_length(line) for line in narrow) <= 80
    assert "P99" not in "".join(narrow) and "P99" in "".join(wide)


def test_a_picture_fits_its_window_whatever_its_size(shop: Shop, database: Database) -> None:
    for number in range(9):
        register(database, f"shop1-{number}-abcd")
    found = read_fleet(database, {})
    for rows in (5, 10, 24, 60):
        lines = picture(found, "", columns=80, rows=rows, plain=False)
        assert len(lines) == rows and "q quit" in lines[-1]
    assert "enlarge" in "".join(picture(found, "", columns=80, rows=12, plain=False))
    assert "gone away" in picture(found, "server has gone away", columns=80, rows=24, plain=False)[0]
    assert len(picture(None, "server has gone away", columns=80, rows=24, plain=False)) == 24


def test_colours_can_be_refused(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_fleet(database, {})
    assert "\x1b[" in "".join(report(found, width=80))
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in "".join(report(found, width=80))


def test_sparklines_show_nothing_little_and_most() -> None:
    assert sparkline([0, 1, 50, 100]) == " ▁▄█"
    assert sparkline([0, 1, 50, 100], plain=True) == " _=#"
    assert sparkline([0, 0]) == "  "


def test_what_a_server_wrote_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in printable("red \x1b[31m\x9b31m\r\n")
    assert printable("abcdef", width=4) == "abc…"


def test_a_styled_line_is_cut_by_its_columns() -> None:
    assert plain_length(fit("\x1b[31mabcdef\x1b[0mgh", 3)) == 3
    assert fit("\x1b[31mabc\x1b[0m", 3) == "\x1b[31mabc\x1b[0m"


def test_columns_are_aligned_under_their_heads() -> None:
    assert table(("A", "NUMBER"), [("long name", "1"), ("b", "\x1b[31m12\x1b[0m")]) == [
        "A          NUMBER",
        "long name       1",
        "b              \x1b[31m12\x1b[0m",
    ]
