"""Rows of zithara_delivery_failure: one for each message that has failed and is not complete."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

from zithara_worker.magento.database import Database
from zithara_worker.magento.statuses import Status
from zithara_worker.messages import Outcome

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
    history: tuple[dict[str, Any], ...] = field(default=())


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
) -> None:
    """Counts one failed attempt of a message, with its reason, in the caller's transaction."""
    attempt = {
        "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "reason": outcome.reason,
        "http_status": outcome.http_status,
        "worker": worker_id,
    }
    database.execute(
        "failure_record",
        id=id,
        queue_id=queue_id,
        message_id=message_id,
        topic=topic,
        group_key=group_key,
        reason=outcome.reason[:64],
        http_status=outcome.http_status,
        detail=outcome.detail[:1000],
        history=json.dumps(attempt),
    )


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


def retry(database: Database, failed: Sequence[Failure], *, by: str, force: bool) -> tuple[set[int], set[int]]:
    """ERROR -> RETRY_REQUIRED, with all attempts before it; (relation ids that were, relation ids left out because
    newer data of their group has been delivered). What is no longer in ERROR is in neither.

    A due row for its group wakes the workers with their next poll; where the group is busy, a sweep finds the message.
    """
    return database.again_on_contention(lambda: _retry(database, failed, by=by, force=force))


def _retry(database: Database, failed: Sequence[Failure], *, by: str, force: bool) -> tuple[set[int], set[int]]:
    with database.transaction():
        found = _still_failed(database, failed)
        overtaken = set() if force else {id for id, newer in found.items() if newer}
        wanted = sorted(found.keys() - overtaken)
        if wanted:
            database.execute("failed_retry", ids=wanted)
            # The oldest of a group becomes its head: INSERT IGNORE keeps the first.
            heads = [
                (each.queue_id, each.group_key, each.id, each.message_id)
                for each in sorted(failed, key=lambda each: each.message_id)
                if each.id in found and each.id not in overtaken and each.group_key
            ]
            if heads:
                database.insert_rows("failed_wake", heads)
            database.execute("failures_noted", ids=wanted, line=_act("retry", by))
    return set(wanted), overtaken


def discard(database: Database, failed: Sequence[Failure]) -> set[int]:
    """ERROR -> COMPLETE, and what was recorded of it goes; the relation ids that were still in ERROR.

    The caller keeps a record: nothing in the database tells afterwards that the message was not delivered.
    """
    return database.again_on_contention(lambda: _discard(database, failed))


def _discard(database: Database, failed: Sequence[Failure]) -> set[int]:
    with database.transaction():
        wanted = sorted(_still_failed(database, failed))
        if wanted:
            database.execute("failed_discard", ids=wanted)
            database.execute("failures_gone", ids=wanted)
    return set(wanted)


def forget_deleted(database: Database) -> int:
    """Removes what was recorded of messages that Magento's cleanup has deleted since; how many."""
    forgotten = 0
    while True:
        gone = [int(row["id"]) for row in database.rows("failures_without_message", limit=PAGE)]
        if gone:
            forgotten += database.execute("failures_gone", ids=gone)
        if len(gone) < PAGE:
            return forgotten


def _still_failed(database: Database, failed: Sequence[Failure]) -> dict[int, bool]:
    """Locks the rows; relation id -> whether newer data was delivered, of those that are still in ERROR."""
    rows = database.rows("failures_lock", ids=sorted(each.id for each in failed))
    return {int(row["id"]): bool(row["newer_delivered"]) for row in rows if int(row["status"]) == Status.ERROR}


def _act(act: str, by: str) -> str:
    at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    return json.dumps({"at": at, "operator": by, "act": act})


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
        attempts=int(row["attempts"] or row["number_of_trials"]),
        reason=str(row["reason_code"] or UNRECORDED),
        http_status=None if row["http_status"] is None else int(row["http_status"]),
        detail=str(row["detail"] or ""),
        first_failed_utc=None if row["first_failed_at"] is None else float(row["first_failed_at"]),
        last_failed_utc=None if row["last_failed_at"] is None else float(row["last_failed_at"]),
        newer_delivered=bool(row["newer_delivered"]),
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
