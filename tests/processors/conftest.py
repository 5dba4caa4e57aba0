"""What the tests of the pure path share: a shop as the recorded cases saw it."""

from __future__ import annotations

import pytest
from support.shops import SHOP

from zithara_worker.processors import ShopContext


@pytest.fixture(scope="session")
def shop() -> ShopContext:
    return SHOP
