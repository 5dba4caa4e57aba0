"""The text of message group keys: equal for the same entity, different for different ones, safe for the column.

zithara_message_group.group_key is VARCHAR(191), ascii_bin: comparisons there ignore trailing blanks, and other
characters do not fit. Carts and customers are coalesced by group, so two entities must never share a key.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from zithara_worker.processors.fields import is_empty, number_text

MAX_LENGTH = 191
_VISIBLE_ASCII = re.compile(r"[!-~]+")
_DIGEST = "sha256:"


def entity_key(kind: str, *candidates: Any) -> str | None:
    """The key of the first candidate that is an id (non-empty text, or a number other than 0); None if none is.

    906 and "906" name the same entity. An id that the column could not keep apart is replaced by its digest:
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
