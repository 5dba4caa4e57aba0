"""The life of one entity: in the shop, at Zithara, its messages, what waits and why, and the next step."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from support.fleet import register
from support.workers import Clock, StepWorker, settings_of

from zithara_worker.commands.failed_selection import queues_of
from zithara_worker.commands.prospects import SENT, Prospects
from zithara_worker.commands.root import Context
from zithara_worker.commands.trace import _READERS, _entity, as_value, report, steps
from zithara_worker.completeness.trace import Entity, Traced, entity_of_message, trace
from zithara_worker.database.session import Database
from zithara_worker.errors import ShopError
from zithara_worker.messages import OutcomeKind
from zithara_worker.queue import failures
from zithara_worker.queue.operator import pause
from zithara_worker.queue.queues import find_queues
from zithara_worker.sandbox.api import FakeZithara, RecordedRequest, Reply
from zithara_worker.sandbox.publisher import stored_body
from zithara_worker.sandbox.session import worker_command, write_config
from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.shop_tables import ShopTables
from zithara_worker.settings.values import Secret
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER

Consume = Callable[[], None]
Look = Callable[..., Traced]


@pytest.fixture
def tables(shop: Shop) -> ShopTables:
    made = ShopTables(shop)
    made.create(rows=False)
    return made


@pytest.fixture
def operator(shop: Shop) -> Iterator[Database]:
    """A session of an account that may read the shop's tables."""
    database = Database(settings_of(shop, user="root", password=Secret("")))
    yield database
    database.close()


@pytest.fixture
def look(worker_config: Callable[..., Path], operator: Database) -> Look:
    """look("order", "000000101"): what `trace` finds."""

    def run(kind: str, name: str, *, database: Database = operator, **options: Any) -> Traced:
        context = Context(worker_config())
        queues, prospects = queues_of(database, context), Prospects(context, database)
        entity: Entity | None = Entity(kind=kind, name=name, group_key=f"{kind}:{name}")
        if kind == "message":
            entity = entity_of_message(database, int(name), queues)
        assert entity is not None
        reader = _READERS.get(entity.kind)
        return trace(
            database,
            entity,
            queues=queues,
            reader=reader(database) if reader else None,
            rules=prospects,
            **options,
        )

    return run


def ids(found: Traced) -> list[int]:
    return [each.row.message_id for each in found.messages]


def ended(found: Traced) -> list[str]:
    return [each.ended for each in found.messages]


def waits(found: Traced) -> list[tuple[int, str, int | None]]:
    return [(each.message_id, each.why, each.other_id) for each in found.waits]


def commands(found: Traced) -> list[str | None]:
    return [command for command, _ in steps(found)]


# ---------------------------------------------------------------- as it is typed


def test_an_operator_sees_the_life_of_an_order_and_what_to_do(
    shop: Shop,
    api: FakeZithara,
    tables: ShopTables,
    consume: Consume,
    tmp_path: Path,
    worker_config: Callable[..., Path],
) -> None:
    def respond(request: RecordedRequest) -> Reply | None:
        return Reply.error(422, "refused for anna@example.com") if b"cancelled" in request.body else None

    api.responder = respond
    order_id = tables.place_order("000000101", state="complete", status="complete")
    shop.publish_order("000000101")
    shop.publish_order("000000102")
    shop.publish_order("000000101", is_update=True)
    consume()
    shop.publish_order("000000101", is_update=True, state="canceled", status="canceled")
    shop.publish_webhook(payload={"order_id": str(order_id)})
    consume()
    shop.publish_order("000000101", is_update=True)

    def run(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [worker_command(), "--config", str(config), "trace", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)

    privileged = write_config(tmp_path / "operator.conf", shop, api, {"database": {"user": "root", "password": ""}})
    done = run(privileged, "order", "000000101")
    assert done.returncode == 0, done.stderr
    told = done.stdout
    assert told.startswith("order 000000101\n  in the shop  entity 1 of store 1, created ")
    assert ": completed 504.5 INR\n" in told and "Zithara does not have this state" in told
    assert re.search(r"at Zithara   accepted .* by message 3; 2 requests", told)
    assert re.search(r" 1  order +complete .* accepted by Zithara\n", told)
    assert re.search(r" 4  order +error .* given up \(http_422, HTTP 422\)\n +\S+  http_422 HTTP 422", told)
    assert "answer: HTTP 422" in told and "anna@" not in told
    assert re.search(r" 6  order +new .* not ended\n", told)
    assert "6: is taken next" in told and "order: no living worker serves it" in told
    assert "next         zithara-worker consume order\n" in told and "zithara-worker failed retry 4\n" in told
    # The stored answer is masked whatever is asked for; what the shop's rows make is not.
    value = json.loads(run(privileged, "order", "000000101", "--json", "--unmasked").stdout)
    assert value["shop"]["entities"][0]["request"]["customer"]["first_name"] == "Meera"
    assert [each["ended"] for each in value["messages"]] == ["accepted", "accepted", "failed", "complete", None]

    poor = run(worker_config(), "order", "000000101")
    assert poor.returncode == 0 and "cannot be read" in poor.stdout and "given up (http_422" in poor.stdout
    nothing = run(privileged, "order", "000000999")
    assert nothing.returncode == 1 and "not there: deleted, or never committed" in nothing.stdout


def test_what_cannot_be_traced_is_refused_with_what_to_give(database: Database, shop: Shop) -> None:
    queues = find_queues(database, [TOPIC_ORDER], {})
    with pytest.raises(click.UsageError, match=r"which order\? Give its number"):
        _entity(database, "order", "", queues)
    with pytest.raises(click.UsageError, match="'x' is no message id: give the number that the log"):
        _entity(database, "message", "x", queues)
    with pytest.raises(ShopError, match="there is no message 999 in the queues zithara_order_queue"):
        _entity(database, "message", "999", queues)
    assert _entity(database, "order", "#7/b", queues).group_key == "order:#7/b"


def test_a_customer_a_cart_and_a_message_are_traced_as_they_are_typed(
    shop: Shop, tables: ShopTables, consume: Consume, api: FakeZithara, tmp_path: Path
) -> None:
    customer_id, cart_id = tables.save_customer(), tables.open_cart()
    shop.publish_customer(str(customer_id))
    shop.publish_cart(str(cart_id))
    login = shop.publish_webhook("customer_login", payload={"customer_id": str(customer_id)})
    consume()
    config = write_config(tmp_path / "operator.conf", shop, api, {"database": {"user": "root", "password": ""}})

    def run(*arguments: str) -> dict[str, Any]:
        command = [worker_command(), "--config", str(config), "trace", *arguments, "--json"]
        value: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
        return value

    customer, cart = run("customer", str(customer_id)), run("cart", str(cart_id))
    assert [(each["topic"], each["ended"]) for each in customer["messages"]] == [
        (TOPIC_CUSTOMER, "accepted"),
        ("zithara.webhook.events", "complete"),
    ]
    assert [(each["id"], each["topic"], each["ended"]) for each in cart["messages"]] == [(2, TOPIC_CART, "accepted")]
    assert cart["shop"]["entities"][0]["request"]["customer"]["email"] == "***"
    of_message = run("message", str(login.message_id))
    del of_message["at"], customer["at"]
    assert of_message == customer


# ---------------------------------------------------------------- the shop, and what Zithara has


def test_the_shops_state_is_compared_by_content(
    shop: Shop, tables: ShopTables, operator: Database, consume: Consume, look: Look
) -> None:
    cart_id = tables.open_cart()
    (payload,) = [each.payload for each in _READERS["cart"](operator).build([cart_id]).values()]
    shop.publish(TOPIC_CART, payload)
    assert look("cart", str(cart_id)).in_shop[0].has_latest is False
    consume()
    found = look("cart", str(cart_id))
    assert found.in_shop[0].has_latest is True and commands(found) == []
    tables.change("quote", cart_id, grand_total="1.0000", updated_at="2026-11-24 23:59:59")
    found = look("cart", str(cart_id))
    assert found.in_shop[0].has_latest is False
    window = "--since '2026-11-24 23:59:59' --until '2026-11-25 00:00:00'"
    assert commands(found) == [f"zithara-worker reconcile carts {window} --publish"]
    shop.query("SET SESSION sql_mode = ''")
    shop.query("UPDATE {prefix}quote SET updated_at = '0000-00-00 00:00:00'")
    assert commands(look("cart", str(cart_id))) == ["zithara-worker reconcile carts --all --publish"]
    shop.query("UPDATE {prefix}zithara_delivery SET content = NULL")
    assert look("cart", str(cart_id)).in_shop[0].has_latest is None
    tables.change("quote", cart_id, is_active=0)
    ordered = look("cart", str(cart_id)).in_shop[0]
    assert (ordered.entity.id, ordered.has_latest, ordered.request) == (cart_id, None, None)


def test_a_state_that_an_operator_discarded_is_not_to_be_published(shop: Shop, tables: ShopTables, look: Look) -> None:
    cart_id = tables.open_cart()
    published = shop.publish_cart(str(cart_id))
    shop.query("UPDATE {prefix}queue_message_status SET status = 4")
    shop.query(
        "INSERT INTO {prefix}zithara_delivery_failure (id, queue_id, message_id, topic_name, group_key, attempts, "
        "reason_code, detail, first_failed_at, last_failed_at, history, discarded_at) SELECT id, queue_id, message_id, "
        "%s, %s, 1, 'http_400', '', NOW(), NOW(), '', NOW() FROM {prefix}queue_message_status",
        [TOPIC_CART, f"cart:{cart_id}"],
    )
    assert commands(look("cart", str(cart_id))) == [f"zithara-worker failed retry {published.message_id}"]


def test_an_order_number_of_two_stores_is_said(tables: ShopTables, look: Look) -> None:
    tables.place_order("000000101")
    tables.place_order("000000101", store_id=2)
    tables.place_order("000000102")
    found = look("order", "000000101")
    assert [each.entity.store_id for each in found.in_shop] == [1, 2]
    text = "\n".join(report(found, unmasked=False, audit_file=None))
    assert "2 stores have an order of this number, and Zithara cannot tell them apart" in text
    assert commands(found) == [None]
    tables.place_order("a-1")
    assert look("order", "A-1").in_shop == (), "another one for Zithara, though the same for the database"


@pytest.mark.parametrize(
    ("kind", "name", "why"),
    [
        ("customer", "anna@example.com", "its ids are numbers"),
        ("customer", "999", "deleted, or never committed"),
        ("order", "W-1", "deleted, or never committed"),
    ],
)
def test_what_is_not_in_the_shop_is_told_with_a_reason(
    tables: ShopTables, look: Look, kind: str, name: str, why: str
) -> None:
    lines = list(report(look(kind, name), unmasked=False, audit_file=None))
    assert f"  in the shop  not there: {why}" in lines


def test_what_another_account_accepted_is_not_what_this_one_has(
    shop: Shop, tables: ShopTables, operator: Database, consume: Consume, look: Look
) -> None:
    cart_id = tables.open_cart()
    (payload,) = [each.payload for each in _READERS["cart"](operator).build([cart_id]).values()]
    shop.publish(TOPIC_CART, payload)
    consume()
    shop.query("UPDATE {prefix}zithara_delivery SET destination = REPEAT('0', 64)")
    found = look("cart", str(cart_id))
    assert found.in_shop[0].has_latest is False
    assert "by another account than the one in use" in "\n".join(report(found, unmasked=False, audit_file=None))


# ---------------------------------------------------------------- its messages


def test_messages_of_others_that_have_the_same_id_in_them_are_not_shown(
    shop: Shop, look: Look, database: Database
) -> None:
    mine = shop.publish_cart("7001")
    shop.publish_cart("70010")
    shop.publish_cart("7002", name="7001")
    # After a restore the ids that the ledger names are those of other messages.
    other = shop.publish_cart("7003")
    shop.query(
        "INSERT INTO {prefix}zithara_delivery (topic_name, group_key, destination, message_id, published_at, covers, "
        "first_accepted_at, last_accepted_at, accepted) VALUES (%s, 'cart:7001', 'x', %s, NOW(), '', NOW(), NOW(), 1)",
        (TOPIC_CART, other.message_id),
    )
    assert ids(look("cart", "7001", database=database)) == [mine.message_id]


def test_a_message_that_magento_deleted_is_known_by_what_zithara_accepted(
    shop: Shop, consume: Consume, look: Look, database: Database
) -> None:
    published = shop.publish_cart("7001")
    consume()
    shop.query("DELETE FROM {prefix}queue_message")
    found = look("message", str(published.message_id), database=database)
    assert (found.entity.group_key, found.messages, found.is_known) == ("cart:7001", (), True)


def test_a_message_without_an_entity_and_webhooks_of_an_order_are_traced_by_themselves(
    shop: Shop, consume: Consume, look: Look, database: Database
) -> None:
    broken = shop.publish_body(TOPIC_ORDER, "no json")
    webhooks = [shop.publish_webhook(payload={"order_id": 17}).message_id for _ in range(2)]
    shop.publish_order("17")
    consume()
    assert ids(look("message", str(broken.message_id), database=database)) == [broken.message_id]
    found = look("message", str(webhooks[0]), database=database)
    assert ids(found) == webhooks and found.accepted is None
    assert next(report(found, unmasked=False, audit_file=None)) == "order with entity id 17"


def test_discarded_and_overtaken_ones_are_told_with_what_a_retry_would_do(
    shop: Shop, consume: Consume, refused: set[str], look: Look, database: Database
) -> None:
    refused.add("000000777")
    shop.publish_order("000000777")
    shop.publish_order("000000777")
    consume()
    shop.query("UPDATE {prefix}queue_message_status SET status = 4 WHERE message_id = 1")
    shop.query("UPDATE {prefix}zithara_delivery_failure SET discarded_at = NOW() WHERE message_id = 1")
    refused.clear()
    shop.publish_order("000000777")
    consume()
    found = look("order", "000000777", database=database)
    assert [(each.ended, each.retry) for each in found.messages] == [
        ("discarded", "needs_force"),
        ("failed", "needs_force"),
        ("accepted", None),
    ]
    assert commands(found) == ["zithara-worker failed discard 2 --note '...'"]


def test_many_complete_messages_are_left_out_of_the_screen_only(shop: Shop, look: Look, database: Database) -> None:
    shop.publish_bodies(TOPIC_CART, [stored_body({"cart": {"platform_cart_id": "7"}, "n": n}) for n in range(25)])
    shop.query("UPDATE {prefix}queue_message_status SET status = 4")
    found = look("cart", "7", database=database)
    text = "\n".join(report(found, unmasked=False, audit_file=Path("/var/log/a b.log")))
    assert "left out here: 15 delivered, or no request was needed; --json has them" in text
    assert re.findall(r"^ +(\d+)  cart ", text, re.MULTILINE) == [str(id) for id in ids(found)[15:]]
    assert """grep -h '"group":"cart:7"' '/var/log/a b.log'*""" in text
    assert len(as_value(found, unmasked=False)["messages"]) == 25


def test_a_flood_of_one_cart_fits_on_a_screen_with_one_command_for_all(
    shop: Shop, consume: Consume, api: FakeZithara, look: Look, database: Database
) -> None:
    """What the module's cron publishes of an abandoned cart while the API refuses it, and while nobody takes it."""
    api.responder = lambda request: Reply.error(422) if request.path.endswith("/cart") else None
    for number in range(12):
        shop.publish_cart("7001", total_price=number)
        consume()
    pending = [shop.publish_cart("7001", total_price=number).message_id for number in range(30)]
    found = look("cart", "7001", database=database)
    lines = list(report(found, unmasked=False, audit_file=None))
    assert len(lines) < 70 and any("left out here: 2 given up, 20 not ended" in line for line in lines)
    assert sum(f": message {pending[0]} goes first" in line for line in lines) == 9
    assert "               20 more go after these" in lines
    assert "zithara-worker failed retry --all --topic cart --group cart:7001" in commands(found)
    by_php = shop.publish_cart("7001")
    shop.query("UPDATE {prefix}queue_message_status SET status = 6 WHERE id = %s", [by_php.relation_id])
    assert any(f" {by_php.message_id}" in str(command) for command in commands(look("cart", "7001", database=database)))


def test_few_bodies_of_what_failed_are_in_memory_at_once(
    shop: Shop, look: Look, operator: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.publish_bodies(TOPIC_CART, [stored_body({"cart": {"platform_cart_id": "7"}, "n": n}) for n in range(6)])
    shop.query("UPDATE {prefix}queue_message_status SET status = 6")
    judged_at = []

    def retry(*message: object) -> str:
        judged_at.append(operator.statements_sent)
        return SENT

    monkeypatch.setattr(failures, "BODIES", 2)
    monkeypatch.setattr(Prospects, "retry", retry)
    assert [each.retry for each in look("cart", "7").messages] == [SENT] * 6
    first = judged_at[0]
    assert judged_at == [first, first, first + 1, first + 1, first + 2, first + 2]


def test_the_fields_of_the_json_are_these(shop: Shop, tables: ShopTables, look: Look, consume: Consume) -> None:
    """Programs read them: a field may be added, none goes away or changes its meaning."""
    tables.place_order("000000101")
    shop.publish_order("000000101")
    consume()
    shop.publish_order("000000101")
    value = as_value(look("order", "000000101"), unmasked=False)
    assert value.keys() == {
        *("at", "kind", "name", "group", "shop", "accepted", "messages", "waits", "blocks", "next", "searched"),
    }
    assert value["shop"].keys() == {"problem", "ambiguous", "entities"}
    assert value["shop"]["entities"][0].keys() == {
        *("entity_id", "store_id", "created_at", "updated_at", "zithara_has_it", "request"),
    }
    assert {"message_id", "create_id", "last_accepted_at", "accepted", "sure", "stale"} <= value["accepted"].keys()
    assert value["messages"][0].keys() == {
        *("id", "relation_id", "queue", "topic", "status", "reason", "http_status", "detail", "attempts", "retries"),
        *("number_of_trials", "first_failed_at", "last_failed_at", "updated_at", "discarded_at", "history", "endpoint"),
        *("entity_updated_at", "ended", "retry"),
    }
    assert value["messages"][0]["reason"] is None and value["messages"][0]["endpoint"] == "POST /order"
    assert value["waits"][0].keys() == {"message_id", "why", "until", "other_id", "worker"}
    assert value["blocks"][0].keys() == {"topic", "why", "detail"}
    assert value["next"][0].keys() == {"command", "why"}
    assert value["searched"] == {"messages": 2, "complete": True}
    assert json.loads(json.dumps(value)) == value


def test_ctrl_c_ends_the_search_and_what_was_found_is_shown(shop: Shop, look: Look, operator: Database) -> None:
    wanted = []
    for _ in range(60):
        wanted.append(shop.publish_cart("7001").message_id)
        shop.publish_customer("7001")
    by_index = shop.row(1)
    shop.query(
        "INSERT INTO {prefix}zithara_message_group (queue_id, group_key, id, message_id) "
        "SELECT queue_id, 'cart:7001', id, message_id FROM {prefix}queue_message_status WHERE id = %s",
        [by_index.relation_id],
    )

    def interrupt(done: int, total: int) -> None:
        assert 0 < done < total
        raise KeyboardInterrupt

    found = look("cart", "7001", on_progress=interrupt)
    assert ids(found) == [by_index.message_id, *wanted[-20:]] and not found.searched.complete
    assert "only the newest 20 messages were searched" in "\n".join(report(found, unmasked=False, audit_file=None))
    assert ids(look("cart", "7001")) == wanted
    steps_done: list[tuple[int, int]] = []
    whole = look("cart", "7001", on_progress=lambda done, total: steps_done.append((done, total)))
    assert whole.searched.complete and whole.searched.messages == 60 and steps_done[-1] == (119, 119)
    assert ids(look("cart", "7001", newest=5)) == [by_index.message_id, *wanted[-5:]]
    assert not look("cart", "7001", newest=5).searched.complete
    assert look("cart", "7001", newest=60).searched.complete


def test_what_an_index_finds_costs_the_same_behind_many_rows(shop: Shop, look: Look, operator: Database) -> None:
    def cost() -> int:
        with operator._open().cursor() as cursor:
            cursor.execute("FLUSH STATUS")
            look("order", "000000005", newest=1)
            cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
            return sum(int(value) for _, value in cursor.fetchall())

    shop.publish_order("000000005")
    shop.query("UPDATE {prefix}queue_message_status SET status = 6")
    few = cost()
    shop.publish_bodies(TOPIC_ORDER, [stored_body({"order": {"increment_id": str(n)}}) for n in range(3000)])
    shop.query("UPDATE {prefix}queue_message_status SET status = 6")
    shop.query(
        "INSERT INTO {prefix}zithara_delivery_failure (id, queue_id, message_id, topic_name, group_key, attempts, "
        "reason_code, detail, first_failed_at, last_failed_at, history) SELECT id, queue_id, message_id, '', "
        "CONCAT('order:', id), 1, 'x', '', NOW(), NOW(), '' FROM {prefix}queue_message_status WHERE id > 1"
    )
    shop.query("ANALYZE TABLE {prefix}zithara_delivery_failure, {prefix}queue_message_status")
    assert cost() <= few + 20


# ---------------------------------------------------------------- what waits


def test_what_waits_is_told_with_its_cause(
    shop: Shop, make_worker: Callable[..., StepWorker], look: Look, operator: Database, clock: Clock
) -> None:
    register(operator)
    first, second = shop.publish_order("A").message_id, shop.publish_order("A").message_id
    assert waits(look("order", "A")) == [(first, "due", None), (second, "behind", first)]
    worker = make_worker("shop1-7-abcd")
    [message] = worker.claim()
    found = look("order", "A")
    assert waits(found) == [(first, "held", None), (second, "behind", first)]
    assert found.waits[0].worker == "shop1-7-abcd" and commands(found) == []
    worker.settle((message, OutcomeKind.RETRY), delay=90)
    found = look("order", "A")
    assert waits(found) == [(first, "backoff", None), (second, "behind", first)]
    assert found.waits[0].until_utc is not None and 60 < found.waits[0].until_utc - found.at_utc <= 91
    shop.query("UPDATE {prefix}zithara_message_group SET not_before = NOW(3) - INTERVAL 1 HOUR")
    assert waits(look("order", "A"))[0] == (first, "due", None)
    [message] = worker.claim()
    shop.query("UPDATE {prefix}zithara_message_group SET lease_until = NOW(3) - INTERVAL 1 SECOND")
    assert waits(look("order", "A"))[0] == (first, "taken_over", None)


def test_snapshots_that_complete_with_a_newer_one_and_messages_of_php_are_told(
    shop: Shop, make_worker: Callable[..., StepWorker], look: Look, operator: Database
) -> None:
    register(operator)
    by_php = shop.publish_cart("7001")
    shop.query("UPDATE {prefix}queue_message_status SET status = 3")
    older, newer = shop.publish_cart("7001").message_id, shop.publish_cart("7001").message_id
    worker = make_worker(topic=TOPIC_CART, supersedes=lambda newer, older: True)
    assert [message.message_id for message in worker.claim()] == [newer]
    found = look("cart", "7001")
    assert waits(found) == [(by_php.message_id, "php", None), (older, "together", newer), (newer, "held", None)]
    assert commands(found) == [f"zithara-worker failed release {by_php.message_id}"]
    lines = "\n".join(report(found, unmasked=False, audit_file=None))
    assert f"{older}: completes together with {newer}, which is newer" in lines
    assert ids(look("cart", "7001", newest=1)) == [older, newer], "the group names it"
    shop.query("UPDATE {prefix}zithara_message_group SET supersedes = NULL")
    assert (older, "behind", newer) in waits(look("cart", "7001"))


def test_what_keeps_a_topic_from_being_delivered_is_told_with_its_remedy(
    shop: Shop, look: Look, operator: Database
) -> None:
    shop.publish_order("A")
    register(operator, state={"/order": {"breaker": "open", "why": "http_503"}, "/cart": {"breaker": "open"}})
    pause(operator, [TOPIC_ORDER], by="anna@shop1", reason="import", audit=lambda lines: None)
    shop.set_config("zithara_webhook/general/enabled", "0")
    found = look("order", "A")
    assert [(block.why, block.detail) for block in found.blocks] == [
        ("paused", "by anna@shop1: import"),
        ("shop_disabled", ""),
        ("breaker", "/order DOWN: http_503"),
    ]
    assert commands(found) == [
        "zithara-worker resume order",
        "zithara-worker doctor",
        "zithara-worker status",
    ]
    assert "messages wait and lose no attempt, the next probe comes by itself" in str(list(steps(found)))
    register(operator, state={"api": {"breaker": "open", "why": "credentials refused (HTTP 401)"}})
    found = look("order", "A")
    assert found.blocks[-1].detail == "API DOWN: credentials refused (HTTP 401)"
    told = str(list(steps(found)))
    assert "correct client id and secret in" in told
    assert "next probe" not in told, "no probe helps before they are corrected"
    shop.query("UPDATE {prefix}queue_message_status SET status = 4")
    assert look("order", "A").blocks == (), "nothing waits"
