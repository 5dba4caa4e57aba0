"""Messages that become visible behind the cursor: publishers take ids inside transactions that end later."""

from __future__ import annotations

from typing import Any

import pytest
from support.workers import Clock, MakeWorker, StepWorker, groups_of, pending

from zithara_worker.messages import OutcomeKind
from zithara_worker.processors import supersedes
from zithara_worker.queue.backlog import as_text
from zithara_worker.sandbox.publisher import Published
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER


def test_a_newer_message_of_its_group_does_not_pass_one_that_was_committed_late(
    shop: Shop, index: bool, worker: StepWorker
) -> None:
    """Both are visible at the same poll, but only the newer one lies in front of the cursor."""
    with shop.transaction() as checkout:
        late = checkout.publish_order("1")
        other = shop.publish_order("2")
        worker.poll()
        (claimed,) = worker.take(10)
        assert claimed.message_id == other.message_id
    newer = shop.publish_order("1", is_update=True)
    worker.poll()
    assert [message.message_id for message in worker.take(10)] == [late.message_id]
    assert newer.message_id not in worker.drain()


def test_a_worker_that_has_just_started_looks_back_as_well(shop: Shop, make_worker: MakeWorker) -> None:
    with shop.transaction() as checkout:
        late = checkout.publish_order("1")
        shop.publish_order("2")
        worker = make_worker()
        worker.deliver(worker.claim())  # a whole round of the sweep included
    newer = shop.publish_order("1", is_update=True)
    worker.poll()
    claimed = worker.take(10)
    assert [message.message_id for message in claimed] == [late.message_id]
    worker.settle(*((message, OutcomeKind.DELIVERED) for message in claimed))
    assert worker.drain() == [newer.message_id]


def waiting_update_and_late_create(shop: Shop, worker: StepWorker) -> tuple[int, int, int]:
    """An update waits an hour for its retry while the create of its order is committed, and a newer update follows."""
    with shop.transaction() as checkout:
        create = checkout.publish_order("1")
        update = shop.publish_order("1", is_update=True)
        worker.settle((worker.claim()[0], OutcomeKind.RETRY), delay=3600)
    newer = shop.publish_order("1", is_update=True)
    return create.message_id, update.message_id, newer.message_id


def test_an_older_message_that_appears_while_a_newer_one_waits_for_its_retry_goes_first(
    shop: Shop, worker: StepWorker
) -> None:
    create, update, newer = waiting_update_and_late_create(shop, worker)
    assert worker.claim() == [], "it finds the group taken"
    assert worker.drain() == [create, update, newer]
    assert groups_of(shop) == {}


def test_the_newer_one_keeps_its_place_whoever_delivers_the_older_one(
    shop: Shop, make_worker: MakeWorker, clock: Clock
) -> None:
    """The worker that made room dies with the older message in its hands."""
    create, update, newer = waiting_update_and_late_create(shop, first := make_worker())
    assert first.claim() == []
    assert [message.message_id for message in first.claim()] == [create]
    clock.pass_by(61)
    second = make_worker("worker-b")
    [message] = second.claim()
    assert message.message_id == create
    second.settle((message, OutcomeKind.FAILED))
    assert second.drain() == [update, newer]


def test_the_newer_one_is_the_head_again_when_the_older_one_is_gone(shop: Shop, worker: StepWorker) -> None:
    create, update, newer = waiting_update_and_late_create(shop, worker)
    assert worker.claim() == []
    worker.poll()
    shop.query("UPDATE {prefix}queue_message_status SET status = 4 WHERE message_id = %s", (create,))
    assert worker.claim() == []
    assert worker.drain() == [update, newer]


def late_snapshot(shop: Shop, make_worker: MakeWorker, **changes: Any) -> tuple[StepWorker, list[Published]]:
    """A customer whose newest message waits an hour for its retry, in the place of the one before it too. Now an older
    one is committed, and takes the first place of its group. The answer to the newest was lost: nothing older that it
    tells may be sent any more."""
    worker = make_worker(topic=TOPIC_CUSTOMER, supersedes=supersedes)
    with shop.transaction() as checkout:
        late = checkout.publish_customer(**changes)
        pair = [shop.publish_customer() for _ in range(2)]
        [message] = worker.claim()
        assert (message.message_id, message.supersedes) == (pair[1].message_id, pending(pair[0]))
        worker.settle((message, OutcomeKind.RETRY), delay=3600)
    assert worker.claim() == []
    return worker, [late, *pair]


def test_an_older_snapshot_that_appears_late_is_told_by_the_one_that_waits(shop: Shop, make_worker: MakeWorker) -> None:
    worker, (late, older, newest) = late_snapshot(shop, make_worker)
    [message] = worker.claim()
    assert (message.message_id, message.supersedes, message.behind) == (newest.message_id, pending(late, older), ())
    worker.deliver([message])
    assert shop.statuses() == [4, 4, 4]
    assert groups_of(shop) == {}


def test_a_late_message_that_no_newer_one_tells_goes_first_and_what_the_newest_tells_stays_unsent(
    shop: Shop, make_worker: MakeWorker
) -> None:
    address = {"custom_attributes": {"address_data": {"city": "Pune"}}}
    worker, (late, older, newest) = late_snapshot(shop, make_worker, **address)
    [message] = worker.claim()
    assert (message.message_id, message.supersedes, message.behind) == (late.message_id, (), pending(older, newest))
    worker.deliver([message])
    [message] = make_worker("worker-b", topic=TOPIC_CUSTOMER, supersedes=supersedes).claim()
    assert (message.message_id, message.supersedes, message.behind) == (newest.message_id, pending(older), ())


@pytest.mark.parametrize("status", [3, 4])
def test_a_late_message_is_sent_where_somebody_else_has_the_one_that_tells_it(
    shop: Shop, make_worker: MakeWorker, status: int
) -> None:
    worker, (late, older, newest) = late_snapshot(shop, make_worker)
    worker.look()
    shop.query("UPDATE {prefix}queue_message_status SET status = %s WHERE id = %s", (status, newest.relation_id))
    [message] = worker.take(1)
    assert (message.message_id, message.supersedes) == (older.message_id, pending(late))
    assert message.behind == pending(newest)


def test_the_newest_snapshot_stands_for_late_ones_and_for_those_that_only_the_groups_row_names(
    shop: Shop, coalescing: StepWorker
) -> None:
    """Another worker coalesced the first two snapshots into the last. This one read the queue while PHP held them."""
    *named, third, fourth, last = [shop.publish_cart("1") for _ in range(5)]
    shop.query(
        "UPDATE {prefix}queue_message_status SET status = 3 WHERE id IN %s", ([each.relation_id for each in named],)
    )
    coalescing.look()
    [(group, seen)] = coalescing.queue._reader.heads(1, ())
    coalescing.queue._backlog.put_back_heads()
    assert seen.id == third.relation_id
    shop.query("UPDATE {prefix}queue_message_status SET status = 2 WHERE status = 3")
    shop.query(
        "INSERT INTO {prefix}zithara_message_group (queue_id, group_key, id, message_id, supersedes, not_before) "
        "VALUES (%s, %s, %s, %s, %s, '2020-01-01')",
        (coalescing.queue_id, group, last.relation_id, last.message_id, as_text(pending(*named))),
    )
    coalescing.poll()
    [message] = coalescing.take(10)
    assert message.message_id == last.message_id
    assert message.supersedes == pending(*named, third, fourth)
    coalescing.deliver([message])
    assert coalescing.drain() == []
    assert shop.statuses() == [4] * 5


# --- what has ended elsewhere is not late ----------------------------------------------------------------------


def retry_of_a_snapshot(shop: Shop, worker: StepWorker, other: StepWorker, *, delay: float) -> list[Published]:
    """Three snapshots of one cart. `worker` knows all of them; `other` has delivered the first, and tried the last in
    the place of the second: that one waits for its retry."""
    shop.publish_cart("other")
    carts = [shop.publish_cart("1")]
    [mine] = worker.claim(1)
    other.deliver(other.claim())
    carts += [shop.publish_cart("1") for _ in range(2)]
    [message] = other.claim()
    assert (message.message_id, message.supersedes) == (carts[2].message_id, pending(carts[1]))
    other.settle((message, OutcomeKind.RETRY), delay=delay)
    worker.deliver([mine])
    return carts


def test_what_a_snapshot_stands_for_is_not_sent_behind_it_because_an_older_message_has_ended(
    shop: Shop, coalescing: StepWorker, other_coalescing: StepWorker
) -> None:
    """The answer to the newest was lost, so it may have been processed: what it replaces would go over it."""
    _, older, newest = retry_of_a_snapshot(shop, coalescing, other_coalescing, delay=0)
    [message] = coalescing.claim()
    assert (message.message_id, message.supersedes) == (newest.message_id, pending(older))
    coalescing.deliver([message])
    assert shop.statuses() == [4] * 4
    assert groups_of(shop) == {}


def test_a_worker_without_coalescing_learns_in_its_claim_that_an_older_message_has_ended(
    shop: Shop, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker("worker-a", topic=TOPIC_CART)
    other = make_worker("worker-b", topic=TOPIC_CART, supersedes=supersedes)
    _, older, newest = retry_of_a_snapshot(shop, worker, other, delay=0)
    monkeypatch.setattr(worker.queue, "recheck", lambda: None)
    worker.poll()
    [message] = worker.take(100)
    assert (message.message_id, message.supersedes) == (newest.message_id, pending(older))


def test_a_retry_is_not_due_earlier_because_an_older_message_has_ended(
    shop: Shop, coalescing: StepWorker, other_coalescing: StepWorker, clock: Clock
) -> None:
    *_, newest = retry_of_a_snapshot(shop, coalescing, other_coalescing, delay=10)
    for _ in range(3):
        assert coalescing.claim() == []
    assert groups_of(shop) == {"cart:1": (newest.relation_id, None)}
    clock.pass_by(11)
    assert [message.message_id for message in coalescing.claim()] == [newest.message_id]
