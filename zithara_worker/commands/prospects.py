"""What a worker would do with a message now: the request that it makes of it, and the rules by which it sends none."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

from zithara_worker.commands.root import Context
from zithara_worker.database.session import Database
from zithara_worker.errors import ConfigurationError
from zithara_worker.messages import Event, Lease, Message, Rejection, Skip
from zithara_worker.queue.failures import Failure
from zithara_worker.queue.ledger import Ledger
from zithara_worker.queue.ledger_records import Record, records
from zithara_worker.queue.ledger_rules import LEDGER_TOPICS, Rules, destination
from zithara_worker.queue.statuses import Status
from zithara_worker.reasons import CART_INACTIVE, CART_NOT_FOUND, OVERTAKEN, UNCHANGED
from zithara_worker.shop.carts import active_carts
from zithara_worker.shop.configuration import complete, read_configuration
from zithara_worker.units import moment
from zithara_worker.worker.relevance import Relevance, look_at_carts
from zithara_worker.worker.starting import RequestFactory
from zithara_worker.zithara.api import request_digest

#: What a retry does, beside the codes of `reasons`: it sends the request; it is done with --force only; it completes or
#: fails the message, because there is no request.
SENT, NEEDS_FORCE, REJECTED, SKIPPED = "sent", "needs_force", "rejected", "skipped"
#: By what a retry does, in words
RETRY_TEXTS: Mapping[str, str] = {
    SENT: "sends it",
    NEEDS_FORCE: "is refused, because newer data of this group has been delivered since and it would overwrite that: "
    "discard it, or use --force",
    OVERTAKEN: "sends nothing, because Zithara has accepted newer data and the message completes as overtaken: discard "
    "it, or use --force",
    UNCHANGED: "sends it again, though Zithara has accepted the same already: discard it",
    CART_INACTIVE: "sends nothing, because the cart has ended: it completes as cart_inactive",
    CART_NOT_FOUND: "waits for the cart, which is not in the shop, and completes as cart_not_found after ten minutes",
    SKIPPED: "completes it without a request",
    REJECTED: "fails again: the message makes no request",
}


class Prospects:
    """Judges by the settings and the shop's configuration of this moment. Raises ShopError, DatabaseUnavailable."""

    def __init__(self, context: Context, database: Database) -> None:
        self._database = database
        configured, shop = context.configured, read_configuration(database, None)
        zithara = configured.settings.zithara
        requests = RequestFactory(zithara, shop, utc=time.time)
        self.shop = requests.context
        #: The request that an event becomes, or why it becomes none
        self.process = requests.process
        #: Whether the shop wants its messages delivered
        self.enabled = shop.consumable
        #: Of the account that messages are sent to; None: its credentials cannot be read
        self.destination: str | None = None
        with suppress(ConfigurationError):
            self.destination = destination(complete(configured, shop).settings.zithara)
        # An equal request is told as such, though an operator's retry sends it in any case.
        rules = Rules(digest=request_digest, unchanged_for=math.inf)
        self._relevance = Relevance(
            dict.fromkeys(LEDGER_TOPICS, rules),
            look_at_carts=look_at_carts(partial(active_carts, database)) if zithara.inactive_carts == "skip" else None,
            utc=time.time,
        )

    def accepted(self, topic: str, group_key: str) -> Record | None:
        """What Zithara last accepted of the entity. Of another account, if nothing else is known."""
        return next((each for each in records(self._database, group_key) if each.topic == topic), None)

    def retry(self, message: Failure, topic: str, group_key: str, content: Event | Rejection) -> str:
        """What a retry of a message in ERROR, or of a discarded one, would do; a key of RETRY_TEXTS."""
        request = self.process(content) if isinstance(content, Event) else content
        if isinstance(request, Rejection):
            return REJECTED
        if message.newer_delivered:
            return NEEDS_FORCE
        if isinstance(request, Skip):
            return SKIPPED
        outcomes = self._relevance.outcomes([(self._retried(message, topic, group_key), request)])
        return outcomes[message.id].reason if message.id in outcomes else SENT

    def _retried(self, message: Failure, topic: str, group_key: str) -> Message:
        """As a claim would have it."""
        record = self.accepted(topic, group_key)
        destination = self.destination or (record.destination if record else "")
        known = Ledger(self._database, topic=topic, destination=destination).read([group_key])
        return Message(
            id=message.id,
            message_id=message.message_id,
            queue_id=message.queue_id,
            queue_name=message.queue,
            topic=topic,
            group_key=group_key,
            number_of_trials=0,
            claim=0,
            status_before=Status.RETRY_REQUIRED,
            updated_at_before=moment(time.time()),
            known=known.get(group_key),
            lease=Lease(0.0),
        )
