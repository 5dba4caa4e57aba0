"""What an open claim locks, and whom it keeps waiting: nobody.

Each statement of Magento below would wait for a claim that locks more than the rows it takes; the server is told to
give such a wait up after a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.waiting import eventually
from support.workers import LEASE_SECONDS, Clock, StepWorker

from zithara_worker.messages import OutcomeKind
from zithara_worker.queue.ledger_upkeep import begin
from zithara_worker.sandbox.publisher import Publisher
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_ORDER

CLAIMED = 20


@contextmanager
def before_commit(worker: StepWorker, look: Callable[[], None]) -> Iterator[list[None]]:
    """Runs `look` when the worker's next transaction has done all but its COMMIT; says how often it did."""
    connection = worker.database._open()
    commit = connection.commit
    looked: list[None] = []

    def commit_after_a_look() -> None:
        del connection.commit
        looked.append(look())
        commit()

    connection.commit = commit_after_a_look  # type: ignore[method-assign]
    yield looked
    assert looked, "no transaction was committed"


def rows_locked(shop: Shop, worker: StepWorker) -> int:
    """InnoDB's own count for the worker's open transaction, rows of indexes included."""
    statement = (
        "SELECT t.trx_rows_locked FROM information_schema.innodb_trx t "
        "JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id WHERE p.user = %s"
    )
    # The server shows a copy of its list of transactions that may be a tenth of a second old.
    [(locked,)] = eventually(lambda: shop.query(statement, (shop.user,)))
    return int(locked)


def backlog(shop: Shop) -> None:
    """Rows of every kind around the ones that will be claimed: older, newer, another queue's, complete."""
    for number in range(30):
        shop.publish_cart(f"C{number}")
        shop.publish_order(f"N{number}")
    shop.publish_order("DONE")
    shop.query("UPDATE {prefix}queue_message_status SET status = 4 WHERE id = 61")
    shop.query("UPDATE {prefix}queue_message_status SET status = 5 WHERE id IN (60, 59)")


class Probe:
    """What others do to the queue while a transaction of the worker is open."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.connection = shop.connect(autocommit=False)
        with self.connection.cursor() as cursor:
            cursor.execute("SET SESSION innodb_lock_wait_timeout = 1")

    def sql(self, statement: str) -> int:
        with self.connection.cursor() as cursor:
            return int(cursor.execute(statement.replace("{prefix}", self.shop.prefix)))

    def publisher_of_the_same_queue(self) -> None:
        Publisher(self.connection, prefix=self.shop.prefix).publish_order("PROBE")

    def publisher_of_another_queue(self) -> None:
        Publisher(self.connection, prefix=self.shop.prefix).publish_cart("PROBE")

    def another_queues_php_consumer(self) -> None:
        """The canary on MariaDB: a locking scan of an index keeps rows of other queues locked."""
        ids = [row.relation_id for row in self.shop.rows() if row.queue != "zithara_order_queue"]
        for id in ids:
            assert self.sql(f"UPDATE {{prefix}}queue_message_status SET status = 3 WHERE id = {id}") == 1

    def unclaimed_rows_of_the_same_queue(self) -> None:
        pending = [row for row in self.shop.rows(TOPIC_ORDER) if row.status in (2, 5)]
        for row in pending[CLAIMED:]:
            assert self.sql(f"UPDATE {{prefix}}queue_message_status SET status = 3 WHERE id = {row.relation_id}") == 1

    def cleanup_of_a_complete_message(self) -> None:
        [complete] = [row.message_id for row in self.shop.rows(TOPIC_ORDER) if row.status == 4][-1:]
        assert self.sql(f"DELETE FROM {{prefix}}queue_message WHERE id = {complete}") == 1


PROBES = [name for name in vars(Probe) if not name.startswith("_") and name != "sql"]


@pytest.fixture
def probe(shop: Shop) -> Iterator[Probe]:
    backlog(shop)
    made = Probe(shop)
    yield made
    made.connection.close()


@pytest.mark.parametrize("name", PROBES)
def test_an_open_claim_keeps_nobody_waiting(shop: Shop, worker: StepWorker, probe: Probe, name: str) -> None:
    worker.look()
    with before_commit(worker, getattr(probe, name)):
        assert len(worker.take(CLAIMED)) == CLAIMED


@pytest.mark.parametrize("name", PROBES)
def test_an_open_settle_keeps_nobody_waiting(shop: Shop, worker: StepWorker, probe: Probe, name: str) -> None:
    messages = worker.claim(CLAIMED)
    kinds = [OutcomeKind.DELIVERED, OutcomeKind.RETRY, OutcomeKind.FAILED, OutcomeKind.RELEASED]
    shop.query("UPDATE {prefix}queue_message_status SET status = 4 WHERE id = 58")
    with before_commit(worker, getattr(probe, name)):
        worker.settle(*((message, kinds[number % 4]) for number, message in enumerate(messages)))


@pytest.mark.assumes_skip_locked
def test_the_probes_notice_a_claim_that_locks_too_much(shop: Shop, probe: Probe) -> None:
    """The way not to do it: one locking search, SKIP LOCKED and READ COMMITTED though it has."""
    with shop.connect(autocommit=False) as claiming, claiming.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        cursor.execute(
            f"SELECT id FROM {shop.prefix}queue_message_status WHERE status IN (2, 5) AND queue_id = 1 "
            "ORDER BY updated_at, id LIMIT 20 FOR UPDATE SKIP LOCKED"
        )
        with pytest.raises(Exception, match="Lock wait timeout"):
            probe.unclaimed_rows_of_the_same_queue()


def test_a_claim_locks_the_rows_it_takes_and_their_groups(shop: Shop, worker: StepWorker) -> None:
    backlog(shop)
    worker.look()
    locked: list[int] = []
    with before_commit(worker, lambda: locked.append(rows_locked(shop, worker))):
        assert len(worker.take(CLAIMED)) == CLAIMED
    assert locked[0] <= 2 * CLAIMED, "a row of Magento's each, and its group's row"


def test_a_settle_locks_what_it_settles(shop: Shop, worker: StepWorker) -> None:
    backlog(shop)
    messages = worker.claim(CLAIMED)
    worker.database.rows("statuses", ids=[1])
    locked: list[int] = []
    with before_commit(worker, lambda: locked.append(rows_locked(shop, worker))):
        worker.deliver(messages)
    # Magento's row, the group's row with the entries of its three indexes at most, nothing of the rest of the line.
    assert locked[0] <= 4 * CLAIMED


def test_an_idle_claim_opens_no_transaction(shop: Shop, worker: StepWorker) -> None:
    backlog(shop)
    worker.drain()
    worker.look()
    connection = worker.database._open()
    began: list[None] = []
    begin = connection.begin
    connection.begin = lambda: began.append(begin())  # type: ignore[method-assign]
    assert worker.take(10) == []
    assert began == []


def explained(shop: Shop, worker: StepWorker, statement: str, **parameters: Any) -> list[tuple[str, str | None]]:
    """(table, key) of each step of the plan."""
    with shop.operator.cursor() as cursor:
        cursor.execute("EXPLAIN FORMAT=TRADITIONAL " + worker.database.text(statement), parameters)
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    return [(row["table"], row["key"]) for row in rows]


@pytest.mark.parametrize(
    ("statement", "more"),
    [
        ("claim_lock", {"statuses": (2, 5), "limit": 10}),
        ("claim_lock", {"statuses": (3, 5), "limit": 10}),
        ("claim_take", {}),
        ("claim_take_over", {}),
        ("statuses", {}),
        ("settle_lock", {}),
        ("settle_complete", {}),
        ("settle_superseded", {}),
        ("settle_retry", {}),
        ("settle_error", {}),
        ("settle_release", {"status": 2, "updated_at": "2026-01-01 00:00:00"}),
        ("keep_from_expiry", {}),
    ],
)
def test_rows_of_magento_are_changed_by_primary_key_however_few_are_in_progress(
    shop: Shop, worker: StepWorker, statement: str, more: dict[str, Any]
) -> None:
    """With few rows IN_PROGRESS the planner would rather take (status, updated_at), and wait for other workers."""
    for number in range(120):
        shop.publish_order(f"N{number}")
    messages = worker.claim(100)
    ids = [message.id for message in messages[:90]]
    shop.query("ANALYZE TABLE {prefix}queue_message_status")
    plan = explained(shop, worker, statement, ids=ids, number_of_trials=0, **more)
    assert plan == [(f"{shop.prefix}queue_message_status", "PRIMARY")]


def test_groups_are_written_by_primary_key_and_a_workers_own_are_found_by_its_name(
    shop: Shop, worker: StepWorker, other: StepWorker
) -> None:
    for number in range(60):
        shop.publish_order(f"N{number}")
    mine = worker.claim(30)
    other.claim(30)
    shop.query("ANALYZE TABLE {prefix}zithara_message_group")
    [(table, key)] = explained(shop, worker, "leases_held", worker_id="worker-a")
    assert (table, key) == (f"{shop.prefix}zithara_message_group", "worker")
    claims = [(message.group_key, message.claim) for message in mine]
    keys = [group_key for group_key, _ in claims]
    for statement, more in (
        ("lease_renew", {"lease_us": 1}),
        ("group_done", {}),
        ("group_wait", {"delay_us": 0}),
        ("group_hand_over", {"id": 1, "message_id": 1, "behind": None}),
    ):
        fence = {"queue_id": worker.queue_id, "group_keys": keys, "worker_id": "worker-a", "claims": claims}
        [(_, key)] = explained(shop, worker, statement, **fence, **more)
        assert key == "PRIMARY", statement


@pytest.mark.parametrize(
    ("statement", "plan"),
    [
        ("ledger_read", ["PRIMARY", "PRIMARY"]),
        ("ledger_confirmed", ["PRIMARY", "PRIMARY", "PRIMARY"]),
        ("ledger_ended", ["QUEUE_MESSAGE_STATUS_STATUS_UPDATED_AT", "newest"]),
        ("ledger_newest", [None, "newest"]),
    ],
)
def test_the_ledger_is_read_by_its_keys_and_what_ended_by_its_time(
    shop: Shop, worker: StepWorker, statement: str, plan: list[str | None]
) -> None:
    begin(worker.database)
    keys = [f"order:{number}" for number in range(60)]
    for key in keys:
        shop.publish_order(key)
        shop.query(
            "INSERT INTO {prefix}zithara_delivery (topic_name, group_key, destination, message_id, published_at, "
            "covers, first_accepted_at, last_accepted_at, accepted) "
            "VALUES (%s, %s, 'd', 1, NOW(), '', NOW(), NOW(), 1)",
            [TOPIC_ORDER, key],
        )
    shop.query("UPDATE {prefix}queue_message_status SET status = 4")
    shop.query("ANALYZE TABLE {prefix}zithara_delivery, {prefix}queue_message_status")
    given = {"topic": TOPIC_ORDER, "group_keys": keys, "destination": "d", "queue_id": worker.queue_id}
    stretch = {"queue_ids": [worker.queue_id], "epoch": 0, "after": 1.0, "up_to": worker.clock()}
    assert [key for _, key in explained(shop, worker, statement, **given, **stretch)] == plan


def test_a_renewal_waits_for_no_other_workers_settle(
    shop: Shop, clock: Clock, worker: StepWorker, other: StepWorker
) -> None:
    for number in range(6):
        shop.publish_order(f"N{number}")
    mine, theirs = worker.claim(3), other.claim(3)
    other.database.run_script(["SET SESSION innodb_lock_wait_timeout = 1"])

    def renew_meanwhile() -> None:
        assert other.renew() == []

    with before_commit(worker, renew_meanwhile):
        worker.deliver(mine)
    clock.pass_by(LEASE_SECONDS / 2)
    assert other.deliver(theirs).lost == []
