"""The verdict is strict: what was lost, sent out of order, sent twice or sent elsewhere does not pass."""

from __future__ import annotations

import pytest

from zithara_worker.queue.statuses import Status
from zithara_worker.sandbox.api import RecordedRequest
from zithara_worker.sandbox.fixtures import Fate, FixtureMessage
from zithara_worker.sandbox.shop import MessageRow
from zithara_worker.sandbox.verdict import Account, Blow, Verdict, judge


def message(message_id: int, status: Status = Status.COMPLETE, queue: str = "q") -> MessageRow:
    return MessageRow(
        relation_id=message_id,
        message_id=message_id,
        queue=queue,
        topic="zithara.order.events",
        status=status,
        number_of_trials=0,
        updated_at="2026-11-23 12:00:00",
    )


def request(name: str, *, number: int = 1, what: str = "POST /v1/order", body: bytes = b"{}") -> RecordedRequest:
    """The request of message `name`, as "q-17"; `number` is also the second in which it came."""
    return RecordedRequest(
        number=number,
        connection=1,
        at=float(number),
        method=what.split()[0],
        path=what.split()[1],
        headers={"idempotency-key": f"{name}-{'0' * 16}"},
        body=body,
    )


def verdict(rows: list[MessageRow], sent: list[str], fates: dict[int, Fate] | None = None) -> Verdict:
    """All messages are about one order."""
    requests = [request(name, number=number) for number, name in enumerate(sent)]
    return judge(rows, requests, groups=dict.fromkeys(range(9), "order:1"), fates=fates or {})


def test_each_message_is_counted_once() -> None:
    rows = [message(1), message(2), message(3), message(4, Status.ERROR)]
    found = verdict(rows, ["q-1", "q-2", "q-2"], {3: Fate.SKIPPED, 4: Fate.REJECTED})
    assert (found.published, found.accepted, found.nothing_to_send, found.rejected) == (4, 2, 1, 1)
    assert (found.sent_again, found.findings) == (1, [])
    assert found.headline == "nothing lost, everything in order, the CRM is complete"


@pytest.mark.parametrize("status", [Status.COMPLETE, Status.ERROR, Status.NEW, Status.IN_PROGRESS])
def test_message_without_a_request_is_lost(status: Status) -> None:
    found = verdict([message(1), message(2, status)], ["q-1"])
    assert len(found.lost) == 1 and found.lost[0].startswith("q-2 must be delivered, but is ")
    assert (found.accepted, found.headline) == (1, "1 lost, 0 out of order, 0 otherwise wrong")


def test_message_that_was_sent_and_is_not_complete_is_lost() -> None:
    assert verdict([message(1, Status.ERROR)], ["q-1"]).lost == [
        "q-1 must be delivered, but is status 6 after 1 requests"
    ]


def test_faulty_message_that_was_delivered_is_wrong() -> None:
    assert verdict([message(1)], ["q-1"], {1: Fate.REJECTED}).wrong == ["q-1 must be rejected, but is delivered"]


def test_older_message_behind_a_newer_one_of_its_group_is_out_of_order() -> None:
    found = verdict([message(1), message(2), message(3)], ["q-1", "q-3", "q-2"])
    assert found.out_of_order == ["q-2 came after message 3 of order:1"]
    assert (found.accepted, found.headline) == (3, "0 lost, 1 out of order, 0 otherwise wrong")


def test_each_request_behind_the_newest_one_is_out_of_order() -> None:
    found = verdict([message(1), message(2), message(3)], ["q-1", "q-3", "q-1", "q-2"])
    assert [text.split()[0] for text in found.out_of_order] == ["q-1", "q-2"]


def test_queues_have_no_order_between_them() -> None:
    assert verdict([message(1), message(2, queue="other")], ["other-2", "q-1"]).findings == []


def test_repetition_must_be_the_same_request() -> None:
    requests = [request("q-1", number=1), request("q-1", number=2, body=b"[]")]
    found = judge([message(1)], requests, groups={1: "order:1"}, fates={})
    assert found.wrong == ["q-1 was sent again as another request"]


@pytest.mark.parametrize("name", ["q-7", ""])
def test_request_of_no_message_is_wrong(name: str) -> None:
    assert verdict([message(1)], ["q-1", name]).wrong == [f"{name} was sent, but is not in the database"]


def test_blow_is_survived_if_something_is_delivered_afterwards() -> None:
    crash, outage, last = (
        Blow(what=f"blow {until}", is_crash=is_crash, at=0.0, until=until)
        for until, is_crash in ((1.0, True), (1.5, False), (2.0, True))
    )
    requests = [request("q-1", number=2)]
    found = judge([message(1)], requests, groups={1: "order:1"}, fates={}, blows=[crash, outage, last])
    assert (found.crashes, found.outages) == ([crash], [outage])
    assert found.wrong == ["nothing was delivered any more after this: blow 2.0"]


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
    found = Account(
        message=case, row=message(1, status), requests=tuple(request("q-1", what=what) for what in requests), reason=""
    ).complaint
    assert found is None if complaint is None else found is not None and complaint in found
