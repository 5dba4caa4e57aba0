"""Leases: renewed all at once, lost only to who took over, and taken over head first."""

from __future__ import annotations

from support.workers import LEASE_SECONDS, Clock, MakeWorker, StepWorker, failures_of, groups_of, pending

from zithara_worker.messages import Message, OutcomeKind, Rejection
from zithara_worker.processors import supersedes
from zithara_worker.queue.statuses import Status
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART


def test_two_renewals_within_one_second_both_count_every_lease(shop: Shop, worker: StepWorker) -> None:
    """Without CLIENT.FOUND_ROWS the second would change no row, and look like leases lost."""
    for number in range(5):
        shop.publish_order(f"N{number}")
    worker.claim()
    for _ in range(2):
        assert worker.renew() == []
    assert len(worker.held.renewable()) == 5


def test_a_renewed_lease_lasts_from_the_renewal(
    shop: Shop, clock: Clock, worker: StepWorker, other: StepWorker, message: Message
) -> None:
    assert message.lease.valid_until == clock() + LEASE_SECONDS
    clock.pass_by(LEASE_SECONDS - 1)
    assert worker.renew() == []
    assert message.lease.valid_until == clock() + LEASE_SECONDS
    clock.pass_by(LEASE_SECONDS - 1)
    assert other.claim() == []
    assert shop.row(message.id).number_of_trials == 0


def test_renewing_costs_two_statements_however_much_is_held(shop: Shop, worker: StepWorker) -> None:
    for number in range(30):
        shop.publish_order(f"N{number}")
    held = worker.claim()
    before = worker.database.statements_sent
    worker.renew()
    assert worker.database.statements_sent - before == 2
    worker.deliver(held)
    before = worker.database.statements_sent
    worker.renew()
    assert worker.database.statements_sent - before == 1, "nothing held: only a look for what nobody holds"


def test_an_expired_lease_is_taken_over_head_first_with_one_more_trial(
    shop: Shop, clock: Clock, worker: StepWorker, other: StepWorker
) -> None:
    published = [shop.publish_order("A") for _ in range(2)]
    [dead] = worker.claim()
    clock.pass_by(LEASE_SECONDS - 1)
    assert other.claim() == []
    clock.pass_by(2)
    [message] = other.claim()
    assert (message.message_id, message.number_of_trials) == (published[0].message_id, dead.number_of_trials + 1)
    assert message.status_before == Status.RETRY_REQUIRED
    assert failures_of(shop) == {message.id: (0, "worker_died", 0)}, "told, and not paid for"
    assert groups_of(shop) == {"order:A": (message.id, "worker-b")}
    other.deliver([message])
    assert other.drain() == [published[1].message_id]
    assert failures_of(shop) == {}


def test_one_of_two_takes_an_expired_group_over(
    shop: Shop, clock: Clock, worker: StepWorker, make_worker: MakeWorker
) -> None:
    shop.publish_order("A")
    worker.claim()
    clock.pass_by(LEASE_SECONDS + 1)
    first, second = make_worker("worker-b"), make_worker("worker-c")
    first.look()
    second.look()
    assert [len(each.take(10)) for each in (first, second)] == [1, 0]
    assert shop.rows()[0].number_of_trials == 1


def test_who_was_taken_over_from_hears_it_at_the_next_renewal(
    shop: Shop, clock: Clock, worker: StepWorker, other: StepWorker
) -> None:
    for name in "AB":
        shop.publish_order(name)
    held = worker.claim()
    clock.pass_by(LEASE_SECONDS + 1)
    [taken] = other.claim(1)
    lost = worker.renew()
    assert [message.id for message in lost] == [taken.id]
    assert lost[0].lease.valid_until == 0.0
    kept = next(message for message in held if message.id != taken.id)
    assert kept.lease.valid_until == clock() + LEASE_SECONDS, "nobody wanted it: still ours, though it had run out"
    assert worker.deliver([kept]).lost == []


def test_a_worker_that_woke_late_neither_settles_nor_overtakes(
    shop: Shop, clock: Clock, worker: StepWorker, other: StepWorker
) -> None:
    published = [shop.publish_order("A") for _ in range(3)]
    [stale] = worker.claim()
    clock.pass_by(LEASE_SECONDS + 1)
    [message] = other.claim()
    assert worker.deliver([stale]).lost == [stale]
    assert worker.claim() == [], "the group is the other's now"
    other.deliver([message])
    assert [each.message_id for each in worker.claim()] == [published[1].message_id]


def test_a_message_that_kills_its_workers_is_rejected_at_last(
    shop: Shop, clock: Clock, make_worker: MakeWorker
) -> None:
    published = [shop.publish_order("A") for _ in range(2)]
    for death in range(5):
        worker = make_worker(f"worker-{death}", attempt_limit=3)
        [message] = worker.claim()
        assert message.number_of_trials == death
        assert worker.rejects(message) == (death >= 4)
        clock.pass_by(LEASE_SECONDS + 1)
    content = worker.contents[message.id]
    assert isinstance(content, Rejection) and content.code == "worker_died"
    last = make_worker("worker-z", attempt_limit=3)
    [message] = last.claim()
    last.settle((message, OutcomeKind.FAILED))
    assert shop.statuses() == [Status.ERROR, Status.NEW]
    assert last.drain() == [published[1].message_id]


def test_failed_attempts_that_were_answered_do_not_count_as_deaths(
    shop: Shop, clock: Clock, make_worker: MakeWorker
) -> None:
    shop.publish_order("A")
    worker = make_worker(attempt_limit=2)
    for _ in range(3):
        [message] = worker.claim()
        assert not worker.rejects(message)
        worker.settle((message, OutcomeKind.RETRY))


def test_what_a_dead_worker_held_keeps_its_shape(shop: Shop, clock: Clock, make_worker: MakeWorker) -> None:
    """It may have arrived: a newer snapshot waits its turn, and the older ones still go with the one that was sent."""
    dead = make_worker("worker-a", topic=TOPIC_CART, supersedes=supersedes)
    carts = [shop.publish_cart("7") for _ in range(2)]
    dead.claim()
    newer = shop.publish_cart("7")
    clock.pass_by(LEASE_SECONDS + 1)
    heir = make_worker("worker-b", topic=TOPIC_CART, supersedes=supersedes)
    [message] = heir.claim()
    assert message.message_id == carts[1].message_id
    assert message.supersedes == pending(carts[0])
    heir.deliver([message])
    assert heir.drain() == [newer.message_id]
    assert shop.statuses() == [4, 4, 4]


def test_a_restarted_worker_inherits_nothing(
    shop: Shop, clock: Clock, worker: StepWorker, make_worker: MakeWorker
) -> None:
    shop.publish_order("A")
    worker.claim()
    restarted = make_worker("worker-a2")
    assert restarted.claim() == []
    restarted.renew()
    assert shop.statuses() == [Status.IN_PROGRESS]


def test_who_was_only_in_hand_when_its_worker_was_killed_never_pays_for_it(
    shop: Shop, clock: Clock, make_worker: MakeWorker
) -> None:
    """One of three kills every worker that holds it, whatever else is in hand; one attempt is all they have."""
    killer, *innocent = [shop.publish_order(name).relation_id for name in "KAB"]
    for death in range(8):
        worker = make_worker(f"worker-{death}", attempt_limit=1)
        for _ in range(9):
            messages = worker.claim()
            if not messages:
                break
            assert len(messages) == 1 or not any(message.suspect for message in messages), "a suspect comes alone"
            if all(worker.rejects(message) for message in messages):
                worker.settle(*((message, OutcomeKind.FAILED) for message in messages))
            elif killer in {message.id for message in messages}:
                break
            else:
                worker.deliver(messages)
        clock.pass_by(LEASE_SECONDS + 1)
    assert shop.row(killer).status == Status.ERROR
    assert [shop.row(id).status for id in innocent] == [Status.COMPLETE] * 2
    assert failures_of(shop)[killer][1] == "test"
    assert groups_of(shop) == {}


def test_what_was_answered_is_no_suspect_any_more(shop: Shop, clock: Clock, make_worker: MakeWorker) -> None:
    shop.publish_order("A")
    make_worker("worker-a").claim()
    clock.pass_by(LEASE_SECONDS + 1)
    heir = make_worker("worker-b")
    [message] = heir.claim()
    assert message.suspect and message.attempts == 0
    heir.settle((message, OutcomeKind.RETRY))
    [message] = heir.claim()
    assert not message.suspect and message.attempts == 1


def test_a_worker_never_takes_its_own_expired_lease_over(
    shop: Shop, clock: Clock, worker: StepWorker, other: StepWorker, message: Message
) -> None:
    """A poll that reaches the server after the lease ended, or a clock of the database that jumps forward."""
    clock.pass_by(LEASE_SECONDS + 10)
    assert worker.claim() == []
    assert worker.renew() == [] and message.lease.valid_until == clock() + LEASE_SECONDS
    assert worker.deliver([message]).lost == []
    assert shop.statuses() == [Status.COMPLETE] and shop.rows()[0].number_of_trials == 0


def test_what_is_in_hand_is_not_claimed_again_though_another_worker_gave_it_back(
    shop: Shop, clock: Clock, worker: StepWorker, other: StepWorker
) -> None:
    shop.publish_order("A")
    [mine] = worker.claim()
    clock.pass_by(LEASE_SECONDS + 1)
    [theirs] = other.claim()
    other.settle((theirs, OutcomeKind.RELEASED))
    assert worker.claim() == [], "its request may be under way still"
    assert worker.renew() == [mine]
    assert worker.claim() == []
    assert worker.deliver([mine]).lost == [mine]
    assert [message.id for message in worker.claim()] == [mine.id]


def test_a_claim_that_is_committed_after_it_was_given_up_is_freed_by_the_next_renewal(
    shop: Shop, clock: Clock, worker: StepWorker, other: StepWorker
) -> None:
    shop.publish_order("A")
    held = worker.held
    claim = held.next_claim()
    held.take(())
    worker.renew()
    shop.query(
        "INSERT INTO {prefix}zithara_message_group "
        "(queue_id, group_key, id, message_id, worker_id, claim, lease_until) "
        "SELECT queue_id, 'order:A', id, message_id, 'worker-a', %s, NOW(3) + INTERVAL 60 SECOND "
        "FROM {prefix}queue_message_status",
        (claim,),
    )
    shop.query("UPDATE {prefix}queue_message_status SET status = 3")
    in_progress = held.next_claim()
    assert not held.is_orphan(shop.rows()[0].relation_id, in_progress), "a claim that is under way is nobody's orphan"
    held.take(())
    worker.renew()
    assert shop.statuses() == [Status.NEW]
    assert groups_of(shop) == {"order:A": (shop.rows()[0].relation_id, None)}
    assert len(other.claim()) == 1
