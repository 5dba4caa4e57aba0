"""Real PHP, with Magento's statements, on the same tables as the worker."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.processes import WorkerProcess
from support.waiting import eventually
from worker.test_outage import running

from zithara_worker import Worker
from zithara_worker.queue.message_queue import MessageQueue
from zithara_worker.queue.statuses import Status
from zithara_worker.sandbox import examples
from zithara_worker.sandbox.api import FakeZithara, Reply
from zithara_worker.sandbox.shop import Shop
from zithara_worker.shop.configuration import configure
from zithara_worker.topics import ORDER, TOPIC_ORDER
from zithara_worker.worker import building

Config = Callable[..., Path]
Php = Callable[..., Any]
QUICK = {"worker": {"poll_interval": "0.05"}}
QUEUE, CONSUMER = ORDER.queue, ORDER.php_consumer


def order(increment_id: str, **overrides: Any) -> str:
    return json.dumps(examples.order(increment_id, **overrides))


def publish(publisher: Any, increment_id: str, *, queues: str = QUEUE) -> int:
    """Has PHP publish an order's message; its id."""
    before = len(publisher.said("published"))
    publisher.tell(f"publish {TOPIC_ORDER} {queues} {order(increment_id)}")
    found: list[int] = eventually(lambda: publisher.said("published")[before:], within=10)
    return found[0]


def delivered(api: FakeZithara) -> list[int]:
    """Message ids in the order in which they arrived."""
    return [int(request.message.rpartition("-")[2]) for request in api.requests()]


def test_what_php_publishes_arrives_with_its_non_ascii_and_slashes(
    shop: Shop, api: FakeZithara, worker_config: Config, php: Php
) -> None:
    publisher = php("publisher.php")
    publisher.tell(f"publish {TOPIC_ORDER} {QUEUE} {order('1', customer_firstname='Zoë/नेहा')}")
    publisher.wait_for("published")
    with WorkerProcess(worker_config(**QUICK), "consume", TOPIC_ORDER, "--stop-when-empty") as worker:
        assert worker.wait() == 0
    assert shop.statuses() == [Status.COMPLETE]
    assert "Zoë/नेहा" in json.dumps(api.requests()[0].json, ensure_ascii=False)


def test_a_message_that_a_long_transaction_commits_late_is_found_and_comes_before_newer_ones_of_its_order(
    shop: Shop, api: FakeZithara, worker_config: Config, php: Php
) -> None:
    checkout, quick = php("publisher.php"), php("publisher.php")
    with WorkerProcess(worker_config(**QUICK), "consume", TOPIC_ORDER) as worker:
        checkout.tell("begin")
        late = publish(checkout, "1")
        others = [publish(quick, "2"), publish(quick, "3")]
        eventually(lambda: sorted(delivered(api)) == others)
        checkout.tell("commit")
        checkout.wait_for("committed")
        newer = publish(quick, "1")
        eventually(lambda: set(shop.statuses()) == {Status.COMPLETE}, within=10)
        worker.terminate()
        assert worker.wait() == 0
    assert delivered(api)[2:] == [late, newer]


def test_a_publisher_in_a_transaction_waits_for_no_worker(
    shop: Shop, api: FakeZithara, worker_config: Config, php: Php
) -> None:
    shop.query("SET GLOBAL innodb_lock_wait_timeout = 1")
    try:
        checkout = php("publisher.php")
        with WorkerProcess(worker_config(**QUICK), "consume", TOPIC_ORDER) as worker:
            for number in range(1, 21):
                checkout.tell("begin")
                publish(checkout, str(number))
                publish(checkout, str(number))
                checkout.tell("commit")
            eventually(lambda: shop.statuses() == [Status.COMPLETE] * 40, within=20)
            worker.terminate()
            assert worker.wait() == 0
    finally:
        shop.query("SET GLOBAL innodb_lock_wait_timeout = DEFAULT")
    # A wait beyond a second would have ended PHP with an error, and with it this test.
    assert len(checkout.said("published")) == 40


@pytest.mark.parametrize(("locks", "verb"), [(True, "acknowledged"), (False, "processed")])
def test_a_stale_read_of_php_is_acknowledged_unprocessed_because_of_the_lock_row(
    shop: Shop,
    api: FakeZithara,
    worker_config: Config,
    php: Php,
    monkeypatch: pytest.MonkeyPatch,
    locks: bool,
    verb: str,
) -> None:
    """Without the lock rows PHP processes what was delivered already: this is what they are for."""
    monkeypatch.setattr(building, "MessageQueue", partial(MessageQueue, write_php_locks=locks))
    consumer = php("consumer.php", QUEUE, CONSUMER, "step")
    consumer.wait_for("ready")
    published = shop.publish_order("1")
    consumer.wait_for(f"selected {published.message_id}")
    with running(Worker(configure(worker_config(**QUICK), {}, {}))):
        eventually(lambda: shop.statuses() == [Status.COMPLETE])
    consumer.tell()
    consumer.wait_for(f"{verb} {published.message_id}")
    assert shop.statuses() == [Status.COMPLETE]
    assert delivered(api) == [published.message_id]


def test_php_that_selected_what_a_worker_holds_does_not_get_it(
    shop: Shop, api: FakeZithara, worker_config: Config, php: Php
) -> None:
    gate = threading.Event()
    api.responder = lambda request: Reply().held(gate) if "idempotency-key" in request.headers else None
    consumer = php("consumer.php", QUEUE, CONSUMER, "step")
    consumer.wait_for("ready")
    published = shop.publish_order("1")
    consumer.wait_for(f"selected {published.message_id}")
    with WorkerProcess(worker_config(**QUICK), "consume", TOPIC_ORDER) as worker:
        api.wait_for(1)
        consumer.tell()
        consumer.wait_for(f"passed {published.message_id}")
        gate.set()
        eventually(lambda: shop.statuses() == [Status.COMPLETE])
        worker.terminate()
        assert worker.wait() == 0


@pytest.mark.parametrize("locks", [True, False])
def test_php_consumers_competing_for_the_queue_process_nothing_twice(
    shop: Shop, api: FakeZithara, worker_config: Config, php: Php, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    """Two consumers, 20 ms between their reading and their taking. Without the lock rows some must be processed twice,
    or this test would show nothing."""
    monkeypatch.setattr(building, "MessageQueue", partial(MessageQueue, write_php_locks=locks))
    consumers = [php("consumer.php", QUEUE, CONSUMER, "20") for _ in range(2)]
    for consumer in consumers:
        consumer.wait_for("ready")

    def twice() -> list[int]:
        times = Counter(delivered(api))
        for consumer in consumers:
            times.update(consumer.said("processed"))
        return [message_id for message_id, count in times.items() if count > 1]

    published = []
    with running(Worker(configure(worker_config(**QUICK), {}, {}))):
        for number in range(1, 301):
            published.append(shop.publish_order(str(number)).message_id)
            # A message at a time, so that everybody looks at the same head of the line.
            eventually(lambda: shop.status_counts().get(Status.NEW, 0) < 3, within=10)
            if not locks and twice():
                break
        eventually(lambda: set(shop.statuses()) == {Status.COMPLETE}, within=20)
    assert bool(twice()) is not locks
    by_php = {message_id for consumer in consumers for message_id in consumer.said("processed")}
    assert by_php | set(delivered(api)) == set(published), "everything was processed by somebody"
    if locks:
        assert by_php and delivered(api), "both sides had their share"


def test_the_cleanup_cron_and_the_worker_get_along(
    shop: Shop, api: FakeZithara, worker_config: Config, magento: Callable[[str], str]
) -> None:
    week, day = 8 * 1440, 1500
    done = shop.publish_order("1")
    config = worker_config(**QUICK)
    with WorkerProcess(config, "consume", TOPIC_ORDER, "--stop-when-empty") as worker:
        assert worker.wait() == 0
    failed, retried, held = (shop.publish_order(number) for number in ("2", "3", "4"))
    for published, status in ((failed, Status.ERROR), (retried, Status.RETRY_REQUIRED), (held, Status.IN_PROGRESS)):
        shop.query("UPDATE queue_message_status SET status = %s WHERE id = %s", (status, published.relation_id))
    shop.make_older(minutes=week, relation_ids=[done.relation_id, failed.relation_id, retried.relation_id])
    shop.make_older(minutes=day, relation_ids=[held.relation_id])
    magento("clean_up")
    rows = {row.message_id: row for row in shop.rows()}
    assert set(rows) == {retried.message_id, held.message_id}, "only what is settled for good is deleted"
    assert (rows[held.message_id].status, rows[held.message_id].number_of_trials) == (Status.RETRY_REQUIRED, 1)
    with WorkerProcess(config, "consume", TOPIC_ORDER, "--stop-when-empty") as worker:
        assert worker.wait() == 0
    assert shop.statuses() == [Status.COMPLETE] * 2
    assert sorted(delivered(api)) == [done.message_id, retried.message_id, held.message_id]


def test_the_cleanup_cron_takes_nothing_from_a_running_worker(
    shop: Shop, api: FakeZithara, worker_config: Config, magento: Callable[[str], str]
) -> None:
    gate = threading.Event()
    api.responder = lambda request: Reply().held(gate) if "idempotency-key" in request.headers else None
    shop.publish_order("1")
    with WorkerProcess(worker_config(**QUICK), "consume", TOPIC_ORDER) as worker:
        api.wait_for(1)
        magento("clean_up")
        assert shop.statuses() == [Status.IN_PROGRESS]
        gate.set()
        eventually(lambda: shop.statuses() == [Status.COMPLETE])
        worker.terminate()
        assert worker.wait() == 0
    assert len(delivered(api)) == 1


def test_a_changed_poison_pill_ends_the_worker_in_order_and_with_0(
    shop: Shop, api: FakeZithara, worker_config: Config, magento: Callable[[str], str]
) -> None:
    gate = threading.Event()
    api.responder = lambda request: Reply().held(gate) if "idempotency-key" in request.headers else None
    magento("change_poison_pill")
    shop.publish_order("1")
    with WorkerProcess(worker_config(**QUICK), "consume", TOPIC_ORDER) as worker:
        api.wait_for(1)
        magento("change_poison_pill")
        worker.wait_for_log(event="poison_pill")
        gate.set()
        assert worker.wait() == 0
    assert shop.statuses() == [Status.COMPLETE], "what was in flight is finished first"
    with WorkerProcess(worker_config(**QUICK), "consume", TOPIC_ORDER, "--stop-when-empty") as again:
        assert again.wait() == 0


def test_one_message_in_two_queues_is_processed_once_by_each_of_their_consumers(
    shop: Shop, api: FakeZithara, worker_config: Config, php: Php
) -> None:
    shop.add_queue("erp_order_queue")
    publisher = php("publisher.php")
    erp = php("consumer.php", "erp_order_queue", "ErpOrderConsumer", "1")
    erp.wait_for("ready")
    with WorkerProcess(worker_config(**QUICK), "consume", TOPIC_ORDER) as worker:
        published = [publish(publisher, str(number), queues=f"{QUEUE},erp_order_queue") for number in range(1, 21)]
        eventually(lambda: shop.statuses() == [Status.COMPLETE] * 40, within=20)
        worker.terminate()
        assert worker.wait() == 0
    assert sorted(delivered(api)) == published
    assert sorted(erp.said("processed")) == published
