"""The timed duties of the delivery ledger: are its rows to be believed, and which are no longer needed?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from zithara_worker.database.session import Database
from zithara_worker.queue.ledger_others import Others
from zithara_worker.queue.ledger_upkeep import SLICE, forget_old_carts, ids_began_again, unrecorded_topics
from zithara_worker.worker.relevance import Relevance

log = logging.getLogger(__name__)

#: Seconds for which deliveries of others are taken to go on after they were last seen: between two looks a PHP consumer
#: has handled many messages.
OTHERS_SECONDS = 600.0


class LedgerDuties:
    """`topics`: those with a ledger, by queue id. `monotonic`: seconds."""

    def __init__(
        self, database: Database, topics: Mapping[int, str], *, relevance: Relevance, monotonic: Callable[[], float]
    ) -> None:
        self._database = database
        self._topics = topics
        self._relevance = relevance
        self._monotonic = monotonic
        self._others = Others(database, topics, clock=monotonic)
        # Until the first look it is not known what others delivered while no worker ran.
        relevance.unsure = frozenset(topics.values())
        #: The newest message id of each queue at the last poll
        self._newest: Mapping[int, int] | None = None
        #: Topic -> when others were last seen to deliver its messages
        self._others_at: dict[str, float] = {}

    def polled(self, newest: Mapping[int, int]) -> None:
        """`newest`: the newest message id of each queue. If one falls, ids may have begun again, as after a restore.
        Raises DatabaseUnavailable."""
        before = self._newest
        fell = before is None or any(id < before.get(queue, 0) for queue, id in newest.items())
        if self._topics and fell and ids_began_again(self._database):
            log.warning(
                "message ids have begun again: what was accepted before them overtakes no message",
                extra={"event": "ids_began_again"},
            )
        if self._topics and fell and before is not None:
            # What was accepted since the backup, or by the server that is gone, is not recorded any more.
            self._database.execute("ledger_unsure", topics=sorted(set(self._topics.values())))
            log.info(
                "the newest messages have vanished, as after a restore, a failover or a cleanup: each order, customer "
                "and cart is sent once more",
                extra={"event": "ledger_unsure"},
            )
        self._newest = dict(newest)

    def look_at_others(self) -> bool:
        """Whether others deliver messages and record nothing, and what they delivered since the last look. False: the
        look is to go on soon. Raises DatabaseUnavailable."""
        if not self._topics:
            return True
        complete = self._others.look()
        self._relevance.unsure = frozenset() if self._others.up_to_date else frozenset(self._topics.values())
        now = self._monotonic()
        self._others_at |= dict.fromkeys(unrecorded_topics(self._database, self._topics), now)
        unrecorded = frozenset(topic for topic, at in self._others_at.items() if now - at < OTHERS_SECONDS)
        for topic in sorted(unrecorded ^ self._relevance.unrecorded):
            if topic in unrecorded:
                log.warning(
                    "every message is sent, because others deliver too without recording it (PHP consumers, or workers "
                    "older than 0.3)",
                    extra={"event": "ledger_off", "topic": topic},
                )
            else:
                log.info("messages are compared with the ledger again", extra={"event": "ledger_on", "topic": topic})
        self._relevance.unrecorded = unrecorded
        return complete

    def clean(self) -> bool:
        """Removes a slice of the carts that nothing was accepted of for long; whether none is left."""
        return not self._topics or forget_old_carts(self._database) < SLICE
