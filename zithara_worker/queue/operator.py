"""Failed messages: why they failed, what would be sent now, and putting them right.

A message is named by its queue_message.id, as in the log, the audit file and the Idempotency-Key.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from zithara_worker.commands.preview_lines import preview
from zithara_worker.database.session import Database
from zithara_worker.errors import ShopError
from zithara_worker.logs.audit import operator_action
from zithara_worker.logs.masking import masked, masked_value
from zithara_worker.processors import ShopContext, identify
from zithara_worker.queue import failures
from zithara_worker.queue.failures import Failure, Selection
from zithara_worker.queue.pause import Audit
from zithara_worker.queue.queues import QueueRow
from zithara_worker.queue.statuses import Status
from zithara_worker.reasons import remedy
from zithara_worker.units import iso
from zithara_worker.zithara.api import encoded, idempotency_key

log = logging.getLogger(__name__)

#: Messages of one transaction of a retry or discard: short enough that no worker waits.
BATCH = 200
#: Messages that came later, among which those of the same group are looked for.
LATER = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """What failed of one topic for one reason, since when, with one example, and what a person can do about it."""

    topic: str
    reason: str
    messages: int
    since_utc: float
    newest_id: int
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """What came of a retry, as message ids. `overtaken`: left alone, newer data of their group has been delivered.

    `passed`: left alone, because a newer message of their group is on its way: (message id, that one's).
    """

    retried: tuple[int, ...]
    overtaken: tuple[int, ...]
    passed: tuple[tuple[int, int], ...]
    #: Asked for by id, but there is no such message in ERROR or discarded (any more)
    not_failed: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Discarded:
    discarded: tuple[int, ...]
    not_failed: tuple[int, ...]


def newest(database: Database, selection: Selection, *, limit: int) -> tuple[list[Failure], int]:
    """The last `limit` of a selection, newest first, and how many there are in all."""
    last: deque[int] = deque(maxlen=limit)
    total = 0
    for relation_id in failures.ids(database, selection):
        last.append(relation_id)
        total += 1
    return _with_topics(database, failures.by_ids(database, list(last)))[::-1], total


def matching(database: Database, selection: Selection) -> list[int]:
    """The relation ids of a selection."""
    return list(failures.ids(database, selection))


def find(
    database: Database, queue_ids: Sequence[int], message_ids: Sequence[int]
) -> tuple[list[Failure], tuple[int, ...]]:
    """The messages with these ids, whatever their status, and the ids that no message of these queues has."""
    relations = failures.relation_ids(database, queue_ids, message_ids)
    found = _with_topics(database, failures.by_ids(database, sorted(relations.values())))
    return found, tuple(id for id in message_ids if id not in relations)


def summary(database: Database, relation_ids: Iterable[int], queues: Sequence[QueueRow]) -> list[Reason]:
    """These messages by topic and reason, most first within a topic. `queues`: at least those they are in."""
    topics = {queue.queue_id: queue.topic for queue in queues}
    return [
        Reason(
            topic=topics[each.queue_id],
            reason=each.reason,
            messages=each.messages,
            since_utc=each.since_utc,
            newest_id=each.newest_id,
            remedy=remedy(each.reason) or "",
        )
        for each in failures.count(database, relation_ids)
    ]


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
    """Puts failed or discarded messages back on the queue with all attempts before them; workers see them with their
    next poll.

    A message that would overwrite newer data of its group with older is left alone unless `force`: where newer data
    has been delivered, and where a newer message is on its way. One that only waits goes after it.
    `on_progress` is called with the number of messages of each batch.
    """
    retried: list[int] = []
    overtaken: list[int] = []
    passed: list[tuple[int, int]] = []
    not_failed: list[int] = []
    for batch in _batches(relation_ids):
        failed = _with_groups(database, failures.by_ids(database, batch))
        done = failures.retry(database, failed, by=by, note=note, force=force)
        for each in failed:
            if each.id in done.retried:
                retried.append(each.message_id)
            elif each.id in done.overtaken:
                overtaken.append(each.message_id)
            elif each.id in done.passed:
                passed.append((each.message_id, done.passed[each.id]))
            else:
                not_failed.append(each.message_id)
        message_ids = [each.message_id for each in failed if each.id in done.retried]
        _tell("retry", message_ids, by=by, note=note, audit=audit, forced=force)
        on_progress(len(batch))
    return Retried(
        retried=tuple(retried), overtaken=tuple(overtaken), passed=tuple(passed), not_failed=tuple(not_failed)
    )


def discard(
    database: Database,
    relation_ids: Sequence[int],
    *,
    by: str,
    note: str,
    audit: Audit,
    on_progress: Callable[[int], object] = int,
) -> Discarded:
    """Sets failed messages COMPLETE though they were not delivered; history, log and audit file keep who, when and why.
    `retry` takes them back while Magento keeps them."""
    discarded: list[int] = []
    not_failed: list[int] = []
    for batch in _batches(relation_ids):
        failed = _with_groups(database, failures.by_ids(database, batch))
        done = failures.discard(database, failed, by=by, note=note)
        discarded += [each.message_id for each in failed if each.id in done]
        not_failed += [each.message_id for each in failed if each.id not in done]
        _tell("discard", [each.message_id for each in failed if each.id in done], by=by, note=note, audit=audit)
        on_progress(len(batch))
    return Discarded(discarded=tuple(discarded), not_failed=tuple(not_failed))


def export(database: Database, relation_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Everything that is known of each message, its stored body included: enough to publish it again."""
    for batch in _batches(relation_ids, size=50):
        failed = {each.message_id: each for each in failures.by_ids(database, batch)}
        for message_id, topic, body in failures.bodies(database, list(failed)):
            yield {**as_json(failed[message_id], unmasked=True), "topic": topic, "body": body}


def shown(database: Database, failure: Failure, *, shop: ShopContext, base_url: str, unmasked: bool) -> dict[str, Any]:
    """All about one message: what is recorded, what came later of its group, and the request that would be sent now.

    Personal data is masked unless `unmasked`. "later": messages of the same group, among the next LATER of the queue.
    """
    found = list(failures.bodies(database, [failure.message_id]))
    if not found:
        raise ShopError(f"message {failure.message_id} has been deleted meanwhile")
    _, topic, body = found[0]
    group, _ = identify(topic, failure.message_id, body)
    request = preview(topic, body, shop=shop, base_url=base_url, line=failure.message_id)
    if "headers" in request:
        path = request["url"].removeprefix(base_url.rstrip("/"))
        key = f"{failure.queue}-{failure.message_id}"
        request["headers"]["Idempotency-Key"] = idempotency_key(
            key, request["method"], path, encoded(request["json"]), failure.retries
        )
    later = [
        {"id": each.message_id, "status": _status_name(each.status), "updated_at": iso(each.updated_at_utc)}
        for each in failures.later_messages(database, failure, limit=LATER)
        if each.body is not None and identify(each.topic, each.message_id, each.body)[0] == group
    ]
    return {
        **as_json(failure, unmasked=unmasked),
        "topic": topic,
        "group": group if unmasked else _masked_group(group),
        "body_characters": len(body),
        "later": later,
        "request": request if unmasked else _masked_request(request),
    }


def as_json(failure: Failure, *, unmasked: bool = False) -> dict[str, Any]:
    """The value that table and JSON show."""
    group = failure.group_key
    return {
        "id": failure.message_id,
        "relation_id": failure.id,
        "queue": failure.queue,
        "topic": failure.topic,
        "status": failure.status.name,
        "reason": failure.reason,
        "http_status": failure.http_status,
        "detail": failure.detail if unmasked else masked(failure.detail),
        "group": group if unmasked or group is None else _masked_group(group),
        "attempts": failure.attempts,
        "number_of_trials": failure.number_of_trials,
        "first_failed_at": iso(failure.first_failed_utc),
        "last_failed_at": iso(failure.last_failed_utc),
        "updated_at": iso(failure.updated_at_utc),
        "newer_delivered": failure.newer_delivered,
        "unwitnessed": failure.unwitnessed,
        "retries": failure.retries,
        "discarded_at": iso(failure.discarded_utc),
        "history": list(failure.history),
    }


def _batches(relation_ids: Iterable[int], *, size: int = BATCH) -> Iterator[list[int]]:
    rest = iter(relation_ids)
    while batch := list(islice(rest, size)):
        yield batch


def _with_topics(database: Database, found: Sequence[Failure]) -> list[Failure]:
    """Fills in the topic where nothing was recorded."""
    unknown = [each.message_id for each in found if each.topic is None]
    if not unknown:
        return list(found)
    topics = {message_id: topic for message_id, topic, _ in failures.bodies(database, unknown)}
    return [failures.completed(each, topic=topics.get(each.message_id)) for each in found]


def _with_groups(database: Database, found: Sequence[Failure]) -> list[Failure]:
    """Fills in topic and group where nothing was recorded; a message that was deleted meanwhile is left out."""
    unknown = [each.message_id for each in found if each.group_key is None]
    if not unknown:
        return list(found)
    known = {
        message_id: (topic, identify(topic, message_id, body)[0])
        for message_id, topic, body in failures.bodies(database, unknown)
    }
    return [
        failures.completed(each, topic=known[each.message_id][0], group_key=known[each.message_id][1])
        if each.group_key is None
        else each
        for each in found
        if each.group_key is not None or each.message_id in known
    ]


def _tell(action: str, message_ids: Sequence[int], *, by: str, note: str, audit: Audit, **more: Any) -> None:
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


def _status_name(code: int) -> str:
    return Status(code).name if code in Status.__members__.values() else str(code)


def _masked_group(group: str) -> str:
    kind, _, name = group.partition(":")
    return f"{kind}:{masked(name)}" if "@" in name else group


def _masked_request(request: dict[str, Any]) -> dict[str, Any]:
    shown = {key: masked_value(value) if key == "json" else value for key, value in request.items()}
    if "url" in shown:
        address, question, _ = str(shown["url"]).partition("?")
        shown["url"] = f"{address}?***" if question else address
    if "group" in shown:
        shown["group"] = _masked_group(str(shown["group"]))
    if "error" in shown:
        shown["error"] = {**shown["error"], "detail": masked(shown["error"]["detail"])}
    return shown
