"""Which way a shop publishes, and what brings its messages: judged with a real database, files and a real RabbitMQ."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from support.fleet import register

from zithara_worker import Settings
from zithara_worker.database.session import Database
from zithara_worker.doctor import routing
from zithara_worker.doctor.finding import Finding, Level
from zithara_worker.errors import ConfigurationError
from zithara_worker.monitor.fleet import RABBITMQ, RELAY, RelayedQueue, now_utc
from zithara_worker.pages import folder, page
from zithara_worker.queue.queues import queues_present
from zithara_worker.relay.connection import Waiting
from zithara_worker.sandbox.rabbitmq import RabbitMqServer, VirtualHost
from zithara_worker.sandbox.shop import Shop
from zithara_worker.settings.sections import MagentoSettings, RelaySettings
from zithara_worker.settings.sources import LoadedSettings
from zithara_worker.settings.values import Secret
from zithara_worker.shop.deployment_config import Connection, published_to
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER, TOPIC_WEBHOOK, TOPICS

AMQP = "'amqp' => ['host' => 'mq1', 'port' => '5672', 'user' => 'magento', 'password' => 'x', 'virtualhost' => '/'],"

Examine = Callable[..., dict[str, Finding]]


@pytest.fixture
def root(tmp_path: Path) -> Callable[..., Path]:
    """Writes a shop's two files: root(queue="'amqp' => [...]", modules="'Zithara_DatabaseQueue' => 1")."""

    def write(*, queue: str = "", modules: str | None = "") -> Path:
        etc = tmp_path / "app" / "etc"
        etc.mkdir(parents=True, exist_ok=True)
        (etc / "env.php").write_text(f"<?php return ['queue' => [{queue}], 'db' => []];")
        if modules is not None:
            (etc / "config.php").write_text(f"<?php return ['modules' => ['Zithara_Webhook' => 1, {modules}]];")
        return tmp_path

    return write


@pytest.fixture
def examine(database: Database, settings: Settings) -> Examine:
    """check -> finding of `routing.checks`."""

    def run(*, root: Path | None = None, relay: RelaySettings | None = None, usable: bool = True) -> dict[str, Finding]:
        changed = replace(settings, magento=MagentoSettings(root=root), relay=relay or RelaySettings())
        present, _ = queues_present(database, {})
        found = routing.checks(
            LoadedSettings(settings=changed, sources={("relay", "host"): "program"}),
            database,
            present,
            now_utc(database),
            worker_tables_usable=usable,
        )
        return {finding.check: finding for finding in found}

    return run


@pytest.fixture
def judge(database: Database) -> Examine:
    """check -> finding of `routing.published`, with what RabbitMQ would have answered."""

    def run(way: Connection | None, waiting: Waiting | None = None, **route: Any) -> dict[str, Finding]:
        present, _ = queues_present(database, {})
        given = routing.Route(
            configured={} if way is None else dict.fromkeys(TOPICS, way),
            rabbitmq={queue.name: waiting for queue in present},
            **route,
        )
        found = routing.published(database, present, now_utc(database), given)
        return {finding.check: finding for finding in found}

    return run


# ---------------------------------------------------------------- the shop's files


def test_files_of_the_shop_tell_where_it_publishes(root: Callable[..., Path]) -> None:
    enabled, disabled = "'Zithara_DatabaseQueue' => 1", "'Zithara_DatabaseQueue' => 0"
    assert set(published_to(root(modules=enabled)).values()) == {Connection.DATABASE}
    assert set(published_to(root(queue=AMQP, modules=enabled)).values()) == {Connection.DATABASE}
    assert set(published_to(root(queue=AMQP, modules=disabled)).values()) == {Connection.RABBITMQ}
    assert set(published_to(root(queue=AMQP)).values()) == {Connection.RABBITMQ}
    assert set(published_to(root(modules=disabled)).values()) == {Connection.NONE}
    # A host that only PHP can determine is a host.
    assert set(published_to(root(queue="'amqp' => ['host' => getenv('MQ')]")).values()) == {Connection.RABBITMQ}


def test_publishers_of_env_php_stand_above_the_modules(root: Callable[..., Path]) -> None:
    def publisher(topic: str, **disabled: str) -> str:
        connections = ", ".join(
            f"'{name}' => ['name' => '{name}', 'disabled' => {is_}]" for name, is_ in disabled.items()
        )
        return f"'{topic}' => ['connections' => [{connections}]]"

    publishers = ", ".join(
        [
            publisher(TOPIC_ORDER, amqp="true", db="false"),
            publisher(TOPIC_CART, amqp="false", db="true"),
            publisher(TOPIC_CUSTOMER, amqp="true", db="true"),
            publisher(TOPIC_WEBHOOK, amqp="'1'", db="'0'"),
        ]
    )
    found = published_to(root(queue=f"{AMQP} 'config' => ['publishers' => [{publishers}]]"))
    assert found == {
        TOPIC_ORDER: Connection.DATABASE,
        TOPIC_CART: Connection.RABBITMQ,
        TOPIC_CUSTOMER: Connection.RABBITMQ,
        TOPIC_WEBHOOK: Connection.DATABASE,
    }


def test_unreadable_files_tell_nothing(root: Callable[..., Path], tmp_path: Path) -> None:
    shop_root = root(queue=AMQP, modules=None)
    assert published_to(shop_root) == {}
    (tmp_path / "app/etc/env.php").unlink()
    with pytest.raises(ConfigurationError):
        published_to(shop_root)


# ---------------------------------------------------------------- the judgement


def test_shop_that_publishes_nowhere_fails_with_the_remedy(shop: Shop, judge: Examine) -> None:
    found = judge(Connection.NONE)["published.order"]
    assert found.level is Level.FAILED and "Unknown connection name amqp" in found.found
    assert f"{folder('packaging/magento')} (its README has the commands, cron first)" in found.remedy
    # What arrived within a day came by some way.
    shop.publish_order()
    assert judge(Connection.NONE)["published.order"].level is Level.OK
    shop.make_older(minutes=1500)
    assert judge(Connection.NONE)["published.order"].level is Level.FAILED


def test_shop_on_rabbitmq_without_a_relay_is_told_to_start_one(shop: Shop, judge: Examine) -> None:
    found = judge(Connection.RABBITMQ)["published.cart"]
    assert found.level is Level.WARNING and "no relay is alive" in found.found
    assert "'zithara-worker relay cart'" in found.remedy and page("routing.md") in found.remedy
    shop.publish_cart()
    assert judge(Connection.RABBITMQ)["published.cart"].level is Level.OK, "it came by some other way"
    shop.make_older(minutes=1500)
    assert judge(Connection.RABBITMQ)["published.cart"].level is Level.WARNING
    found = judge(Connection.RABBITMQ, Waiting(messages=1234, consumers=0))["published.cart"]
    assert found.level is Level.FAILED and "1234 messages lie there in zithara_cart_queue, and nothing" in found.found
    found = judge(None, Waiting(messages=0, consumers=2))["published.cart"]
    assert found.level is Level.FAILED and "2 consumers that are no relay (PHP)" in found.found
    assert "stop the PHP consumers of zithara_cart_queue, then start a relay" in found.remedy


def test_shop_on_the_database_is_in_order_unless_messages_of_before_lie_in_rabbitmq(shop: Shop, judge: Examine) -> None:
    found = judge(Connection.DATABASE)["published.order"]
    assert found.level is Level.WARNING and "the shop publishes to the database; no message" in found.found
    assert "elsewhere (RabbitMQ)" in judge(None)["published.order"].remedy
    shop.publish_order()
    found = judge(Connection.DATABASE, Waiting(messages=0, consumers=1))["published.order"]
    assert found.level is Level.OK and found.found.startswith("newest message 1, last touched ")
    assert judge(None)["published.order"].level is Level.OK
    found = judge(Connection.DATABASE, Waiting(messages=3, consumers=0))["published.order"]
    assert found.level is Level.FAILED and "3 messages of before lie in RabbitMQ" in found.found
    assert "relay order --stop-when-empty" in found.remedy and "reconcile" in found.remedy


def test_relay_that_brings_messages_is_named_and_one_that_cannot_says_why(
    shop: Shop, database: Database, examine: Examine
) -> None:
    shop.publish_order()
    queues = {
        TOPIC_ORDER: asdict(RelayedQueue(state="paused", waiting=40)),
        TOPIC_CART: asdict(RelayedQueue(state="waiting", why="RabbitMQ refuses user u: grant it")),
    }
    relay = register(database, "shop1-7-a", role=RELAY, state={RABBITMQ: queues})
    found = examine()
    assert found["rabbitmq"].level is Level.OK and "none is configured" in found["rabbitmq"].found
    assert found["published.order"].level is Level.OK
    assert "relay shop1 7 brings them from RabbitMQ, where 40 wait; newest message 1" in found["published.order"].found
    assert found["published.cart"].level is Level.FAILED and "refuses user u" in found["published.cart"].found
    assert found["published.customer"].level is Level.WARNING
    assert (found["relays"].level, found["relays"].found) == (Level.OK, "1 alive")

    shop.query("UPDATE {prefix}zithara_worker SET last_seen_at = NOW(3) - INTERVAL 1 MINUTE")
    assert "relay" not in examine()["published.order"].found
    lost = examine()["relays"]
    assert lost.level is Level.FAILED and all(topic in lost.found for topic in TOPICS)
    assert "'zithara-worker relay order customer cart webhook'" in lost.remedy
    assert "relays" not in examine(usable=False)
    relay.stopped({})
    assert "relays" not in examine(), "one that stopped in order is not missed"


def test_messages_kept_aside_are_told(shop: Shop, examine: Examine) -> None:
    assert not {"relays", "relays.aside"} & examine().keys()
    shop.query(
        "INSERT INTO {prefix}zithara_relay_aside (id, piece, pieces, queue_name, topic_name, message_id, length, "
        "reason_code, detail, kept_at, content) VALUES ('a', 0, 1, 'q', %s, 'm', 9, 'x', '', NOW(3), 'y')",
        (TOPIC_ORDER,),
    )
    found = examine()["relays.aside"]
    assert found.level is Level.WARNING and f"1 of {TOPIC_ORDER}" in found.found and "failed aside list" in found.remedy


# ---------------------------------------------------------------- RabbitMQ


def test_rabbitmq_is_asked_what_it_has(rabbitmq: RabbitMqServer, virtual_host: VirtualHost, examine: Examine) -> None:
    virtual_host.publish_samples()
    relay = RelaySettings(
        host="127.0.0.1",
        port=rabbitmq.port,
        user=virtual_host.user,
        password=Secret(virtual_host.password),
        vhost=virtual_host.name,
    )
    found = examine(relay=relay)
    assert found["rabbitmq"].level is Level.OK and "zithara_order_queue" in found["rabbitmq"].found
    assert found["published.order"].found.startswith("the shop publishes to RabbitMQ: 2 messages lie there")
    # Magento's own queue may be missing, and the others are judged all the same.
    with virtual_host.channel() as channel:
        channel.queue_delete("zithara_order_queue")
    found = examine(relay=relay)
    assert "zithara_order_queue" not in found["rabbitmq"].found and "elsewhere" in found["published.order"].remedy

    with VirtualHost(rabbitmq) as other:
        refused = examine(relay=replace(relay, vhost=other.name))["rabbitmq"]
    assert refused.level is Level.FAILED and virtual_host.user in refused.found
    assert "set_permissions" in refused.remedy and virtual_host.password not in str(refused)


def test_rabbitmq_that_cannot_be_asked_is_a_fault_only_where_it_is_needed(
    examine: Examine, root: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = RelaySettings(host="127.0.0.1", port=1)
    assert examine(relay=relay)["rabbitmq"].level is Level.FAILED
    routed = root(queue=AMQP, modules="'Zithara_DatabaseQueue' => 1")
    assert examine(relay=relay, root=routed)["rabbitmq"].level is Level.WARNING

    real = builtins.__import__

    def without_pika(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "zithara_worker.relay.connection":
            raise ModuleNotFoundError("No module named 'pika'", name="pika")
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without_pika)
    found = examine(relay=relay)["rabbitmq"]
    assert found.level is Level.FAILED and "python3-pika" in found.remedy
