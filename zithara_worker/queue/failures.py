"""Failed messages: zithara_delivery_failure has one row for each message that has failed and is not complete.

Workers record attempts here; operators select and read failed messages, by queue_message.id as the log and the
Idempotency-Key name them. What an operator changes: `operator.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

from zithara_worker.database.session import Database
from zithara_worker.logs.masking import masked
from zithara_worker.messages import Outcome
from zithara_worker.queue.queues import QueueRow, body_text
from zithara_worker.queue.statuses import Status
from zithara_worker.reasons import UNRECORDED

#: Ids that one statement reads.
PAGE = 5000
#: Failed messages that the page's summary counts, at most.
SUMMARISED = 10_000
#: Bodies of one statement: how many, and how many bytes together. A larger body is read by itself, in pieces of so many
#: characters, so that no answer exceeds max_allowed_packet.
BODIES = 50
READ_BYTES = 2_000_000
_PIECE = 500_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Messages that an operator selects. Empty `reasons`: any. Ages: seconds since the last failure."""

    queue_ids: Sequence[int]
    statuses: Sequence[Status] = (Status.ERROR,)
    reasons: Sequence[str] = ()
    group_key: str | None = None
    older_than_seconds: float | None = None
    newer_than_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failed message: its row in the queue and, if there is one, its failure row.

    Times are seconds since the epoch. `history`: the last attempts and the operators' actions, oldest first.
    """

    id: int
    message_id: int
    queue_id: int
    queue: str
    status: Status
    number_of_trials: int
    updated_at_utc: float
    #: None without a failure row
    topic: str | None
    group_key: str | None
    attempts: int
    reason: str
    http_status: int | None
    detail: str
    first_failed_utc: float | None
    last_failed_utc: float | None
    newer_delivered: bool
    #: Attempts during which no other message succeeded on the path, so that they may be an outage's
    unwitnessed: int
    #: How often an operator asked for a retry
    retries: int
    discarded_utc: float | None
    history: tuple[dict[str, Any], ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureCount:
    """Messages of one topic that failed for one reason. `newest_id`: the newest message among them, as an example.

    `since_utc`: the first failure among them, in seconds since the epoch.
    """

    topic: str
    reason: str
    messages: int
    since_utc: float
    newest_id: int


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
    """Records one failed attempt with its reason, in the caller's transaction.

    `unwitnessed`: no other message succeeded on the path. `paid`: the attempt counts.
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
        # Always masked, whatever [logging] mask says: more people read and copy tables than logs.
        detail=masked(outcome.detail)[:1000],
        unwitnessed=int(unwitnessed),
        history=json.dumps(attempt),
    )


def recorded(database: Database, claims: Mapping[int, int]) -> set[int]:
    """`claims`: relation id -> claim. Returns the ids whose attempt under that claim was recorded."""
    if not claims:
        return set()
    rows = database.rows("settle_evidence", ids=sorted(claims))
    return {
        int(row["id"])
        for row in rows
        if any(attempt.get("claim") == claims[int(row["id"])] for attempt in _attempts(str(row["history"] or "")))
    }


def matching(database: Database, selection: Selection) -> list[int]:
    """The relation ids (queue_message_status.id) of a selection, in order."""
    found: list[int] = []
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
            after=found[-1] if found else 0,
            limit=PAGE,
        )
        found += [int(row["id"]) for row in rows]
        if len(rows) < PAGE:
            return found


def newest(database: Database, selection: Selection, *, limit: int) -> tuple[list[Failure], int]:
    """The last `limit` messages of a selection, newest first, and the number of all."""
    relation_ids = matching(database, selection)
    return _with_topics(database, by_ids(database, relation_ids[-limit:]))[::-1], len(relation_ids)


def find(
    database: Database, queue_ids: Sequence[int], message_ids: Sequence[int]
) -> tuple[list[Failure], tuple[int, ...]]:
    """The messages with these ids, in any status, and the ids that no message of these queues has."""
    found = _with_topics(database, of_messages(database, queue_ids, message_ids))
    there = {each.message_id for each in found}
    return found, tuple(id for id in message_ids if id not in there)


def of_messages(database: Database, queue_ids: Sequence[int], message_ids: Sequence[int]) -> list[Failure]:
    """The messages of these queues with these ids, in any status; without the topic where no failure row has it."""
    found: list[Failure] = []
    for start in range(0, len(message_ids), PAGE):
        page = list(message_ids[start : start + PAGE])
        rows = database.rows("relations_of_messages", queue_ids=list(queue_ids), message_ids=page)
        found += by_ids(database, [int(row["id"]) for row in rows])
    return found


def by_ids(database: Database, relation_ids: Sequence[int]) -> list[Failure]:
    """The messages that still exist, in the order of their relation ids."""
    if not relation_ids:
        return []
    return [_failure(row) for row in database.rows("failed_by_ids", ids=list(relation_ids))]


def bodies(database: Database, message_ids: Sequence[int]) -> Iterator[tuple[int, str, str]]:
    """(message id, topic, body) of each message; a body larger than the server's max_allowed_packet comes whole too."""
    for start in range(0, len(message_ids), BODIES):
        batch = list(message_ids[start : start + BODIES])
        for row in database.rows("bodies", message_ids=batch, large=READ_BYTES // len(batch)):
            body = row["body"]
            if body is None and row["bytes"]:
                body = _in_pieces(database, int(row["id"]))
            yield int(row["id"]), str(row["topic_name"] or ""), body_text(body)


def topics_of(database: Database, message_ids: Sequence[int]) -> dict[int, str]:
    """Message id -> topic, of the messages that still exist."""
    if not message_ids:
        return {}
    rows = database.rows("topics_of_messages", message_ids=list(message_ids))
    return {int(row["id"]): str(row["topic_name"] or "") for row in rows}


def with_bodies(database: Database, relation_ids: Sequence[int]) -> Iterator[tuple[Failure, str, str]]:
    """(failure, topic, body) of each message that still exists. Few bodies are in memory at once."""
    for start in range(0, len(relation_ids), BODIES):
        failed = {each.message_id: each for each in by_ids(database, relation_ids[start : start + BODIES])}
        for message_id, topic, body in bodies(database, list(failed)):
            yield failed[message_id], topic, body


def summary(database: Database, relation_ids: Sequence[int], queues: Sequence[QueueRow]) -> list[FailureCount]:
    """These messages counted by topic and reason, in the order of the queues' ids, most messages first.

    `queues`: at least those that the messages are in. A message that has been deleted since is not counted.
    """
    total: dict[tuple[int, str], tuple[int, float, int]] = {}
    for start in range(0, len(relation_ids), PAGE):
        for row in database.rows("failed_counts", ids=relation_ids[start : start + PAGE]):
            place = (int(row["queue_id"]), str(row["reason"]))
            messages, since, newest = total.get(place, (0, float(row["since"]), 0))
            total[place] = (
                messages + int(row["messages"]),
                min(since, float(row["since"])),
                max(newest, int(row["newest"])),
            )
    topics = {queue.queue_id: queue.topic for queue in queues}
    return [
        FailureCount(topic=topics[queue_id], reason=reason, messages=messages, since_utc=since, newest_id=newest)
        for (queue_id, reason), (messages, since, newest) in sorted(
            total.items(), key=lambda item: (item[0][0], -item[1][0], item[0][1])
        )
    ]


def newest_by_reason(database: Database, queues: Sequence[QueueRow]) -> list[FailureCount]:
    """The newest SUMMARISED messages in ERROR, counted by topic and reason, most first."""
    topics = {queue.queue_id: queue.topic for queue in queues}
    return [
        FailureCount(
            topic=topics[int(row["queue_id"])],
            reason=str(row["reason"]),
            messages=int(row["messages"]),
            since_utc=float(row["since"]),
            newest_id=int(row["newest"]),
        )
        for row in database.rows("failed_summary", queue_ids=sorted(topics), limit=SUMMARISED)
    ]


def forget_deleted(database: Database) -> int:
    """Deletes the failure rows of messages that Magento's cleanup has deleted; returns how many."""
    forgotten = 0
    while True:
        gone = [int(row["id"]) for row in database.rows("failures_without_message", limit=PAGE)]
        if gone:
            forgotten += database.execute("failures_gone", ids=gone)
        if len(gone) < PAGE:
            return forgotten


def _with_topics(database: Database, found: Sequence[Failure]) -> list[Failure]:
    """Reads the topic from the message where no failure row has it."""
    unknown = [each.message_id for each in found if each.topic is None]
    topics = topics_of(database, unknown)
    return [replace(each, topic=topics.get(each.message_id)) if each.topic is None else each for each in found]


def _in_pieces(database: Database, message_id: int) -> Any:
    """A body as text or as bytes, as the driver returns it."""
    parts: list[Any] = []
    while True:
        start = len(parts) * _PIECE + 1
        rows = database.rows("body_part", message_id=message_id, start=start, length=_PIECE)
        part = rows[0]["part"] if rows else None
        if part:
            parts.append(part)
        if len(part or "") < _PIECE:
            # Bytes are joined before they are decoded, because a piece may end within a character.
            empty: Any = b"" if parts and isinstance(parts[0], bytes) else ""
            return empty.join(parts)


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
    """The lines of the column `history`, which keeps the last 8000 characters: a line that is cut is left out."""
    for line in history.splitlines():
        try:
            attempt = json.loads(line)
        except ValueError:
            continue
        if isinstance(attempt, dict):
            yield attempt
