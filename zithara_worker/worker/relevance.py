"""Which requests need not be sent: Zithara has something newer, or the same, or the cart has ended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime, timezone

from zithara_worker.errors import ShopError
from zithara_worker.messages import Message, Outcome, OutcomeKind, Request
from zithara_worker.queue.ledger_rules import Rules
from zithara_worker.reasons import CART_INACTIVE, CART_NOT_FOUND, UNCHANGED
from zithara_worker.topics import CART

log = logging.getLogger(__name__)

#: Seconds after which a cart that is not in the shop will not come any more: the transaction that made it was rolled
#: back, or the cart was deleted.
CART_PATIENCE_SECONDS = 600.0
#: Seconds until a cart that is not there is looked at again.
CART_PAUSE_SECONDS = 30.0

#: Cart ids -> whether each is active; those that are not there are left out. None: the shop's carts cannot be read.
LookAtCarts = Callable[[Collection[int]], Mapping[int, bool] | None]


class Relevance:
    """`rules`: by topic. `look_at_carts`: None where inactive carts are sent. `utc`: seconds since the epoch."""

    def __init__(
        self, rules: Mapping[str, Rules], *, look_at_carts: LookAtCarts | None, utc: Callable[[], float]
    ) -> None:
        self._rules = rules
        self._look_at_carts = look_at_carts
        self._utc = utc
        #: Topics of which others deliver messages and record nothing, so that what is recorded proves nothing
        self.unrecorded: frozenset[str] = frozenset()
        #: Topics of which it is not known yet what others delivered lately: what Zithara holds is not sure
        self.unsure: frozenset[str] = frozenset()

    def outcomes(self, requests: Iterable[tuple[Message, Request]]) -> dict[int, Outcome]:
        """The outcomes of those that are not sent now, by relation id. Raises DatabaseUnavailable."""
        known: dict[int, Outcome] = {}
        carts: list[tuple[int, Message]] = []
        for message, request in requests:
            reason = self._reason(message, request)
            if reason:
                known[message.id] = Outcome(kind=OutcomeKind.SKIPPED, reason=reason)
            elif message.topic == CART.name and self._look_at_carts is not None:
                cart_id = str(request.json["cart"]["platform_cart_id"])
                if cart_id.isascii() and cart_id.isdigit() and len(cart_id) < 19:
                    carts.append((int(cart_id), message))
        return known | self._ended_carts(carts)

    def _reason(self, message: Message, request: Request) -> str:
        if message.topic not in self._rules or message.topic in self.unrecorded:
            return ""
        reason = self._rules[message.topic].reason_not_to_send(message, request)
        return "" if reason == UNCHANGED and message.topic in self.unsure else reason

    def _ended_carts(self, carts: Collection[tuple[int, Message]]) -> dict[int, Outcome]:
        if not carts or self._look_at_carts is None:
            return {}
        active = self._look_at_carts([cart_id for cart_id, _ in carts])
        if active is None:
            return {}
        return {
            message.id: Outcome(kind=OutcomeKind.SKIPPED, reason=CART_INACTIVE)
            if cart_id in active
            else self._of_absent_cart(message)
            for cart_id, message in carts
            if not active.get(cart_id, False)
        }

    def _of_absent_cart(self, message: Message) -> Outcome:
        """The transaction that makes the cart may not be committed yet."""
        published = datetime.fromisoformat(message.updated_at_before).replace(tzinfo=timezone.utc).timestamp()
        if self._utc() - published < CART_PATIENCE_SECONDS:
            return Outcome(kind=OutcomeKind.RELEASED, reason=CART_NOT_FOUND, retry_after_seconds=CART_PAUSE_SECONDS)
        return Outcome(kind=OutcomeKind.SKIPPED, reason=CART_NOT_FOUND)


def look_at_carts(read: Callable[[Collection[int]], Mapping[int, bool]]) -> LookAtCarts:
    """`read`, but None for a shop whose carts the worker may not read, or that has none, which is logged once."""
    logged = False

    def look(cart_ids: Collection[int]) -> Mapping[int, bool] | None:
        nonlocal logged
        try:
            active = read(cart_ids)
        except ShopError as error:
            if not logged:
                log.warning(
                    "the shop's table of carts cannot be read: each cart is sent, active or not",
                    extra={"event": "carts_unread", "detail": str(error)},
                )
            logged = True
            return None
        logged = False
        return active

    return look
