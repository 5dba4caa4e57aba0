"""Checks of the four queues: that messages are linked to them, and that only workers take messages from them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zithara_worker.database.session import Database
from zithara_worker.doctor.finding import Finding, failed, ok, unchecked, warning
from zithara_worker.doctor.routing import MODULE
from zithara_worker.errors import ConfigurationError, ShopError
from zithara_worker.monitor import fleet
from zithara_worker.pages import page
from zithara_worker.queue import operator
from zithara_worker.queue.queues import QueueRow, queues_present
from zithara_worker.queue.settle import message_code
from zithara_worker.queue.statuses import Status
from zithara_worker.shop.deployment_config import ENV_PHP, cron_consumers
from zithara_worker.topics import TOPIC_TABLE, TOPICS, short_name
from zithara_worker.units import duration

#: Messages without a queue are looked for among this many ids, back from the newest.
LOOK_BACK = 50_000
#: Rows that a check reads at most.
LIMIT = 5000


def rows(database: Database, overrides: Mapping[str, str]) -> Iterator[Finding]:
    """Whether each topic has a row in table `queue`. Raises ShopError where none has, or the table cannot be read."""
    found, missing = queues_present(database, overrides)
    if missing:
        yield failed(
            "queues",
            f"table {database.prefix}queue has no row for {', '.join(missing)}",
            "run 'zithara-worker install' or bin/magento setup:upgrade, or name the queue in section [queues]",
        )
    else:
        yield ok("queues", ", ".join(queue.name for queue in found))


def unlinked(database: Database) -> Iterator[Finding]:
    """Messages of our topics that are linked to no queue. Reads twice: a message that is just being published is linked
    by the second time."""
    after = max(0, int(database.rows("newest_message")[0]["id"]) - LOOK_BACK)

    def look() -> dict[int, str]:
        found = database.rows("unlinked_messages", after=after, topics=list(TOPICS), limit=LIMIT)
        return {int(row["id"]): str(row["topic_name"]) for row in found}

    lost = look()
    if lost:
        again = look()
        lost = {id: topic for id, topic in lost.items() if id in again}
    if not lost:
        yield ok("published.unlinked", "every message of our topics is linked to a queue")
        return
    topics = ", ".join(sorted(set(lost.values())))
    yield failed(
        "published.unlinked",
        f"{len(lost)} messages of {topics} are linked to no queue (ids {min(lost)} to {max(lost)}): Magento's cleanup "
        "deletes them undelivered",
        f"the topology has no binding on the database exchange: {MODULE}; to save these, see published.unlinked in "
        f"{page('operations.md')}",
    )


def in_progress(database: Database, queues: Sequence[QueueRow], now: float) -> Iterator[Finding]:
    """IN_PROGRESS rows that no worker holds. Those that a PHP consumer holds have its row in queue_lock."""
    ids = [queue.queue_id for queue in queues]
    found = {int(row["id"]): row for row in database.rows("in_progress", queue_ids=ids, limit=LIMIT)}
    for _ in range(2):  # a message may be settled or claimed between two reads, so both are repeated
        found = {id: row for id, row in found.items() if id not in _leased(database, ids)}
        still = database.rows("statuses", ids=list(found)) if found else []
        found = {int(row["id"]): found[int(row["id"])] for row in still if int(row["status"]) == Status.IN_PROGRESS}
    if not found:
        yield ok("in_progress", "every message in progress is held by a worker")
        return
    by_php = _held_by_php(database, queues, found)
    if by_php is None:
        yield warning(
            "in_progress",
            f"no worker holds {_described([*found.values()], now)}: a PHP consumer holds them, or died with them",
            f"stop PHP consumers of our queues, then {_release([*found.values()])}; {_CRON}",
        )
        return
    with_php = [row for id, row in found.items() if id in by_php]
    if with_php:
        yield warning(
            "php_consumers.in_progress",
            f"PHP consumers hold {_described(with_php, now)}",
            "keep them off: 'cron_consumers_runner' in app/etc/env.php, and stop bin/magento queue:consumers:start "
            "of the Zithara consumers",
        )
    held_by_none = [row for id, row in found.items() if id not in by_php]
    if held_by_none:
        yield warning(
            "in_progress",
            f"neither a worker nor PHP holds {_described(held_by_none, now)}",
            f"a consumer died with them: {_release(held_by_none)}; {_CRON}",
        )


#: What happens without an operator.
_CRON = "Magento's cron puts them back later (when: see shop.cleanup)"


def _release(rows: Sequence[Mapping[str, Any]]) -> str:
    ids = sorted(int(row["message_id"]) for row in rows)
    return f"zithara-worker failed release {' '.join(map(str, ids[:5]))}{' ...' if len(ids) > 5 else ''}"


def _described(rows: Sequence[Mapping[str, Any]], now: float) -> str:
    oldest = duration(now - min(float(row["updated_at"]) for row in rows))
    first = min(int(row["message_id"]) for row in rows)
    return f"{len(rows)} messages that are in progress, the oldest for {oldest} (first message {first})"


def _held_by_php(
    database: Database, queues: Sequence[QueueRow], found: Mapping[int, Mapping[str, Any]]
) -> set[int] | None:
    """Those of `found` whose lock a PHP consumer has written. None: this user may not read queue_lock."""
    codes = {
        message_code(TOPIC_TABLE[queue.topic].php_consumer, int(row["message_id"])): id
        for id, row in found.items()
        for queue in queues
        if queue.queue_id == int(row["queue_id"]) and queue.topic in TOPIC_TABLE
    }
    if not codes:
        return set()
    try:
        locked = database.rows("php_lock_codes", codes=list(codes))
    except ShopError:
        return None
    return {codes[str(row["message_code"])] for row in locked}


def _leased(database: Database, queue_ids: Sequence[int]) -> set[int]:
    return {int(row["id"]) for row in database.rows("heads_leased", queue_ids=list(queue_ids))}


def rejected_by_php(database: Database, queues: Sequence[QueueRow]) -> Iterator[Finding]:
    """Messages that went to ERROR without a row in zithara_delivery_failure, so no worker did it."""
    found = database.rows("rejected_elsewhere", queue_ids=[queue.queue_id for queue in queues])
    total = sum(int(row["messages"]) for row in found)
    if total:
        yield warning(
            "php_consumers.rejected",
            f"{total} messages went to ERROR within a day without this worker: a PHP consumer rejected them",
            "keep the PHP consumers off, then 'zithara-worker failed retry --all --reason unrecorded'",
        )
    else:
        yield ok("php_consumers.rejected", "no PHP consumer has rejected a message within a day")


#: The finished block where env.php names no consumers, which means all: only the shop's own command knows their names.
_LIST_ALL = (
    "its finished block is printed by: (cd {root}; echo \"'cron_consumers_runner' => ['cron_run' => true, "
    "'consumers' => [\"; bin/magento queue:consumers:list | grep -v '^Zithara' | sed \"s/.*/    '&',/\"; echo ']],')"
)


def cron(root: Path | None) -> Iterator[Finding]:
    """Whether Magento's cron would start PHP consumers of our queues."""
    if root is None:
        yield unchecked(
            "php_consumers.cron",
            "whether Magento's cron starts PHP consumers of our queues, because [magento] root is not set",
            "set [magento] root, or look at 'cron_consumers_runner' in the shop's app/etc/env.php",
        )
        return
    path = root / ENV_PHP
    try:
        found = cron_consumers(path)
    except ConfigurationError as error:
        yield warning("php_consumers.cron", f"cannot tell: {error}", "correct [magento] root or the file's permissions")
        return
    if found.started:
        yield warning(
            "php_consumers.cron",
            f"Magento's cron may start {', '.join(found.started)}, which would take messages from the same queues",
            f"in {path} write {found.block}"
            if found.block
            else f"in {path} name every consumer but those; {_LIST_ALL.format(root=shlex.quote(str(root)))}",
        )
    else:
        yield ok("php_consumers.cron", f"{path} keeps Magento's cron from starting PHP consumers of our queues")


def near_deletion(
    database: Database, queues: Sequence[QueueRow], lifetime_minutes: int, now: float
) -> Iterator[Finding]:
    """NEW messages in the last third of the lifetime that Magento's cleanup gives them."""
    if lifetime_minutes <= 0:
        yield ok("expiry", "Magento's cleanup deletes no new messages here")
        return
    found = database.rows(
        "old_new_messages", age=lifetime_minutes * 40, queue_ids=[queue.queue_id for queue in queues]
    )[0]
    number = int(found["messages"])
    if not number:
        yield ok(
            "expiry",
            f"no new message is near Magento's deletion, {lifetime_minutes} minutes after it was published",
        )
        return
    left = lifetime_minutes * 60 - (now - float(found["oldest"]))
    text = f"{number} new messages near deletion by Magento's cleanup, the first "
    remedy = "start a worker now ('zithara-worker consume --all'): a running one keeps them, even of a paused topic"
    if left <= 0:
        yield failed("expiry", text + "with the next run of the cron", remedy)
    else:
        yield warning("expiry", text + f"in {duration(left)}", remedy)


def failures(database: Database, queues: Sequence[QueueRow], now: float) -> Iterator[Finding]:
    """Messages in ERROR, which Magento's cleanup deletes."""
    counts = fleet.count_by_status(database, [queue.queue_id for queue in queues])
    found = [count for (_, status), count in counts.items() if status is Status.ERROR]
    number = sum(count.messages for count in found)
    if not number:
        yield ok("failed", "no failed messages")
        return
    oldest = max((now - count.oldest_utc for count in found if count.oldest_utc is not None), default=0.0)
    yield warning(
        "failed",
        f"{number} failed messages, the oldest for {duration(oldest)}; Magento deletes them (when: see shop.cleanup)",
        "see 'zithara-worker failed list'; retry, discard or export them",
    )


def workers(database: Database, queues: Sequence[QueueRow], now: float) -> Iterator[Finding]:
    """Whether a living worker serves each topic."""
    living = fleet.living_by_topic(fleet.read_workers(database, queues, now))
    missing = [queue.topic for queue in queues if not living[queue.topic]]
    if missing:
        yield warning(
            "workers",
            f"no worker is alive for {', '.join(missing)}",
            "start one: 'zithara-worker consume --all', or the supervisor or systemd program",
        )
    else:
        yield ok("workers", "every topic is served by a living worker")


def paused(database: Database, now: float) -> Iterator[Finding]:
    for pause in operator.paused(database).values():
        since = duration(now - pause.paused_at_utc)
        yield warning(
            f"paused.{short_name(pause.topic)}",
            f"paused by {pause.paused_by} {since} ago: {pause.reason or 'no reason given'}",
            f"'zithara-worker resume {pause.topic}'",
        )
