"""The shop's switch zithara_webhook/general/debug, which makes a running worker log at DEBUG."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from support.processes import SHORT_INTERVALS, WorkerProcess
from support.waiting import eventually

from zithara_worker.sandbox.api import FakeZithara
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_ORDER

Config = Callable[..., Path]
DEBUG = "zithara_webhook/general/debug"
QUICK = {"worker": {"poll_interval": "0.05"}}


def deliver(shop: Shop, worker: WorkerProcess, order: str) -> bool:
    """Whether the request of one more order is in the log, which happens at DEBUG only."""
    before = len(shop.statuses())
    message_id = shop.publish_order(order).message_id
    eventually(lambda: shop.statuses() == [4] * (before + 1))
    worker.wait_for_log(event="delivered", message_id=message_id)
    return any(line.get("event") == "request" and line["message_id"] == message_id for line in worker.logs)


def test_the_shops_debug_switch_is_obeyed_while_running(shop: Shop, api: FakeZithara, worker_config: Config) -> None:
    with WorkerProcess(
        worker_config(**QUICK, logging={"level": "WARNING"}), "consume", TOPIC_ORDER, environment=SHORT_INTERVALS
    ) as worker:
        eventually(lambda: shop.query("SELECT COUNT(*) FROM zithara_worker") == [(1,)])
        shop.set_config(DEBUG, "1")
        worker.wait_for_log(event="debug_on")
        assert deliver(shop, worker, "LOUD")
        worker.send_signal(signal.SIGHUP)
        worker.wait_for_log(event="reloaded")
        assert deliver(shop, worker, "STILL-LOUD"), "a reload of the worker's own configuration changes nothing"
        shop.set_config(DEBUG, "0")
        worker.wait_for_log(event="debug_off")
        seen = len(worker.logs)
        shop.publish_order("QUIET")
        eventually(lambda: shop.statuses() == [4, 4, 4])
        worker.terminate()
        assert worker.wait() == 0
        assert worker.logs[seen:] == [], "the level is the configured one again"


def test_debug_asked_for_at_the_start_outlasts_the_shops_switch(
    shop: Shop, api: FakeZithara, worker_config: Config
) -> None:
    shop.set_config(DEBUG, "1")
    with WorkerProcess(
        worker_config(**QUICK), "--log-level", "DEBUG", "consume", TOPIC_ORDER, environment=SHORT_INTERVALS
    ) as worker:
        worker.wait_for_log(event="debug_on")
        shop.set_config(DEBUG, "0")
        worker.wait_for_log(event="debug_off")
        assert deliver(shop, worker, "LOUD")
