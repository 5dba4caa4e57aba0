"""The transaction of a settle: the outcomes of many messages, fenced by (id, number_of_trials) and the group's row.

A worker that lost its lease changes nothing: each statement names the trials it claimed with, every taking-over adds
one, and the group row must still be its own. Fewer rows than asked means a lost lease: the transaction is rolled back
and done again with a closer look, never forced.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from zithara_worker import reasons
from zithara_worker.database.session import Database
from zithara_worker.messages import Message, Outcome, OutcomeKind
from zithara_worker.queue import failures
from zithara_worker.queue.backlog import as_text
from zithara_worker.queue.held import Held
from zithara_worker.queue.statuses import EDGES, Status
from zithara_worker.topics import TOPIC_TABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What shall be written of one claimed message. `delay_seconds`: until its group may be claimed again.

    `unwitnessed`: a failed attempt that does not count, since nothing shows that others were served.
    """

    message: Message
    outcome: Outcome
    delay_seconds: float = 0.0
    unwitnessed: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """What a settle wrote, and the messages whose lease was lost: of those nothing was written."""

    done: list[Settlement] = field(default_factory=list)
    lost: list[Message] = field(default_factory=list)


class _FenceBrokenError(Exception):
    """Fewer rows were ours than we thought; the transaction is rolled back and done again with a closer look."""


class Settle:
    """Settles for one queue and one worker."""

    def __init__(
        self, database: Database, *, queue_id: int, topic: str, held: Held, write_php_locks: bool = True
    ) -> None:
        self._database = database
        self._queue_id = queue_id
        self._topic = topic
        self._worker_id = held.worker_id
        self._write_php_locks = write_php_locks

    def settle(self, settlements: Sequence[Settlement], *, in_doubt: bool = False) -> Settled:
        """Writes the outcomes of claimed messages in one transaction and frees or parks their groups.

        `in_doubt`: an earlier try may have been committed (its answer never came), or leases may have been lost.
        Raises DatabaseUnavailable; then call it again with `in_doubt`.
        """
        sure = [each for each in settlements if each.outcome.kind in EDGES]
        doubtful = [
            replace(each, outcome=replace(each.outcome, kind=OutcomeKind.RELEASED))
            for each in settlements
            if each.outcome.kind not in EDGES
        ]
        if in_doubt:
            sure, doubtful = [], sure + doubtful
        if sure:
            try:
                self._database.again_on_contention(lambda: self._write(sure))
            except _FenceBrokenError:
                sure, doubtful = [], sure + doubtful
        lost: list[Message] = []
        done = list(sure)
        if doubtful:
            more, lost = self._settle_carefully(doubtful)
            done += more
        return Settled(done, lost)

    def _settle_carefully(self, settlements: Sequence[Settlement]) -> tuple[list[Settlement], list[Message]]:
        return self._database.again_on_contention(lambda: self._write_what_is_ours(settlements))

    def _write_what_is_ours(self, settlements: Sequence[Settlement]) -> tuple[list[Settlement], list[Message]]:
        with self._database.transaction():
            rows = self._database.rows("settle_lock", ids=sorted(each.message.id for each in settlements))
            now = {int(row["id"]): (int(row["status"]), int(row["number_of_trials"])) for row in rows}
            rows = self._database.rows(
                "settle_groups",
                queue_id=self._queue_id,
                group_keys=sorted(each.message.group_key for each in settlements),
            )
            groups = {row["group_key"]: (int(row["id"]), row["worker_id"], int(row["claim"])) for row in rows}
            ours, others, lost = [], [], []
            for each in settlements:
                message = each.message
                if groups.get(message.group_key) != (message.id, self._worker_id, message.claim):
                    others.append(each)
                elif now.get(message.id) == (Status.IN_PROGRESS, message.number_of_trials):
                    ours.append(each)
                else:  # ours by its group, but the row was changed by hand or by Magento's cron: give the group up
                    self._group_statement("group_wait", [each], delay_us=0)
                    lost.append(message)
            if ours:
                self._write_in_transaction(ours)
            done = self._written_before(others, now, groups)
        proved = {each.message.id for each in done}
        lost += [each.message for each in others if each.message.id not in proved]
        return ours + done, lost

    def _written_before(
        self,
        settlements: Sequence[Settlement],
        now: Mapping[int, tuple[int, int]],
        groups: Mapping[str, tuple[int, str | None, int]],
    ) -> list[Settlement]:
        """Those of which an earlier try is known to have been committed, though its answer never came.

        The status does not prove it: what another worker took over and released looks like our own RETRY. The claim
        does: it stays in the row of a group that waits, and in the history of a failure. COMPLETE with our number of
        trials is nobody's but ours: taking over would have raised it. What cannot be proved counts as lost, which costs
        a line in the log, and neither a message nor an attempt.
        """
        failed = [each.message for each in settlements if each.outcome.kind in (OutcomeKind.RETRY, OutcomeKind.FAILED)]
        recorded = failures.recorded(self._database, {message.id: message.claim for message in failed})
        done = []
        for each in settlements:
            message, kind = each.message, each.outcome.kind
            if kind in (OutcomeKind.RETRY, OutcomeKind.FAILED):
                proved = message.id in recorded
            elif kind is OutcomeKind.RELEASED:
                _, worker_id, claim = groups.get(message.group_key, (0, None, 0))
                proved = worker_id is None and claim == message.claim
            else:
                proved = now.get(message.id) == (Status.COMPLETE, message.number_of_trials)
            if proved:
                done.append(each)
        return done

    def _write(self, settlements: Sequence[Settlement]) -> None:
        with self._database.transaction():
            self._write_in_transaction(settlements)

    def _write_in_transaction(self, settlements: Sequence[Settlement]) -> None:
        by_kind: dict[OutcomeKind, list[Settlement]] = defaultdict(list)
        for each in settlements:
            by_kind[each.outcome.kind].append(each)
        complete = by_kind[OutcomeKind.DELIVERED] + by_kind[OutcomeKind.SKIPPED]
        superseded = self._write_complete(complete) if complete else {}
        for kind in (OutcomeKind.RETRY, OutcomeKind.FAILED):
            if by_kind[kind]:
                self._write_status(EDGES[kind].statement, by_kind[kind])
        self._write_released(by_kind[OutcomeKind.RELEASED])
        # Groups after rows: the order that claim keeps as well.
        ended = complete + by_kind[OutcomeKind.FAILED]
        finished = [each for each in ended if not hands_over(each)]
        if finished:
            self._group_statement("group_done", finished)
        for each in ended:
            if hands_over(each):
                message, left = each.message, list(each.message.behind)
                not_arrived = message.supersedes and each.outcome.kind is not OutcomeKind.DELIVERED
                head = message.supersedes[0] if not_arrived else left.pop(0)
                self._group_statement(
                    "group_hand_over", [each], id=head.id, message_id=head.message_id, behind=as_text(left)
                )
        by_delay: dict[float, list[Settlement]] = defaultdict(list)
        for each in by_kind[OutcomeKind.RETRY] + by_kind[OutcomeKind.RELEASED]:
            by_delay[each.delay_seconds].append(each)
        for delay, parked in by_delay.items():
            self._group_statement("group_wait", parked, delay_us=int(delay * 1e6))
        self._write_failures(by_kind, complete, superseded)

    def _write_complete(self, complete: Sequence[Settlement]) -> dict[int, int]:
        """Completes them, with the older snapshots that go with them: those, relation id -> message id."""
        superseded = self._superseded(complete)
        if self._write_php_locks and self._topic in TOPIC_TABLE:
            consumer = TOPIC_TABLE[self._topic].php_consumer
            message_ids = [each.message.message_id for each in complete] + [*superseded.values()]
            codes = sorted(message_code(consumer, message_id) for message_id in message_ids)
            self._database.insert_rows("php_locks", [(code,) for code in codes])
        self._write_status("settle_complete", complete)
        if superseded:
            self._database.execute("settle_superseded", ids=sorted(superseded))
        return superseded

    def _superseded(self, complete: Iterable[Settlement]) -> dict[int, int]:
        """Older snapshots that go with what was delivered, relation id -> message id: those that are pending still,
        now locked. Only a snapshot that arrived replaces them, and one that has ended otherwise keeps its end.
        """
        older = {
            one for each in complete if each.outcome.kind is OutcomeKind.DELIVERED for one in each.message.supersedes
        }
        if not older:
            return {}
        rows = self._database.rows("settle_lock", ids=sorted(one.id for one in older))
        pending = {int(row["id"]) for row in rows if row["status"] in (Status.NEW, Status.RETRY_REQUIRED)}
        return {one.id: one.message_id for one in older if one.id in pending}

    def _write_status(self, statement: str, settlements: Sequence[Settlement], **values: object) -> None:
        by_trials: dict[int, list[int]] = defaultdict(list)
        for each in settlements:
            by_trials[each.message.number_of_trials].append(each.message.id)
        for trials, ids in by_trials.items():
            if self._database.execute(statement, ids=sorted(ids), number_of_trials=trials, **values) != len(ids):
                raise _FenceBrokenError

    def _write_released(self, released: Sequence[Settlement]) -> None:
        before: dict[tuple[int, str], list[Settlement]] = defaultdict(list)
        for each in released:
            before[each.message.status_before, each.message.updated_at_before].append(each)
        for (status, updated_at), group in before.items():
            self._write_status("settle_release", group, status=status, updated_at=updated_at)

    def _group_statement(self, statement: str, settlements: Sequence[Settlement], **values: object) -> None:
        claims = sorted((each.message.group_key, each.message.claim) for each in settlements)
        found = self._database.execute(
            statement,
            queue_id=self._queue_id,
            group_keys=[group_key for group_key, _ in claims],
            worker_id=self._worker_id,
            claims=claims,
            **values,
        )
        if found != len(claims):
            raise _FenceBrokenError

    def _write_failures(
        self,
        by_kind: dict[OutcomeKind, list[Settlement]],
        complete: Sequence[Settlement],
        superseded: Collection[int],
    ) -> None:
        failed = by_kind[OutcomeKind.RETRY] + by_kind[OutcomeKind.FAILED]
        for each in failed:
            failures.record(
                self._database,
                queue_id=self._queue_id,
                worker_id=self._worker_id,
                claim=each.message.claim,
                id=each.message.id,
                message_id=each.message.message_id,
                group_key=each.message.group_key,
                topic=each.message.topic,
                outcome=each.outcome,
                unwitnessed=each.unwitnessed,
                # It was not sent.
                paid=each.outcome.reason != reasons.NEWER_DELIVERED,
            )
        again = [each.message.id for each in complete if _has_history(each.message)]
        if again or superseded:
            self._database.execute("failures_gone", ids=sorted({*again, *superseded}))
        ended = [*complete, *by_kind[OutcomeKind.FAILED]]
        if not ended:
            return
        newest = {
            each.message.group_key: each.message.message_id
            for each in complete
            if each.outcome.kind is OutcomeKind.DELIVERED
        }
        rows = self._database.rows(
            "failures_of_groups",
            queue_id=self._queue_id,
            group_keys=sorted({each.message.group_key for each in ended}),
        )
        overtaken = [int(row["id"]) for row in rows if int(row["message_id"]) < newest.get(row["group_key"], 0)]
        if overtaken:
            self._database.execute("failures_overtaken", ids=overtaken)
        # Several that an operator retried, or a head that made way for an older one: nothing newer may pass them now.
        waiting = [
            (self._queue_id, row["group_key"], int(row["id"]), int(row["message_id"]))
            for row in rows
            if int(row["status"]) == Status.RETRY_REQUIRED
        ]
        if waiting:
            self._database.insert_rows("failed_wake", waiting)

    def refund(self, settlements: Iterable[Settlement]) -> int:
        """Gives back the attempts of messages that were settled RETRY just before their path was known to serve nobody.

        Each must be as it was settled: still RETRY_REQUIRED, one trial above its claim, its group unclaimed.
        How many were. What was recorded of the failure stays: it tells that the message has failed before.
        """
        return self._database.again_on_contention(lambda: self._refund(list(settlements)))

    def _refund(self, settlements: Sequence[Settlement]) -> int:
        refunded = []
        with self._database.transaction():
            for each in settlements:
                message = each.message
                if self._database.execute("refund", id=message.id, number_of_trials=message.number_of_trials + 1):
                    refunded.append(message)
                    self._database.execute("refund_failure", id=message.id, unwitnessed=int(each.unwitnessed))
            self._wake(refunded)
        return len(refunded)

    def wake(self, messages: Iterable[Message]) -> None:
        """Lets groups that wait for the retry of these messages be claimed at once."""
        woken = list(messages)
        self._database.again_on_contention(lambda: self._wake(woken))

    def _wake(self, messages: Sequence[Message]) -> None:
        if messages:
            self._database.execute(
                "group_wake",
                queue_id=self._queue_id,
                group_keys=sorted(message.group_key for message in messages),
                ids=[message.id for message in messages],
            )


def hands_over(settlement: Settlement) -> bool:
    """Whether the group goes on to a head that is known: to the older snapshots, because the one that stood for them
    did not arrive, or to one that was tried before and let this one go first."""
    kind, message = settlement.outcome.kind, settlement.message
    if kind in (OutcomeKind.SKIPPED, OutcomeKind.FAILED):
        return bool(message.supersedes or message.behind)
    return kind is OutcomeKind.DELIVERED and bool(message.behind)


def message_code(php_consumer: str, message_id: int) -> str:
    """The code that a PHP consumer looks up in queue_lock (Magento\\Framework\\MessageQueue\\MessageController)."""
    return hashlib.md5(f"{php_consumer}-{message_id}".encode(), usedforsecurity=False).hexdigest()


def _has_history(message: Message) -> bool:
    return message.number_of_trials > 0 or message.status_before == Status.RETRY_REQUIRED
