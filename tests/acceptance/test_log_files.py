"""What a running worker writes into its log, and what it does when the log is no file."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import WorkerProcess
from support.waiting import eventually

from zithara_worker.sandbox.api import FakeZithara, Reply
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_ORDER

Config = Callable[..., Path]


@pytest.mark.parametrize("mask", ["true", "false"])
def test_an_answers_personal_data_is_in_the_log_only_when_asked_for_and_never_in_the_table(
    shop: Shop, api: FakeZithara, worker_config: Config, mask: str
) -> None:
    said = {"status": 422, "message": "no number for asha@example.com", "customerName": "Asha"}
    api.responder = lambda request: Reply.of(422, said) if "/order" in request.path else None
    shop.publish_order("1")
    with WorkerProcess(worker_config(logging={"mask": mask}), "consume", TOPIC_ORDER, "--stop-when-empty") as worker:
        assert worker.wait() == 0
        detail = worker.wait_for_log(event="failed")["detail"]
    hidden = {**said, "message": "no number for a***@***", "customerName": "***"}
    assert json.loads(detail.removeprefix("HTTP 422: ")) == (hidden if mask == "true" else said)
    [(stored,)] = shop.query("SELECT detail FROM {prefix}zithara_delivery_failure")
    assert json.loads(stored.removeprefix("HTTP 422: ")) == hidden


def test_a_fifo_at_the_logs_path_is_a_configuration_error_that_names_it(worker_config: Config, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    os.mkfifo(log)
    with WorkerProcess(worker_config(logging={"file": str(log)}), "consume", TOPIC_ORDER) as worker:
        assert worker.wait() == 78
        assert f"[logging] file: cannot open {log}" in worker.output and "no regular file" in worker.output


def test_a_fifo_put_in_place_of_the_log_stops_neither_delivery_nor_sigterm(
    shop: Shop, api: FakeZithara, worker_config: Config, tmp_path: Path
) -> None:
    log, moved = tmp_path / "worker.log", tmp_path / "worker.log.1"
    config = worker_config(logging={"file": str(log)}, worker={"poll_interval": "0.05"})

    def events() -> list[str]:
        file = moved if moved.exists() else log
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return [json.loads(line).get("event") for line in lines]

    with WorkerProcess(config, "consume", TOPIC_ORDER) as worker:
        eventually(lambda: "started" in events())
        log.rename(moved)
        os.mkfifo(log)
        worker.send_signal(signal.SIGHUP)
        eventually(lambda: f"cannot go on in {log}" in worker.output)
        shop.publish_order("1")
        eventually(lambda: shop.statuses(TOPIC_ORDER) == [4])
        worker.terminate()
        assert worker.wait() == 0
    assert {"delivered", "stopped"} <= set(events()), "the old file stays in use"
