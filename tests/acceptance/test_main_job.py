"""The main job, from outside: the installed command, a real MariaDB, a real HTTP server, real signals."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import SHORT_INTERVALS, WorkerProcess
from support.waiting import eventually

from zithara_worker.database import schema
from zithara_worker.sandbox.api import FakeZithara, RecordedRequest, Reply, in_turn
from zithara_worker.sandbox.session import worker_command
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER, TOPICS

Config = Callable[..., Path]
QUICK = {"worker": {"poll_interval": "0.05"}}


def run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [worker_command(), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=30,
        check=False,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **environment},
    )


def test_messages_of_all_topics_arrive_and_are_complete(shop: Shop, api: FakeZithara, worker_config: Config) -> None:
    shop.publish_samples()
    with WorkerProcess(worker_config(**QUICK), "consume", "--all", "--stop-when-empty") as worker:
        assert worker.wait() == 0
    assert set(shop.statuses()) == {4}
    assert {request.path.rpartition("/")[2] for request in api.requests()} >= {"order", "customer", "cart", "hook"}
    assert shop.query("SELECT COUNT(*) FROM zithara_message_group") == [(0,)]
    assert shop.query("SELECT topics, in_flight FROM zithara_worker") == [("", 0)], "it serves nothing any more"


def test_a_table_prefix_is_applied_everywhere(make_shop: Callable[..., Shop], api: FakeZithara, tmp_path: Path) -> None:
    from zithara_worker.sandbox.session import write_config

    shop = make_shop(prefix="m2_")
    shop.configure_webhook(client_id=api.client_id, client_secret=api.client_secret, webhook_url=api.webhook_url)
    shop.publish_samples()
    config = write_config(tmp_path / "worker.conf", shop, api, {"metrics": {"listen": ""}})
    with WorkerProcess(config, "consume", "--all", "--stop-when-empty") as worker:
        assert worker.wait() == 0
    assert set(shop.statuses()) == {4}


def test_requests_of_one_order_arrive_in_order_and_one_at_a_time(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    for version in range(20):
        for order in ("A", "B", "C"):
            shop.publish_order(order, grand_total=str(version))
    with WorkerProcess(worker_config(**QUICK), "consume", TOPIC_ORDER, "--stop-when-empty") as worker:
        assert worker.wait() == 0
    for order in ("A", "B", "C"):
        totals = [
            request.json["order"]["current_total_price"]
            for request in api.requests()
            if request.path.endswith("/order") and request.json["order"]["platform_order_id"] == order
        ]
        assert totals == list(range(20))


def test_a_failing_order_delays_only_its_own_group(shop: Shop, api: FakeZithara, worker_config: Config) -> None:
    shop.publish_order("BAD", grand_total="1")
    shop.publish_order("BAD", grand_total="2")
    for number in range(10):
        shop.publish_order(f"GOOD{number}")

    def refuse_first(request: RecordedRequest) -> Reply | None:
        bad = request.path == "/v1/order" and request.json["order"]["platform_order_id"] == "BAD"
        return Reply.error(503) if bad else None

    api.responder = refuse_first
    with WorkerProcess(worker_config(**QUICK), "consume", TOPIC_ORDER, "--stop-when-empty") as worker:
        assert worker.wait() == 0
    rows = shop.rows()
    assert [(row.status, row.number_of_trials) for row in rows[:2]] == [(5, 1), (2, 0)]
    assert {row.status for row in rows[2:]} == {4}
    assert shop.query("SELECT attempts, reason_code, http_status FROM zithara_delivery_failure") == [
        (1, "http_503", 503)
    ]


def test_a_message_that_cannot_be_delivered_ends_in_error_with_its_reason(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    shop.publish_body(TOPIC_ORDER, '"no json"')
    shop.publish_order("X")
    api.responder = in_turn(Reply.error(422, "no such store"), path="/v1/order")
    with WorkerProcess(worker_config(**QUICK), "consume", TOPIC_ORDER, "--stop-when-empty") as worker:
        assert worker.wait() == 0
    assert [(row.status, row.number_of_trials) for row in shop.rows()] == [(6, 1), (6, 1)]
    failures = shop.query("SELECT reason_code, detail FROM zithara_delivery_failure ORDER BY id")
    assert failures[0][0] == "not_json"
    assert failures[1][0] == "http_422"
    assert "no such store" in failures[1][1]


def test_max_messages_is_exact_under_concurrency(shop: Shop, api: FakeZithara, worker_config: Config) -> None:
    for number in range(40):
        shop.publish_order(f"N{number}")
    with WorkerProcess(worker_config(**QUICK), "consume", TOPIC_ORDER, "--max-messages", "17") as worker:
        assert worker.wait() == 0
    assert shop.status_counts() == {4: 17, 2: 23}
    assert len(api.requests("/v1/order")) == 17


def test_sigterm_finishes_what_is_in_flight_and_puts_the_rest_back_untouched(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    for number in range(30):
        shop.publish_order(f"N{number}")
    shop.make_older(minutes=90)
    before = {row.message_id: (row.status, row.number_of_trials, row.updated_at) for row in shop.rows()}
    gate = threading.Event()
    api.responder = lambda request: Reply.of(200, {"status": 200}).held(gate) if "order" in request.path else None
    with WorkerProcess(worker_config(worker={"concurrency": "4"}), "consume", TOPIC_ORDER) as worker:
        api.wait_for(4, path="/v1/order")
        worker.terminate()
        eventually(lambda: shop.status_counts().get(2, 0) == 26)
        gate.set()
        assert worker.wait() == 0
    assert shop.status_counts() == {4: 4, 2: 26}
    for row in shop.rows():
        if row.status == 2:
            assert (row.status, row.number_of_trials, row.updated_at) == before[row.message_id]


def test_a_second_signal_exits_at_once(shop: Shop, api: FakeZithara, worker_config: Config) -> None:
    shop.publish_order("SLOW")
    api.responder = lambda request: Reply.never() if request.path.endswith("/order") else None
    with WorkerProcess(worker_config(), "consume", TOPIC_ORDER) as worker:
        api.wait_for(1, path="/v1/order")
        worker.send_signal(signal.SIGINT)
        worker.wait_for_log(event="stopping")
        worker.send_signal(signal.SIGINT)
        assert worker.wait(within=5) == 0
    assert shop.statuses() == [3], "its lease brings it back"


def test_sighup_reads_the_configuration_again(shop: Shop, api: FakeZithara, worker_config: Config) -> None:
    config = worker_config(logging={"level": "INFO"})
    with WorkerProcess(config, "consume", TOPIC_ORDER) as worker:
        worker.wait_for_log(event="started")
        config.write_text(config.read_text().replace("level = INFO", "level = nonsense"), encoding="utf-8")
        worker.send_signal(signal.SIGHUP)
        assert "level" in worker.wait_for_log(event="reload_failed")["detail"]
        shop.publish_order("STILL")
        api.wait_for(1, path="/v1/order")
        worker.terminate()
        assert worker.wait() == 0


def test_a_paused_topic_and_a_disabled_shop_keep_their_messages(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    shop.query(
        "INSERT INTO zithara_topic_control (topic, paused_by, paused_at, reason) VALUES (%s, 'me', NOW(3), 'test')",
        (TOPIC_CART,),
    )
    shop.publish_cart("1")
    shop.publish_order("1")
    with WorkerProcess(worker_config(**QUICK), "consume", TOPIC_CART, TOPIC_ORDER, "--stop-when-empty") as worker:
        assert worker.wait() == 0
    assert (shop.statuses(TOPIC_CART), shop.statuses(TOPIC_ORDER)) == ([2], [4])
    shop.query("DELETE FROM zithara_topic_control")
    shop.set_config("zithara_webhook/general/enabled", "0")
    config = worker_config(**QUICK)
    with WorkerProcess(config, "consume", TOPIC_CART, environment=SHORT_INTERVALS) as worker:
        worker.wait_for_log(event="shop_disabled")
        told = "WARNING - the shop has switched Zithara off"
        eventually(lambda: told in run("--config", str(config), "check", "cart").stdout, within=15)
        assert shop.statuses(TOPIC_CART) == [2]
        shop.set_config("zithara_webhook/general/enabled", "1")
        worker.wait_for_log(event="shop_enabled")
        eventually(lambda: shop.statuses(TOPIC_CART) == [4])
        eventually(lambda: told not in run("--config", str(config), "check", "cart").stdout, within=15)


def test_a_changed_poison_pill_ends_the_worker_in_order(shop: Shop, worker_config: Config) -> None:
    with WorkerProcess(worker_config(**QUICK), "consume", TOPIC_ORDER) as worker:
        worker.wait_for_log(event="started")
        shop.publish_order("1")
        eventually(lambda: shop.statuses() == [4])
        shop.change_poison_pill()
        assert worker.wait() == 0
        assert worker.wait_for_log(event="stopped")["why"] == "poison pill"


def test_two_workers_share_a_queue_without_sending_anything_twice(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    config = worker_config(**QUICK)
    for number in range(300):
        shop.publish_order(f"N{number % 60}", grand_total=str(number))
    with (
        WorkerProcess(config, "consume", TOPIC_ORDER, "--stop-when-empty") as one,
        WorkerProcess(config, "consume", TOPIC_ORDER, "--stop-when-empty") as two,
    ):
        assert (one.wait(), two.wait()) == (0, 0)
    with WorkerProcess(config, "consume", TOPIC_ORDER, "--stop-when-empty") as last:
        assert last.wait() == 0
    assert shop.status_counts() == {4: 300}
    sent = [request.headers["idempotency-key"] for request in api.requests("/v1/order")]
    assert len(sent) == len(set(sent)) == 300


def test_the_idempotency_key_names_queue_and_message(shop: Shop, api: FakeZithara, worker_config: Config) -> None:
    published = shop.publish_order("1")
    with WorkerProcess(worker_config(), "consume", TOPIC_ORDER, "--stop-when-empty") as worker:
        assert worker.wait() == 0
    (request,) = api.requests("/v1/order")
    assert request.message == f"zithara_order_queue-{published.message_id}"
    assert request.headers["user-agent"].startswith("zithara-worker/")


def test_no_secret_and_no_personal_data_is_logged(shop: Shop, api: FakeZithara, worker_config: Config) -> None:
    shop.publish_order("1", customer_email="person@example.com")
    api.responder = in_turn(Reply.error(422, "person@example.com is not +919876543210"), path="/v1/order")
    config = worker_config(logging={"level": "DEBUG"})
    with WorkerProcess(config, "consume", TOPIC_ORDER, "--stop-when-empty") as worker:
        assert worker.wait() == 0
        told = worker.output + json.dumps(worker.logs)
    assert "http_422" in told
    (request,) = api.requests("/v1/order")
    for secret in (
        api.client_secret,
        shop.password,
        "person@example.com",
        "9876543210",
        request.headers["authorization"],
    ):
        assert secret not in told


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("consume", "zithara.nothing"), 2, "zithara.nothing"),
        (("consume",), 2, "--all"),
        (("--config", "/does/not/exist.conf", "config"), 78, "/does/not/exist.conf"),
        (("consume", "--all", "--concurrency", "0"), 2, "--concurrency"),
    ],
)
def test_wrong_use_gets_one_clear_text_and_its_exit_code(arguments: tuple[str, ...], code: int, named: str) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_a_prefix_that_is_no_identifier_is_refused(tmp_path: Path) -> None:
    done = run("install", "--print", ZITHARA_WORKER_DATABASE_TABLE_PREFIX="m2'; DROP")
    assert done.returncode == 78
    assert "ZITHARA_WORKER_DATABASE_TABLE_PREFIX" in done.stderr


def test_an_upgrade_is_printed_by_itself(worker_config: Config) -> None:
    config = ("--config", str(worker_config()))
    assert run(*config, "install", "--from", "1").returncode == 2
    assert run(*config, "install", "--print", "--from", str(schema.VERSION)).returncode == 2, "there is nothing newer"
    latest = run(*config, "install", "--print", "--from", "2").stdout
    assert "zithara_delivery" in latest and "GRANT" in latest and "ADD COLUMN claim" not in latest
    printed = run(*config, "install", "--print", "--from", "1").stdout
    assert "ADD COLUMN claim" in printed and "GRANT" in printed
    assert "CREATE TABLE IF NOT EXISTS zithara_message_group" not in printed
    assert "ADD COLUMN" not in run(*config, "install", "--print").stdout


def test_a_queue_row_that_is_missing_is_named(shop: Shop, worker_config: Config) -> None:
    shop.query("DELETE FROM queue WHERE name = 'zithara_cart_queue'")
    done = run("--config", str(worker_config()), "consume", "--all", "--stop-when-empty")
    assert done.returncode == 1
    assert "zithara_cart_queue" in done.stderr


def test_preview_turns_stored_bodies_into_requests_line_by_line(plugin_cases: list[object]) -> None:
    bodies = [case for case in plugin_cases if getattr(case, "topic", "") == TOPIC_ORDER]
    lines = "".join(f"{getattr(case, 'body', '')}\n" for case in bodies)
    done = run("preview", TOPIC_ORDER, "--jsonl", stdin=lines)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(bodies)
    assert {key for answer in answers for key in answer} == {"method", "url", "headers", "json", "group", "error"}


def test_every_command_has_help_with_an_example() -> None:
    overview = run("--help").stdout
    assert "consume" in overview
    for name in ("consume", "publish", "preview", "install", "config", "sandbox"):
        assert name in overview
        assert "Example" in run(name, "--help").stdout


def test_the_topics_are_the_modules_four() -> None:
    assert sorted(TOPICS) == [f"zithara.{kind}.events" for kind in ("cart", "customer", "order", "webhook")]


def test_magentos_cleanup_never_deletes_a_paused_week_old_backlog(shop: Shop, worker_config: Config) -> None:
    shop.query(
        "INSERT INTO zithara_topic_control (topic, paused_by, paused_at, reason) VALUES (%s, 'me', NOW(3), 'test')",
        (TOPIC_ORDER,),
    )
    for number in range(30):
        shop.publish_order(f"N{number}")
    for _ in range(2):
        shop.make_older(minutes=7 * 24 * 60 - 30)
        with WorkerProcess(worker_config(**QUICK), "consume", TOPIC_ORDER) as worker:
            assert worker.wait_for_log(event="expiry_guard")["count"] == 30
            worker.terminate()
            assert worker.wait() == 0
        shop.make_older(minutes=60)
        assert shop.run_cleanup_cron()["deleted"] == 0
    assert shop.status_counts() == {2: 30}
    assert shop.query("SELECT COUNT(*) FROM queue_message") == [(30,)]


def test_a_token_that_is_revoked_while_running_is_renewed_without_losing_an_attempt(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    with WorkerProcess(worker_config(**QUICK), "consume", TOPIC_ORDER) as worker:
        shop.publish_order("1")
        eventually(lambda: shop.statuses() == [4])
        api.revoke_tokens()
        shop.publish_order("2")
        eventually(lambda: shop.statuses() == [4, 4])
        worker.terminate()
        assert worker.wait() == 0
    assert {row.number_of_trials for row in shop.rows()} == {0}
    token = shop.query("SELECT access_token, token_expiry > NOW() FROM zithara_webhook_config")
    assert token[0][0]
    assert token[0][1] == 1, "written back for PHP and the other workers"


def test_a_throttled_worker_waits_as_long_as_it_is_asked_to(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    api.responder = in_turn(Reply.too_many_requests(1), path="/v1/order")
    shop.publish_order("1")
    with WorkerProcess(worker_config(**QUICK), "consume", TOPIC_ORDER, "--stop-when-empty") as worker:
        assert worker.wait() == 0
    assert [(row.status, row.number_of_trials) for row in shop.rows()] == [(4, 0)]
    first, second = api.requests("/v1/order")
    assert second.at - first.at >= 0.99
