"""The checks of the delivery ledger, each made to speak on a real database."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from zithara_worker.database.session import Database
from zithara_worker.doctor import Finding, ledger
from zithara_worker.monitor.registry import Identity, Registry
from zithara_worker.queue.ledger_upkeep import begin
from zithara_worker.queue.queues import find_queues
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPICS


@pytest.fixture
def complaints(database: Database) -> Callable[[], dict[str, Finding]]:
    def look() -> dict[str, Finding]:
        found = ledger.checks(database, find_queues(database, TOPICS, {}))
        return {finding.check: finding for finding in found if finding.check != "ledger"}

    begin(database)
    return look


def worker(database: Database, *, version: str, topic: str) -> None:
    """One that was seen just now."""
    identity = Identity(id="worker-a", host="shop1", pid=7, version=version, topics=(topic,))
    Registry(database, identity).update(in_flight=0, metrics_address=None, state={}, minutes={})


def test_a_ledger_that_is_kept_has_no_complaint(complaints: Callable[[], dict[str, Finding]]) -> None:
    assert complaints() == {}


def test_others_who_record_nothing_are_told_with_their_topic(
    shop: Shop, database: Database, complaints: Callable[[], dict[str, Finding]]
) -> None:
    worker(database, version="0.2.1", topic=TOPIC_CART)
    assert "every message of cart is sent" in complaints()["ledger.others"].found
    shop.publish_customer()
    shop.query("UPDATE {prefix}queue_message_status SET status = 3")
    assert "every message of cart, customer is sent" in complaints()["ledger.others"].found


def test_ids_that_began_again_are_told_with_how_many_entities_are_concerned(
    shop: Shop, complaints: Callable[[], dict[str, Finding]]
) -> None:
    shop.query(
        "INSERT INTO {prefix}zithara_delivery (topic_name, group_key, destination, message_id, published_at, covers, "
        "first_accepted_at, last_accepted_at, accepted) VALUES (%s, 'cart:1', 'd', 7, NOW(), '', NOW(), NOW(), 1)",
        [TOPIC_CART],
    )
    assert complaints() == {}
    shop.query("UPDATE {prefix}zithara_ledger SET id_epoch = 1")
    assert "of 1 orders, customers and carts" in complaints()["ledger.ids"].found


def test_workers_that_do_not_look_what_others_delivered_are_told(
    shop: Shop, database: Database, complaints: Callable[[], dict[str, Finding]]
) -> None:
    shop.query("UPDATE {prefix}zithara_ledger SET looked_until = NOW(3) - INTERVAL 61 SECOND")
    assert complaints() == {}
    worker(database, version="0.3.0", topic=TOPIC_CART)
    assert "messages of cart are sent though nothing changed" in complaints()["ledger.behind"].found


def test_a_server_that_does_not_say_which_id_is_next_is_told(
    shop: Shop, complaints: Callable[[], dict[str, Finding]]
) -> None:
    shop.query("SET foreign_key_checks = 0")
    shop.query("ALTER TABLE {prefix}queue_message MODIFY id BIGINT UNSIGNED NOT NULL")
    assert "does not say which id queue_message gives out next" in complaints()["ledger.next_id"].found


def test_carts_that_may_not_be_read_are_told(shop: Shop, complaints: Callable[[], dict[str, Finding]]) -> None:
    shop.query(f"REVOKE SELECT (entity_id, is_active) ON {shop.name}.quote FROM '{shop.user}'@'%'")
    assert "carts that became orders are sent" in complaints()["ledger.carts"].found
