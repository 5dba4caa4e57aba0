"""Checks of the delivery ledger, and of the shop's carts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from zithara_worker.database.session import Database
from zithara_worker.doctor.finding import Finding, ok, warning
from zithara_worker.errors import ShopError
from zithara_worker.queue import ledger_records, ledger_upkeep
from zithara_worker.queue.ledger_others import BEHIND
from zithara_worker.queue.ledger_rules import LEDGER_TOPICS
from zithara_worker.queue.queues import QueueRow
from zithara_worker.shop.carts import active_carts
from zithara_worker.topics import short_name


def checks(database: Database, queues: Sequence[QueueRow]) -> Iterator[Finding]:
    """Whether what Zithara accepted is recorded and may be believed, and whether the shop's carts can be read."""
    topics = {queue.queue_id: queue.topic for queue in queues if queue.topic in LEDGER_TOPICS}
    others = ledger_upkeep.unrecorded_topics(database, topics) if topics else frozenset()
    if others:
        yield warning(
            "ledger.others",
            f"every message of {', '.join(sorted(map(short_name, others)))} is sent, because others deliver too and do "
            "not record it: PHP consumers, or workers older than 0.3",
            "take the PHP consumers of our queues out of cron_consumers_runner, and upgrade every worker",
        )
    renumbered = ledger_records.count_of_old_ids(database)
    if renumbered:
        yield warning(
            "ledger.ids",
            f"message ids have begun again, as after a restore: what was accepted of {renumbered} orders, customers "
            "and carts before does not tell any more which message is older",
            "nothing, it mends itself with their next messages; if no backup was restored, look who emptied "
            f"{database.prefix}queue_message",
        )
    behind = ledger_upkeep.unlooked_topics(database, seconds=BEHIND)
    if behind:
        yield warning(
            "ledger.behind",
            f"messages of {', '.join(sorted(map(short_name, behind)))} are sent though nothing changed: no worker "
            "has looked for a minute which messages others delivered",
            "wait, after a long time without a worker; if it lasts, see the workers' log for errors of the database",
        )
    if not ledger_upkeep.next_id(database):
        yield warning(
            "ledger.next_id",
            f"the server does not say which id {database.prefix}queue_message gives out next: after Magento's cleanup "
            "the worker may take its ids for ones that began again, and sends some messages that it need not",
            f"give the worker's account SELECT on {database.prefix}queue_message, and id AUTO_INCREMENT",
        )
    if not others and not renumbered and not behind:
        yield ok(
            "ledger",
            f"what Zithara accepted of {ledger_records.count(database)} orders, customers and carts is recorded",
        )
    try:
        active_carts(database, [0])
    except ShopError as error:
        yield warning(
            "ledger.carts",
            f"carts that became orders are sent as abandoned ones: {error}",
            "run the GRANT statements that 'zithara-worker install --print' shows",
        )
