"""What the shop's tables know of an order, a customer or a cart, and the message that the module would publish of it.

Each kind has a reader: `shop/orders.py`, `shop/customers.py`, `shop/carts.py`. A reader sets no lock, reads by primary
key in pages of bounded cost, and names every column it reads: never a password, a card or a token.
`shop/attributes.py` reads the customers' own attributes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopEntity:
    """One entity of the shop, without its content."""

    #: entity_id
    id: int
    #: As the queue's messages about it have: "order:000000011", "customer:5", "cart:7"
    group_key: str
    #: What people call it: the order's increment_id, else the id
    label: str
    store_id: int
    #: 'YYYY-MM-DD HH:MM:SS' UTC, like `updated_at`
    created_at: str
    #: Of a customer the later of its own time and those of its addresses
    updated_at: str


class Page(NamedTuple):
    """The part of a kind that one statement looked at. It may have no entity in the window and yet not be the last."""

    #: Those of the page that lie in the window, by ascending id
    entities: list[ShopEntity]
    #: The highest id that was looked at: the next page begins behind it
    last_id: int
    #: Whether no row lies behind `last_id`
    is_last: bool


class Rebuilt(NamedTuple):
    """What the shop's rows say of an entity, as messages."""

    #: What an observer would pass to Magento's publisher: of an order the create, of a customer the create with the
    #: default billing address, of a cart what the cron CheckAbandonedCarts publishes
    payload: Mapping[str, Any]
    #: Other messages of the module about the same state, which tell less or in another form (a customer without
    #: address, or with another of its addresses). Where Zithara has accepted one of these last, it has the entity's
    #: latest state
    also: tuple[Mapping[str, Any], ...] = ()


class EntityReader(Protocol):
    """Reads one kind of entity. A window is `since` <= updated_at < `until`, each 'YYYY-MM-DD HH:MM:SS' UTC, or None:
    unbounded. Every method raises ShopError where a table, a column or a privilege is missing, and says the remedy."""

    #: "orders", "customers", "carts"
    kind: str
    #: Of the messages about it, e.g. "zithara.order.events"
    topic: str

    def count(self, *, since: str | None, until: str | None) -> int:
        """How many entities lie in the window. Reads the whole kind once, in slices."""
        ...

    def newest_id(self) -> int:
        """The highest entity_id there is; 0: none."""
        ...

    def page(self, after: int, limit: int, *, since: str | None, until: str | None) -> Page:
        """The next `limit` rows behind the id `after`, those in the window. One statement, which reads at most so many
        rows of the kind whatever the window: with a narrow window, ask for large pages."""
        ...

    def build(self, ids: Collection[int]) -> dict[int, Rebuilt]:
        """entity_id -> its messages. A fixed number of statements, whatever the ids and what belongs to them. An entity
        that is gone, or no longer of those that `page` gives (a cart that was ordered), is left out. Whether a payload
        makes a request is the processor's to say (`processors.process`)."""
        ...

    def times(self, ids: Collection[int]) -> dict[int, str]:
        """entity_id -> its `updated_at` now. What `build` would leave out is left out."""
        ...

    def find(self, labels: Collection[str]) -> list[ShopEntity]:
        """The entities of these labels, by id. Several orders can have one label, in different stores."""
        ...

    def ambiguous(self, labels: Collection[str]) -> frozenset[str]:
        """Those of the labels that several entities have: orders of different stores, which Zithara cannot tell
        apart."""
        ...
