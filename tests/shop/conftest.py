"""Shops with the tables of orders, customers and carts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.workers import settings_of

from zithara_worker.database.session import Database
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.shop_tables import ShopTables
from zithara_worker.settings.values import Secret


@pytest.fixture(scope="module")
def real_shop(mariadb: MariaDbServer) -> Iterator[Database]:
    """The rows of the real shop, under a prefix. For tests that only read."""
    with Shop(mariadb, prefix="m2_") as shop:
        ShopTables(shop).create()
        yield from _opened(shop)


@pytest.fixture(scope="module")
def made_tables(mariadb: MariaDbServer) -> Iterator[ShopTables]:
    with Shop(mariadb) as shop:
        made = ShopTables(shop)
        made.create(rows=False)
        yield made


@pytest.fixture
def tables(made_tables: ShopTables) -> ShopTables:
    """Tables without orders, customers and carts."""
    made_tables.clear()
    return made_tables


@pytest.fixture
def operator(tables: ShopTables) -> Iterator[Database]:
    """A session of an account that may read the tables of `tables`."""
    yield from _opened(tables.shop)


def _opened(shop: Shop) -> Iterator[Database]:
    database = Database(settings_of(shop, user="root", password=Secret("")))
    yield database
    database.close()
