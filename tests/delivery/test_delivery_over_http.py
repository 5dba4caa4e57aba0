"""Pool, courier, API client and transport together, against a real server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from queue import SimpleQueue

import pytest
from courier_doubles import CART, FleetTurns, message, unlimited

from zithara_worker.delivery.courier import Courier
from zithara_worker.delivery.threads import DeliveryPool
from zithara_worker.messages import Outcome, OutcomeKind
from zithara_worker.sandbox.api import FakeZithara, Reply
from zithara_worker.settings.values import Secret
from zithara_worker.zithara.api import ZitharaApi
from zithara_worker.zithara.http import Transport, tls_context
from zithara_worker.zithara.tokens import TokenSource

THREADS = 8


class Store:
    """The shop's token row."""

    token: tuple[Secret, float] | None = None

    def load(self) -> tuple[Secret, float] | None:
        return self.token

    def save(self, token: Secret, expires_at_utc: float) -> None:
        self.token = (token, expires_at_utc)

    def lock(self) -> bool:
        return True


class Delivery:
    def __init__(self, api: FakeZithara, *, rate: float = 0) -> None:
        self.stopping = threading.Event()
        self.transport = Transport(tls=tls_context(verify=False), timeout_seconds=5)
        store = Store()
        tokens = TokenSource(
            base_url=api.base_url,
            client_id=api.client_id,
            client_secret=Secret(api.client_secret),
            shared_token=lambda: nullcontext(store),
            clock=time.time,
            transport=self.transport,
        )
        self.courier = Courier(
            api=ZitharaApi(base_url=api.base_url, tokens=tokens, transport=self.transport, pause=self.stopping.wait),
            rate_limit=FleetTurns(time.monotonic, rate=rate, burst=1).limit(self.stopping.wait)
            if rate
            else unlimited(time.monotonic, self.stopping.wait),
            stopping=self.stopping,
            clock=time.monotonic,
            targets=("api", "/cart", "webhook"),
        )
        self.results: SimpleQueue[Outcome] = SimpleQueue()
        self.pool = DeliveryPool(THREADS, self.courier.deliver, lambda message, outcome: self.results.put(outcome))

    def send(self, count: int) -> None:
        for number in range(count):
            self.pool.submit(message(number), CART)

    def take(self, count: int) -> list[Outcome]:
        return [self.results.get(timeout=10) for _ in range(count)]

    def close(self) -> None:
        self.courier.shutdown()
        self.pool.stop(5)
        self.transport.close()


@pytest.fixture
def delivery(api: FakeZithara) -> Iterator[Delivery]:
    made = Delivery(api)
    yield made
    made.close()


def test_many_messages_share_as_many_connections_as_there_are_threads(api: FakeZithara, delivery: Delivery) -> None:
    delivery.send(300)

    assert {outcome.kind for outcome in delivery.take(300)} == {OutcomeKind.DELIVERED}
    assert len({request.headers["idempotency-key"] for request in api.requests()}) == 300
    assert len(api.requests()) == 300
    assert api.connection_count <= THREADS
    assert api.tokens_issued == 1


def test_tokens_revoked_under_load_lose_nothing(api: FakeZithara, delivery: Delivery) -> None:
    delivery.send(100)
    api.wait_for(30)
    api.revoke_tokens()

    assert {outcome.kind for outcome in delivery.take(100)} == {OutcomeKind.DELIVERED}
    assert api.tokens_issued == 2


def test_an_outage_under_load_stops_the_flood_and_costs_at_most_an_attempt_a_thread(
    api: FakeZithara, delivery: Delivery
) -> None:
    api.responder = lambda request: Reply.error(503) if request.path == "/v1/cart" else None

    delivery.send(100)

    kinds = [outcome.kind for outcome in delivery.take(100)]
    assert kinds.count(OutcomeKind.RETRY) <= THREADS
    assert kinds.count(OutcomeKind.RELEASED) >= 100 - THREADS
    assert len(api.requests()) <= 2 * THREADS
    assert delivery.courier.is_open("/cart")


def test_a_throttled_host_sees_no_flood_either(api: FakeZithara, delivery: Delivery) -> None:
    api.responder = lambda request: Reply.too_many_requests(60) if request.path == "/v1/cart" else None

    delivery.send(100)

    assert {(outcome.kind, outcome.reason) for outcome in delivery.take(100)} == {(OutcomeKind.RELEASED, "throttled")}
    assert len(api.requests()) <= THREADS
    assert 55 < delivery.courier.next_opening_seconds("/cart") <= 60


def test_the_rate_limit_holds_for_all_threads_together(api: FakeZithara, request: pytest.FixtureRequest) -> None:
    limited = Delivery(api, rate=50)
    request.addfinalizer(limited.close)
    started = time.monotonic()

    limited.send(16)
    limited.take(16)

    assert time.monotonic() - started >= 15 / 50 - 0.02


def test_shutdown_lets_requests_under_way_finish(api: FakeZithara, delivery: Delivery) -> None:
    gate = threading.Event()
    api.responder = lambda request: Reply().held(gate) if request.path == "/v1/cart" else None
    delivery.send(20)
    api.wait_for(THREADS)

    delivery.courier.shutdown()
    gate.set()
    ended = delivery.take(20)

    kinds = [outcome.kind for outcome in ended]
    assert kinds.count(OutcomeKind.DELIVERED) == THREADS and len(api.requests("/v1/cart")) == THREADS
    assert {outcome.reason for outcome in ended if outcome.kind is OutcomeKind.RELEASED} == {"shutdown"}
    assert kinds.count(OutcomeKind.RELEASED) == 20 - THREADS
