"""The running command shows itself: metrics, health and page, from its start, through a reload, to its end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.processes import SHORT_INTERVALS, WorkerProcess
from support.waiting import eventually

from zithara_worker.commands.status import report
from zithara_worker.database.session import Database
from zithara_worker.monitor.conditions import conditions
from zithara_worker.monitor.fleet import read_fleet
from zithara_worker.sandbox.api import FakeZithara
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER, TOPICS

ANYWHERE = {"listen": "127.0.0.1:0"}


def address_of(worker: WorkerProcess) -> str:
    return str(worker.wait_for_log(event="listening")["address"])


def metric(address: str, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(httpx.get(f"http://{address}/metrics").text):
        for sample in family.samples:
            if sample.name == f"zithara_worker_{name}" and labels.items() <= sample.labels.items():
                return float(sample.value)
    return None


def test_worker_shows_what_it_has_done(shop: Shop, worker_config: Callable[..., Path]) -> None:
    shop.publish_order("000000031")
    shop.publish_body(TOPIC_ORDER, "no json")
    with WorkerProcess(worker_config(metrics=ANYWHERE), "consume", "--all", environment=SHORT_INTERVALS) as worker:
        address = address_of(worker)
        worker.wait_for_log(event="delivered")
        worker.wait_for_log(event="failed")
        eventually(lambda: metric(address, "deliveries_total", topic=TOPIC_ORDER, outcome="delivered") == 1.0)
        assert metric(address, "failures_total", topic=TOPIC_ORDER) == 1.0
        assert metric(address, "token_refreshes_total") == 1.0
        assert metric(address, "api_response_seconds_count", endpoint="POST /order", status_class="2xx") == 1.0
        assert metric(address, "ready") == metric(address, "database_up") == 1.0
        # Counted by a thread of its own, at intervals.
        eventually(lambda: metric(address, "queue_messages", topic=TOPIC_ORDER, status="new") == 0.0, within=15)
        eventually(lambda: shop.query("SELECT metrics_address FROM {prefix}zithara_worker") == [(address,)])
        answer = httpx.get(f"http://{address}/healthz")
        assert (answer.status_code, answer.json()["ready"]) == (200, True)
        assert (answer.json()["pid"], answer.json()["topics"]) == (worker.pid, list(TOPICS))
        page = httpx.get(f"http://{address}/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in page.headers["content-security-policy"] and TOPIC_ORDER in page.text
        worker.terminate()
        assert worker.wait() == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{address}/healthz")


def test_each_process_shows_the_topics_of_all(shop: Shop, worker_config: Callable[..., Path]) -> None:
    """A process for each topic, as the package has it, and nobody serves the orders."""
    shop.publish_order("000000034")
    with WorkerProcess(worker_config(metrics=ANYWHERE), "consume", TOPIC_CART, environment=SHORT_INTERVALS) as worker:
        address = address_of(worker)
        eventually(lambda: metric(address, "queue_messages", topic=TOPIC_ORDER, status="new") == 1.0)
        eventually(lambda: metric(address, "living_workers", topic=TOPIC_CART) == 1.0, within=15)
        assert metric(address, "living_workers", topic=TOPIC_ORDER) == 0.0
        assert metric(address, "topic_paused", topic=TOPIC_ORDER) == 0.0
        page = httpx.get(f"http://{address}/").text
        assert f"no living worker serves {TOPIC_ORDER}" in page and 'class="good"' not in page
        assert f"no living worker serves {TOPIC_CART}" not in page


def test_reload_keeps_port_and_counters(shop: Shop, worker_config: Callable[..., Path]) -> None:
    shop.publish_order("000000032")
    with WorkerProcess(worker_config(metrics=ANYWHERE), "consume", "--all") as worker:
        address = address_of(worker)
        worker.wait_for_log(event="delivered")
        worker.send_signal(signal.SIGHUP)
        worker.wait_for_log(event="reloaded")
        shop.publish_order("000000033")
        eventually(lambda: metric(address, "deliveries_total", topic=TOPIC_ORDER, outcome="delivered") == 2.0)
        assert sum(record.get("event") == "listening" for record in worker.logs) == 1
        assert metric(address, "in_flight_messages", topic=TOPIC_ORDER) == 0.0


def test_second_worker_takes_the_next_port(shop: Shop, worker_config: Callable[..., Path]) -> None:
    with WorkerProcess(worker_config(metrics=ANYWHERE), "consume", "--all") as first:
        taken = address_of(first)
        with WorkerProcess(worker_config(metrics={"listen": taken}), "consume", "--all") as second:
            assert address_of(second) != taken
            assert httpx.get(f"http://{address_of(second)}/healthz/live").status_code == 200


def test_worker_without_its_database_is_live_but_not_ready(worker_config: Callable[..., Path], tmp_path: Path) -> None:
    config = worker_config(metrics=ANYWHERE, database={"unix_socket": str(tmp_path / "none.sock")})
    with WorkerProcess(config, "consume", "--all") as worker:
        address = address_of(worker)
        answer = httpx.get(f"http://{address}/healthz")
        assert answer.status_code == 503 and "database" in answer.json()["reasons"][0]
        assert httpx.get(f"http://{address}/healthz/live").status_code == 200
        assert metric(address, "database_up") == 0.0
        assert "the database is not available yet" in httpx.get(f"http://{address}/").text


def test_worker_whose_api_is_down_says_so(shop: Shop, api: FakeZithara, worker_config: Callable[..., Path]) -> None:
    api.stop()
    for number in range(8):
        shop.publish_order(f"00000004{number}")
    with WorkerProcess(worker_config(metrics=ANYWHERE), "consume", TOPIC_ORDER) as worker:
        address = address_of(worker)
        worker.wait_for_log(event="breaker_opened")
        eventually(lambda: httpx.get(f"http://{address}/healthz").status_code == 503)
        assert "API DOWN: " in httpx.get(f"http://{address}/healthz").text
        assert metric(address, "breaker_state", target="api", state="closed") == 0.0


def test_worker_that_may_not_go_on_unaudited_says_so_on_every_host(
    shop: Shop, database: Database, worker_config: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "audit"
    wanted = {"audit_file": str(folder / "audit.jsonl"), "audit_required": "true"}
    with WorkerProcess(
        worker_config(metrics=ANYWHERE, logging=wanted), "consume", "--all", environment=SHORT_INTERVALS
    ) as worker:
        address = address_of(worker)

        def seen() -> str:
            return " ".join(str(each) for each in conditions(read_fleet(database, {})))

        told = "the audit file cannot be written (No such file or directory) and [logging] audit_required is set: free"
        eventually(
            lambda: told in seen() and f"nothing is taken by worker {socket.gethostname()} " in seen(), within=15
        )
        assert told in httpx.get(f"http://{address}/healthz").text
        (row,) = read_fleet(database, {}).workers
        assert "audit file unwritable (No such file" in " ".join(report(read_fleet(database, {}), width=80))
        assert row.audit_problem == "No such file or directory" and "audit_problem" not in row.targets
        folder.mkdir()
        eventually(lambda: seen() == "", within=15)


def test_without_prometheus_client_only_metrics_are_missing(
    shop: Shop, worker_config: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "prometheus_client.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'prometheus_client'\")\n"
    )
    config = worker_config(metrics=ANYWHERE)
    with WorkerProcess(config, "consume", "--all", environment={"PYTHONPATH": str(tmp_path)}) as worker:
        address = address_of(worker)
        answer = httpx.get(f"http://{address}/metrics")
        assert answer.status_code == 501 and answer.text.count("\n") == 1
        assert "python3-prometheus-client" in answer.text
        worker.wait_for_log(event="started")
        assert eventually(lambda: httpx.get(f"http://{address}/healthz").status_code == 200)
        assert httpx.get(f"http://{address}/").status_code == 200


def test_port_that_cannot_be_had_does_not_stop_deliveries(shop: Shop, worker_config: Callable[..., Path]) -> None:
    shop.publish_order("000000051")
    config = worker_config(metrics={"listen": "192.0.2.1:9209"})  # TEST-NET-1: no address of any machine
    with WorkerProcess(config, "consume", "--all", "--stop-when-empty") as worker:
        assert worker.wait_for_log(event="listen_failed")["level"] == "ERROR"
        assert worker.wait() == 0
    assert shop.statuses() == [4]


def test_switched_off_listener_costs_no_import() -> None:
    unwanted = "('prometheus', 'zithara_worker.monitor.page')"
    program = (
        "import sys, zithara_worker.worker.worker; "
        f"print([name for name in sys.modules if name.startswith({unwanted})])"
    )
    seen = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(seen.stdout.replace("'", '"')) == []
