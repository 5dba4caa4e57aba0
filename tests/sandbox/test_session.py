"""A sandbox is whole, tells how to use it, and leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path

import httpx
import pytest
from support.waiting import eventually

from zithara_worker.errors import ConfigurationError
from zithara_worker.sandbox import session
from zithara_worker.sandbox.demo import main as demo
from zithara_worker.sandbox.session import interruptible, open_sandbox, run_sandbox, worker_command
from zithara_worker.sandbox.shop import Shop


def test_configuration_is_private_and_names_the_least_privileged_user(
    worker_config: Callable[..., Path], shop: Shop
) -> None:
    path = worker_config(worker={"concurrency": "4"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    config = ConfigParser(interpolation=None)
    config.read(path)
    assert (config["database"]["user"], config["database"]["name"]) == (shop.user, shop.name)
    assert (config["worker"]["concurrency"], config["metrics"]["listen"]) == ("4", "")


def test_shop_is_configured_for_the_api() -> None:
    with open_sandbox(prefix="m2_", sections={"retry": {"limit": "3"}}) as sandbox:
        directory = sandbox.server.directory
        ((client_id, secret, url),) = sandbox.shop.query(
            "SELECT client_id, client_secret, webhook_url FROM {prefix}zithara_webhook_config WHERE is_active = 1"
        )
        answer = httpx.get(
            f"{sandbox.api.base_url}/generate-access-token", headers={"client_id": client_id, "client_secret": secret}
        )
        assert (answer.status_code, url) == (200, sandbox.api.webhook_url)
        operator = ConfigParser(interpolation=None)
        operator.read(sandbox.operator_config)
        assert (operator["database"]["user"], operator["retry"]["limit"]) == ("root", "3")
    assert not directory.exists()


def test_sandbox_says_what_to_type_and_what_the_api_gets() -> None:
    said: list[str] = []
    stop = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        address = re.search(r"webhooks at (\S+)", text)
        if address:
            post = threading.Thread(target=lambda: post_until_heard(address.group(1)))
            post.start()

    def post_until_heard(url: str) -> None:
        eventually(lambda: httpx.post(url, json={}).status_code == 200 and any("POST /hook" in line for line in said))
        stop.set()

    run_sandbox(stop=stop, say=say)
    assert said[0] == "7 sample messages are on the queue."
    assert "zithara-worker --config /" in said[1] and "consume --all" in said[1]
    assert "  POST /hook" in said


def test_shop_on_rabbitmq_has_its_messages_there_and_the_commands_for_it() -> None:
    said: list[str] = []
    stop = threading.Event()
    stop.set()
    run_sandbox(rabbitmq=True, stop=stop, say=said.append)
    assert said[0] == "7 sample messages are in RabbitMQ."
    (config,) = re.findall(r"zithara-worker --config (\S+) relay --all --stop-when-empty", said[1])
    assert f"{config} consume --all" in said[1] and not Path(config).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_sandbox_that_is_interrupted_removes_everything(number: signal.Signals) -> None:
    program = (
        "from zithara_worker.sandbox.session import run_sandbox; run_sandbox(say=lambda text: print(text, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "consume" in line)
        directory = Path(line.split("--config ")[1].split()[0]).parent
        assert directory.exists()
        process.send_signal(number)
        rest = process.stdout.read()
    assert "The sandbox has been removed." in rest
    assert process.returncode == 0
    assert not directory.exists()


def test_sigterm_becomes_keyboard_interrupt_and_is_itself_again_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interruptible():
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(5)
    assert signal.getsignal(signal.SIGTERM) is before


def test_command_that_is_not_installed_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert Path(worker_command()).name == "zithara-worker"
    monkeypatch.setattr(session.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="pip install"):
        worker_command()


def test_demo_needs_its_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo([]) == 2
    assert demo([str(tmp_path / "none.jsonl")] * 2) == 2
    for arguments in ([], ["--rabbitmq"]):
        assert demo([*arguments, str(tmp_path / "none.jsonl")]) == 1
        assert "none.jsonl: No such file" in capsys.readouterr().err
