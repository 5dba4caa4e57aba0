"""Masks secrets and personal data in texts and JSON values.

A shop's attributes can have any name, so no list of personal keys is ever complete: a value is masked unless its key is
in `_SHOWN`. Objects and lists keep their structure; true, false, null, 0 and "" stay. In free text, JSON is masked by
its keys, also where it has been cut off, and email addresses and telephone numbers are masked wherever they stand. An
operator needs what an answer says (the keys in `_SAID`), so these values are shown as free text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import Enum, auto
from typing import Any

MASK = "***"

#: Keys that hold a secret, also as fields of a log record.
SECRET_NAMES = frozenset(
    {"access_token", "authorization", "client_secret", "crypt_key", "password", "refresh_token", "secret", "token"}
)
#: Keys whose values are shown, in lower case with underscores (orderId is order_id), as the shop and the API name them:
#: ids, states, counts, prices and times.
_SHOWN = frozenset(
    {
        # ids
        *("billing_address_id", "config_id", "customer_address_id", "customer_group_id", "customer_id", "entity_id"),
        *("group_id", "id", "increment_id", "item_id", "last_trans_id", "message_id", "order_id", "parent_id"),
        *("payment_id", "platform_cart_id", "platform_cart_item_id", "platform_customer_id", "platform_line_item_id"),
        *("platform_order_id", "platform_transaction_id", "pos_reference", "product_id", "quote_address_id"),
        *("quote_id", "request_id", "reserved_order_id", "shipping_address_id", "shopify_customer_id", "sku"),
        *("store_id", "trace_id", "transaction_id", "website_id"),
        # states, kinds and codes
        *("address_type", "country", "country_id", "error_code", "event_type", "financial_status"),
        *("fulfillment_status", "method", "payment_status", "product_name", "product_type", "shipping_method"),
        *("state", "status", "status_code", "topic", "transaction_mode", "transaction_type"),
        # whether, as 0 or 1
        *("customer_is_guest", "customer_note_notify", "email_sent", "is_active", "is_virtual"),
        # amounts and quantities
        *("amount", "amount_authorized", "amount_ordered", "amount_paid", "base_amount_authorized"),
        *("base_amount_paid", "base_currency_code", "base_discount_amount", "base_grand_total", "base_price"),
        *("base_row_total", "base_shipping_amount", "base_subtotal", "base_tax_amount", "base_total_paid"),
        *("cashback_amount", "cashback_redeemption_amount", "currency", "currency_code", "current_subtotal_price"),
        *("current_total_discounts", "current_total_price", "current_total_tax", "discount_amount"),
        *("global_currency_code", "grand_total", "items_count", "items_qty", "order_currency_code", "price", "qty"),
        *("qty_invoiced", "qty_ordered", "qty_shipped", "quantity", "quote_currency_code", "row_total"),
        *("shipping_amount", "store_currency_code", "subtotal", "tax_amount", "total", "total_due"),
        *("total_item_count", "total_paid", "total_price", "total_qty_ordered", "total_tax"),
        *("transaction_final_amount", "transaction_original_amount", "weight"),
        # times
        *("created_at", "login_at", "logout_at", "timestamp", "updated_at"),
    }
)
#: Keys of an answer's own words, at its top level or below one another: a `message` within an order is the customer's.
_SAID = frozenset(
    {
        *("code", "detail", "details", "error", "errors", "field", "message", "messages", "path", "reason", "status"),
        *("title", "type"),
    }
)
#: Containers nested deeper than this are left out, because a body can be nested to any depth.
_MAX_DEPTH = 20
#: A key is shown when it looks like an identifier with fewer than 7 digits; any other may be a name or a telephone
#: number.
_WORD = re.compile(r"(?!(?:\D*\d){7})[\w.$-]{1,64}", re.ASCII)
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

#: The lengths are those of RFC 5321; they keep the time proportional to the text. An address may be cut off by "...".
_EMAIL = re.compile(
    r"[^\s@\"'<>,;:=(]{1,64}@(?:[^\s@\"'<>,;:)]{1,255}\.[^\W\d_]{2,}|[^\s@\"'<>,;:)]{0,255}\.\.\.(?=\W*\Z))"
)
#: At least 7 digits with at most two separators between them, unless they are a date, an IP address or an amount
#: (`kept`).
_DIGITS = re.compile(
    r"(?<![\w.-])(?:"
    r"(?P<kept>\d{4}-\d\d-\d\d(?:[ T]\d\d:\d\d(?::\d\d)?)?|\d{1,3}(?:\.\d{1,3}){3}|\d{1,9}\.\d{1,4})(?!\d)"
    r"|\+?\(?\d(?:[ ().-]{0,2}\d){6,}(?!\w))"
)
_ANY_SECRET = "|".join(sorted(SECRET_NAMES))
#: "key": "text", also where an excerpt ends within the text
_SECRET_JSON = re.compile(
    rf'("(?:{_ANY_SECRET})"\s*:\s*)(?:"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[^\s",{{}}\[\]]+)', re.IGNORECASE
)
#: key=text or key: text; not the "(using password: YES)" of a database that refuses a user
_SECRET_PAIR = re.compile(
    rf"(?<![\w\"])((?:{_ANY_SECRET})\s*[=:]\s*(?:bearer\s+)?)(?!YES\b|NO\b)[^\s\"',;&)]+",
    re.IGNORECASE,
)
#: "key": "text" outside of any object, as after a bracket too many
_PAIR = re.compile(r'("([\w.$-]{1,64})"\s*:\s*)"(?:[^"\\]|\\.)+(?:"|\\?\Z)')
#: The beginning of JSON in a text. [Errno 2] of an error does not match.
_JSON = re.compile(r'\{(?=\s*(?:["}]|\Z))|\[(?=\s*["{\[])')
#: The last string of a text may lack its end.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[{}\[\],:]|\s+|[^\s{}\[\],:"]+', re.DOTALL)
_HALF_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")


class Place(Enum):
    """How values at a place of a JSON value are shown."""

    #: Masked: values of requests, and all that have no known key
    HIDDEN = auto()
    #: As free text: the words of an answer
    SAID = auto()
    #: As it is
    SHOWN = auto()
    #: Masked, also where personal data is not
    SECRET = auto()

    @property
    def open(self) -> bool:
        return self in (Place.SAID, Place.SHOWN)

    def below(self, key: str) -> Place:
        word = _HUMP.sub("_", key).lower()
        if self is Place.SECRET or word in SECRET_NAMES:
            return Place.SECRET
        if self is Place.SAID and word in _SAID:
            return Place.SAID
        return Place.SHOWN if word in _SHOWN else Place.HIDDEN


# ---------------------------------------------------------------- texts


def masked(text: str) -> str:
    """`text` without personal data and secrets: 'a***@***' for an email address, '***32' for a telephone number.

    JSON in it is masked like an answer. Dates, amounts and IP addresses stay.
    """
    text = without_secrets(text)
    pieces: list[str] = []
    at = 0
    while found := _JSON.search(text, at):
        pieces.append(_free(text[at : found.start()]))
        at = _mask_json(text, found.start(), pieces)
    pieces.append(_free(text[at:]))
    return "".join(pieces)


def without_secrets(text: str) -> str:
    """`text` with the values of keys such as access_token and password masked, in JSON or after '=' or ':'."""
    return _SECRET_PAIR.sub(rf"\1{MASK}", _SECRET_JSON.sub(rf'\1"{MASK}"', text))


def without_emails(text: str) -> str:
    return _EMAIL.sub(lambda match: f"{match[0][0]}{MASK}@{MASK}", text) if "@" in text else text


def without_echoes(text: str, request: Any) -> str:
    """`text` of an answer, with the texts masked that are masked in the request's JSON, in plain or in JSON spelling.

    Texts of one or two letters and numbers below 10,000 stay, because they are parts of other words.
    """
    echoes = set()
    for value in _hidden_texts(request, Place.HIDDEN):
        if len(value) > (2 if value.isascii() else 1) and not (value.isdigit() and len(value) < 5):
            spelled = json.dumps(value)[1:-1]
            forms = {" ".join(value.split()), spelled, json.dumps(value, ensure_ascii=False)[1:-1]}
            forms.add(spelled.replace("/", "\\/"))  # PHP's
            # "Ana" must not be masked within "Analysis". Scripts without blanks have letters on both sides of a name.
            word = r"(?<![A-Za-z0-9])%s(?![A-Za-z0-9])" if value.isascii() else "%s"
            echoes |= {word % re.escape(form) for form in forms}
    if not echoes:
        return text
    return re.sub("|".join(sorted(echoes, key=len, reverse=True)), MASK, text, flags=re.IGNORECASE)


def _free(text: str) -> str:
    text = _PAIR.sub(lambda match: match[0] if Place.SAID.below(match[2]).open else f'{match[1]}"{MASK}"', text)
    return _DIGITS.sub(lambda match: match["kept"] or f"{MASK}{match[0][-2:]}", without_emails(text))


def _text(text: str, place: Place) -> str:
    if not text or (place is Place.SHOWN and text.isdigit()):
        return text
    return masked(text) if place.open else MASK


def _mask_json(text: str, start: int, pieces: list[str]) -> int:
    """Adds to `pieces` the JSON that begins at `start`, masked; returns where it ends. Where the text turns out not to
    be JSON, more of it is masked, not less."""
    place = Place.SAID
    #: The open objects (True) and lists, each with the place of what is in it
    within: list[tuple[bool, Place]] = []
    key_is_next = False
    for token in _TOKEN.finditer(text, start):
        piece = token[0]
        if piece in ("{", "["):
            key_is_next = piece == "{"
            within.append((key_is_next, place))
        elif piece in ("}", "]"):
            within.pop()
            if not within:
                pieces.append(piece)
                return token.end()
            key_is_next = False
        elif piece == ",":
            key_is_next, inherited = within[-1]
            place = Place.HIDDEN if key_is_next else inherited
        elif piece[0] == '"':
            value = _decoded(piece)
            if key_is_next:
                key_is_next = False
                place = within[-1][1].below(value)
                clean = _key(value)
            else:
                clean = _text(value, place)
            if clean != value:
                piece = json.dumps(clean, ensure_ascii=not clean.isprintable())
        elif not (piece == ":" or piece.isspace() or piece in ("true", "false", "null") or not piece.strip("-0.")):
            if not place.open:
                piece = f'"{MASK}"'
            elif place is Place.SAID:
                piece = _free(piece)
        pieces.append(piece)
    return len(text)


def _decoded(token: str) -> str:
    for whole in (token, _HALF_ESCAPE.sub("", token) + '"'):
        with suppress(ValueError):
            return str(json.loads(whole, strict=False))
    return token[1:]


# ---------------------------------------------------------------- JSON values


def masked_value(value: Any, *, personal: bool = True, place: Place = Place.HIDDEN, depth: int = 0) -> Any:
    """`value` masked, as a JSON value: anything that is neither text, number nor container becomes its str().

    `personal`: whether personal data is masked too. `place`: of the value itself; SAID for an answer.
    """
    if value is None or isinstance(value, bool):
        return value
    bare = place.open or (place is Place.HIDDEN and not personal)
    if isinstance(value, int | float):
        return value if bare or not value else MASK
    if not isinstance(value, Mapping | list | tuple | set | frozenset):
        text = str(value)
        return without_secrets(text) if bare and not personal else _text(text, place)
    if depth >= _MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return {
            _key(name) if personal else name: masked_value(
                inner, personal=personal, place=place.below(name), depth=depth + 1
            )
            for name, inner in ((str(name), inner) for name, inner in value.items())
        }
    return [masked_value(inner, personal=personal, place=place, depth=depth + 1) for inner in value]


def _key(name: str) -> str:
    return name if _WORD.fullmatch(name) else MASK


def _hidden_texts(value: Any, place: Place, depth: int = 0) -> Iterator[str]:
    if isinstance(value, str):
        if place is Place.HIDDEN:
            yield value
    elif depth < _MAX_DEPTH and isinstance(value, dict):
        for name, inner in value.items():
            yield from _hidden_texts(inner, place.below(name), depth + 1)
    elif depth < _MAX_DEPTH and isinstance(value, list):
        for inner in value:
            yield from _hidden_texts(inner, place, depth + 1)
