"""Writes the outcomes that arrived to the queues, in batches."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence

from zithara_worker.errors import DatabaseUnavailable, ZitharaWorkerError
from zithara_worker.messages import Outcome, OutcomeKind, Request
from zithara_worker.queue.held import Held
from zithara_worker.queue.settle import Settled, Settlement
from zithara_worker.reasons import INTERNAL_ERROR
from zithara_worker.worker.inbox import Inbox
from zithara_worker.worker.outcomes import Outcomes, TopicState
from zithara_worker.worker.starting import Starter

log = logging.getLogger(__name__)


class Settling:
    """Keeps what could not be written for the next turn. `topics`: by queue id."""

    def __init__(
        self, topics: Mapping[int, TopicState], *, held: Held, inbox: Inbox, outcomes: Outcomes, starter: Starter
    ) -> None:
        self._topics = topics
        self._held = held
        self._inbox = inbox
        self._outcomes = outcomes
        self._starter = starter
        self._unsettled: list[Settlement] = []
        #: Messages settled for good or for a retry; those that were only released do not count
        self.settled_count = 0
        #: When the last message that was released with a delay, as after 429, may be claimed again
        self.released_until = 0.0

    def settle(self, *, in_doubt: bool, ending: bool) -> None:
        """Settles every message whose outcome is known. Raises DatabaseUnavailable, or what a defect raised; what could
        not be written is written with the next call.

        `in_doubt`: an earlier call may have been committed although it raised. `ending`: nothing more is sent.
        """
        if not ending:
            self._create_absent_orders()
        # In this order, so that a defect in `decide` loses no result.
        self._unsettled += self._outcomes.decide(self._inbox.results)
        self._inbox.results = []
        by_queue: defaultdict[int, list[Settlement]] = defaultdict(list)
        for each in self._unsettled:
            by_queue[each.message.queue_id].append(each)
        for queue_id, settlements in by_queue.items():
            self._write(self._topics[queue_id], settlements, in_doubt=in_doubt)
        self._outcomes.catch_up(self._held)

    def _create_absent_orders(self) -> None:
        """Sends each update whose order the API does not know again, as its create."""
        # The results are replaced only after the database has answered for all of them.
        results = self._inbox.results
        steps = [(message, self._outcomes.of_absent_order(message, outcome)) for message, outcome in results]
        self._inbox.results = [(message, step) for message, step in steps if isinstance(step, Outcome)]
        for message, step in steps:
            if isinstance(step, Request):
                self._starter.send(message, step)

    def _write(self, topic: TopicState, settlements: Sequence[Settlement], *, in_doubt: bool) -> None:
        """Writes a batch. A batch that one message prevents is written message by message."""
        before = self._held.clock()
        try:
            settled = topic.queue.settle(settlements, in_doubt=in_doubt)
        except DatabaseUnavailable:
            raise
        except Exception as error:
            if len(settlements) > 1:
                self._write_one_by_one(topic, settlements, in_doubt=in_doubt)
                return
            if isinstance(error, ZitharaWorkerError):
                raise  # the database's fault, such as a revoked privilege: the outcome is written once that is mended
            message = settlements[0].message
            log.exception("an outcome cannot be written", extra={"event": "internal_error", **message.log_fields})
            detail = f"{type(error).__name__}, see the worker's log"
            plain = Outcome(kind=OutcomeKind.RETRY, reason=INTERNAL_ERROR, detail=detail)
            settled = topic.queue.settle([self._outcomes.settlement(message, plain)], in_doubt=True)
        self._after_writing(topic, settlements, settled, self._held.clock() - before)

    def _write_one_by_one(self, topic: TopicState, settlements: Sequence[Settlement], *, in_doubt: bool) -> None:
        failed: Exception | None = None
        for each in settlements:
            try:
                self._write(topic, [each], in_doubt=in_doubt)
            except DatabaseUnavailable:
                raise
            except Exception as error:
                failed = error
        if failed is not None:
            raise failed

    def _after_writing(
        self, topic: TopicState, settlements: Sequence[Settlement], settled: Settled, seconds: float
    ) -> None:
        written = {each.message.id for each in settlements}
        self._unsettled = [each for each in self._unsettled if each.message.id not in written]
        self._outcomes.settled(topic, settled, seconds)
        for each in settled.done:
            if each.outcome.kind is not OutcomeKind.RELEASED:
                self.settled_count += 1
            else:
                self.released_until = max(self.released_until, self._held.clock() + each.delay_seconds)
