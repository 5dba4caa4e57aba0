"""An update of an order that the API does not know: it waits for an older message, or becomes its create."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from support.processes import WorkerProcess

from zithara_worker.sandbox.api import FakeZithara, RecordedRequest, Reply
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_ORDER

Config = Callable[..., Path]


def unknown_until_created(gate: threading.Event | None = None) -> Callable[[RecordedRequest], Reply | None]:
    """404 for a PATCH of an order that no POST has brought; `gate`: holds that answer."""
    known: set[str] = set()

    def respond(request: RecordedRequest) -> Reply | None:
        if request.path != "/v1/order":
            return None
        order = request.json if request.method == "PATCH" else request.json["order"]
        if request.method == "POST":
            known.add(order["platform_order_id"])
        elif order["platform_order_id"] not in known:
            return Reply.error(404, "no such order").held(gate) if gate else Reply.error(404, "no such order")
        return None

    return respond


def methods(api: FakeZithara) -> list[str]:
    return [request.method for request in api.requests("/v1/order")]


def test_an_update_of_an_unknown_order_is_sent_as_its_create(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    api.responder = unknown_until_created()
    shop.publish_order("1", is_update=True)
    with WorkerProcess(worker_config(), "consume", TOPIC_ORDER, "--stop-when-empty") as worker:
        assert worker.wait() == 0

    update, create = api.requests("/v1/order")
    assert (update.method, create.method) == ("PATCH", "POST")
    assert create.json["order"] == update.json and create.json["order_line_item"]
    assert update.message == create.message
    assert update.headers["idempotency-key"] != create.headers["idempotency-key"]
    assert [(row.status, row.number_of_trials) for row in shop.rows()] == [(4, 0)]


def test_an_update_of_an_unknown_order_waits_for_an_older_message_that_came_late(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    gate = threading.Event()
    api.responder = unknown_until_created(gate)
    shop.publish_order("1")
    shop.query("UPDATE {prefix}queue_message_status SET status = 6")
    shop.publish_order("1", is_update=True)
    with WorkerProcess(worker_config(retry={"delay": "1"}), "consume", TOPIC_ORDER) as worker:
        api.wait_for(1, path="/v1/order")
        shop.query("UPDATE {prefix}queue_message_status SET status = 2 WHERE status = 6")
        gate.set()
        assert worker.wait_for_log(event="retry")["reason"] == "order_not_found_yet"
    assert methods(api)[0] == "PATCH"


def test_an_update_of_an_unknown_order_without_items_has_failed(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    api.responder = unknown_until_created()
    shop.publish_order("1", is_update=True, items=[])
    with WorkerProcess(worker_config(), "consume", TOPIC_ORDER, "--stop-when-empty") as worker:
        assert worker.wait() == 0
        assert worker.wait_for_log(event="failed")["reason"] == "order_not_found"

    assert (methods(api), shop.statuses()) == (["PATCH"], [6])
