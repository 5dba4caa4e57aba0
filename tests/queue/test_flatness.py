"""The cost of a claim and of an idle poll: the same behind thousands of rows that are not its business.

Counted in rows that the server reads (Handler_read_*), not in time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.workers import Clock, MakeShop, MakeWorker, StepWorker, group_is_body

from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER

MANY = 20_000


def rows_in_bulk(shop: Shop, queue: str, status: int, count: int, body: str = "CONCAT('g', seq)") -> None:
    """`count` messages of one queue with one status, by two statements."""
    [(newest,)] = shop.query("SELECT COALESCE(MAX(id), 0) FROM {prefix}queue_message")
    numbers = "WITH RECURSIVE numbers (seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM numbers WHERE seq < %s) "
    depth = "max_recursive_iterations" if "mariadb" in shop.server.version.lower() else "cte_max_recursion_depth"
    shop.query(f"SET SESSION {depth} = 1000000")
    shop.query(
        f"INSERT INTO {{prefix}}queue_message (topic_name, body) {numbers} SELECT %s, {body} FROM numbers",
        (count, TOPIC_ORDER),
    )
    shop.query(
        "INSERT INTO {prefix}queue_message_status (queue_id, message_id, status) "
        "SELECT q.id, m.id, %s FROM {prefix}queue_message m JOIN {prefix}queue q ON q.name = %s WHERE m.id > %s "
        "ORDER BY m.id",
        (status, queue, newest),
    )


def rows_read(worker: StepWorker, step: Callable[[], Any]) -> int:
    """Rows and index entries that the server read for a step of this worker's session."""

    def counter() -> int:
        with worker.database._open().cursor() as cursor:
            cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
            return sum(int(value) for _, value in cursor.fetchall())

    counter()
    nothing = -counter() + counter()
    before = counter()
    step()
    return counter() - before - nothing


def warmed_up(worker: StepWorker, clock: Clock) -> StepWorker:
    """A worker that has been running for a while: its cursor is at the end and it has swept."""
    worker.drain(limit=200)
    for _ in range(3):
        clock.pass_by(10)
        worker.look()
        worker.take(10)
    return worker


BACKGROUNDS = pytest.mark.parametrize(
    ("complete", "foreign"), [(MANY, 0), (0, 10 * MANY), (MANY, MANY)], ids=["complete", "foreign", "both"]
)


def background(shop: Shop, complete: int, foreign: int) -> None:
    if foreign:
        rows_in_bulk(shop, "zithara_cart_queue", 2, foreign)
        rows_in_bulk(shop, "zithara_cart_queue", 5, 50)
    if complete:
        rows_in_bulk(shop, "zithara_order_queue", 4, complete)
    shop.query("ANALYZE TABLE {prefix}queue_message_status")


def cost_of_a_claim(shop: Shop, worker: StepWorker, clock: Clock) -> int:
    warmed_up(worker, clock)
    rows_in_bulk(shop, "zithara_order_queue", 2, 50)
    worker.poll()
    return rows_read(worker, lambda: worker.take(50))


@BACKGROUNDS
def test_a_claim_costs_the_same_behind_completed_and_foreign_rows(
    make_shop: MakeShop, make_worker: MakeWorker, clock: Clock, complete: int, foreign: int
) -> None:
    empty, full = make_shop(), make_shop()
    background(full, complete, foreign)
    bare = cost_of_a_claim(empty, make_worker(on=empty, identify=group_is_body), clock)
    cost = cost_of_a_claim(full, make_worker(on=full, identify=group_is_body), clock)
    assert abs(cost - bare) <= 10


@BACKGROUNDS
def test_an_idle_poll_costs_the_same_behind_completed_and_foreign_rows(
    make_shop: MakeShop, make_worker: MakeWorker, clock: Clock, complete: int, foreign: int
) -> None:
    empty, full = make_shop(), make_shop()
    background(full, complete, foreign)
    costs = []
    for shop in (empty, full):
        worker = warmed_up(make_worker(on=shop, identify=group_is_body), clock)
        costs.append(rows_read(worker, worker.poll))
        assert not worker.queue.may_have_work
    assert costs[1] <= costs[0] + 10


def test_blocked_groups_in_front_cost_a_claim_nothing(
    make_shop: MakeShop, make_worker: MakeWorker, clock: Clock
) -> None:
    costs = []
    for blocked in (0, 5000):
        shop = make_shop()
        worker = make_worker(on=shop, identify=group_is_body)
        rows_in_bulk(shop, "zithara_order_queue", 2, 1, body="'busy'")
        [held] = worker.claim()
        if blocked:
            rows_in_bulk(shop, "zithara_order_queue", 2, blocked, body="'busy'")
            worker.claim()
        for _ in range(30):
            worker.poll()
            assert worker.take(1) == []
        clock.pass_by(20)
        worker.look()
        clock.pass_by(20)
        worker.look()
        assert len(worker.queue._backlog) == blocked
        rows_in_bulk(shop, "zithara_order_queue", 2, 20)
        worker.poll()
        claimed = []
        costs.append(rows_read(worker, lambda worker=worker, claimed=claimed: claimed.extend(worker.take(20))))
        assert len(claimed) == 20
        assert held.group_key not in {message.group_key for message in claimed}
    assert costs[1] <= costs[0] + 10


def test_retries_that_are_not_due_cost_an_idle_poll_nothing(
    make_shop: MakeShop, make_worker: MakeWorker, clock: Clock
) -> None:
    costs = []
    for waiting in (0, 5000):
        shop = make_shop()
        worker = warmed_up(make_worker(on=shop, identify=group_is_body), clock)
        if waiting:
            rows_in_bulk(shop, "zithara_order_queue", 5, waiting)
            shop.query(
                "INSERT INTO {prefix}zithara_message_group (queue_id, group_key, id, message_id, not_before) "
                "SELECT s.queue_id, m.body, s.id, s.message_id, '2038-01-01' FROM {prefix}queue_message_status s "
                "JOIN {prefix}queue_message m ON m.id = s.message_id"
            )
            shop.query("ANALYZE TABLE {prefix}zithara_message_group")
        costs.append(rows_read(worker, lambda worker=worker: worker.database.rows("poll", queue_ids=[worker.queue_id])))
    assert costs[1] <= costs[0] + 10


@pytest.mark.parametrize("topic", [TOPIC_ORDER, TOPIC_CART])
def test_with_the_optional_index_a_worker_that_starts_reads_pending_rows_only(
    shop: Shop, make_worker: MakeWorker, topic: str
) -> None:
    shop.run_script("optional_index.sql")
    rows_in_bulk(shop, "zithara_order_queue", 4, MANY)
    rows_in_bulk(shop, "zithara_cart_queue", 4, MANY)
    publish = shop.publish_order if topic == TOPIC_ORDER else shop.publish_cart
    publish("A")
    worker = make_worker(topic=topic)
    worker.poll()
    claimed: list[Any] = []
    assert rows_read(worker, lambda: claimed.extend(worker.take(10))) < 200
    assert len(claimed) == 1
    assert rows_read(worker, worker.queue.sweep_all) < 200
