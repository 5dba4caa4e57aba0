"""The sandbox's shop stores, consumes and cleans up what Magento would, and grants the worker no more than it needs."""

from __future__ import annotations

import re
from collections.abc import Callable

import pymysql
import pytest

from zithara_worker.errors import ShopError
from zithara_worker.queue.statuses import Status
from zithara_worker.sandbox.fixtures import Fate, FixtureMessage
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER, TOPIC_WEBHOOK


def test_every_recorded_message_is_stored_byte_for_byte(shop: Shop, plugin_cases: list[FixtureMessage]) -> None:
    cases = [case for case in plugin_cases if case.published is not None]
    assert len(cases) > 100
    for case in cases:
        published = shop.publish(case.topic, case.published)
        assert shop.body(published.message_id) == case.body, case.id


def test_builders_put_each_topic_on_its_queue(shop: Shop) -> None:
    shop.publish_order(increment_id="000000777", grand_total="10.00")
    shop.publish_customer(email="other@example.com")
    shop.publish_cart(platform_cart_id="99")
    shop.publish_webhook("customer_login", payload={"customer_id": "9"})

    assert [(row.topic, row.queue, row.status, row.number_of_trials) for row in shop.rows()] == [
        (TOPIC_ORDER, "zithara_order_queue", 2, 0),
        (TOPIC_CUSTOMER, "zithara_customer_queue", 2, 0),
        (TOPIC_CART, "zithara_cart_queue", 2, 0),
        (TOPIC_WEBHOOK, "zithara_webhook_queue", 2, 0),
    ]
    assert r"\"increment_id\":\"000000777\"" in (shop.body(shop.rows()[0].message_id) or "")
    assert r"\"grand_total\":\"10.00\"" in (shop.body(shop.rows()[0].message_id) or "")


def test_transaction_shows_its_messages_late_though_their_ids_are_lower(shop: Shop) -> None:
    with shop.transaction() as observer:
        early = observer.publish_order("000000001")
        late = shop.publish_order("000000002")
        assert [row.message_id for row in shop.rows()] == [late.message_id]
    assert [row.message_id for row in shop.rows()] == [early.message_id, late.message_id]
    assert early.message_id < late.message_id


def test_transaction_that_raises_publishes_nothing(shop: Shop) -> None:
    with pytest.raises(RuntimeError, match="checkout failed"), shop.transaction() as observer:
        observer.publish_order()
        raise RuntimeError("checkout failed")
    assert shop.rows() == []


def test_message_for_an_unknown_queue_is_refused(shop: Shop) -> None:
    with pytest.raises(ShopError, match=r"'no\.such\.queue' has no row"):
        shop.publish_body("no.such.queue", "{}")


def test_backlog_is_published_in_bulk(shop: Shop) -> None:
    shop.publish_order()
    assert shop.publish_bodies(TOPIC_CART, (f'"{number}"' for number in range(2500))) == 2500
    assert shop.status_counts(TOPIC_CART) == {2: 2500}
    assert shop.status_counts() == {2: 2501}
    bodies = [
        body for (body,) in shop.query("SELECT body FROM {prefix}queue_message WHERE topic_name = %s", [TOPIC_CART])
    ]
    assert sorted(bodies) == sorted(f'"{number}"' for number in range(2500))


@pytest.mark.parametrize("prefix", ["", "m2_"])
def test_keys_are_named_as_magento_names_them(make_shop: Callable[..., Shop], prefix: str) -> None:
    shop = make_shop(prefix=prefix)
    names = {
        name.upper()
        for (name,) in shop.query(
            "SELECT DISTINCT index_name FROM information_schema.statistics WHERE table_schema = %s AND table_name = %s",
            [shop.name, f"{prefix}queue_message_status"],
        )
    }
    assert names == {
        "PRIMARY",
        f"{prefix}queue_message_status_queue_id_message_id".upper(),
        f"{prefix}queue_message_status_status_updated_at".upper(),
        f"{prefix}queue_message_status_message_id_queue_message_id".upper(),
    }
    shop.publish_order()
    assert shop.statuses() == [2]


def test_deleting_a_message_deletes_its_status(shop: Shop) -> None:
    published = shop.publish_order()
    shop.query("DELETE FROM {prefix}queue_message WHERE id = %s", [published.message_id])
    assert shop.rows() == []
    with pytest.raises(LookupError, match=f"no row {published.relation_id}"):
        shop.row(published.relation_id)


def test_php_consumer_takes_in_order_and_completes(shop: Shop) -> None:
    first, second = shop.publish_order("000000001"), shop.publish_order("000000002")
    php = shop.php_consumer(TOPIC_ORDER)
    assert [
        handled and handled.message_id for handled in (php.consume_one(), php.consume_one(), php.consume_one())
    ] == [
        first.message_id,
        second.message_id,
        None,
    ]
    assert shop.statuses() == [4, 4]
    assert shop.query("SELECT COUNT(*) FROM {prefix}queue_lock") == [(2,)]


def test_php_consumer_does_not_take_what_another_holds(shop: Shop) -> None:
    shop.publish_order()
    one, other = shop.php_consumer(TOPIC_ORDER), shop.php_consumer(TOPIC_ORDER)
    seen_by_one, seen_by_other = one.select(), other.select()
    assert seen_by_one is not None and seen_by_one == seen_by_other
    assert one.take(seen_by_one)
    assert not other.take(seen_by_other)


def test_php_consumer_with_a_stale_read_acknowledges_what_has_a_lock_row(shop: Shop) -> None:
    shop.publish_order()
    slow, quick = shop.php_consumer(TOPIC_ORDER), shop.php_consumer(TOPIC_ORDER)
    stale = slow.select()
    assert stale is not None
    assert quick.consume_one() == stale
    assert slow.take(stale), "COMPLETE to IN_PROGRESS is a change, so PHP takes it for its own"
    assert not slow.lock(stale)


def test_php_consumer_rejects_and_requeues(shop: Shop) -> None:
    shop.publish_order("000000001")
    php = shop.php_consumer(TOPIC_ORDER)
    selected = php.select()
    assert selected is not None and php.take(selected) and php.lock(selected)
    php.reject(selected)
    assert shop.statuses() == [6]
    assert shop.query("SELECT * FROM {prefix}queue_lock") == []
    php.requeue(selected)
    assert [(row.status, row.number_of_trials) for row in shop.rows()] == [(5, 1)]


def test_cleanup_cron_deletes_the_old_and_frees_the_stuck(shop: Shop) -> None:
    relations = {status: shop.publish_order(f"{status:09}").relation_id for status in Status}
    for status, relation_id in relations.items():
        shop.query("UPDATE {prefix}queue_message_status SET status = %s WHERE id = %s", [int(status), relation_id])
    shop.publish_order("000000099")
    shop.make_older(minutes=10081, relation_ids=relations.values())

    assert shop.run_cleanup_cron() == {"marked": 3, "retried": 1, "deleted": 4}
    assert {row.relation_id: (row.status, row.number_of_trials) for row in shop.rows()} == {
        relations[Status.IN_PROGRESS]: (5, 1),
        relations[Status.RETRY_REQUIRED]: (5, 0),
        max(relations.values()) + 1: (2, 0),
    }


def test_cleanup_rule_of_zero_minutes_is_off(shop: Shop) -> None:
    shop.publish_order()
    shop.make_older(minutes=100_000)
    assert shop.run_cleanup_cron(new_messages_lifetime=0)["marked"] == 0
    assert shop.statuses() == [2]


def test_poison_pill_changes_each_time(shop: Shop) -> None:
    versions = [shop.change_poison_pill(), shop.change_poison_pill()]
    assert versions[0] != versions[1]
    assert shop.query("SELECT version FROM {prefix}queue_poison_pill") == [(versions[1],)]


def test_configuration_is_saved_over_the_old_one(shop: Shop) -> None:
    shop.configure_webhook(access_token="t", token_expiry="2026-11-23 12:00:00")
    shop.configure_webhook(webhook_url="https://hooks.example.com/")
    shop.set_config("zithara_webhook/general/enabled", "1")
    shop.set_config("zithara_webhook/general/enabled", "0")
    assert shop.query("SELECT config_id, webhook_url, access_token, is_active FROM {prefix}zithara_webhook_config") == [
        (1, "https://hooks.example.com/", None, 1)
    ]
    assert shop.query("SELECT path, value FROM {prefix}core_config_data") == [("zithara_webhook/general/enabled", "0")]


def test_workers_user_may_settle_but_neither_publish_nor_delete(shop: Shop, mariadb: MariaDbServer) -> None:
    shop.publish_order()
    with mariadb.connect(shop.name, user=shop.user, password=shop.password) as worker, worker.cursor() as cursor:
        assert cursor.execute("UPDATE queue_message_status SET status = 3 WHERE status = 2") == 1
        for forbidden in (
            "DELETE FROM queue_message",
            "INSERT INTO queue_message (body) VALUES ('x')",
            "DROP TABLE queue",
        ):
            with pytest.raises(pymysql.err.MySQLError, match=re.compile("denied")):
                cursor.execute(forbidden)


def test_shop_is_usable_again_after_its_server_was_killed() -> None:
    with MariaDbServer() as server, Shop(server) as shop:
        shop.publish_order()
        server.kill()
        server.start()
        shop.publish_order()
        assert shop.statuses() == [2, 2]


def test_dropped_shop_leaves_neither_database_nor_user(mariadb: MariaDbServer) -> None:
    with Shop(mariadb) as shop:
        blocking = shop.connect(autocommit=False)
        with blocking.cursor() as cursor:
            cursor.execute("SELECT * FROM queue_message")  # an open transaction, as a failed test leaves it
        name, user = shop.name, shop.user
    with mariadb.connect() as root, root.cursor() as cursor:
        assert cursor.execute("SELECT 1 FROM information_schema.schemata WHERE schema_name = %s", (name,)) == 0
        assert cursor.execute("SELECT 1 FROM mysql.user WHERE user = %s", (user,)) == 0
    blocking.close()


def test_fixtures_say_what_must_become_of_each_message(plugin_cases: list[FixtureMessage]) -> None:
    fates = {case.id: case.fate for case in plugin_cases}
    requests = {case.id: case.expected_request for case in plugin_cases}
    assert fates["order-001"] is Fate.DELIVERED and requests["order-001"] == "POST /order"
    assert fates["order-116"] is Fate.DELIVERED and requests["order-116"] == "PATCH /order"
    assert fates["webhook-262"] is Fate.DELIVERED and requests["webhook-262"] == "POST webhook"
    assert fates["cart-242"] is Fate.REJECTED and requests["cart-242"] is None
    assert fates["webhook-260"] is Fate.SKIPPED
    assert fates["cart-210"] is Fate.SKIPPED_OR_REJECTED
    assert fates["cart-210"].allows(Fate.SKIPPED) and not fates["cart-210"].allows(Fate.DELIVERED)
