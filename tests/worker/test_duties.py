"""What the timed duties do when, on a clock of the test."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from support.loops import LoopOnClock

from zithara_worker.limits import End
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER
from zithara_worker.worker.duties import EXPIRY_INTERVAL, REGISTRY_INTERVAL, SHOP_INTERVAL, SWEEP_SHARE


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> LoopOnClock:
    return LoopOnClock(monkeypatch, (TOPIC_ORDER, TOPIC_CART), poll_interval=0.5)


def run_for(loop: LoopOnClock, seconds: float) -> dict[str, int]:
    """How often each step came in so many seconds, from a moment at which everything has just been done."""
    loop.duties.run(in_hand=0)
    loop.steps.clear()
    until = loop.clock.now + seconds
    while loop.clock.now < until:
        loop.clock.now += 0.5
        loop.duties.run(in_hand=0)
    return {step: loop.steps.count(step) for step in loop.steps}


def test_each_duty_comes_in_its_own_interval(loop: LoopOnClock) -> None:
    counts = run_for(loop, 60.0)
    assert counts["poll"] == 120
    assert counts["recheck"] == 2 * 120, "of each queue, after each poll"
    assert counts["sweep"] == 60, "one queue every second poll"
    assert counts["shop"] == 60 / SHOP_INTERVAL
    assert counts["register 0"] == 60 / REGISTRY_INTERVAL
    assert "expiring" not in counts


def test_queues_take_turns_to_be_swept(loop: LoopOnClock) -> None:
    swept: list[str] = []
    for queue in loop.queues:
        queue.sweep = lambda topic=queue.topic: swept.append(topic)
    run_for(loop, 3.0)
    assert swept == [TOPIC_ORDER, TOPIC_CART, TOPIC_ORDER, TOPIC_CART]


def test_a_slow_sweep_takes_no_more_than_its_share_of_the_time(loop: LoopOnClock) -> None:
    began: list[float] = []

    def slow() -> None:
        began.append(loop.clock.now)
        loop.clock.now += 0.25

    for queue in loop.queues:
        queue.sweep = slow
    run_for(loop, 60.0)
    assert began[1] - began[0] >= 0.25 / SWEEP_SHARE


def test_a_round_of_the_expiry_guard_comes_in_slices_that_take_their_share_of_the_time(loop: LoopOnClock) -> None:
    slices: list[float] = []

    def slow_slice(lifetime_minutes: int) -> bool:
        slices.append(loop.clock.now)
        loop.clock.now += 0.1
        return len(slices) % 3 == 0

    loop.duties._expiry.run_slice = slow_slice
    run_for(loop, EXPIRY_INTERVAL + 60)
    within, after = slices[2] - slices[1], slices[3] - slices[2]
    assert 0.1 / SWEEP_SHARE <= within < 10
    assert after >= EXPIRY_INTERVAL


def test_the_guard_reckons_with_the_lifetime_that_the_shop_has_now(loop: LoopOnClock) -> None:
    lifetimes: list[int] = []
    loop.duties._expiry.run_slice = lambda minutes: bool(lifetimes.append(minutes)) or True
    loop.duties.run(in_hand=0)
    loop.shop = replace(loop.shop, new_messages_lifetime_minutes=60)
    run_for(loop, EXPIRY_INTERVAL)
    assert lifetimes == [10_080, 60]


def test_the_registry_is_told_what_is_in_hand(loop: LoopOnClock) -> None:
    loop.publish(count=3)
    loop.turn_until(REGISTRY_INTERVAL)
    assert [step for step in loop.steps if step.startswith("register")] == ["register 0", "register 3"]


def test_a_pause_and_its_end_are_logged_once_and_only_for_our_topics(
    loop: LoopOnClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    loop.paused = {TOPIC_CART, "zithara.webhook.events"}
    run_for(loop, 3.0)
    assert loop.duties.paused == {TOPIC_CART}
    loop.paused = set()
    run_for(loop, 3.0)
    told = [(getattr(record, "event", ""), getattr(record, "topic", "")) for record in caplog.records]
    assert told == [("paused", TOPIC_CART), ("resumed", TOPIC_CART)]


def test_the_first_poison_pill_that_is_seen_is_the_one_to_compare_with(loop: LoopOnClock) -> None:
    run_for(loop, 1.0)
    assert loop.duties.end is None
    loop.poison_pill = None
    run_for(loop, 1.0)
    assert loop.duties.end is End.POISON_PILL


def test_a_shop_that_is_switched_off_is_told_at_once_and_then_once_a_minute(
    loop: LoopOnClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    loop.shop = replace(loop.shop, active_config_id=None, values={("retry", "limit"): ("3", "the shop")})
    run_for(loop, 119.0)
    assert [getattr(record, "event", "") for record in caplog.records] == ["shop_disabled"] * 2
    assert not loop.duties.consumable and not loop.duties.shop_changed, "it may not be complete"
    loop.shop = replace(loop.shop, active_config_id=1)
    run_for(loop, SHOP_INTERVAL)
    assert [getattr(record, "event", "") for record in caplog.records][2:] == ["shop_enabled", "shop_changed"]
    assert loop.duties.shop_changed


def test_nothing_is_left_only_if_no_queue_has_any(loop: LoopOnClock) -> None:
    loop.duties.run(in_hand=0)
    assert loop.duties.nothing_left()
    loop.publish(TOPIC_CART)
    assert not loop.duties.nothing_left()
    loop.paused = {TOPIC_CART}
    assert loop.duties.nothing_left(), "what is paused cannot be claimed now"


def test_another_session_is_noticed_once_and_the_first_is_no_other(loop: LoopOnClock) -> None:
    assert [loop.duties.reconnected() for _ in range(2)] == [False, False]
    loop.database.generation = 7
    assert [loop.duties.reconnected() for _ in range(2)] == [True, False]
