"""Who may be claimed, in which order, by whom; and what a claim does to the rows."""

from __future__ import annotations

import json
from threading import Thread

import pytest
from support.workers import (
    Clock,
    MakeShop,
    MakeWorker,
    StepWorker,
    failures_of,
    groups_of,
    locked_by_somebody,
    operator_retries,
    pending,
)

from zithara_worker.database.session import Database
from zithara_worker.errors import DatabaseUnavailable
from zithara_worker.logs.masking import masked
from zithara_worker.messages import Event, Message, OutcomeKind, Rejection
from zithara_worker.processors import supersedes
from zithara_worker.queue.statuses import Status
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CUSTOMER, TOPIC_ORDER

GUARANTEES = pytest.mark.parametrize("skip_locked", [True, False], ids=["skip-locked", "compare-and-set"])


def without_skip_locked(worker: StepWorker) -> StepWorker:
    """As on MariaDB 10.4 and 10.5, which do not know it."""
    assert worker.database.version, "the server has been asked already"
    worker.database._places["skip_locked"] = ""
    return worker


def ids(messages: list[Message]) -> list[int]:
    return [message.message_id for message in messages]


# --- one worker ------------------------------------------------------------------------------------------------


def test_a_claim_takes_the_first_message_of_every_group(shop: Shop, worker: StepWorker) -> None:
    first = {name: shop.publish_order(name) for name in "ABC"}
    for name in "CBA":
        shop.publish_order(name, is_update=True)
    messages = worker.claim()
    assert [(message.group_key, message.message_id) for message in messages] == [
        (f"order:{name}", published.message_id) for name, published in first.items()
    ]
    assert shop.statuses() == [3, 3, 3, 2, 2, 2]
    assert groups_of(shop) == {
        f"order:{name}": (published.relation_id, "worker-a") for name, published in first.items()
    }


def test_a_message_carries_all_that_settling_and_delivering_it_take(shop: Shop, worker: StepWorker) -> None:
    published = shop.publish_order("A")
    before = shop.row(published.relation_id)
    [message] = worker.claim()
    assert (message.id, message.message_id) == published
    assert (message.queue_name, message.topic) == ("zithara_order_queue", TOPIC_ORDER)
    assert message.key == f"zithara_order_queue-{published.message_id}"
    assert (message.status_before, message.updated_at_before) == (Status.NEW, before.updated_at)
    content = worker.contents[message.id]
    assert isinstance(content, Event)
    assert content.payload["order"]["increment_id"] == "A"


def test_messages_of_a_group_are_delivered_one_by_one_in_order(shop: Shop, worker: StepWorker) -> None:
    published = [shop.publish_order("A") for _ in range(5)]
    for expected in published:
        messages = worker.claim()
        assert ids(messages) == [expected.message_id]
        assert worker.claim() == [], "the group is in flight"
        worker.deliver(messages)
    assert shop.statuses() == [4] * 5


def test_a_claim_takes_no_more_than_asked(shop: Shop, worker: StepWorker) -> None:
    for number in range(5):
        shop.publish_order(str(number))
    assert len(worker.claim(3)) == 3
    assert worker.claim(0) == []
    assert shop.status_counts() == {3: 3, 2: 2}


def test_a_blocked_group_starves_nobody_behind_it(shop: Shop, worker: StepWorker) -> None:
    for _ in range(300):
        shop.publish_order("BIG")
    behind = [shop.publish_order(name) for name in "ABC"]
    [first] = worker.claim(1)
    assert first.group_key == "order:BIG"
    assert ids(worker.claim(10)) == [published.message_id for published in behind]


def test_a_retry_blocks_its_group_until_it_is_due_and_goes_first_then(
    shop: Shop, clock: Clock, worker: StepWorker
) -> None:
    published = [shop.publish_order("A") for _ in range(2)]
    worker.settle((worker.claim()[0], OutcomeKind.RETRY), delay=30)
    clock.pass_by(29)
    assert worker.claim() == []
    clock.pass_by(2)
    assert worker.drain() == [each.message_id for each in published]


def test_a_failed_message_blocks_its_group_no_longer(shop: Shop, worker: StepWorker) -> None:
    published = [shop.publish_order("A") for _ in range(2)]
    worker.settle((worker.claim()[0], OutcomeKind.FAILED))
    assert worker.drain() == [published[1].message_id]


def test_only_pending_messages_of_this_queue_are_taken(shop: Shop, worker: StepWorker) -> None:
    published = [shop.publish_order(str(status)) for status in Status]
    for status, each in zip(Status, published, strict=True):
        shop.query("UPDATE {prefix}queue_message_status SET status = %s WHERE id = %s", (int(status), each.relation_id))
    shop.publish_cart()
    assert [message.group_key for message in worker.claim()] == ["order:2", "order:5"]


def test_retries_without_a_group_row_are_found(shop: Shop, worker: StepWorker) -> None:
    """Left by Magento's cron, by PHP's requeue or by an operator: nothing but their status tells of them."""
    old, new = shop.publish_order("A"), shop.publish_order("B")
    assert worker.drain() == [old.message_id, new.message_id]
    shop.query(
        "UPDATE {prefix}queue_message_status SET status = 5, number_of_trials = 1 WHERE id = %s", (old.relation_id,)
    )
    [message] = worker.claim()
    assert (message.message_id, message.status_before, message.number_of_trials) == (old.message_id, 5, 1)


def test_a_late_committing_publishers_lower_id_is_found_by_a_sweep(shop: Shop, worker: StepWorker) -> None:
    with shop.transaction() as checkout:
        late = checkout.publish_order("LATE")
        early = shop.publish_order("EARLY")
        assert worker.drain() == [early.message_id]
    worker.poll()
    assert not worker.queue.may_have_work, "the cursor has passed it"
    worker.queue.sweep()
    assert ids(worker.take(10)) == [late.message_id]


def test_a_late_commit_does_not_let_a_newer_message_of_its_group_pass(shop: Shop, worker: StepWorker) -> None:
    """Both are visible when the worker looks next, and only the newer one lies before its cursor."""
    with shop.transaction() as checkout:
        late = checkout.publish_order("A")
        shop.publish_order("OTHER")
        worker.drain()
    newer = shop.publish_order("A", is_update=True)
    worker.poll()
    assert ids(worker.take(10)) == [late.message_id]
    assert newer.message_id not in ids(worker.claim())


def test_a_message_of_a_php_consumer_at_work_is_left_alone(shop: Shop, clock: Clock, worker: StepWorker) -> None:
    shop.publish_order("A")
    php = shop.php_consumer(TOPIC_ORDER)
    selected = php.select()
    assert selected is not None
    assert php.take(selected)
    clock.pass_by(86_000)
    assert worker.claim() == []
    assert shop.statuses() == [3]


def test_a_retry_that_php_has_taken_meanwhile_is_waited_for(shop: Shop, clock: Clock, worker: StepWorker) -> None:
    published = [shop.publish_order("A") for _ in range(2)]
    worker.settle((worker.claim()[0], OutcomeKind.RETRY), delay=1)
    php = shop.php_consumer(TOPIC_ORDER)
    selected = next(each for each in [php.select()] if each)
    if selected.message_id != published[0].message_id:
        shop.make_older(minutes=1, relation_ids=[published[0].relation_id])
        selected = next(each for each in [php.select()] if each)
    assert selected.message_id == published[0].message_id
    assert php.take(selected)
    clock.pass_by(2)
    assert worker.claim() == []
    php.complete(selected)
    clock.pass_by(6)
    assert worker.claim() == [], "the row of the group goes first"
    assert failures_of(shop) == {}, "what PHP completed has not failed in the end"
    assert worker.drain() == [published[1].message_id]
    assert groups_of(shop) == {}


def test_messages_that_the_cleanup_deleted_leave_nothing_behind(shop: Shop, clock: Clock, worker: StepWorker) -> None:
    shop.publish_order("A")
    shop.publish_order("B")
    worker.look()
    released = worker.take(1)
    worker.settle((released[0], OutcomeKind.RELEASED), delay=1)
    shop.make_older(minutes=20_000)
    assert shop.run_cleanup_cron()["deleted"] == 2
    clock.pass_by(2)
    assert worker.claim() == []
    worker.look()
    assert groups_of(shop) == {}
    assert len(worker.queue._backlog) == 0


def test_an_operators_retry_is_delivered_with_all_its_attempts_again(shop: Shop, worker: StepWorker) -> None:
    published = shop.publish_order("A")
    worker.settle((worker.claim()[0], OutcomeKind.FAILED))
    operator_retries(worker.database, published.relation_id)
    [message] = worker.claim()
    assert (message.message_id, message.number_of_trials) == (published.message_id, 0)
    assert message.retries == 1, "sent under a key of its own, which no receiver takes for a repetition"


@pytest.mark.parametrize("body", ["", None, "{", '"{\\"order\\": []}"', "[]", '"x"', "\N{SNOWMAN}"])
def test_a_body_that_is_no_event_is_claimed_with_its_rejection(
    shop: Shop, worker: StepWorker, body: str | None
) -> None:
    published = shop.publish_body(TOPIC_ORDER, body)
    [message] = worker.claim()
    assert message.group_key == f"message:{published.message_id}"
    content = worker.contents[message.id]
    assert isinstance(content, Rejection) or content.payload == {"order": []}


def test_a_body_larger_than_the_servers_packet_is_rejected_and_the_others_go_on(shop: Shop, worker: StepWorker) -> None:
    huge = shop.publish_body(TOPIC_ORDER, json.dumps("x" * 2_000_000))
    shop.publish_order("A")
    worker.look()
    worker.database.max_allowed_packet = 1_500_000
    [rejected], [good] = worker.claim(), worker.claim()
    content = worker.contents[rejected.id]
    assert isinstance(content, Rejection)
    assert (rejected.message_id, content.code) == (huge.message_id, "body_too_large")
    assert "1.9 MiB and the server's max_allowed_packet is 1.4" in content.detail
    assert masked(content.detail) == content.detail
    assert isinstance(worker.contents[good.id], Event)


def test_large_bodies_that_the_server_can_send_arrive_whole(shop: Shop, worker: StepWorker) -> None:
    shop.publish_order("A", note="x" * 3_000_000)
    [message] = worker.claim()
    content = worker.contents[message.id]
    assert isinstance(content, Event)
    assert len(content.payload["order"]["note"]) == 3_000_000


def test_everything_works_under_a_table_prefix(make_shop: MakeShop, make_worker: MakeWorker) -> None:
    shop = make_shop(prefix="m2_")
    worker = make_worker(on=shop)
    published = [shop.publish_order("A") for _ in range(2)]
    worker.settle((worker.claim()[0], OutcomeKind.RETRY))
    assert worker.drain() == [each.message_id for each in published]
    assert groups_of(shop) == {}


# --- several workers -------------------------------------------------------------------------------------------


@GUARANTEES
def test_two_workers_never_hold_one_group(shop: Shop, worker: StepWorker, other: StepWorker, skip_locked: bool) -> None:
    if not skip_locked:
        without_skip_locked(worker), without_skip_locked(other)
    for number in range(40):
        shop.publish_order(f"N{number % 10}")
    mine, theirs = worker.claim(6), other.claim(6)
    assert len(mine) == 6
    assert len(theirs) == 4
    assert not {message.group_key for message in mine} & {message.group_key for message in theirs}
    other.deliver(theirs)
    worker.deliver(mine)
    worker.drain()
    assert shop.statuses() == [4] * 40


@GUARANTEES
def test_workers_that_compete_at_the_same_time_take_everything_once_and_in_order(
    shop: Shop, make_worker: MakeWorker, skip_locked: bool
) -> None:
    for number in range(150):
        shop.publish_order(f"N{number % 20}")
    workers = [make_worker(f"worker-{number}") for number in range(3)]
    delivered: list[Message] = []
    failures: list[BaseException] = []

    def work(one: StepWorker) -> None:
        try:
            while len(delivered) < 150:
                messages = one.claim(7)
                # Recorded while the groups are held: the order here is the order of delivery.
                delivered.extend(messages)
                one.deliver(messages)
        except BaseException as error:
            failures.append(error)
            raise

    for one in workers:
        if not skip_locked:
            without_skip_locked(one)
    threads = [Thread(target=work, args=(one,)) for one in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert len(delivered) == len({message.id for message in delivered}) == 150
    by_group: dict[str, list[int]] = {}
    for message in delivered:
        by_group.setdefault(message.group_key, []).append(message.message_id)
    assert all(order == sorted(order) for order in by_group.values())
    assert shop.statuses() == [4] * 150
    assert groups_of(shop) == {}


@GUARANTEES
def test_a_head_that_another_worker_was_faster_with_costs_nothing_but_a_look(
    shop: Shop, worker: StepWorker, other: StepWorker, skip_locked: bool
) -> None:
    if not skip_locked:
        without_skip_locked(worker)
    published = [shop.publish_order("A") for _ in range(2)]
    worker.look()
    worker.queue._reader.heads(1, ())  # seen, not yet claimed
    worker.queue._backlog.put_back_heads()
    theirs = other.claim()
    assert worker.take(10) == []
    other.deliver(theirs)
    assert worker.drain() == [published[1].message_id]


@pytest.mark.assumes_skip_locked
def test_a_row_that_somebody_holds_locked_is_passed_by_and_found_again(
    shop: Shop, clock: Clock, worker: StepWorker
) -> None:
    locked, free = shop.publish_order("A"), shop.publish_order("B")
    with locked_by_somebody(shop, locked.relation_id):
        assert ids(worker.claim()) == [free.message_id]
    clock.pass_by(1)
    assert ids(worker.claim()) == [locked.message_id]


@pytest.mark.assumes_skip_locked
def test_a_locked_head_does_not_keep_the_claims_that_follow_from_other_groups(shop: Shop, worker: StepWorker) -> None:
    locked, free = shop.publish_order("A"), shop.publish_order("B")
    worker.look()
    with locked_by_somebody(shop, locked.relation_id):
        assert worker.take(1) == []
        assert worker.queue.made_progress
        assert ids(worker.take(1)) == [free.message_id]


def test_a_claim_that_failed_offers_its_heads_again(
    shop: Shop, worker: StepWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = shop.publish_order("A")
    worker.look()
    rows = worker.database.rows

    def fail(name: str, **values: object) -> object:
        if name == "claim_lock":
            raise DatabaseUnavailable("the server does not answer")
        return rows(name, **values)

    with monkeypatch.context() as failing:
        failing.setattr(worker.database, "rows", fail)
        with pytest.raises(DatabaseUnavailable):
            worker.queue.claim(10)
    assert ids([message for message, _ in worker.queue.claim(10)]) == [published.message_id]


def test_a_message_that_got_the_id_of_one_in_hand_waits_until_that_one_is_settled(
    shop: Shop, clock: Clock, worker: StepWorker
) -> None:
    """A restore while the session lives on: ids begin again."""
    first, second = shop.publish_order("A"), shop.publish_order("B")
    [message] = worker.claim(1)
    assert message.id == first.relation_id
    body = "(SELECT body FROM (SELECT body FROM {prefix}queue_message WHERE id = %s) AS other)"
    shop.query(
        "UPDATE {prefix}queue_message SET body = " + body + " WHERE id = %s", (second.message_id, first.message_id)
    )
    shop.query("UPDATE {prefix}queue_message_status SET status = 2 WHERE id = %s", (first.relation_id,))
    shop.query("DELETE FROM {prefix}zithara_message_group")
    shop.query("UPDATE {prefix}queue_message_status SET status = 4 WHERE id = %s", (second.relation_id,))
    assert worker.claim() == []
    assert shop.row(first.relation_id).status == Status.NEW
    worker.deliver([message])
    clock.pass_by(1)
    [again] = worker.claim()
    assert (again.id, again.group_key) == (first.relation_id, "order:B")


def test_without_skip_locked_a_locked_row_is_waited_for_and_given_up_in_time(shop: Shop, worker: StepWorker) -> None:
    without_skip_locked(worker)
    worker.database.run_script(["SET SESSION innodb_lock_wait_timeout = 1"])
    locked = shop.publish_order("A")
    tries: list[float] = []
    worker.database._sleep = tries.append
    with locked_by_somebody(shop, locked.relation_id), pytest.raises(DatabaseUnavailable):
        worker.database.again_on_contention(lambda: worker.claim(), tries=1)
    assert tries, "a lock wait timeout is tried again"
    assert ids(worker.claim()) == [locked.message_id]


def test_a_worker_that_found_groups_held_looks_before_it_tries_the_next(
    shop: Shop, worker: StepWorker, other: StepWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        shop.publish_order(f"held-{number}")
    other.claim(20)
    for number in range(20):
        shop.publish_order(f"held-{number}", is_update=True)
    free = [shop.publish_order(f"free-{number}").message_id for number in range(10)]
    asked: list[str] = []
    rows = worker.database.rows
    monkeypatch.setattr(worker.database, "rows", lambda name, **values: asked.append(name) or rows(name, **values))
    worker.look()

    assert worker.take(10) == [] and "groups_busy" not in asked and "claim_lock" in asked
    asked.clear()
    assert ids(worker.take(10)) == free and "groups_busy" in asked


# --- coalescing ------------------------------------------------------------------------------------------------


def address_saved(customer_id: str = "42") -> dict[str, object]:
    return {
        "platform_customer_id": customer_id,
        "custom_attributes": {
            "mobilenumber": "98450 12345",
            "loyalty_tier": "silver",
            "address_data": {"country_id": "IN"},
        },
    }


def test_orders_are_never_coalesced_unless_told(shop: Shop, worker: StepWorker) -> None:
    published = [shop.publish_order("A") for _ in range(3)]
    assert worker.drain() == [each.message_id for each in published]


def test_a_newer_customer_swallows_no_address_of_an_older_message(shop: Shop, make_worker: MakeWorker) -> None:
    worker = make_worker(topic=TOPIC_CUSTOMER, supersedes=supersedes)
    saved = shop.publish_customer()
    address = shop.publish_customer(**address_saved())
    again = [shop.publish_customer() for _ in range(2)]
    [message] = worker.claim()
    assert (message.message_id, message.supersedes) == (address.message_id, pending(saved))
    worker.deliver([message])
    [message] = worker.claim()
    assert (message.message_id, message.supersedes) == (again[1].message_id, pending(again[0]))
    worker.deliver([message])
    assert shop.statuses() == [4, 4, 4, 4]


def test_a_newer_snapshot_takes_the_place_of_one_that_waits_for_its_retry(
    shop: Shop, clock: Clock, coalescing: StepWorker
) -> None:
    # In a shop the ids of messages and those of their places on a queue differ.
    shop.query("ALTER TABLE {prefix}queue_message_status AUTO_INCREMENT = 1000")
    carts = [shop.publish_cart("7") for _ in range(2)]
    coalescing.settle((coalescing.claim()[0], OutcomeKind.RETRY), delay=10)
    carts.append(shop.publish_cart("7"))
    assert coalescing.claim() == []
    clock.pass_by(11)
    [message] = coalescing.claim()
    assert message.message_id == carts[2].message_id
    assert message.supersedes == pending(*carts[:2])
    coalescing.deliver([message])
    assert shop.statuses() == [4, 4, 4]
    assert groups_of(shop) == {}


def test_a_waiting_message_that_the_newer_one_does_not_replace_goes_first(
    shop: Shop, clock: Clock, make_worker: MakeWorker
) -> None:
    worker = make_worker(topic=TOPIC_CUSTOMER, supersedes=supersedes)
    address = shop.publish_customer(**address_saved())
    worker.settle((worker.claim()[0], OutcomeKind.RETRY), delay=10)
    newer = shop.publish_customer()
    clock.pass_by(11)
    assert worker.drain() == [address.message_id, newer.message_id]


def test_nothing_newer_joins_a_message_that_is_in_flight(shop: Shop, coalescing: StepWorker) -> None:
    shop.publish_cart("7")
    [message] = coalescing.claim()
    newer = shop.publish_cart("7")
    assert coalescing.claim() == []
    coalescing.deliver([message])
    assert shop.statuses() == [4, 2]
    assert coalescing.drain() == [newer.message_id]


def test_a_snapshot_that_php_finished_meanwhile_does_not_push_the_waiting_one_out_of_line(
    shop: Shop, clock: Clock, coalescing: StepWorker
) -> None:
    first = shop.publish_cart("7")
    coalescing.settle((coalescing.claim()[0], OutcomeKind.RETRY), delay=10)
    second = shop.publish_cart("7")
    assert coalescing.claim() == [], "it has been seen, and its group waits"
    shop.query("UPDATE {prefix}queue_message_status SET status = 4 WHERE id = %s", (second.relation_id,))
    clock.pass_by(11)
    assert coalescing.claim() == []
    assert groups_of(shop) == {"cart:7": (first.relation_id, None)}
    assert ids(coalescing.claim()) == [first.message_id]


@pytest.mark.parametrize("way", ["retry", "released", "lease lost", "commit in doubt", "new session"])
def test_however_a_group_goes_on_the_newest_snapshot_stands_for_the_same_messages(
    shop: Shop, clock: Clock, coalescing: StepWorker, other_coalescing: StepWorker, way: str
) -> None:
    """It may have been processed, so nothing that it stands for may be sent any more, by no worker."""
    *older, newest = [shop.publish_cart("7") for _ in range(3)]
    [message] = coalescing.claim()
    if way == "lease lost":
        clock.pass_by(61)
    elif way == "commit in doubt":
        coalescing.held.forget([message])
        coalescing.renew()
    else:
        coalescing.settle((message, OutcomeKind.RELEASED if way == "released" else OutcomeKind.RETRY))
    if way == "new session":
        coalescing.database.close()
        other_coalescing = coalescing
    [again] = other_coalescing.claim()
    assert (again.message_id, again.supersedes) == (newest.message_id, pending(*older))
    other_coalescing.deliver([again])
    assert shop.statuses() == [4, 4, 4]
    assert groups_of(shop) == {}


def test_a_session_of_the_least_privileged_user_is_enough(database: Database) -> None:
    with pytest.raises(Exception, match="denied"):
        database.run_script(["DELETE FROM queue_message_status"])
