"""A shop's orders and customers in memory, and what else a reconcile needs, for tests on one database session."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

from zithara_worker import Settings
from zithara_worker.completeness.compare import Verdict
from zithara_worker.completeness.reconcile import Reconcile, Result, Surroundings, Window
from zithara_worker.completeness.requests import request_of
from zithara_worker.database.session import Database
from zithara_worker.queue.ledger_rules import destination
from zithara_worker.queue.queues import find_queues
from zithara_worker.sandbox import examples
from zithara_worker.shop import entities
from zithara_worker.shop.entities import Page, Rebuilt, ShopEntity
from zithara_worker.topics import TOPIC_ORDER


def ago(**time: float) -> str:
    return (datetime.now(timezone.utc) - timedelta(**time)).strftime("%Y-%m-%d %H:%M:%S")


class MemoryShop:
    """Orders by id, or what `payload` makes of them. `before`: called with the name of each call of the reader."""

    kind = "orders"

    def __init__(self, *, topic: str = TOPIC_ORDER, entity: str = "order") -> None:
        self.topic = topic
        self.entity = entity
        self.rows: dict[int, ShopEntity] = {}
        self.states: dict[int, Mapping[str, Any]] = {}
        self.also: dict[int, tuple[Mapping[str, Any], ...]] = {}
        self.also_since = ""
        self.calls: Counter[str] = Counter()
        self.before: Callable[[str], object] = lambda call: None
        self.broken: set[int] = set()
        #: Parts of each entity, of `shop.entities.PARTS`
        self.parts = 1

    def order(self, id: int, *, updated_at: str | None = None, label: str = "", **changes: Any) -> dict[str, Any]:
        """The order as the shop has it from now on; its message."""
        label = label or f"{id:09d}"
        at = updated_at or (self.rows[id].updated_at if id in self.rows else ago(hours=1, seconds=id))
        self.rows[id] = ShopEntity(
            id=id, group_key=f"order:{label}", label=label, store_id=1, created_at=at, updated_at=at
        )
        state = examples.order(label, **{"updated_at": at, **changes})
        self.states[id] = state
        return state

    def put(self, id: int, state: Mapping[str, Any], *, updated_at: str | None = None) -> None:
        at = updated_at or ago(hours=1)
        self.rows[id] = ShopEntity(
            id=id, group_key=f"{self.entity}:{id}", label=str(id), store_id=1, created_at=at, updated_at=at
        )
        self.states[id] = state

    def touch(self, id: int, updated_at: str) -> None:
        self.rows[id] = replace(self.rows[id], updated_at=updated_at)

    def _call(self, name: str) -> None:
        self.calls[name] += 1
        self.before(name)

    # ---------------------------------------------------------------- as EntityReader

    def count(self, *, since: str | None, until: str | None) -> int:
        return sum(_within(each, since, until) for each in self.rows.values())

    def newest_id(self) -> int:
        return max(self.rows, default=0)

    def page(self, after: int, limit: int, *, since: str | None, until: str | None) -> Page:
        self._call("page")
        ids = sorted(id for id in self.rows if id > after)
        looked = ids[:limit]
        return Page(
            [self.rows[id] for id in looked if _within(self.rows[id], since, until)],
            looked[-1] if looked else after,
            len(ids) <= limit,
        )

    def build(self, ids: Collection[int]) -> dict[int, Rebuilt]:
        self._call("build")
        if len(ids) > 1 and len(ids) * self.parts > entities.PARTS:
            raise entities.TooManyParts
        if self.broken & set(ids):
            raise ValueError("a row that cannot be read")
        return {id: Rebuilt(self.states[id], self.also.get(id, ()), self.also_since) for id in ids if id in self.states}

    def times(self, ids: Collection[int]) -> dict[int, str]:
        self._call("times")
        return {id: self.rows[id].updated_at for id in ids if id in self.rows}

    def find(self, labels: Collection[str]) -> list[ShopEntity]:
        return [each for each in self.rows.values() if each.label in labels]

    def ambiguous(self, labels: Collection[str]) -> frozenset[str]:
        counts = Counter(each.label for each in self.rows.values())
        return frozenset(label for label in labels if counts[label] > 1)


def _within(entity: ShopEntity, since: str | None, until: str | None) -> bool:
    return (since is None or since <= entity.updated_at) and (until is None or entity.updated_at < until)


class Reconciler:
    """Runs reconciles of one shop in memory."""

    def __init__(self, database: Database, rows: MemoryShop, settings: Settings) -> None:
        self.database = database
        self.rows = rows
        self.queue = find_queues(database, [rows.topic], {})[0]
        self.surroundings = Surroundings(
            destination=destination(settings.zithara),
            process=request_of(settings.zithara),
            concurrency=16,
            owner="test",
        )

    @contextmanager
    def run(self, **changes: Any) -> Iterator[Reconcile]:
        with Reconcile(self.database, self.rows, self.queue, replace(self.surroundings, **changes)) as found:
            yield found

    def compare(self, window: Window | None = None, **changes: Any) -> Result:
        with self.run(**changes) as run:
            result = run.compare(window or Window())
            run.keep(result)
            return result

    def publish(self, *, limit: int | None = None, resend: bool = False, **changes: Any) -> Result:
        with self.run(**changes) as run:
            result = run.publish(run.compare(Window(), resend=resend), limit=limit)
            run.keep(result)
            return result

    def verdict(self) -> Verdict:
        """Of the only entity."""
        [verdict] = self.compare().counts
        return verdict
