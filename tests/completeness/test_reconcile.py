"""reconcile on a real server: each class, and each rule that keeps it from putting older over newer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from support.reconcile import MemoryShop, Reconciler, ago
from support.workers import settings_of

from zithara_worker import Settings
from zithara_worker.completeness.compare import Verdict
from zithara_worker.completeness.pending import PendingMessages
from zithara_worker.completeness.reconcile import LEASE_SECONDS, STUCK_SECONDS, AlreadyAtWork, Window
from zithara_worker.completeness.requests import content_of
from zithara_worker.database import locks
from zithara_worker.database.session import Database
from zithara_worker.errors import DatabaseUnavailable
from zithara_worker.monitor.reconciliations import read_results
from zithara_worker.queue import failures, operator
from zithara_worker.queue.failures import Selection
from zithara_worker.queue.ledger import DOUBT_SECONDS
from zithara_worker.sandbox import examples
from zithara_worker.sandbox.api import FakeZithara
from zithara_worker.sandbox.shop import Shop
from zithara_worker.settings.values import Secret
from zithara_worker.shop.entities import PARTS
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER

Deliver = Callable[..., None]


@pytest.fixture
def administrator(shop: Shop) -> Iterator[Database]:
    """A session with the rights of the shop's own user."""
    opened = Database(settings_of(shop, user="root", password=Secret("")))
    yield opened
    opened.close()


@pytest.fixture
def rows() -> MemoryShop:
    return MemoryShop()


@pytest.fixture
def reconciler(administrator: Database, rows: MemoryShop, settings: Settings) -> Reconciler:
    return Reconciler(administrator, rows, settings)


@pytest.fixture
def deliver(shop: Shop, rows: MemoryShop, consume: Callable[[], None]) -> Deliver:
    """deliver(1, grand_total=5.0): the shop saves the order and publishes it, and a worker delivers it."""

    def run(*ids: int, **changes: Any) -> None:
        for id in ids:
            shop.publish(TOPIC_ORDER, rows.order(id, **changes))
        consume()

    return run


def counts(**found: int) -> Counter[Verdict]:
    return Counter({Verdict(name): number for name, number in found.items()})


def sent(api: FakeZithara) -> list[tuple[str, Any]]:
    return [(request.method, order_of(request.json)["platform_order_id"]) for request in api.requests()]


def order_of(body: Mapping[str, Any]) -> Mapping[str, Any]:
    order: Mapping[str, Any] = body.get("order", body)
    return order


# ---------------------------------------------------------------- the classes


def test_what_was_delivered_is_complete_and_is_not_rebuilt_again(
    rows: MemoryShop, reconciler: Reconciler, deliver: Deliver
) -> None:
    deliver(*range(1, 6))
    assert reconciler.compare().counts == counts(complete=5)
    assert rows.calls["build"] == 1
    assert reconciler.compare().counts == counts(complete=5)
    assert rows.calls["build"] == 1, "times spare the work"


def test_a_time_that_moved_without_news_is_looked_at_and_complete(
    rows: MemoryShop, reconciler: Reconciler, deliver: Deliver
) -> None:
    """Magento touches an order when it notes that its mail was sent."""
    deliver(1)
    reconciler.compare()
    rows.touch(1, ago(minutes=20))
    assert reconciler.verdict() is Verdict.COMPLETE
    assert rows.calls["build"] == 2


def test_two_saves_within_a_second_are_told_apart_by_content(
    rows: MemoryShop, reconciler: Reconciler, deliver: Deliver
) -> None:
    deliver(1)
    rows.order(1, grand_total=7.0)  # the second message never came
    assert reconciler.verdict() is Verdict.STALE


def test_what_was_never_published_is_missing(rows: MemoryShop, reconciler: Reconciler) -> None:
    rows.order(1)
    found = reconciler.compare()
    assert found.counts == counts(missing=1)
    assert found.named == {Verdict.MISSING: [("000000001", "")]}
    assert not found.is_complete


def test_what_changed_a_moment_ago_is_not_judged(rows: MemoryShop, reconciler: Reconciler) -> None:
    rows.order(1, updated_at=ago(minutes=14))
    rows.order(2, updated_at=ago(minutes=16))
    found = reconciler.compare()
    assert found.counts == counts(unsettled=1, missing=1)


def test_a_message_on_the_queue_is_waiting(shop: Shop, rows: MemoryShop, reconciler: Reconciler) -> None:
    for id in (1, 2, 3, 4):
        shop.publish(TOPIC_ORDER, rows.order(id))
    for id, status in enumerate((2, 3, 5, 4), start=1):
        shop.query("UPDATE {prefix}queue_message_status SET status = %s WHERE message_id = %s", (status, id))
    assert reconciler.compare().counts == counts(waiting=3, missing=1)


def test_an_error_is_failed_until_something_newer_is_delivered(
    rows: MemoryShop, reconciler: Reconciler, refused: set[str], deliver: Deliver
) -> None:
    refused.add("000000001")
    deliver(1)
    assert reconciler.verdict() is Verdict.FAILED
    refused.clear()
    deliver(1, grand_total=5.0)
    assert reconciler.verdict() is Verdict.COMPLETE
    rows.order(1, grand_total=6.0, updated_at=ago(minutes=30))
    assert reconciler.verdict() is Verdict.STALE, "the old failure is no longer its newest message"


def test_one_number_in_two_stores_is_ambiguous_and_never_published(
    shop: Shop, rows: MemoryShop, reconciler: Reconciler, deliver: Deliver
) -> None:
    deliver(1, label="000000007")
    rows.order(2, label="000000007", grand_total=9.0)
    assert reconciler.publish().counts == counts(ambiguous=2)
    assert len(shop.rows()) == 1


def test_what_makes_no_message_is_invalid_and_stops_nothing(
    shop: Shop, rows: MemoryShop, reconciler: Reconciler
) -> None:
    rows.order(1, items=[])
    rows.order(2)
    rows.order(3)
    rows.broken = {3}
    found = reconciler.publish()
    assert found.counts == counts(invalid=2, missing=1)
    assert found.named[Verdict.INVALID] == [("000000001", "order_without_items"), ("000000003", "internal_error")]
    assert (found.published, len(shop.rows())) == (1, 1)


def test_a_row_of_another_account_counts_as_absent(shop: Shop, reconciler: Reconciler, deliver: Deliver) -> None:
    deliver(1)
    reconciler.compare()
    found = reconciler.publish(destination="b" * 64)
    assert found.counts == counts(missing=1)
    assert '\\"is_update\\":false' in str(shop.body(2)), "this account has no create of it"


def test_what_tells_less_of_the_same_state_is_complete(
    shop: Shop, rows: MemoryShop, reconciler: Reconciler, consume: Callable[[], None]
) -> None:
    delivered = rows.order(1)
    shop.publish(TOPIC_ORDER, delivered)
    consume()
    rows.order(1, grand_total=8.0)
    rows.also[1] = (delivered,)
    assert reconciler.verdict() is Verdict.COMPLETE
    # Unless an older message came behind a newer one: it may have told what this one leaves out.
    shop.query("UPDATE {prefix}zithara_delivery SET stale = 1")
    assert reconciler.verdict() is Verdict.STALE
    shop.query("UPDATE {prefix}zithara_delivery SET stale = 0")
    # Unless it was published before what it leaves out was saved.
    rows.touch(1, ago(minutes=30))
    rows.also_since = ago(days=-1)
    assert reconciler.verdict() is Verdict.STALE
    shop.query("UPDATE {prefix}zithara_delivery SET refused = content, content = NULL")
    assert reconciler.verdict() is Verdict.REFUSED


def test_content_accepted_since_the_last_comparison_is_compared_again(
    shop: Shop, rows: MemoryShop, reconciler: Reconciler, consume: Callable[[], None], deliver: Deliver
) -> None:
    """An operator forces an old message after the rows were found equal: their time has not moved."""
    deliver(1)
    assert reconciler.verdict() is Verdict.COMPLETE
    shop.publish(TOPIC_ORDER, examples.order("000000001", grand_total=1.0, updated_at=rows.rows[1].updated_at))
    consume()
    assert reconciler.verdict() is Verdict.STALE


def test_a_stale_mark_makes_it_look_and_is_cleared_where_all_is_well(
    shop: Shop, rows: MemoryShop, reconciler: Reconciler, deliver: Deliver
) -> None:
    deliver(1)
    reconciler.compare()
    shop.query("UPDATE {prefix}zithara_delivery SET stale = 1")
    assert reconciler.verdict() is Verdict.COMPLETE
    assert rows.calls["build"] == 2
    assert shop.query("SELECT stale FROM {prefix}zithara_delivery") == [(0,)]


@pytest.mark.parametrize(
    ("began", "accepted", "verdict"),
    [
        (540, 3600, Verdict.UNSETTLED),  # the request may still arrive
        (540, 60, Verdict.UNSETTLED),
        (660, 3600, Verdict.STALE),  # nobody knows whether it did
        (660, 60, Verdict.COMPLETE),  # the state was accepted since
    ],
)
def test_a_request_without_an_answer_puts_in_doubt_what_was_accepted_before(
    shop: Shop, reconciler: Reconciler, began: int, accepted: int, verdict: Verdict, deliver: Deliver
) -> None:
    """Or what a PHP consumer delivered. Times: seconds ago."""
    deliver(1)
    reconciler.compare()
    shop.query(
        "UPDATE {prefix}zithara_delivery SET request = NULL, doubt_until = NOW(3) + INTERVAL %s SECOND, "
        "last_accepted_at = NOW(3) - INTERVAL %s SECOND",
        (DOUBT_SECONDS - began, accepted),
    )
    assert reconciler.verdict() is verdict


# ---------------------------------------------------------------- publish


def test_what_is_missing_or_stale_is_published_once_and_then_complete(
    rows: MemoryShop, reconciler: Reconciler, consume: Callable[[], None], api: FakeZithara, deliver: Deliver
) -> None:
    deliver(2)
    rows.order(1)
    rows.order(2, state="complete", status="complete")
    rows.order(3)
    api.forget_requests()
    found = reconciler.publish()
    assert (found.published, found.counts) == (3, counts(missing=2, stale=1))
    assert found.is_complete
    assert reconciler.publish().counts == counts(waiting=3), "a second run publishes nothing that is pending"
    consume()
    assert sorted(sent(api)) == [("PATCH", "000000002"), ("POST", "000000001"), ("POST", "000000003")]
    assert reconciler.compare().counts == counts(complete=3)


def test_the_oldest_goes_first_and_a_limit_is_kept(shop: Shop, rows: MemoryShop, reconciler: Reconciler) -> None:
    for id in range(40, 0, -1):
        rows.order(id)
    found = reconciler.publish(limit=20)
    assert found.published == 20 and not found.is_complete
    bodies = [str(shop.body(row.message_id)) for row in shop.rows()]
    assert [f"{id:09d}" in body for id, body in enumerate(bodies, start=1)] == [True] * 20


def test_it_stops_behind_the_bytes_that_it_may_publish(rows: MemoryShop, reconciler: Reconciler) -> None:
    for id in range(1, 21):
        rows.order(id)
    with reconciler.run() as run:
        found = run.publish(run.compare(Window()), max_bytes=1)
    assert (found.published, found.ended, found.is_complete) == (16, "many_bytes", False)


def test_a_stored_message_is_what_magento_would_store(shop: Shop, rows: MemoryShop, reconciler: Reconciler) -> None:
    state = rows.order(1, customer_firstname="Zoë/\x7f")
    reconciler.publish()
    shop.publish(TOPIC_ORDER, state)
    ours, magentos = (str(shop.body(row.message_id)) for row in shop.rows())
    assert json.loads(json.loads(ours)) == json.loads(json.loads(magentos))
    assert ours.isascii() and "/" not in ours.replace("\\/", "")


def test_what_the_shop_changes_before_the_commit_is_rolled_back(
    shop: Shop, rows: MemoryShop, reconciler: Reconciler
) -> None:
    rows.order(1)
    rows.order(2)

    def change(call: str) -> None:
        if call == "times" and shop.query("SELECT 1 FROM {prefix}queue_message_status") == []:
            seen = rows.calls["times"]
            if seen == 3:  # of the comparison, of the judging before the transaction, and this: after the INSERTs
                rows.touch(1, ago(minutes=1))

    rows.before = change
    found = reconciler.publish()
    assert found.published == 1
    [row] = shop.rows()
    assert "000000002" in str(shop.body(row.message_id))
    assert shop.query("SELECT group_key FROM {prefix}zithara_delivery WHERE reconcile_id > 0") == [("order:000000002",)]


def test_what_changes_while_it_is_read_is_unsettled(rows: MemoryShop, reconciler: Reconciler) -> None:
    rows.order(1)
    rows.before = lambda call: rows.touch(1, ago(minutes=1)) if call == "build" else None
    assert reconciler.verdict() is Verdict.UNSETTLED


def test_what_was_discarded_is_not_published_again(
    shop: Shop,
    rows: MemoryShop,
    reconciler: Reconciler,
    settings: Settings,
    everything: Selection,
    consume: Callable[[], None],
    refused: set[str],
    deliver: Deliver,
) -> None:
    def failed() -> list[int]:
        return failures.matching(reconciler.database, everything)

    shop.publish(TOPIC_ORDER, rows.order(1))
    shop.publish(TOPIC_ORDER, rows.order(1, grand_total=4.0))
    refused.add("000000001")
    consume()
    discarded = failed()
    operator.discard(
        reconciler.database,
        discarded,
        by="anna",
        note="test",
        audit=lambda lines: None,
        content=content_of(settings.zithara),
    )
    shop.query("DELETE FROM {prefix}queue_message")  # Magento's cleanup, a week later
    shop.query("DELETE FROM {prefix}queue_message_status")
    assert reconciler.publish().counts == counts(refused=1)
    refused.clear()
    deliver(1)
    assert reconciler.verdict() is Verdict.COMPLETE, "the present content was accepted"
    rows.order(1, grand_total=4.0, updated_at=ago(minutes=30))
    assert reconciler.verdict() is Verdict.REFUSED
    rows.order(1, grand_total=3.0, updated_at=ago(minutes=29))
    assert reconciler.verdict() is Verdict.STALE, "the shop has changed what was refused"


def test_what_is_retried_after_all_is_no_longer_refused(
    reconciler: Reconciler,
    settings: Settings,
    everything: Selection,
    consume: Callable[[], None],
    refused: set[str],
    deliver: Deliver,
) -> None:
    refused.add("000000001")
    deliver(1)
    ids = failures.matching(reconciler.database, everything)
    by: dict[str, Any] = {"by": "anna", "audit": lambda lines: None, "note": "test"}
    operator.discard(reconciler.database, ids, content=content_of(settings.zithara), **by)
    assert reconciler.verdict() is Verdict.REFUSED
    operator.retry(reconciler.database, ids, force=False, **by)
    assert reconciler.verdict() is Verdict.WAITING
    consume()
    assert reconciler.verdict() is Verdict.FAILED


def test_it_gives_way_to_what_the_shop_publishes(shop: Shop, rows: MemoryShop, reconciler: Reconciler) -> None:
    """With 16 NEW messages it publishes, with 17 it waits until some are taken."""
    for id in range(1, 4):
        rows.order(id)
    others = [shop.publish(TOPIC_ORDER, examples.order(f"9{id}")) for id in range(17)]
    waited: list[int] = []

    def sleep(seconds: float) -> None:
        waited.append(len(shop.rows()))
        if len(waited) == 3:
            shop.query("UPDATE {prefix}queue_message_status SET status = 3 WHERE id = %s", (others[0].relation_id,))

    assert reconciler.publish(sleep=sleep).published == 3
    assert waited == [17, 17, 17]


def test_it_gives_up_where_no_worker_takes_anything(shop: Shop, rows: MemoryShop, reconciler: Reconciler) -> None:
    rows.order(1)
    for id in range(17):
        shop.publish(TOPIC_ORDER, examples.order(f"9{id}"))
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += 10

    found = reconciler.publish(sleep=sleep, monotonic=lambda: clock[0])
    assert (found.ended, found.published, found.is_complete) == ("stuck", 0, False)
    assert clock[0] == pytest.approx(STUCK_SECONDS, abs=11)


def test_nothing_is_published_while_rabbitmq_holds_messages(
    shop: Shop, rows: MemoryShop, reconciler: Reconciler
) -> None:
    rows.order(1)
    asked: list[str] = []

    def in_rabbitmq(topic: str) -> int:
        asked.append(topic)
        return 3

    found = reconciler.publish(in_rabbitmq=in_rabbitmq)
    assert (found.in_rabbitmq, found.published, found.ended) == (3, 0, "in_rabbitmq")
    assert asked == [TOPIC_ORDER] and shop.rows() == []


def test_it_stops_when_asked_and_goes_on_later(shop: Shop, rows: MemoryShop, reconciler: Reconciler) -> None:
    for id in range(1, 41):
        rows.order(id)
    found = reconciler.publish(stopped=lambda: len(shop.rows()) >= 16)
    assert (found.published, found.ended, found.is_complete) == (16, "stopped", False)
    found = reconciler.publish(concurrency=100)
    assert (found.published, found.counts) == (24, counts(waiting=16, missing=24))


def test_a_comparison_that_was_stopped_leaves_the_last_result(rows: MemoryShop, reconciler: Reconciler) -> None:
    rows.order(1)
    reconciler.compare()
    rows.order(2)
    assert reconciler.compare(stopped=lambda: True).ended == "stopped"
    [kept] = read_results(reconciler.database)
    assert kept.finished_utc is None and kept.counts["missing"] == 1


def test_what_is_kept_counts_the_published_as_waiting(rows: MemoryShop, reconciler: Reconciler) -> None:
    for id in range(1, 4):
        rows.order(id)
    reconciler.publish(limit=2)
    [kept] = read_results(reconciler.database)
    assert (kept.counts["missing"], kept.counts["waiting"], kept.wrong) == (1, 2, 1)
    assert kept.judged_utc is not None


# ---------------------------------------------------------------- one at a time


def test_one_reconcile_of_a_kind_at_a_time(rows: MemoryShop, reconciler: Reconciler) -> None:
    second = reconciler.run(owner="b")
    with reconciler.run(), pytest.raises(AlreadyAtWork, match="another reconcile of orders is at work"), second:
        pass
    with reconciler.run(owner="b"):
        pass


def test_a_run_whose_lock_was_taken_publishes_nothing_more(
    shop: Shop, rows: MemoryShop, reconciler: Reconciler, database: Database
) -> None:
    """It stood still for longer than its lease, and another one began."""
    rows.order(1)

    def steal(call: str) -> None:
        if call == "build" and rows.calls["build"] == 2:
            shop.query("UPDATE {prefix}zithara_lock SET lease_until = NOW(3) - INTERVAL 1 SECOND")
            assert locks.take(database, "reconcile:orders", owner="b", lease_seconds=LEASE_SECONDS)

    rows.before = steal
    with pytest.raises(AlreadyAtWork, match="another reconcile of orders has begun"):
        reconciler.publish()
    assert shop.rows() == []
    assert shop.query("SELECT owner FROM {prefix}zithara_lock") == [("b",)], "it frees no lock of others"


def test_a_lost_connection_at_commit_leaves_nothing_half_done(
    shop: Shop, rows: MemoryShop, reconciler: Reconciler
) -> None:
    rows.order(1)

    def cut(call: str) -> None:
        if call == "times" and rows.calls["times"] == 3:
            for (id,) in shop.query("SELECT id FROM information_schema.processlist WHERE id <> CONNECTION_ID()"):
                if id:
                    shop.query("KILL %s", (id,))

    rows.before = cut
    with pytest.raises(DatabaseUnavailable):
        reconciler.publish()
    rows.before = lambda call: None
    shop.query("DELETE FROM {prefix}zithara_lock")
    assert shop.rows() == []
    assert reconciler.publish().published == 1


def test_what_was_published_before_an_error_is_known(shop: Shop, rows: MemoryShop, reconciler: Reconciler) -> None:
    for id in range(1, 21):
        rows.order(id)

    def fail(call: str) -> None:
        if call == "build" and len(shop.rows()) == 16:
            raise DatabaseUnavailable("gone")

    rows.before = fail
    with reconciler.run() as run:
        found = run.compare(Window())
        with pytest.raises(DatabaseUnavailable):
            run.publish(found)
        assert run.published == 16


# ---------------------------------------------------------------- resend


def test_resend_sends_everything_as_creates_and_goes_on_where_it_was_stopped(
    shop: Shop,
    rows: MemoryShop,
    reconciler: Reconciler,
    consume: Callable[[], None],
    api: FakeZithara,
    deliver: Deliver,
) -> None:
    deliver(*range(1, 41))
    assert reconciler.compare().counts == counts(complete=40)
    api.forget_requests()
    before = len(shop.rows())
    found = reconciler.publish(resend=True, stopped=lambda: len(shop.rows()) >= before + 16)
    assert (found.published, found.ended) == (16, "stopped")
    consume()
    reconciler.compare()  # a nightly one
    found = reconciler.publish(resend=True, concurrency=100)
    assert (found.published, found.counts) == (24, counts(complete=16, stale=24))
    consume()
    assert sorted(sent(api)) == [("POST", f"{id:09d}") for id in range(1, 41)], "each once, none skipped as unchanged"
    assert reconciler.compare().counts == counts(complete=40)
    assert reconciler.publish(resend=True, concurrency=100, limit=1).published == 1, "the next resend begins anew"
    consume()
    assert reconciler.publish(resend=True, concurrency=100, limit=1).published == 1, "and goes on behind its limit"
    shop.query("UPDATE {prefix}zithara_reconciliation SET result = JSON_SET(result, '$.resend_since', 1.0)")
    consume()
    assert reconciler.publish(resend=True, concurrency=100).published == 40, "but not after a long time"


def test_what_is_resent_is_sent_though_it_is_unchanged(
    shop: Shop, administrator: Database, settings: Settings, consume: Callable[[], None], api: FakeZithara
) -> None:
    rows = MemoryShop(topic=TOPIC_CART, entity="cart")
    rows.put(1, cart(10))
    shop.query("INSERT INTO {prefix}quote (entity_id) VALUES (1)")
    reconciler = Reconciler(administrator, rows, settings)
    shop.publish(TOPIC_CART, cart(10))
    consume()
    assert reconciler.publish(resend=True).published == 1
    consume()
    assert len(api.requests("/v1/cart")) == 2
    assert reconciler.verdict() is Verdict.COMPLETE


# ---------------------------------------------------------------- with live events


def cart(total: float) -> dict[str, Any]:
    return examples.cart("1", total_price=total)


def test_what_a_transaction_of_the_shop_publishes_late_is_not_taken_for_older(
    shop: Shop, administrator: Database, settings: Settings, consume: Callable[[], None], api: FakeZithara
) -> None:
    """A cart is saved in a transaction that stays open while reconcile publishes the state from before it."""
    rows = MemoryShop(topic=TOPIC_CART, entity="cart")
    rows.put(1, cart(10))
    shop.query("INSERT INTO {prefix}quote (entity_id) VALUES (1)")
    reconciler = Reconciler(administrator, rows, settings)
    with shop.transaction() as publisher:
        publisher.publish(TOPIC_CART, cart(20))
        assert reconciler.publish().published == 1
        consume()
    consume()
    rows.put(1, cart(20), updated_at=ago(minutes=16))
    assert [request.json["cart"]["total_price"] for request in api.requests()] == [10.0, 20.0]
    assert reconciler.verdict() is Verdict.COMPLETE


@pytest.mark.parametrize("delivered", [True, False])
def test_what_the_module_publishes_meanwhile_is_seen_and_what_a_worker_delivers(
    shop: Shop,
    rows: MemoryShop,
    reconciler: Reconciler,
    consume: Callable[[], None],
    api: FakeZithara,
    delivered: bool,
) -> None:
    """Between the first and the second pass. Another order is deleted meanwhile."""
    state = rows.order(1)
    rows.order(2)

    def publish(call: str) -> None:
        if call == "page" and rows.calls["page"] == 2:
            shop.publish(TOPIC_ORDER, state)
            del rows.rows[2], rows.states[2]
            if delivered:
                consume()

    rows.before = publish
    found = reconciler.publish()
    assert (found.counts, found.published, found.moved) == (counts(missing=2), 0, 2)
    consume()
    assert found.is_complete and len(api.requests("/v1/order")) == 1
    [kept] = read_results(reconciler.database)
    assert kept.wrong == 0 and kept.total == 2


def test_a_failing_api_leaves_failed_and_not_missing(
    rows: MemoryShop, reconciler: Reconciler, consume: Callable[[], None], refused: set[str]
) -> None:
    rows.order(1)
    refused.add("000000001")
    reconciler.publish()
    consume()
    assert reconciler.publish().counts == counts(failed=1)
    assert reconciler.publish(resend=True).published == 1


@pytest.mark.parametrize("limit", [None, 5])
def test_what_fails_before_it_is_published_does_not_count_as_moved(
    shop: Shop,
    rows: MemoryShop,
    reconciler: Reconciler,
    consume: Callable[[], None],
    refused: set[str],
    limit: int | None,
) -> None:
    state = rows.order(1)
    rows.order(2)
    refused.add("000000001")
    with reconciler.run() as run:
        found = run.compare(Window())
        shop.publish(TOPIC_ORDER, state)
        consume()
        found = run.publish(found, limit=limit)
    assert (found.published, found.moved, found.is_complete) == (1, 0, False)


def test_what_was_pending_when_the_queue_was_read_and_fails_before_it_is_judged_is_failed(
    shop: Shop, rows: MemoryShop, reconciler: Reconciler, consume: Callable[[], None], refused: set[str]
) -> None:
    for id in (1, 2):
        shop.publish(TOPIC_ORDER, rows.order(id))
    refused.update(("000000001", "000000002"))

    def fail(call: str) -> None:
        if rows.calls["page"] == 1:
            consume()
            rows.before = lambda call: None

    rows.before = fail
    with reconciler.run() as run:
        found = run.compare(Window())
        assert (found.counts, found.is_complete) == (counts(failed=2), False)
        shop.publish(TOPIC_ORDER, rows.states[2])
        assert run.compare(Window()).counts == counts(failed=1, waiting=1), "a newer message of one is on its way"


# ---------------------------------------------------------------- windows and pages


def test_a_window_is_kept(rows: MemoryShop, reconciler: Reconciler) -> None:
    for id in range(1, 5):
        rows.order(id, updated_at=ago(days=id))
    found = reconciler.compare(Window(since=ago(days=3, hours=1), until=ago(days=1, hours=1)))
    assert found.named == {Verdict.MISSING: [("000000002", ""), ("000000003", "")]}


def test_pages_are_read_until_the_last(rows: MemoryShop, reconciler: Reconciler) -> None:
    for id in range(1, 1203):
        rows.order(id)
    assert reconciler.compare().counts == counts(missing=1202)
    assert rows.calls["page"] == 3 and rows.calls["build"] == 3
    assert reconciler.compare(Window(since=ago(minutes=30))).total == 0
    assert rows.calls["page"] == 3 + 2, "where most lie outside of the window, the second page is a wide one"


def test_entities_with_many_parts_are_in_memory_a_few_at_a_time(rows: MemoryShop, reconciler: Reconciler) -> None:
    for id in range(1, 11):
        rows.order(id)
    rows.parts = PARTS // 3
    with reconciler.run() as run:
        assert run.compare(Window()).counts == counts(missing=10)
        before = rows.calls["build"]
        printed = run.messages()
        assert next(printed).entity.id == 1
        assert rows.calls["build"] == before + 3, "10 and 5 have too many, 3 have not"
        assert [each.entity.id for each in printed] == list(range(2, 11))
        assert rows.calls["build"] == before + 6, "what is too many is tried once"


def test_the_second_pass_finds_each_one_on_its_page(
    rows: MemoryShop, reconciler: Reconciler, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zithara_worker.completeness.reconcile.PAGE", 2)
    deliver(3, 4, 7)
    for id in (1, 2, 5, 6, 8, 9):
        rows.order(id)
    with reconciler.run() as run:
        found = run.compare(Window())
        del rows.rows[5]
        found = run.publish(found)
    assert (found.published, found.moved) == (5, 1)


# ---------------------------------------------------------------- pending messages


def test_pending_messages_are_read_in_slices_and_later_ones_are_found(
    shop: Shop, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zithara_worker.completeness.pending.SLICE", 3)
    monkeypatch.setattr("zithara_worker.completeness.pending._RUN", 2)
    for id in range(1, 9):
        shop.publish(TOPIC_ORDER, examples.order(str(id)))
    queue_id = shop.query("SELECT id FROM {prefix}queue WHERE name = 'zithara_order_queue'")[0][0]
    pending = PendingMessages(database, queue_id=queue_id)
    pending.refresh()
    assert [pending.newest(f"order:{id}") for id in range(1, 10)] == [1, 2, 3, 4, 5, 6, 7, 8, 0]
    with shop.transaction() as publisher:
        publisher.publish(TOPIC_ORDER, examples.order("late"))
        shop.publish(TOPIC_ORDER, examples.order("10"))
        pending.refresh()
        assert (pending.newest("order:10"), pending.newest("order:late")) == (10, 0)
    shop.publish(TOPIC_ORDER, examples.order("1"))
    pending.refresh()
    assert pending.newest("order:late") == 9, "committed late, with a lower id"
    pending.refresh()
    assert pending.newest("order:1") == 11, "its first message was read again since"


def test_a_run_can_be_stopped_while_it_reads_the_queue_and_keeps_its_lock_meanwhile(
    shop: Shop, database: Database, reconciler: Reconciler, rows: MemoryShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zithara_worker.completeness.pending.SLICE", 2)
    for id in range(1, 7):
        shop.publish(TOPIC_ORDER, examples.order(str(id)))
    shop.query("UPDATE {prefix}queue_message_status SET status = 4")
    called: list[int] = []
    pending = PendingMessages(database, queue_id=reconciler.queue.queue_id)
    assert pending.refresh(lambda: bool(called.append(1)) or True)
    assert len(called) == 3, "after each slice, though nothing in it is pending"
    rows.order(9)
    assert reconciler.compare(stopped=lambda: True).ended == "stopped"
    assert rows.calls["page"] == 0
    shop.query("UPDATE {prefix}queue_message_status SET status = 2")
    assert not pending.refresh(lambda: False)
    assert pending.newest("order:1") and not pending.newest("order:3")
    asked: list[int] = []

    def stopped() -> bool:
        """While the second pass reads on: it asks once before that."""
        asked.extend([1] * (rows.calls["page"] == 2))
        return len(asked) > 1

    found = reconciler.publish(stopped=stopped)
    assert (found.ended, found.published) == ("stopped", 0), "another message of it may be on the queue"
