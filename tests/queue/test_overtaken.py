"""No message that has failed is sent after newer data of its group, unless an operator forces it."""

from __future__ import annotations

from typing import Any

import pytest
from support.workers import MakeWorker, StepWorker, failures_of, groups_of, operator_retries

from zithara_worker import reasons
from zithara_worker.messages import Message, OutcomeKind, Pending, Rejection
from zithara_worker.queue import failures, operator
from zithara_worker.queue.statuses import Status
from zithara_worker.sandbox.shop import Shop


def fail(worker: StepWorker, *, times: int = 1) -> None:
    """The next messages end in ERROR."""
    for _ in range(times):
        [message] = worker.claim()
        worker.settle((message, OutcomeKind.FAILED))


def php_completes(shop: Shop, relation_id: int) -> None:
    shop.query("UPDATE {prefix}queue_message_status SET status = 4 WHERE id = %s", (relation_id,))


def free_group(shop: Shop) -> None:
    """What no statement of this version does: the group is free while a message of it is put back."""
    shop.query("DELETE FROM {prefix}zithara_message_group")


def refusal(worker: StepWorker, message: Message) -> Rejection:
    content = worker.contents[message.id]
    assert isinstance(content, Rejection)
    return content


def refuse(worker: StepWorker, message: Message) -> None:
    """What the loop does with a message that the claim refuses."""
    content = refusal(worker, message)
    worker.finish(message, OutcomeKind.FAILED, reason=content.code, detail=content.detail)


def overtaken_in_the_queue(shop: Shop, worker: StepWorker) -> Message:
    """A message that an operator has put back without --force, and that a newer one has passed; claimed again."""
    old = shop.publish_order("A")
    fail(worker)
    operator_retries(worker.database, old.relation_id, force=False)
    free_group(shop)
    shop.query("UPDATE {prefix}queue_message_status SET status = 7 WHERE id = %s", (old.relation_id,))
    new = shop.publish_order("A")
    assert worker.drain() == [new.message_id]
    shop.query("UPDATE {prefix}queue_message_status SET status = 5 WHERE id = %s", (old.relation_id,))
    [message] = worker.claim()
    assert message.id == old.relation_id
    return message


def test_retried_messages_go_before_a_newer_one_though_php_completed_the_first_of_them(
    shop: Shop, worker: StepWorker, other: StepWorker
) -> None:
    """Two are put back: the first is the head, and PHP completes it. `other` knows the newest message only."""
    first, second = shop.publish_order("A"), shop.publish_order("A")
    fail(worker, times=2)
    third = shop.publish_order("A")
    other.look()
    done = operator_retries(worker.database, first.relation_id, second.relation_id, force=False)
    assert done.retried == (first.message_id, second.message_id)
    php_completes(shop, first.relation_id)

    other.poll()
    assert other.take(1) == [], "its head is gone"
    assert groups_of(shop) == {"order:A": (second.relation_id, None)}
    delivered = []
    for _ in range(2):
        other.poll()
        [message] = other.take(1)
        other.deliver([message])
        delivered.append(message.message_id)

    assert delivered == [second.message_id, third.message_id]
    assert shop.statuses() == [Status.COMPLETE] * 3
    assert failures_of(shop) == {} and groups_of(shop) == {}


@pytest.mark.parametrize("failed_before", [True, False])
def test_a_head_that_php_rejected_and_an_operator_discarded_can_be_taken_back(
    shop: Shop, worker: StepWorker, failed_before: bool
) -> None:
    """The worker finds its head complete; it was not delivered all the same."""
    head = shop.publish_order("A")
    [message] = worker.claim()
    worker.settle((message, OutcomeKind.RETRY if failed_before else OutcomeKind.RELEASED))
    shop.query("UPDATE {prefix}queue_message_status SET status = 6")  # PHP rejects it
    given: dict[str, Any] = {"audit": lambda lines: None, "content": lambda topic, body: ""}
    discarded = operator.discard(worker.database, [head.relation_id], by="anna", note="x", **given)
    assert discarded.discarded == (head.message_id,)
    worker.poll()
    assert worker.take(1) == [] and groups_of(shop) == {}
    assert operator_retries(worker.database, head.relation_id, force=False).retried == (head.message_id,)
    assert worker.drain() == [head.message_id] and failures_of(shop) == {}


def test_the_settle_of_a_retried_message_makes_the_next_retried_one_the_head(shop: Shop, worker: StepWorker) -> None:
    published = [shop.publish_order("A") for _ in range(3)]
    fail(worker, times=2)
    operator_retries(worker.database, *(each.relation_id for each in published[:2]), force=False)
    worker.deliver(worker.claim())
    assert groups_of(shop) == {"order:A": (published[1].relation_id, None)}


@pytest.mark.parametrize(("gone", "named", "left"), [(0, 2, [1, 2]), (1, 0, [0, 2])])
def test_a_head_that_is_gone_is_followed_by_the_oldest_of_what_its_row_names_and_what_was_retried(
    shop: Shop, worker: StepWorker, other: StepWorker, gone: int, named: int, left: list[int]
) -> None:
    """`named`: a newer one that let the head go first, or an older snapshot that would have completed with it."""
    published = [shop.publish_order("A") for _ in range(3)]
    shop.query("UPDATE {prefix}queue_message_status SET status = 7 WHERE id = %s", (published[named].relation_id,))
    fail(worker, times=2)
    retried = [each.relation_id for each in published if each is not published[named]]
    operator_retries(worker.database, *retried, force=False)
    shop.query("UPDATE {prefix}queue_message_status SET status = 2 WHERE status = 7")
    shop.query(
        "UPDATE {prefix}zithara_message_group SET supersedes = %s",
        (f"{published[named].relation_id}:{published[named].message_id}",),
    )
    assert groups_of(shop) == {"order:A": (published[gone].relation_id, None)}
    php_completes(shop, published[gone].relation_id)

    other.poll()
    assert other.take(1) == []
    assert other.drain() == [published[each].message_id for each in left]


@pytest.mark.assumes_skip_locked
def test_a_group_row_that_somebody_has_locked_is_left_alone(shop: Shop, worker: StepWorker) -> None:
    """It may be an operator's retry, which is about to put another message there."""
    gone = shop.publish_order("A")
    [message] = worker.claim()
    worker.settle((message, OutcomeKind.RETRY))
    php_completes(shop, gone.relation_id)
    with shop.connect(autocommit=False) as operator, operator.cursor() as cursor:
        cursor.execute(f"SELECT 1 FROM {shop.prefix}zithara_message_group FOR UPDATE")
        worker.poll()
        assert worker.take(1) == []
        assert groups_of(shop) == {"order:A": (gone.relation_id, None)}
    worker.poll()
    assert worker.take(1) == [] and groups_of(shop) == {}


def test_a_message_that_newer_data_has_passed_is_refused_with_the_remedy(shop: Shop, worker: StepWorker) -> None:
    message = overtaken_in_the_queue(shop, worker)

    assert refusal(worker, message).code == reasons.NEWER_DELIVERED
    assert f"failed retry {message.message_id} --force" in refusal(worker, message).detail
    refuse(worker, message)

    assert shop.row(message.id).status == Status.ERROR
    assert failures_of(shop) == {message.id: (0, reasons.NEWER_DELIVERED, 1)}, "no attempt is counted"
    assert groups_of(shop) == {}
    assert worker.claim() == []


def test_a_refused_message_hands_its_group_on(shop: Shop, worker: StepWorker) -> None:
    message = overtaken_in_the_queue(shop, worker)
    newest = shop.publish_order("A")
    worker.look()
    refuse(worker, message)
    assert worker.drain() == [newest.message_id]


def test_a_message_that_newer_data_passes_while_it_is_pending_is_refused_at_once(
    shop: Shop, worker: StepWorker, other: StepWorker
) -> None:
    """It becomes the head when the newer one is settled, so that its operator learns of it without a sweep."""
    old = shop.publish_order("A")
    fail(worker)
    shop.publish_order("A")
    [newer] = worker.claim()
    shop.query("UPDATE {prefix}queue_message_status SET status = 5 WHERE id = %s", (old.relation_id,))
    worker.deliver([newer])
    other.poll()
    [message] = other.take(1)
    assert message.id == old.relation_id
    assert refusal(other, message).code == reasons.NEWER_DELIVERED


def test_only_force_takes_a_refused_message_back(shop: Shop, worker: StepWorker) -> None:
    message = overtaken_in_the_queue(shop, worker)
    refuse(worker, message)
    done = operator_retries(worker.database, message.id, force=False)
    assert (done.retried, done.overtaken) == ((), (message.message_id,))
    assert operator_retries(worker.database, message.id, force=True).retried == (message.message_id,)
    [again] = worker.claim()
    assert not worker.rejects(again)
    worker.deliver([again])
    assert failures_of(shop) == {}


@pytest.mark.parametrize("newer", [1, 2])
def test_a_forced_retry_is_sent_though_newer_messages_are_delivered_first(
    shop: Shop, worker: StepWorker, newer: int
) -> None:
    old = shop.publish_order("A")
    fail(worker)
    for _ in range(newer):
        shop.publish_order("A")
    [passing] = worker.claim()
    assert operator_retries(worker.database, old.relation_id, force=True).retried == (old.message_id,)
    worker.deliver([passing])
    assert failures_of(shop)[old.relation_id][2] == 3
    assert worker.drain()[0] == old.message_id
    assert failures_of(shop) == {}


def test_a_forced_message_of_which_no_newer_one_was_delivered_is_not_called_overtaken(
    shop: Shop, worker: StepWorker
) -> None:
    """--force holds for its own retry: what fails again is judged by what was delivered."""
    old = shop.publish_order("A")
    fail(worker)
    operator_retries(worker.database, old.relation_id, force=True)
    fail(worker)
    assert failures_of(shop)[old.relation_id][2] == 2
    [shown] = failures.by_ids(worker.database, [old.relation_id])
    assert not shown.newer_delivered
    done = operator_retries(worker.database, old.relation_id, force=False)
    assert (done.retried, done.overtaken) == ((old.message_id,), ())
    assert failures_of(shop)[old.relation_id][2] == 0, "this retry was not forced"


def test_a_snapshot_that_newer_data_has_passed_is_still_completed_by_a_newer_snapshot(
    shop: Shop, make_worker: MakeWorker
) -> None:
    worker = make_worker("worker-c", supersedes=lambda newer, older: True)
    message = overtaken_in_the_queue(shop, worker)
    newest = shop.publish_order("A")
    assert worker.claim() == [], "its group is in hand"
    worker.settle((message, OutcomeKind.RELEASED))
    [together] = worker.claim()
    assert (together.message_id, together.supersedes) == (
        newest.message_id,
        (Pending(message.message_id, message.id),),
    )
    assert not worker.rejects(together)
    worker.deliver([together])
    assert shop.statuses() == [Status.COMPLETE] * 3 and failures_of(shop) == {}


def test_a_failure_that_another_message_left_under_the_same_id_holds_up_nobody(shop: Shop, worker: StepWorker) -> None:
    """Ids begin again, as after a restore, and Magento's cron puts back what a PHP consumer had."""
    shop.publish_order("A")
    fail(worker)
    shop.query("UPDATE {prefix}zithara_delivery_failure SET newer_delivered = 1")
    for table in ("queue_message_status", "queue_message"):
        shop.query(f"DELETE FROM {{prefix}}{table}")
        shop.query(f"ALTER TABLE {{prefix}}{table} AUTO_INCREMENT = 1")
    other = shop.publish_order("B")
    assert other.relation_id in failures_of(shop)
    shop.query("UPDATE {prefix}queue_message_status SET status = 5, number_of_trials = 1")
    [message] = worker.claim()
    assert (message.attempts, worker.rejects(message)) == (0, False)
    assert failures_of(shop) == {}
