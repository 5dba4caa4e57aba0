"""Outages and messages that always fail, from outside: the installed command, a real MariaDB, a real HTTP server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import SHORT_INTERVALS, WorkerProcess
from support.waiting import eventually

from zithara_worker.sandbox.api import FakeZithara, RecordedRequest, Reply
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER, TOPIC_WEBHOOK

Config = Callable[..., Path]

HTML = {"Content-Type": "text/html"}
REDIRECT = Reply(302, b"<html>moved</html>", {"Location": "https://elsewhere.example/", **HTML})
GATEWAY = Reply(502, b"<html><h1>502 Bad Gateway</h1></html>", HTML)
ORDER, CUSTOMER, WEBHOOK = "/v1/order", "/v1/customer", "/hook"


def with_retries(worker_config: Config, limit: int) -> Path:
    """A configuration with short delays."""
    return worker_config(
        zithara={"timeout": "0.5"},
        worker={"poll_interval": "0.05"},
        retry={"limit": str(limit), "delay": "1", "factor": "1"},
    )


def is_of(request: RecordedRequest, number: str) -> bool:
    return request.path == ORDER and request.json["order"]["platform_order_id"] == number


def assert_that_nothing_was_lost(shop: Shop) -> None:
    """Every message is COMPLETE, and the outage cost none an attempt."""
    assert {(row.status, row.number_of_trials) for row in shop.rows()} == {(4, 0)}
    assert shop.query("SELECT COUNT(*) FROM zithara_delivery_failure") == [(0,)]


# --- a message that always fails


@pytest.mark.parametrize("topics", [TOPIC_ORDER, "--all"])
@pytest.mark.parametrize(
    ("limit", "at_the_end", "fault"),
    [
        (3, False, Reply.error(403)),
        (1, False, Reply.error(500)),
        (3, True, Reply.error(401)),
        (2, True, GATEWAY),
        (2, False, Reply.never()),
    ],
    ids=["403 at the head", "500 at the head, limit 1", "401 at the end", "502 at the end", "timeouts at the head"],
)
def test_an_order_that_always_fails_holds_up_nobody_and_ends_in_error_by_its_own_attempts(
    shop: Shop, api: FakeZithara, worker_config: Config, limit: int, at_the_end: bool, fault: Reply, topics: str
) -> None:
    api.responder = lambda request: fault if is_of(request, "POISON") else None
    healthy = [f"O{number}" for number in range(60)]
    for number in [*healthy, "POISON"] if at_the_end else ["POISON", *healthy]:
        shop.publish_order(number)
    with WorkerProcess(with_retries(worker_config, limit), "consume", topics) as worker:
        eventually(lambda: shop.statuses(TOPIC_ORDER).count(4) == 60, within=10)
        # At the end of the line only what comes later shows that others are served.
        eventually(lambda: any(row.number_of_trials for row in shop.rows()) or 6 in shop.statuses())
        shop.publish_order("LATER")
        eventually(lambda: shop.statuses(TOPIC_ORDER).count(6) == 1, within=20)
        worker.terminate()
        assert worker.wait() == 0
    assert shop.query("SELECT attempts FROM zithara_delivery_failure") == [(max(limit, 2),)]


def test_an_order_that_always_gets_429_holds_up_nobody_and_pays_for_every_third(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    def refused() -> int:
        return sum(is_of(request, "POISON") for request in api.requests(ORDER))

    api.responder = lambda request: Reply.too_many_requests(1) if is_of(request, "POISON") else None
    shop.publish_order("POISON")
    healthy = 0
    with WorkerProcess(with_retries(worker_config, 2), "consume", "--all", environment=SHORT_INTERVALS) as worker:
        while 6 not in shop.statuses():
            known = refused()
            # Only an order that is served between two refusals shows that it is not the path.
            healthy += 1
            assert healthy < 20
            shop.publish_order(f"O{healthy}")
            eventually(lambda count=healthy: shop.statuses().count(4) == count, within=10)
            eventually(lambda known=known: refused() > known or 6 in shop.statuses(), within=10)
        worker.terminate()
        assert worker.wait() == 0
    assert refused() >= 6
    assert shop.query("SELECT attempts FROM zithara_delivery_failure") == [(2,)]


# --- outages


def test_an_outage_of_one_path_that_redirects_costs_no_message_and_stops_no_other_path(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    api.responder = lambda request: REDIRECT if request.path == ORDER else None
    for number in range(6):
        shop.publish_order(f"O{number}")
    with WorkerProcess(with_retries(worker_config, 1), "consume", "--all", environment=SHORT_INTERVALS) as worker:
        worker.wait_for_log(event="breaker_opened", target="/order")
        shop.publish_cart("C1")
        eventually(lambda: shop.statuses(TOPIC_CART) == [4])
        assert set(shop.statuses(TOPIC_ORDER)) <= {2, 3, 5}
        shop.publish_order("LATE")
        api.responder = None
        eventually(lambda: set(shop.statuses(TOPIC_ORDER)) == {4}, within=30)
        worker.terminate()
        assert worker.wait() == 0
    assert_that_nothing_was_lost(shop)


def test_three_paths_that_are_down_in_their_own_ways_cost_no_message_and_leave_the_fourth_alone(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    down = {ORDER: GATEWAY, CUSTOMER: Reply.never(), WEBHOOK: Reply.too_many_requests(2)}
    api.responder = lambda request: down.get(request.path)
    for number in range(6):
        shop.publish_order(f"O{number}")
        shop.publish_customer(f"4{number}")
        shop.publish_webhook(payload={"order_id": f"W{number}"})
    with WorkerProcess(with_retries(worker_config, 1), "consume", "--all", environment=SHORT_INTERVALS) as worker:
        worker.wait_for_log(event="breaker_opened", target="/order")
        worker.wait_for_log(event="breaker_opened", target="/customer")
        worker.wait_for_log(event="throttled", target="webhook")
        for number in range(20):
            shop.publish_cart(f"C{number}")
        eventually(lambda: shop.statuses(TOPIC_CART) == [4] * 20)
        assert {row.status for row in shop.rows() if row.topic != TOPIC_CART} <= {2, 3, 5}
        down.clear()
        eventually(lambda: set(shop.statuses(TOPIC_WEBHOOK)) == {4}, within=10)
        eventually(lambda: set(shop.statuses()) == {4}, within=30)
        worker.terminate()
        assert worker.wait() == 0
    assert_that_nothing_was_lost(shop)


@pytest.mark.parametrize("outage", ["refuses connections", "says 502 to everything", "refuses the credentials"])
def test_an_outage_of_the_whole_host_costs_no_message_of_any_topic(
    shop: Shop, api: FakeZithara, worker_config: Config, outage: str
) -> None:
    def publish(label: str) -> None:
        for number in range(4):
            shop.publish_order(f"{label}O{number}")
            shop.publish_customer(f"{label}{number}")
            shop.publish_cart(f"{label}C{number}")

    with WorkerProcess(with_retries(worker_config, 1), "consume", "--all", environment=SHORT_INTERVALS) as worker:
        publish("before")
        eventually(lambda: shop.statuses() == [4] * 12)
        if outage == "refuses connections":
            api.stop()
        elif outage == "says 502 to everything":
            api.responder = lambda request: GATEWAY
        else:
            api.responder = lambda request: Reply.error(401)
        publish("during")
        targets = ["/order", "/customer", "/cart"] if outage == "says 502 to everything" else ["api"]
        for target in targets:
            worker.wait_for_log(event="breaker_opened", target=target)
        publish("later")
        assert set(shop.statuses()) <= {2, 3, 4, 5}
        assert shop.statuses().count(4) == 12
        api.responder = None
        api.start()
        eventually(lambda: shop.statuses() == [4] * 36, within=30)
        worker.terminate()
        assert worker.wait() == 0
    assert_that_nothing_was_lost(shop)
