"""What is counted of a loop's batches, and under which names a scrape shows it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.clock import Clock
from support.fleet import NOW, fleet_status, reconciliation, topic_status, worker_status
from support.messages import message_of

from zithara_worker.messages import Message, Outcome, OutcomeKind, Pending
from zithara_worker.monitor.conditions import conditions
from zithara_worker.monitor.counters import Distribution, WorkerMetrics
from zithara_worker.monitor.health import STUCK_SECONDS, LoopStatus, worker_health
from zithara_worker.monitor.prometheus import PrometheusMetrics, State
from zithara_worker.queue.settle import Settled, Settlement

ORDER = "zithara.order.events"
CART = "zithara.cart.events"
DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


@pytest.fixture
def clock() -> Clock:
    return Clock(100.0)


@pytest.fixture
def metrics(clock: Clock) -> WorkerMetrics:
    counting = WorkerMetrics(monotonic=clock, utc=lambda: 1_700_000_000.0)
    counting.begin([ORDER, CART])
    return counting


def done(each: Message, kind: OutcomeKind, **outcome: Any) -> Settlement:
    return Settlement(message=each, outcome=Outcome(kind=kind, **outcome))


def samples(metrics: WorkerMetrics, state: State | None = None) -> dict[tuple[str, tuple[str, ...]], float]:
    """(name, label values by label name) -> value, as Prometheus reads it."""
    text = PrometheusMetrics(metrics.values, lambda: state or State()).encoded("text/plain")[0].decode()
    return {
        (sample.name.removeprefix("zithara_worker_"), tuple(value for _, value in sorted(sample.labels.items()))): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counters_exist_before_anything_happens(metrics: WorkerMetrics) -> None:
    seen = samples(metrics)
    for outcome in ("delivered", "skipped", "retry", "failed", "released"):
        assert seen["deliveries_total", (outcome, CART)] == 0.0
    assert seen["in_flight_messages", (ORDER,)] == 0.0


def test_batch_is_counted_by_outcome_reason_and_time(metrics: WorkerMetrics, clock: Clock) -> None:
    batch = [message_of(1, supersedes=(Pending(8, 8), Pending(9, 9))), *map(message_of, range(2, 7))]
    metrics.claimed(ORDER, batch, 0.004)
    metrics.claimed(ORDER, [], 0.001)
    assert samples(metrics)["in_flight_messages", (ORDER,)] == 6.0
    clock.now += 0.3
    sent = {"endpoint": "POST /order", "duration_ms": 40.0}
    settled = Settled(
        [
            done(batch[0], OutcomeKind.DELIVERED, http_status=200, **sent),
            done(batch[1], OutcomeKind.RETRY, reason="http_500", http_status=500, **sent),
            done(batch[2], OutcomeKind.FAILED, reason="invalid_json"),
            done(batch[3], OutcomeKind.RELEASED, reason="outage"),
            done(batch[4], OutcomeKind.SKIPPED, reason="unchanged"),
        ],
        [batch[5]],
    )
    metrics.settled(ORDER, settled, 0.02)
    seen = samples(metrics)
    assert seen["deliveries_total", ("delivered", ORDER)] == 1.0
    assert seen["deliveries_total", ("released", ORDER)] == 1.0
    assert seen["retries_total", ("http_500", ORDER)] == 1.0
    assert seen["failures_total", ("invalid_json", ORDER)] == 1.0
    assert seen["skips_total", ("unchanged", ORDER)] == 1.0
    assert seen["coalesced_messages_total", (ORDER,)] == 2.0
    assert seen["leases_lost_total", (ORDER,)] == 1.0
    assert seen["in_flight_messages", (ORDER,)] == 0.0
    assert seen["last_settled_timestamp_seconds", (ORDER,)] == 1_700_000_000.0
    assert seen["api_response_seconds_count", ("POST /order", "2xx")] == 1.0
    assert seen["api_response_seconds_count", ("POST /order", "5xx")] == 1.0
    assert seen["api_response_seconds_sum", ("POST /order", "5xx")] == pytest.approx(0.04)
    # Labels in the order of their names: le, topic.
    assert seen["delivery_seconds_bucket", ("0.25", ORDER)] == 0.0
    assert seen["delivery_seconds_bucket", ("0.5", ORDER)] == 1.0
    assert seen["delivery_seconds_bucket", ("+Inf", ORDER)] == 1.0
    assert seen["claim_seconds_count", (ORDER,)] == 2.0
    assert seen["claim_batch_messages_sum", (ORDER,)] == 6.0
    assert seen["settle_batch_messages_bucket", ("10.0", ORDER)] == 1.0
    assert seen["settle_batch_messages_bucket", ("5.0", ORDER)] == 0.0


def test_a_new_loop_starts_with_nothing_in_hand_and_goes_on_counting(metrics: WorkerMetrics) -> None:
    metrics.claimed(ORDER, [message_of(1), message_of(2)], 0.001)
    metrics.settled(ORDER, Settled([done(message_of(1), OutcomeKind.DELIVERED)]), 0.001)
    metrics.begin([ORDER])
    seen = samples(metrics)
    assert seen["in_flight_messages", (ORDER,)] == 0.0
    assert seen["deliveries_total", ("delivered", ORDER)] == 1.0


def test_values_are_a_copy_that_does_not_change(metrics: WorkerMetrics) -> None:
    metrics.claimed(ORDER, [message_of(1)], 0.001)
    before = metrics.values()
    metrics.claimed(ORDER, [message_of(2)], 0.001)
    metrics.claimed(CART, [], 0.001)
    assert before.in_flight[ORDER] == 1 and sum(before.claim_seconds[ORDER].counts) == 1
    assert CART not in before.claim_seconds and CART in metrics.values().claim_seconds


def test_value_at_a_bound_belongs_below_it() -> None:
    distribution = Distribution((1.0, 2.0))
    for value in (1.0, 1.5, 9.0):
        distribution.observe(value)
    assert (distribution.counts, distribution.total) == ([1, 1, 1], 11.5)


def test_state_is_shown_with_one_breaker_state_at_a_time(metrics: WorkerMetrics) -> None:
    state = State(
        paused={ORDER: False, CART: True},
        breakers={"api": "half-open"},
        token_refreshes=3,
        topics=(
            topic_status(topic=ORDER, workers=0, new=12, oldest_new_seconds=4.5, retry=3, error=1),
            topic_status(topic=CART, workers=2),
        ),
        audit_writable=False,
        audit_lines=9,
    )
    seen = samples(metrics, state)
    assert (seen["topic_paused", (ORDER,)], seen["topic_paused", (CART,)]) == (0.0, 1.0)
    assert (seen["living_workers", (ORDER,)], seen["living_workers", (CART,)]) == (0.0, 2.0)
    assert [seen["breaker_state", (each, "api")] for each in ("closed", "half-open", "open")] == [0.0, 1.0, 0.0]
    assert seen["token_refreshes_total", ()] == 3.0
    assert seen["queue_messages", ("new", ORDER)] == 12.0
    assert seen["queue_messages", ("in_progress", ORDER)] == 0.0
    assert seen["queue_messages", ("retry_required", ORDER)] == 3.0
    assert seen["queue_messages", ("error", ORDER)] == 1.0
    assert seen["queue_oldest_age_seconds", ("new", ORDER)] == 4.5
    assert seen["queue_oldest_age_seconds", ("new", CART)] == 0.0
    assert (seen["audit_writable", ()], seen["audit_lines_total", ()]) == (0.0, 9.0)


def test_a_relay_is_counted_and_what_it_found_is_shown_by_every_worker(metrics: WorkerMetrics) -> None:
    metrics.relayed(CART, 0)
    metrics.relayed(ORDER, 200)
    metrics.relayed(ORDER, 50)
    topics = (
        topic_status(topic=ORDER, relays=2, rabbitmq=1200, aside=1),
        topic_status(topic=CART, relay_missing=True),
    )
    seen = samples(metrics, State(topics=topics))
    assert (seen["relayed_messages_total", (ORDER,)], seen["relayed_messages_total", (CART,)]) == (250.0, 0.0)
    assert (seen["living_relays", (ORDER,)], seen["living_relays", (CART,)]) == (2.0, 0.0)
    assert (seen["relay_missing", (ORDER,)], seen["relay_missing", (CART,)]) == (0.0, 1.0)
    assert (seen["rabbitmq_messages", (ORDER,)], seen["relay_aside_messages", (ORDER,)]) == (1200.0, 1.0)
    assert ("rabbitmq_messages", (CART,)) not in seen


def test_the_last_result_of_reconcile_is_shown_and_absent_before_the_first(metrics: WorkerMetrics) -> None:
    at_work = reconciliation("carts", finished_utc=None, result={})
    seen = samples(metrics, State(reconciliations=(reconciliation(), at_work)))
    assert seen["reconcile_timestamp_seconds", ("orders",)] == NOW - 3600
    assert seen["reconcile_entities", ("missing", "orders")] == 12.0
    assert not [name for name, labels in seen if "carts" in labels]


def test_what_is_not_known_is_absent_and_not_zero(metrics: WorkerMetrics) -> None:
    names = {name for name, _ in samples(metrics, State(topics=None, audit_writable=None))}
    assert not names & {"queue_messages", "queue_oldest_age_seconds", "audit_writable"}


def test_openmetrics_is_given_to_who_asks_for_it(metrics: WorkerMetrics) -> None:
    asked = "application/openmetrics-text; version=1.0.0"
    body, content_type = PrometheusMetrics(metrics.values, State).encoded(asked)
    assert content_type.startswith("application/openmetrics-text") and body.endswith(b"# EOF\n")


def documented() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for line in DOCS.read_text(encoding="utf-8").splitlines():
        row = re.match(r"\| `(zithara_worker_\w+)` \| (\w+) \| ([^|]*)\|", line)
        if row:
            yield row[1], row[2], tuple(label for label in row[3].replace(",", " ").split())


def test_every_metric_is_documented_with_its_type_and_labels(metrics: WorkerMetrics) -> None:
    metrics.claimed(ORDER, [message_of(1)], 0.001)
    settled = [
        done(message_of(1), OutcomeKind.RETRY, reason="x"),
        done(message_of(2), OutcomeKind.FAILED, reason="x", endpoint="POST /order", duration_ms=1.0),
        done(message_of(3), OutcomeKind.SKIPPED, reason="x"),
    ]
    metrics.settled(ORDER, Settled(settled), 0.001)
    metrics.relayed(ORDER, 1)
    state = State(
        paused={ORDER: True},
        breakers={"api": "open"},
        throttled_seconds={"api": 1.0},
        topics=(topic_status(rabbitmq=3),),
        reconciliations=[reconciliation()],
        audit_writable=True,
    )
    text = PrometheusMetrics(metrics.values, lambda: state).encoded("text/plain")[0].decode()
    shown = set()
    for family in text_string_to_metric_families(text):
        if family.name.startswith("zithara_worker_"):
            assert family.samples, family.name
            name = family.name + ("_total" if family.type == "counter" else "")
            shown.add((name, family.type, frozenset(set(family.samples[0].labels) - {"le"})))
    assert shown == {(name, kind, frozenset(labels)) for name, kind, labels in documented()}


# ---------------------------------------------------------------- health


def loop_status(**changes: Any) -> LoopStatus:
    given: dict[str, Any] = {
        "turned_at": 1000.0,
        "longest_wait_seconds": 5.0,
        "database_up": True,
        "consumable": True,
        "paused": (),
    }
    return LoopStatus(**{**given, **changes})


def test_working_worker_is_live_and_ready() -> None:
    health = worker_health(loop_status(), 1001.0, down={}, stopping=False, audit_problem=None)
    assert health.as_json() == {"live": True, "ready": True, "reasons": [], "notes": []}


@pytest.mark.parametrize(
    ("changes", "facts", "reason"),
    [
        ({"database_up": False}, {}, "the database is not available"),
        ({"consumable": False}, {}, "switched Zithara off"),
        ({}, {"stopping": True}, "stopping"),
        ({}, {"audit_problem": "No space left on device"}, r"audit file cannot be written \(No space left"),
        ({}, {"down": {"api": "HTTP 503"}, "delivers_nothing": True}, "API DOWN: HTTP 503: messages wait"),
    ],
)
def test_worker_that_cannot_deliver_is_live_but_not_ready(
    changes: dict[str, Any], facts: dict[str, Any], reason: str
) -> None:
    given: dict[str, Any] = {"down": {}, "stopping": False, "audit_problem": None, **facts}
    health = worker_health(loop_status(**changes), 1001.0, **given)
    assert health.live and not health.ready
    assert len(health.reasons) == 1 and re.search(reason, health.reasons[0])


def test_refused_credentials_are_told_in_the_same_words_as_elsewhere() -> None:
    why = "credentials refused (HTTP 401: invalid client)"
    down = {"api": why, "/cart": 'HTTP 500: {"message": "credentials"}'}
    health = worker_health(loop_status(), 1001.0, down=down, delivers_nothing=True, stopping=False, audit_problem=None)
    cart, api = health.reasons
    assert api.startswith(f"API DOWN: {why}: correct client id and secret in the shop's Zithara configuration, or in ")
    assert cart.startswith("/cart DOWN: HTTP 500: ") and "correct" not in cart, "only what is said of credentials"
    worker = worker_status(targets={"api": {"breaker": "open", "why": why}})
    assert api in [str(each) for each in conditions(fleet_status(workers=(worker,)))]


def test_one_host_of_two_being_down_is_only_a_note() -> None:
    down = {"webhook": "no connection"}
    health = worker_health(loop_status(paused=(CART,)), 1001.0, down=down, stopping=False, audit_problem=None)
    assert health.ready and len(health.notes) == 2 and "resume" in health.notes[1]


def test_loop_that_does_not_turn_is_not_live() -> None:
    facts: dict[str, Any] = {"down": {}, "stopping": False, "audit_problem": None}
    assert worker_health(loop_status(), 1000.0 + 5.0 + STUCK_SECONDS, **facts).live
    stuck = worker_health(loop_status(), 1000.1 + 5.0 + STUCK_SECONDS, **facts)
    assert not stuck.live and not stuck.ready and "restart" in stuck.reasons[0]


def test_worker_that_has_not_reached_the_database_yet_is_live() -> None:
    health = worker_health(None, 1000.0, down={}, stopping=False, audit_problem=None)
    assert health.live and not health.ready and "database" in health.reasons[0]
