"""Stored body -> Event. Knows how Magento and PHP write JSON; what an event means is not its business.

Magento's MessageEncoder JSON-encodes what the publisher passes, and the module publishes a string that is JSON
already, so queue_message.body normally holds a JSON string literal with JSON inside. A body that is an object at once
(another publisher, a repair by hand) means the same and is accepted.

Numbers: an integer keeps all its digits, whatever its size. A decimal becomes a double, which is what PHP wrote it
from (json_encode writes the shortest text that reads back to the same double, and so does Python): nothing that PHP
can write changes on its way through.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from zithara_worker import reasons
from zithara_worker.messages import Event, Rejection
from zithara_worker.processors.fields import json_name

#: Levels of nesting, counting the outermost: what PHP's json_decode takes by default. Fixed here, because the limits of
#: Python's parser and writer depend on its version and on the depth of the caller's stack.
MAX_DEPTH = 512


def decode(topic: str, body: str) -> Event | Rejection:
    """The event in a stored body, or why there is none. Never raises; the detail quotes nothing from the body."""
    layer, text = "stored body", body
    try:
        if not text or text.isspace():
            return _empty(layer)
        value = _JSON.decode(text)
        if isinstance(value, str):
            layer, text = "published message", value
            if not text or text.isspace():
                return _empty(layer)
            value = _JSON.decode(text)
        if not isinstance(value, dict):
            detail = (
                f"the {layer} is {json_name(value)}, but an event is a JSON object; find the program that publishes it"
            )
            return Rejection(code=reasons.NOT_AN_OBJECT, detail=detail)
        if _is_too_deep(text, value):
            return _too_deep(layer)
        if _has_lone_surrogate(text, value):
            detail = f"the {layer} holds half of a surrogate pair, which UTF-8 cannot express; correct it in the shop"
            return Rejection(code=reasons.INVALID_TEXT, detail=detail)
    except json.JSONDecodeError as error:
        detail = f"the {layer} is not JSON: {error.msg} at character {error.pos} of {len(text)}"
        return Rejection(code=reasons.NOT_JSON, detail=detail)
    except ValueError as error:
        # From the hooks below, or from int() for an integer of more than 4,300 digits.
        return Rejection(code=reasons.INVALID_NUMBER, detail=f"the {layer} holds an invalid number: {error}")
    except RecursionError:
        return _too_deep(layer)
    return Event(topic=topic, payload=value)


def _finite(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise ValueError(f"a literal of {len(literal)} characters is beyond the range of a double")
    return value


def _refuse_constant(literal: str) -> NoReturn:
    raise ValueError(f"{literal} is not JSON")


#: One decoder for all messages: json.loads would build one at every call. Without the hooks it takes NaN, Infinity
#: and 1e999, which no JSON writer may emit again.
_JSON = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse_constant)


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _is_too_deep(text: str, value: Any) -> bool:
    # Nearly every message has fewer brackets than it may have levels: two counts, no walk.
    if text.count("{") + text.count("[") <= MAX_DEPTH:
        return False
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            return True
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, (dict, list))
        ]
    return False


def _has_lone_surrogate(text: str, value: Any) -> bool:
    """PHP's json_decode refuses them. Python's parser accepts them, and the request could then not be encoded."""
    if text.isascii() and not _SURROGATE.search(text):
        return False
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _empty(layer: str) -> Rejection:
    return Rejection(code=reasons.EMPTY_MESSAGE, detail=f"the {layer} is empty; find the program that publishes it")


def _too_deep(layer: str) -> Rejection:
    detail = f"the {layer} has more than {MAX_DEPTH} levels, more than PHP reads"
    return Rejection(code=reasons.NESTED_TOO_DEEPLY, detail=detail)
