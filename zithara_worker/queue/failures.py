"""Rows of zithara_delivery_failure: one for each message that has failed and is not complete."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from itertools import islice
from typing import Any

from zithara_worker.database.session import Database
from zithara_worker.logs.masking import masked
from zithara_worker.messages import Outcome
from zithara_worker.queue.statuses import Status

#: The reason of an ERROR that this program has not recorded: a PHP consumer rejected the message.
UNRECORDED = "unrecorded"
#: Ids read at once when a selection is walked.
PAGE = 5000
#: Bytes above which a body is not read together with others, and characters of one piece of such a body.
LARGE_BODY = 1_000_000
_PIECE = 500_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which messages an operator means. Empty `reasons`: any. Ages are of the last failure, in seconds."""

    queue_ids: Sequence[int]
    statuses: Sequence[Status] = (Status.ERROR,)
    reasons: Sequence[str] = ()
    group_key: str | None = None
    older_than_seconds: float | None = None
    newer_than_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failed message: its row in the queue, and what the worker has recorded of it, if it has.

    Times are seconds since the epoch. `history`: the last attempts and what operators did, oldest first.
    """

    id: int
    message_id: int
    queue_id: int
    queue: str
    status: Status
    number_of_trials: int
    updated_at_utc: float
    #: None where nothing was recorded
    topic: str | None
    group_key: str | None
    attempts: int
    reason: str
    http_status: int | None
    detail: str
    first_failed_utc: float | None
    last_failed_utc: float | None
    newer_delivered: bool
    #: Attempts of these after which nothing shows that the path served anybody; how often an operator asked for a retry
    unwitnessed: int
    retries: int
    discarded_utc: float | None
    history: tuple[dict[str, Any], ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Messages of one queue that failed for one reason. `newest_id`: the newest message among them, as an example."""

    queue_id: int
    reason: str
    messages: int
    since_utc: float
    newest_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Later:
    """A message that came to the same queue later. `body`: None when it is large."""

    message_id: int
    status: int
    updated_at_utc: float
    topic: str
    body: str | None


def record(
    database: Database,
    *,
    id: int,
    queue_id: int,
    message_id: int,
    topic: str,
    group_key: str,
    outcome: Outcome,
    worker_id: str,
    claim: int,
    unwitnessed: bool = False,
    paid: bool = True,
) -> None:
    """Counts one failed attempt of a message, with its reason, in the caller's transaction.

    `unwitnessed`: nothing shows that others were served. Not `paid`: it is recorded, and not counted.
    """
    attempt = {
        "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "reason": outcome.reason,
        "http_status": outcome.http_status,
        "worker": worker_id,
        "claim": claim,
    }
    database.execute(
        "failure_record",
        id=id,
        queue_id=queue_id,
        message_id=message_id,
        topic=topic,
        group_key=group_key,
        paid=int(paid),
        reason=outcome.reason[:64],
        http_status=outcome.http_status,
        # Tables are copied and read by more people than the log: masked whatever [logging] mask says
        detail=masked(outcome.detail)[:1000],
        unwitnessed=int(unwitnessed),
        history=json.dumps(attempt),
    )


def recorded(database: Database, claims: Mapping[int, int]) -> set[int]:
    """Of these messages, relation id -> claim, those of which an attempt under that very claim was recorded."""
    if not claims:
        return set()
    rows = database.rows("settle_evidence", ids=sorted(claims))
    return {
        int(row["id"])
        for row in rows
        if any(attempt.get("claim") == claims[int(row["id"])] for attempt in _attempts(str(row["history"] or "")))
    }


def ids(database: Database, selection: Selection) -> Iterator[int]:
    """The relation ids of a selection in their order, each page read when the one before is used up."""
    after = 0
    while True:
        rows = database.rows(
            "failed_ids",
            statuses=[int(status) for status in selection.statuses],
            queue_ids=list(selection.queue_ids),
            any_reason=0 if selection.reasons else 1,
            reasons=list(selection.reasons) or [""],
            group_key=selection.group_key,
            older=selection.older_than_seconds,
            newer=selection.newer_than_seconds,
            after=after,
            limit=PAGE,
        )
        for row in rows:
            after = int(row["id"])
            yield after
        if len(rows) < PAGE:
            return


def by_ids(database: Database, relation_ids: Sequence[int]) -> list[Failure]:
    """Those that are still there, in the order of their relation ids."""
    if not relation_ids:
        return []
    return [_failure(row) for row in database.rows("failed_by_ids", ids=list(relation_ids))]


def relation_ids(database: Database, queue_ids: Sequence[int], message_ids: Sequence[int]) -> dict[int, int]:
    """Message id (queue_message.id) -> relation id (queue_message_status.id), for those that are in these queues."""
    rows = database.rows("relations_of_messages", queue_ids=list(queue_ids), message_ids=list(message_ids))
    return {int(row["message_id"]): int(row["id"]) for row in rows}


def bodies(database: Database, message_ids: Sequence[int]) -> Iterator[tuple[int, str, str]]:
    """(message id, topic, body) of each message, also of bodies that exceed the server's max_allowed_packet."""
    for row in database.rows("bodies", message_ids=list(message_ids), large=LARGE_BODY):
        body = row["body"]
        if body is None and int(row["bytes"] or 0) > LARGE_BODY:
            body = _in_pieces(database, int(row["id"]))
        yield int(row["id"]), str(row["topic_name"] or ""), str(body or "")


def completed(failure: Failure, *, topic: str | None, group_key: str | None = None) -> Failure:
    """With what was not recorded; what was stays."""
    return replace(failure, topic=failure.topic or topic, group_key=failure.group_key or group_key)


def later_messages(database: Database, failure: Failure, *, limit: int) -> list[Later]:
    """The messages of the same queue that came after, in order, at most `limit`."""
    rows = database.rows(
        "messages_after", queue_id=failure.queue_id, after=failure.message_id, large=LARGE_BODY, limit=limit
    )
    return [
        Later(
            message_id=int(row["message_id"]),
            status=int(row["status"]),
            updated_at_utc=float(row["updated_at"]),
            topic=str(row["topic_name"] or ""),
            body=row["body"],
        )
        for row in rows
    ]


def count(database: Database, relation_ids: Iterable[int]) -> list[Counted]:
    """These messages by queue and reason; what is no longer there is not counted."""
    total: dict[tuple[int, str], Counted] = {}
    rest = iter(relation_ids)
    while page := list(islice(rest, PAGE)):
        for row in database.rows("failed_counts", ids=page):
            place = (int(row["queue_id"]), str(row["reason"]))
            before = total.get(place)
            total[place] = Counted(
                queue_id=place[0],
                reason=place[1],
                messages=int(row["messages"]) + (before.messages if before else 0),
                since_utc=min(float(row["since"]), before.since_utc) if before else float(row["since"]),
                newest_id=max(int(row["newest"]), before.newest_id if before else 0),
            )
    return sorted(total.values(), key=lambda each: (each.queue_id, -each.messages, each.reason))


@dataclass(slots=True)
class Retry:
    """What came of a retry, as relation ids. What is neither in ERROR nor discarded any more is in none of them."""

    retried: set[int] = field(default_factory=set)
    #: Newer data of their group has been delivered since they failed
    overtaken: set[int] = field(default_factory=set)
    #: A newer message of their group is on its way: relation id -> message id of that one
    passed: dict[int, int] = field(default_factory=dict)


def retry(database: Database, failed: Sequence[Failure], *, by: str, note: str, force: bool) -> Retry:
    """ERROR, or COMPLETE where an operator discarded it, -> RETRY_REQUIRED, with all attempts before it.

    Unless `force`, only what surely goes before everything newer of its group. The oldest becomes the head of a group
    that has none in the same transaction, and takes the place of a newer head that only waits for its next attempt; the
    others follow, since whoever settles a head makes the oldest pending failed message of its group the next one. A
    newer message on its way may arrive before it or after it: then it is left alone.
    `failed` has topic and group of each (`completed`).
    """
    return database.again_on_contention(lambda: _retry(database, failed, by=by, note=note, force=force))


def _retry(database: Database, failed: Sequence[Failure], *, by: str, note: str, force: bool) -> Retry:
    done = Retry()
    with database.transaction():
        found = _undelivered(database, failed)
        if not force:
            done.overtaken = {id for id, (_, newer) in found.items() if newer}
        wanted = sorted(
            (each for each in failed if each.id in found and each.id not in done.overtaken),
            key=lambda each: each.message_id,
        )
        if not wanted:
            return done
        # The oldest of a group comes first, and INSERT IGNORE keeps the first.
        database.insert_rows(
            "failed_wake", [(each.queue_id, each.group_key, each.id, each.message_id) for each in wanted]
        )
        if not force:
            done.passed = _go_first(database, wanted)
            wanted = [each for each in wanted if each.id not in done.passed]
        done.retried = {each.id for each in wanted}
        if wanted:
            _recorded(database, wanted)
            database.execute("failed_retry", ids=sorted(done.retried))
            database.execute("failures_retried", ids=sorted(done.retried), line=_act("retry", by, note))
    return done


def _go_first(database: Database, wanted: Sequence[Failure]) -> dict[int, int]:
    """Puts each before the newer messages of its group; relation id -> the newer message, where that cannot be done."""
    passed: dict[int, int] = {}
    for queue_id in sorted({each.queue_id for each in wanted}):
        here = [each for each in wanted if each.queue_id == queue_id]
        keys = sorted({str(each.group_key) for each in here})
        heads = {row["group_key"]: row for row in database.rows("failed_heads", queue_id=queue_id, group_keys=keys)}
        for each in here:
            head = heads[each.group_key]
            if int(head["message_id"]) <= each.message_id:
                continue
            if head["worker_id"] is None and head["supersedes"] is None and head["recorded"]:
                head.update(id=each.id, message_id=each.message_id)
                database.execute(
                    "failed_first",
                    queue_id=queue_id,
                    group_key=each.group_key,
                    id=each.id,
                    message_id=each.message_id,
                )
            else:
                passed[each.id] = int(head["message_id"])
    return passed


def discard(database: Database, failed: Sequence[Failure], *, by: str, note: str) -> set[int]:
    """ERROR -> COMPLETE; the relation ids that were still in ERROR. What was recorded of them stays, with who and why,
    until Magento's cleanup deletes the message: so long `retry` can take it back. `failed` has topic and group of each.
    """
    return database.again_on_contention(lambda: _discard(database, failed, by=by, note=note))


def _discard(database: Database, failed: Sequence[Failure], *, by: str, note: str) -> set[int]:
    with database.transaction():
        found = _undelivered(database, failed)
        wanted = sorted(id for id, (status, _) in found.items() if status is Status.ERROR)
        if wanted:
            _recorded(database, [each for each in failed if each.id in wanted])
            database.execute("failed_discard", ids=wanted)
            database.execute("failures_discarded", ids=wanted, line=_act("discard", by, note))
    return set(wanted)


def _recorded(database: Database, failed: Iterable[Failure]) -> None:
    """Sees to it that each has a row of zithara_delivery_failure."""
    rows = [
        (each.id, each.queue_id, each.message_id, each.topic, each.group_key)
        for each in failed
        if each.reason == UNRECORDED
    ]
    if rows:
        database.insert_rows("failures_unrecorded", rows)


def forget_deleted(database: Database) -> int:
    """Removes what was recorded of messages that Magento's cleanup has deleted since; how many."""
    forgotten = 0
    while True:
        gone = [int(row["id"]) for row in database.rows("failures_without_message", limit=PAGE)]
        if gone:
            forgotten += database.execute("failures_gone", ids=gone)
        if len(gone) < PAGE:
            return forgotten


def _undelivered(database: Database, failed: Sequence[Failure]) -> dict[int, tuple[Status, bool]]:
    """Locks what is in ERROR or discarded; relation id -> its status, and whether newer data was delivered since."""
    rows = database.rows("failures_lock", ids=sorted(each.id for each in failed))
    return {int(row["id"]): (Status(int(row["status"])), bool(row["newer_delivered"])) for row in rows}


def _act(act: str, by: str, note: str) -> str:
    at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    return json.dumps({"at": at, "operator": by, "act": act, **({"note": note[:1000]} if note else {})})


def _in_pieces(database: Database, message_id: int) -> str:
    parts: list[str] = []
    start = 1
    while True:
        rows = database.rows("body_part", message_id=message_id, start=start, length=_PIECE)
        part = str(rows[0]["part"] or "") if rows else ""
        parts.append(part)
        if len(part) < _PIECE:
            return "".join(parts)
        start += _PIECE


def _failure(row: dict[str, Any]) -> Failure:
    return Failure(
        id=int(row["id"]),
        message_id=int(row["message_id"]),
        queue_id=int(row["queue_id"]),
        queue=str(row["queue_name"]),
        status=Status(int(row["status"])),
        number_of_trials=int(row["number_of_trials"]),
        updated_at_utc=float(row["updated_at"]),
        topic=row["topic_name"],
        group_key=row["group_key"],
        attempts=int(row["number_of_trials"] if row["attempts"] is None else row["attempts"]),
        reason=str(row["reason_code"] or UNRECORDED),
        http_status=None if row["http_status"] is None else int(row["http_status"]),
        detail=str(row["detail"] or ""),
        first_failed_utc=None if row["first_failed_at"] is None else float(row["first_failed_at"]),
        last_failed_utc=None if row["last_failed_at"] is None else float(row["last_failed_at"]),
        newer_delivered=bool(row["newer_delivered"]),
        unwitnessed=int(row["unwitnessed"] or 0),
        retries=int(row["retries"] or 0),
        discarded_utc=None if row["discarded_at"] is None else float(row["discarded_at"]),
        history=tuple(_attempts(str(row["history"] or ""))),
    )


def _attempts(history: str) -> Iterator[dict[str, Any]]:
    """The lines of the column; the oldest may be cut, because it keeps the last 8000 characters."""
    for line in history.splitlines():
        try:
            attempt = json.loads(line)
        except ValueError:
            continue
        if isinstance(attempt, dict):
            yield attempt
