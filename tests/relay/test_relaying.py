"""The relay moves messages from RabbitMQ into the shop's queue: all of them, unchanged, in order, once."""

from __future__ import annotations

import json
from pathlib import Path

from relay.conftest import Bench
from support.waiting import eventually

from zithara_worker.limits import End
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER, TOPICS

SAMPLES = Path(__file__).parents[1] / "fixtures" / "amqp-samples.jsonl"


def test_messages_of_a_real_shop_arrive_unchanged_and_in_order(bench: Bench) -> None:
    samples = [json.loads(line) for line in SAMPLES.read_text(encoding="utf-8").splitlines()]
    bench.virtual_host.publish_bodies(
        [(each["routing_key"], each["body"]) for each in samples],
        message_ids=[each["properties"]["message_id"] for each in samples],
    )
    bench.drain()
    for topic in TOPICS:
        assert bench.stored(topic) == [each["body"] for each in samples if each["routing_key"] == topic]
    assert {(row.queue, row.status, row.number_of_trials) for row in bench.shop.rows()} == {
        (queue, 2, 0) for queue in {each["queue"] for each in samples}
    }
    bench.wait_until_settled()


def test_backlog_of_several_batches_keeps_its_order(typed_bench: Bench) -> None:
    bodies = typed_bench.publish(1500)
    typed_bench.drain([TOPIC_ORDER])
    assert typed_bench.stored() == bodies


def test_message_that_is_published_while_the_relay_waits_arrives_at_once(bench: Bench) -> None:
    with bench.running():
        eventually(lambda: bench.shop.query("SELECT 1 FROM {prefix}zithara_worker WHERE role = 'relay'"))
        bodies = bench.publish(1)
        bench.wait_until_stored(bodies, within=5)
        bench.wait_until_settled()
    # It has freed its locks, and the registry knows that it stopped in order.
    assert bench.shop.query("SELECT name FROM {prefix}zithara_lock") == []
    assert bench.shop.query("SELECT role, topics FROM {prefix}zithara_worker") == [("relay", "")]


def test_only_the_asked_topics_are_relayed(bench: Bench) -> None:
    carts = bench.publish(3, topic=TOPIC_CART)
    bench.publish(2)
    bench.drain([TOPIC_CART])
    assert (bench.stored(TOPIC_CART), bench.stored()) == (carts, [])
    assert bench.virtual_host.waiting()[TOPIC_ORDER] == 2


def test_limit_of_messages(bench: Bench) -> None:
    bodies = bench.publish(10)
    assert bench.drain([TOPIC_ORDER], max_messages=4) is End.MESSAGES
    assert bench.stored() == bodies[:4]
    eventually(lambda: bench.virtual_host.waiting()[TOPIC_ORDER] == 6)
    bench.drain([TOPIC_ORDER])
    assert bench.stored() == bodies


def test_ids_of_rows_are_right_where_a_cluster_counts_in_steps(bench: Bench, relay_shop: Shop) -> None:
    """Every node of a Galera cluster uses ids of its own: auto_increment_increment is the number of nodes."""
    relay_shop.query("SET GLOBAL auto_increment_increment = 3")
    try:
        bodies = bench.publish(30)
        bench.drain([TOPIC_ORDER])
    finally:
        relay_shop.query("SET GLOBAL auto_increment_increment = 1")
    assert bench.stored() == bodies


def test_same_id_with_another_body_is_another_message(bench: Bench) -> None:
    """Older versions of Magento make message ids that two processes can share."""
    bench.virtual_host.publish_bodies(
        [(TOPIC_ORDER, '"a"'), (TOPIC_ORDER, '"b"'), (TOPIC_ORDER, '"a"')], message_ids=["same", "same", "same"]
    )
    bench.drain([TOPIC_ORDER])
    assert bench.stored() == ['"a"', '"b"']


def test_messages_without_an_id_are_all_new(bench: Bench) -> None:
    bench.virtual_host.publish_bodies([(TOPIC_ORDER, '"a"'), (TOPIC_ORDER, '"a"')], message_ids=[None, None])
    bench.drain([TOPIC_ORDER])
    assert bench.stored() == ['"a"', '"a"']


def test_message_is_recognised_by_a_long_id(bench: Bench) -> None:
    long = "i" * 250
    for _ in range(2):
        bench.virtual_host.publish_bodies([(TOPIC_ORDER, '"a"')], message_ids=[long])
        bench.drain([TOPIC_ORDER])
    assert bench.stored() == ['"a"']
