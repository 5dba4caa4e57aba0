"""The counters behind `status` and the metrics."""

from __future__ import annotations

import pytest

from zithara_worker.messages import TOPIC_CART, Outcome, OutcomeKind
from zithara_worker.monitor.registry import MinuteCounters


@pytest.mark.parametrize("kind", OutcomeKind)
def test_older_snapshots_count_as_superseded_once_the_newest_was_delivered(kind: OutcomeKind) -> None:
    counters = MinuteCounters(lambda: 600.0)
    counters.count(TOPIC_CART, Outcome(kind=kind), superseded=3)
    counts = counters.minutes()["10"][TOPIC_CART]
    assert counts["outcomes"] == {kind.value: 1}
    assert counts["superseded"] == (3 if kind is OutcomeKind.DELIVERED else 0)
