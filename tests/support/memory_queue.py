"""A stand-in for `MessageQueue` in memory; `test_outage_model` holds its order of candidates to the real one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from support.messages import message_of
from zithara_worker.messages import Claimed, Event, Lease, Message, OutcomeKind
from zithara_worker.queue.held import Held
from zithara_worker.queue.settle import Settled, Settlement


@dataclass
class Row:
    """A message on the queue, with what the tables know of it."""

    number: int
    topic: str
    group: str
    fault: str | None = None
    published_at: float = 0.0
    status: str = "pending"
    trials: int = 0
    attempts: int = 0
    unwitnessed: int = 0
    failed_at: float | None = None
    #: None: its group is free; else from when it may be claimed
    not_before: float | None = None
    held: bool = False
    #: Its worker died: claimed by `claim_suspect` only
    suspect: bool = False
    #: Bytes of its body
    length: int = 0


class MemoryQueue:
    """What Outcomes and a loop need of a queue. `before`: called with the name of each call that the database would
    serve; may raise as the database would."""

    def __init__(
        self,
        queue_id: int,
        topic: str,
        clock: Callable[[], float],
        *,
        held: Held | None = None,
        before: Callable[[str], None] = lambda step: None,
    ) -> None:
        self.queue_id, self.name, self.topic, self._clock = queue_id, f"queue of {topic}", topic, clock
        self._held = held
        self._before = before
        self.rows: list[Row] = []
        #: Rows that the last poll has seen
        self._seen = 0
        #: Relation ids whose lease another worker took over
        self.taken_over: set[int] = set()
        #: What `settle` was told, with its `in_doubt`
        self.settled: list[tuple[Settlement, bool]] = []
        #: Limit, bytes and whether a large body may come, of each claim
        self.asked: list[tuple[int, int, bool]] = []
        self.made_progress = False
        self.short_of_room = False

    # ---------------------------------------------------------------- what a poll sees

    @property
    def newest(self) -> int:
        return len(self.rows)

    @property
    def due(self) -> bool:
        return any(row.not_before is not None for row in self._free() if not row.suspect)

    def update_from_poll(self, *, newest: int, due: bool, expired: bool) -> None:
        self._seen = newest

    @property
    def may_have_work(self) -> bool:
        return any(row.number < self._seen and not row.suspect for row in self._free())

    @property
    def may_have_suspects(self) -> bool:
        return any(row.suspect for row in self._free())

    def sweep(self) -> bool:
        self._before("sweep")
        return False

    def sweep_all(self) -> None:
        self._before("sweep_all")
        self._seen = len(self.rows)

    def recheck(self) -> None:
        self._before("recheck")

    # ---------------------------------------------------------------- claim

    def claim(self, limit: int, *, fresh_first: bool = False, room: int = 0, large: bool = True) -> list[Claimed]:
        self._before("claim")
        self.asked.append((limit, room, large))
        free = [row for row in self._free() if not row.suspect]
        fresh = [row for row in free if row.not_before is None]
        due = sorted(
            (row for row in free if row.not_before is not None), key=lambda row: (row.not_before or 0.0, row.group)
        )
        return self._take((fresh if fresh_first and fresh else due + fresh)[:limit])

    def claim_suspect(self) -> list[Claimed]:
        self._before("claim_suspect")
        return self._take([row for row in self._free() if row.suspect][:1])

    def _free(self) -> list[Row]:
        """The first pending row of each group, where it may be claimed now."""
        heads: dict[str, Row] = {}
        for row in self.rows:
            if row.status == "pending":
                heads.setdefault(row.group, row)
        return [
            row
            for row in heads.values()
            if not row.held and (row.not_before is None or row.not_before <= self._clock())
        ]

    def _take(self, rows: Sequence[Row]) -> list[Claimed]:
        self.made_progress = bool(rows)
        claimed = []
        for row in rows:
            row.held = True
            claimed.append(Claimed(self._message(row), Event(topic=self.topic, payload={"number": row.number})))
        if self._held is not None:
            self._held.take(message for message, _ in claimed)
        return claimed

    def _message(self, row: Row) -> Message:
        return message_of(
            self.queue_id * 1_000_000 + row.number,
            message_id=row.number,
            queue_id=self.queue_id,
            queue_name=self.name,
            topic=self.topic,
            group_key=row.group,
            number_of_trials=row.trials,
            attempts=row.attempts,
            unwitnessed=row.unwitnessed,
            suspect=row.suspect,
            length=row.length,
            failed_at=row.failed_at,
            lease=Lease(float("inf")),
        )

    def has_older_pending(self, message: Message) -> bool:
        self._before("has_older_pending")
        return False

    def read_again(self, message: Message) -> Event:
        self._before("read_again")
        return Event(topic=self.topic, payload={"number": message.message_id})

    # ---------------------------------------------------------------- settle

    def settle(self, settlements: Sequence[Settlement], *, in_doubt: bool = False) -> Settled:
        self._before("settle")
        done = [each for each in settlements if each.message.id not in self.taken_over]
        for each in done:
            row, kind = self._row(each.message), each.outcome.kind
            row.held = row.suspect = False
            if kind is OutcomeKind.RETRY:
                row.trials += 1
                row.attempts += 1
                row.unwitnessed += each.unwitnessed
                row.failed_at = self._clock()
            if kind in (OutcomeKind.RETRY, OutcomeKind.RELEASED):
                row.not_before = self._clock() + each.delay_seconds
            else:
                row.status = "delivered" if kind is OutcomeKind.DELIVERED else "error"
        self.settled += [(each, in_doubt) for each in settlements]
        if self._held is not None:
            self._held.forget(each.message for each in settlements)
        return Settled(done=done, lost=[each.message for each in settlements if each not in done])

    def refund(self, settlements: Iterable[Settlement]) -> int:
        self._before("refund")
        count = 0
        for each in settlements:
            row = self._row(each.message)
            if row.trials == each.message.number_of_trials + 1 and not row.held and row.status == "pending":
                row.trials -= 1
                row.attempts -= 1
                row.unwitnessed -= each.unwitnessed
                row.not_before = self._clock()
                count += 1
        return count

    def wake(self, messages: Iterable[Message]) -> None:
        self._before("wake")
        for message in messages:
            row = self._row(message)
            if not row.held and row.not_before is not None:
                row.not_before = min(row.not_before, self._clock())

    def _row(self, message: Message) -> Row:
        return self.rows[message.message_id]
