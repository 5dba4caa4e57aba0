"""The expiry guard: old messages of ours live on, in slices whose cost does not grow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.workers import StepWorker

from zithara_worker.queue import message_queue
from zithara_worker.queue.message_queue import ExpiryGuard
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER

LIFETIME_MINUTES = 10080


def rounds_slices(guard: ExpiryGuard, measure: Callable[[Callable[[], object]], int]) -> list[int]:
    """What each slice of a whole round cost."""
    costs: list[int] = []
    over: list[bool] = [False]
    while not over[-1]:
        costs.append(measure(lambda: over.append(guard.run_slice(LIFETIME_MINUTES))))
    return costs


def rows_read(worker: StepWorker, step: Callable[[], object]) -> int:
    with worker.database._open().cursor() as cursor:
        cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
        before = sum(int(value) for _, value in cursor.fetchall())
    step()
    with worker.database._open().cursor() as cursor:
        cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
        return sum(int(value) for _, value in cursor.fetchall()) - before


@pytest.mark.parametrize("spread", [False, True], ids=["all of one second", "each of its own"])
def test_each_slice_reads_the_same_few_rows_and_a_round_keeps_all_of_ours(
    shop: Shop, worker: StepWorker, monkeypatch: pytest.MonkeyPatch, spread: bool
) -> None:
    monkeypatch.setattr(message_queue, "EXPIRY_ROWS_A_SLICE", 100)
    for topic in (TOPIC_CART, TOPIC_ORDER, TOPIC_CART):
        shop.publish_bodies(topic, ["{}"] * 500)
    shop.query(
        "UPDATE {prefix}queue_message_status SET updated_at = NOW() - INTERVAL 6 DAY + INTERVAL %s * id SECOND",
        (int(spread),),
    )
    shop.query("ANALYZE TABLE {prefix}queue_message_status")
    guard = ExpiryGuard(worker.database, [worker.queue_id])
    costs = rounds_slices(guard, lambda step: rows_read(worker, step))
    assert len(costs) == 16
    assert max(costs) <= 800
    assert guard.kept == 500
    assert shop.run_cleanup_cron(new_messages_lifetime=3 * 1440)["marked"] == 1000
    assert shop.status_counts(TOPIC_ORDER) == {2: 500}


def test_a_young_message_is_left_alone_and_without_a_lifetime_all_are(shop: Shop, worker: StepWorker) -> None:
    published = shop.publish_order("1")
    guard = ExpiryGuard(worker.database, [worker.queue_id])
    before = shop.row(published.relation_id).updated_at
    assert guard.run_slice(LIFETIME_MINUTES)
    shop.make_older(minutes=20_000)
    assert guard.run_slice(0)
    assert shop.row(published.relation_id).updated_at < before
    assert guard.kept == 0
    assert guard.run_slice(LIFETIME_MINUTES)
    assert guard.kept == 1
