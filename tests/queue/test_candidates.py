"""Which message of a group is tried next, and in the place of which others: pure functions, without a database."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zithara_worker.messages import Event, Pending
from zithara_worker.queue.backlog import as_text, from_text
from zithara_worker.queue.candidates import (
    REPLACED_AT_ONCE,
    Candidate,
    coalesced,
    newest_replacing_all_before,
    wanted_new_groups,
    with_older_first,
)
from zithara_worker.topics import TOPIC_CUSTOMER


def message(message_id: int) -> Pending:
    return Pending(message_id=message_id, id=message_id + 1000)


def messages(*message_ids: int) -> tuple[Pending, ...]:
    return tuple(message(each) for each in message_ids)


def head(message_id: int, *, supersedes: tuple[int, ...] = (), behind: tuple[int, ...] = ()) -> Candidate:
    """The head that the row of a known group names."""
    return Candidate(
        "cart:1", message(message_id), message_id + 1000, supersedes=messages(*supersedes), behind=messages(*behind)
    )


def newest(line: Sequence[Pending]) -> int:
    """Every message replaces all before it."""
    return len(line) - 1


def none(line: Sequence[Pending]) -> int:
    return 0


# --- the group's row ---------------------------------------------------------------------------------------------


def test_a_groups_row_names_the_head_what_it_replaces_and_what_comes_behind_it() -> None:
    row = {"group_key": "cart:1", "id": 1005, "message_id": 5, "supersedes": "1003:3,1004:4,1008:8"}
    assert Candidate.from_row(row) == head(5, supersedes=(3, 4), behind=(8,))
    assert Candidate.from_row({**row, "supersedes": None}) == head(5)


@given(st.lists(st.builds(Pending, st.integers(1, 2**63), st.integers(1, 2**63))))
def test_the_messages_that_a_row_names_are_read_as_they_were_written(named: list[Pending]) -> None:
    assert from_text(as_text(named)) == tuple(named)


# --- how many of which kind --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "known", "wanted"),
    [(10, 0, 10), (10, 3, 7), (10, 5, 5), (10, 9, 5), (10, 10, 5), (3, 3, 1), (2, 2, 1)],
)
def test_new_groups_get_what_known_ones_leave_and_at_least_half(limit: int, known: int, wanted: int) -> None:
    assert {wanted_new_groups(limit, known, turn) for turn in (1, 2)} == {wanted}


def test_in_claims_of_one_message_known_and_new_groups_take_turns() -> None:
    assert [wanted_new_groups(1, 1, turn) for turn in (1, 2, 3, 4)] == [1, 0, 1, 0]
    assert [wanted_new_groups(1, 0, turn) for turn in (1, 2)] == [1, 1]


# --- late commits ------------------------------------------------------------------------------------------------


def test_an_older_message_that_became_visible_late_goes_before_the_head() -> None:
    assert with_older_first(head(5, behind=(8,)), messages(3, 6)) == head(3, behind=(5, 8))


@pytest.mark.parametrize("waiting", [(), (6, 7), (5, 6), (3, 4, 6)])
def test_the_head_stays_where_nothing_older_waits_but_what_it_replaces(waiting: tuple[int, ...]) -> None:
    assert with_older_first(head(5, supersedes=(3, 4)), messages(*waiting)) is None


def test_the_oldest_of_late_and_replaced_messages_goes_first() -> None:
    assert with_older_first(head(5, supersedes=(2, 4)), messages(3)) == head(2, behind=(4, 5))
    assert with_older_first(head(5, supersedes=(2, 4)), messages(1, 3)) == head(1, behind=(2, 4, 5))


# --- coalescing --------------------------------------------------------------------------------------------------


def test_the_newest_snapshot_is_tried_in_the_place_of_the_head_and_of_all_before_it() -> None:
    found = coalesced(head(5, supersedes=(3,)), messages(6, 7), newest)
    assert found == head(5)._replace(message=message(7), supersedes=messages(3, 5, 6))
    assert found.row_head == message(5).id, "the row still names the head"


def test_a_new_group_is_tried_with_its_newest_snapshot() -> None:
    new = Candidate("cart:1", message(1))
    assert coalesced(new, messages(1, 2, 3), newest) == Candidate("cart:1", message(3), supersedes=messages(1, 2))


@pytest.mark.parametrize("waiting", [(), (5,), (5, 6, 7)])
def test_without_a_message_that_replaces_it_the_head_itself_is_tried(waiting: tuple[int, ...]) -> None:
    assert coalesced(head(5), messages(*waiting), none) == head(5)


def test_nothing_passes_a_message_that_let_the_head_go_first() -> None:
    found = coalesced(head(3, behind=(6,)), messages(4, 7), newest)
    assert (found.message, found.supersedes, found.behind) == (message(4), messages(3), messages(6))


def test_a_message_that_let_the_head_go_first_may_take_its_place_but_lets_nothing_newer_pass() -> None:
    found = coalesced(head(3, behind=(6, 8)), messages(4, 6, 8, 9), newest)
    assert (found.message, found.supersedes, found.behind) == (message(8), messages(3, 4, 6), ())
    found = coalesced(head(3, behind=(6, 8)), messages(4, 6), newest)
    assert (found.message, found.supersedes, found.behind) == (message(6), messages(3, 4), messages(8))


def test_a_message_replaces_a_bounded_number_of_older_ones() -> None:
    """All their rows change in one transaction; the next claim goes on where this one ended."""
    many = messages(*range(2, 3 * REPLACED_AT_ONCE))
    found = coalesced(Candidate("cart:1", message(1)), many, newest)
    assert (found.message, len(found.supersedes)) == (message(1 + REPLACED_AT_ONCE), REPLACED_AT_ONCE)
    full = head(5000, supersedes=tuple(range(4000, 4000 + REPLACED_AT_ONCE)))
    assert coalesced(full, messages(5001), newest) == full


def test_a_message_older_than_the_head_never_takes_its_place() -> None:
    """The head replaces it already; of the others nothing is known."""
    assert coalesced(head(5, supersedes=(3, 4)), messages(3, 4), lambda line: 1) == head(5, supersedes=(3, 4))


FULL = Event(topic=TOPIC_CUSTOMER, payload={"shape": "full"})
ADDRESS = Event(topic=TOPIC_CUSTOMER, payload={"shape": "address"})


def covers(newer: Event, older: Event) -> bool:
    return newer is ADDRESS or older is FULL


@pytest.mark.parametrize(
    ("events", "position"),
    [
        ([FULL, ADDRESS, FULL], 1),
        ([FULL, FULL, FULL], 2),
        ([ADDRESS, FULL], 0),
        ([FULL, FULL, None], 1),
        ([None, FULL], 0),
        ([FULL, None, FULL], 0),
        ([FULL], 0),
    ],
)
def test_the_newest_that_replaces_all_before_it_is_chosen(events: list[Event | None], position: int) -> None:
    outlines = {number: event for number, event in enumerate(events, start=1) if event is not None}
    line = messages(*range(1, len(events) + 1))
    assert newest_replacing_all_before(line, outlines, covers) == position


@given(st.sets(st.integers(1, 30), max_size=8), st.integers(1, 30), st.booleans())
def test_whatever_waits_a_candidate_replaces_only_older_messages_and_skips_none_between(
    waiting: set[int], first: int, coalesce: bool
) -> None:
    judge: Callable[[Sequence[Pending]], int] = newest if coalesce else none
    found = coalesced(Candidate("cart:1", message(first)), messages(*sorted(waiting)), judge)
    assert all(each < found.message for each in found.supersedes)
    if found.message != message(first):
        assert {each.message_id for each in found.supersedes} == (waiting | {first}) - {found.message.message_id}
