"""How durations, times, counts and rates look, on the terminal, the page and in the findings of `doctor`."""

from __future__ import annotations

import pytest

from zithara_worker.units import count, counts, duration, iso, iso_milliseconds, milliseconds, moment, percent, rate


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0, "0s"), (59.6, "1m00s"), (185, "3m05s"), (7800, "2h10m"), (356_400, "4d03h")]
)
def test_durations_have_two_units_at_most(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "-"), (9999, "9999"), (12_400, "12.4k"), (3_100_000, "3.1M"), (2e9, "2.0G"), (999_960, "1.0M")],
)
def test_counts_stay_narrow(number: float | None, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(("number", "text"), [(None, "-"), (0, "0"), (0.44, "0.4"), (12.4, "12"), (12_400, "12.4k")])
def test_small_rates_have_a_decimal(number: float | None, text: str) -> None:
    assert rate(number) == text


@pytest.mark.parametrize(("share", "text"), [(None, "-"), (0, "0%"), (0.003, "0.3%"), (0.12, "12%"), (1, "100%")])
def test_shares_are_percentages(share: float | None, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (84.6, "85ms"), (1234, "1.2s"), (999.7, "1.0s")])
def test_response_times_are_milliseconds_or_seconds(value: float | None, text: str) -> None:
    assert milliseconds(value) == text


def test_times_are_utc() -> None:
    assert (moment(1_795_482_123.9), iso(1_795_482_123.9)) == ("2026-11-24 01:02:03", "2026-11-24T01:02:03Z")
    assert (moment(None), iso(None)) == ("-", None)


def test_the_time_of_a_log_line_is_utc_with_milliseconds_that_are_never_rounded_up() -> None:
    assert iso_milliseconds(1_795_435_200.0625) == "2026-11-23T12:00:00.062Z"
    assert iso_milliseconds(1_795_435_199.9999) == "2026-11-23T11:59:59.999Z"


def test_counts_are_listed_with_their_names() -> None:
    assert counts({"unchanged": 12_400, "overtaken": 2}) == "12.4k unchanged, 2 overtaken"
    assert counts({}) == "-"
