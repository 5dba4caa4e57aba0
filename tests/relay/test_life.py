"""The installed command `relay`: its signals, exit codes, a second relay, SIGKILL, reload, metrics."""

from __future__ import annotations

import json
import signal
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner
from relay.conftest import Bench
from support.processes import SHORT_INTERVALS, WorkerProcess
from support.waiting import eventually

from zithara_worker.commands import relay as relay_module
from zithara_worker.commands.root import command, main
from zithara_worker.commands.signals import Signals
from zithara_worker.sandbox.session import write_config
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_ORDER

Config = Callable[..., Path]


@pytest.fixture
def config(tmp_path: Path, bench: Bench, api: object) -> Config:
    """Writes a configuration with this [relay], metrics off."""

    def write(relay: Mapping[str, str] | None = None, **sections: Mapping[str, str]) -> Path:
        given = {"relay": {**bench.virtual_host.relay_settings, **(relay or {})}, "metrics": {"listen": ""}, **sections}
        return write_config(tmp_path / "relay.conf", bench.shop, api, given)  # type: ignore[arg-type]  # its address

    return write


@pytest.fixture
def start(config: Config) -> Iterator[Callable[..., WorkerProcess]]:
    with ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(WorkerProcess(config(), "relay", *arguments))


def get(address: str, path: str) -> bytes:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
        return bytes(answer.read())


def test_one_of_two_relays_is_active_and_the_other_follows_when_it_is_killed(
    bench: Bench, start: Callable[..., WorkerProcess]
) -> None:
    first = start("order")
    first.wait_for_log(event="relay_active")
    second = start("--all")
    second.wait_for_log(event="relay_standby", queue="zithara_order_queue")
    bodies = bench.publish(300)
    eventually(lambda: len(bench.stored()) >= 50)
    first.kill()
    # Not to wait for the end of its lease.
    bench.shop.query("UPDATE {prefix}zithara_lock SET lease_until = NOW(3) WHERE name = 'relay:zithara_order_queue'")
    bodies += bench.publish(50, first=300)
    second.wait_for_log(event="relay_active", queue="zithara_order_queue", within=25)
    bench.wait_until_stored(bodies, within=20)
    bench.wait_until_settled()
    second.terminate()
    assert second.wait() == 0
    second.wait_for_log(event="stopped", why="stopped")


def test_relay_that_was_suspended_inserts_nothing_once_another_has_taken_over(
    bench: Bench, start: Callable[..., WorkerProcess]
) -> None:
    """The lock is checked within the transaction."""
    first = start("order")
    bodies = bench.publish(1)
    bench.wait_until_stored(bodies)
    first.send_signal(signal.SIGSTOP)
    bench.shop.query("UPDATE {prefix}zithara_lock SET owner = 'another', lease_until = NOW() + INTERVAL 1 DAY")
    bench.publish(5, first=1)
    first.send_signal(signal.SIGCONT)
    first.wait_for_log(event="relay_lock_lost")
    eventually(lambda: bench.virtual_host.waiting()[TOPIC_ORDER] == 5)
    assert bench.stored() == bodies


def test_reload_health_and_metrics(bench: Bench, config: Config) -> None:
    path = config(metrics={"listen": "127.0.0.1:0"}, relay={"vhost": "nowhere"})
    with WorkerProcess(path, "relay", "order", environment=SHORT_INTERVALS) as relay:
        relay.wait_for_log(event="broker_away")
        relay.wait_for_log(event="relay_active")
        listening = relay.wait_for_log(event="listening")
        address = str(listening["address"]).removeprefix("http://").rstrip("/")
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(address, "/healthz")
        assert "rabbitmqctl set_permissions -p nowhere" in refused.value.read().decode()
        assert json.loads(get(address, "/healthz/live"))["live"]

        config(metrics={"listen": "127.0.0.1:0"}, relay={"prefetch": "many"})
        relay.send_signal(signal.SIGHUP)
        relay.wait_for_log(event="reload_failed")
        config(metrics={"listen": "127.0.0.1:0"})
        relay.wait_for_log(event="reloaded", within=15)
        bodies = bench.publish(3)
        bench.wait_until_stored(bodies)
        eventually(lambda: json.loads(get(address, "/healthz"))["ready"])
        metrics = get(address, "/metrics").decode()
        assert 'zithara_worker_relayed_messages_total{topic="zithara.order.events"} 3.0' in metrics
        assert b"Relays" in eventually(lambda: b"Relays" in get(address, "/") and get(address, "/"), within=15)
        relay.terminate()
        assert relay.wait() == 0


def test_stop_is_obeyed_while_neither_database_nor_rabbitmq_answers(config: Config) -> None:
    path = config(relay={"port": "1"}, database={"unix_socket": "/nowhere.sock"})
    with WorkerProcess(path, "relay", "--all") as relay:
        relay.wait_for_log(event="database_away")
        relay.terminate()
        assert relay.wait() == 0


def test_options_without_topics_are_a_usage_error() -> None:
    assert CliRunner().invoke(command, ["relay"]).exit_code == 2
    assert CliRunner().invoke(command, ["relay", "order", "--all"]).exit_code == 2


@pytest.mark.parametrize("case", ["no pika", "no host"])
def test_configuration_errors_end_with_78(
    case: str, config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(relay={"host": ""} if case == "no host" else None)
    if case == "no pika":
        monkeypatch.setattr(relay_module, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["zithara-worker", "--config", str(path), "relay", "order"])
    with pytest.raises(SystemExit) as ended:
        main(Signals())
    assert ended.value.code == 78
    told = capsys.readouterr().err.splitlines()[-1]
    assert ("python3-pika" if case == "no pika" else "[relay] host") in told


def test_missing_privilege_is_waited_for_and_said(bench: Bench, shop: Shop, config: Config) -> None:
    bench.shop.query(f"REVOKE INSERT (topic_name, body) ON {{prefix}}queue_message FROM '{bench.shop.user}'@'%'")
    bodies = bench.publish(2)
    with WorkerProcess(config(), "relay", "order") as relay:
        away = relay.wait_for_log(event="database_away")
        assert "install --print" in away["detail"]
        # status and doctor say it too: the relay is alive, and is not taken for a dead one.
        told = "SELECT COUNT(*) FROM {prefix}zithara_worker WHERE state LIKE '%\"stopped\"%INSERT command denied%'"
        eventually(lambda: bench.shop.query(told) == [(1,)], within=4)
        bench.shop.grant_publishing()
        bench.wait_until_stored(bodies)
