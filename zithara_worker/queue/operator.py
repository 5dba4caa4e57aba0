"""What an operator does to a queue: retry and discard failed messages, release orphans, pause and resume
topics, publish messages.

Retry and discard change the rows that a worker's settle transaction changes, under the same locks. Every action except
`publish` writes one line to the audit file and one to the log, with the operator's name.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timezone
from functools import partial
from itertools import chain
from typing import Any, TypeVar

from zithara_worker.database.session import Database
from zithara_worker.errors import ShopError
from zithara_worker.logs.audit import Audit, operator_action
from zithara_worker.processors import identify
from zithara_worker.queue import failures, ledger_records
from zithara_worker.queue.failures import Failure
from zithara_worker.queue.ledger_rules import LEDGER_TOPICS
from zithara_worker.queue.queues import find_queues, put_message, stored_body
from zithara_worker.queue.statuses import Status
from zithara_worker.reasons import UNRECORDED

log = logging.getLogger(__name__)
T = TypeVar("T", "Retried", "Discarded", "Released")

#: Messages that one transaction of a retry or discard changes: few, so that no worker waits long for their locks.
BATCH = 200


# ---------------------------------------------------------------- retry


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """The result of a retry, as message ids."""

    retried: tuple[int, ...]
    #: Left alone, because newer data of their group has been delivered since they failed
    overtaken: tuple[int, ...]
    #: Left alone, because a newer message of their group is on its way: (message id, id of the newer message)
    passed: tuple[tuple[int, int], ...]
    #: Neither in ERROR nor discarded any more
    not_failed: tuple[int, ...]


def retry(
    database: Database,
    relation_ids: Sequence[int],
    *,
    by: str,
    force: bool,
    audit: Audit,
    note: str = "",
    on_progress: Callable[[int], object] = int,
) -> Retried:
    """Puts messages back on the queue with all their attempts; workers see them with their next poll.

    Takes messages in ERROR, and those that an operator has discarded. Unless `force`, a message that would overwrite
    newer data of its group is left alone: newer data has been delivered, or a newer message is on its way. A newer
    message that only waits is delivered after the retried one.
    `on_progress` is called with the number of messages of each batch.
    """
    parts: list[Retried] = []
    for failed in _batches(database, relation_ids, on_progress):
        part = database.again_on_contention(partial(_retry, database, failed, by=by, note=note, force=force))
        _tell("retry", part.retried, by=by, note=note, audit=audit, forced=force)
        parts.append(part)
    return _joined(Retried, parts)


def _retry(database: Database, failed: Sequence[Failure], *, by: str, note: str, force: bool) -> Retried:
    """One transaction: ERROR, or COMPLETE where an operator discarded it, -> RETRY_REQUIRED.

    The oldest message becomes the head of a group that has no head. Unless `force`, it also takes the place of a newer
    head that only waits for its next attempt, and messages that cannot be delivered before everything newer of their
    group are left alone. The others need no row of a group: whoever settles a head makes the oldest failed message of
    its group the next head.
    """
    with database.transaction():
        found = _lock(database, failed)
        overtaken = set() if force else {id for id, (_, newer_delivered) in found.items() if newer_delivered}
        wanted = sorted(
            (each for each in failed if each.id in found and each.id not in overtaken),
            key=lambda each: each.message_id,
        )
        passed: dict[int, int] = {}
        if wanted:
            # The oldest of a group comes first, and INSERT IGNORE keeps the first.
            database.insert_rows(
                "failed_wake", [(each.queue_id, each.group_key, each.id, each.message_id) for each in wanted]
            )
            if not force:
                passed = _go_first(database, wanted)
        retried = {each.id for each in wanted if each.id not in passed}
        if retried:
            _record_unrecorded(database, [each for each in wanted if each.id in retried])
            database.execute("failed_retry", ids=sorted(retried))
            line = _history_line("retry", by, note)
            # `force` is recorded: without it the claim does not send a message after newer data of its group.
            database.execute("failures_retried", ids=sorted(retried), force=int(force), line=line)
            for topic in {str(each.topic) for each in wanted}:
                groups = {str(each.group_key) for each in wanted if each.id in retried and each.topic == topic}
                if groups:
                    database.execute("failed_wanted", topic=topic, group_keys=sorted(groups))
                ledger_records.ask_for(database, topic, groups, force=force)
    return Retried(
        retried=tuple(each.message_id for each in failed if each.id in retried),
        overtaken=tuple(each.message_id for each in failed if each.id in overtaken),
        passed=tuple((each.message_id, passed[each.id]) for each in failed if each.id in passed),
        not_failed=tuple(each.message_id for each in failed if each.id not in found),
    )


def _go_first(database: Database, wanted: Sequence[Failure]) -> dict[int, int]:
    """Puts each message before the newer messages of its group.

    Returns, where that is not possible: relation id -> message id of the newer message that may arrive first.
    """
    passed: dict[int, int] = {}
    for queue_id in sorted({each.queue_id for each in wanted}):
        here = [each for each in wanted if each.queue_id == queue_id]
        keys = sorted({str(each.group_key) for each in here})
        heads = {row["group_key"]: row for row in database.rows("failed_heads", queue_id=queue_id, group_keys=keys)}
        for each in here:
            head = heads[each.group_key]
            if int(head["message_id"]) <= each.message_id:
                continue
            # Without a failure row, and with older snapshots that it replaces, the newer head could not be found again
            # when the older message is settled.
            if head["worker_id"] is None and head["supersedes"] is None and head["recorded"]:
                head.update(id=each.id, message_id=each.message_id)
                place = {"queue_id": queue_id, "group_key": each.group_key}
                database.execute("failed_first", **place, id=each.id, message_id=each.message_id)
            else:
                passed[each.id] = int(head["message_id"])
    return passed


# ---------------------------------------------------------------- discard


@dataclass(frozen=True, slots=True, kw_only=True)
class Discarded:
    """The result of a discard, as message ids. `not_failed`: not in ERROR any more."""

    discarded: tuple[int, ...]
    not_failed: tuple[int, ...]


#: Topic and stored body -> the digest of what the message tells, as the delivery ledger has it; "": it tells nothing.
Content = Callable[[str, str], str]


def discard(
    database: Database,
    relation_ids: Sequence[int],
    *,
    by: str,
    note: str,
    audit: Audit,
    content: Content,
    on_progress: Callable[[int], object] = int,
) -> Discarded:
    """Sets messages in ERROR to COMPLETE, although they were not delivered.

    Their failure rows stay, with who discarded them and why, until Magento's cleanup deletes the messages. Until then
    `retry` can take them back. What they told stays in the ledger as refused, so that `reconcile` does not publish it.
    """
    parts: list[Discarded] = []
    for failed in _batches(database, relation_ids, on_progress):
        refused = _contents(database, failed, content)
        part = database.again_on_contention(partial(_discard, database, failed, refused, by=by, note=note))
        _tell("discard", part.discarded, by=by, note=note, audit=audit)
        parts.append(part)
    return _joined(Discarded, parts)


def _contents(database: Database, failed: Sequence[Failure], content: Content) -> dict[int, str]:
    """Relation id -> the digest of what the message tells."""
    found = {}
    by_message = {each.message_id: each for each in failed if each.topic in LEDGER_TOPICS}
    message_ids = sorted(by_message)
    for start in range(0, len(message_ids), failures.BODIES):
        for message_id, topic, body in failures.bodies(database, message_ids[start : start + failures.BODIES]):
            if digest := content(topic, body):
                found[by_message[message_id].id] = digest
    return found


def _discard(
    database: Database, failed: Sequence[Failure], refused: Mapping[int, str], *, by: str, note: str
) -> Discarded:
    """One transaction: ERROR -> COMPLETE."""
    with database.transaction():
        wanted = sorted(id for id, (status, _) in _lock(database, failed).items() if status is Status.ERROR)
        if wanted:
            _record_unrecorded(database, [each for each in failed if each.id in wanted])
            database.execute("failed_discard", ids=wanted)
            database.execute("failures_discarded", ids=wanted, line=_history_line("discard", by, note))
            # The newest of a group comes last and counts.
            newest = {
                (str(each.topic), str(each.group_key)): refused[each.id]
                for each in sorted(failed, key=lambda each: each.message_id)
                if each.id in wanted and each.id in refused
            }
            if newest:
                database.insert_rows("failed_refused", [(*entity, digest) for entity, digest in sorted(newest.items())])
    return Discarded(
        discarded=tuple(each.message_id for each in failed if each.id in wanted),
        not_failed=tuple(each.message_id for each in failed if each.id not in wanted),
    )


# ---------------------------------------------------------------- release


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """The result of a release, as message ids."""

    released: tuple[int, ...]
    #: Left alone, because a worker holds their group
    held: tuple[int, ...]
    #: Left alone, because a PHP consumer has taken a message of their queue within the last ten minutes
    at_work: tuple[int, ...]
    #: Not in progress any more
    not_in_progress: tuple[int, ...]


def release(database: Database, relation_ids: Sequence[int], *, by: str, note: str, audit: Audit) -> Released:
    """Puts messages back that are IN_PROGRESS though nobody is at work on them, as after a PHP consumer that died.

    Magento's cron does so after a day. Whether the consumer has sent its request nobody knows: the delivery ledger
    takes it for possible.
    """
    parts: list[Released] = []
    for found in _batches(database, relation_ids, int):
        part = database.again_on_contention(partial(_release, database, found))
        _tell("release", part.released, by=by, note=note, audit=audit)
        parts.append(part)
    return _joined(Released, parts)


def _release(database: Database, found: Sequence[Failure]) -> Released:
    """One transaction: IN_PROGRESS -> RETRY_REQUIRED, where nobody is at work."""
    with database.transaction():
        locked = {int(row["id"]) for row in database.rows("release_lock", ids=sorted(each.id for each in found))}
        orphans = [each for each in found if each.id in locked]
        queue_ids = sorted({each.queue_id for each in orphans})
        busy: set[tuple[int, str]] = set()
        for queue_id in queue_ids:
            keys = sorted({str(each.group_key) for each in orphans if each.queue_id == queue_id})
            heads = database.rows("failed_heads", queue_id=queue_id, group_keys=keys)
            busy |= {(queue_id, row["group_key"]) for row in heads if row["worker_id"] is not None}
        rows = database.rows("ledger_php_at_work", queue_ids=queue_ids) if queue_ids else []
        at_work = {int(row["queue_id"]) for row in rows}
        held = [each for each in orphans if (each.queue_id, each.group_key) in busy]
        free = [each for each in orphans if each.queue_id not in at_work and each not in held]
        if free:
            free.sort(key=lambda each: each.message_id)
            database.execute("release", ids=sorted(each.id for each in free))
            database.insert_rows(
                "failed_wake", [(each.queue_id, each.group_key, each.id, each.message_id) for each in free]
            )
            for topic in sorted({str(each.topic) for each in free}):
                groups = {str(each.group_key) for each in free if each.topic == topic}
                ledger_records.ask_for(database, topic, groups)
    return Released(
        released=tuple(each.message_id for each in found if each in free),
        held=tuple(each.message_id for each in found if each in held),
        at_work=tuple(each.message_id for each in orphans if each not in held and each not in free),
        not_in_progress=tuple(each.message_id for each in found if each.id not in locked),
    )


# ---------------------------------------------------------------- what retry, discard and release share


def _batches(
    database: Database, relation_ids: Sequence[int], on_progress: Callable[[int], object]
) -> Iterator[list[Failure]]:
    """These messages, BATCH at a time, with topic and group; a message that has been deleted since is left out."""
    for start in range(0, len(relation_ids), BATCH):
        batch = relation_ids[start : start + BATCH]
        yield _with_groups(database, failures.by_ids(database, batch))
        on_progress(len(batch))


def _joined(kind: type[T], parts: Sequence[T]) -> T:
    """The results of all batches as one. Each field of such a result is a tuple."""
    names = [each.name for each in fields(kind)]
    return kind(**{name: tuple(chain.from_iterable(getattr(part, name) for part in parts)) for name in names})


def _with_groups(database: Database, found: Sequence[Failure]) -> list[Failure]:
    """Reads topic and group from the body where no failure row has them."""
    unrecorded = [each.message_id for each in found if each.group_key is None]
    known = {
        message_id: (topic, identify(topic, message_id, body)[0])
        for message_id, topic, body in failures.bodies(database, unrecorded)
    }
    complete: list[Failure] = []
    for each in found:
        if each.group_key is not None:
            complete.append(each)
        elif each.message_id in known:
            topic, group_key = known[each.message_id]
            complete.append(replace(each, topic=topic, group_key=group_key))
    return complete


def _lock(database: Database, failed: Sequence[Failure]) -> dict[int, tuple[Status, bool]]:
    """Locks those in ERROR or discarded. Returns relation id -> status, whether newer data was delivered since."""
    rows = database.rows("failures_lock", ids=sorted(each.id for each in failed))
    return {int(row["id"]): (Status(int(row["status"])), bool(row["newer_delivered"])) for row in rows}


def _record_unrecorded(database: Database, failed: Iterable[Failure]) -> None:
    """Inserts a failure row for each message that has none, so that the operator's decision has a place."""
    rows = [
        (each.id, each.queue_id, each.message_id, each.topic, each.group_key)
        for each in failed
        if each.reason == UNRECORDED
    ]
    if rows:
        database.insert_rows("failures_unrecorded", rows)


def _history_line(act: str, by: str, note: str) -> str:
    at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    return json.dumps({"at": at, "operator": by, "act": act, **({"note": note[:1000]} if note else {})})


def _tell(action: str, message_ids: Sequence[int], *, by: str, note: str, audit: Audit, **more: Any) -> None:
    """Writes an action on messages to the audit file and the log."""
    if not message_ids:
        return
    said = {"note": note} if note else {}
    audit([operator_action(action, who=by, message_ids=message_ids, **said, **more)])
    log.info(
        "operator: %s of %d messages",
        action,
        len(message_ids),
        extra={"event": f"operator_{action}", "operator": by, "message_ids": list(message_ids), **said},
    )


# ---------------------------------------------------------------- pause and resume


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """A row of zithara_topic_control. `paused_at_utc`: seconds since the epoch, by the database's clock."""

    topic: str
    paused_by: str
    paused_at_utc: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """The result of a pause or resume for one topic. `pause`: the one now in force, None when the topic runs."""

    topic: str
    changed: bool
    pause: Pause | None


def paused(database: Database) -> dict[str, Pause]:
    """The paused topics."""
    return {
        str(row["topic"]): Pause(
            topic=str(row["topic"]),
            paused_by=str(row["paused_by"]),
            paused_at_utc=float(row["paused_at_utc"]),
            reason=str(row["reason"]),
        )
        for row in database.rows("paused")
    }


def pause(database: Database, topics: Sequence[str], *, by: str, reason: str, audit: Audit) -> list[Changed]:
    """Every worker stops claiming these topics with its next poll; requests in flight are finished.

    A topic that is paused already keeps who paused it first, and since when.
    """
    changed = {
        topic
        for topic in topics
        if database.execute("pause", topic=topic, paused_by=by[:255], reason=reason[:1000]) > 0
    }
    return _told("pause", topics, changed, paused(database), by=by, reason=reason, audit=audit)


def resume(database: Database, topics: Sequence[str], *, by: str, audit: Audit) -> list[Changed]:
    """Workers claim these topics again with their next poll."""
    changed = {topic for topic in topics if database.execute("resume", topic=topic) > 0}
    return _told("resume", topics, changed, paused(database), by=by, reason="", audit=audit)


def _told(
    action: str,
    topics: Sequence[str],
    changed: set[str],
    in_force: Mapping[str, Pause],
    *,
    by: str,
    reason: str,
    audit: Audit,
) -> list[Changed]:
    """Writes what has changed to the audit file and the log."""
    told = [topic for topic in topics if topic in changed]
    audit([operator_action(action, who=by, topic=topic, reason=reason) for topic in told])
    for topic in told:
        fields = {"event": f"operator_{action}", "topic": topic, "operator": by}
        log.info("operator: %s %s", action, topic, extra={**fields, "detail": reason} if reason else fields)
    return [Changed(topic=topic, changed=topic in changed, pause=in_force.get(topic)) for topic in topics]


# ---------------------------------------------------------------- publish


def publish(database: Database, topic: str, texts: Iterable[str], overrides: Mapping[str, str]) -> Iterator[int]:
    """Puts each text on the topic's queue as the module would; yields each message id once it is committed."""
    (queue,) = find_queues(database, [topic], overrides)
    for text in texts:
        body = stored_body(text)
        # Before the message is visible: a worker may claim it at once.
        try:
            ledger_records.ask_for(database, topic, {identify(topic, 0, body)[0]})
        except ShopError as error:
            log.warning(
                "the message is not sent if Zithara has accepted the same before",
                extra={"event": "ledger_unwritten", "topic": topic, "detail": str(error)},
            )
        yield put_message(database, topic=topic, queue_id=queue.queue_id, body=body)
