"""The demonstration judges strictly: what was lost, sent twice or sent elsewhere does not pass."""

from __future__ import annotations

import pytest

from zithara_worker.queue.statuses import Status
from zithara_worker.sandbox.api import RecordedRequest
from zithara_worker.sandbox.demo import Account
from zithara_worker.sandbox.fixtures import FixtureMessage
from zithara_worker.sandbox.shop import MessageRow


def account(case: FixtureMessage, status: Status, *requests: str) -> Account:
    """An account of `case` that ended as `status` after requests like 'POST /v1/order'."""
    return Account(
        message=case,
        row=MessageRow(
            relation_id=1,
            message_id=1,
            queue="q",
            topic=case.topic,
            status=status,
            number_of_trials=0,
            updated_at="2026-11-23 12:00:00",
        ),
        requests=tuple(
            RecordedRequest(
                number=number,
                connection=1,
                at=0.0,
                method=text.split()[0],
                path=text.split()[1],
                headers={},
                body=b"{}",
            )
            for number, text in enumerate(requests)
        ),
        reason="",
    )


@pytest.mark.parametrize(
    ("case_id", "status", "requests", "complaint"),
    [
        ("order-001", Status.COMPLETE, ["POST /v1/order"], None),
        ("webhook-171", Status.COMPLETE, ["POST /hook"], None),
        ("webhook-260", Status.COMPLETE, [], None),
        ("cart-210", Status.ERROR, [], None),
        ("order-125", Status.ERROR, [], None),
        ("order-001", Status.COMPLETE, [], "must be delivered, but is skipped"),
        ("order-001", Status.ERROR, [], "must be delivered, but is rejected"),
        ("order-001", Status.NEW, [], "status 2 after 0 requests"),
        ("order-001", Status.ERROR, ["POST /v1/order"], "status 6 after 1 requests"),
        ("order-001", Status.COMPLETE, ["POST /v1/order"] * 2, "status 4 after 2 requests"),
        ("order-001", Status.COMPLETE, ["PATCH /v1/order"], "must be sent as POST /order"),
        ("order-125", Status.COMPLETE, [], "must be rejected, but is skipped"),
        ("webhook-260", Status.COMPLETE, ["POST /hook"], "must be skipped, but is delivered"),
    ],
)
def test_each_message_is_judged_by_its_end_and_its_requests(
    plugin_cases: list[FixtureMessage], case_id: str, status: Status, requests: list[str], complaint: str | None
) -> None:
    (case,) = (case for case in plugin_cases if case.id == case_id)
    found = account(case, status, *requests).complaint
    assert found is None if complaint is None else found is not None and complaint in found
