"""The operator's commands as they are typed: output, exit codes, terminals, and what running workers make of them."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.processes import WorkerProcess
from support.terminal import Terminal
from support.waiting import eventually

from zithara_worker.sandbox.api import FakeZithara
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.publisher import stored_body
from zithara_worker.sandbox.session import worker_command, write_config
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER

Config = Callable[..., Path]
Run = Callable[..., "subprocess.CompletedProcess[str]"]

ENTERED, LEFT = "\x1b[?1049h", "\x1b[?1049l"


@pytest.fixture
def run(worker_config: Config) -> Run:
    """Runs a command to its end: run("status", "--json")."""

    def call(*arguments: str, config: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [worker_command(), "--config", str(config or worker_config()), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)

    return call


def fail(shop: Shop, run: Run, refused: set[str], number: str = "000000777") -> int:
    """A message that has gone to ERROR; its id."""
    refused.add(number)
    published = shop.publish_order(number)
    assert run("consume", "--all", "--stop-when-empty").returncode == 0
    assert shop.row(published.relation_id).status == 6
    refused.discard(number)
    return published.message_id


# ---------------------------------------------------------------- failed


def test_a_retry_reaches_a_running_worker_at_once(
    shop: Shop, api: FakeZithara, worker_config: Config, run: Run, refused: set[str]
) -> None:
    message_id = fail(shop, run, refused)
    with WorkerProcess(worker_config(worker={"poll_interval": "0.1"}), "consume", "--all") as worker:
        worker.wait_for_log(event="started")
        done = run("failed", "retry", str(message_id))
        assert (done.returncode, done.stdout) == (0, "1 put back on the queue\n")
        worker.wait_for_log(event="delivered", message_id=message_id, within=3)
        worker.terminate()
        assert worker.wait() == 0
    assert shop.statuses() == [4]


def test_failed_messages_are_listed_and_shown(shop: Shop, run: Run, refused: set[str]) -> None:
    assert run("failed", "list").stdout == "no failed messages\n"
    message_id = fail(shop, run, refused)
    listed = run("failed", "list").stdout
    assert re.search(rf"^ *{message_id}  order +error .* 400  http_400  order:000000777$", listed, re.MULTILINE)
    (value,) = json.loads(run("failed", "list", "--json").stdout)
    assert (value["id"], value["reason"]) == (message_id, "http_400")
    shown = run("failed", "show", str(message_id)).stdout
    assert "/order" in shown and f"Idempotency-Key: zithara_order_queue-{message_id}" in shown
    assert "@example" not in shown and "@example" in run("failed", "show", str(message_id), "--unmasked").stdout
    assert run("failed", "retry", str(message_id)).returncode == 0
    assert "reason      http_400" in run("failed", "show", str(message_id)).stdout, "why it failed before"
    assert run("consume", "--all", "--stop-when-empty").returncode == 0
    shown = run("failed", "show", str(message_id)).stdout
    assert f"reason      none, it is complete: 'zithara-worker trace message {message_id}'" in shown
    assert "that it makes; nothing more is sent:" in shown and "would be sent" not in shown
    waiting = shop.publish_order("000000778").message_id
    assert "reason      none, it has not failed\n" in run("failed", "show", str(waiting)).stdout
    # What is in force, and whence.
    assert re.search(r"zithara.webhook_url +https?://.* \(zithara_webhook_config row 1\)", run("config").stdout)
    missing = run("failed", "show", "999999")
    assert missing.returncode == 1 and "no message 999999" in missing.stderr


def test_a_retry_that_would_overwrite_newer_data_is_refused(shop: Shop, run: Run, refused: set[str]) -> None:
    message_id = fail(shop, run, refused)
    shop.publish_order("000000777")
    assert run("consume", "--all", "--stop-when-empty").returncode == 0
    refusal = run("failed", "retry", "--all", "--yes")
    assert refusal.returncode == 1 and "--force" in refusal.stderr and str(message_id) in refusal.stderr
    forced = run("failed", "retry", "--all", "--force", "--yes", "--json")
    assert json.loads(forced.stdout) == {"retried": [message_id], "overtaken": [], "passed": [], "not_failed": []}


def test_many_are_retried_by_topic_with_a_progress_bar_on_a_terminal(
    shop: Shop, worker_config: Config, run: Run
) -> None:
    shop.publish_bodies(TOPIC_ORDER, [stored_body({"order_id": str(n)}) for n in range(250)])
    shop.publish_cart()
    shop.query("UPDATE {prefix}queue_message_status SET status = 6")
    with Terminal(worker_config(), "failed", "retry", "--all", "--topic", TOPIC_ORDER) as terminal:
        shown = terminal.wait_for("[y/N]")
        assert re.search(r"order +unrecorded +250 ", shown) and "cart" not in shown
        terminal.type("y\n")
        assert terminal.wait() == 0
    assert re.search(r"retrying.*250/250", terminal.text, re.DOTALL) and "250 put back" in terminal.text
    assert shop.status_counts(TOPIC_ORDER) == {5: 250} and shop.statuses(TOPIC_CART) == [6]


def test_a_no_changes_nothing(shop: Shop, worker_config: Config) -> None:
    shop.publish_bodies(TOPIC_ORDER, [stored_body({"order_id": str(n)}) for n in range(2)])
    shop.query("UPDATE {prefix}queue_message_status SET status = 6")
    with Terminal(worker_config(), "failed", "discard", "--all", "--note", "test") as terminal:
        terminal.wait_for("[y/N]")
        terminal.type("n\n")
        assert terminal.wait() == 1
    assert shop.statuses() == [6, 6]


def test_a_discard_wants_a_note_and_is_audited_and_can_be_taken_back(
    shop: Shop, tmp_path: Path, worker_config: Config, run: Run, refused: set[str]
) -> None:
    message_id = fail(shop, run, refused)
    assert run("failed", "discard", str(message_id)).returncode == 2
    assert run("failed", "discard", str(message_id), "--note", " ").returncode == 2
    assert shop.statuses() == [6]
    audit_file = tmp_path / "audit.log"
    config = worker_config(logging={"audit_file": str(audit_file)})
    done = run("failed", "discard", str(message_id), "--note", "test order", config=config)
    assert (done.returncode, done.stdout, shop.statuses()) == (0, "1 discarded\n", [4])
    (line,) = (json.loads(text) for text in audit_file.read_text().splitlines())
    assert (line["action"], line["message_ids"], line["note"]) == ("discard", [message_id], "test order")
    assert run("failed", "list").stdout == "no failed messages\n"
    shown = run("failed", "show", str(message_id)).stdout
    assert "discard  " in shown and "test order" in shown and f"'failed retry {message_id}' takes it back" in shown
    assert run("failed", "retry", str(message_id)).stdout == "1 put back on the queue\n"
    assert shop.statuses() == [5]


@pytest.mark.parametrize("command", [("retry",), ("discard", "--note", "broken extension")])
@pytest.mark.parametrize("reason", ["not_json", "test order"])
def test_a_reason_selects_and_is_never_an_operators_words(
    shop: Shop, run: Run, refused: set[str], command: tuple[str, ...], reason: str
) -> None:
    """In version 0.1 `discard --all --reason not_json` discarded everything."""
    fail(shop, run, refused)
    shop.publish_body(TOPIC_CART, "{nonsense")
    run("consume", "--all", "--stop-when-empty")
    done = run("failed", *command, "--all", "--yes", "--reason", reason)
    if reason == "not_json":
        assert done.returncode == 0 and shop.statuses(TOPIC_CART) != [6]
        assert re.search(r"cart +not_json +1 ", done.stderr) and "order" not in done.stderr
    else:
        assert done.returncode == 2 and "--note" in done.stderr
        assert shop.statuses(TOPIC_CART) == [6]
    assert shop.statuses(TOPIC_ORDER) == [6]


@pytest.mark.parametrize("command", [("retry",), ("discard", "--note", "all of it")])
def test_what_changes_many_wants_a_yes_where_there_is_no_terminal(
    shop: Shop, run: Run, command: tuple[str, ...]
) -> None:
    ids = [shop.publish_order(f"00000077{n}").message_id for n in range(2)]
    shop.query("UPDATE {prefix}queue_message_status SET status = 6")
    for which in (("--all",), tuple(map(str, ids))):
        done = run("failed", *command, *which)
        assert done.returncode == 2 and "--yes" in done.stderr
        assert re.search(r"order +unrecorded +2 ", done.stderr)
        assert shop.statuses() == [6, 6]
    assert run("failed", *command, "--yes", *map(str, ids)).returncode == 0
    assert 6 not in shop.statuses()


def test_a_retry_that_a_newer_message_on_its_way_may_pass_is_refused(shop: Shop, run: Run, refused: set[str]) -> None:
    message_id = fail(shop, run, refused)
    newer = shop.publish_order("000000777")
    shop.query(
        "INSERT INTO {prefix}zithara_message_group (queue_id, group_key, id, message_id, worker_id, lease_until) "
        "SELECT queue_id, 'order:000000777', id, message_id, 'w1', UTC_TIMESTAMP(3) + INTERVAL 1 HOUR "
        "FROM {prefix}queue_message_status WHERE id = %s",
        (newer.relation_id,),
    )
    refusal = run("failed", "retry", str(message_id))
    assert refusal.returncode == 1 and f"{message_id} behind {newer.message_id}" in refusal.stderr
    assert "--force" in refusal.stderr and shop.statuses() == [6, 2]
    value = json.loads(run("failed", "retry", str(message_id), "--json").stdout)
    assert value["passed"] == [{"id": message_id, "newer_id": newer.message_id}]


def test_a_summary_counts_by_topic_and_reason_and_says_what_to_do(shop: Shop, run: Run, refused: set[str]) -> None:
    assert run("failed", "summary").stdout == "no failed messages\n"
    message_id = fail(shop, run, refused)
    shown = run("failed", "summary").stdout
    assert re.search(rf"^order +http_400 +1 .* ago +{message_id}$", shown, re.MULTILINE)
    assert "http_400: The detail holds the beginning of the answer." in shown
    (value,) = json.loads(run("failed", "summary", "--json").stdout)
    assert (value["topic"], value["reason"], value["messages"]) == (TOPIC_ORDER, "http_400", 1)
    assert (value["newest_id"], value["since"][-1]) == (message_id, "Z")


def test_nothing_is_done_unaudited_where_the_audit_is_required(
    shop: Shop, tmp_path: Path, worker_config: Config, run: Run, refused: set[str]
) -> None:
    message_id = fail(shop, run, refused)
    unwritable = str(tmp_path / "missing" / "audit.log")
    config = worker_config(logging={"audit_file": unwritable, "audit_required": "true"})
    done = run("failed", "retry", str(message_id), config=config)
    assert done.returncode == 1 and unwritable in done.stderr
    assert shop.statuses() == [6]


def test_an_export_is_private_complete_and_never_overwrites(
    shop: Shop, tmp_path: Path, run: Run, refused: set[str]
) -> None:
    message_id = fail(shop, run, refused)
    file = tmp_path / "failed.jsonl"
    assert run("failed", "export", str(file)).returncode == 0
    (record,) = (json.loads(line) for line in file.read_text().splitlines())
    assert (record["id"], record["body"]) == (message_id, shop.body(message_id))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = run("failed", "export", str(file))
    assert again.returncode == 1 and "--overwrite" in again.stderr
    assert json.loads(run("failed", "export").stdout)["id"] == message_id
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("failed", "retry"),
        ("failed", "retry", "7", "--all"),
        ("failed", "retry", "7", "--topic", TOPIC_ORDER),
        ("failed", "list", "--reason", "no such code"),
        ("failed", "export", "--reason", "no such code"),
        ("failed", "list", "--older-than", "soon"),
        ("pause",),
        ("resume", "zithara.order"),
    ],
)
def test_a_slip_is_a_usage_error(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments).returncode == 2


# ---------------------------------------------------------------- pause, resume


def test_a_pause_reaches_a_running_worker_and_survives_its_restart(shop: Shop, worker_config: Config, run: Run) -> None:
    config = worker_config(worker={"poll_interval": "0.1"})
    with WorkerProcess(config, "consume", "--all") as worker:
        worker.wait_for_log(event="started")
        paused = run("pause", TOPIC_ORDER, "--reason", "import")
        assert paused.returncode == 0 and paused.stdout.startswith(f"{TOPIC_ORDER}: paused by ")
        worker.wait_for_log(event="paused", topic=TOPIC_ORDER)
    with WorkerProcess(config, "consume", "--all") as worker:
        worker.wait_for_log(event="started")
        shop.publish_order()
        cart = shop.publish_cart()
        worker.wait_for_log(event="delivered", message_id=cart.message_id)
        assert shop.statuses(TOPIC_ORDER) == [2]
        assert "is paused (by " in run("status").stdout
        (resumed,) = json.loads(run("resume", TOPIC_ORDER, "--json").stdout)
        assert (resumed["changed"], resumed["paused"]) == (True, False)
        eventually(lambda: shop.statuses(TOPIC_ORDER) == [4])


# ---------------------------------------------------------------- status


def test_status_shows_a_running_worker_to_every_host(shop: Shop, worker_config: Config, run: Run) -> None:
    with WorkerProcess(worker_config(), "consume", "--all") as worker:
        worker.wait_for_log(event="started")

        def value() -> Any:
            return json.loads(run("status", "--json").stdout)

        (shown,) = eventually(lambda: value()["workers"], within=10)
        assert (shown["pid"], shown["alive"]) == (worker.pid, True)


def test_status_tells_which_topics_nobody_serves(shop: Shop, worker_config: Config, run: Run) -> None:
    with WorkerProcess(worker_config(), "consume", TOPIC_CART) as worker:
        worker.wait_for_log(event="started")
        eventually(lambda: shop.query("SELECT 1 FROM {prefix}zithara_worker"), within=10)
        shown = " ".join(run("status").stdout.split())
    assert f"no living worker serves {TOPIC_ORDER}: start one ('zithara-worker consume {TOPIC_ORDER}')" in shown
    assert f"no living worker serves {TOPIC_CART}" not in shown


def test_status_without_a_terminal_is_plain_text_of_80_columns(shop: Shop, worker_config: Config, run: Run) -> None:
    shop.publish_samples()
    done = run("status")
    assert done.returncode == 0 and "\x1b" not in done.stdout
    command = [worker_command(), "--config", str(worker_config()), "status", "--watch", "--interval", "0.2"]
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert [json.loads(watching.stdout.readline())["total"]["new"] for _ in range(2)] == [len(shop.rows())] * 2
        watching.kill()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        lines = [watching.stdout.readline().rstrip("\n") for _ in range(20)]
        watching.kill()
    assert sum(line.startswith("zithara-worker") for line in lines) >= 2
    assert not any("\x1b" in line or len(line) > 80 for line in lines)


def test_the_live_screen_ends_with_q_and_leaves_the_terminal_as_it_was(shop: Shop, worker_config: Config) -> None:
    shop.publish_order()
    with Terminal(worker_config(), "status", "--watch", "--interval", "0.2") as terminal:
        shown = terminal.wait_for("q quit")
        assert shown.startswith(ENTERED) and "\x1b[?25l" in shown and "order" in shown
        assert terminal.settings != terminal.before
        terminal.type("q")
        assert terminal.wait() == 0
        assert terminal.text.endswith(f"\x1b[?25h{LEFT}")
        assert terminal.settings == terminal.before


def test_the_live_screen_ends_with_control_c_too(worker_config: Config) -> None:
    with Terminal(worker_config(), "status", "--watch") as terminal:
        terminal.wait_for("q quit")
        terminal.type("\x03")
        assert terminal.wait() == 0
        assert terminal.text.endswith(LEFT) and "Traceback" not in terminal.text
        assert terminal.settings == terminal.before


def test_the_live_screen_gives_the_terminal_back_while_it_is_suspended(worker_config: Config) -> None:
    with Terminal(worker_config(), "status", "--watch") as terminal:
        terminal.wait_for("q quit")
        terminal.type("\x1a")
        terminal.wait_for(LEFT)
        os.waitid(os.P_PID, terminal.process.pid, os.WSTOPPED | os.WNOWAIT)
        assert terminal.settings == terminal.before
        terminal.forget()
        terminal.process.send_signal(signal.SIGCONT)
        terminal.wait_for("q quit")
        assert ENTERED in terminal.text
        terminal.type("q")
        assert terminal.wait() == 0
        assert terminal.settings == terminal.before


def test_the_live_screen_follows_the_queue_and_the_window(shop: Shop, worker_config: Config) -> None:
    with Terminal(worker_config(), "status", "--watch", "--interval", "0.2") as terminal:
        terminal.wait_for("q quit")
        terminal.forget()
        shop.publish_bodies(TOPIC_ORDER, [stored_body({"order_id": str(n)}) for n in range(4321)])
        terminal.wait_for("4321")
        assert "P99" not in terminal.text
        terminal.resize(130, 40)
        terminal.wait_for("P99")
        terminal.type("q")
        assert terminal.wait() == 0


def test_the_live_screen_outlives_the_database(tmp_path: Path, api: FakeZithara) -> None:
    with MariaDbServer() as server, Shop(server) as shop:
        config = write_config(tmp_path / "own.conf", shop, api)
        with Terminal(config, "status", "--watch", "--interval", "0.2") as terminal:
            terminal.wait_for("q quit")
            server.stop()
            terminal.wait_for("not up to date")
            terminal.forget()
            server.restart()
            terminal.wait_for("any key refresh\x1b[0m\x1b[0m\x1b[K")
            terminal.type("q")
            assert terminal.wait() == 0


# ---------------------------------------------------------------- doctor, and errors of all


def test_doctor_says_ok_and_exits_1_when_something_failed(shop: Shop, run: Run) -> None:
    shop.publish_samples()
    well = run("doctor")
    assert well.returncode == 0, well.stdout
    assert re.search(r"^ok +privileges ", well.stdout, re.MULTILINE) and "\x1b" not in well.stdout
    shop.query("UPDATE {prefix}zithara_webhook_config SET client_secret = 'wrong'")
    ill = run("doctor", "--json")
    value = json.loads(ill.stdout)
    assert (ill.returncode, value["ok"]) == (1, False)
    (token,) = (finding for finding in value["findings"] if finding["level"] == "failed")
    assert token["check"] == "api.token" and token["remedy"]


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("doctor",),
        ("pause",),
        ("resume",),
        *(("failed", each) for each in ("list", "summary", "show", "retry", "discard", "export")),
    ],
)
def test_every_command_has_help_with_an_example(run: Run, command: tuple[str, ...]) -> None:
    done = run(*command, "--help")
    assert done.returncode == 0 and f"zithara-worker {' '.join(command)}" in done.stdout.partition("Example")[2]
