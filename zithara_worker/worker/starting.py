"""Makes requests of claimed messages and hands them to the delivery threads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone

from zithara_worker.delivery.threads import DeliveryPool
from zithara_worker.errors import DatabaseUnavailable, ZitharaWorkerError
from zithara_worker.messages import Claimed, Event, Message, Outcome, OutcomeKind, Rejection, Request, Skip
from zithara_worker.processors import ShopContext, as_create, process
from zithara_worker.queue.held import Held
from zithara_worker.reasons import INTERNAL_ERROR, SHOP_UNREAD, UNKNOWN_CONFIG_ID
from zithara_worker.settings.sections import ZitharaSettings
from zithara_worker.shop.configuration import ShopConfiguration
from zithara_worker.worker.inbox import Inbox
from zithara_worker.worker.relevance import Relevance

log = logging.getLogger(__name__)


class RequestFactory:
    """Runs the processors with what the shop said last. `utc`: seconds since the epoch.

    `on_webhook_url`: called when webhooks go to another URL from now on.
    """

    def __init__(
        self,
        settings: ZitharaSettings,
        shop: ShopConfiguration,
        *,
        utc: Callable[[], float],
        on_webhook_url: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._shop = shop
        self._utc = utc
        self._on_webhook_url = on_webhook_url

    def use(self, shop: ShopConfiguration) -> None:
        before, self._shop = self._shop, shop
        if shop.webhook_url != before.webhook_url:
            self._on_webhook_url()

    @property
    def context(self) -> ShopContext:
        return ShopContext(
            webhook_url=self._settings.webhook_url or self._shop.webhook_url,
            active_config_id=self._shop.active_config_id,
            config_ids=self._shop.config_ids,
            invented_phone=self._settings.invented_phone,
            now_utc=datetime.fromtimestamp(self._utc(), timezone.utc),
        )

    def process(self, event: Event) -> Request | Skip | Rejection:
        return process(event, self.context)

    def create(self, event: Event) -> Request | Skip | Rejection:
        """The request that creates the order of an update."""
        return self.process(as_create(event))


class Starter:
    """Makes requests of claimed messages and hands them to the delivery threads. A message that cannot become a request
    gets its outcome at once.

    `process`: the processors, with the shop's latest settings. `relevance`: which requests need not be sent.
    `look_at_shop`: reads these settings afresh; raises
    ZitharaWorkerError where that fails.
    """

    def __init__(
        self,
        pool: DeliveryPool,
        held: Held,
        inbox: Inbox,
        *,
        process: Callable[[Event], Request | Skip | Rejection],
        relevance: Relevance,
        look_at_shop: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._held = held
        self._inbox = inbox
        self._process = process
        self._relevance = relevance
        self._look_at_shop = look_at_shop

    def send(self, message: Message, request: Request) -> None:
        self._held.hand_out(message)
        self._pool.submit(message, request)

    def start(self, claimed: Sequence[Claimed]) -> None:
        """Raises ZitharaWorkerError if the shop could not be read; every message has its outcome then, too."""
        unknown_rows = self._start(claimed)
        if not unknown_rows:
            return
        # The shop may have the row by now that these messages name: read once for all of them, before any is rejected.
        try:
            self._look_at_shop()
        except ZitharaWorkerError:
            self._release([message for message, _ in unknown_rows])
            raise
        self._start(unknown_rows, shop_is_fresh=True)

    def _start(self, claimed: Sequence[Claimed], *, shop_is_fresh: bool = False) -> list[Claimed]:
        """Returns those that name a row which the shop did not have when it was last read; nothing is done with them.
        `shop_is_fresh`: it was read since the claim, so that such a message is rejected."""
        requests: list[tuple[Message, Request]] = []
        unknown_rows = []
        for each in claimed:
            step = self._step(each)
            if isinstance(step, Request):
                requests.append((each.message, step))
            elif isinstance(step, Rejection) and step.code == UNKNOWN_CONFIG_ID and not shop_is_fresh:
                unknown_rows.append(each)
            elif isinstance(step, Rejection):
                outcome = Outcome(kind=OutcomeKind.FAILED, reason=step.code, detail=step.detail)
                self._inbox.add(each.message, outcome)
            elif isinstance(step, Skip):
                self._inbox.add(each.message, Outcome(kind=OutcomeKind.SKIPPED, reason=step.reason))
        not_sent = self._not_sent(requests)
        for message, request in requests:
            if message.id in not_sent:
                self._inbox.add(message, not_sent[message.id])
                continue
            for warning in request.warnings:
                log.warning("message has a flaw", extra={"event": warning, **message.log_fields})
            self.send(message, request)
        return unknown_rows

    def _step(self, claimed: Claimed) -> Request | Skip | Rejection | None:
        """None: processing failed, and the message has its outcome."""
        message, content = claimed
        try:
            return self._process(content) if isinstance(content, Event) else content
        except Exception:
            # One bad message must not stop a queue. The log has the traceback; the message is tried again.
            log.exception("processing failed", extra={"event": "internal_error", **message.log_fields})
            detail = "an error in the worker, see its log"
            self._inbox.add(message, Outcome(kind=OutcomeKind.RETRY, reason=INTERNAL_ERROR, detail=detail))
            return None

    def _not_sent(self, requests: Sequence[tuple[Message, Request]]) -> Mapping[int, Outcome]:
        try:
            return self._relevance.outcomes(requests)
        except DatabaseUnavailable:
            self._release([message for message, _ in requests])
            raise
        except Exception:
            # To send what need not be sent does no harm; to stop deliveries would.
            log.exception("a message cannot be compared with what was accepted", extra={"event": "internal_error"})
            return {}

    def _release(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self._inbox.add(message, Outcome(kind=OutcomeKind.RELEASED, reason=SHOP_UNREAD))
