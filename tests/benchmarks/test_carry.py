"""The model of docs/performance.md, where the result can be told without it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

# The benchmarks are a package of the project's directory, not of the installed distribution.
sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.carry import Arrangement, Costs, simulate


def costs(**changes: Any) -> list[Costs]:
    """The same for one worker and for two, which so stays the same for any number."""
    values = {"cpu_us": 100.0, "database_us": 10.0, "api_us": 0.0, "statements": 0.0, "pace": 0.0, **changes}
    return [Costs(workers=workers, latency_ms=50, **values) for workers in (1, 2)]


@pytest.mark.parametrize(
    ("changes", "arrangement", "per_second", "bound"),
    [
        ({"cpu_us": 1.0}, {"threads": 16}, 16 / 0.05, "the API's latency (16 threads each)"),
        ({"cpu_us": 1000.0}, {"latency_ms": 0}, 1_000, "a process's interpreter"),
        ({"cpu_us": 1000.0}, {"latency_ms": 0, "processes": 8, "cores": 2}, 2_000, "cores of workers"),
        ({"database_us": 2000.0}, {"latency_ms": 0, "database_cores": 1}, 500, "cores of the database"),
        ({"statements": 1.0}, {"latency_ms": 0, "round_trip_ms": 4.0}, 250, "a process's loop"),
        ({"statements": 1.0}, {"latency_ms": 0, "round_trip_ms": 4.0, "hosts": 3}, 750, "a process's loop"),
        ({"cpu_us": 1000.0, "api_us": 3000.0}, {"latency_ms": 0, "alone": False, "cores": 1}, 249, "cores of workers"),
    ],
)
def test_the_model_finds_what_the_narrowest_part_lets_through(
    changes: dict[str, float], arrangement: dict[str, Any], per_second: float, bound: str
) -> None:
    found = simulate(Arrangement(name="", **arrangement), costs(**changes))
    assert found.per_second == pytest.approx(per_second, rel=0.02)
    assert found.bound == bound


def test_what_a_message_costs_goes_on_growing_as_it_did_last() -> None:
    growing = [costs(cpu_us=100.0)[0], costs(cpu_us=200.0)[1]]
    found = simulate(Arrangement(name="", processes=10, cores=1, latency_ms=0), growing)
    assert found.per_second == pytest.approx(1e6 / 1000, rel=0.05), "ten workers: 1,000 us of each"
