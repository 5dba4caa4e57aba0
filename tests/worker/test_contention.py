"""Conflicts with other sessions are no absent database."""

from __future__ import annotations

import pytest
from support.waiting import eventually
from worker.test_outage import running, settings_for

from zithara_worker import Worker
from zithara_worker.sandbox.api import FakeZithara
from zithara_worker.sandbox.shop import Shop


def test_conflicts_that_do_not_end_neither_stop_deliveries_nor_look_like_an_absent_database(
    shop: Shop, api: FakeZithara, caplog: pytest.LogCaptureFixture
) -> None:
    """Each entry in the registry is refused as Group Replication refuses what another member was faster with."""
    caplog.set_level("INFO")
    shop.query(
        "CREATE TRIGGER {prefix}conflict BEFORE INSERT ON {prefix}zithara_worker FOR EACH ROW "
        "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 3101, MESSAGE_TEXT = 'Plugin instructed the server to rollback'"
    )
    with running(Worker(settings_for(shop, api))):
        for number in range(3):
            shop.publish_order(f"A{number}")
            eventually(lambda number=number: shop.status_counts() == {4: number + 1}, within=10)
        eventually(lambda: "database_contention" in events(caplog), within=10)
    assert not {"database_away", "database_back"} & events(caplog)


def events(caplog: pytest.LogCaptureFixture) -> set[str]:
    return {str(getattr(record, "event", "")) for record in caplog.records}
