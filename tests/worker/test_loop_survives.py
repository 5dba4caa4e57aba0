"""Whatever is raised in a turn, the worker goes on with what it holds; leases are renewed beside the loop."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.waiting import eventually
from support.workers import settings_of
from worker.test_outage import FastClock, running, settings_for

from zithara_worker import Settings, Worker
from zithara_worker.database.session import Database
from zithara_worker.limits import End, Limits
from zithara_worker.messages import Request, Target
from zithara_worker.processors.decoding import MAX_DEPTH
from zithara_worker.queue.held import ABANDONED_SECONDS, Held
from zithara_worker.queue.message_queue import MessageQueue
from zithara_worker.queue.renewal import Renewal
from zithara_worker.queue.settle import Settled, Settlement
from zithara_worker.sandbox.api import FakeZithara, Reply
from zithara_worker.sandbox.shop import Shop
from zithara_worker.settings.sections import DatabaseSettings, MetricsSettings
from zithara_worker.topics import TOPIC_ORDER
from zithara_worker.worker.worker import lease_clock
from zithara_worker.zithara.answers import BODY_LIMIT


def test_a_claim_that_meets_a_defect_ends_nothing(
    shop: Shop, api: FakeZithara, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, raised = MessageQueue.claim, threading.Event()

    def fails_once(self: MessageQueue, limit: int, **options: Any) -> Any:
        claimed = claim(self, limit, **options)
        if claimed and not raised.is_set():
            raised.set()
            raise LookupError("a defect")
        return claimed

    monkeypatch.setattr(MessageQueue, "claim", fails_once)
    for number in range(5):
        shop.publish_order(f"N{number}")
    with running(Worker(settings_for(shop, api))):
        eventually(lambda: shop.statuses() == [4] * 5)
    assert raised.is_set()
    assert {row.number_of_trials for row in shop.rows()} == {0}


def test_an_outcome_that_cannot_be_written_holds_up_no_other(
    shop: Shop, api: FakeZithara, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = MessageQueue.settle
    [bad, *_] = [shop.publish_order(f"N{number}") for number in range(5)]

    def refuses_one(self: MessageQueue, settlements: list[Settlement], **more: Any) -> Settled:
        if any(each.message.id == bad.relation_id and each.outcome.reason != "internal_error" for each in settlements):
            raise LookupError("a defect")
        return settle(self, settlements, **more)

    monkeypatch.setattr(MessageQueue, "settle", refuses_one)
    with running(Worker(settings_for(shop, api))):
        eventually(lambda: sorted(shop.statuses()) == [4, 4, 4, 4, 5])
    assert shop.row(bad.relation_id).status == 5


def test_leases_are_renewed_while_the_loop_is_held_up_and_left_to_run_out_when_it_stands_still(shop: Shop) -> None:
    clock = FastClock()
    looks: list[float] = []
    renewed: list[float] = []

    def counted() -> float:
        looks.append(clock.monotonic())
        return looks[-1]

    held = Held(worker_id="w", lease_seconds=0.3, clock=counted)

    class Watched(Database):
        def rows(self, statement: str, /, **parameters: object) -> list[dict[str, Any]]:
            renewed.append(clock.monotonic())
            return super().rows(statement, **parameters)

    renewal = Renewal(Watched(settings_of(shop)), held)
    renewal.start()
    try:
        eventually(lambda: len(renewed) > 3)
        clock.ahead += ABANDONED_SECONDS + 1
        # Each try of the thread looks at the clock at least once; the first may have begun before the jump.
        before = len(looks)
        eventually(lambda: len(looks) > before + 5)
        count, before = len(renewed), len(looks)
        eventually(lambda: len(looks) > before + 10)
        assert len(renewed) == count, "nobody is there who would settle"
        held.turned()
        eventually(lambda: len(renewed) > count)
    finally:
        renewal.stop()
        renewal._thread.join(5)
        assert not renewal._thread.is_alive()


def test_an_embedding_programs_threads_keep_their_stack_size(shop: Shop, api: FakeZithara) -> None:
    before = threading.stack_size()
    with running(Worker(settings_for(shop, api))):
        shop.publish_order("1")
        eventually(lambda: shop.statuses() == [4])
        assert threading.stack_size() == before


def test_bodies_and_answers_nested_as_deep_as_can_be_pass_through_a_delivery_thread(
    shop: Shop, api: FakeZithara, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their stacks are small: what overran one would end this process."""
    api.responder = lambda request: (
        Reply(200, b"[" * BODY_LIMIT) if request.path == "/v1/order" and len(api.requests("/v1/order")) == 1 else None
    )
    text = '{"order":' + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1) + "}"
    monkeypatch.setattr(
        "zithara_worker.worker.starting.process",
        lambda event, context: Request(target=Target.API, method="POST", path="/order", json=event.payload),
    )
    shop.publish_body(TOPIC_ORDER, json.dumps(text))
    clock = FastClock()
    with running(Worker(settings_for(shop, api), monotonic=clock.monotonic, utc=clock.utc, clock=clock.utc)):
        eventually(lambda: shop.statuses() == [5])
        clock.ahead += 60
        eventually(lambda: shop.statuses() == [4])
    assert len(api.requests("/v1/order")) == 2


def test_time_is_up_also_for_a_worker_that_never_reached_its_database(tmp_path: Path) -> None:
    """As with a job of cron, which would otherwise leave one waiting worker behind each time."""
    settings = Settings(
        database=DatabaseSettings(unix_socket=str(tmp_path / "no.sock"), name="shop"),
        metrics=MetricsSettings(listen=""),
    )
    began = time.monotonic()
    end = Worker(settings).run(["order"], limits=Limits(max_runtime_seconds=0.5))
    assert end is End.RUNTIME
    assert 0.4 < time.monotonic() - began < 5


def test_leases_are_measured_by_a_clock_that_runs_on_in_a_suspended_machine() -> None:
    assert abs(lease_clock() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 1


def test_a_body_that_is_null_or_bytes_has_failed_and_its_neighbours_are_delivered(shop: Shop, api: FakeZithara) -> None:
    for number in range(4):
        shop.publish_order(f"N{number}")
    first, second = [row.message_id for row in shop.rows()][1:3]
    shop.query("ALTER TABLE {prefix}queue_message MODIFY body LONGBLOB NULL")
    shop.query("UPDATE {prefix}queue_message SET body = NULL WHERE id = %s", (first,))
    shop.query("UPDATE {prefix}queue_message SET body = 0xFF00FE80 WHERE id = %s", (second,))
    with running(Worker(settings_for(shop, api))):
        eventually(lambda: shop.statuses() == [4, 6, 6, 4])
    codes = [row[0] for row in shop.query("SELECT reason_code FROM {prefix}zithara_delivery_failure ORDER BY id")]
    assert codes == ["empty_message", "not_json"]
