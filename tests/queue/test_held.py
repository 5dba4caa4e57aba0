"""What a worker holds, by pure memory: what may be claimed, sent, renewed, lost and freed."""

from __future__ import annotations

from typing import Any

import pytest
from support.messages import message_of
from support.workers import LEASE_SECONDS, Clock

from zithara_worker.messages import Lease, Message
from zithara_worker.queue.held import ABANDONED_SECONDS, Held, Stage


@pytest.fixture
def held(clock: Clock) -> Held:
    return Held(worker_id="worker-a", lease_seconds=LEASE_SECONDS, clock=clock)


def message(id: int, *, until: float = 100.0, **changes: Any) -> Message:
    return message_of(id, lease=Lease(until), **changes)


def taken(held: Held, *messages: Message) -> None:
    held.next_claim()
    held.take(messages)


# ---------------------------------------------------------------- what is here


def test_what_was_taken_is_here_until_it_is_forgotten(held: Held) -> None:
    one, two = message(1), message(2, queue_id=2)
    taken(held, one, two)
    assert (len(held), 1 in held, 3 in held) == (2, True, False)
    assert (held.count([1]), held.count([1, 2]), held.count([3])) == (1, 2, 0)
    assert (held.groups(1), held.groups(2)) == ({"order:1"}, {"order:2"})
    held.forget([one])
    assert (len(held), 1 in held, held.groups(1), held.groups(2)) == (1, False, set(), {"order:2"})


def test_messages_are_told_by_the_stage_that_they_have_reached(held: Held) -> None:
    one, two, three, four = messages = [message(id) for id in (1, 2, 3, 4)]
    taken(held, *messages)
    held.hand_out(two)
    held.answered(three)
    held.settling([four])
    assert held.messages() == messages
    assert [held.messages(stage) for stage in Stage] == [[one], [two], [three], [four]]
    assert held.messages(Stage.CLAIMED, Stage.SETTLING) == [one, four]


def test_a_suspect_in_hand_is_known(held: Held) -> None:
    plain, suspect = message(1), message(2, suspect=True)
    taken(held, plain)
    assert not held.has_suspect
    taken(held, suspect)
    assert held.has_suspect
    held.forget([suspect])
    assert not held.has_suspect


@pytest.mark.parametrize(
    "again", [message(1, claim=2, group_key="order:other"), message(2, claim=2, group_key="order:1")]
)
def test_neither_a_message_in_hand_nor_another_one_of_its_group_is_taken(held: Held, again: Message) -> None:
    first = message(1)
    taken(held, first)
    with pytest.raises(RuntimeError, match=f"message {again.message_id} was claimed while its group was held"):
        taken(held, again)
    assert held.messages() == [first]


def test_the_same_group_of_another_queue_is_another_group(held: Held) -> None:
    taken(held, message(1, group_key="order:1"), message(2, group_key="order:1", queue_id=2))
    assert len(held) == 2


def test_what_is_said_of_an_earlier_claim_of_a_message_does_not_concern_the_present_one(held: Held) -> None:
    """Another worker took it over and gave it back, and it was claimed again: the old request may still end."""
    old = message(1)
    taken(held, old)
    held.forget([old])
    present = message(1, claim=2)
    taken(held, present)

    held.hand_out(old)
    held.settling([old])
    held.revoke(old)
    assert held.lose([old]) == []
    held.renewed([old], 500.0)
    held.forget([old])

    assert held.messages(Stage.CLAIMED) == [present]
    assert present.lease.valid_until == 100.0
    held.renewed([present], 500.0)
    assert present.lease.valid_until == 500.0, "it is not revoked"


# ---------------------------------------------------------------- leases


def test_a_renewal_lengthens_the_lease_of_what_is_held(held: Held) -> None:
    one = message(1)
    taken(held, one)
    assert held.renewable() == [one]
    held.renewed([one, message(2)], 500.0)
    assert one.lease.valid_until == 500.0


def test_what_was_revoked_is_renewed_in_the_tables_and_never_sent(held: Held) -> None:
    """Its row must stay ours until it is given back; its request must not leave any more."""
    one = message(1)
    taken(held, one)
    held.revoke(one)
    assert one.lease.valid_until == 0.0
    assert held.renewable() == [one]
    held.renewed([one], 500.0)
    assert one.lease.valid_until == 0.0


def test_what_was_lost_is_told_once_and_neither_sent_nor_renewed_nor_claimed_while_it_is_on_its_way(
    held: Held,
) -> None:
    one, two = message(1), message(2)
    taken(held, one, two)
    held.hand_out(one)
    assert held.lose([one]) == [one]
    assert one.lease.valid_until == 0.0
    assert held.lose([one]) == [], "told once"
    assert held.renewable() == [two]
    held.renewed([one], 500.0)
    assert one.lease.valid_until == 0.0
    assert (1 in held, held.groups(1)) == (True, {"order:1", "order:2"})


def test_what_is_being_settled_is_not_lost_when_its_row_is_gone(held: Held) -> None:
    one, two = message(1), message(2)
    taken(held, one, two)
    held.settling([one])
    held.answered(two)
    assert held.lose([one, two]) == [two]
    assert one.lease.valid_until == 100.0


def test_a_lease_in_nobodys_hands_is_an_orphan(held: Held) -> None:
    claim = held.next_claim()
    assert not held.is_orphan(1, claim), "its claim is under way"
    assert held.is_orphan(1, claim - 1), "an earlier claim is not"
    held.take([message(1, claim=claim)])
    assert not held.is_orphan(1, claim)
    assert held.is_orphan(1, claim - 1), "the row is of a claim that was given up"
    assert held.is_orphan(2, claim), "the claim has ended, and did not bring it"


def test_each_claim_has_a_number_of_its_own(held: Held) -> None:
    first = held.next_claim()
    assert [held.next_claim() for _ in range(2)] == [first + 1, first + 2]


def test_a_loop_that_has_stood_still_for_minutes_is_abandoned_until_it_turns(held: Held, clock: Clock) -> None:
    clock.pass_by(ABANDONED_SECONDS)
    assert not held.is_abandoned
    clock.pass_by(1)
    assert held.is_abandoned
    held.turned()
    assert not held.is_abandoned
