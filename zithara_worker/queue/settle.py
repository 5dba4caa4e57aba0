"""The transaction of a settle: the outcomes of many messages. It also gives attempts back and wakes waiting groups.

A worker that lost its lease changes nothing. Each statement is fenced by (id, number_of_trials), since every
taking-over adds a trial, and by the worker and the claim in the group's row. If fewer rows change than were asked for,
a lease was lost: the transaction is rolled back, and done again after each message has been looked up. Nothing is ever
forced.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from zithara_worker import reasons
from zithara_worker.database.session import Database
from zithara_worker.messages import Message, Outcome, OutcomeKind
from zithara_worker.queue import failures
from zithara_worker.queue.backlog import as_text
from zithara_worker.queue.held import Held
from zithara_worker.queue.ledger import Ledger
from zithara_worker.queue.ledger_rules import arrived
from zithara_worker.queue.statuses import EDGES, PENDING, Status
from zithara_worker.topics import TOPIC_TABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What to write about one claimed message.

    `delay_seconds`: until its group may be claimed again. `unwitnessed`: a failed attempt, and nothing shows that the
    path served others meanwhile.
    """

    message: Message
    outcome: Outcome
    delay_seconds: float = 0.0
    unwitnessed: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """What a settle wrote, and the messages whose lease was lost: about those it wrote nothing."""

    done: list[Settlement] = field(default_factory=list)
    lost: list[Message] = field(default_factory=list)


class _FenceBrokenError(Exception):
    """Fewer rows changed than were asked for: a lease was lost."""


class _AskedForError(Exception):
    """An operator wants these entities to be sent, which were about to complete as unchanged; nothing was written."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.ids = {message.id for message in messages}


class Settle:
    """Settles for one queue and one worker."""

    def __init__(
        self,
        database: Database,
        *,
        queue_id: int,
        topic: str,
        held: Held,
        write_php_locks: bool = True,
        ledger: Ledger | None = None,
    ) -> None:
        self._database = database
        self._queue_id = queue_id
        self._topic = topic
        self._worker_id = held.worker_id
        self._write_php_locks = write_php_locks
        self._ledger = ledger

    def settle(self, settlements: Sequence[Settlement], *, in_doubt: bool = False) -> Settled:
        """Writes the outcomes of claimed messages in one transaction, and lets their groups go on or wait.

        `in_doubt`: an earlier try may have been committed (its answer never came), or leases may have been lost.
        Raises DatabaseUnavailable; then call it again with `in_doubt`.
        """
        try:
            return self._settle_all(settlements, in_doubt=in_doubt)
        except _AskedForError as error:
            asked_for = error.ids
        released = [
            replace(each, outcome=replace(each.outcome, kind=OutcomeKind.RELEASED, reason=""))
            if each.message.id in asked_for
            else each
            for each in settlements
        ]
        return self._settle_all(released, in_doubt=in_doubt)

    def _settle_all(self, settlements: Sequence[Settlement], *, in_doubt: bool) -> Settled:
        sure = [each for each in settlements if not in_doubt and each.outcome.kind in EDGES]
        doubtful = [each for each in settlements if in_doubt or each.outcome.kind not in EDGES]
        if sure:
            try:
                self._database.again_on_contention(partial(self._write, sure))
            except _FenceBrokenError:
                sure, doubtful = [], list(settlements)
        if not doubtful:
            return Settled(sure)
        # A message whose lease seems lost goes back untouched if it is ours after all.
        released = [
            each
            if each.outcome.kind in EDGES
            else replace(each, outcome=replace(each.outcome, kind=OutcomeKind.RELEASED))
            for each in doubtful
        ]
        with self._database.in_step():
            done, lost = self._database.again_on_contention(partial(self._write_what_is_ours, released))
        return Settled(sure + done, lost)

    def _write(self, settlements: Sequence[Settlement]) -> None:
        with self._database.transaction():
            self._write_in_transaction(settlements)

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
                else:  # the group is ours, but the row was changed by hand or by Magento's cron: the group is given up
                    self._group_statement("group_wait", [each], delay_us=0)
                    lost.append(message)
                    if self._ledger:  # It may have been sent, and its outcome is recorded nowhere.
                        self._ledger.doubt([message.group_key])
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

        The status proves nothing: a message that another worker took over and released looks like our own RETRY. The
        claim does prove it: it stays in the row of a group that waits, and in the history of a failure. COMPLETE with
        our number of trials is our own doing, since a taking-over would have raised the number. What cannot be proved
        counts as lost, which costs a line in the log, and neither a message nor an attempt.
        """
        failed = [each.message for each in settlements if each.outcome.kind in (OutcomeKind.RETRY, OutcomeKind.FAILED)]
        recorded = failures.recorded(self._database, {message.id: message.claim for message in failed})
        done = []
        for each in settlements:
            message, kind = each.message, each.outcome.kind
            if kind in (OutcomeKind.RETRY, OutcomeKind.FAILED):
                proved = message.id in recorded
            elif kind is OutcomeKind.RELEASED:
                _, _, claim = groups.get(message.group_key, (0, None, 0))
                proved = claim == message.claim
            else:
                proved = now.get(message.id) == (Status.COMPLETE, message.number_of_trials)
            if proved:
                done.append(each)
        return done

    def _write_in_transaction(self, settlements: Sequence[Settlement]) -> None:
        by_kind: dict[OutcomeKind, list[Settlement]] = defaultdict(list)
        for each in settlements:
            by_kind[each.outcome.kind].append(each)
        complete = by_kind[OutcomeKind.DELIVERED] + by_kind[OutcomeKind.SKIPPED]
        failed = by_kind[OutcomeKind.FAILED]
        superseded = self._write_complete(complete) if complete else {}
        for kind in (OutcomeKind.RETRY, OutcomeKind.FAILED):
            self._write_status(EDGES[kind].statement, by_kind[kind])
        self._write_released(by_kind[OutcomeKind.RELEASED])
        # Groups after rows of Magento: the order in which a claim locks them too.
        self._write_ended_groups(complete + failed)
        by_delay: dict[float, list[Settlement]] = defaultdict(list)
        for each in by_kind[OutcomeKind.RETRY] + by_kind[OutcomeKind.RELEASED]:
            by_delay[each.delay_seconds].append(each)
        for delay, waiting in by_delay.items():
            self._group_statement("group_wait", waiting, delay_us=int(delay * 1e6))
        self._record_failures(by_kind[OutcomeKind.RETRY] + failed)
        again = [each.message.id for each in complete if _has_history(each.message)]
        if again or superseded:
            self._database.execute("failures_gone", ids=sorted({*again, *superseded}))
        if complete or failed:
            self._update_failures_of_groups(complete, failed)
        if self._ledger:
            asked_for = self._ledger.write([(each.message, each.outcome) for each in settlements])
            if asked_for:
                raise _AskedForError(asked_for)

    # ---------------------------------------------------------------- rows of Magento

    def _write_complete(self, complete: Sequence[Settlement]) -> dict[int, int]:
        """Completes these, and the older snapshots that they replace: those, relation id -> message id."""
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
        """The older snapshots that the delivered ones replace, relation id -> message id; their rows are locked.

        Only those still pending: one that has ended otherwise keeps its end.
        """
        delivered = [each.message for each in complete if arrived(each.outcome)]
        older = {one.id: one.message_id for message in delivered for one in message.supersedes}
        rows = self._database.rows("settle_lock", ids=sorted(older)) if older else []
        return {int(row["id"]): older[int(row["id"])] for row in rows if row["status"] in PENDING}

    def _write_status(self, statement: str, settlements: Sequence[Settlement], **values: object) -> None:
        by_trials: dict[int, list[int]] = defaultdict(list)
        for each in settlements:
            by_trials[each.message.number_of_trials].append(each.message.id)
        for trials, ids in by_trials.items():
            if self._database.execute(statement, ids=sorted(ids), number_of_trials=trials, **values) != len(ids):
                raise _FenceBrokenError

    def _write_released(self, released: Sequence[Settlement]) -> None:
        by_row: dict[tuple[int, str], list[Settlement]] = defaultdict(list)
        for each in released:
            by_row[each.message.status_before, each.message.updated_at_before].append(each)
        for (status, updated_at), group in by_row.items():
            self._write_status("settle_release", group, status=status, updated_at=updated_at)

    # ---------------------------------------------------------------- groups

    def _write_ended_groups(self, ended: Sequence[Settlement]) -> None:
        """Removes the rows of groups whose message has ended, or gives them their next head."""
        finished = [each for each in ended if not hands_over(each)]
        if finished:
            self._group_statement("group_done", finished)
        for each in ended:
            if hands_over(each):
                message, behind = each.message, list(each.message.behind)
                not_arrived = message.supersedes and not arrived(each.outcome)
                head = message.supersedes[0] if not_arrived else behind.pop(0)
                self._group_statement(
                    "group_hand_over", [each], id=head.id, message_id=head.message_id, behind=as_text(behind)
                )

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

    # ---------------------------------------------------------------- failures

    def _record_failures(self, failed: Sequence[Settlement]) -> None:
        for each in failed:
            message = each.message
            failures.record(
                self._database,
                queue_id=self._queue_id,
                worker_id=self._worker_id,
                claim=message.claim,
                id=message.id,
                message_id=message.message_id,
                group_key=message.group_key,
                topic=message.topic,
                outcome=each.outcome,
                unwitnessed=each.unwitnessed,
                # A message that was refused because newer data had passed it was not sent.
                paid=each.outcome.reason != reasons.NEWER_DELIVERED,
            )

    def _update_failures_of_groups(self, complete: Sequence[Settlement], failed: Sequence[Settlement]) -> None:
        """Marks the failed messages that newer data has overtaken, and makes those that are pending the next heads.

        Pending are messages that an operator retried, and a head that let an older message go first: nothing newer of
        the group may pass them.
        """
        rows = self._database.rows(
            "failures_of_groups",
            queue_id=self._queue_id,
            group_keys=sorted({each.message.group_key for each in (*complete, *failed)}),
        )
        newest = {each.message.group_key: each.message.message_id for each in complete if arrived(each.outcome)}
        overtaken = [int(row["id"]) for row in rows if int(row["message_id"]) < newest.get(row["group_key"], 0)]
        if overtaken:
            self._database.execute("failures_overtaken", ids=overtaken)
        waiting = [
            (self._queue_id, row["group_key"], int(row["id"]), int(row["message_id"]))
            for row in rows
            if int(row["status"]) == Status.RETRY_REQUIRED
        ]
        if waiting:
            self._database.insert_rows("failed_wake", waiting)

    # ---------------------------------------------------------------- after the settle

    def refund(self, settlements: Iterable[Settlement]) -> int:
        """Gives back attempts of messages that were settled RETRY just before an outage of their path was recognised.

        Each row must be as it was settled: still RETRY_REQUIRED, one trial above its claim. Returns how many were. What
        was recorded of the failure stays, because it shows that the message has failed before.
        """
        return self._database.again_on_contention(partial(self._refund, list(settlements)))

    def _refund(self, settlements: Sequence[Settlement]) -> int:
        refunded = []
        with self._database.transaction():
            for each in settlements:
                message = each.message
                if self._database.execute("refund", id=message.id, number_of_trials=message.number_of_trials + 1):
                    refunded.append(message)
                    self._database.execute("refund_failure", id=message.id, unwitnessed=int(each.unwitnessed))
            self.wake(refunded)
        return len(refunded)

    def wake(self, messages: Sequence[Message]) -> None:
        """Makes groups due that wait for the retry of these messages."""
        if messages:
            self._database.execute(
                "group_wake",
                queue_id=self._queue_id,
                group_keys=sorted(message.group_key for message in messages),
                ids=[message.id for message in messages],
            )


def hands_over(settlement: Settlement) -> bool:
    """Whether the group goes on to a head that is known.

    That is the oldest of the snapshots that this one was to replace, because it did not arrive; or else the oldest of
    the messages that were tried before and let this one go first.
    """
    outcome, message = settlement.outcome, settlement.message
    if arrived(outcome):
        return bool(message.behind)
    return outcome.kind in (OutcomeKind.SKIPPED, OutcomeKind.FAILED) and bool(message.supersedes or message.behind)


def message_code(php_consumer: str, message_id: int) -> str:
    """The code that a PHP consumer looks up in queue_lock (Magento\\Framework\\MessageQueue\\MessageController)."""
    return hashlib.md5(f"{php_consumer}-{message_id}".encode(), usedforsecurity=False).hexdigest()


def _has_history(message: Message) -> bool:
    return message.number_of_trials > 0 or message.status_before == Status.RETRY_REQUIRED
