"""A configuration that changes while a worker runs: what can be used is taken, what cannot leaves the one in force."""

from __future__ import annotations

import json
import re
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.processes import SHORT_INTERVALS, WorkerProcess
from support.waiting import eventually

from zithara_worker.sandbox.api import FakeZithara, Reply
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.session import write_config
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_ORDER

Config = Callable[..., Path]
QUICK = {"worker": {"poll_interval": "0.05"}}
#: In the form in which Magento stores what it encrypts, with a key that no shop has.
UNREADABLE = "7:3:" + "c2VjcmV0" * 10


@contextmanager
def at_work(config: Path, *arguments: str) -> Iterator[WorkerProcess]:
    with WorkerProcess(config, "consume", *(arguments or (TOPIC_ORDER,)), environment=SHORT_INTERVALS) as worker:
        worker.wait_for_log(event="started")
        yield worker
        worker.terminate()
        assert worker.wait() == 0


def delivers(shop: Shop, api: FakeZithara, order: str) -> None:
    shop.publish_order(order)
    api.wait_for(len(api.requests("/v1/order")) + 1, path="/v1/order")
    eventually(lambda: shop.statuses(TOPIC_ORDER)[-1] == 4)


def break_value(config: Path, etc: Path) -> str:
    config.write_text(config.read_text().replace("poll_interval = 0.05", "poll_interval = never"))
    return "poll_interval"


def break_ca_file(config: Path, etc: Path) -> str:
    no_certificate = config.with_name("ca.pem")
    no_certificate.write_text("no certificate")
    config.write_text(config.read_text().replace("[zithara]", f"[zithara]\nca_file = {no_certificate}"))
    return "ca_file"


def break_file(config: Path, etc: Path) -> str:
    config.unlink()
    return "there is no configuration file"


def break_log_file(config: Path, etc: Path) -> str:
    config.write_text(config.read_text() + "[logging]\nfile = /does/not/exist/worker.log\n")
    return "/does/not/exist"


def break_audit_file(config: Path, etc: Path) -> str:
    config.write_text(config.read_text() + "[logging]\naudit_file = /does/not/exist/audit.log\naudit_required = true\n")
    return "audit_file"


def break_base_url(config: Path, etc: Path) -> str:
    # The settings take it, and only who would send to it finds that the host is no valid name.
    config.write_text(re.sub("base_url = .*", "base_url = https://xn--zzzz.example/v1", config.read_text()))
    return "URL"


def break_queue(config: Path, etc: Path) -> str:
    config.write_text(config.read_text() + "[queues]\nzithara.order.events = no_such_queue\n")
    return "no_such_queue"


def break_database(config: Path, etc: Path) -> str:
    config.write_text(config.read_text().replace("mysqld.sock", "none.sock").replace(".sock", "x.sock"))
    return "database not available"


def break_env_php(config: Path, etc: Path) -> str:
    (etc / "env.php").write_text("<?php return ['db' => ['connection' =>")
    return "env.php"


@pytest.mark.parametrize(
    "damage",
    [
        break_value,
        break_ca_file,
        break_file,
        break_log_file,
        break_audit_file,
        break_base_url,
        break_queue,
        break_database,
        break_env_php,
    ],
)
def test_what_cannot_be_used_leaves_the_configuration_in_force_without_a_pause(
    shop: Shop, api: FakeZithara, worker_config: Config, tmp_path: Path, damage: Callable[[Path, Path], str]
) -> None:
    etc = tmp_path / "app" / "etc"
    etc.mkdir(parents=True)
    (etc / "env.php").write_text("<?php return [];")
    config = worker_config(**QUICK, magento={"root": str(tmp_path)})
    gate = threading.Event()
    api.responder = lambda request: Reply.of(200, {"status": 200}).held(gate) if "order" in request.path else None
    with at_work(config) as worker:
        shop.publish_order("IN-FLIGHT")
        api.wait_for(1, path="/v1/order")
        named = damage(config, etc)
        worker.send_signal(signal.SIGHUP)
        assert named in worker.wait_for_log(event="reload_failed")["detail"]
        assert shop.statuses() == [3], "what is in flight has not been touched"
        gate.set()
        delivers(shop, api, "STILL")
        assert not [record for record in worker.logs if record.get("event") in ("reloaded", "stopping")]


def test_a_reload_that_failed_is_made_up_for_once_the_configuration_can_be_used(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    config = worker_config(**QUICK, metrics={"listen": "127.0.0.1:0"})
    good = config.read_text()
    with at_work(config) as worker:
        address = worker.wait_for_log(event="listening")["address"]

        def health() -> dict[str, object]:
            with urllib.request.urlopen(f"http://{address}/healthz") as answer:
                told: dict[str, object] = json.load(answer)
            return told

        config.write_text(good.replace("0.05", "never"))
        worker.send_signal(signal.SIGHUP)
        worker.wait_for_log(event="reload_failed")
        assert any("cannot be used" in note and "poll_interval" in note for note in health()["notes"])
        config.write_text(good)
        worker.wait_for_log(event="reloaded", within=15)
        eventually(lambda: sum(record.get("event") == "started" for record in worker.logs) == 2)
        assert health()["notes"] == []


def test_an_undecryptable_secret_saved_in_the_admin_leaves_the_one_in_force(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    with at_work(worker_config(**QUICK)) as worker:
        shop.query("UPDATE {prefix}zithara_webhook_config SET client_secret = %s", (UNREADABLE,))
        detail = worker.wait_for_log(event="reload_failed", within=15)["detail"]
        assert "client_secret" in detail and UNREADABLE not in detail
        delivers(shop, api, "STILL")
        shop.query("UPDATE {prefix}zithara_webhook_config SET client_secret = %s", (api.client_secret,))
        worker.wait_for_log(event="reloaded", within=15)
        delivers(shop, api, "AGAIN")


def test_where_nothing_is_in_force_yet_an_undecryptable_secret_is_a_configuration_error(
    shop: Shop, worker_config: Config
) -> None:
    shop.query("UPDATE {prefix}zithara_webhook_config SET client_secret = %s", (UNREADABLE,))
    with WorkerProcess(worker_config(), "consume", TOPIC_ORDER) as worker:
        assert worker.wait() == 78


def test_a_rotated_password_is_waited_for_and_taken_from_its_file(shop: Shop, api: FakeZithara, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text(shop.password)
    password.chmod(0o600)
    new = tmp_path / "new"
    new.write_text("rotated")
    new.chmod(0o600)
    config = write_config(tmp_path / "w.conf", shop, api, {**QUICK, "metrics": {"listen": ""}})
    config.write_text(config.read_text().replace(f"password = {shop.password}", f"password_file = {password}"))
    gate = threading.Event()
    api.responder = lambda request: Reply.of(200, {"status": 200}).held(gate) if "order" in request.path else None
    with at_work(config) as worker:
        shop.publish_order("IN-FLIGHT")
        api.wait_for(1, path="/v1/order")
        rotate(shop, "rotated")
        eventually(
            lambda: any("correct [database] user and password" in str(record.get("detail")) for record in worker.logs)
        )
        gate.set()
        new.replace(password)
        worker.wait_for_log(event="reloaded", within=15)
        eventually(lambda: shop.statuses() == [4])
        delivers(shop, api, "AFTER")
        assert len(api.requests("/v1/order")) == 2, "what was in flight is settled, not sent again"
        assert not [record for record in worker.logs if record.get("event") == "reload_failed"]


def rotate(shop: Shop, password: str) -> None:
    """The database's administrator changes the password; sessions that are open end."""
    shop.query(f"ALTER USER '{shop.user}'@'%%' IDENTIFIED BY %s", (password,))
    for (connection,) in shop.query("SELECT id FROM information_schema.processlist WHERE user = %s", (shop.user,)):
        shop.query("KILL %s", (connection,))


def test_a_database_that_refuses_the_user_at_the_start_is_a_configuration_error(
    shop: Shop, worker_config: Config
) -> None:
    with WorkerProcess(worker_config(database={"password": "wrong"}), "consume", TOPIC_ORDER) as worker:
        assert worker.wait() == 78
        assert "correct [database] user and password" in worker.output


def test_a_reload_while_waiting_for_the_database_is_honoured_at_once(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    config = worker_config(**QUICK)
    good = config.read_text()
    socket = shop.worker_settings["unix_socket"]
    config.write_text(good.replace(socket, "/does/not/exist.sock"))
    with WorkerProcess(config, "consume", TOPIC_ORDER) as worker:
        worker.wait_for_log(event="database_away")
        config.write_text("nonsense")
        worker.send_signal(signal.SIGHUP)
        worker.wait_for_log(event="reload_failed")
        config.write_text(good)
        worker.send_signal(signal.SIGHUP)
        worker.wait_for_log(event="started")
        worker.terminate()
        assert worker.wait() == 0


def test_a_running_worker_whose_database_is_gone_moves_to_another_on_sighup(
    make_shop: Callable[..., Shop], api: FakeZithara, tmp_path: Path
) -> None:
    with MariaDbServer() as server, Shop(server) as old:
        new = make_shop()
        for shop in (old, new):
            shop.configure_webhook(client_id=api.client_id, client_secret=api.client_secret)
        config = write_config(tmp_path / "w.conf", old, api, {**QUICK, "metrics": {"listen": ""}})
        with WorkerProcess(config, "consume", TOPIC_ORDER) as worker:
            worker.wait_for_log(event="started")
            server.kill()
            worker.wait_for_log(event="database_away")
            write_config(config, new, api, {**QUICK, "metrics": {"listen": ""}})
            worker.send_signal(signal.SIGHUP)
            worker.wait_for_log(event="reloaded")
            delivers(new, api, "1")
            worker.terminate()
            assert worker.wait() == 0


def test_a_poison_pill_that_changes_during_a_reload_ends_the_worker(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    shop.change_poison_pill()
    gate = threading.Event()
    api.responder = lambda request: Reply.of(200, {"status": 200}).held(gate) if "order" in request.path else None
    with WorkerProcess(worker_config(**QUICK), "consume", TOPIC_ORDER) as worker:
        worker.wait_for_log(event="started")
        shop.publish_order("IN-FLIGHT")
        api.wait_for(1, path="/v1/order")
        worker.send_signal(signal.SIGHUP)
        worker.wait_for_log(event="stopping")
        shop.change_poison_pill()
        gate.set()
        assert worker.wait() == 0
        assert worker.wait_for_log(event="stopped")["why"] == "poison pill"


def test_new_messages_are_kept_within_a_lifetime_that_env_php_locks(
    shop: Shop, worker_config: Config, tmp_path: Path
) -> None:
    etc = tmp_path / "app" / "etc"
    etc.mkdir(parents=True)
    locked = "'system' => ['default' => ['system' => ['mysqlmq' => ['new_messages_lifetime' => '60']]]]"
    (etc / "env.php").write_text(f"<?php return [{locked}];")
    shop.set_config("zithara_webhook/general/enabled", "0")
    shop.publish_order("OLD")
    shop.make_older(minutes=40)
    with at_work(worker_config(**QUICK, magento={"root": str(tmp_path)})) as worker:
        worker.wait_for_log(event="expiry_guard")
    assert shop.run_cleanup_cron(new_messages_lifetime=30)["marked"] == 0
