from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zithara_worker.delivery.pace import delay_before
from zithara_worker.settings.sections import RetrySettings


def test_delays_grow_by_the_factor_up_to_the_longest() -> None:
    delays = [delay_before(attempt, RetrySettings(), 0.0) for attempt in range(1, 10)]
    assert delays == [30, 90, 270, 810, 2430, 7290, 21600, 21600, 21600]


def test_jitter_spreads_by_a_fifth_also_the_longest() -> None:
    assert delay_before(1, RetrySettings(), 1.0) == pytest.approx(36)
    assert delay_before(1, RetrySettings(), -1.0) == pytest.approx(24)
    assert delay_before(20, RetrySettings(), 1.0) == pytest.approx(25_920)


@given(
    st.integers(1, 65_535),
    st.floats(0, 86_400),
    st.floats(1, 100),
    st.floats(0, 604_800),
    st.floats(-1, 1),
)
def test_any_number_of_trials_has_a_delay(
    attempt: int, delay: float, factor: float, longest: float, jitter: float
) -> None:
    policy = RetrySettings(delay=delay, factor=factor, max_delay=max(delay, longest))
    assert 0 <= delay_before(attempt, policy, jitter) <= policy.max_delay * 1.2 + 1e-6


@pytest.mark.parametrize(("attempt", "jitter"), [(0, 0.0), (-1, 0.0), (1, 1.1), (1, -1.1), (1, float("nan"))])
def test_what_makes_no_sense_is_refused(attempt: int, jitter: float) -> None:
    with pytest.raises(ValueError, match=r"must be|first is"):
        delay_before(attempt, RetrySettings(), jitter)
