"""The guard of `scripts/bench --quick`: what can be counted must not grow. No time is looked at."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zithara_worker.sandbox.mariadb import MariaDbServer

# The benchmarks are a package of the project's directory, not of the installed distribution.
sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import counted
from benchmarks.api_server import ApiProcess

_NAMES = tuple(counted.LIMITS)
STATEMENTS, BESIDE = _NAMES[:3], _NAMES[5:11]
AT_WORK, CONNECTIONS = _NAMES[3:5]
CALLS, CALLS_OF_EXCHANGE, CALLS_OF_LINE, CALLS_OF_SIGNATURE = _NAMES[11:]


@pytest.fixture
def api_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiProcess]:
    # Contestants and API are started with `python -m`, from the project's directory.
    monkeypatch.chdir(Path(__file__).parents[2])
    with ApiProcess() as api:
        yield api


def test_claim_and_settle_of_a_full_batch_cost_no_more_statements_than_agreed(mariadb: MariaDbServer) -> None:
    for name, value in zip(STATEMENTS, counted.statements(mariadb), strict=True):
        assert 0 < value <= counted.LIMITS[name]


def test_a_worker_at_work_settles_batches_and_not_messages(
    mariadb: MariaDbServer, api_process: ApiProcess, tmp_path: Path
) -> None:
    assert 0 < counted.statements_at_work(mariadb, api_process, tmp_path) <= counted.LIMITS[AT_WORK]


def test_each_thread_opens_one_connection_and_keeps_it(
    mariadb: MariaDbServer, api_process: ApiProcess, tmp_path: Path
) -> None:
    assert 0 < counted.connections(mariadb, api_process, tmp_path) <= counted.LIMITS[CONNECTIONS]


def test_what_works_beside_the_queue_costs_no_more_statements_than_agreed(mariadb: MariaDbServer) -> None:
    for name, value in zip(BESIDE, counted.statements_beside(mariadb, orders=500), strict=True):
        assert 0 < value <= counted.LIMITS[name], name


def test_a_message_costs_no_more_calls_than_agreed_on_its_way_to_a_request() -> None:
    assert 0 < counted.calls() <= counted.LIMITS[CALLS]


def test_an_exchange_costs_no_more_calls_than_agreed(api_process: ApiProcess) -> None:
    assert 0 < counted.calls_of_exchange(api_process) <= counted.LIMITS[CALLS_OF_EXCHANGE]


def test_a_line_of_the_log_costs_no_more_calls_than_agreed(tmp_path: Path) -> None:
    assert 0 < counted.calls_of_line(tmp_path) <= counted.LIMITS[CALLS_OF_LINE]


def test_the_signature_of_a_webhook_costs_no_more_calls_than_agreed() -> None:
    assert 0 < counted.calls_of_signature() <= counted.LIMITS[CALLS_OF_SIGNATURE]


def test_calls_are_the_same_at_each_count(api_process: ApiProcess, tmp_path: Path) -> None:
    assert counted.calls(50) == counted.calls(50)
    assert counted.calls_of_line(tmp_path) == counted.calls_of_line(tmp_path)
    assert counted.calls_of_exchange(api_process) == counted.calls_of_exchange(api_process)
