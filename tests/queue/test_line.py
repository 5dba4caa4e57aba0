"""The line: who may be tried next, by pure memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zithara_worker.queue.backlog import Entry, Line


def entry(message_id: int) -> Entry:
    return Entry(message_id=message_id, id=message_id + 1000)


def heads(line: Line) -> list[tuple[str, int]]:
    found = [(group, head.message_id) for group, head in line.heads()]
    for group, _ in found:
        line.put_back(group)
    return found


def test_each_group_shows_its_oldest_message_and_the_oldest_group_comes_first() -> None:
    line = Line()
    for message_id, group in [(5, "b"), (3, "a"), (4, "a"), (9, "c")]:
        line.add(group, entry(message_id))
    assert heads(line) == [("a", 3), ("b", 5), ("c", 9)]


def test_a_late_message_takes_its_place_in_front_of_newer_ones() -> None:
    line = Line()
    for message_id in (7, 9, 8, 6):
        line.add("a", entry(message_id))
    assert [each.message_id for each in line.waiting("a")] == [6, 7, 8, 9]
    assert heads(line) == [("a", 6)]


def test_a_busy_group_hides_its_messages_until_it_is_free() -> None:
    line = Line()
    line.add("a", entry(1))
    line.add("b", entry(2))
    line.block("a")
    assert heads(line) == [("b", 2)]
    assert line.busy_elsewhere(10) == ["a"]
    line.free("a")
    assert heads(line) == [("a", 1), ("b", 2)]
    assert line.busy_elsewhere(10) == []


def test_groups_busy_elsewhere_take_turns_in_being_looked_at() -> None:
    line = Line()
    for message_id, group in enumerate("abcde"):
        line.add(group, entry(message_id))
        line.block(group)
    assert line.busy_elsewhere(3) + line.busy_elsewhere(3) == ["a", "b", "c", "d", "e", "a"]


def test_a_message_is_known_once_however_often_it_is_seen() -> None:
    line = Line()
    line.add("a", entry(1))
    line.add("a", entry(1))
    assert len(line) == 1
    line.drop("a", [1])
    assert len(line) == 0
    assert not line.has_free or heads(line) == []


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 30), st.sampled_from(["add", "block", "free", "drop"])))
)
def test_whatever_happens_a_free_group_offers_exactly_its_lowest_message(
    steps: list[tuple[str, int, str]],
) -> None:
    line = Line()
    waiting: dict[str, set[int]] = {}
    group_of: dict[int, str] = {}
    busy: set[str] = set()
    for group, message_id, step in steps:
        if step == "add":
            group_of.setdefault(message_id, group)
            if group_of[message_id] == group:
                line.add(group, entry(message_id))
                waiting.setdefault(group, set()).add(message_id)
        elif step == "block":
            line.block(group)
            busy.add(group)
        elif step == "free":
            line.free(group)
            busy.discard(group)
        elif waiting.get(group):
            first = min(waiting[group])
            line.drop(group, [first])
            line.put_back(group)
            waiting[group].discard(first)
            del group_of[first]
        expected = sorted((min(ids), group) for group, ids in waiting.items() if ids and group not in busy)
        assert [(message_id, group) for group, message_id in heads(line)] == expected
    assert len(line) == sum(len(ids) for ids in waiting.values())
