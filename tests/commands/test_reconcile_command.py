"""`reconcile` as it is typed, with the least rights that it needs, on the tables of a real shop."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from zithara_worker.commands.reconcile import confirm, interruptible, moment_of, report, waiting_in_rabbitmq
from zithara_worker.commands.root import command
from zithara_worker.completeness.compare import Verdict
from zithara_worker.completeness.reconcile import Result as FoundResult
from zithara_worker.completeness.reconcile import Window
from zithara_worker.database.schema import operator_text
from zithara_worker.errors import ShopError
from zithara_worker.queue.queues import QueueRow
from zithara_worker.sandbox.api import FakeZithara
from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.shop_tables import ShopTables, published_messages
from zithara_worker.settings.sections import RelaySettings, Settings
from zithara_worker.topics import TOPIC_ORDER

Typed = Callable[..., Result]


@pytest.fixture
def tables(shop: Shop) -> ShopTables:
    made = ShopTables(shop)
    made.create()
    shop.query(f"REVOKE ALL PRIVILEGES, GRANT OPTION FROM '{shop.user}'@'%'")
    grants = operator_text(prefix=shop.prefix, database_name=shop.name, user=f"'{shop.user}'@'%'")
    for statement in re.sub(r"--[^\n]*", "", grants).split(";"):
        if statement.strip():
            shop.query(statement)
    return made


@pytest.fixture
def typed(worker_config: Callable[..., Path], tmp_path: Path) -> Typed:
    config = worker_config(logging={"audit_file": str(tmp_path / "audit.jsonl")})

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(command, ["--config", str(config), "reconcile", *arguments])

    return run


def counts(result: Result) -> dict[str, dict[str, int]]:
    kinds: list[dict[str, Any]] = json.loads(result.stdout)["kinds"]
    return {each["kind"]: {name: number for name, number in each["counts"].items() if number} for each in kinds}


def test_what_a_real_shop_never_told_is_found_published_and_then_complete(
    shop: Shop, tables: ShopTables, typed: Typed, consume: Callable[[], None], api: FakeZithara, tmp_path: Path
) -> None:
    for message in published_messages():
        shop.publish_body(message.topic, message.body)
    consume()
    found = typed("--all", "--json")
    assert found.exit_code == 1, found.output
    before = counts(found)
    assert list(before) == ["customers", "orders", "carts"]
    assert before["orders"] == {"complete": 10, "missing": 2}
    told = typed("orders", "--all")
    assert "missing" in told.stdout and "zithara-worker reconcile orders --all --publish" in told.stdout
    assert "000000001, 000000011" in told.stdout

    shop.query("DELETE FROM {prefix}zithara_reconciliation")
    refused = typed("orders", "--all", "--publish")
    assert refused.exit_code == 2 and "Shall 2 orders (about 1 MB) be published?" in refused.output
    # To compare a whole shop takes minutes: what it found is shown and kept.
    assert "000000001, 000000011" in refused.stdout
    assert shop.query("SELECT kind FROM {prefix}zithara_reconciliation WHERE finished_at IS NOT NULL") == [("orders",)]
    before_publishing = len(shop.rows())
    done = typed("--all", "--publish", "--yes")
    assert done.exit_code == 0, done.output
    published = len(shop.rows()) - before_publishing
    assert published > 2
    audit = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert {each["action"] for each in audit} == {"reconcile_publish"}
    assert sum(each["count"] for each in audit) == published
    api.forget_requests()
    consume()
    assert ("POST", "000000001") in [
        (each.method, each.json["order"]["platform_order_id"]) for each in api.requests("/v1/order")
    ]
    after = typed("--all", "--json")
    assert after.exit_code == 0
    assert [set(each) for each in counts(after).values()] == [{"complete"}] * 3


def test_a_checkout_that_stays_open_holds_nothing_up_and_is_not_looked_into(
    shop: Shop, tables: ShopTables, typed: Typed
) -> None:
    """It has locked the orders and the queue's tables by rows that nobody else sees."""
    with shop.transaction() as checkout, checkout.publishing_connection().cursor() as cursor:
        cursor.execute("UPDATE sales_order SET grand_total = 77")
        cursor.execute("UPDATE sales_order_item SET price = 77")
        checkout.publish_order("000000500")
        done = typed("orders", "--all", "--publish", "--yes")
        assert done.exit_code == 0 and "12 published" in done.stdout, done.output
    bodies = [str(shop.body(row.message_id)) for row in shop.rows()]
    assert len(bodies) == 13 and not [body for body in bodies if "77.0000" in body]


def test_print_writes_what_publish_would_store(shop: Shop, tables: ShopTables, typed: Typed) -> None:
    printed = typed("orders", "--all", "--print", "--limit", "3")
    lines = [json.loads(line) for line in printed.stdout.splitlines() if line.startswith("{")]
    assert [line["group"] for line in lines] == ["order:000000001", "order:000000003", "order:000000005"]
    assert shop.rows() == []
    typed("orders", "--all", "--publish", "--yes", "--limit", "3")
    assert [shop.body(row.message_id) for row in shop.rows()] == [line["body"] for line in lines]


def test_without_the_rights_it_says_which(shop: Shop, typed: Typed) -> None:
    ShopTables(shop).create()
    account = f"'{shop.user}'@'%'"
    denied = typed("orders", "--all", "--publish")
    assert isinstance(denied.exception, ShopError) and "queue_message" in str(denied.exception)
    shop.run_script("publish_grants.sql", database=shop.name, user=account)
    denied = typed("orders", "--all")
    assert isinstance(denied.exception, ShopError) and "install --print" in str(denied.exception)


def test_where_one_kind_cannot_be_read_those_before_it_are_printed(
    shop: Shop, tables: ShopTables, typed: Typed
) -> None:
    everything = json.loads(typed("--all", "--json").stdout)
    assert everything["error"] is None
    shop.query("DROP TABLE {prefix}sales_order_item")
    told = typed("--all", "--json")
    found = json.loads(told.stdout)
    assert [each["kind"] for each in found["kinds"]] == ["customers"] and not found["complete"]
    assert found["kinds"][0]["counts"] == everything["kinds"][0]["counts"]
    assert found["error"] == {"kind": "orders", "text": str(told.exception)}
    assert isinstance(told.exception, ShopError) and "sales_order_item' doesn't exist" in found["error"]["text"]
    # What must be answered first, too.
    told = typed("carts", "--all", "--publish", "--json")
    # The runner of click 8.1 has standard error behind it.
    found, _ = json.JSONDecoder().raw_decode(told.stdout)
    assert told.exit_code == 2 and found["error"]["kind"] == "carts"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["boxes"], "'boxes' is not one of"),
        (["--since", "yesterday"], "'yesterday' is neither an age nor a date"),
        (["--since", "2026-02-31"], "neither an age nor a date"),
        (["--since", "1d", "--until", "2d"], "the window ends before it begins"),
        (["--since", "1d", "--all"], "not both"),
        # Neither database has such times, and the years have fewer than four digits.
        (["--until", "0001-01-02"], "lies before 1970"),
        (["--since", "700000d"], "lies before 1970"),
        (["--print", "--publish"], "leave out --publish"),
        (["--limit", "5"], "--limit is for"),
    ],
)
def test_what_cannot_be_meant_is_refused(typed: Typed, arguments: list[str], complaint: str) -> None:
    refused = typed(*arguments)
    assert refused.exit_code == 2 and complaint in refused.output


def test_a_step_can_be_typed_whatever_the_orders_number_is() -> None:
    found = FoundResult(kind="orders", window=Window(), counts=Counter({Verdict.INVALID: 1}))
    found.named[Verdict.INVALID] = [("A 1;$(x)", "order_without_items")]
    assert any(line.endswith("zithara-worker trace order 'A 1;$(x)'") for line in report(found))


def test_what_a_resend_has_left_is_told_with_the_command_that_goes_on_with_it() -> None:
    """--publish would find it complete."""
    found = FoundResult(kind="orders", window=Window(), counts=Counter({Verdict.STALE: 2}), resend_since_utc=1.0)
    told = "\n".join(report(found, window_options=" --all"))
    assert "not accepted since this resend began: zithara-worker reconcile orders --all --resend\n" in told


def test_a_moment_is_an_age_or_a_date() -> None:
    assert moment_of("2026-11-01") == "2026-11-01 00:00:00"
    assert moment_of("2026-11-01 13:30") == "2026-11-01 13:30:00"
    assert moment_of("1h") < moment_of("0s")


def test_a_rabbitmq_that_cannot_be_asked_stops_publishing_only(capsys: pytest.CaptureFixture[str]) -> None:
    queue = QueueRow(1, "zithara_order_queue", TOPIC_ORDER)
    assert waiting_in_rabbitmq(Settings(), queue, needed=True) is None, "there is none"
    unreachable = Settings(relay=RelaySettings(host="127.0.0.1", port=1))
    assert waiting_in_rabbitmq(unreachable, queue, needed=False) is None
    assert "cannot be asked" in capsys.readouterr().err
    with pytest.raises(ShopError, match="nothing is published before that is known"):
        waiting_in_rabbitmq(unreachable, queue, needed=True)


def test_the_workers_own_account_is_told_which_account_may(shop: Shop, worker_config: Callable[..., Path]) -> None:
    ShopTables(shop).create()
    for action in (["publish", "order"], ["reconcile", "orders"], ["reconcile", "orders", "--publish", "--yes"]):
        told = CliRunner().invoke(command, ["--config", str(worker_config()), *action], input="{}")
        text = str(told.exception)
        assert told.exit_code == 1 and " command denied to user " in text
        assert ": do it as the operator's account" in text and "install --print --operator" in text
        assert "grant it" not in text


def test_ctrl_c_at_the_question_publishes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would only be noted, and the question would wait on."""

    def interrupted(*arguments: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("click.confirm", interrupted)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    with interruptible() as stopping:
        with pytest.raises(KeyboardInterrupt):
            confirm(12, 1e6, "orders", yes=False, many=False)
        assert not stopping.is_set()
        signal.raise_signal(signal.SIGINT)
        assert stopping.is_set(), "later it stops the run in order"
