"""The delivery ledger from outside: the installed command, a real database, a real HTTP server."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.processes import WorkerProcess
from support.waiting import eventually
from support.workers import StepWorker

from zithara_worker.database import statements
from zithara_worker.sandbox import examples
from zithara_worker.sandbox.api import FakeZithara, RecordedRequest, Reply
from zithara_worker.sandbox.session import worker_command, write_config
from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.shop_tables import published_messages
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER

Config = Callable[..., Path]
FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture
def empty(worker_config: Config) -> Callable[..., None]:
    """Runs a worker until nothing is left."""

    def run(**sections: object) -> None:
        with WorkerProcess(worker_config(**sections), "consume", "--all", "--stop-when-empty") as worker:
            assert worker.wait(within=60) == 0

    return run


@pytest.fixture
def command(worker_config: Config) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        typed = [worker_command(), "--config", str(worker_config()), *arguments]
        return subprocess.run(typed, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False)

    yield run


def carts_sent(api: FakeZithara) -> list[float]:
    return [json.loads(request.body)["cart"]["total_price"] for request in api.requests("/v1/cart")]


def test_a_cart_that_is_published_every_minute_is_sent_once_and_again_when_it_changes(
    shop: Shop, api: FakeZithara, empty: Callable[..., None]
) -> None:
    for total in (10, 10, 10, 20, 20, 10):
        shop.publish_cart(total_price=total)
        empty(worker={"coalesce": ""})
    assert carts_sent(api) == [10.0, 20.0, 10.0]
    assert shop.statuses() == [4] * 6


def test_the_module_publishes_one_cart_for_a_day_and_zithara_gets_one_request(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    """The message of a real shop's cron, 1,410 times: every minute for 23.5 hours. Each round is settled before the
    next is published, so that coalescing alone would leave a request for each round."""
    [cart] = [each.body for each in published_messages() if each.topic == TOPIC_CART and "guest15@" in each.body]
    rounds = 94
    with WorkerProcess(worker_config(worker={"poll_interval": "0.01"}), "consume", "cart") as worker:
        for number in range(1, rounds + 1):
            shop.publish_bodies(TOPIC_CART, [cart] * 15)
            eventually(lambda told=15 * number: shop.status_counts() == {4: told}, within=30)
        worker.terminate()
        assert worker.wait(within=20) == 0
    assert len(api.requests("/v1/cart")) == 1
    [row] = shop.query("SELECT accepted, message_id FROM {prefix}zithara_delivery")
    assert row == (1, shop.query("SELECT MAX(id) FROM {prefix}queue_message")[0][0])


def test_what_php_delivered_while_no_worker_ran_is_mended_by_the_next_message(
    shop: Shop, api: FakeZithara, empty: Callable[..., None]
) -> None:
    """The worker delivers A, PHP delivers B, and the shop publishes A again."""
    shop.publish_cart("7001", total_price=10)
    shop.publish_cart("7002", total_price=5)
    empty()
    by_php = shop.publish_cart("7001", total_price=20)
    shop.query("UPDATE {prefix}queue_message_status SET status = 4 WHERE id = %s", [by_php.relation_id])
    shop.publish_cart("7001", total_price=10)
    shop.publish_cart("7002", total_price=5)
    empty()
    assert sorted(carts_sent(api)) == [5.0, 10.0, 10.0]


def test_a_shop_of_version_0_2_is_upgraded_while_its_workers_run(
    make_shop: Callable[..., Shop], api: FakeZithara, tmp_path: Path
) -> None:
    """One worker without a ledger holds messages meanwhile, one of this version waits for the tables. None is lost."""
    shop = make_shop(worker_tables=False)
    shop.configure_webhook(client_id=api.client_id, client_secret=api.client_secret)
    old = (FIXTURES / "schema-1.sql").read_text(encoding="utf-8") + statements.read("upgrade_2.sql")
    for text in re.sub(r"--[^\n]*", "", old.replace("{prefix}", "")).split(";"):
        if text.strip():
            shop.query(text)
    for text in statements.script("grants.sql", prefix="", database=shop.name, user=f"'{shop.user}'@'%'"):
        if not re.search(
            "zithara_(delivery|ledger|reconciliation|relay)", text.replace("zithara_delivery_failure", "")
        ):
            shop.query(text)
    before = [shop.publish_cart(str(7001 + number)) for number in range(10)]
    config = write_config(tmp_path / "worker.conf", shop, api, {"metrics": {"listen": ""}})
    root = write_config(tmp_path / "root.conf", shop, api, {"database": {"user": "root", "password": ""}})
    without_ledger = StepWorker(shop, time.time, topic=TOPIC_CART)
    with closing(without_ledger), WorkerProcess(config, "consume", "--all") as worker:
        held = without_ledger.claim(5)
        worker.wait_for_log(event="schema_outdated", within=20)
        assert len(held) == 5 and carts_sent(api) == []
        done = subprocess.run(
            [worker_command(), "--config", str(root), "install"], capture_output=True, text=True, timeout=60, check=True
        )
        assert "schema 2" in done.stdout
        during = [shop.publish_cart(str(7101 + number)) for number in range(10)]
        shop.grant_worker()
        assert without_ledger.deliver(held).lost == []
        eventually(lambda: shop.status_counts() == {4: len(before) + len(during)}, within=30)
    assert len(carts_sent(api)) == len(before) + len(during) - len(held)
    recorded = shop.query("SELECT COUNT(*), MIN(accepted) FROM zithara_delivery WHERE message_id > 0")
    assert recorded == [(len(before) + len(during) - len(held), 1)]


def test_what_is_switched_off_sends_every_message(shop: Shop, api: FakeZithara, empty: Callable[..., None]) -> None:
    for _ in range(3):
        shop.publish_cart()
    empty(worker={"coalesce": "", "skip_unchanged": ""})
    assert len(carts_sent(api)) == 3


def test_a_cart_that_became_an_order_is_not_sent(shop: Shop, api: FakeZithara, empty: Callable[..., None]) -> None:
    shop.publish_cart("7001", total_price=10)
    shop.publish_cart("7002", total_price=20)
    shop.query("UPDATE {prefix}quote SET is_active = 0 WHERE entity_id = 7001")
    empty()
    assert carts_sent(api) == [20.0]
    assert shop.statuses() == [4, 4]
    shop.publish_cart("7001", total_price=10)
    empty(zithara={"inactive_carts": "send"})
    assert carts_sent(api) == [20.0, 10.0]


def test_a_cart_whose_transaction_is_not_committed_waits_and_one_that_never_comes_is_skipped(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    late, lost = shop.publish_cart("7001"), shop.publish_cart("7002")
    shop.query("DELETE FROM {prefix}quote")
    shop.make_older(minutes=11, relation_ids=[lost.relation_id])
    with WorkerProcess(worker_config(), "consume", "cart"):
        eventually(lambda: shop.row(lost.relation_id).status == 4, within=20)
        eventually(lambda: shop.row(late.relation_id).status == 2, within=20)
        assert carts_sent(api) == []


@pytest.mark.parametrize("lacks", ["right", "table"])
def test_a_shop_whose_carts_cannot_be_read_is_told_once_and_carts_are_sent(
    shop: Shop, api: FakeZithara, worker_config: Config, lacks: str
) -> None:
    for number in range(3):
        shop.publish_cart(str(7001 + number))
    if lacks == "table":
        shop.query("DROP TABLE {prefix}quote")
    else:
        shop.query(f"REVOKE SELECT (entity_id, is_active) ON {shop.name}.quote FROM '{shop.user}'@'%'")
    config = worker_config(worker={"batch_size": "1"})
    with WorkerProcess(config, "consume", "cart", "--stop-when-empty") as worker:
        assert worker.wait(within=60) == 0
        told = [record for record in worker.logs if record.get("event") == "carts_unread"]
    assert len(carts_sent(api)) == 3 and len(told) == 1


def test_an_older_state_that_php_left_behind_does_not_go_over_a_newer_one(
    shop: Shop, api: FakeZithara, empty: Callable[..., None]
) -> None:
    orphan = shop.publish_order("100", state="new")
    shop.query("UPDATE {prefix}queue_message_status SET status = 3")
    with shop.transaction() as publisher:
        publisher.publish(TOPIC_ORDER, examples.order("100", state="complete"))
    empty()
    shop.query(
        "UPDATE {prefix}queue_message_status SET status = 5, number_of_trials = 1 WHERE id = %s", [orphan.relation_id]
    )
    empty()
    sent = [json.loads(request.body)["order"]["status"] for request in api.requests("/v1/order")]
    assert sent == ["completed"]
    assert shop.statuses() == [4, 4]


def test_an_operator_sees_what_was_accepted_and_has_it_sent_again(
    shop: Shop,
    api: FakeZithara,
    empty: Callable[..., None],
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    unknown = command("ledger", "show", "cart:7001")
    assert (unknown.returncode, "nothing is known of cart:7001" in unknown.stdout) == (1, True)
    first = shop.publish_cart()
    empty()
    shown = command("ledger", "show", "cart:7001")
    assert shown.returncode == 0 and f"newest message   {first.message_id}" in shown.stdout
    [told] = json.loads(command("ledger", "show", "cart:7001", "--json").stdout)
    assert (told["group"], told["accepted"], told["sure"], told["stale"]) == ("cart:7001", 1, True, False)
    assert command("ledger", "forget", "cart:7001").stdout == "1 forgotten\n"
    assert command("ledger", "forget", "cart:7001").returncode == 1
    shop.publish_cart()
    empty()
    assert len(carts_sent(api)) == 2
    assert command("ledger", "forget").returncode == 2
    told = command("ledger", "forget", "--all")
    assert told.returncode == 2 and "There is no terminal to ask: give --yes" in told.stderr
    assert command("ledger", "forget", "--all", "--yes").stdout == "1 forgotten\n"


def test_a_message_published_by_hand_or_retried_is_sent_though_nothing_changed(
    shop: Shop, api: FakeZithara, empty: Callable[..., None], worker_config: Config, tmp_path: Path
) -> None:
    shop.publish_cart()
    empty()
    body = tmp_path / "cart.json"
    body.write_text(json.dumps(examples.cart()))
    config = worker_config(database={"user": "root", "password": ""})
    typed = [worker_command(), "--config", str(config), "publish", "cart", str(body)]
    subprocess.run(typed, check=True, capture_output=True, timeout=60)
    empty()
    assert len(carts_sent(api)) == 2
    api.responder = lambda request: Reply.error(400, "bad") if request.path.endswith("/cart") else None
    failed = shop.publish_cart(total_price=99)
    empty()
    api.responder = None
    assert shop.row(failed.relation_id).status == 6
    retry = [worker_command(), "--config", str(config), "failed", "retry", str(failed.message_id)]
    subprocess.run(retry, check=True, capture_output=True, timeout=60)
    empty()
    assert carts_sent(api)[-1] == 99.0
    assert shop.rows(TOPIC_CART)[-1].status == 4


def test_a_php_consumer_at_work_switches_the_comparison_off(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    """PHP delivers and records nothing: what the ledger says of a cart may be out of date."""
    shop.publish_cart()
    held = shop.publish_cart("7002")
    shop.query("UPDATE {prefix}queue_message_status SET status = 3 WHERE id = %s", [held.relation_id])
    with WorkerProcess(worker_config(), "consume", "cart") as worker:
        assert worker.wait_for_log(event="ledger_off", within=20)["topic"] == TOPIC_CART
        eventually(lambda: len(carts_sent(api)) == 1, within=20)
        shop.publish_cart()
        eventually(lambda: len(carts_sent(api)) == 2, within=20)
        told = f'"uncompared":["{TOPIC_CART}"]'
        eventually(
            lambda: [state for (state,) in shop.query("SELECT state FROM {prefix}zithara_worker") if told in state]
        )


def test_a_request_that_is_given_back_late_leaves_it_unsure_what_zithara_has(
    shop: Shop, api: FakeZithara, empty: Callable[..., None], worker_config: Config
) -> None:
    """Its request is processed after the worker stopped: what was accepted before may not be what Zithara has now."""
    shop.publish_cart(total_price=10)
    empty()
    answered = threading.Event()

    def hold(request: RecordedRequest) -> Reply | None:
        if request.path.endswith("/cart"):
            answered.wait(30)
        return None

    api.responder = hold
    late = shop.publish_cart(total_price=20)
    with WorkerProcess(worker_config(worker={"shutdown_timeout": "0.5"}), "consume", "cart") as worker:
        eventually(lambda: len(carts_sent(api)) == 2, within=20)
        worker.terminate()
        assert worker.wait(within=20) == 0
    answered.set()
    api.responder = None
    assert shop.row(late.relation_id).status == 2
    assert shop.query("SELECT request FROM {prefix}zithara_delivery") == [(None,)]
