"""The readers of the shop's entities, one for each kind."""

from __future__ import annotations

from zithara_worker.shop.carts import CartReader
from zithara_worker.shop.customers import CustomerReader
from zithara_worker.shop.orders import OrderReader

READERS: tuple[type[OrderReader | CustomerReader | CartReader], ...] = (OrderReader, CustomerReader, CartReader)
