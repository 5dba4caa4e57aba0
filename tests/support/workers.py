"""One worker's side of the queue, a step at a time, on a clock that only the test moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

from support.clock import Clock
from zithara_worker.database.session import Database
from zithara_worker.messages import Event, Message, Outcome, OutcomeKind, Pending, Rejection
from zithara_worker.processors import identify
from zithara_worker.queue import operator
from zithara_worker.queue.bodies import Identify
from zithara_worker.queue.held import Held
from zithara_worker.queue.ledger import Ledger
from zithara_worker.queue.ledger_upkeep import begin
from zithara_worker.queue.message_queue import MessageQueue
from zithara_worker.queue.queues import find_queues
from zithara_worker.queue.renewal import Leases
from zithara_worker.queue.settle import Settled, Settlement
from zithara_worker.sandbox.publisher import Published
from zithara_worker.sandbox.shop import Shop
from zithara_worker.settings.sections import DatabaseSettings
from zithara_worker.topics import TOPIC_ORDER

LEASE_SECONDS = 60.0

#: What the fixtures of these names are.
MakeWorker: TypeAlias = "Callable[..., StepWorker]"
MakeShop: TypeAlias = Callable[..., Shop]


def settings_of(shop: Shop, **changes: Any) -> DatabaseSettings:
    """The least-privilege user's settings for a shop."""
    return replace(shop.database_settings, **changes)


class StepWorker:
    """A worker whose every step the test takes: look, claim, renew, settle. It never delivers anything."""

    def __init__(
        self,
        shop: Shop,
        clock: Clock,
        *,
        worker_id: str = "worker-a",
        topic: str = TOPIC_ORDER,
        identify: Identify = identify,
        lease_seconds: float = LEASE_SECONDS,
        database: Database | None = None,
        held: Held | None = None,
        destination: str = "",
        **options: Any,
    ) -> None:
        self.worker_id = worker_id
        self.clock = clock
        self.database = database or Database(settings_of(shop), clock=clock, sleep=lambda _: None)
        row = find_queues(self.database, [topic], {})[0]
        self.queue_id = row.queue_id
        # An empty one is false.
        self.held = Held(worker_id=worker_id, lease_seconds=lease_seconds, clock=clock) if held is None else held
        if destination:
            begin(self.database)
        ledger = Ledger(self.database, topic=topic, destination=destination) if destination else None
        self.queue = MessageQueue(
            self.database,
            queue_id=row.queue_id,
            name=row.name,
            topic=topic,
            held=self.held,
            identify=identify,
            ledger=ledger,
            **options,
        )
        #: By relation id
        self.contents: dict[int, Event | Rejection] = {}
        self.leases = Leases(self.database, self.held)

    def poll(self) -> None:
        """What the loop does every poll interval, without the sweep."""
        row = self.database.rows("poll", queue_ids=[self.queue_id])[0]
        self.queue.update_from_poll(newest=int(row["newest"] or 0), due=bool(row["due"]), expired=bool(row["expired"]))
        self.queue.recheck()

    def look(self) -> None:
        """A poll with a whole round of the sweep."""
        self.poll()
        self.queue.sweep_all()

    def claim(self, limit: int = 100) -> list[Message]:
        """Looks, then claims."""
        self.look()
        return self.take(limit)

    def take(self, limit: int) -> list[Message]:
        """Claims; what was in the messages is in `contents`."""
        claimed = self.queue.claim_suspect() or self.queue.claim(limit)
        self.contents |= {message.id: content for message, content in claimed}
        return [message for message, _ in claimed]

    def rejects(self, message: Message) -> bool:
        """Whether there is no event in the message."""
        return isinstance(self.contents[message.id], Rejection)

    def settle(self, *outcomes: tuple[Message, OutcomeKind], delay: float = 0.0, in_doubt: bool = False) -> Settled:
        return self.queue.settle(
            [
                Settlement(message=message, outcome=self.outcome(kind), delay_seconds=delay)
                for message, kind in outcomes
            ],
            in_doubt=in_doubt,
        )

    @staticmethod
    def outcome(kind: OutcomeKind, *, reason: str = "test", detail: str = "") -> Outcome:
        return Outcome(kind=kind, reason=reason, detail=detail)

    def finish(self, message: Message, kind: OutcomeKind, *, reason: str, detail: str) -> Settled:
        """Settles one message, with its reason."""
        return self.queue.settle(
            [Settlement(message=message, outcome=self.outcome(kind, reason=reason, detail=detail))]
        )

    def deliver(self, messages: Sequence[Message]) -> Settled:
        """All of them arrived."""
        return self.settle(*((message, OutcomeKind.DELIVERED) for message in messages))

    def drain(self, *, limit: int = 100) -> list[int]:
        """Claims and delivers until nothing is left; the message ids in the order of delivery."""
        delivered: list[int] = []
        while messages := self.claim(limit):
            self.deliver(messages)
            delivered += [message.message_id for message in messages]
        return delivered

    def renew(self) -> list[Message]:
        """Renews what is held; what turned out to be lost."""
        before = {message.id for message in self.held.renewable()}
        self.leases.renew()
        kept = {message.id for message in self.held.renewable()}
        return [message for message in self.held.messages() if message.id in before - kept]

    def close(self) -> None:
        self.database.close()


def group_is_body(topic: str, message_id: int, body: str) -> tuple[str, Event]:
    """Identifies messages whose bodies are the names of their groups, blanks aside."""
    return body.strip(), Event(topic=topic, payload={})


@contextmanager
def locked_by_somebody(shop: Shop, *relation_ids: int) -> Iterator[None]:
    with shop.connect(autocommit=False) as connection, connection.cursor() as cursor:
        for id in relation_ids:
            cursor.execute(f"SELECT id FROM {shop.prefix}queue_message_status WHERE id = %s FOR UPDATE", (id,))
        yield


def pending(*published: Published) -> tuple[Pending, ...]:
    """The ids of published messages, as `Message.supersedes` has them."""
    return tuple(Pending(each.message_id, each.relation_id) for each in published)


def operator_retries(database: Database, *relation_ids: int, force: bool = True) -> operator.Retried:
    """`failed retry` of these messages, on the clock of this session."""
    return operator.retry(database, relation_ids, by="anna", force=force, audit=lambda lines: None)


def groups_of(shop: Shop) -> dict[str, tuple[int, str | None]]:
    """zithara_message_group: group key -> (relation id of the head, worker that holds it)."""
    return {
        row[0]: (row[1], row[2])
        for row in shop.query("SELECT group_key, id, worker_id FROM {prefix}zithara_message_group")
    }


def failures_of(shop: Shop) -> dict[int, tuple[int, str, int]]:
    """zithara_delivery_failure: relation id -> (attempts, reason code, newer_delivered)."""
    return {
        row[0]: (row[1], row[2], row[3])
        for row in shop.query("SELECT id, attempts, reason_code, newer_delivered FROM {prefix}zithara_delivery_failure")
    }
