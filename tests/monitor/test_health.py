"""What /healthz/live says of a delivery that hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from support.waiting import eventually

from zithara_worker import Settings
from zithara_worker.delivery.threads import DeliveryPool
from zithara_worker.messages import Lease, Message, Outcome, OutcomeKind, Request, Target
from zithara_worker.monitor.health import Health, LoopStatus, longest_delivery_seconds, worker_health
from zithara_worker.settings.sections import WorkerSettings, ZitharaSettings


def health(oldest: float, allowed: float) -> Health:
    loop = LoopStatus(
        turned_at=0.0,
        longest_wait_seconds=1.0,
        database_up=True,
        consumable=True,
        paused=(),
        oldest_request_seconds=oldest,
    )
    return worker_health(loop, 0.0, down={}, stopping=False, audit_problem=None, longest_delivery_seconds=allowed)


def test_a_delivery_that_no_timeout_explains_is_no_sign_of_life() -> None:
    assert health(240.0, 240.0).live and health(240.0, 240.0).ready
    hanging = health(240.5, 240.0)
    assert not hanging.live and not hanging.ready
    assert "under way for 4m00s, longer than all timeouts allow" in hanging.reasons[0]


def test_what_is_allowed_goes_by_the_timeout_and_the_rate_limit() -> None:
    zithara = ZitharaSettings(timeout=30)
    slow = WorkerSettings(concurrency=16, rate_limit=2)
    assert longest_delivery_seconds(Settings(zithara=zithara)) == 240.0
    assert longest_delivery_seconds(Settings(zithara=zithara, worker=slow)) == 248.0


def test_the_pool_tells_the_age_of_its_oldest_delivery(make_message: Callable[[int], Message]) -> None:
    now = [100.0]
    gates = {number: threading.Event() for number in (1, 2, 3)}
    done: list[int] = []

    def deliver(message: Message, request: Request) -> Outcome:
        assert gates[message.id].wait(10)
        return Outcome(kind=OutcomeKind.DELIVERED)

    pool = DeliveryPool(2, deliver, lambda message, _: done.append(message.id), monotonic=lambda: now[0])
    request = Request(target=Target.API, method="POST", path="/cart", json={})
    assert pool.oldest_seconds == 0.0
    pool.submit(make_message(1), request)
    assert eventually(lambda: pool._begun_at.count(None) == 1)
    now[0] += 7.0
    pool.submit(make_message(2), request)
    pool.submit(make_message(3), request)
    assert eventually(lambda: pool._begun_at.count(None) == 0)
    assert pool.oldest_seconds == 7.0
    gates[1].set()
    assert eventually(lambda: pool.oldest_seconds == 0.0), "the second began only now, the third after the first"
    for gate in gates.values():
        gate.set()
    assert eventually(lambda: sorted(done) == [1, 2, 3])
    now[0] += 7.0
    assert eventually(lambda: pool.oldest_seconds == 0.0), "an idle thread has nothing that grows old"
    pool.stop(5)


@pytest.fixture
def make_message() -> Callable[[int], Message]:
    def make(number: int) -> Message:
        return Message(
            id=number,
            message_id=number,
            queue_id=1,
            queue_name="q",
            topic="zithara.cart.events",
            group_key=f"cart:{number}",
            number_of_trials=0,
            claim=1,
            status_before=2,
            updated_at_before="2026-01-01 00:00:00",
            lease=Lease(60.0),
        )

    return make
