"""What the command takes in memory with large bodies pending."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import WorkerProcess
from support.waiting import eventually

from zithara_worker.sandbox import examples
from zithara_worker.sandbox.api import FakeZithara
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART


@pytest.mark.parametrize(("count", "megabytes"), [(6, 10), (60, 1)])
def test_large_bodies_are_delivered_within_the_promised_memory(
    shop: Shop, api: FakeZithara, worker_config: Callable[..., Path], count: int, megabytes: int
) -> None:
    cart = examples.cart("1")
    item = cart["cart_item"][0]
    times = megabytes * 1_000_000 // len(json.dumps(json.dumps(item)))
    for number in range(1, count + 1):
        body = {**examples.cart(str(number)), "cart_item": [item] * times}
        shop.publish_body(TOPIC_CART, json.dumps(json.dumps(body)))
    with WorkerProcess(worker_config(), "consume", TOPIC_CART) as worker:
        eventually(lambda: shop.status_counts() == {4: count}, within=60)
        status = Path(f"/proc/{worker.pid}/status").read_text()
    [peak_kib] = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")]
    assert peak_kib * 1024 <= 160_000_000


def test_the_worker_does_not_load_the_command_line_of_httpx(
    shop: Shop, api: FakeZithara, worker_config: Callable[..., Path], tmp_path: Path
) -> None:
    """Debian's python3-httpx brings what that needs, 4 MB of it."""
    loaded, package = tmp_path / "loaded", tmp_path / "modules" / "rich"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"open({str(loaded)!r}, 'w').close()\nraise ImportError")
    environment = {"PYTHONPATH": str(package.parent)}
    with WorkerProcess(worker_config(), "consume", "--all", "--stop-when-empty", environment=environment) as worker:
        assert worker.wait() == 0
    assert not loaded.exists()
    subprocess.run([sys.executable, "-c", "import httpx"], env=environment, check=True)
    assert loaded.exists(), "httpx by itself"
