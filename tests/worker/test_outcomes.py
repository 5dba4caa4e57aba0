"""What is given back, what is woken, and what an outcome's log line says. Whole outages: test_outage_model."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import pytest
from support.messages import message_of

from zithara_worker.messages import Evidence, Message, Outcome, OutcomeKind, Pending, Rejection
from zithara_worker.monitor.counters import WorkerMetrics
from zithara_worker.monitor.registry import MinuteCounters
from zithara_worker.queue.settle import Settled, Settlement
from zithara_worker.settings.sections import RetrySettings
from zithara_worker.topics import TOPIC_ORDER
from zithara_worker.worker.outcomes import Outcomes, TopicState, log_settled

FAILED = Outcome(kind=OutcomeKind.RETRY, reason="http_500", detail="busy", http_status=500, duration_ms=12.34)


class Queue:
    """Notes what is given back and woken."""

    queue_id, name, topic = 1, "zithara_order_queue", TOPIC_ORDER

    def __init__(self) -> None:
        self.refunded: list[int] = []
        self.woken: list[int] = []

    def refund(self, settlements: Iterable[Settlement]) -> int:
        ids = [each.message.id for each in settlements]
        self.refunded += ids
        return len(ids)

    def wake(self, messages: Iterable[Message]) -> None:
        self.woken += [each.id for each in messages]


class Path:
    """What the courier knows of the path."""

    open = False
    serves = False

    def is_open(self, gate: str) -> bool:
        return self.open

    def served_since(self, gate: str, since: float) -> bool:
        return self.serves

    def served_others_since(self, gate: str, group: str, failed_at: float) -> bool:
        return self.serves


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def path() -> Path:
    return Path()


@pytest.fixture
def topic(queue: Queue) -> TopicState:
    return TopicState(queue, ("api", "/order"))  # type: ignore[arg-type]  # the part of a queue that outcomes need


@pytest.fixture
def outcomes(topic: TopicState, path: Path) -> Outcomes:
    return Outcomes(
        {1: topic},
        courier=path,
        create=lambda event: Rejection(code="unused", detail="no order is absent here"),
        policy=RetrySettings(),
        jitter=lambda: 0.0,
        monotonic=lambda: 0.0,
        minute_counters=MinuteCounters(lambda: 0.0),
        metrics=WorkerMetrics(monotonic=lambda: 0.0, utc=lambda: 0.0),
    )


def fail(number: int, *, witnessed: bool = False) -> Settlement:
    outcome = Outcome(kind=OutcomeKind.RETRY, reason="http_500", evidence=Evidence.PATH, witnessed=witnessed)
    return Settlement(message=message_of(number), outcome=outcome)


def test_who_is_on_its_way_again_when_an_outage_is_recognised_gets_its_attempt_back_afterwards(
    outcomes: Outcomes, topic: TopicState, queue: Queue, path: Path
) -> None:
    outcomes.settled(topic, Settled(done=[fail(1), fail(2)]), 0.0)
    path.open = True

    outcomes.catch_up(in_hand={1})
    assert queue.refunded == [2]

    outcomes.catch_up(in_hand=())
    outcomes.catch_up(in_hand=())
    assert queue.refunded == [2, 1], "each once"


def test_only_a_failure_that_nobody_witnessed_is_tried_again_before_its_time(
    outcomes: Outcomes, topic: TopicState, queue: Queue, path: Path
) -> None:
    """What failed while others were served waits out its backoff."""
    outcomes.settled(topic, Settled(done=[fail(1, witnessed=True), fail(2)]), 0.0)
    path.serves = True
    outcomes.catch_up(in_hand=())
    assert queue.woken == [2]


def test_a_message_that_another_worker_took_over_is_not_woken(
    outcomes: Outcomes, topic: TopicState, queue: Queue, path: Path
) -> None:
    outcomes.settled(topic, Settled(done=[fail(1)]), 0.0)
    outcomes.settled(topic, Settled(lost=[message_of(1)]), 0.0)
    path.serves = True
    outcomes.catch_up(in_hand=())
    assert queue.woken == []


def test_the_line_of_a_retry_says_what_came_back_and_when_it_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log_settled([Settlement(message=message_of(1), outcome=FAILED, delay_seconds=30.04)])
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    said = {name: line.__dict__.get(name) for name in ("event", "reason", "detail", "http_status", "delay_seconds")}
    assert said == {
        "event": "retry",
        "reason": "http_500",
        "detail": "busy",
        "http_status": 500,
        "delay_seconds": 30.0,
    }
    assert line.__dict__["duration_ms"] == 12.3


def test_the_line_of_a_delivery_names_the_older_snapshots_that_it_stands_for(caplog: pytest.LogCaptureFixture) -> None:
    served = Outcome(kind=OutcomeKind.DELIVERED, http_status=200, detail="the answer", duration_ms=3.0)
    with caplog.at_level(logging.INFO):
        log_settled(
            [
                Settlement(message=message_of(9, supersedes=(Pending(7, 1), Pending(8, 2))), outcome=served),
                Settlement(message=message_of(3), outcome=served),
            ]
        )
    newest, alone = (line.__dict__ for line in caplog.records)
    assert newest["superseded"] == [7, 8] and "superseded" not in alone
    assert "detail" not in newest and "delay_seconds" not in newest
