"""Every message that one worker holds, from its claim to its end. Pure memory: knows no SQL.

    claimed --handed out--> on its way --answered--> settling --forgotten

The tables decide who owns a message; this object decides what this worker may still do with it. It gives each claim its
number, keeps the worker from claiming what it has in hand, says whether a message may be sent, and knows what was lost.
All calls may come from any thread: the loop claims and settles, delivery threads ask whether they may send, and leases
are renewed in a thread of their own.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import Enum

from zithara_worker.messages import Message

#: Claim numbers begin at random below this and count on: two workers hardly ever use the same number, so that the
#: number alone proves whose claim wrote a row. Small enough for a JSON number (2^53) after years of counting.
_FIRST_CLAIM_BELOW = 2**52

#: Seconds without a turn of the loop after which its leases are left to run out. /healthz/live tells of it after a
#: third of this, so a supervisor that restarts the worker comes first; a turn that is merely long ends before.
ABANDONED_SECONDS = 300.0


class Stage(Enum):
    """How far a held message has come."""

    #: Its claim is committed, and nobody has it yet
    CLAIMED = "claimed"
    #: With the delivery threads: not sent yet, or on its way
    HANDED_OUT = "handed out"
    #: What came of it is known, and not being written yet
    ANSWERED = "answered"
    #: Its outcome is being written, or was, and the answer of the COMMIT is awaited
    SETTLING = "settling"


@dataclass(slots=True)
class _Holding:
    message: Message
    stage: Stage = Stage.CLAIMED
    #: It may not be sent any more, though its lease is ours: it is being given back
    revoked: bool = False
    #: Its lease is not ours any more
    lost: bool = False


class Held:
    """What one worker holds. `clock`: seconds, the clock of leases; it must run on while the machine sleeps."""

    def __init__(self, *, worker_id: str, lease_seconds: float, clock: Callable[[], float]) -> None:
        self.worker_id = worker_id
        self.lease_seconds = lease_seconds
        self.clock = clock
        self._lock = threading.Lock()
        self._holdings: dict[int, _Holding] = {}
        self._groups: set[tuple[int, str]] = set()
        self._last_claim = secrets.randbelow(_FIRST_CLAIM_BELOW)
        #: Whether the last claim's transaction may still be under way, or its messages are not here yet
        self._claiming = False
        self._turned_at = clock()

    # ---------------------------------------------------------------- what is here

    def __len__(self) -> int:
        return len(self._holdings)

    def __contains__(self, relation_id: object) -> bool:
        return relation_id in self._holdings

    def ids(self) -> Collection[int]:
        """The relation ids of what is held, lost messages included while they are on their way."""
        with self._lock:
            return list(self._holdings)

    def messages(self, *stages: Stage) -> list[Message]:
        """Those at one of these stages; without any, all."""
        with self._lock:
            return [each.message for each in self._holdings.values() if not stages or each.stage in stages]

    @property
    def has_suspect(self) -> bool:
        """Whether a message is in hand that may kill the worker, and that shall die alone."""
        with self._lock:
            return any(each.message.suspect for each in self._holdings.values())

    def count(self, queue_ids: Collection[int]) -> int:
        """How many messages of these queues are in hand."""
        with self._lock:
            return sum(each.message.queue_id in queue_ids for each in self._holdings.values())

    def groups(self, queue_id: int) -> set[str]:
        """The groups of this queue with a message in hand, be its lease lost: none of them may be claimed."""
        with self._lock:
            return {group for of_queue, group in self._groups if of_queue == queue_id}

    # ---------------------------------------------------------------- claim

    def next_claim(self) -> int:
        """The number of the claim that begins now. Rows with it are nobody's orphans until `take` is called."""
        with self._lock:
            self._last_claim += 1
            self._claiming = True
            return self._last_claim

    def take(self, messages: Iterable[Message]) -> None:
        """The claim has ended, and brought these."""
        with self._lock:
            self._claiming = False
            for message in messages:
                if message.id in self._holdings or (message.queue_id, message.group_key) in self._groups:
                    raise RuntimeError(f"message {message.message_id} was claimed while its group was in hand")
                self._holdings[message.id] = _Holding(message)
                self._groups.add((message.queue_id, message.group_key))

    # ---------------------------------------------------------------- on its way

    def hand_out(self, message: Message) -> None:
        """The message goes to the delivery threads."""
        self._at(message, Stage.HANDED_OUT)

    def revoke(self, message: Message) -> None:
        """From now on the message may not be sent: it is being given back. No renewal makes it valid again."""
        with self._lock:
            message.lease.valid_until = 0.0
            holding = self._holding(message)
            if holding is not None:
                holding.revoked = True

    # ---------------------------------------------------------------- the end

    def answered(self, message: Message) -> None:
        """What came of the message is known."""
        self._at(message, Stage.ANSWERED)

    def settling(self, messages: Iterable[Message]) -> None:
        """Their outcomes are about to be written: a row that is gone from now on may be our own doing."""
        for message in messages:
            self._at(message, Stage.SETTLING)

    def forget(self, messages: Iterable[Message]) -> None:
        """They are settled, or lost: not ours any more."""
        with self._lock:
            for message in messages:
                if self._holding(message) is not None:
                    del self._holdings[message.id]
                    self._groups.discard((message.queue_id, message.group_key))

    # ---------------------------------------------------------------- leases

    def turned(self) -> None:
        """The loop lives."""
        self._turned_at = self.clock()

    @property
    def is_abandoned(self) -> bool:
        """Whether the loop that should settle all this has stood still for so long that others had better take over."""
        return self.clock() - self._turned_at > ABANDONED_SECONDS

    def renewable(self) -> list[Message]:
        """What the worker believes to own."""
        with self._lock:
            return [each.message for each in self._holdings.values() if not each.lost]

    def renewed(self, messages: Iterable[Message], valid_until: float) -> None:
        with self._lock:
            for message in messages:
                holding = self._holding(message)
                if holding is not None and not holding.lost and not holding.revoked:
                    message.lease.valid_until = valid_until

    def lose(self, messages: Iterable[Message]) -> list[Message]:
        """The rows of these were not to be found; those that are lost, each told once.

        Not what is settling: its own settlement may have removed the row.
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
        """Whether a lease of this worker that was read from the tables, with this head and claim, is in nobody's hands:
        its claim was given up and committed all the same."""
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
