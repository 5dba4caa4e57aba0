"""JSON as PHP's json_encode() writes it with no flags, byte for byte, because that is what stands in the queue."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from zithara_worker.queue.queues import stored_body


def php_json_encode(value: Any) -> str:
    """`value` as PHP would encode it: / and everything outside ASCII escaped, no spaces, 10.0 as 10, 1e25 as 1.0e+25.

    A dict is a PHP array with string keys or an object, a list a PHP list; PHP cannot tell [] from {}, so what the
    shop encodes from an empty array is [], and it is for the caller to pass [] there.
    Raises TypeError for anything that JSON does not have, ValueError for NaN and infinities, as PHP refuses them.
    """
    if value is None or isinstance(value, (bool, int)):
        return json.dumps(value)
    if isinstance(value, str):
        return stored_body(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{php_json_encode(str(key))}:{php_json_encode(v)}" for key, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(php_json_encode, value)) + "]"
    raise TypeError(f"{type(value).__name__} has no JSON: {value!r}")


def _number(value: float) -> str:
    """The shortest digits that give the number back (serialize_precision -1, PHP's default since 7.1)."""
    digits = json.dumps(value, allow_nan=False)
    if "e" not in digits:
        return digits.removesuffix(".0")
    mantissa, _, power = digits.partition("e")
    exponent = int(power)
    if exponent == 16:  # Python turns to exponents at 1e16, PHP at 1e17
        return format(Decimal(digits), "f")
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent:+d}"
