"""What the shop's tables know of an order, a customer or a cart, and the message that the module would publish of it.

Each kind has a reader: `shop/orders.py`, `shop/customers.py`, `shop/carts.py`. A reader sets no lock, reads by primary
key in pages of bounded cost, and names every column it reads: never a password, a card or a token.
`shop/attributes.py` reads the customers' own attributes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from zithara_worker.database.session import Database
from zithara_worker.errors import AS_OPERATOR, NotGranted, ShopError, ZitharaWorkerError
from zithara_worker.processors.groups import entity_key
from zithara_worker.topics import TOPIC_TABLE

#: Rows that one statement of `count` reads.
_COUNT_SLICE = 10_000
#: Items, or addresses, that are read at once, unless one entity has more: some 1.5 KB of memory each.
PARTS = 10_000

_ALL = 1 << 62

Row = Mapping[str, Any]


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
    #: When what some of `also` leave out was saved last, 'YYYY-MM-DD HH:MM:SS' UTC: they count only if they were
    #: published then or later. "": always
    also_since: str = ""

    def forms(self, published_at: str) -> tuple[Mapping[str, Any], ...]:
        """`payload`, and those of `also` that tell the latest state too if they were published at this time
        ('YYYY-MM-DD HH:MM:SS' UTC)."""
        return (self.payload, *self.also) if published_at >= self.also_since else (self.payload,)


class TooManyParts(ZitharaWorkerError):
    """Several entities have more than `PARTS` items or addresses together: build fewer at once."""


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
        makes a request is the processor's to say (`processors.process`). Raises TooManyParts."""
        ...

    def times(self, ids: Collection[int]) -> dict[int, str]:
        """entity_id -> its `updated_at` now. What `build` would leave out is left out."""
        ...

    def find(self, labels: Collection[str]) -> list[ShopEntity]:
        """The entities of these labels, by id, whatever their state: a cart that was ordered too. Several orders can
        have one label, in different stores."""
        ...

    def ambiguous(self, labels: Collection[str]) -> frozenset[str]:
        """Those of the labels that several entities have: orders of different stores, which Zithara cannot tell
        apart."""
        ...


class TableReader:
    """What the readers have in common: the statements `orders_page`, `orders_times`, ... of sql/entities.sql.

    See `EntityReader`.
    """

    kind: str
    topic: str

    def __init__(self, database: Database) -> None:
        self._database = database

    def count(self, *, since: str | None, until: str | None) -> int:
        found, last_id, seen = 0, 0, _COUNT_SLICE
        while seen == _COUNT_SLICE:
            rows = self._slice(last_id, _COUNT_SLICE, since, until, each=False)
            found += sum(int(row["found"] or 0) for row in rows)
            last_id = max((int(row["last_id"]) for row in rows), default=last_id)
            seen = sum(int(row["seen"]) for row in rows)
        return found

    def newest_id(self) -> int:
        return int(self._rows(f"{self.kind}_newest")[0]["newest"])

    def page(self, after: int, limit: int, *, since: str | None, until: str | None) -> Page:
        rows = self._slice(after, limit, since, until, each=True)
        return Page(
            # entity_id 0: all rows outside the window together
            entities=sorted((self._entity(row) for row in rows if row["entity_id"]), key=lambda each: each.id),
            last_id=max((int(row["last_id"]) for row in rows), default=after),
            is_last=sum(int(row["seen"]) for row in rows) < limit,
        )

    def times(self, ids: Collection[int]) -> dict[int, str]:
        if not ids:
            return {}
        rows = self._rows(f"{self.kind}_times", ids=sorted(ids))
        return {int(row["entity_id"]): text(row["updated_at"]) or "" for row in rows}

    def find(self, labels: Collection[str]) -> list[ShopEntity]:
        # An entity_id. The server would take the text "5a" for the number 5.
        ids = sorted(int(label) for label in labels if label.isascii() and label.isdecimal())
        return self._found(ids)

    def _found(self, labels: Collection[str | int]) -> list[ShopEntity]:
        return [self._entity(row) for row in self._rows(f"{self.kind}_find", labels=labels)] if labels else []

    def ambiguous(self, labels: Collection[str]) -> frozenset[str]:
        return frozenset()

    def _slice(
        self, after: int, limit: int, since: str | None, until: str | None, *, each: bool
    ) -> list[dict[str, Any]]:
        return self._rows(f"{self.kind}_page", after=after, limit=limit, since=since, until=until, each=each)

    def _entity(self, row: Row) -> ShopEntity:
        label = str(row.get("label", row["entity_id"]) or "")
        kind = TOPIC_TABLE[self.topic].entity
        return ShopEntity(
            id=int(row["entity_id"]),
            # An order without a number makes no valid message, and the key of no valid one either.
            group_key=entity_key(kind, label) or f"{kind}:",
            label=label,
            store_id=int(row["store_id"] or 0),
            created_at=text(row["created_at"]) or "",
            updated_at=text(row["updated_at"]) or "",
        )

    def _parts(self, statement: str, ids: Collection[int], *, owner: str, id: str) -> dict[int, list[Row]]:
        """entity_id -> its rows of another table, in the order of their column `id`. Raises TooManyParts."""
        limit = PARTS + 1 if len(ids) > 1 else _ALL
        rows = self._rows(statement, ids=ids, limit=limit)
        if len(rows) == limit:
            raise TooManyParts(f"{len(ids)} {self.kind} have more than {PARTS} rows of {statement}")
        # Sorted here: with LIMIT, a server may look for this order in the whole table.
        return by_owner(sorted(rows, key=lambda row: int(row[id])), owner)

    def _rows(self, statement: str, **parameters: object) -> list[dict[str, Any]]:
        try:
            return self._database.rows(statement, **parameters)
        except NotGranted as error:
            raise NotGranted(f"the shop's {self.kind} cannot be read: {error.seen}", AS_OPERATOR) from error
        except ShopError as error:
            raise ShopError(f"the shop's {self.kind} cannot be read: {error}") from error


def text(value: Any) -> str | None:
    """A column's value as Magento has it after a load: a decimal is text with its places ('499.0000'). NULL is None."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return None if value is None else str(value)


def by_owner(rows: Iterable[Row], owner: str) -> dict[int, list[Row]]:
    """The rows of each entity, in their order; `owner`: the column that names it."""
    grouped: dict[int, list[Row]] = {}
    for row in rows:
        grouped.setdefault(int(row[owner]), []).append(row)
    return grouped


def first_by_owner(rows: Iterable[Row], owner: str) -> dict[int, Row]:
    """The first row of each entity, which is the one that Magento's models take."""
    return {id: found[0] for id, found in by_owner(rows, owner).items()}
