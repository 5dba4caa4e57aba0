"""The order of the steps of a turn, on a clock of the test; whole workers: test_loop_survives, tests/acceptance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from itertools import pairwise

import pytest
from support.loops import CREATE, SERVED, LoopOnClock
from support.memory_queue import MemoryQueue

from zithara_worker.errors import Contention, DatabaseRefused, DatabaseUnavailable, ShopError
from zithara_worker.limits import End, Limits
from zithara_worker.messages import Evidence, Outcome, OutcomeKind, Rejection
from zithara_worker.queue.bodies import BYTES_IN_HAND
from zithara_worker.queue.held import ABANDONED_SECONDS
from zithara_worker.queue.message_queue import MessageQueue
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER
from zithara_worker.worker.claiming import SUSPECTS_SECONDS
from zithara_worker.worker.inbox import ControlRequest
from zithara_worker.worker.loop import MAX_DATABASE_PAUSE

MakeLoop = Callable[..., LoopOnClock]

GONE = DatabaseUnavailable("the server is gone")
FAILED = Outcome(kind=OutcomeKind.RETRY, reason="http_500", http_status=500, evidence=Evidence.PATH)
THROTTLED = Outcome(kind=OutcomeKind.RELEASED, reason="throttled", http_status=429, retry_after_seconds=7.0)


@pytest.fixture
def make_loop(monkeypatch: pytest.MonkeyPatch) -> MakeLoop:
    def make(*topics: str, **options: object) -> LoopOnClock:
        return LoopOnClock(monkeypatch, topics or (TOPIC_ORDER,), **options)

    return make


@pytest.fixture
def loop(make_loop: MakeLoop) -> LoopOnClock:
    return make_loop()


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [getattr(record, "event", "") for record in caplog.records]


QUEUE_CALLS = (
    "claim claim_suspect settle refund wake has_older_pending read_again sweep sweep_all recheck update_from_poll"
)


@pytest.mark.parametrize("name", [*QUEUE_CALLS.split(), "may_have_work", "may_have_suspects"])
def test_the_stand_in_is_called_as_the_queue_is(name: str) -> None:
    stand_in, real = getattr(MemoryQueue, name), getattr(MessageQueue, name)
    if callable(real):
        assert signature(real).parameters.keys() <= signature(stand_in).parameters.keys()
    else:
        assert isinstance(stand_in, property)


# ---------------------------------------------------------------- the order of a turn


def test_the_first_turn_does_every_duty_and_then_claims_and_submits(loop: LoopOnClock) -> None:
    loop.publish()
    steps = loop.steps_of_a_turn()
    assert steps[:4] == ["shop", "poll", "recheck", "sweep"]
    assert steps[-2:] == ["claim", "submit"]
    assert steps.index("register 0") < steps.index("claim")


def test_a_turn_settles_before_it_claims(loop: LoopOnClock) -> None:
    loop.begin(count=20)
    loop.threads.answer(0)
    loop.threads.answer(1)
    steps = loop.steps_of_a_turn()
    assert steps.index("settle") < steps.index("claim")
    assert [each.message.id for each, in_doubt in loop.queues[0].settled if not in_doubt] == [0, 1]


def test_a_turn_without_results_settles_nothing_and_without_messages_claims_nothing(loop: LoopOnClock) -> None:
    loop.turns(1)
    assert not {"settle", "claim"} & {*loop.steps_of_a_turn(), *loop.steps_of_a_turn()}


def test_results_that_arrive_together_are_settled_in_one_transaction(loop: LoopOnClock) -> None:
    loop.begin(count=2)
    for number in range(2):
        loop.arrivals.at(loop.clock.now + 0.3, lambda number=number: loop.threads.answer(number))
    assert loop.steps_of_a_turn().count("settle") == 1
    assert loop.claimed() == 0


# ---------------------------------------------------------------- waiting


def test_an_idle_loop_waits_until_the_next_poll(loop: LoopOnClock) -> None:
    loop.turns(1)
    before = loop.clock.now
    loop.turns(3)
    assert loop.clock.now - before == 3.0


def test_a_result_ends_the_wait(loop: LoopOnClock) -> None:
    loop.publish()
    loop.turns(2)
    began = loop.clock.now
    loop.arrivals.at(began + 0.25, lambda: loop.threads.answer(0))
    loop.turns(1)
    assert loop.clock.now == began + 0.25
    assert loop.queues[0].rows[0].status == "delivered"


def test_a_request_of_the_operator_ends_the_wait(loop: LoopOnClock) -> None:
    loop.turns(1)
    began = loop.clock.now
    loop.arrivals.at(began + 0.5, lambda: loop.arrivals.put(ControlRequest.RELOAD))
    loop.turns(1)
    assert loop.clock.now == began + 0.5


def test_results_wait_for_others_while_every_thread_has_its_next_message(loop: LoopOnClock) -> None:
    loop.publish(count=8)
    loop.turns(2)
    assert loop.claimed() == 8
    loop.threads.answer(0, replace(SERVED, duration_ms=7.0))
    loop.turns(1)
    loop.threads.answer(1, replace(SERVED, duration_ms=900.0))
    loop.turns(1)
    assert loop.slept == [0.007, 0.02]


def test_the_service_manager_is_told_in_time_that_the_loop_lives(make_loop: MakeLoop) -> None:
    loop = make_loop(poll_interval=50.0)
    loop.service_manager.interval_seconds = 3.0
    alive: list[float] = []
    loop.service_manager.alive = lambda: alive.append(loop.clock.now)
    loop.turns(4)
    assert [later - earlier for earlier, later in pairwise(alive)] == [3.0, 3.0, 3.0]


def test_leases_are_renewed_as_long_as_the_loop_turns(loop: LoopOnClock) -> None:
    loop.turn_until(2 * ABANDONED_SECONDS)
    assert not loop.held.is_abandoned
    loop.clock.now += ABANDONED_SECONDS + 1
    assert loop.held.is_abandoned


def test_a_loop_is_stuck_only_if_it_is_silent_for_longer_than_it_may_wait(make_loop: MakeLoop) -> None:
    assert make_loop().loop.status().longest_wait_seconds == MAX_DATABASE_PAUSE
    assert make_loop(poll_interval=50.0).loop.status().longest_wait_seconds == 50.0


# ---------------------------------------------------------------- how much is claimed


def test_no_more_is_claimed_than_threads_and_one_batch_need(loop: LoopOnClock) -> None:
    loop.publish(count=30)
    loop.turns(5)
    assert loop.claimed() == 2 * loop.settings.concurrency + loop.settings.batch_size
    assert loop.steps_of_a_turn().count("claim") == 0, "while every thread is busy, one free place is no batch"


def test_nothing_is_claimed_of_a_paused_topic_and_the_others_go_on(make_loop: MakeLoop) -> None:
    loop = make_loop(TOPIC_ORDER, TOPIC_CART)
    loop.paused = {TOPIC_ORDER, "zithara.other.events"}
    loop.publish(TOPIC_ORDER)
    loop.publish(TOPIC_CART)
    loop.turns(2)
    assert [message.topic for message in loop.held.messages()] == [TOPIC_CART]
    assert loop.loop.status().paused == (TOPIC_ORDER,)
    loop.paused = set()
    loop.turns(1)
    assert loop.claimed() == 2


def test_nothing_is_claimed_while_the_shop_is_switched_off_or_nothing_may_be_claimed(loop: LoopOnClock) -> None:
    loop.publish(count=2)
    loop.may_claim, loop.shop = False, replace(loop.shop, enabled=False)
    loop.turns(2)
    loop.may_claim = True
    loop.turns(2)
    assert loop.claimed() == 0 and not loop.loop.status().consumable
    loop.may_claim = False
    loop.shop = replace(loop.shop, enabled=True)
    loop.turn_until(6)
    assert loop.claimed() == 0
    loop.may_claim = True
    loop.turns(1)
    assert loop.claimed() == 2


def test_topics_take_turns_to_be_claimed_first(make_loop: MakeLoop) -> None:
    loop = make_loop(TOPIC_ORDER, TOPIC_CART, batch_size=2, concurrency=1)
    order: list[str] = []
    for queue in loop.queues:
        queue.claim = lambda *limits, topic=queue.topic, **options: order.append(topic) or []
    loop.publish(TOPIC_ORDER)
    loop.publish(TOPIC_CART)
    loop.turns(3)
    assert order == [TOPIC_ORDER, TOPIC_CART, TOPIC_CART, TOPIC_ORDER, TOPIC_ORDER, TOPIC_CART]


def test_a_full_claim_is_followed_by_another_one_without_a_wait_and_the_last_one_by_none(loop: LoopOnClock) -> None:
    loop.publish(count=6)
    began = loop.clock.now
    loop.turns(2)
    assert loop.claimed() == 6 and loop.clock.now == began
    loop.turns(1)
    assert loop.clock.now > began


def test_a_suspect_is_delivered_alone_and_then_the_others_have_their_turn(loop: LoopOnClock) -> None:
    loop.publish(count=2)
    loop.publish(suspect=True)
    loop.publish(suspect=True)
    loop.turns(2)
    assert [message.id for message in loop.held.messages()] == [2]
    loop.arrivals.at(loop.clock.now + SUSPECTS_SECONDS, lambda: loop.threads.answer(2))
    loop.turn_until(SUSPECTS_SECONDS)
    assert sorted(message.id for message in loop.held.messages()) == [0, 1]


def test_suspects_are_delivered_one_after_another_in_their_turn(loop: LoopOnClock) -> None:
    loop.publish(count=3, suspect=True)
    loop.publish()
    for number in range(3):
        loop.turns(1)
        assert [message.id for message in loop.held.messages()] == [number]
        loop.threads.answer(number)
    loop.turns(1)
    assert [message.id for message in loop.held.messages()] == [3]


def test_the_others_have_their_turn_for_as_long_as_a_suspect_took(loop: LoopOnClock) -> None:
    loop.begin(count=2, suspect=True)
    loop.arrivals.at(loop.clock.now + 5, lambda: loop.threads.answer(0))
    loop.turn_until(5)
    over_at = loop.clock.now
    while not loop.held.has_suspect:
        loop.publish()
        loop.turns(1)
        for message in loop.held.messages():
            if not message.suspect:
                loop.threads.answer(message.id)
    assert loop.clock.now == pytest.approx(over_at + 5, abs=1.1)
    assert [message.id for message in loop.held.messages()] == [1]
    assert [row.status for row in loop.queues[0].rows[2:6]] == ["delivered"] * 4


def test_a_suspect_waits_until_nothing_else_is_in_hand_and_nothing_else_is_claimed_meanwhile(loop: LoopOnClock) -> None:
    loop.begin(count=2)
    loop.publish(suspect=True)
    loop.publish(count=3)
    loop.turns(3)
    assert sorted(message.id for message in loop.held.messages()) == [0, 1]
    loop.threads.answer(0)
    loop.turns(2)
    assert [message.id for message in loop.held.messages()] == [1]
    loop.threads.answer(1)
    loop.turns(2)
    assert [message.id for message in loop.held.messages()] == [2]


def test_a_suspect_that_another_worker_took_holds_up_nobody(loop: LoopOnClock) -> None:
    loop.publish(suspect=True)
    loop.publish()
    loop.queues[0].claim_suspect = list
    loop.turns(1)
    assert [message.id for message in loop.held.messages()] == [1]


def test_few_free_places_are_filled_only_when_they_are_half_a_batch(loop: LoopOnClock) -> None:
    loop.publish(count=30)
    loop.turns(4)
    loop.threads.answer(0)
    assert "claim" not in loop.steps_of_a_turn()
    loop.threads.answer(1)
    assert "claim" in loop.steps_of_a_turn()
    assert loop.claimed() == 8


def test_a_claim_and_its_settlement_are_counted_with_their_time(loop: LoopOnClock) -> None:
    claim = loop.queues[0].claim

    def slow(limit: int, **options: object) -> list:
        loop.clock.now += 0.2
        return claim(limit, **options)

    loop.queues[0].claim = slow
    loop.begin(count=2)
    counted = loop.metrics.values()
    assert counted.in_flight[TOPIC_ORDER] == 2
    assert counted.claim_seconds[TOPIC_ORDER].total == pytest.approx(0.2)
    loop.threads.answer(0)
    loop.turns(1)
    counted = loop.metrics.values()
    assert counted.in_flight[TOPIC_ORDER] == 1 and counted.deliveries[TOPIC_ORDER, "delivered"] == 1


def test_no_suspect_of_a_paused_topic_or_of_a_target_that_serves_nobody_stops_the_others(make_loop: MakeLoop) -> None:
    loop = make_loop(TOPIC_ORDER, TOPIC_CART)
    loop.publish(TOPIC_ORDER, suspect=True)
    loop.publish(TOPIC_CART)
    loop.paused = {TOPIC_ORDER}
    loop.turns(2)
    assert [message.topic for message in loop.held.messages()] == [TOPIC_CART]
    loop.paused = set()
    loop.courier.allowance = lambda target: 0 if target == "/order" else None
    loop.turns(2)
    assert "claim_suspect" not in loop.steps


def test_nothing_but_a_probe_is_claimed_for_a_target_that_serves_nobody(loop: LoopOnClock) -> None:
    allowed = {"api": None, "/order": 0}
    loop.courier.allowance = lambda target: allowed[target]
    loop.publish(count=5)
    loop.turns(2)
    assert loop.claimed() == 0
    allowed["/order"] = 1
    loop.turns(3)
    assert loop.claimed() == 1


def test_topics_share_what_their_host_allows(make_loop: MakeLoop) -> None:
    loop = make_loop(TOPIC_ORDER, TOPIC_CART)
    loop.courier.allowance = lambda target: 3 if target == "api" else None
    loop.publish(TOPIC_ORDER, count=2)
    loop.publish(TOPIC_CART, count=2)
    loop.turns(3)
    assert loop.claimed() == 3


def test_bodies_in_hand_leave_less_room_and_one_larger_than_all_of_it_no_second(loop: LoopOnClock) -> None:
    loop.begin(count=2, length=1000)
    loop.begin(length=2 * BYTES_IN_HAND)
    loop.begin(length=10)
    assert [asked[1:] for asked in loop.queues[0].asked] == [
        (BYTES_IN_HAND, True),
        (BYTES_IN_HAND - 2000, True),
        (BYTES_IN_HAND - 2000, False),
    ]


def test_a_message_that_waits_for_room_has_the_next_room(make_loop: MakeLoop) -> None:
    loop = make_loop(TOPIC_ORDER, TOPIC_CART)
    orders, carts = loop.queues
    orders.short_of_room = True
    loop.publish(TOPIC_ORDER, count=30)
    loop.publish(TOPIC_CART, count=30)
    loop.turns(3)
    assert len(orders.asked) == 2 and not carts.asked, "its memory is for the one that waits"
    orders.short_of_room = False
    for number in list(loop.threads.under_way):
        loop.threads.answer(number)
    loop.turns(2)
    assert carts.asked


def test_a_claim_that_brought_nothing_waits_for_the_next_poll(loop: LoopOnClock) -> None:
    loop.publish()
    loop.queues[0].claim = lambda *limits, **options: []
    loop.turns(1)
    began = loop.clock.now
    loop.turns(1)
    assert loop.clock.now == began + 1.0


def test_a_message_that_cannot_become_a_request_has_its_outcome_at_once(loop: LoopOnClock) -> None:
    loop.process = lambda event: Rejection(code="no_items", detail="an order without items")
    loop.publish()
    began = loop.clock.now
    loop.turns(2)
    assert loop.clock.now == began, "there is nothing to wait for"
    assert [each.outcome.reason for each, _ in loop.queues[0].settled] == ["no_items"]
    assert "submit" not in loop.steps


def test_a_defect_in_a_processor_costs_its_message_an_attempt(loop: LoopOnClock) -> None:
    def defect(event: object) -> Rejection:
        raise LookupError("a defect")

    loop.process = defect
    loop.publish()
    loop.turns(2)
    assert [(each.outcome.kind, each.outcome.reason) for each, _ in loop.queues[0].settled] == [
        (OutcomeKind.RETRY, "internal_error")
    ]


def test_an_update_of_an_order_that_is_not_there_is_sent_again_as_its_create(loop: LoopOnClock) -> None:
    absent = Outcome(kind=OutcomeKind.RETRY, reason="order_not_found_yet", http_status=404)
    loop.begin()
    loop.threads.answer(0, absent)
    loop.turns(1)
    assert [request for _, request in loop.threads.under_way.values()] == [CREATE]
    assert loop.claimed() == 1 and not loop.queues[0].settled


def test_an_update_whose_create_meets_a_defect_holds_up_no_other(loop: LoopOnClock) -> None:
    def defect(event: object) -> Rejection:
        raise LookupError("a defect")

    loop.create = defect
    loop.begin(count=2)
    loop.threads.answer(0, Outcome(kind=OutcomeKind.RETRY, reason="order_not_found_yet", http_status=404))
    loop.threads.answer(1)
    loop.turns(1)
    assert {each.message.id: (each.outcome.kind, each.outcome.reason) for each, _ in loop.queues[0].settled} == {
        0: (OutcomeKind.RETRY, "internal_error"),
        1: (OutcomeKind.DELIVERED, ""),
    }


def test_attempts_are_given_back_in_the_turn_in_which_an_outage_is_known(loop: LoopOnClock) -> None:
    loop.begin()
    loop.threads.answer(0, FAILED)
    loop.turns(1)
    assert loop.queues[0].rows[0].attempts == 1
    loop.courier.is_open = lambda target: target == "/order"
    assert "refund" in loop.steps_of_a_turn()
    assert loop.queues[0].rows[0].attempts == 0


def test_a_shop_that_cannot_be_read_afresh_rejects_no_message(loop: LoopOnClock) -> None:
    loop.process = lambda event: Rejection(code="unknown_config_id", detail="row 7")
    loop.publish()
    shop_reads = []

    def unreadable(*arguments: object) -> object:
        shop_reads.append(loop.clock.now)
        raise GONE

    loop.duties.run(in_hand=0)
    loop.read_shop = unreadable
    loop.turns(1)
    assert len(shop_reads) == 1
    loop.read_shop = None
    loop.turn_until(1)
    assert [(each.outcome.kind, each.outcome.reason) for each, _ in loop.queues[0].settled[:1]] == [
        (OutcomeKind.RELEASED, "shop_unread")
    ]
    loop.turn_until(2)
    assert [each.outcome.kind for each, _ in loop.queues[0].settled[1:]] == [OutcomeKind.FAILED]


# ---------------------------------------------------------------- a lost database


def test_a_lost_database_keeps_what_is_in_hand_and_is_asked_again_after_pauses_that_double(
    loop: LoopOnClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    loop.begin(count=2)
    loop.threads.answer(0)
    loop.fail["settle"] = GONE
    tried = []
    for _ in range(400):
        if "settle" in loop.steps_of_a_turn():
            tried.append(loop.clock.now)
        if len(tried) == 9:
            break
    pauses = [later - earlier for earlier, later in pairwise(tried)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, MAX_DATABASE_PAUSE, MAX_DATABASE_PAUSE])
    assert loop.claimed() == 2 and not loop.loop.status().database_up
    assert events(caplog).count("database_away") == 1

    del loop.fail["settle"]
    loop.turn_until(MAX_DATABASE_PAUSE)
    assert [(each.message.id, in_doubt) for each, in_doubt in loop.queues[0].settled] == [(0, True)]
    assert loop.renewals_woken > 0 and loop.loop.status().database_up
    assert events(caplog).count("database_back") == 1


def test_after_a_lost_database_nothing_is_in_doubt_any_more(loop: LoopOnClock) -> None:
    loop.begin(count=2)
    loop.fail["poll"] = GONE
    loop.turn_until(1.5)
    del loop.fail["poll"]
    loop.turn_until(5)
    woken = loop.renewals_woken
    loop.threads.answer(1)
    loop.turns(1)
    assert loop.queues[0].settled[-1][1] is False and loop.renewals_woken == woken


def test_another_session_makes_what_was_written_doubtful(loop: LoopOnClock) -> None:
    loop.begin()
    loop.threads.answer(0)
    loop.database.generation += 1
    loop.turns(1)
    assert [in_doubt for _, in_doubt in loop.queues[0].settled] == [True]
    assert loop.renewals_woken == 1


def test_results_that_arrive_while_the_database_is_away_are_settled_afterwards(loop: LoopOnClock) -> None:
    loop.begin(count=2)
    loop.threads.answer(0)
    loop.fail["settle"] = GONE
    loop.turns(1)
    loop.threads.answer(1)
    loop.turns(5)
    del loop.fail["settle"]
    loop.turn_until(MAX_DATABASE_PAUSE)
    assert sorted(each.message.id for each, _ in loop.queues[0].settled) == [0, 1]


def test_a_refused_login_wants_the_configuration_read_again_and_is_told_at_once(
    loop: LoopOnClock, caplog: pytest.LogCaptureFixture
) -> None:
    loop.reload_is_usable = False
    loop.publish()
    for error, told in ((GONE, 1), (DatabaseRefused("access denied"), 2), (GONE, 2), (DatabaseRefused("again"), 3)):
        loop.fail["claim"] = error
        loop.turn_until(3 * MAX_DATABASE_PAUSE if told == 1 else MAX_DATABASE_PAUSE)
        assert events(caplog).count("database_away") == told
    assert set(loop.prepared_reloads) == {False}


def test_contention_is_no_lost_database(loop: LoopOnClock, caplog: pytest.LogCaptureFixture) -> None:
    loop.begin()
    loop.threads.answer(0)
    loop.fail["settle"] = Contention("deadlock")
    loop.turns(3)
    assert loop.loop.status().database_up and loop.claimed() == 1
    del loop.fail["settle"]
    loop.turns(1)
    assert [in_doubt for _, in_doubt in loop.queues[0].settled] == [False]
    assert [event for event in events(caplog) if event.startswith("database")] == ["database_contention"]


def test_a_claim_that_meets_a_defect_gives_its_messages_back_untouched(
    loop: LoopOnClock, caplog: pytest.LogCaptureFixture
) -> None:
    loop.publish(count=2)
    loop.fail["submit"] = LookupError("a defect")
    loop.turns(1)
    del loop.fail["submit"]
    loop.turns(2)
    given_back = [each for each, _ in loop.queues[0].settled]
    assert {each.outcome.kind for each in given_back} == {OutcomeKind.RELEASED}
    assert "turn_failed" in events(caplog)


def test_a_defect_in_judging_outcomes_loses_none_of_them(loop: LoopOnClock, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*outcome: object) -> object:
        raise LookupError("a defect")

    loop.begin(count=2)
    loop.threads.answer(0)
    loop.threads.answer(1)
    with monkeypatch.context() as patch:
        patch.setattr(loop.outcomes, "settlement", defect)
        loop.turns(3)
    loop.turn_until(5)
    assert [row.status for row in loop.queues[0].rows] == ["delivered"] * 2


def test_a_defect_that_lasts_is_told_once_a_minute(loop: LoopOnClock, caplog: pytest.LogCaptureFixture) -> None:
    loop.publish()
    loop.fail["claim"] = LookupError("a defect")
    loop.turn_until(100)
    assert events(caplog).count("turn_failed") == 2
    assert loop.loop.status().turn_problem == "a defect of this program (LookupError), which its log has"
    del loop.fail["claim"]
    loop.turn_until(106)
    assert loop.loop.status().turn_problem == ""


def test_one_outcome_that_cannot_be_written_holds_up_no_other(loop: LoopOnClock) -> None:
    loop.begin(count=2)
    settle = loop.queues[0].settle

    def refuses_the_first(settlements: list, *, in_doubt: bool = False) -> object:
        if any(each.message.id == 0 and each.outcome.kind is OutcomeKind.DELIVERED for each in settlements):
            raise LookupError("a defect")
        return settle(settlements, in_doubt=in_doubt)

    loop.queues[0].settle = refuses_the_first
    loop.threads.answer(0)
    loop.threads.answer(1)
    loop.turns(1)
    assert {each.message.id: each.outcome.kind for each, _ in loop.queues[0].settled} == {
        0: OutcomeKind.RETRY,
        1: OutcomeKind.DELIVERED,
    }


def test_an_outcome_that_the_database_refuses_stays_true_until_it_is_written(loop: LoopOnClock) -> None:
    """As by a privilege that somebody took away."""
    loop.begin(count=2)
    settle = loop.queues[0].settle

    def refuses_the_first(settlements: list, *, in_doubt: bool = False) -> object:
        if any(each.message.id == 0 for each in settlements):
            raise ShopError("UPDATE command denied")
        return settle(settlements, in_doubt=in_doubt)

    loop.queues[0].settle = refuses_the_first
    loop.threads.answer(0)
    loop.threads.answer(1)
    loop.turns(1)
    assert [row.status for row in loop.queues[0].rows] == ["pending", "delivered"]
    assert not loop.loop.status().database_up, "it is left alone for a while"
    assert loop.loop.status().turn_problem == "UPDATE command denied"
    assert loop.steps[-1].startswith("register"), "others see it at once"
    loop.queues[0].settle = settle
    loop.turn_until(1)
    assert [row.status for row in loop.queues[0].rows] == ["delivered"] * 2


# ---------------------------------------------------------------- limits


def test_a_reload_leaves_what_is_left_of_the_limits() -> None:
    limits = Limits(max_messages=10, max_runtime_seconds=60.0, stop_when_empty=True)
    assert limits.remaining(settled=4, seconds=50.5) == Limits(
        max_messages=6, max_runtime_seconds=9.5, stop_when_empty=True
    )
    assert limits.remaining(settled=11, seconds=61.0) == Limits(
        max_messages=0, max_runtime_seconds=0.0, stop_when_empty=True
    )
    assert Limits().remaining(settled=4, seconds=50.5) == Limits()


def test_what_was_only_released_does_not_count_towards_max_messages(make_loop: MakeLoop) -> None:
    loop = make_loop(limits=Limits(max_messages=2))
    loop.begin(count=5)
    assert loop.claimed() == 2, "never more in hand than are left"
    loop.threads.answer(0, THROTTLED)
    loop.threads.answer(1, FAILED)
    loop.turns(1)
    assert loop.loop.settled_count == 1
    [left] = loop.held.messages()
    loop.threads.answer(left.id)
    assert loop.loop.run() is End.MESSAGES
    assert loop.loop.settled_count == 2


def test_time_is_up_at_the_second(make_loop: MakeLoop) -> None:
    loop = make_loop(limits=Limits(max_runtime_seconds=7.5), poll_interval=2.0)
    began = loop.clock.now
    assert loop.loop.run() is End.RUNTIME
    assert loop.clock.now == began + 7.5
    assert loop.steps.count("poll") == 4


def test_time_is_up_without_a_database_too(make_loop: MakeLoop) -> None:
    loop = make_loop(limits=Limits(max_runtime_seconds=7.5))
    loop.publish()
    loop.fail["claim"] = GONE
    began = loop.clock.now
    assert loop.loop.run() is End.RUNTIME
    assert loop.clock.now == began + 7.5


def test_the_queues_are_empty_only_after_a_look_everywhere(make_loop: MakeLoop) -> None:
    loop = make_loop(limits=Limits(stop_when_empty=True))
    assert loop.loop.run() is End.EMPTY
    assert loop.steps[-3:] == ["poll", "sweep_all", "recheck"]


def test_a_released_message_is_waited_for_before_the_queues_are_empty(make_loop: MakeLoop) -> None:
    loop = make_loop(limits=Limits(stop_when_empty=True))
    loop.begin()
    loop.threads.answer(0, THROTTLED)
    released_at = loop.clock.now
    loop.arrivals.at(released_at + 9, lambda: loop.threads.answer(0))
    assert loop.loop.run() is End.EMPTY
    assert loop.clock.now >= released_at + 9
    assert loop.queues[0].rows[0].status == "delivered"


def test_a_shop_that_is_switched_off_has_nothing_left(make_loop: MakeLoop) -> None:
    loop = make_loop(limits=Limits(stop_when_empty=True))
    loop.publish()
    loop.shop = replace(loop.shop, enabled=False)
    assert loop.loop.run() is End.EMPTY
    assert loop.queues[0].rows[0].status == "pending"


# ---------------------------------------------------------------- the end


def test_a_stop_releases_what_was_not_sent_and_waits_for_the_answers_under_way(loop: LoopOnClock) -> None:
    loop.publish(count=6)
    loop.turns(2)
    began = loop.clock.now
    loop.arrivals.at(began + 3, lambda: loop.threads.answer(0))
    loop.arrivals.at(began + 4, lambda: loop.threads.answer(1))
    loop.stop()
    assert loop.loop.run() is End.STOPPED
    assert [row.status for row in loop.queues[0].rows] == ["delivered"] * 2 + ["pending"] * 4
    assert {(each.outcome.kind, each.outcome.reason) for each, _ in loop.queues[0].settled[:4]} == {
        (OutcomeKind.RELEASED, "shutdown")
    }
    assert loop.clock.now == pytest.approx(began + 4, abs=0.01), "not a moment longer"
    assert loop.stopping.is_set() and loop.service_manager.told == ["stopping within 45 s"]


def test_what_has_no_answer_at_shutdown_timeout_is_revoked_and_released(make_loop: MakeLoop) -> None:
    loop = make_loop(shutdown_timeout=5.0)
    loop.begin()
    [message] = loop.held.messages()
    loop.stop()
    began = loop.clock.now
    loop.loop.run()
    assert message.lease.valid_until == 0.0, "its thread may not send it any more"
    assert [each.outcome.reason for each, _ in loop.queues[0].settled] == ["late"]
    assert loop.clock.now == pytest.approx(began + 5.0)


def test_a_second_stop_request_ends_the_loop_neither_sooner_nor_in_another_way(loop: LoopOnClock) -> None:
    """The command ends the process at a second signal; an embedding program may call `stop` as often as it likes."""
    loop.begin()
    began = loop.clock.now
    loop.arrivals.at(began + 1, loop.stop)
    loop.arrivals.at(began + 2, loop.stop)
    loop.arrivals.at(began + 3, lambda: loop.threads.answer(0))
    assert loop.loop.run() is End.STOPPED
    assert loop.queues[0].rows[0].status == "delivered"
    assert loop.clock.now == pytest.approx(began + 3, abs=0.01)


def test_nothing_new_is_sent_while_the_loop_ends(loop: LoopOnClock) -> None:
    absent = Outcome(kind=OutcomeKind.RETRY, reason="order_not_found_yet", http_status=404)
    loop.begin(count=3)
    loop.stop()
    loop.steps.clear()
    loop.arrivals.at(loop.clock.now + 1, lambda: loop.threads.answer(0, absent))
    loop.arrivals.at(loop.clock.now + 1, lambda: loop.threads.answer(1))
    loop.loop.run()
    assert not {"claim", "submit"} & set(loop.steps)
    assert loop.queues[0].rows[0].status == "pending"


def test_a_loop_that_ends_without_its_database_leaves_its_messages_to_their_leases(
    make_loop: MakeLoop, caplog: pytest.LogCaptureFixture
) -> None:
    loop = make_loop(shutdown_timeout=5.0)
    loop.begin()
    loop.threads.answer(0)
    loop.fail["settle"] = GONE
    loop.stop()
    began = loop.clock.now
    assert loop.loop.run() is End.STOPPED
    assert loop.clock.now == pytest.approx(began + 5.0)
    assert loop.claimed() == 1 and events(caplog)[-1] == "left_behind"
    assert "late" not in events(caplog), "it has its answer"


def test_a_database_that_comes_back_while_the_loop_ends_is_used(make_loop: MakeLoop) -> None:
    loop = make_loop(shutdown_timeout=5.0)
    loop.begin()
    loop.threads.answer(0)
    loop.fail["settle"] = GONE
    loop.arrivals.at(loop.clock.now + 2, loop.fail.clear)
    loop.stop()
    loop.loop.run()
    assert loop.queues[0].rows[0].status == "delivered"


def test_contention_while_the_loop_ends_is_tried_again(make_loop: MakeLoop) -> None:
    loop = make_loop(shutdown_timeout=5.0)
    loop.begin()
    loop.threads.answer(0)
    loop.fail["settle"] = Contention("deadlock")
    loop.arrivals.at(loop.clock.now + 1, loop.fail.clear)
    loop.stop()
    loop.loop.run()
    assert loop.queues[0].rows[0].status == "delivered"


def test_a_new_configuration_ends_the_loop_for_its_successor(loop: LoopOnClock) -> None:
    loop.begin()
    loop.reload.ask()
    loop.arrivals.at(loop.clock.now + 0.5, lambda: loop.threads.answer(0))
    assert loop.loop.run() is End.RELOAD
    assert loop.prepared_reloads == [True] and loop.service_manager.told == ["reloading"]
    assert loop.claimed() == 0


def test_a_changed_shop_wants_a_reload(loop: LoopOnClock) -> None:
    loop.turns(1)
    loop.shop = replace(loop.shop, values={("zithara", "client_id"): ("new", "the shop")})
    assert loop.loop.run() is End.RELOAD


def test_the_shops_poison_pill_ends_the_loop_after_what_is_under_way(loop: LoopOnClock) -> None:
    loop.begin()
    loop.poison_pill = "2"
    loop.arrivals.at(loop.clock.now + 4, lambda: loop.threads.answer(0))
    assert loop.loop.run() is End.POISON_PILL
    assert loop.queues[0].rows[0].status == "delivered"
