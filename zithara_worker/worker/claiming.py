"""Claims messages for free threads: from which queues, how many, and when suspects have their turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from zithara_worker.delivery.courier import Courier
from zithara_worker.messages import Claimed
from zithara_worker.monitor.counters import WorkerMetrics
from zithara_worker.queue.bodies import BYTES_IN_HAND
from zithara_worker.queue.held import Held
from zithara_worker.settings.sections import WorkerSettings
from zithara_worker.worker.duties import Duties
from zithara_worker.worker.inbox import CLAIMED_PER_THREAD
from zithara_worker.worker.outcomes import TopicState
from zithara_worker.worker.starting import Starter

#: Seconds for which suspects are delivered one after another before other messages have their turn.
SUSPECTS_SECONDS = 1.0


class Claiming:
    """Decides from which queues to claim, and how many messages. `topics`: by queue id.

    `may_claim`: False while nothing may be claimed at all, for example while the audit file cannot be written.
    """

    def __init__(
        self,
        topics: Mapping[int, TopicState],
        *,
        settings: WorkerSettings,
        held: Held,
        courier: Courier,
        duties: Duties,
        starter: Starter,
        metrics: WorkerMetrics,
        may_claim: Callable[[], bool],
    ) -> None:
        self._topics = topics
        self._concurrency = settings.concurrency
        self._batch_size = settings.batch_size
        self._held = held
        self._courier = courier
        self._duties = duties
        self._starter = starter
        self._metrics = metrics
        self._may_claim = may_claim
        self._next_topic = 0
        #: When the turn of the suspects began, None outside of it; whether one was claimed in it; when the next may
        #: begin
        self._suspects_since: float | None = None
        self._suspect_claimed = False
        self._suspects_at = 0.0
        #: Whether another claim may bring messages at once
        self.may_continue = False

    def claim(self, at_most: int | None) -> None:
        """Claims from each queue in turn, up to `at_most` messages in hand (None: no limit), and starts them. Raises
        DatabaseUnavailable."""
        self.may_continue = False
        if not self._duties.consumable or not self._may_claim():
            return
        topics = list(self._topics.values())
        first = self._next_topic % len(topics)
        self._next_topic = first + 1
        in_turn = topics[first:] + topics[:first]
        if self._let_suspects_go_first(in_turn, at_most):
            return
        for position, topic in enumerate(in_turn, start=first):
            room = self._room(topic, at_most)
            if room > 0 and topic.queue.may_have_work:
                room_bytes, large = self._room_bytes()
                self._claim_from(topic, partial(topic.queue.claim, room, room=room_bytes, large=large))
                if topic.queue.short_of_room:
                    # The memory that becomes free is for the message that waits for it, so the next turn begins here.
                    self._next_topic = position
                    break
                # After a claim that made progress another one may bring more at once; after any other, the next poll
                # has to come first.
                self.may_continue = self.may_continue or (
                    topic.queue.made_progress and topic.queue.may_have_work and self._room(topic, at_most) > 0
                )

    def _claim_from(self, topic: TopicState, claim: Callable[[], list[Claimed]]) -> int:
        """Claims and starts what the claim brings; the number of messages."""
        before = self._held.clock()
        claimed = claim()
        self._metrics.claimed(topic.queue.topic, [each.message for each in claimed], self._held.clock() - before)
        self._starter.start(claimed)
        return len(claimed)

    def _let_suspects_go_first(self, topics: Sequence[TopicState], at_most: int | None) -> bool:
        """Claims a message whose worker died, if such suspects have their turn. True: nothing else may be claimed now.

        A suspect is delivered alone, because only then can the next death be blamed on it. Suspects and other messages
        take turns: suspects one after another for SUSPECTS_SECONDS, or a single one for as long as it takes; then the
        others for as long as the suspects had.
        """
        if self._held.has_suspect:
            return True
        now = self._held.clock()
        waiting = [
            topic
            for topic in topics
            if topic.queue.may_have_suspects
            and topic.queue.topic not in self._duties.paused
            and all(self._courier.allowance(target) != 0 for target in topic.targets)
        ]
        if self._suspects_since is None:
            if not waiting or now < self._suspects_at:
                return False
            self._suspects_since, self._suspect_claimed = now, False
        elif not waiting or (self._suspect_claimed and now - self._suspects_since >= SUSPECTS_SECONDS):
            self._suspects_at, self._suspects_since = now + (now - self._suspects_since), None
            return False
        if self._held:
            return True
        for topic in waiting:
            if self._room(topic, at_most) > 0 and self._claim_from(topic, topic.queue.claim_suspect):
                self._suspect_claimed = True
                return True
        self._suspects_since = None
        return False

    def _room(self, topic: TopicState, at_most: int | None) -> int:
        """How many messages of this topic to claim now. While every thread is busy, less than half a batch is not worth
        its statements."""
        if topic.queue.topic in self._duties.paused:
            return 0
        in_hand = len(self._held)
        room = min(self._batch_size, CLAIMED_PER_THREAD * self._concurrency + self._batch_size - in_hand)
        if in_hand >= self._concurrency and room < (self._batch_size + 1) // 2:
            return 0
        for target in topic.targets:
            allowance = self._courier.allowance(target)
            if allowance is not None:
                sharing = [queue_id for queue_id, each in self._topics.items() if target in each.targets]
                room = min(room, allowance - self._held.count(sharing))
        return room if at_most is None else min(room, at_most - in_hand)

    def _room_bytes(self) -> tuple[int, bool]:
        """Bytes that the bodies of further messages may have together, and whether one that is larger than
        BYTES_IN_HAND may be among them."""
        lengths = [message.length for message in self._held.messages()]
        large = [length for length in lengths if length > BYTES_IN_HAND]
        return BYTES_IN_HAND - (sum(lengths) - sum(large)), not large
