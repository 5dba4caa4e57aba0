"""The messages that this worker holds, from their claim until they are settled or lost. Memory only, without SQL.

    CLAIMED --> HANDED_OUT --> ANSWERED --> SETTLING --> forgotten

The tables decide who owns a message. `Held` decides what this worker may still do with it: it gives each claim its
number, keeps the worker from claiming what it holds, withdraws the right to send, and knows which leases were lost.
Every method may be called from any thread: the loop claims and settles, delivery threads send, and `renewal` renews
leases in a thread of its own.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import Enum

from zithara_worker.messages import Message

#: Claim numbers begin at random below this, and count up. Two workers hardly ever use the same number, so the number
#: alone proves whose claim wrote a row. It fits into a JSON number (2^53) even after years of counting.
_FIRST_CLAIM_BELOW = 2**52

#: Seconds without a turn of the loop after which its leases are not renewed any more, so that other workers take over.
#: A turn that is merely long ends sooner. /healthz/live fails after a third of this, so a supervisor restarts the
#: worker first.
ABANDONED_SECONDS = 300.0


class Stage(Enum):
    """How far a held message has come."""

    #: Its claim is committed; no delivery thread has it yet
    CLAIMED = "claimed"
    #: The delivery threads have it; it may or may not have been sent
    HANDED_OUT = "handed out"
    #: Its outcome is known, and waits to be written
    ANSWERED = "answered"
    #: Its outcome is being written, or the answer to the COMMIT is awaited
    SETTLING = "settling"


@dataclass(slots=True)
class _Holding:
    message: Message
    stage: Stage = Stage.CLAIMED
    #: It is being released, so it may not be sent any more although the lease is ours
    revoked: bool = False
    #: The lease is not ours any more
    lost: bool = False


class Held:
    """What one worker holds, of all its queues.

    `clock`: seconds, the clock of leases. It must not stop while the machine is suspended, because other workers take
    over by the database's clock meanwhile.
    """

    def __init__(self, *, worker_id: str, lease_seconds: float, clock: Callable[[], float]) -> None:
        self.worker_id = worker_id
        self.lease_seconds = lease_seconds
        self.clock = clock
        self._lock = threading.Lock()
        self._holdings: dict[int, _Holding] = {}
        self._groups: set[tuple[int, str]] = set()
        self._last_claim = secrets.randbelow(_FIRST_CLAIM_BELOW)
        #: Whether the last claim may still be under way: its rows may be committed, and its messages are not here yet
        self._claiming = False
        self._turned_at = clock()

    # ---------------------------------------------------------------- what is here

    def __len__(self) -> int:
        return len(self._holdings)

    def __contains__(self, relation_id: object) -> bool:
        return relation_id in self._holdings

    def messages(self, *stages: Stage) -> list[Message]:
        """The messages at one of these stages; all of them if none is named."""
        with self._lock:
            return [each.message for each in self._holdings.values() if not stages or each.stage in stages]

    @property
    def has_suspect(self) -> bool:
        """Whether the worker holds a suspect: a message that may kill the worker, and must be held alone."""
        with self._lock:
            return any(each.message.suspect for each in self._holdings.values())

    def count(self, queue_ids: Collection[int]) -> int:
        """How many messages of these queues the worker holds."""
        with self._lock:
            return sum(each.message.queue_id in queue_ids for each in self._holdings.values())

    def groups(self, queue_id: int) -> set[str]:
        """The groups of this queue of which the worker holds a message, even with a lost lease. None may be claimed."""
        with self._lock:
            return {group for of_queue, group in self._groups if of_queue == queue_id}

    # ---------------------------------------------------------------- claim

    def next_claim(self) -> int:
        """The number of the claim that begins now. Until `take` is called, `is_orphan` is false for its rows."""
        with self._lock:
            self._last_claim += 1
            self._claiming = True
            return self._last_claim

    def take(self, messages: Iterable[Message]) -> None:
        """The claim has ended and brought these messages."""
        with self._lock:
            self._claiming = False
            for message in messages:
                if message.id in self._holdings or (message.queue_id, message.group_key) in self._groups:
                    raise RuntimeError(f"message {message.message_id} was claimed while its group was held")
                self._holdings[message.id] = _Holding(message)
                self._groups.add((message.queue_id, message.group_key))

    # ---------------------------------------------------------------- on its way

    def hand_out(self, message: Message) -> None:
        """The message goes to the delivery threads."""
        self._at(message, Stage.HANDED_OUT)

    def revoke(self, message: Message) -> None:
        """The message is being released: from now on it may not be sent, and no renewal changes that."""
        with self._lock:
            message.lease.valid_until = 0.0
            holding = self._holding(message)
            if holding is not None:
                holding.revoked = True

    # ---------------------------------------------------------------- the end

    def answered(self, message: Message) -> None:
        """The outcome of the message is known."""
        self._at(message, Stage.ANSWERED)

    def settling(self, messages: Iterable[Message]) -> None:
        """Their outcomes are about to be written. If a row is gone from now on, this settlement may have removed it."""
        for message in messages:
            self._at(message, Stage.SETTLING)

    def forget(self, messages: Iterable[Message]) -> None:
        """They are settled or lost. The worker does not hold them any more."""
        with self._lock:
            for message in messages:
                if self._holding(message) is not None:
                    del self._holdings[message.id]
                    self._groups.discard((message.queue_id, message.group_key))

    # ---------------------------------------------------------------- leases

    def turned(self) -> None:
        """The loop has begun a turn."""
        self._turned_at = self.clock()

    @property
    def is_abandoned(self) -> bool:
        """Whether the loop has not turned for so long that other workers should take over what it holds."""
        return self.clock() - self._turned_at > ABANDONED_SECONDS

    def renewable(self) -> list[Message]:
        """The messages whose leases the worker believes to own."""
        with self._lock:
            return [each.message for each in self._holdings.values() if not each.lost]

    def renewed(self, messages: Iterable[Message], valid_until: float) -> None:
        with self._lock:
            for message in messages:
                holding = self._holding(message)
                if holding is not None and not holding.lost and not holding.revoked:
                    message.lease.valid_until = valid_until

    def lose(self, messages: Iterable[Message]) -> list[Message]:
        """Marks messages as lost whose rows were not found; those that were not marked before.

        A message that is settling is left out, because its own settlement may have removed the row.
        """
        lost = []
        with self._lock:
            for message in messages:
                holding = self._holding(message)
                if holding is not None and not holding.lost and holding.stage is not Stage.SETTLING:
                    holding.lost = True
                    message.lease.valid_until = 0.0
                    lost.append(message)
        return lost

    def is_orphan(self, relation_id: int, claim: int) -> bool:
        """Whether no message is held for a lease of this worker that the tables name, with this head and claim.

        Its claim was given up because the COMMIT was in doubt, and was committed all the same.
        """
        with self._lock:
            if self._claiming and claim == self._last_claim:
                return False
            holding = self._holdings.get(relation_id)
            return holding is None or holding.message.claim != claim

    # ----------------------------------------------------------------

    def _holding(self, message: Message) -> _Holding | None:
        holding = self._holdings.get(message.id)
        return holding if holding is not None and holding.message is message else None

    def _at(self, message: Message, stage: Stage) -> None:
        with self._lock:
            holding = self._holding(message)
            if holding is not None:
                holding.stage = stage
