"""reconcile from outside, beside a shop that goes on and a worker that delivers, killed in the middle."""

from __future__ import annotations

import json
import random
import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from support.processes import WorkerProcess
from support.waiting import eventually
from support.workers import settings_of

from zithara_worker.database.session import Database
from zithara_worker.sandbox.api import FakeZithara, RecordedRequest, Reply
from zithara_worker.sandbox.session import worker_command
from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.shop_tables import ShopTables
from zithara_worker.settings.values import Secret
from zithara_worker.shop.orders import OrderReader
from zithara_worker.topics import TOPIC_ORDER

ORDERS = 200


@contextmanager
def living(shop: Shop) -> Iterator[list[int]]:
    """A shop that changes orders, and whose module publishes them when the change is committed. The total of each
    change is higher than all before it. Yields the totals so far."""
    database = Database(settings_of(shop, user="root", password=Secret("")))
    reader = OrderReader(database)
    ended = threading.Event()
    totals: list[int] = []

    def live() -> None:
        chance = random.Random(7)
        # Moments of its own, among which the moments of the other processes fall.
        while not ended.wait(chance.uniform(0.001, 0.02)):
            order_id, total = chance.randint(1, ORDERS), 1000 + len(totals)
            with shop.transaction() as change, change.publishing_connection().cursor() as cursor:
                cursor.execute("UPDATE sales_order SET grand_total = %s WHERE entity_id = %s", (total, order_id))
            with shop.transaction() as publisher:
                payload = reader.build([order_id])[order_id].payload
                publisher.publish(TOPIC_ORDER, {**payload, "is_update": True})
            totals.append(total)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        yield totals
    finally:
        ended.set()
        thread.join()
        database.close()


def test_each_order_arrives_in_order_and_once_though_it_is_killed_and_the_shop_goes_on(
    shop: Shop, api: FakeZithara, worker_config: Callable[..., Path]
) -> None:
    tables = ShopTables(shop)
    tables.create(rows=False)
    tables.generate_orders(ORDERS, days=10)
    shop.query("UPDATE sales_order SET updated_at = updated_at - INTERVAL 1 HOUR")
    account = f"'{shop.user}'@'%'"
    for grants in ("entity_grants.sql", "publish_grants.sql"):
        shop.run_script(grants, database=shop.name, user=account)
    config = worker_config(worker={"concurrency": "4"})

    def slowly(request: RecordedRequest) -> Reply | None:
        return None if request.path.endswith("token") else Reply.of(200, {"status": 200}).after(0.01)

    api.responder = slowly
    publish = ("reconcile", "orders", "--all", "--publish", "--yes")
    with WorkerProcess(config, "consume", "order") as worker, living(shop) as totals:
        with WorkerProcess(config, *publish) as first:
            eventually(lambda: len(shop.rows()) - len(totals) > 30, within=60)
            first.kill()
        # A dead run's lock is free when its lease ends.
        shop.query("UPDATE zithara_lock SET lease_until = NOW(3) WHERE name = 'reconcile:orders'")
        with WorkerProcess(config, *publish) as second:
            assert second.wait(within=90) in (0, 1)
        eventually(lambda: len(totals) > 50, within=60)
        worker.terminate()
        worker.wait()
    with WorkerProcess(config, "consume", "order", "--stop-when-empty") as rest:
        assert rest.wait(within=60) == 0

    arrived: dict[str, list[float]] = defaultdict(list)
    for request in api.requests("/v1/order"):
        order = request.json.get("order", request.json)
        arrived[order["platform_order_id"]].append(order["current_total_price"])
    wanted = {number: float(total) for number, total in shop.query("SELECT increment_id, grand_total FROM sales_order")}
    assert {number: told[-1] for number, told in arrived.items()} == wanted, "the shop's last state is the last told"
    assert {number: told for number, told in arrived.items() if told != sorted(told)} == {}, "never older over newer"
    assert {number: told for number, told in arrived.items() if len(told) != len(set(told))} == {}, "none twice"

    shop.query("UPDATE sales_order SET updated_at = NOW() - INTERVAL 1 HOUR")
    command = [worker_command(), "--config", str(config), "reconcile", "orders", "--all", "--json"]
    report = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    [kind] = json.loads(report.stdout)["kinds"]
    assert kind["counts"]["complete"] == ORDERS and report.returncode == 0
