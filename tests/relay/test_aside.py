"""A message that the queue cannot hold is kept aside whole, with its reason, and operators can do something with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pika
import pytest
from click.testing import CliRunner, Result
from relay.conftest import Bench

from zithara_worker.commands.root import command
from zithara_worker.sandbox.rabbitmq import EXCHANGE
from zithara_worker.sandbox.session import write_config
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, relay_shop: Shop, api: object) -> Run:
    """Runs `failed ...` as an operator."""
    config = write_config(
        tmp_path / "worker.conf",
        relay_shop,
        api,  # type: ignore[arg-type]  # only its address is used
        {"metrics": {"listen": ""}, "logging": {"audit_file": str(tmp_path / "audit.jsonl")}},
    )

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(command, ["--config", str(config), "failed", *arguments])

    return run


def put(bench: Bench, body: bytes, *, routing_key: str = TOPIC_ORDER, message_id: str = "m1") -> None:
    with bench.virtual_host.channel() as channel:
        channel.queue_bind("zithara_order_queue", EXCHANGE, routing_key=routing_key)
        channel.confirm_delivery()
        channel.basic_publish(
            EXCHANGE, routing_key, body, pika.BasicProperties(delivery_mode=2, message_id=message_id), mandatory=True
        )


def test_too_large_body_is_kept_in_pieces_and_the_others_pass(bench: Bench, relay_shop: Shop, run: Run) -> None:
    relay_shop.query("SET GLOBAL max_allowed_packet = 4194304")
    try:
        bench.publish(1)
        large = b'"' + b"\\" * 3_000_000 + b'"'
        put(bench, large)
        bench.publish(1, first=1)
        bench.drain([TOPIC_ORDER])
        assert len(bench.stored()) == 2
        assert bench.aside() == [("relay_too_large", large)]
        assert relay_shop.query("SELECT MAX(pieces) FROM {prefix}zithara_relay_aside") == [(2,)]
        bench.wait_until_settled()

        # Delivered again, it is recognised.
        put(bench, large)
        bench.drain([TOPIC_ORDER])
        assert len(bench.aside()) == 1

        kept = run("aside", "retry", "--all")
        assert (kept.exit_code, "raise it on the server" in kept.output) == (1, True)
    finally:
        relay_shop.query("SET GLOBAL max_allowed_packet = 16777216")
    assert run("aside", "retry", "--all").exit_code == 0
    assert bench.stored()[-1].encode() == large
    assert bench.aside() == []


@pytest.mark.parametrize(
    ("body", "routing_key", "reason"),
    [
        (b'"\xff"', TOPIC_ORDER, "relay_not_text"),
        (b'"x"', TOPIC_CART, "relay_other_topic"),
        (b'"x"', "any.other\xe4", "relay_other_topic"),
    ],
)
def test_what_cannot_be_stored_does_not_stop_the_queue(
    bench: Bench, body: bytes, routing_key: str, reason: str
) -> None:
    put(bench, body, routing_key=routing_key)
    bodies = bench.publish(2)
    bench.drain([TOPIC_ORDER])
    assert bench.stored() == bodies
    assert bench.aside() == [(reason, body)]


def test_column_that_holds_no_emoji(bench: Bench, relay_shop: Shop) -> None:
    """Magento's tables are utf8 with three bytes a character; PHP's JSON escapes, other publishers may not."""
    relay_shop.query("ALTER TABLE {prefix}queue_message MODIFY body LONGTEXT CHARACTER SET utf8mb3")
    bodies = bench.publish(3)
    emoji = '"\N{GRINNING FACE}"'.encode()
    put(bench, emoji)
    bodies += bench.publish(3, first=3)
    bench.drain([TOPIC_ORDER])
    assert bench.stored() == bodies
    assert bench.aside() == [("relay_not_text", emoji)]


def test_what_is_done_to_many_is_asked_first_and_an_export_appears_when_it_is_complete(
    bench: Bench, run: Run, relay_shop: Shop, tmp_path: Path
) -> None:
    for body in (b'"\xff"', b'"\xfe"'):
        put(bench, body)
    bench.drain([TOPIC_ORDER])
    first, second = (each["id"] for each in json.loads(run("aside", "list", "--json").stdout))
    for action in (("retry",), ("discard", "--note", "x")):
        told = run("aside", *action, "--all")
        assert told.exit_code == 2 and "There is no terminal to ask: give --yes" in told.output
    assert run("aside", "discard", first, "--note", "  ").exit_code == 2
    assert len(bench.aside()) == 2, "nothing was done"

    relay_shop.query("UPDATE {prefix}zithara_relay_aside SET pieces = 2 WHERE id = %s", (first,))
    told = run("aside", "export", first, str(tmp_path / "body.bin"))
    assert "piece 1 is missing" in str(told.exception) and not list(tmp_path.glob("*body.bin*"))
    assert run("aside", "discard", first, second, "--note", "x", "--yes").exit_code == 0
    assert bench.aside() == []


def test_all_means_all_however_many_one_statement_reads(
    bench: Bench, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for body in (b'"\xff"', b'"\xfe"', b'"\xfd"', b'"\xfc"', b'"\xfb"'):
        put(bench, body)
    bench.drain([TOPIC_ORDER])
    ids = [each["id"] for each in json.loads(run("aside", "list", "--json").stdout)]
    monkeypatch.setattr("zithara_worker.relay.aside.SLICE", 2)
    assert "the oldest 2 of 5" in run("aside", "list").output
    assert "5 from RabbitMQ are kept aside" in run("export", str(tmp_path / "failed.jsonl")).output
    assert run("aside", "discard", ids[4], "--note", "x").exit_code == 0, "not among the oldest"
    assert "Shall 4 messages be put" in run("aside", "retry", "--all").output
    told = run("aside", "retry", "--all", "--yes").output
    assert [told.count(each) for each in ids] == [1, 1, 1, 1, 0], "those that stay do not hide the others"
    assert run("aside", "discard", "--all", "--note", "x", "--yes").stdout.count("deleted") == 4
    assert bench.aside() == []


def test_operator_lists_exports_and_discards(bench: Bench, run: Run, tmp_path: Path) -> None:
    body = b'"\xff\x00any bytes"'
    put(bench, body)
    bench.drain([TOPIC_ORDER])
    (listed,) = json.loads(run("aside", "list", "--json").stdout)
    assert (listed["topic"], listed["reason"], listed["bytes"], listed["rabbitmq_message_id"]) == (
        TOPIC_ORDER,
        "relay_not_text",
        len(body),
        "m1",
    )
    assert listed["id"] in run("list").output
    assert "kept aside and not among them" in run("export", str(tmp_path / "failed.jsonl")).output

    target = tmp_path / "body.bin"
    assert run("aside", "export", listed["id"], str(target)).exit_code == 0
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(body).digest()
    assert target.stat().st_mode & 0o077 == 0
    assert run("aside", "export", listed["id"], str(target)).exit_code == 1, "it would write over a file"

    assert "not UTF-8" in run("aside", "retry", listed["id"]).output
    assert "see 'zithara-worker failed aside list'" in str(run("aside", "discard", "unknown", "--note", "x").exception)
    assert run("aside", "discard", listed["id"], "--note", "from a test").exit_code == 0
    assert "no messages are kept aside" in run("aside", "list").output
    audited = json.loads((tmp_path / "audit.jsonl").read_text())
    assert (audited["action"], audited["reason"]) == ("aside discard", "from a test")
