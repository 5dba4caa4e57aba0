"""Message groups: the key that keeps the order of one entity's messages, and which of them replaces which.

A key is equal for the same entity, different for different ones, and safe for its column:
zithara_message_group.group_key is VARCHAR(191), ascii_bin, which ignores trailing blanks in comparisons and cannot hold
other characters. Carts and customers are coalesced by group, so two entities must never share a key.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Any

from zithara_worker.messages import Event
from zithara_worker.processors.fields import Row, is_empty, number_text, row_or_nothing
from zithara_worker.topics import TOPIC_CUSTOMER

MAX_LENGTH = 191
_VISIBLE_ASCII = re.compile(r"[!-~]+")
_DIGEST = "sha256:"


# ---------------------------------------------------------------- keys


def entity_key(kind: str, *candidates: Any) -> str | None:
    """The key of the first candidate that is an id (non-empty text, or a number other than 0); None if none is.

    906 and "906" name the same entity. An id that the column could not tell from others is replaced by its digest:
    `order:906`, `cart:sha256:9f86d0...`. So is an id that looks like a digest, to keep the two forms apart.
    """
    for value in candidates:
        if is_empty(value) or isinstance(value, bool) or not isinstance(value, (str, int, float)):
            continue
        name = value if isinstance(value, str) else number_text(value)
        key = f"{kind}:{name}"
        if len(key) > MAX_LENGTH or not _VISIBLE_ASCII.fullmatch(name) or name.startswith(_DIGEST):
            return f"{kind}:{_DIGEST}{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()}"
        return key
    return None


def own_key(message_id: int) -> str:
    """The key of a message that names no entity: a group of its own."""
    return f"message:{message_id}"


# ---------------------------------------------------------------- coalescing


def supersedes(newer: Event, older: Event) -> bool:
    """Whether delivering `newer` alone tells Zithara everything that `older` would have told it.

    Both belong to one message group. A cart's message is the whole cart, in either of its shapes. A customer's is not:
    only CustomerAddressSave sends custom_attributes.address_data, so if the CustomerSave behind it replaced it, the
    address would be lost. Transitive: what supersedes a message also supersedes all that this one supersedes.
    """
    if newer.topic != older.topic:
        return False
    return older.topic != TOPIC_CUSTOMER or _has_all_fields(newer.payload, older.payload)


def _has_all_fields(newer: Row, older: Row) -> bool:
    """Compares names only: a value that became empty is news. `is_update`, the module's own flag, is not sent."""
    if not older.keys() - {"is_update"} <= newer.keys():
        return False
    after, before = row_or_nothing(newer.get("custom_attributes")), row_or_nothing(older.get("custom_attributes"))
    return before.keys() <= after.keys() and all(
        row_or_nothing(value).keys() <= row_or_nothing(after[name]).keys() for name, value in before.items()
    )


def outline(event: Event) -> Event:
    """What `supersedes` needs of an event: names without values. It gives the same result for an outline as for its
    event.

    All events of one shape share one outline, so that those of thousands of waiting snapshots take no memory.
    """
    if event.topic != TOPIC_CUSTOMER:
        return _outline(event.topic, frozenset(), frozenset())
    attributes = row_or_nothing(event.payload.get("custom_attributes"))
    names = frozenset((name, frozenset(row_or_nothing(value))) for name, value in attributes.items())
    return _outline(event.topic, frozenset(event.payload), names)


@lru_cache(maxsize=1000)
def _outline(topic: str, names: frozenset[str], attributes: frozenset[tuple[str, frozenset[str]]]) -> Event:
    inner_names = {name: dict.fromkeys(inner) for name, inner in attributes}
    return Event(topic=topic, payload={name: inner_names if name == "custom_attributes" else None for name in names})
