"""Crashes: of workers, of the database, and of what is between them. Real processes, real signals, a real server."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.processes import WorkerProcess
from support.waiting import eventually

from zithara_worker import Worker
from zithara_worker.database import session as database
from zithara_worker.queue.statuses import Status
from zithara_worker.sandbox import examples
from zithara_worker.sandbox.api import FakeZithara, RecordedRequest, Reply
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.publisher import stored_body
from zithara_worker.sandbox.session import write_config
from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.tcp_proxy import Cut, TcpProxy
from zithara_worker.shop.configuration import configure
from zithara_worker.topics import TOPIC_ORDER

Config = Callable[..., Path]
SHORT_LEASE = {"worker": {"lease": "2", "poll_interval": "0.05", "concurrency": "1"}}
QUICK = {"worker": {"poll_interval": "0.05"}}


def keys(api: FakeZithara) -> list[str]:
    """The messages in the order in which the API read them."""
    return [request.message for request in api.requests()]


def groups_left(shop: Shop) -> int:
    return int(shop.query("SELECT COUNT(*) FROM {prefix}zithara_message_group")[0][0])


def first_answer_held(gate: threading.Event) -> Callable[[RecordedRequest], Reply | None]:
    """The first message's answer waits for the gate; tokens and all later messages are answered as usual."""
    held = threading.Event()

    def respond(request: RecordedRequest) -> Reply | None:
        if "idempotency-key" not in request.headers or held.is_set():
            return None
        held.set()
        return Reply().held(gate)

    return respond


def through(proxy: TcpProxy, shop: Shop) -> dict[str, str]:
    """The [database] section for a worker behind this proxy.

    MySQL wants the first login of an account over a secure connection, or with RSA, and caches the password then.
    Behind the proxy the server sees its socket and the worker sees TCP, so they would not agree on which.
    """
    shop.connect(user=shop.user, password=shop.password).close()
    return {"unix_socket": "", "host": "127.0.0.1", "port": str(proxy.port)}


@pytest.fixture
def own_server() -> Iterator[MariaDbServer]:
    """A server that the test may kill."""
    with MariaDbServer(options=("--max-allowed-packet=64M",)) as server:
        yield server


@pytest.fixture
def own_shop(own_server: MariaDbServer, make_shop: Callable[..., Shop], api: FakeZithara) -> Shop:
    shop = make_shop(own_server)
    shop.configure_webhook(client_id=api.client_id, client_secret=api.client_secret, webhook_url=api.webhook_url)
    return shop


# --- workers ----------------------------------------------------------------------------------------------------------


def test_what_a_killed_worker_held_is_delivered_by_another_after_its_lease(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    first, second = shop.publish_order("1"), shop.publish_order("1", is_update=True)
    never = threading.Event()
    api.responder = first_answer_held(never)
    config = worker_config(**SHORT_LEASE)
    with WorkerProcess(config, "consume", TOPIC_ORDER) as killed:
        api.wait_for(1)
        killed.kill()
    assert shop.row(first.relation_id).status == Status.IN_PROGRESS
    with WorkerProcess(config, "consume", TOPIC_ORDER) as worker:
        eventually(lambda: shop.statuses() == [4, 4], within=15)
        worker.terminate()
        assert worker.wait() == 0
    queue = shop.row(first.relation_id).queue
    assert keys(api) == [f"{queue}-{first.message_id}"] * 2 + [f"{queue}-{second.message_id}"]
    assert [row.number_of_trials for row in shop.rows()] == [1, 0], "a death counts as an attempt of the head alone"
    assert groups_left(shop) == 0


def test_a_worker_that_was_stopped_for_longer_than_its_lease_neither_settles_nor_sends(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    shop.publish_order("1")
    shop.publish_order("1", is_update=True)
    for increment_id in ("2", "3", "4"):
        shop.publish_order(increment_id)
    gate = threading.Event()
    api.responder = first_answer_held(gate)
    config = worker_config(**SHORT_LEASE)
    with WorkerProcess(config, "consume", TOPIC_ORDER) as stopped:
        api.wait_for(1)
        eventually(lambda: shop.statuses() == [3, 2, 3, 3, 3])
        stopped.send_signal(signal.SIGSTOP)
        with WorkerProcess(config, "consume", TOPIC_ORDER) as worker:
            eventually(lambda: shop.statuses() == [4] * 5, within=20)
            worker.terminate()
            assert worker.wait() == 0
        before = shop.rows()
        gate.set()
        stopped.send_signal(signal.SIGCONT)
        eventually(lambda: sum(log.get("event") == "settle_lost" for log in stopped.logs) == 4, within=15)
        stopped.terminate()
        assert stopped.wait() == 0
    assert shop.rows() == before, "what another worker settled stays as that one wrote it"
    sent = Counter(keys(api))
    assert sorted(sent.values()) == [1, 1, 1, 1, 2], "only the request that was under way was sent twice"
    assert keys(api)[0] == max(sent, key=lambda key: sent[key])
    assert groups_left(shop) == 0


# --- the database -----------------------------------------------------------------------------------------------------


def test_a_database_that_is_killed_during_a_delivery_costs_neither_message_nor_duplicate(
    own_server: MariaDbServer, own_shop: Shop, api: FakeZithara, tmp_path: Path
) -> None:
    own_shop.publish_order("1")
    own_shop.publish_order("1", is_update=True)
    gate = threading.Event()
    api.responder = first_answer_held(gate)
    config = write_config(tmp_path / "worker.conf", own_shop, api, {"metrics": {"listen": ""}, **QUICK})
    with WorkerProcess(config, "consume", TOPIC_ORDER) as worker:
        api.wait_for(1)
        own_server.kill()
        gate.set()
        worker.wait_for_log(event="database_away")
        own_server.start()
        eventually(lambda: own_shop.statuses() == [4, 4], within=20)
        worker.terminate()
        assert worker.wait() == 0
    assert len(keys(api)) == len(set(keys(api))) == 2
    assert groups_left(own_shop) == 0


@pytest.mark.parametrize("where", list(Cut))
@pytest.mark.parametrize(
    ("step", "statement"), [("claim", "SET status = 3, updated_at = NOW()"), ("settle", "SET status = 4")]
)
def test_a_connection_cut_at_a_commit_costs_neither_message_nor_duplicate(
    shop: Shop, api: FakeZithara, worker_config: Config, step: str, statement: str, where: Cut
) -> None:
    with TcpProxy(shop.server.socket_path) as proxy:
        config = worker_config(database=through(proxy, shop), **QUICK)
        with WorkerProcess(config, "consume", TOPIC_ORDER) as worker:
            worker.wait_for_log(event="started")
            proxy.cut_at_commit(of=statement, where=where)
            with shop.transaction() as publisher:
                publisher.publish_order("1")
                publisher.publish_order("1", is_update=True)
                publisher.publish_order("2")
            eventually(lambda: shop.statuses() == [4, 4, 4], within=20)
            assert proxy.was_cut.is_set()
            worker.terminate()
            assert worker.wait() == 0
    assert sorted(Counter(keys(api)).values()) == [1, 1, 1]
    assert [row.number_of_trials for row in shop.rows()] == [0, 0, 0]
    assert groups_left(shop) == 0


def test_a_half_open_connection_is_given_up_and_replaced(
    shop: Shop, api: FakeZithara, worker_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "ANSWER_TIMEOUT", 1)
    with TcpProxy(shop.server.socket_path) as proxy:
        config = worker_config(database=through(proxy, shop), **QUICK)
        stop = threading.Event()
        gate = threading.Event()
        api.responder = first_answer_held(gate)
        worker = Worker(configure(config, {}, {}))
        running = threading.Thread(target=worker.run, args=([TOPIC_ORDER],), kwargs={"stop": stop})
        running.start()
        try:
            shop.publish_order("1")
            api.wait_for(1)
            proxy.fall_silent()
            gate.set()
            assert proxy.has_swallowed.wait(5)
            shop.publish_order("1", is_update=True)
            eventually(lambda: shop.statuses() == [4, 4], within=20)
        finally:
            stop.set()
            running.join()
    assert len(keys(api)) == len(set(keys(api))) == 2
    assert groups_left(shop) == 0


@pytest.mark.parametrize("held_up", ["queue_poison_pill", "SET lease_until"], ids=["polls", "renewals"])
def test_statements_held_up_for_longer_than_a_lease_cost_neither_message_nor_duplicate(
    shop: Shop, api: FakeZithara, worker_config: Config, held_up: str
) -> None:
    """A worker that looks for expired leases then finds its own: that of the request that is under way all the time."""
    gate = threading.Event()
    api.responder = first_answer_held(gate)
    with TcpProxy(shop.server.socket_path) as proxy:
        worker = {"lease": "2", "poll_interval": "0.05", "concurrency": "4"}
        config = worker_config(database=through(proxy, shop), worker=worker)
        with WorkerProcess(config, "consume", TOPIC_ORDER) as process:
            shop.publish_order("first")
            api.wait_for(1)
            proxy.delay(of=held_up, seconds=2.7, times=2)
            for number in range(60):
                shop.publish_order(f"N{number % 40}")
            if held_up == "SET lease_until":
                expired = "SELECT 1 FROM {prefix}zithara_message_group WHERE lease_until < NOW(3)"
                eventually(lambda: shop.query(expired), within=20)
            eventually(lambda: proxy.delays_left == 0 and shop.status_counts() == {3: 1, 4: 60}, within=60)
            gate.set()
            eventually(lambda: shop.statuses() == [4] * 61, within=30)
            process.terminate()
            assert process.wait() == 0
    assert len(keys(api)) == len(set(keys(api))) == 61
    assert {row.number_of_trials for row in shop.rows()} == {0}
    assert groups_left(shop) == 0


def test_a_database_that_turns_read_only_is_waited_for(shop: Shop, api: FakeZithara, worker_config: Config) -> None:
    """As after a failover, or when a disk is full: the worker's user has no SUPER privilege."""
    gate = threading.Event()
    api.responder = first_answer_held(gate)
    shop.publish_order("1")
    with WorkerProcess(worker_config(**QUICK), "consume", TOPIC_ORDER) as worker:
        api.wait_for(1)
        shop.query("SET GLOBAL read_only = 1")
        try:
            gate.set()
            told = worker.wait_for_log(event="database_away")
            assert "read" in told["detail"].lower()
            assert shop.statuses() == [3]
        finally:
            shop.query("SET GLOBAL read_only = 0")
        shop.publish_order("1", is_update=True)
        eventually(lambda: shop.statuses() == [4, 4], within=20)
        worker.terminate()
        assert worker.wait() == 0
    assert len(keys(api)) == len(set(keys(api))) == 2


def test_a_lock_wait_timeout_is_survived(shop: Shop, api: FakeZithara, worker_config: Config) -> None:
    def lock_waits() -> int:
        return int(shop.query("SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_waits'")[0][1])

    gate = threading.Event()
    api.responder = first_answer_held(gate)
    order = shop.publish_order("1")
    with WorkerProcess(worker_config(**QUICK), "consume", TOPIC_ORDER) as worker:
        api.wait_for(1)
        with closing(shop.connect(autocommit=False)) as administrator, administrator.cursor() as cursor:
            cursor.execute("SELECT * FROM queue_message_status WHERE id = %s FOR UPDATE", (order.relation_id,))
            waits = lock_waits()
            gate.set()
            # The second wait begins when the first one has timed out.
            eventually(lambda: lock_waits() >= waits + 2, within=20)
        eventually(lambda: shop.statuses() == [4], within=20)
        worker.terminate()
        assert worker.wait() == 0
    assert len(keys(api)) == 1
    assert groups_left(shop) == 0


def test_a_body_of_20_mb_is_delivered_and_one_beyond_max_allowed_packet_stands_in_nobodys_way(
    own_shop: Shop, api: FakeZithara, tmp_path: Path
) -> None:
    large = stored_body(examples.order("1", customer_firstname="A" * 20_000_000))
    config = write_config(tmp_path / "worker.conf", own_shop, api, {"metrics": {"listen": ""}, **QUICK})
    own_shop.publish_body(TOPIC_ORDER, large)
    with WorkerProcess(config, "consume", TOPIC_ORDER, "--stop-when-empty") as worker:
        assert worker.wait(within=60) == 0
    assert own_shop.statuses() == [4]
    assert len(api.requests()[0].body) > 20_000_000
    own_shop.publish_body(TOPIC_ORDER, large)
    own_shop.publish_order("2")
    own_shop.query("SET GLOBAL max_allowed_packet = 16777216")
    with WorkerProcess(config, "consume", TOPIC_ORDER, "--stop-when-empty") as worker:
        assert worker.wait(within=60) == 0
    assert own_shop.statuses() == [4, 6, 4]
    assert own_shop.query("SELECT reason_code FROM {prefix}zithara_delivery_failure") == [("body_too_large",)]
