"""The backlog: who may be tried next, by pure memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zithara_worker.messages import Pending
from zithara_worker.queue.backlog import Backlog


def entry(message_id: int) -> Pending:
    return Pending(message_id=message_id, id=message_id + 1000)


def heads(backlog: Backlog) -> list[tuple[str, int]]:
    found = [(group, head.message_id) for group, head in backlog.heads()]
    backlog.put_back_heads()
    return found


def test_each_group_shows_its_oldest_message_and_the_oldest_group_comes_first() -> None:
    backlog = Backlog()
    for message_id, group in [(5, "b"), (3, "a"), (4, "a"), (9, "c")]:
        backlog.add(group, entry(message_id))
    assert heads(backlog) == [("a", 3), ("b", 5), ("c", 9)]


def test_a_late_message_takes_its_place_in_front_of_newer_ones() -> None:
    backlog = Backlog()
    for message_id in (7, 9, 8, 6):
        backlog.add("a", entry(message_id))
    assert [each.message_id for each in backlog.waiting("a")] == [6, 7, 8, 9]
    assert heads(backlog) == [("a", 6)]


def test_a_busy_group_hides_its_messages_until_it_is_free() -> None:
    backlog = Backlog()
    backlog.add("a", entry(1))
    backlog.add("b", entry(2))
    backlog.mark_busy("a")
    assert heads(backlog) == [("b", 2)]
    assert backlog.busy_elsewhere(10) == ["a"]
    backlog.mark_free("a")
    assert heads(backlog) == [("a", 1), ("b", 2)]
    assert backlog.busy_elsewhere(10) == []


def test_the_next_message_of_a_group_is_offered_when_its_head_is_gone() -> None:
    backlog = Backlog()
    for message_id in (1, 2, 3):
        backlog.add("a", entry(message_id))
    backlog.drop("a", [1])
    assert heads(backlog) == [("a", 2)]
    backlog.drop("a", [3])
    assert heads(backlog) == [("a", 2)]


def test_a_head_that_was_offered_is_offered_again_only_after_the_claim() -> None:
    backlog = Backlog()
    for message_id, group in enumerate("abc"):
        backlog.add(group, entry(message_id))
    offered = [group for group, _ in backlog.heads()]
    assert offered == ["a", "b", "c"]
    assert list(backlog.heads()) == []
    backlog.mark_ours("a")
    backlog.mark_busy("b")
    backlog.put_back_heads()
    assert heads(backlog) == [("c", 2)]


def test_after_a_claim_its_messages_leave_and_the_groups_it_did_not_get_are_offered_again_or_busy() -> None:
    backlog = Backlog()
    for message_id, group in [(1, "taken"), (2, "lost"), (3, "gone"), (4, "locked"), (5, "taken"), (6, "gone")]:
        backlog.add(group, entry(message_id))
    offered = dict(backlog.heads())
    backlog.update_from_claim(claimed=[("taken", offered["taken"])], busy=["lost"], gone=[("gone", offered["gone"])])
    assert heads(backlog) == [("locked", 4), ("gone", 6)]
    assert backlog.busy_elsewhere(10) == ["lost"]
    assert 2 in backlog and 5 in backlog and 1 not in backlog and 3 not in backlog
    backlog.mark_free("taken")
    assert heads(backlog) == [("locked", 4), ("taken", 5), ("gone", 6)]


def test_groups_busy_elsewhere_take_turns_in_being_looked_at() -> None:
    backlog = Backlog()
    for message_id, group in enumerate("abcde"):
        backlog.add(group, entry(message_id))
        backlog.mark_busy(group)
    assert backlog.busy_elsewhere(3) + backlog.busy_elsewhere(3) == ["a", "b", "c", "d", "e", "a"]


def test_a_message_is_known_once_however_often_it_is_seen() -> None:
    backlog = Backlog()
    backlog.add("a", entry(1))
    backlog.add("a", entry(1))
    assert len(backlog) == 1
    backlog.drop("a", [1])
    assert len(backlog) == 0
    assert not backlog.has_free or heads(backlog) == []


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 30), st.sampled_from(["add", "block", "free", "drop"])))
)
def test_whatever_happens_a_free_group_offers_exactly_its_lowest_message(
    steps: list[tuple[str, int, str]],
) -> None:
    backlog = Backlog()
    waiting: dict[str, set[int]] = {}
    group_of: dict[int, str] = {}
    busy: set[str] = set()
    for group, message_id, step in steps:
        if step == "add":
            group_of.setdefault(message_id, group)
            if group_of[message_id] == group:
                backlog.add(group, entry(message_id))
                waiting.setdefault(group, set()).add(message_id)
        elif step == "block":
            backlog.mark_busy(group)
            busy.add(group)
        elif step == "free":
            backlog.mark_free(group)
            busy.discard(group)
        elif waiting.get(group):
            first = min(waiting[group])
            backlog.drop(group, [first])
            waiting[group].discard(first)
            del group_of[first]
        expected = sorted((min(ids), group) for group, ids in waiting.items() if ids and group not in busy)
        assert [(message_id, group) for group, message_id in heads(backlog)] == expected
    assert len(backlog) == sum(len(ids) for ids in waiting.values())
