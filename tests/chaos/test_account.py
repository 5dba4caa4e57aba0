"""The judge of the chaos: what it must see, and what it must not take for a fault."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.account import Row, judge, report
from chaos.php import Held
from chaos.world import Arrival, Blow, Fate, Misfortune, Poison, World, message_key
from zithara_worker.queue.statuses import Status


def row(
    message_id: int,
    *,
    group: str = "g",
    coalesced: bool = False,
    status: Status = Status.COMPLETE,
    **told: Any,
) -> Row:
    told.setdefault("state", coalesced)
    return Row(key=f"q-{message_id}", message_id=message_id, group=group, coalesced=coalesced, status=status, **told)


def world(*arrivals: tuple[int, float, Fate], blows: tuple[Misfortune, ...] = ()) -> World:
    """Arrivals (message id, when, fate) in order, all from the worker in place 0."""
    made = World(misfortunes=list(blows))
    for message_id, at, fate in arrivals:
        made.order.append(f"q-{message_id}")
        fault = "none" if fate is Fate.ANSWERED else fate.value
        made.arrivals.setdefault(f"q-{message_id}", []).append(Arrival(at, 0, fate, fault))
    return made


def test_a_quiet_run_is_good() -> None:
    verdict = judge([row(1), row(2)], world((1, 1.0, Fate.ANSWERED), (2, 2.0, Fate.ANSWERED)))
    assert verdict.good
    assert (verdict.delivered, verdict.arrivals) == (2, 2)


@pytest.mark.parametrize("status", [Status.NEW, Status.IN_PROGRESS, Status.RETRY_REQUIRED, Status.ERROR])
def test_a_message_that_is_not_complete_in_the_end_is_lost(status: Status) -> None:
    assert len(judge([row(1, status=status)], world((1, 1.0, Fate.ANSWERED))).lost) == 1


def test_a_complete_message_that_never_arrived_is_lost_unless_a_newer_snapshot_did() -> None:
    arrived = world((2, 1.0, Fate.ANSWERED))
    assert len(judge([row(1), row(2)], arrived).lost) == 1
    verdict = judge([row(1, coalesced=True), row(2, coalesced=True)], arrived)
    assert (verdict.good, verdict.superseded) == (True, 1)
    older = world((1, 1.0, Fate.ANSWERED))
    verdict = judge([row(1, coalesced=True), row(2, coalesced=True, content=1)], older)
    assert len(verdict.lost) == 1, "an older one replaces nothing"


def test_a_snapshot_that_tells_what_arrived_before_need_not_arrive() -> None:
    same = [row(1, coalesced=True, content=7), row(2, coalesced=True, content=7)]
    verdict = judge(same, world((1, 1.0, Fate.ANSWERED)))
    assert (verdict.good, verdict.unchanged) == (True, 1)


def test_a_snapshot_that_need_not_arrive_replaces_older_ones() -> None:
    """A arrived; B and A again were pending together."""
    rows = [row(number, coalesced=True, content=content) for number, content in ((1, 7), (2, 8), (3, 7))]
    verdict = judge(rows, world((1, 1.0, Fate.ANSWERED)))
    assert (verdict.good, verdict.unchanged, verdict.superseded) == (True, 1, 1)


def test_what_the_api_was_told_last_is_what_the_newest_snapshot_tells() -> None:
    """A, B, A again, which was taken for known though B had arrived since."""
    rows = [row(number, coalesced=True, content=content) for number, content in ((1, 7), (2, 8), (3, 7))]
    verdict = judge(rows, world((1, 1.0, Fate.ANSWERED), (2, 2.0, Fate.ANSWERED)))
    assert (verdict.lost, len(verdict.outdated)) == ([], 1)
    assert judge(rows, world((2, 1.0, Fate.ANSWERED), (3, 2.0, Fate.ANSWERED))).good


def test_a_refused_request_is_no_delivery_and_its_repetition_no_duplicate() -> None:
    assert len(judge([row(1)], world((1, 1.0, Fate.REFUSED))).lost) == 1
    verdict = judge([row(1)], world((1, 1.0, Fate.REFUSED), (1, 2.0, Fate.ANSWERED)))
    assert (verdict.good, verdict.refused, sum(verdict.duplicates.values())) == (True, 1, 0)


def test_an_older_message_after_a_newer_one_of_its_group_is_out_of_order() -> None:
    arrivals = world((2, 1.0, Fate.ANSWERED), (1, 2.0, Fate.REFUSED))
    assert len(judge([row(1, coalesced=True), row(2)], arrivals).out_of_order) == 1
    assert not judge([row(1, group="a", coalesced=True), row(2, group="b")], arrivals).out_of_order


def test_a_repetition_of_the_older_message_after_the_newer_one_is_out_of_order() -> None:
    arrivals = world((1, 1.0, Fate.ANSWER_LOST), (2, 2.0, Fate.ANSWERED), (1, 3.0, Fate.ANSWERED))
    assert len(judge([row(1), row(2)], arrivals).out_of_order) == 1


def test_a_lost_answer_explains_a_duplicate() -> None:
    verdict = judge([row(1)], world((1, 1.0, Fate.ANSWER_LOST), (1, 2.0, Fate.ANSWERED)))
    assert verdict.good
    assert sum(verdict.duplicates.values()) == 1


@pytest.mark.parametrize(
    ("blow", "good"),
    [
        (Misfortune(Blow.KILL, 0, 1.5, 1.6), True),
        (Misfortune(Blow.DATABASE, None, 1.5, 1.6), True),
        (Misfortune(Blow.KILL, 1, 1.5, 1.6), False),
        (Misfortune(Blow.KILL, 0, -5.0, -4.0), False),
        (Misfortune(Blow.KILL, 0, 2.5, 2.6), False),
    ],
    ids=["its worker", "the database", "another worker", "long before", "afterwards"],
)
def test_only_what_hit_its_sender_in_between_explains_a_duplicate(blow: Misfortune, good: bool) -> None:
    verdict = judge([row(1)], world((1, 1.0, Fate.ANSWERED), (1, 2.0, Fate.ANSWERED), blows=(blow,)))
    assert verdict.good is good
    assert ("unexplained" in report(verdict, {})) is True
    assert len(verdict.unexplained) == (0 if good else 1)


def test_an_arrival_that_the_database_does_not_know_is_a_finding() -> None:
    assert judge([], world((1, 1.0, Fate.ANSWERED))).strangers


def test_what_php_processed_is_not_lost_and_its_groups_are_not_judged_for_order() -> None:
    arrivals = world((2, 1.0, Fate.ANSWERED))
    verdict = judge([row(1), row(2)], arrivals, {1: Held(2.0, processed=True)})
    assert (verdict.good, verdict.by_php, verdict.delivered) == (True, 1, 1)
    backwards = world((2, 1.0, Fate.ANSWERED), (1, 2.0, Fate.ANSWERED))
    assert judge([row(1), row(2), row(3)], backwards, {3: Held(3.0, processed=True)}).out_of_order == []
    assert len(judge([row(1), row(2)], backwards).out_of_order) == 1


def test_a_message_that_both_processed_needs_an_explanation() -> None:
    twice = {1: Held(2.0, processed=True)}
    assert len(judge([row(1)], world((1, 1.0, Fate.ANSWERED)), twice).unexplained) == 1
    assert judge([row(1)], world((1, 1.0, Fate.ANSWER_LOST)), twice).good
    assert judge([row(1)], world((1, 1.0, Fate.ANSWERED)), {1: Held(2.0, processed=False)}).good


def poisoned(poison: Poison, *arrivals: tuple[int, float, Fate]) -> World:
    """Message 1 is poison."""
    made = world((1, 1.0, Fate.REFUSED), *arrivals)
    made.poison["q-1"] = poison
    return made


@pytest.mark.parametrize(
    ("poison", "attempts", "reason", "good"),
    [
        (Poison.FAILS, 6, "http_500", True),
        (Poison.FAILS, 5, "http_500", False),
        (Poison.FAILS, 6, "", False),
        (Poison.KILLS, 6, "worker_died", True),
        (Poison.REJECTED, 1, "http_422", True),
        (Poison.REJECTED, 0, "http_422", False),
    ],
)
def test_poison_ends_in_error_with_a_reason_after_all_its_attempts(
    poison: Poison, attempts: int, reason: str, good: bool
) -> None:
    ended = row(1, status=Status.ERROR, attempts=attempts, failed=reason)
    verdict = judge([ended], poisoned(poison), attempt_limit=6)
    assert (verdict.good, len(verdict.unfair)) == (good, int(not good))
    assert ("UNFAIR" in report(verdict, {})) is not good


def test_poison_that_was_never_sent_did_not_end_by_its_own_attempts() -> None:
    never = World(poison={"q-1": Poison.FAILS})
    assert judge([row(1, status=Status.ERROR, attempts=6, failed="http_500")], never, attempt_limit=6).unfair


@pytest.mark.parametrize("status", [Status.NEW, Status.IN_PROGRESS, Status.RETRY_REQUIRED, Status.COMPLETE])
def test_poison_that_has_another_end_is_lost(status: Status) -> None:
    assert len(judge([row(1, status=status)], poisoned(Poison.FAILS), attempt_limit=6).lost) == 1


def test_poison_may_be_discarded_or_replaced_by_a_newer_snapshot() -> None:
    assert judge([row(1, discarded=True)], poisoned(Poison.FAILS), attempt_limit=6).good
    newer = poisoned(Poison.FAILS, (2, 2.0, Fate.ANSWERED))
    assert judge([row(1, coalesced=True), row(2, coalesced=True)], newer, attempt_limit=6).good
    assert judge([row(1), row(2)], newer, attempt_limit=6).lost


def test_a_message_that_waited_too_long_starved_unless_poison_is_in_its_group() -> None:
    late = world((2, 100.0, Fate.ANSWERED))
    verdict = judge([row(2, committed_at=39.9)], late)
    assert (len(verdict.starved), verdict.good) == (1, False)
    assert judge([row(2, committed_at=40.1)], late).good
    behind = poisoned(Poison.FAILS, (2, 100.0, Fate.ANSWERED))
    ended = row(1, status=Status.ERROR, attempts=1, failed="http_500")
    assert judge([ended, row(2, committed_at=1.0)], behind).good
    assert judge([ended, row(2, group="other", committed_at=1.0)], behind).starved


def test_a_retry_goes_before_a_newer_message_only_while_that_was_not_delivered() -> None:
    lost = world((2, 1.0, Fate.ANSWER_LOST), (1, 2.0, Fate.ANSWERED), (2, 3.0, Fate.ANSWERED))
    assert judge([row(1), row(2)], lost).out_of_order
    assert judge([row(1, retried=True), row(2)], lost).out_of_order == []
    delivered = world((2, 1.0, Fate.ANSWERED), (1, 2.0, Fate.ANSWERED))
    assert judge([row(1, retried=True), row(2)], delivered).out_of_order
    assert judge([row(1, retried=True, forced=True), row(2)], delivered).out_of_order == []


def orphan(message_id: int, **told: Any) -> Row:
    """An order's or, with `coalesced`, a cart's message that a PHP consumer had died with."""
    return row(message_id, **{"state": True, "orphan": True, **told})


def test_what_a_dead_php_consumer_held_need_not_arrive_once_something_newer_tells_all_of_it() -> None:
    newer = world((2, 1.0, Fate.ANSWERED))
    verdict = judge([orphan(1), row(2, state=True)], newer)
    assert (verdict.good, verdict.overtaken, verdict.saved) == (True, 1, 1)
    assert judge([orphan(1, state=False), row(2)], newer).lost, "an event replaces nothing"
    assert judge([row(1, state=True), row(2, state=True)], newer).lost, "nobody but PHP lets go of it"
    assert judge([orphan(2), row(1, state=True)], world((1, 1.0, Fate.ANSWERED))).lost, "an older one tells other news"


def test_only_a_newer_create_tells_all_of_a_create() -> None:
    newer = world((2, 1.0, Fate.ANSWERED))
    assert judge([orphan(1, create=True), row(2, state=True)], newer).lost
    assert judge([orphan(1, create=True), row(2, state=True, create=True)], newer).overtaken == 1
    late = world((2, 1.0, Fate.ANSWERED), (1, 2.0, Fate.ANSWERED))
    verdict = judge([orphan(1, create=True), row(2, state=True)], late)
    assert (verdict.good, verdict.behind.total()) == (True, 1)
    assert judge([orphan(1, create=True), row(2, state=True, create=True)], late).older_over_newer


@pytest.mark.parametrize("fate", [Fate.ANSWERED, Fate.REFUSED])
def test_what_a_dead_php_consumer_held_goes_over_nothing_newer(fate: Fate) -> None:
    late = world((2, 1.0, Fate.ANSWERED), (1, 2.0, fate))
    verdict = judge([orphan(1, coalesced=True), row(2, coalesced=True)], late)
    assert (len(verdict.older_over_newer), verdict.out_of_order, verdict.good) == (1, [], False)
    assert "OLDER OVER NEWER" in report(verdict, {})
    assert judge([orphan(1, state=False), row(2)], late).out_of_order, "an event is judged by its place"


def test_a_newer_message_that_is_sent_again_mends_what_came_behind_it() -> None:
    again = world((2, 1.0, Fate.ANSWER_LOST), (1, 2.0, Fate.ANSWERED), (2, 3.0, Fate.ANSWERED))
    verdict = judge([orphan(1), row(2, state=True)], again)
    assert (verdict.older_over_newer, verdict.behind.total()) == ([], 1)


def test_an_order_whose_last_state_was_not_told_last_has_lost_its_news() -> None:
    rows = [orphan(1, create=True, content=7), row(2, state=True, content=8)]
    behind = world((2, 1.0, Fate.ANSWERED), (1, 2.0, Fate.ANSWERED))
    verdict = judge(rows, behind)
    assert (len(verdict.outdated), verdict.good) == (1, False)
    assert "OUTDATED" in report(verdict, {})
    verdict = judge(rows, behind, marked={"g"})
    assert (verdict.outdated, verdict.marked, verdict.good) == ([], 1, True)
    late = [row(1, state=True, content=7), row(2, state=True, content=8)]
    assert judge(late, behind, marked={"g"}).outdated, "a mark without a dead PHP consumer explains nothing"


def test_a_cart_that_is_published_after_it_has_become_an_order_is_never_sent() -> None:
    after = row(1, coalesced=True, committed_at=2.0, ended_at=1.0)
    verdict = judge([after], World())
    assert (verdict.good, verdict.inactive, verdict.saved) == (True, 1, 1)
    verdict = judge([after], world((1, 3.0, Fate.REFUSED), (1, 4.0, Fate.ANSWERED)))
    assert (len(verdict.reminded), verdict.good) == (1, False)
    assert "REMINDED" in report(verdict, {})


def test_a_cart_that_was_published_before_it_became_an_order_may_be_sent_or_not() -> None:
    before = row(1, coalesced=True, committed_at=2.0, ended_at=3.0)
    assert judge([before], world((1, 2.5, Fate.ANSWERED))).good
    assert judge([before], World()).inactive == 1
    assert judge([row(1, coalesced=True, committed_at=2.0)], World()).lost


def test_the_last_state_of_a_cart_that_has_become_an_order_is_not_judged() -> None:
    rows = [row(number, coalesced=True, content=number, committed_at=float(number), ended_at=1.5) for number in (1, 2)]
    assert judge(rows, world((1, 1.0, Fate.ANSWERED))).good


def test_messages_of_one_id_are_told_apart_after_ids_have_begun_again() -> None:
    assert len({message_key(epoch, "q", 1) for epoch in range(3)}) == 3


def test_all_that_was_saved_is_told_by_its_reason() -> None:
    rows = [
        row(1, coalesced=True, content=7),
        row(2, coalesced=True, content=8),
        row(3, coalesced=True, content=7),
        row(4, group="h", coalesced=True, committed_at=2.0, ended_at=1.0),
        orphan(5, group="i"),
        row(6, group="i", state=True),
    ]
    verdict = judge(rows, world((1, 1.0, Fate.ANSWERED), (6, 2.0, Fate.ANSWERED)))
    assert (verdict.good, verdict.saved) == (True, 4)
    assert (verdict.superseded, verdict.unchanged, verdict.overtaken, verdict.inactive) == (1, 1, 1, 1)
    assert "requests saved           4" in report(verdict, {})
