"""Which newer message makes an older one of the same entity superfluous."""

from __future__ import annotations

from functools import lru_cache

from zithara_worker.messages import Event
from zithara_worker.processors.fields import Row, row_or_nothing
from zithara_worker.topics import TOPIC_CUSTOMER


def supersedes(newer: Event, older: Event) -> bool:
    """Whether delivering `newer` alone leaves Zithara with everything that `older` would have told it.

    Both belong to one message group. A cart's message is the whole cart, in either of its shapes. A customer's is not:
    only CustomerAddressSave sends custom_attributes.address_data, so a CustomerSave that follows it would swallow the
    address. Transitive: what supersedes a message also supersedes all that this one supersedes.
    """
    if newer.topic != older.topic:
        return False
    return older.topic != TOPIC_CUSTOMER or _tells_all(newer.payload, older.payload)


def _tells_all(newer: Row, older: Row) -> bool:
    """By names, not by values: a value that became empty is news. `is_update` is the module's own flag, never sent."""
    if not older.keys() - {"is_update"} <= newer.keys():
        return False
    told, before = row_or_nothing(newer.get("custom_attributes")), row_or_nothing(older.get("custom_attributes"))
    return before.keys() <= told.keys() and all(
        row_or_nothing(value).keys() <= row_or_nothing(told[name]).keys() for name, value in before.items()
    )


def outline(event: Event) -> Event:
    """What `supersedes` judges an event by: names without values, and the same outcome as for the event itself.

    Events of one shape have one and the same outline, so that those of thousands of waiting snapshots take no memory.
    """
    if event.topic != TOPIC_CUSTOMER:
        return _outline(event.topic, frozenset(), frozenset())
    attributes = row_or_nothing(event.payload.get("custom_attributes"))
    names = frozenset((name, frozenset(row_or_nothing(value))) for name, value in attributes.items())
    return _outline(event.topic, frozenset(event.payload), names)


@lru_cache(maxsize=1000)
def _outline(topic: str, names: frozenset[str], attributes: frozenset[tuple[str, frozenset[str]]]) -> Event:
    told = {name: dict.fromkeys(inner) for name, inner in attributes}
    return Event(topic=topic, payload={name: told if name == "custom_attributes" else None for name in names})
