"""The transaction of a settle: the outcomes of many messages, fenced by (id, number_of_trials) and the group's row.

A worker that lost its lease changes nothing: each statement names the trials it claimed with, every taking-over adds
one, and the group row must still be its own. Fewer rows than asked means a lost lease: the transaction is rolled back
and done again with a closer look, never forced.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from typing import Any

from zithara_worker.magento import failures
from zithara_worker.magento.database import Database
from zithara_worker.magento.statuses import EDGES, Status
from zithara_worker.magento.topics import PHP_SIDE, message_code
from zithara_worker.messages import Message, Outcome, OutcomeKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What shall be written of one claimed message. `delay_seconds`: until its group may be claimed again."""

    message: Message
    outcome: Outcome
    delay_seconds: float = 0.0


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
        self, database: Database, *, queue_id: int, topic: str, worker_id: str, write_php_locks: bool = True
    ) -> None:
        self._database = database
        self._queue_id = queue_id
        self._topic = topic
        self._worker_id = worker_id
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
                "settle_groups_held",
                queue_id=self._queue_id,
                group_keys=sorted(each.message.group_key for each in settlements),
                worker_id=self._worker_id,
            )
            held = {(row["group_key"], int(row["id"])) for row in rows}
            ours, done, lost = [], [], []
            for each in settlements:
                message, edge = each.message, EDGES[each.outcome.kind]
                after = (
                    message.status_before if edge.to is None else int(edge.to),
                    message.number_of_trials + edge.trials,
                )
                if (message.group_key, message.id) in held:
                    if now.get(message.id) == (Status.IN_PROGRESS, message.number_of_trials):
                        ours.append(each)
                    else:  # ours by its group, but the row was changed by hand or by Magento's cron: give the group up
                        self._group_statement("group_wait", [each], delay_us=0)
                        lost.append(message)
                elif now.get(message.id) == after:
                    done.append(each)  # the earlier try was committed
                else:
                    lost.append(message)
            if ours:
                self._write_in_transaction(ours)
        return ours + done, lost

    def _write(self, settlements: Sequence[Settlement]) -> None:
        with self._database.transaction():
            self._write_in_transaction(settlements)

    def _write_in_transaction(self, settlements: Sequence[Settlement]) -> None:
        by_kind: dict[OutcomeKind, list[Settlement]] = defaultdict(list)
        for each in settlements:
            by_kind[each.outcome.kind].append(each)
        complete = by_kind[OutcomeKind.DELIVERED] + by_kind[OutcomeKind.SKIPPED]
        if complete:
            self._write_complete(complete)
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
                id, message_id = each.message.supersedes[0]
                self._group_statement("group_hand_over", [each], id=id, message_id=message_id)
        by_delay: dict[float, list[Settlement]] = defaultdict(list)
        for each in by_kind[OutcomeKind.RETRY] + by_kind[OutcomeKind.RELEASED]:
            by_delay[each.delay_seconds].append(each)
        for delay, parked in by_delay.items():
            self._group_statement("group_wait", parked, delay_us=int(delay * 1e6))
        self._write_failures(by_kind, complete)

    def _write_complete(self, complete: Sequence[Settlement]) -> None:
        superseded = _superseded(complete)
        if self._write_php_locks and self._topic in PHP_SIDE:
            consumer = PHP_SIDE[self._topic].consumer
            message_ids = [each.message.message_id for each in complete] + [message_id for _, message_id in superseded]
            codes = sorted(message_code(consumer, message_id) for message_id in message_ids)
            self._database.insert_rows("php_locks", [(code,) for code in codes])
        self._write_status("settle_complete", complete)
        if superseded:
            self._database.execute("settle_superseded", ids=sorted(id for id, _ in superseded))

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
        keys = sorted(each.message.group_key for each in settlements)
        found = self._database.execute(
            statement, queue_id=self._queue_id, group_keys=keys, worker_id=self._worker_id, **values
        )
        if found != len(keys):
            raise _FenceBrokenError

    def _write_failures(self, by_kind: dict[OutcomeKind, list[Settlement]], complete: Sequence[Settlement]) -> None:
        failed = by_kind[OutcomeKind.RETRY] + by_kind[OutcomeKind.FAILED]
        for each in failed:
            failures.record(
                self._database,
                queue_id=self._queue_id,
                worker_id=self._worker_id,
                id=each.message.id,
                message_id=each.message.message_id,
                group_key=each.message.group_key,
                topic=each.message.topic,
                outcome=each.outcome,
            )
        again = [each.message.id for each in complete if _has_history(each.message)]
        again += [id for id, _ in _superseded(complete)]
        if again:
            self._database.execute("failures_gone", ids=sorted(again))
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

    def refund(self, messages: Iterable[Message]) -> int:
        """Gives back the attempt of messages that were settled RETRY just before their host was known to be down.

        Each must be as it was settled: still RETRY_REQUIRED, one trial above its claim, its group unclaimed.
        How many were.
        """
        return self._database.again_on_contention(lambda: self._refund(list(messages)))

    def _refund(self, messages: Sequence[Message]) -> int:
        refunded = 0
        with self._database.transaction():
            for message in messages:
                if not self._database.execute("refund", id=message.id, number_of_trials=message.number_of_trials + 1):
                    continue
                refunded += 1
                self._database.execute(
                    "refund_group", queue_id=self._queue_id, group_key=message.group_key, id=message.id
                )
                self._database.execute("refund_failure", id=message.id)
                self._database.execute("refund_failure_gone", id=message.id)
        return refunded

    def reconcile(self, held: Collection[int]) -> list[str]:
        """Puts back what is leased to this worker but not in its hands: claims whose commit was in doubt.

        `held`: the relation ids that the worker does hold. They were never delivered, so they go back as they were,
        as far as that is still known. Their groups.
        """
        rows = [
            row
            for row in self._database.rows("leases_held", worker_id=self._worker_id)
            if int(row["queue_id"]) == self._queue_id and int(row["id"]) not in held
        ]
        for row in rows:
            self._database.again_on_contention(partial(self._put_back, row))
        return [str(row["group_key"]) for row in rows]

    def _put_back(self, row: dict[str, Any]) -> None:
        with self._database.transaction():
            found = self._database.rows("settle_lock", ids=[int(row["id"])])
            if found and int(found[0]["status"]) == Status.IN_PROGRESS:
                trials = int(found[0]["number_of_trials"])
                self._database.execute(
                    "settle_release",
                    ids=[int(row["id"])],
                    number_of_trials=trials,
                    status=int(Status.RETRY_REQUIRED if trials else Status.NEW),
                    updated_at=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S"),
                )
            self._database.execute(
                "group_wait",
                queue_id=self._queue_id,
                group_keys=[row["group_key"]],
                worker_id=self._worker_id,
                delay_us=0,
            )


def hands_over(settlement: Settlement) -> bool:
    """Whether the group goes back to the older snapshots, because the one that stood for them did not arrive."""
    kind, message = settlement.outcome.kind, settlement.message
    return bool(message.supersedes) and kind in (OutcomeKind.SKIPPED, OutcomeKind.FAILED)


def _has_history(message: Message) -> bool:
    return message.number_of_trials > 0 or message.status_before == Status.RETRY_REQUIRED


def _superseded(complete: Iterable[Settlement]) -> set[tuple[int, int]]:
    """Older snapshots that go with what was delivered. Only a snapshot that arrived replaces them."""
    return {old for each in complete if each.outcome.kind is OutcomeKind.DELIVERED for old in each.message.supersedes}
