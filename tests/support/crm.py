"""What a CRM holds in the end: which request told it what, and which of them may still arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

#: Topic and group key
Entity = tuple[str, str]
#: What only the message that creates an order tells.
ITEMS = "items"


class How(Enum):
    """How a request came to be processed."""

    SENT = "sent by the worker that held its group"
    LATE = "sent before, and processed late: nobody can hold it back"
    FORCED = "sent because an operator wanted it behind newer ones"
    PHP = "sent by a PHP consumer, which keeps no order"


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What a message tells of its entity: name -> value. `number`: its place among all publications."""

    number: int
    entity: Entity
    tells: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Value:
    value: int
    by: News
    how: How


@dataclass(slots=True)
class Crm:
    """`complete`: entity -> name -> the newest message that says so and is complete. `recorded`: the newest of each
    entity whose acceptance the worker has recorded; `creates`: the newest recorded create of each order."""

    holds: dict[Entity, dict[str, Value]] = field(default_factory=dict)
    complete: dict[Entity, dict[str, News]] = field(default_factory=dict)
    recorded: dict[Entity, News] = field(default_factory=dict)
    creates: dict[Entity, int] = field(default_factory=dict)
    #: Requests that no answer has come to, and until when they may still be processed
    on_their_way: list[tuple[News, float]] = field(default_factory=list)

    def process(self, news: News, how: How) -> None:
        self.holds.setdefault(news.entity, {}).update({name: Value(v, news, how) for name, v in news.tells.items()})

    def process_late(self, *, last: bool, now: float) -> None:
        news, until = self.on_their_way.pop(-1 if last else 0)
        if now <= until:
            self.process(news, How.LATE)

    def note_complete(self, news: News) -> None:
        """The worker has said that nothing of this message is news any more."""
        newest = self.complete.setdefault(news.entity, {})
        newest.update({name: max(news, newest.get(name, news), key=lambda each: each.number) for name in news.tells})

    def note_recorded(self, news: News) -> None:
        before = self.recorded.get(news.entity, news)
        self.recorded[news.entity] = max(news, before, key=lambda each: each.number)
        if ITEMS in news.tells:
            self.creates[news.entity] = max(news.number, self.creates.get(news.entity, 0))

    def forget_recorded(self, entity: Entity | None = None) -> None:
        """What the ledger does for an operator, or where ids begin again."""
        for rows in (self.recorded, self.creates):
            if entity is None:
                rows.clear()
            else:
                rows.pop(entity, None)  # type: ignore[attr-defined]

    def is_overtaken(self, news: News) -> bool:
        """Whether what was recorded is newer and tells all of it."""
        last = self.recorded.get(news.entity)
        if last is None or last.number <= news.number:
            return False
        if ITEMS in news.tells:
            return self.creates.get(news.entity, 0) > news.number
        return news.tells.keys() <= last.tells.keys()

    def not_newer(self, news: News) -> list[str]:
        """Names of which nothing newer is complete."""
        newest = self.complete.get(news.entity, {})
        return [name for name in news.tells if name not in newest or newest[name].number <= news.number]

    def differing(self, news: News) -> list[str]:
        """Names of which the CRM holds something else."""
        held = self.holds.get(news.entity, {})
        return [name for name, value in news.tells.items() if name not in held or held[name].value != value]

    def may_arrive(self, entity: Entity, *, now: float) -> bool:
        return any(news.entity == entity and now <= until for news, until in self.on_their_way)

    def outdated(self, excused: Callable[[News], bool]) -> Iterator[str]:
        """What is complete, and yet something older has the last word. `excused`: of the request that has it."""
        for entity, names in self.complete.items():
            for name, newest in names.items():
                held = self.holds.get(entity, {}).get(name)
                if held is None:
                    yield f"{entity} {name}: {newest} is complete, and the CRM knows nothing"
                elif (
                    held.by.number < newest.number
                    and held.value != newest.tells[name]
                    and held.how is How.SENT
                    and not excused(held.by)
                ):
                    yield f"{entity} {name}: {newest} is complete, and the CRM holds {held}"
