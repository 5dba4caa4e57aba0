"""From the tables of version 0.1 to those of this one, in place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from support.waiting import eventually
from support.workers import LEASE_SECONDS, StepWorker, failures_of, groups_of, settings_of
from worker.test_outage import running, settings_for

from zithara_worker import Worker
from zithara_worker.database import schema, statements
from zithara_worker.database.schema import build_index, install, script_text
from zithara_worker.database.session import Database
from zithara_worker.errors import Contention, ShopError
from zithara_worker.sandbox.api import FakeZithara
from zithara_worker.sandbox.shop import MessageRow, Shop
from zithara_worker.settings.values import Secret

FIXTURES = Path(__file__).parent.parent / "fixtures"
STEPS = list(statements.named(statements.read("upgrade_2.sql")).values())


def split(text: str) -> list[str]:
    return [each.strip() for each in re.sub(r"--[^\n]*", "", text).split(";") if each.strip()]


@pytest.fixture
def make_old(make_shop: Callable[..., Shop]) -> Callable[..., Shop]:
    """A shop with the tables of version 0.1."""

    def make(prefix: str = "") -> Shop:
        shop = make_shop(prefix=prefix, worker_tables=False)
        for statement in split((FIXTURES / "schema-1.sql").read_text(encoding="utf-8")):
            shop.query(statement)
        return shop

    return make


@pytest.fixture
def open_root() -> Iterator[Callable[[Shop], Database]]:
    """Sessions of a user who may alter tables."""
    with ExitStack() as opened:

        def make(shop: Shop) -> Database:
            settings = settings_of(shop, user="root", password=Secret(""))
            return opened.enter_context(closing(Database(settings, sleep=lambda _: None)))

        yield make


def definitions(shop: Shop) -> dict[str, str]:
    made = {table: shop.query(f"SHOW CREATE TABLE {{prefix}}{table}")[0][1] for table in statements.TABLES}
    return {table: text.replace(f"`{shop.prefix}{table}`", f"`{table}`") for table, text in made.items()}


@pytest.mark.parametrize("prefix", ["", "m2_"])
def test_an_upgraded_shop_has_the_tables_of_a_new_one(
    shop: Shop, make_old: Callable[..., Shop], open_root: Callable[[Shop], Database], prefix: str
) -> None:
    old = make_old(prefix)
    root = open_root(old)
    assert schema.installed_version(root) == 1
    assert install(root).upgraded_from == 1
    assert definitions(old) == definitions(shop)
    assert schema.installed_version(root) == schema.VERSION
    assert install(root).upgraded_from is None
    assert definitions(old) == definitions(shop)


@pytest.mark.parametrize("taken", range(len(STEPS)))
def test_an_upgrade_that_was_interrupted_is_finished_by_running_it_again(
    shop: Shop, make_old: Callable[..., Shop], open_root: Callable[[Shop], Database], taken: int
) -> None:
    old = make_old()
    for step in STEPS[:taken]:
        old.query(step)
    assert install(open_root(old)).upgraded_from == 1
    assert definitions(old) == definitions(shop)


def test_every_step_finds_its_work_done_where_only_the_mark_is_older(
    shop: Shop, make_old: Callable[..., Shop], open_root: Callable[[Shop], Database]
) -> None:
    """As after an interruption before the last statement, which writes the mark."""
    old = make_old()
    root = open_root(old)
    install(root)
    for version in range(1, schema.VERSION):
        old.query(f"ALTER TABLE zithara_message_group COMMENT = 'zithara-worker schema {version}'")
        assert install(root).upgraded_from == version
        assert definitions(old) == definitions(shop)


def test_the_printed_upgrade_does_the_same_and_gives_the_grants(
    shop: Shop, make_old: Callable[..., Shop], open_root: Callable[[Shop], Database]
) -> None:
    old = make_old("m2_")
    user = f"'{old.user}'@'%'"
    for statement in split(script_text(prefix="m2_", database_name=old.name, user=user, upgrade_from=1)):
        old.query(statement)
    assert definitions(old) == definitions(shop)
    with closing(Database(settings_of(old))) as database:
        assert database.rows("privilege_zithara_lock_select") == []
        schema.require(database)


def test_rows_of_version_0_1_are_taken_over_as_they_are(
    make_old: Callable[..., Shop], open_root: Callable[[Shop], Database]
) -> None:
    old = make_old()
    old.query(
        "INSERT INTO zithara_message_group (queue_id, group_key, id, message_id, worker_id, lease_until) "
        "VALUES (1, 'order:1', 7, 8, 'old', NOW(3))"
    )
    install(open_root(old))
    assert old.query("SELECT id, worker_id, claim, suspect FROM zithara_message_group") == [(7, "old", 0, 0)]


def test_newer_tables_are_not_outdated_and_those_that_are_not_there_are_told(
    shop: Shop, make_shop: Callable[..., Shop]
) -> None:
    shop.query("ALTER TABLE zithara_message_group COMMENT = 'zithara-worker schema 99'")
    with closing(Database(settings_of(shop))) as database:
        schema.require(database)

    bare = make_shop(worker_tables=False)
    bare.query(f"GRANT SELECT ON {bare.name}.queue TO '{bare.user}'@'%'")
    with closing(Database(settings_of(bare))) as database, pytest.raises(ShopError, match="zithara-worker install"):
        schema.require(database)


def test_a_worker_waits_for_the_upgrade_and_then_begins_by_itself(
    make_old: Callable[..., Shop],
    open_root: Callable[[Shop], Database],
    api: FakeZithara,
    caplog: pytest.LogCaptureFixture,
) -> None:
    old = make_old()
    old.configure_webhook(client_id=api.client_id, client_secret=api.client_secret)
    grant_old(old)
    old.publish_order("A")
    with running(Worker(settings_for(old, api))) as thread:
        eventually(lambda: told(caplog), within=10)
        assert thread.is_alive() and old.statuses() == [2]
        install(open_root(old))
        old.grant_worker()
        eventually(lambda: old.statuses() == [4], within=15)
    (record,) = told(caplog)
    assert "schema 1" in record.detail and "zithara-worker install" in record.detail
    assert record.levelname == "WARNING"


def grant_old(shop: Shop) -> None:
    for statement in split(script_text(prefix=shop.prefix, database_name=shop.name, user=f"'{shop.user}'@'%'")):
        if statement.startswith("GRANT") and not any(
            table in statement
            for table in (
                "zithara_lock",
                "zithara_delivery",
                "zithara_ledger",
                "zithara_reconciliation",
                "zithara_relay",
            )
        ):
            shop.query(statement)


def told(caplog: pytest.LogCaptureFixture) -> list[object]:
    return [record for record in caplog.records if getattr(record, "event", "") == "schema_outdated"]


class OldWorker:
    """Sends the statements of a worker of version 0.1 about one message of one group."""

    def __init__(self, shop: Shop, beside: StepWorker) -> None:
        self.database = Database(settings_of(shop), clock=beside.clock)
        old = statements.named((FIXTURES / "queries-1.sql").read_text(encoding="utf-8"))
        self.database._texts = {**self.database._texts, **old}
        self.ours: dict[str, object] = {"queue_id": beside.queue_id, "worker_id": "old"}
        self.lease: dict[str, object] = {"lease_us": 60_000_000}

    def claim(self, row: MessageRow, group_key: str) -> bool:
        new = [(group_key, row.relation_id, row.message_id, None)]
        with self.database.transaction():
            self.database.insert_rows("claim_groups", new, **self.ours, **self.lease)
            ids = [row.relation_id]
            won = self.database.rows("claim_groups_won", **self.ours, group_keys=[group_key], ids=ids)
            return bool(won) and self.database.execute("claim_take", ids=ids) == 1

    def take_over(self, row: MessageRow, group_key: str) -> bool:
        head = {"id": row.relation_id, "message_id": row.message_id, "supersedes": None, "group_key": group_key}
        with self.database.transaction():
            found = self.database.rows("claim_lock_groups", **self.ours, group_keys=[group_key])
            if not found or not found[0]["expired"]:
                return False
            self.database.execute("claim_group_again", **self.ours, **self.lease, **head)
            return self.database.execute("claim_take_over", ids=[row.relation_id]) == 1

    def renew(self) -> int:
        return self.database.execute("lease_renew", **self.ours, **self.lease)

    def retry(self, row: MessageRow, group_key: str) -> None:
        told = {"topic": row.topic, "reason": "http_500", "http_status": 500, "detail": "d", "history": "{}"}
        with self.database.transaction():
            fence = {"ids": [row.relation_id], "number_of_trials": row.number_of_trials}
            assert self.database.execute("settle_retry", **fence) == 1
            self.database.execute("group_wait", **self.ours, group_keys=[group_key], delay_us=0)
            message = {"id": row.relation_id, "message_id": row.message_id, "group_key": group_key}
            self.database.execute("failure_record", **message, **told, queue_id=self.ours["queue_id"])

    def complete(self, row: MessageRow, group_key: str) -> None:
        with self.database.transaction():
            fence = {"ids": [row.relation_id], "number_of_trials": row.number_of_trials}
            assert self.database.execute("settle_complete", **fence) == 1
            self.database.execute("group_done", **self.ours, group_keys=[group_key])
            self.database.execute("failures_gone", ids=[row.relation_id])


@pytest.fixture
def old(shop: Shop, worker: StepWorker) -> Iterator[OldWorker]:
    made = OldWorker(shop, worker)
    yield made
    made.database.close()


def test_workers_of_version_0_1_hold_their_groups_against_new_ones(
    shop: Shop, worker: StepWorker, old: OldWorker
) -> None:
    shop.publish_order("A")
    shop.publish_order("B")
    first, second = shop.rows()
    assert old.claim(first, "order:A")
    assert [message.id for message in worker.claim()] == [second.relation_id]
    assert not old.claim(second, "order:B")
    assert old.renew() == 1
    old.complete(shop.row(first.relation_id), "order:A")
    assert shop.statuses() == [4, 3]


def test_a_message_that_version_0_1_failed_with_is_retried_by_a_new_worker(
    shop: Shop, worker: StepWorker, old: OldWorker
) -> None:
    shop.publish_order("A")
    (row,) = shop.rows()
    assert old.claim(row, "order:A")
    old.retry(row, "order:A")
    assert failures_of(shop) == {row.relation_id: (1, "http_500", 0)}
    (message,) = worker.claim()
    assert message.id == row.relation_id
    worker.deliver([message])
    assert (shop.statuses(), failures_of(shop)) == ([4], {})


@pytest.mark.parametrize("dies", ["old", "new"])
def test_each_takes_over_what_the_other_left_and_fences_it_off(
    shop: Shop, worker: StepWorker, old: OldWorker, dies: str
) -> None:
    shop.publish_order("A")
    (row,) = shop.rows()
    if dies == "old":
        assert old.claim(row, "order:A")
        worker.clock.pass_by(LEASE_SECONDS + 1)
        (taken,) = worker.claim()
        assert old.renew() == 0
        assert old.database.execute("settle_complete", ids=[row.relation_id], number_of_trials=0) == 0
        worker.deliver([taken])
    else:
        (lost,) = worker.claim()
        assert not old.take_over(row, "order:A")
        worker.clock.pass_by(LEASE_SECONDS + 1)
        assert old.take_over(row, "order:A")
        assert worker.deliver([lost]).lost == [lost]
        assert shop.statuses() == [3]
        old.complete(shop.row(row.relation_id), "order:A")
    assert (shop.statuses(), groups_of(shop)) == ([4], {})


# ---------------------------------------------------------------- the optional index


@pytest.fixture
def sessions(shop: Shop) -> Iterator[tuple[Database, Database]]:
    """One that builds the index and one that watches, of a user who may."""
    root = settings_of(shop, user="root", password=Secret(""))
    with closing(Database(root, statement_limit=False)) as builder, closing(Database(root)) as watcher:
        yield builder, watcher


def test_the_optional_index_is_built_and_used_by_the_next_session(
    shop: Shop, sessions: tuple[Database, Database]
) -> None:
    builder, watcher = sessions
    assert variable_of(builder, "max_statement_time", "max_execution_time") == 0
    assert not watcher.has_pending_index
    build_index(*sessions, lambda share: None)
    with closing(Database(settings_of(shop))) as database:
        assert database.has_pending_index


def variable_of(database: Database, *names: str) -> float:
    with database._open().cursor() as cursor:
        cursor.execute("SHOW SESSION VARIABLES WHERE Variable_name IN %s", (names,))
        return float(cursor.fetchone()[1])


def test_a_transaction_that_holds_the_table_ends_the_build_and_not_the_other_way_round(
    shop: Shop, sessions: tuple[Database, Database]
) -> None:
    """The server lets everybody else wait behind the ALTER, so it gives up soon."""
    builder, _ = sessions
    builder.run_script(["SET SESSION lock_wait_timeout = 1"])
    with closing(shop.connect(autocommit=False)) as holder, holder.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM queue_message_status")
        sent = builder.statements_sent
        with pytest.raises(Contention):
            build_index(*sessions, lambda share: None)
        assert builder.statements_sent == sent + 1, "it is not begun again without a word"
    with closing(Database(settings_of(shop))) as database:
        assert not database.has_pending_index


def test_a_build_that_is_interrupted_goes_on_nowhere(
    shop: Shop, sessions: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "PROGRESS_SECONDS", 0.05)
    builder, _ = sessions
    builder.run_script(["SET SESSION lock_wait_timeout = 60"])
    session_id = builder.session_id

    def interrupted(share: float) -> None:
        raise KeyboardInterrupt

    with closing(shop.connect(autocommit=False)) as holder, holder.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM queue_message_status")
        with pytest.raises(KeyboardInterrupt):
            build_index(*sessions, interrupted)
        alive = "SELECT id FROM information_schema.processlist WHERE id = %s"
        eventually(lambda: shop.query(alive, (session_id,)) == [])
    with closing(Database(settings_of(shop))) as database:
        assert not database.has_pending_index
