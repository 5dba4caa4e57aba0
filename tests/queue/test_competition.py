"""Many workers at one queue, and one worker behind many rows that are not its business."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from support.processes import WorkerProcess
from support.workers import Clock, StepWorker, group_is_body

from zithara_worker.messages import Outcome, OutcomeKind
from zithara_worker.queue.settle import Settlement
from zithara_worker.sandbox.api import FakeZithara
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_ORDER

DELIVERED = Outcome(kind=OutcomeKind.DELIVERED, http_status=200)


def test_eight_workers_drain_five_thousand_messages_with_none_twice_and_each_group_in_order(shop: Shop) -> None:
    shop.publish_bodies(TOPIC_ORDER, [f"g{number % 700}" for number in range(5000)])
    delivered: list[tuple[str, int]] = []
    lock = threading.Lock()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        worker = StepWorker(shop, Clock(), worker_id=f"w{number}", identify=group_is_body)
        try:
            # Each sees the end only when nothing is pending or held by anybody.
            while shop_has_open_messages():
                worker.look()
                for message in (claimed := worker.take(40)):
                    with lock:
                        delivered.append((message.group_key, message.message_id))
                if claimed:
                    worker.queue.settle([Settlement(message=each, outcome=DELIVERED) for each in claimed])
        except BaseException as error:  # told by the test's own thread
            failures.append(error)
        finally:
            worker.database.close()

    def shop_has_open_messages() -> bool:
        with lock:
            return len(delivered) < 5000 and not failures

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
        assert not thread.is_alive()
    assert not failures, failures
    assert len(delivered) == len(set(delivered)) == 5000
    assert shop.status_counts() == {4: 5000}
    for group in {group for group, _ in delivered}:
        ids = [message_id for each, message_id in delivered if each == group]
        assert ids == sorted(ids)


def test_thousands_of_groups_busy_elsewhere_do_not_hold_up_the_message_behind_them(
    shop: Shop, api: FakeZithara, worker_config: Callable[..., Path]
) -> None:
    bodies = [f'{{"order":{{"increment_id":"B{number}"}}}}' for number in range(3000)]
    shop.publish_bodies(TOPIC_ORDER, bodies)
    shop.query(
        "INSERT INTO zithara_message_group (queue_id, group_key, id, message_id, worker_id, lease_until) "
        "SELECT s.queue_id, CONCAT('order:B', s.message_id - first.id), s.id, s.message_id, 'another', "
        "NOW(3) + INTERVAL 1 HOUR FROM queue_message_status s JOIN (SELECT MIN(id) AS id FROM queue_message) first"
    )
    shop.publish_order("FREE")
    # A poll a minute: only a claim that goes on by itself gets past them in time.
    config = worker_config(worker={"poll_interval": "60", "lease": "300"})
    with WorkerProcess(config, "consume", TOPIC_ORDER, "--max-messages", "1") as worker:
        api.wait_for(1, path="/v1/order", within=30)
        assert worker.wait() == 0
    assert shop.status_counts() == {2: 3000, 4: 1}
