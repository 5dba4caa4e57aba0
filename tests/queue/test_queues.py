"""The queue of a topic, under whichever name the shop has it."""

from __future__ import annotations

import pytest

from zithara_worker.database.session import Database
from zithara_worker.errors import ShopError
from zithara_worker.queue.queues import QueueRow, find_queues, queues_present
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER, TOPICS


def add_queue(shop: Shop, name: str) -> int:
    shop.query("INSERT INTO {prefix}queue (name) VALUES (%s)", (name,))
    ((queue_id,),) = shop.query("SELECT id FROM {prefix}queue WHERE name = %s", (name,))
    return int(queue_id)


def test_a_topic_has_the_queue_that_the_module_declares(shop: Shop, database: Database) -> None:
    add_queue(shop, TOPIC_ORDER)
    assert [row.name for row in find_queues(database, [TOPIC_CART, TOPIC_ORDER], {})] == [
        "zithara_cart_queue",
        "zithara_order_queue",
    ]


def test_without_it_a_queue_named_like_the_topic_serves(shop: Shop, database: Database) -> None:
    shop.query("DELETE FROM {prefix}queue WHERE name = 'zithara_order_queue'")
    queue_id = add_queue(shop, TOPIC_ORDER)
    assert find_queues(database, [TOPIC_ORDER], {}) == [QueueRow(queue_id, TOPIC_ORDER, TOPIC_ORDER)]


def test_an_override_is_the_only_name_that_counts(shop: Shop, database: Database) -> None:
    overrides = {TOPIC_ORDER: "my_queue"}
    with pytest.raises(
        ShopError, match=r"zithara\.order\.events \(looked for my_queue\): run 'zithara-worker install'"
    ):
        find_queues(database, [TOPIC_ORDER], overrides)
    queue_id = add_queue(shop, "my_queue")
    assert find_queues(database, [TOPIC_ORDER], overrides) == [QueueRow(queue_id, "my_queue", TOPIC_ORDER)]


def test_every_topic_without_a_queue_is_named_with_what_was_looked_for(shop: Shop, database: Database) -> None:
    shop.query("DELETE FROM {prefix}queue WHERE name IN ('zithara_order_queue', 'zithara_cart_queue')")
    with pytest.raises(ShopError) as raised:
        find_queues(database, TOPICS, {})
    text = str(raised.value)
    assert f"{TOPIC_ORDER} (looked for zithara_order_queue and {TOPIC_ORDER})" in text and TOPIC_CART in text
    assert "zithara.customer.events" not in text
    present, missing = queues_present(database, {})
    assert ([row.topic for row in present], missing) == (
        [topic for topic in TOPICS if topic not in (TOPIC_ORDER, TOPIC_CART)],
        [TOPIC_ORDER, TOPIC_CART],
    )


def test_a_shop_without_any_of_the_queues_is_an_error(shop: Shop, database: Database) -> None:
    shop.query("DELETE FROM {prefix}queue")
    with pytest.raises(ShopError, match="no row in table queue for"):
        queues_present(database, {})


def test_a_topic_that_is_asked_for_twice_has_one_queue(database: Database) -> None:
    assert len(find_queues(database, [TOPIC_ORDER, TOPIC_ORDER], {})) == 1
