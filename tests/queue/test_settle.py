"""How a claim ends: every edge of the table, none beside it, and nothing at all once the lease is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.workers import (
    LEASE_SECONDS,
    Clock,
    MakeWorker,
    StepWorker,
    failures_of,
    groups_of,
    operator_retries,
    pending,
)

from zithara_worker.errors import DatabaseUnavailable
from zithara_worker.messages import Message, Outcome, OutcomeKind
from zithara_worker.queue.settle import Settlement, message_code
from zithara_worker.queue.statuses import EDGES, Status
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER, TOPIC_TABLE

ORDER_CONSUMER = TOPIC_TABLE[TOPIC_ORDER].php_consumer


def lock_codes(shop: Shop) -> set[str]:
    return {code for (code,) in shop.query("SELECT message_code FROM {prefix}queue_lock")}


def set_status(shop: Shop, relation_id: int, status: int, trials: int = 0) -> None:
    shop.query(
        "UPDATE {prefix}queue_message_status SET status = %s, number_of_trials = %s WHERE id = %s",
        (status, trials, relation_id),
    )


@pytest.mark.parametrize("kind", EDGES)
@pytest.mark.parametrize(("before", "trials"), [(Status.NEW, 0), (Status.RETRY_REQUIRED, 2)])
def test_every_edge_leads_where_the_table_says(
    shop: Shop, worker: StepWorker, kind: OutcomeKind, before: Status, trials: int
) -> None:
    published = shop.publish_order("A")
    set_status(shop, published.relation_id, before, trials)
    shop.make_older(minutes=3)
    was = shop.row(published.relation_id)
    [message] = worker.claim()
    assert shop.row(published.relation_id).status == Status.IN_PROGRESS

    settled = worker.settle((message, kind), delay=7.0)

    edge, now = EDGES[kind], shop.row(published.relation_id)
    assert [each.message for each in settled.done] == [message]
    assert now.status == (before if edge.to is None else edge.to)
    assert now.number_of_trials == trials + edge.trials
    assert (now.updated_at == was.updated_at) == (kind is OutcomeKind.RELEASED)
    assert groups_of(shop) == ({"order:A": (message.id, None)} if edge.keeps_group else {})


def test_the_table_has_the_edges_of_the_protocol_and_no_others() -> None:
    assert {kind: (edge.to, edge.trials, edge.keeps_group) for kind, edge in EDGES.items()} == {
        OutcomeKind.DELIVERED: (Status.COMPLETE, 0, False),
        OutcomeKind.SKIPPED: (Status.COMPLETE, 0, False),
        OutcomeKind.RETRY: (Status.RETRY_REQUIRED, 1, True),
        OutcomeKind.FAILED: (Status.ERROR, 1, False),
        OutcomeKind.RELEASED: (None, 0, True),
    }
    assert set(OutcomeKind) - set(EDGES) == {OutcomeKind.LEASE_LOST}


@pytest.mark.parametrize("kind", EDGES)
@pytest.mark.parametrize("status", sorted(set(Status) - {Status.IN_PROGRESS}))
def test_no_edge_begins_anywhere_but_in_progress(
    shop: Shop, worker: StepWorker, kind: OutcomeKind, status: Status, message: Message
) -> None:
    set_status(shop, message.id, status)
    before = shop.row(message.id)

    settled = worker.settle((message, kind))

    assert (settled.done, settled.lost) == ([], [message])
    assert shop.row(message.id) == before
    assert failures_of(shop) == {}
    assert lock_codes(shop) == set()


def test_messages_of_one_batch_end_each_in_its_own_way(shop: Shop, worker: StepWorker) -> None:
    kinds = dict(zip("ABCDE", EDGES, strict=True))
    for name in kinds:
        shop.publish_order(name)
    messages = {message.group_key[-1]: message for message in worker.claim()}
    settled = worker.settle(*((messages[name], kind) for name, kind in kinds.items()))
    assert len(settled.done) == 5
    assert shop.statuses() == [4, 4, 5, 6, 2]
    assert set(groups_of(shop)) == {"order:C", "order:E"}
    assert set(failures_of(shop)) == {messages["C"].id, messages["D"].id}


def test_a_php_consumer_is_told_of_complete_messages_only(shop: Shop, worker: StepWorker) -> None:
    for name in "ABCDE":
        shop.publish_order(name)
    messages = worker.claim()
    worker.settle(*zip(messages, EDGES, strict=True))
    complete = [message for message, kind in zip(messages, EDGES, strict=True) if EDGES[kind].to is Status.COMPLETE]
    assert lock_codes(shop) == {message_code(ORDER_CONSUMER, message.message_id) for message in complete}
    assert len(complete) == 2


def test_a_stale_php_consumer_acknowledges_what_was_delivered_without_handling_it(
    shop: Shop, worker: StepWorker
) -> None:
    shop.publish_order("A")
    php = shop.php_consumer(TOPIC_ORDER)
    stale = php.select()
    assert stale is not None
    worker.deliver(worker.claim())
    assert php.take(stale), "PHP sets IN_PROGRESS whatever the row says"
    assert not php.lock(stale), "the code is there: PHP must take it for processed"
    php.complete(stale)
    assert shop.statuses() == [Status.COMPLETE]


def test_a_php_lock_that_exists_already_does_not_stop_a_settle(shop: Shop, worker: StepWorker) -> None:
    published = shop.publish_order("A")
    shop.query(
        "INSERT INTO {prefix}queue_lock (message_code) VALUES (%s)",
        (message_code(ORDER_CONSUMER, published.message_id),),
    )
    assert worker.drain() == [published.message_id]
    assert shop.statuses() == [Status.COMPLETE]


def test_messages_of_different_trials_are_settled_together(shop: Shop, worker: StepWorker) -> None:
    first = shop.publish_order("A")
    worker.settle((worker.claim()[0], OutcomeKind.RETRY))
    second = shop.publish_order("B")
    messages = worker.claim()
    assert {message.id: message.number_of_trials for message in messages} == {
        first.relation_id: 1,
        second.relation_id: 0,
    }

    settled = worker.deliver(messages)

    assert (len(settled.done), settled.lost) == (2, [])
    assert shop.statuses() == [Status.COMPLETE] * 2


# --- fencing ---------------------------------------------------------------------------------------------------


def taken_over(shop: Shop, clock: Clock, worker: StepWorker, other: StepWorker) -> tuple[Message, Message]:
    shop.publish_order("A")
    [stale] = worker.claim()
    clock.pass_by(LEASE_SECONDS + 1)
    [message] = other.claim()
    return stale, message


@pytest.mark.parametrize("in_doubt", [False, True])
@pytest.mark.parametrize("kind", EDGES)
def test_worker_that_lost_its_lease_settles_nothing(
    shop: Shop, clock: Clock, worker: StepWorker, other: StepWorker, kind: OutcomeKind, in_doubt: bool
) -> None:
    stale, message = taken_over(shop, clock, worker, other)
    row, groups, failures = shop.row(stale.id), groups_of(shop), failures_of(shop)

    settled = worker.settle((stale, kind), in_doubt=in_doubt)

    assert (settled.done, settled.lost) == ([], [stale])
    assert (shop.row(stale.id), groups_of(shop), failures_of(shop)) == (row, groups, failures)
    assert lock_codes(shop) == set()
    assert other.deliver([message]).lost == []
    assert shop.statuses() == [Status.COMPLETE]


def test_a_lost_message_does_not_spoil_the_rest_of_its_batch(
    shop: Shop, clock: Clock, worker: StepWorker, other: StepWorker
) -> None:
    stale, _ = taken_over(shop, clock, worker, other)
    shop.publish_order("B")
    [good] = worker.claim()
    settled = worker.deliver([stale, good])
    assert [each.message for each in settled.done] == [good]
    assert settled.lost == [stale]
    assert shop.statuses() == [Status.IN_PROGRESS, Status.COMPLETE]


@pytest.mark.parametrize("kind", EDGES)
def test_trials_that_came_round_to_the_same_number_do_not_deceive_the_fence(
    shop: Shop, clock: Clock, worker: StepWorker, other: StepWorker, kind: OutcomeKind
) -> None:
    stale, message = taken_over(shop, clock, worker, other)
    other.settle((message, OutcomeKind.FAILED))
    operator_retries(worker.database, message.id)
    [again] = other.claim()
    assert (again.id, again.number_of_trials) == (stale.id, stale.number_of_trials)
    row = shop.row(stale.id)

    assert worker.settle((stale, kind)).lost == [stale]

    assert shop.row(stale.id) == row
    assert groups_of(shop) == {"order:A": (again.id, "worker-b")}
    assert other.deliver([again]).lost == []


def test_a_lease_said_to_be_lost_is_released_if_it_is_still_ours(
    shop: Shop, worker: StepWorker, message: Message
) -> None:
    worker.settle((message, OutcomeKind.LEASE_LOST))
    assert shop.statuses() == [Status.NEW]
    assert [each.id for each in worker.claim()] == [message.id]


def test_a_message_that_magentos_cron_freed_is_given_up_and_taken_again(
    shop: Shop, worker: StepWorker, message: Message
) -> None:
    shop.make_older(minutes=1441)
    assert shop.run_cleanup_cron()["retried"] == 1
    settled = worker.deliver([message])
    assert settled.lost == [message]
    [again] = worker.claim()
    assert (again.id, again.number_of_trials) == (message.id, 1)
    assert worker.deliver([again]).lost == []
    assert groups_of(shop) == {}


# --- a commit in doubt -----------------------------------------------------------------------------------------


def lose_the_answer_of_the_next_commit(worker: StepWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server commits, and the connection ends before it can say so."""
    connection = worker.database._open()
    commit = connection.commit

    def committed_without_an_answer() -> None:
        commit()
        connection.close()
        raise OSError("connection lost")

    monkeypatch.setattr(connection, "commit", committed_without_an_answer)


@pytest.mark.parametrize("kind", EDGES)
def test_a_settle_whose_answer_was_lost_is_found_done(
    shop: Shop, worker: StepWorker, kind: OutcomeKind, monkeypatch: pytest.MonkeyPatch, message: Message
) -> None:
    lose_the_answer_of_the_next_commit(worker, monkeypatch)
    with pytest.raises(DatabaseUnavailable):
        worker.settle((message, kind))
    after, failures = shop.row(message.id), failures_of(shop)
    assert after.status == (EDGES[kind].to or Status.NEW), "this test is about a commit that went through"

    settled = worker.settle((message, kind), in_doubt=True)

    assert [each.message for each in settled.done] == [message]
    assert settled.lost == []
    assert (shop.row(message.id), failures_of(shop)) == (after, failures), "nothing is counted twice"


@pytest.mark.parametrize("kind", EDGES)
def test_a_settle_that_never_reached_the_server_is_done_again(
    shop: Shop, worker: StepWorker, kind: OutcomeKind, message: Message
) -> None:
    [(session,)] = shop.query("SELECT id FROM information_schema.processlist WHERE user = %s", (shop.user,))
    shop.query("KILL %s", (session,))
    with pytest.raises(DatabaseUnavailable):
        worker.settle((message, kind))
    assert shop.row(message.id).status == Status.IN_PROGRESS
    settled = worker.settle((message, kind), in_doubt=True)
    assert [each.message for each in settled.done] == [message]
    assert shop.row(message.id).status == (EDGES[kind].to or Status.NEW)


def test_a_claim_whose_answer_was_lost_is_put_back_untouched(
    shop: Shop, worker: StepWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.publish_order("A")
    shop.publish_order("B")
    [held] = worker.claim(1)
    lose_the_answer_of_the_next_commit(worker, monkeypatch)
    with pytest.raises(DatabaseUnavailable):
        worker.claim(1)
    assert shop.statuses() == [3, 3], "this test is about a commit that went through"

    worker.renew()

    assert [(row.status, row.number_of_trials) for row in shop.rows()] == [(3, 0), (2, 0)]
    assert groups_of(shop) == {"order:A": (held.id, "worker-a"), "order:B": (held.id + 1, None)}
    assert [message.group_key for message in worker.claim()] == ["order:B"]


# --- releases, refunds, failures ---------------------------------------------------------------------------------


def test_a_release_costs_no_attempt_and_keeps_the_place_in_the_line(shop: Shop, worker: StepWorker) -> None:
    first = shop.publish_order("A")
    shop.publish_order("A", is_update=True)
    for _ in range(3):
        [message] = worker.claim()
        assert (message.message_id, message.number_of_trials) == (first.message_id, 0)
        worker.settle((message, OutcomeKind.RELEASED))
    assert shop.statuses() == [2, 2]
    assert failures_of(shop) == {}


def test_released_with_a_delay_it_waits_and_its_group_with_it(shop: Shop, clock: Clock, worker: StepWorker) -> None:
    first = shop.publish_order("A")
    shop.publish_order("A", is_update=True)
    worker.settle((worker.claim()[0], OutcomeKind.RELEASED), delay=10)
    clock.pass_by(9)
    assert worker.claim() == []
    clock.pass_by(2)
    assert [message.message_id for message in worker.claim()] == [first.message_id]


def retried(message: Message) -> Settlement:
    return Settlement(message=message, outcome=Outcome(kind=OutcomeKind.RETRY, reason="test"))


def test_an_attempt_is_given_back_once_and_the_message_is_due_at_once(
    shop: Shop, clock: Clock, worker: StepWorker, message: Message
) -> None:
    worker.settle((message, OutcomeKind.RETRY), delay=30)
    assert worker.queue.refund([retried(message)]) == 1
    assert shop.row(message.id).number_of_trials == 0
    assert failures_of(shop) == {message.id: (0, "test", 0)}, "that it has failed before is still known"
    assert worker.queue.refund([retried(message)]) == 0
    assert [each.id for each in worker.claim()] == [message.id]


def test_an_unwitnessed_attempt_that_is_given_back_is_not_counted_as_unwitnessed_any_more(
    shop: Shop, worker: StepWorker, message: Message
) -> None:
    settlement = replace(retried(message), unwitnessed=True)
    worker.queue.settle([settlement])
    counted = "SELECT attempts, unwitnessed FROM {prefix}zithara_delivery_failure"
    assert shop.query(counted) == [(1, 1)]
    assert worker.queue.refund([settlement]) == 1
    assert shop.query(counted) == [(0, 0)]


def test_no_attempt_is_given_back_of_a_message_that_somebody_claimed_since(
    shop: Shop, clock: Clock, worker: StepWorker, other: StepWorker, message: Message
) -> None:
    worker.settle((message, OutcomeKind.RETRY), delay=1)
    clock.pass_by(2)
    [again] = other.claim()
    assert worker.queue.refund([retried(message)]) == 0
    assert other.deliver([again]).lost == []


def test_failures_are_counted_until_the_message_is_complete(shop: Shop, clock: Clock, worker: StepWorker) -> None:
    shop.publish_order("A")
    for attempt in (1, 2):
        [message] = worker.claim()
        assert message.number_of_trials == attempt - 1
        worker.settle((message, OutcomeKind.RETRY), delay=5)
        assert failures_of(shop) == {message.id: (attempt, "test", 0)}
        clock.pass_by(6)
    worker.deliver(worker.claim())
    assert failures_of(shop) == {}


def test_a_failed_message_is_marked_once_a_newer_one_of_its_group_was_delivered(shop: Shop, worker: StepWorker) -> None:
    for name in "AB":
        shop.publish_order(name)
    failed = worker.claim()
    worker.settle(*((message, OutcomeKind.FAILED) for message in failed))
    shop.publish_order("A", is_update=True)
    worker.drain()
    assert failures_of(shop) == {failed[0].id: (1, "test", 1), failed[1].id: (1, "test", 0)}


def test_the_detail_of_a_failure_may_hold_anything_and_is_cut(shop: Shop, worker: StepWorker, message: Message) -> None:
    outcome = Outcome(kind=OutcomeKind.FAILED, reason="r" * 99, detail="%s ' \\ \N{SNOWMAN} \0" + "x" * 2000)
    worker.queue.settle([Settlement(message=message, outcome=outcome)])
    [(detail, reason)] = shop.query("SELECT detail, reason_code FROM {prefix}zithara_delivery_failure")
    assert detail == outcome.detail[:1000]
    assert reason == "r" * 64


def test_the_detail_of_a_failure_is_stored_without_personal_data(shop: Shop, worker: StepWorker) -> None:
    shop.publish_order("1")
    [message] = worker.claim()
    outcome = Outcome(kind=OutcomeKind.FAILED, reason="http_422", detail='HTTP 422: {"name":"Asha"} asha@example.com')
    worker.queue.settle([Settlement(message=message, outcome=outcome)])
    [(detail,)] = shop.query("SELECT detail FROM {prefix}zithara_delivery_failure")
    assert detail == 'HTTP 422: {"name":"***"} a***@***'


# --- superseded --------------------------------------------------------------------------------------------------


def test_older_snapshots_complete_with_the_newest_once_it_has_arrived(shop: Shop, coalescing: StepWorker) -> None:
    carts = [shop.publish_cart("7") for _ in range(3)]
    [message] = coalescing.claim()
    assert message.message_id == carts[-1].message_id
    assert message.supersedes == pending(*carts[:2])
    assert shop.statuses() == [2, 2, 3]

    coalescing.deliver([message])

    assert shop.statuses() == [4, 4, 4]
    consumer = TOPIC_TABLE[TOPIC_CART].php_consumer
    assert lock_codes(shop) == {message_code(consumer, cart.message_id) for cart in carts}
    assert coalescing.claim() == []


@pytest.mark.parametrize("kind", [OutcomeKind.SKIPPED, OutcomeKind.FAILED])
def test_what_a_failed_snapshot_stood_for_is_not_overtaken_by_a_worker_that_never_saw_it(
    shop: Shop, clock: Clock, coalescing: StepWorker, other_coalescing: StepWorker, kind: OutcomeKind
) -> None:
    oldest = shop.publish_cart("7")
    held = coalescing.claim()
    for _ in range(3):  # the other_coalescing one's cursor passes it while it is IN_PROGRESS
        other_coalescing.claim()
        clock.pass_by(15)
    coalescing.settle((held[0], OutcomeKind.RETRY))
    shop.publish_cart("7")
    coalescing.look()
    coalescing.queue.recheck()
    [message] = coalescing.claim()
    while message.supersedes == ():
        coalescing.settle((message, OutcomeKind.RETRY))
        [message] = coalescing.claim()
    assert message.supersedes == pending(oldest)
    coalescing.settle((message, kind))
    shop.publish_cart("7")

    other_coalescing.poll()
    [next_one] = other_coalescing.take(10)

    assert oldest.message_id == next_one.message_id or pending(oldest)[0] in next_one.supersedes
    other_coalescing.deliver([next_one])
    coalescing.drain()
    assert shop.statuses() == [4, 4 if kind is OutcomeKind.SKIPPED else 6, 4]
    assert groups_of(shop) == {}


@pytest.mark.parametrize("kind", [OutcomeKind.SKIPPED, OutcomeKind.FAILED])
def test_a_newest_snapshot_that_did_not_arrive_frees_the_older_ones(
    shop: Shop, coalescing: StepWorker, kind: OutcomeKind
) -> None:
    carts = [shop.publish_cart("7") for _ in range(3)]
    coalescing.settle((coalescing.claim()[0], kind))
    assert shop.statuses()[:2] == [2, 2]
    [message] = coalescing.claim()
    assert message.message_id == carts[1].message_id
    coalescing.deliver([message])
    assert shop.statuses()[:2] == [4, 4]


def test_a_superseded_message_that_php_has_taken_stays_phps(shop: Shop, coalescing: StepWorker) -> None:
    shop.publish_cart("7")
    shop.publish_cart("7")
    php = shop.php_consumer(TOPIC_CART)
    [message] = coalescing.claim()
    selected = php.select()
    assert selected is not None
    assert php.take(selected)
    coalescing.deliver([message])
    assert shop.statuses() == [3, 4]


def test_an_older_snapshot_that_ended_in_error_elsewhere_keeps_its_end_and_its_reason(
    shop: Shop, coalescing: StepWorker, other_coalescing: StepWorker
) -> None:
    """A worker that was slower with it keeps it in its line, and would let the newer one stand for it."""
    old = shop.publish_cart("7")
    other_coalescing.look()
    coalescing.settle((coalescing.claim()[0], OutcomeKind.RETRY))
    assert other_coalescing.queue.claim(10) == [], "the race for the group is lost, and the message stays in its line"
    [message] = coalescing.claim()
    coalescing.settle((message, OutcomeKind.FAILED))
    new = shop.publish_cart("7")

    other_coalescing.poll()
    [claimed] = other_coalescing.take(10)
    assert (claimed.message_id, claimed.supersedes) == (new.message_id, ())
    other_coalescing.deliver([claimed])

    assert shop.statuses() == [Status.ERROR, Status.COMPLETE]
    assert failures_of(shop) == {old.relation_id: (2, "test", 1)}
    assert lock_codes(shop) == {message_code(TOPIC_TABLE[TOPIC_CART].php_consumer, new.message_id)}


def test_an_older_snapshot_that_ends_in_error_while_the_newer_one_is_on_its_way_keeps_its_reason(
    shop: Shop, coalescing: StepWorker
) -> None:
    """By an operator's hand, or a PHP consumer's."""
    old, new = [shop.publish_cart("7") for _ in range(2)]
    [message] = coalescing.claim()
    assert message.supersedes == pending(old)
    set_status(shop, old.relation_id, Status.ERROR)
    coalescing.deliver([message])
    assert shop.statuses() == [Status.ERROR, Status.COMPLETE]
    assert lock_codes(shop) == {message_code(TOPIC_TABLE[TOPIC_CART].php_consumer, new.message_id)}


@pytest.mark.parametrize("kind", [OutcomeKind.RETRY, OutcomeKind.FAILED, OutcomeKind.RELEASED])
def test_a_settle_in_doubt_does_not_take_what_another_worker_did_for_its_own(
    shop: Shop, clock: Clock, worker: StepWorker, other: StepWorker, kind: OutcomeKind
) -> None:
    """It never reached the server. The other one took over and gave back: status and trials are as our RETRY's."""
    stale, message = taken_over(shop, clock, worker, other)
    other.settle((message, OutcomeKind.RELEASED))
    row, groups, failures = shop.row(stale.id), groups_of(shop), failures_of(shop)
    assert (row.status, row.number_of_trials) == (Status.RETRY_REQUIRED, stale.number_of_trials + 1)

    settled = worker.settle((stale, kind), in_doubt=True)

    assert (settled.done, settled.lost) == ([], [stale])
    assert (shop.row(stale.id), groups_of(shop), failures_of(shop)) == (row, groups, failures)


def test_a_settle_in_doubt_leaves_a_later_claim_of_the_same_worker_alone(
    shop: Shop, clock: Clock, worker: StepWorker, other: StepWorker, make_worker: MakeWorker
) -> None:
    stale, message = taken_over(shop, clock, worker, other)
    other.settle((message, OutcomeKind.RELEASED))
    again = make_worker(worker.worker_id)
    [present] = again.claim()
    row, groups = shop.row(stale.id), groups_of(shop)

    settled = worker.settle((stale, OutcomeKind.DELIVERED), in_doubt=True)

    assert (settled.done, settled.lost) == ([], [stale])
    assert (shop.row(stale.id), groups_of(shop)) == (row, groups)
    assert again.deliver([present]).lost == []


@pytest.mark.parametrize("kind", [OutcomeKind.DELIVERED, OutcomeKind.SKIPPED])
def test_a_settle_in_doubt_does_not_count_what_another_worker_delivered(
    shop: Shop, clock: Clock, worker: StepWorker, other: StepWorker, kind: OutcomeKind
) -> None:
    stale, message = taken_over(shop, clock, worker, other)
    other.deliver([message])
    settled = worker.settle((stale, kind), in_doubt=True)
    assert (settled.done, settled.lost) == ([], [stale])


@pytest.mark.parametrize(
    ("kind", "older", "newer", "head"),
    [
        (OutcomeKind.DELIVERED, False, False, None),
        (OutcomeKind.DELIVERED, True, False, None),
        (OutcomeKind.DELIVERED, True, True, "newer"),
        (OutcomeKind.DELIVERED, False, True, "newer"),
        (OutcomeKind.FAILED, False, False, None),
        (OutcomeKind.FAILED, True, False, "older"),
        (OutcomeKind.FAILED, True, True, "older"),
        (OutcomeKind.FAILED, False, True, "newer"),
        (OutcomeKind.SKIPPED, True, True, "older"),
        (OutcomeKind.SKIPPED, False, True, "newer"),
    ],
)
def test_the_settle_itself_names_the_next_head_of_the_group(
    shop: Shop, worker: StepWorker, kind: OutcomeKind, older: bool, newer: bool, head: str | None
) -> None:
    """`older`: snapshots that the message stands for; `newer`: what let it go first. None of them has failed, so their
    place is known from the group's row alone, and no worker need have seen them."""
    published = {name: shop.publish_order("A") for name in ("older", "this", "newer")}
    hide = "UPDATE {prefix}queue_message_status SET status = 7 WHERE id = %s"
    shop.query(hide, (published["older"].relation_id,))
    [message] = worker.claim()
    shop.query("UPDATE {prefix}queue_message_status SET status = 2 WHERE status = 7")
    message = replace(
        message,
        supersedes=pending(published["older"]) if older else (),
        behind=pending(published["newer"]) if newer else (),
    )

    worker.settle((message, kind))

    expected = {} if head is None else {"order:A": (published[head].relation_id, None)}
    assert groups_of(shop) == expected


def test_what_somebody_has_put_back_to_new_by_hand_keeps_its_history_until_it_is_delivered(
    shop: Shop, worker: StepWorker
) -> None:
    shop.publish_order("A")
    worker.settle((worker.claim()[0], OutcomeKind.FAILED))
    shop.query("UPDATE {prefix}queue_message_status SET status = 2")
    [message] = worker.claim()
    assert message.attempts == 1
    worker.deliver([message])
    assert failures_of(shop) == {}


def test_a_message_that_php_took_after_magentos_cron_had_freed_it_is_left_to_php(
    shop: Shop, worker: StepWorker, message: Message
) -> None:
    """It is IN_PROGRESS again, and its group is still ours; its number of trials tells that it is another's."""
    shop.query("UPDATE {prefix}queue_message_status SET number_of_trials = 1")
    row = shop.row(message.id)

    settled = worker.deliver([message])

    assert (settled.done, settled.lost) == ([], [message])
    assert shop.row(message.id) == row
    assert groups_of(shop) == {"order:A": (message.id, None)}, "it keeps its place"


@pytest.mark.parametrize("kind", [OutcomeKind.RETRY, OutcomeKind.FAILED])
def test_a_committed_settle_is_counted_once_though_another_worker_had_the_message_since(
    shop: Shop,
    worker: StepWorker,
    other: StepWorker,
    kind: OutcomeKind,
    monkeypatch: pytest.MonkeyPatch,
    message: Message,
) -> None:
    lose_the_answer_of_the_next_commit(worker, monkeypatch)
    with pytest.raises(DatabaseUnavailable):
        worker.settle((message, kind))
    if kind is OutcomeKind.FAILED:
        operator_retries(worker.database, message.id)
    [theirs] = other.claim()
    other.settle((theirs, OutcomeKind.RELEASED))
    row, groups, failures = shop.row(message.id), groups_of(shop), failures_of(shop)

    settled = worker.settle((message, kind), in_doubt=True)

    assert ([each.message for each in settled.done], settled.lost) == ([message], [])
    assert (shop.row(message.id), groups_of(shop), failures_of(shop)) == (row, groups, failures)
