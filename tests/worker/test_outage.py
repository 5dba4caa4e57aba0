"""Six hours without Zithara, in fast-forward: an injected clock drives leases, pauses and the database's NOW()."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from support.waiting import eventually
from support.workers import settings_of

from zithara_worker import Settings, Worker
from zithara_worker.sandbox.api import FakeZithara, RecordedRequest, Reply
from zithara_worker.sandbox.shop import Shop
from zithara_worker.settings.sections import MetricsSettings, WorkerSettings, ZitharaSettings

HOUR = 3600.0


class FastClock:
    """Real time plus what a test adds."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def utc(self) -> float:
        return time.time() + self.ahead


def settings_for(shop: Shop, api: FakeZithara, **worker: object) -> Settings:
    return Settings(
        database=settings_of(shop),
        zithara=ZitharaSettings(base_url=api.base_url),
        worker=WorkerSettings(poll_interval=0.01, lease=86_400, concurrency=8, **worker),  # type: ignore[arg-type]
        metrics=MetricsSettings(listen=""),
    )


@contextmanager
def running(worker: Worker, topic: str = "order") -> Iterator[threading.Thread]:
    """The worker as an embedding program would run it: in a thread, with an event that stops it, and a topic's short
    name."""
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=([topic],), kwargs={"stop": stop})
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def has_trials(shop: Shop, number: int) -> bool:
    return shop.rows()[0].number_of_trials == number


def totals_by_order(api: FakeZithara) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for request in api.requests("/v1/order"):
        order = request.json["order"]
        found.setdefault(order["platform_order_id"], []).append(order["current_total_price"])
    return found


def test_a_six_hour_outage_burns_no_attempt_and_everything_arrives_in_order_afterwards(
    shop: Shop, api: FakeZithara
) -> None:
    clock = FastClock()
    down = threading.Event()
    refused: list[str] = []

    def respond(request: RecordedRequest) -> Reply | None:
        if down.is_set() and request.path == "/v1/order":
            refused.append(request.message)
            return Reply.error(503)
        return None

    api.responder = respond
    down.set()
    for total in range(3):
        for order in range(40):
            shop.publish_order(f"O{order}", grand_total=str(total))
    worker = Worker(settings_for(shop, api), monotonic=clock.monotonic, utc=clock.utc, clock=clock.utc)
    with running(worker):
        eventually(lambda: len(refused) >= 5)
        while clock.ahead < 6 * HOUR:
            before = len(refused)
            clock.ahead += 120
            if clock.ahead % HOUR == 0:  # the shop goes on selling
                shop.publish_order(f"LATE{int(clock.ahead // HOUR)}", grand_total="9")
            deadline = time.monotonic() + 0.02
            while len(refused) == before and time.monotonic() < deadline:
                time.sleep(0.001)
        assert {row.number_of_trials for row in shop.rows()} == {0}
        assert set(shop.statuses()) <= {2, 3, 5}
        during = len(refused)
        assert 20 <= during <= 200, "probes go on, and stay few: one in five minutes at last"
        down.clear()
        clock.ahead += 301
        eventually(lambda: set(shop.statuses()) == {4}, within=20)
    assert {row.number_of_trials for row in shop.rows()} == {0}
    assert shop.query("SELECT COUNT(*) FROM zithara_delivery_failure") == [(0,)]
    delivered = [request for request in api.requests("/v1/order") if request.message]
    assert len(delivered) - during == 126
    for order, totals in totals_by_order(api).items():
        assert totals == sorted(totals), order


def test_an_outage_that_one_message_meets_alone_never_ends_it_however_often_it_is_tried(
    shop: Shop, api: FakeZithara
) -> None:
    clock = FastClock()
    api.responder = lambda request: Reply.error(500) if request.path == "/v1/order" else None
    shop.publish_order("ALONE")
    worker = Worker(settings_for(shop, api), monotonic=clock.monotonic, utc=clock.utc, clock=clock.utc)
    with running(worker):
        for attempt in range(1, 12):
            eventually(partial(has_trials, shop, attempt))
            clock.ahead += 301
        assert shop.query("SELECT attempts - unwitnessed FROM zithara_delivery_failure") == [(1,)]
        api.responder = None
        clock.ahead += 301
        eventually(lambda: shop.statuses() == [4])
