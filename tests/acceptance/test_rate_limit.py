"""rate_limit bounds the whole fleet: four real processes at one API."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from support.processes import SHORT_INTERVALS, WorkerProcess
from support.waiting import eventually

from zithara_worker.sandbox.api import TOKEN_PATH, FakeZithara
from zithara_worker.sandbox.shop import Shop

RATE, BURST, MESSAGES = 40, 10, 110
#: Seconds that a request may take from the worker's decision to the API's record, on a machine with other work.
ON_THE_WAY = 0.25


def test_four_processes_together_send_no_more_than_the_rate(
    shop: Shop, api: FakeZithara, worker_config: Callable[..., Path]
) -> None:
    for number in range(MESSAGES):
        shop.publish_order(f"{number:09d}")
    config = worker_config(worker={"rate_limit": str(RATE), "burst": str(BURST), "concurrency": "8"})
    with ExitStack() as workers:
        fleet = [workers.enter_context(WorkerProcess(config, "consume", "order")) for _ in range(4)]
        for worker in fleet:
            worker.wait_for_log(event="started")
        eventually(lambda: set(shop.statuses()) == {4}, within=30)
    at = sorted(request.at for request in api.requests() if request.path != TOKEN_PATH)
    assert len(at) == MESSAGES
    most = max(sum(start <= each < start + 1 for each in at) for start in at)
    assert most <= RATE * (1 + ON_THE_WAY) + BURST
    assert RATE * (at[-1] - at[0] + ON_THE_WAY) + BURST >= MESSAGES


def test_status_says_that_the_rate_limit_bounds_the_pace(
    shop: Shop, api: FakeZithara, worker_config: Callable[..., Path]
) -> None:
    for number in range(40):
        shop.publish_order(f"{number:09d}")
    config = worker_config(worker={"rate_limit": "2"})
    with WorkerProcess(config, "consume", "order", environment=SHORT_INTERVALS):
        api.wait_for(4)

        def told() -> bool:
            with WorkerProcess(config, "status") as status:
                assert status.wait() == 0
            return "limited by rate_limit" in status.output

        eventually(told, within=20)
