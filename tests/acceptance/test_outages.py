"""Outages and messages that always fail, from outside: the installed command, a real MariaDB, a real HTTP server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import WorkerProcess
from support.waiting import eventually

from zithara_worker.messages import TOPIC_CART, TOPIC_ORDER
from zithara_worker.sandbox.api import FakeZithara, RecordedRequest, Reply
from zithara_worker.sandbox.shop import Shop

Config = Callable[..., Path]
REDIRECT = Reply(302, b"<html>moved</html>", {"Location": "https://elsewhere.example/", "Content-Type": "text/html"})


def statuses(shop: Shop, topic: str) -> list[int]:
    return [row.status for row in shop.rows() if row.topic == topic]


def is_of(request: RecordedRequest, number: str) -> bool:
    return request.path == "/v1/order" and request.json["order"]["platform_order_id"] == number


@pytest.mark.parametrize(
    ("limit", "at_the_end", "fault"),
    [(3, False, Reply.error(403)), (1, False, Reply.error(500)), (3, True, Reply.error(401))],
    ids=["403 at the head", "500 at the head, limit 1", "401 at the end"],
)
def test_an_order_that_always_fails_holds_up_nobody_and_ends_in_error_by_its_own_attempts(
    shop: Shop, api: FakeZithara, worker_config: Config, limit: int, at_the_end: bool, fault: Reply
) -> None:
    api.responder = lambda request: fault if is_of(request, "POISON") else None
    healthy = [f"O{number}" for number in range(60)]
    for number in [*healthy, "POISON"] if at_the_end else ["POISON", *healthy]:
        shop.publish_order(number)
    config = worker_config(worker={"poll_interval": "0.05"}, retry={"limit": str(limit), "delay": "1", "factor": "1"})
    with WorkerProcess(config, "consume", TOPIC_ORDER) as worker:
        eventually(lambda: statuses(shop, TOPIC_ORDER).count(4) == 60, within=10)
        # At the end of the line only what comes later shows that others are served.
        eventually(lambda: any(row.number_of_trials for row in shop.rows()) or 6 in shop.statuses())
        shop.publish_order("LATER")
        eventually(lambda: statuses(shop, TOPIC_ORDER).count(6) == 1, within=20)
        worker.terminate()
        assert worker.wait() == 0
    assert shop.query("SELECT attempts FROM zithara_delivery_failure") == [(max(limit, 2),)]


def test_an_outage_of_one_path_that_redirects_costs_no_message_and_stops_no_other_path(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    api.responder = lambda request: REDIRECT if request.path == "/v1/order" else None
    for number in range(6):
        shop.publish_order(f"O{number}")
    config = worker_config(worker={"poll_interval": "0.05"}, retry={"limit": "1", "delay": "1", "factor": "1"})
    with WorkerProcess(config, "consume", "--all") as worker:
        api.wait_for(4, path="/v1/order", within=15)
        shop.publish_cart("C1")
        eventually(lambda: statuses(shop, TOPIC_CART) == [4])
        assert set(statuses(shop, TOPIC_ORDER)) <= {2, 3, 5}
        shop.publish_order("LATE")
        api.responder = None
        eventually(lambda: set(statuses(shop, TOPIC_ORDER)) == {4}, within=30)
        worker.terminate()
        assert worker.wait() == 0
    assert {row.number_of_trials for row in shop.rows()} == {0}
    assert shop.query("SELECT COUNT(*) FROM zithara_delivery_failure") == [(0,)]
