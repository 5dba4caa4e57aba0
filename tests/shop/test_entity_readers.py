"""Readers of the shop's orders, customers and carts on a real server: what they give, cost, and may see."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from support.workers import settings_of

from zithara_worker.database import statements
from zithara_worker.database.session import Database
from zithara_worker.errors import ShopError
from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.shop_tables import ShopTables
from zithara_worker.settings.values import Secret
from zithara_worker.shop.carts import CartReader
from zithara_worker.shop.customers import CustomerReader
from zithara_worker.shop.entities import EntityReader, ShopEntity, TooManyParts
from zithara_worker.shop.orders import OrderReader
from zithara_worker.shop.readers import READERS

Make = Callable[[Database], EntityReader]

LONG_AGO, BEFORE, NOW, LATER = (f"2026-01-0{day} 12:00:00" for day in (1, 2, 3, 4))


def pages(
    reader: EntityReader, limit: int, since: str | None = None, until: str | None = None
) -> Iterator[list[ShopEntity]]:
    after, is_last = 0, False
    while not is_last:
        entities, after, is_last = reader.page(after, limit, since=since, until=until)
        yield entities


def ids(reader: EntityReader, limit: int = 100, since: str | None = None, until: str | None = None) -> list[int]:
    return [each.id for page in pages(reader, limit, since, until) for each in page]


def made(tables: ShopTables, kind: str, **columns: Any) -> int:
    """One entity of the kind, with what belongs to it."""
    if kind == "orders":
        return tables.place_order(f"X{columns.get('updated_at')}", **columns)
    if kind == "carts":
        return tables.open_cart(**columns)
    customer_id = tables.save_customer(email=f"{columns.get('updated_at')}@example.com", **columns)
    tables.add_address(customer_id, updated_at=columns.get("updated_at", NOW))
    tables.change("customer_entity", customer_id, **columns)
    return customer_id


# ---------------------------------------------------------------- pages


@pytest.mark.parametrize("make", READERS)
@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
def test_pages_have_each_entity_once_by_id(
    real_shop: Database, make: Make, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zithara_worker.shop.entities._COUNT_SLICE", limit)
    reader = make(real_shop)
    found = ids(reader, limit)
    assert found == sorted(set(found)) == ids(reader)
    assert len(found) == reader.count(since=None, until=None) > 3
    assert found[-1] <= reader.newest_id()


def test_a_window_has_what_was_saved_in_it(tables: ShopTables, operator: Database) -> None:
    for make in READERS:
        reader = make(operator)
        saved = [made(tables, reader.kind, updated_at=time) for time in (LONG_AGO, BEFORE, NOW)]
        assert ids(reader, since=BEFORE) == saved[1:]
        assert ids(reader, until=NOW) == saved[:2]
        assert ids(reader, since=BEFORE, until=NOW) == saved[1:2]
        assert reader.count(since=BEFORE, until=None) == 2
        assert [each.updated_at for page in pages(reader, 100) for each in page] == [LONG_AGO, BEFORE, NOW]
        assert reader.times(saved) == dict(zip(saved, (LONG_AGO, BEFORE, NOW), strict=True))
        # A page without an entity of the window tells how far it looked.
        assert reader.page(0, 2, since=LATER, until=None) == ([], saved[1], False)
        assert reader.page(saved[1], 2, since=LATER, until=None) == ([], saved[2], True)
        assert reader.page(saved[2], 2, since=LATER, until=None) == ([], saved[2], True)
        assert reader.page(0, 3, since=None, until=None).is_last is False, "three rows of three may not be all"


def test_an_empty_shop_has_nothing(tables: ShopTables, operator: Database) -> None:
    for make in READERS:
        reader = make(operator)
        assert reader.page(0, 10, since=None, until=None) == ([], 0, True)
        assert (reader.newest_id(), reader.count(since=None, until=None)) == (0, 0)
        for nothing in ([], [7]):
            assert reader.build(nothing) == {}
            assert reader.times(nothing) == {}
        assert reader.find([]) == reader.find(["7", "no number", "7x"]) == []
        assert reader.ambiguous([]) == reader.ambiguous(["7"]) == frozenset()


def test_a_customer_is_as_new_as_the_newest_of_its_addresses(tables: ShopTables, operator: Database) -> None:
    customer = tables.save_customer(updated_at=LONG_AGO)
    older = tables.add_address(customer, updated_at=BEFORE)
    tables.add_address(customer, is_default=False, updated_at=NOW)
    tables.change("customer_entity", customer, updated_at=LONG_AGO)
    reader = CustomerReader(operator)
    assert reader.times([customer]) == {customer: NOW}
    assert [each.updated_at for each in reader.find([str(customer)])] == [NOW]
    assert ids(reader, since=NOW) == [customer]
    assert ids(reader, until=NOW) == []
    tables.change("customer_address_entity", older, updated_at=LATER)
    assert ids(reader, since=LATER) == [customer]
    tables.change("customer_entity", customer, updated_at="2026-01-05 00:00:00")
    assert reader.times([customer]) == {customer: "2026-01-05 00:00:00"}


def test_only_active_carts_with_items_and_an_email_address_are_carts(tables: ShopTables, operator: Database) -> None:
    cart = tables.open_cart()
    others = [
        tables.open_cart(is_active=0),
        tables.open_cart(items=(), items_count=0),
        tables.open_cart(customer_email=None),
    ]
    reader = CartReader(operator)
    assert ids(reader) == [cart]
    assert reader.build([cart, *others]).keys() == reader.times([cart, *others]).keys() == {cart}
    assert [each.id for each in reader.find([str(id) for id in (cart, *others)])] == [cart, *others]


# ---------------------------------------------------------------- names


def test_orders_are_found_by_number_in_every_store(tables: ShopTables, operator: Database) -> None:
    first = tables.place_order("000000007", store_id=1)
    second = tables.place_order("000000007", store_id=2)
    letters = tables.place_order("B2B-7/ä", store_id=2)
    for store_id, number in ((1, "a-1"), (2, "A-1")):
        tables.place_order(number, store_id=store_id)
    reader = OrderReader(operator)
    assert [each.id for each in reader.find(["000000007"])] == [first, second]
    [found] = reader.find(["B2B-7/ä"])
    assert (found.id, found.label, found.store_id) == (letters, "B2B-7/ä", 2)
    assert found.group_key.startswith("order:sha256:"), "as the worker names the group of such a number"
    # Zithara tells a-1 from A-1, though the shop's collation does not.
    assert reader.ambiguous(["000000007", "B2B-7/ä", "a-1", "A-1", "unknown"]) == {"000000007"}
    assert {each.group_key for each in reader.find(["000000007"])} == {"order:000000007"}


def test_an_order_without_a_number_is_read_all_the_same(tables: ShopTables, operator: Database) -> None:
    order = tables.place_order(None)
    reader = OrderReader(operator)
    [found] = reader.page(0, 10, since=None, until=None).entities
    assert (found.id, found.label, found.group_key) == (order, "", "order:")
    assert reader.build([order])[order].payload["order"]["increment_id"] == ""


# ---------------------------------------------------------------- what it costs


def cost(database: Database, step: Callable[[], object]) -> tuple[int, int]:
    """Statements sent, and rows and index entries that the server read."""

    def counter() -> int:
        with database._open().cursor() as cursor:
            cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
            return sum(int(value) for _, value in cursor.fetchall())

    counter()
    nothing = -counter() + counter()
    statements, before = database.statements_sent, counter()
    step()
    return database.statements_sent - statements, counter() - before - nothing


def test_a_page_reads_so_many_rows_whatever_the_window_and_the_size_of_the_shop(
    tables: ShopTables, operator: Database
) -> None:
    shop = tables.shop
    tables.generate_orders(20_000)
    shop.query(
        "INSERT INTO {prefix}customer_entity (email, updated_at) "
        "SELECT CONCAT(entity_id, '@example.com'), updated_at FROM {prefix}sales_order"
    )
    shop.query(
        "INSERT INTO {prefix}customer_address_entity (parent_id, city, country_id, firstname, lastname, street, "
        "telephone) SELECT entity_id, '', 'IN', '', '', '', '' FROM {prefix}customer_entity"
    )
    shop.query(
        "INSERT INTO {prefix}quote (customer_email, items_count, updated_at) "
        "SELECT customer_email, 1, updated_at FROM {prefix}sales_order"
    )
    # As a server does by itself when a tenth of a table has changed.
    of_orders = ("sales_order", "sales_order_item", "sales_order_payment", "sales_order_address")
    for table in (*of_orders, "customer_entity", "customer_address_entity", "quote"):
        shop.query(f"ANALYZE TABLE {{prefix}}{table}")
    for make in READERS:
        reader = make(operator)
        middle = reader.newest_id() - 10_000
        for since in (None, "2000-01-01 00:00:00", "2040-01-01 00:00:00"):
            statements, rows = cost(operator, partial(reader.page, middle, 100, since=since, until=None))
            # The rows of the kind, their addresses, and the server's own temporary tables.
            assert (statements, rows < 1500) == (1, True), (reader.kind, since, rows)
        some = list(range(middle, middle + 100))
        for step in (partial(reader.times, some), partial(reader.find, [str(id) for id in some])):
            statements, rows = cost(operator, step)
            assert (statements, rows < 500) == (1, True), (reader.kind, rows)
        _, rows = cost(operator, partial(reader.build, some))
        assert rows < 2000, (reader.kind, rows)
        assert cost(operator, reader.newest_id)[1] < 5, reader.kind


def test_a_build_has_as_many_statements_for_many_as_for_one(tables: ShopTables, operator: Database) -> None:
    attribute = tables.add_attribute("tier")
    many: dict[Make, list[int]] = {
        OrderReader: [tables.place_order(f"N{number}", items=({},) * 5) for number in range(20)],
        CustomerReader: [tables.save_customer(email=f"{number}@example.com") for number in range(20)],
        CartReader: [tables.open_cart(items=({},) * 5) for _ in range(20)],
    }
    for customer in many[CustomerReader]:
        tables.set_attribute(customer, attribute, "gold")
        for _ in range(3):
            tables.add_address(customer)
    for make, expected in ((OrderReader, 4), (CustomerReader, 4), (CartReader, 3)):
        reader = make(operator)
        reader.newest_id()
        for some in (many[make][:1], many[make]):
            before = operator.statements_sent
            assert len(reader.build(some)) == len(some)
            assert operator.statements_sent - before == expected


def test_several_with_too_many_parts_are_not_read_at_once_and_one_is_read_whole(
    tables: ShopTables, operator: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    customers = [tables.save_customer(email=f"{number}@example.com") for number in range(2)]
    for customer in customers * 5:
        tables.add_address(customer)
    both: dict[Make, list[int]] = {
        OrderReader: [tables.place_order(f"N{number}", items=({},) * 5) for number in range(2)],
        CustomerReader: customers,
        CartReader: [tables.open_cart(items=({},) * 5) for _ in range(2)],
    }
    for make, some in both.items():
        reader = make(operator)
        monkeypatch.setattr("zithara_worker.shop.entities.PARTS", 10)
        whole = reader.build(some)
        for parts in (9, 8):
            monkeypatch.setattr("zithara_worker.shop.entities.PARTS", parts)
            with pytest.raises(TooManyParts):
                reader.build(some)
        monkeypatch.setattr("zithara_worker.shop.entities.PARTS", 4)
        assert {**reader.build(some[:1]), **reader.build(some[1:])} == whole


# ---------------------------------------------------------------- what it may see


@pytest.fixture
def own_tables(shop: Shop) -> ShopTables:
    """Tables that the test alters."""
    made = ShopTables(shop)
    made.create(rows=False)
    return made


@contextmanager
def session(shop: Shop, user: str, password: str) -> Iterator[Database]:
    database = Database(settings_of(shop, user=user, password=Secret(password)))
    yield database
    database.close()


def test_the_columns_of_the_grants_are_enough(own_tables: ShopTables, shop: Shop) -> None:
    """So no statement reads a password, a card or a token, even where the table has them."""
    shop.query("ALTER TABLE {prefix}customer_entity ADD password_hash VARCHAR(128), ADD rp_token VARCHAR(128)")
    attribute = own_tables.add_attribute("tier")
    user = f"reader_{shop.name}"
    shop.query(f"CREATE USER {user} IDENTIFIED BY 'secret'")
    try:
        # What every session reads of the queue when it opens.
        shop.query(f"GRANT SELECT ON {shop.name}.queue_message_status TO {user}")
        shop.run_script("entity_grants.sql", database=shop.name, user=user)
        with session(shop, user, "secret") as reading:
            for make in READERS:
                reader = make(reading)
                entity = made(own_tables, reader.kind, updated_at=NOW)
                if make is CustomerReader:
                    own_tables.set_attribute(entity, attribute, "gold")
                [found] = reader.page(0, 10, since=None, until=None).entities
                assert found.id == entity
                assert reader.find([found.label]) == [found]
                assert reader.times([entity]) == {entity: NOW}
                assert reader.build([entity]).keys() == {entity}
                assert reader.newest_id() == entity
                assert reader.ambiguous([found.label]) == frozenset()
    finally:
        shop.query(f"DROP USER {user}")


def test_no_column_is_granted_that_is_not_read() -> None:
    grants = " ".join(statements.script("entity_grants.sql", prefix="", database="", user=""))
    texts = " ".join(statements.named(statements.read("entities.sql")).values())
    granted = [
        (table, column.strip())
        for columns, table in re.findall(r"SELECT \(([^)]*)\)\s+ON \.(\w+)", grants)
        for column in columns.split(",")
    ]
    assert len(granted) > 80
    for table, column in granted:
        assert re.search(rf"\}}{table}\b", texts), table
        assert re.search(rf"\b{column}\b", texts), (table, column)
        assert not re.search("passw|token|cc_|hash", column)


def test_an_attribute_of_a_password_or_token_is_not_asked_for(tables: ShopTables, operator: Database) -> None:
    customer = tables.save_customer()
    for code in ("password_hash", "rp_token", "rp_token_created_at", "tier"):
        attribute = tables.add_attribute(code + ("" if code == "tier" else "_old"))
        tables.set_attribute(customer, attribute, "gold" if code == "tier" else "s3cret")
    assert CustomerReader(operator).build([customer])[customer].payload["custom_attributes"] == {"tier": "gold"}


def test_a_shop_that_lacks_something_is_an_error_with_a_remedy(own_tables: ShopTables, shop: Shop) -> None:
    order = own_tables.place_order()
    with session(shop, "root", "") as operator, session(shop, shop.user, shop.password) as worker:
        for damage, expected in (
            ("RENAME TABLE sales_order_address TO m2_sales_order_address", "correct .* name and table_prefix"),
            ("ALTER TABLE sales_order_payment DROP last_trans_id", "last_trans_id.*Magento's tables.*setup:upgrade"),
            ("DROP TABLE sales_order_item", "sales_order_item.*correct .* name and table_prefix"),
        ):
            shop.query(damage)
            with pytest.raises(ShopError, match=f"the shop's orders cannot be read: .*{expected}"):
                OrderReader(operator).build([order])
        # The worker's account has the grants of a worker.
        with pytest.raises(ShopError, match=r"SELECT.*sales_order.*install --print"):
            OrderReader(worker).page(0, 10, since=None, until=None)
