"""The metrics of the worker under their Prometheus names: the one list of them. Needs prometheus-client (extra
`metrics`).

A test holds docs/metrics.md, the dashboard and the alert rules to this list.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from zithara_worker.monitor.counters import Distribution, MetricValues
from zithara_worker.monitor.fleet import TopicStatus
from zithara_worker.monitor.reconciliations import Reconciliation
from zithara_worker.version import VERSION

PREFIX = "zithara_worker"
BREAKER_STATES = ("closed", "half-open", "open")


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Values that are read at each scrape, not counted."""

    ready: bool = True
    database_up: bool = True
    shop_enabled: bool = True
    #: Topic -> whether an operator paused it
    paused: Mapping[str, bool] = field(default_factory=dict)
    concurrency: int = 0
    breakers: Mapping[str, str] = field(default_factory=dict)
    throttled_seconds: Mapping[str, float] = field(default_factory=dict)
    token_refreshes: int = 0
    #: None: the queues could not be read
    topics: Sequence[TopicStatus] | None = None
    read_seconds: float = 0.0
    reconciliations: Sequence[Reconciliation] = ()
    #: None: no audit file is configured
    audit_writable: bool | None = None
    audit_lines: int = 0
    audit_lines_lost: int = 0


class PrometheusMetrics(Collector):
    """Answers a scrape. `values` and `state` are called at every scrape, in the thread of its request."""

    def __init__(self, values: Callable[[], MetricValues], state: Callable[[], State]) -> None:
        self._values = values
        self._state = state
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def encoded(self, accept: str) -> tuple[bytes, str]:
        """The text in the format that the Accept header asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterable[Metric]:
        yield from _from_state(self._state())
        yield from _from_values(self._values())

    def describe(self) -> Iterable[Metric]:
        """Called at registration, before there are any values. Empty: names are not checked for collisions."""
        return ()


def _from_state(state: State) -> Iterator[Metric]:
    yield InfoMetricFamily(
        f"{PREFIX}_build",
        "Version of the worker and of its Python.",
        value={"version": VERSION, "python_version": platform.python_version()},
    )
    yield _gauge("ready", "1 when the worker can claim and deliver messages; see /healthz.", state.ready)
    yield _gauge("database_up", "1 when the loop's database session answers.", state.database_up)
    yield _gauge("shop_enabled", "1 when the shop wants its events delivered.", state.shop_enabled)
    yield _gauge("concurrency", "Requests that may be in flight at once.", state.concurrency)
    yield _gauges("topic_paused", "1 when an operator paused the topic.", ["topic"], state.paused)
    yield _gauges(
        "living_workers",
        "Workers of the whole fleet that serve the topic and were seen within 30 seconds.",
        ["topic"],
        {each.topic: each.workers for each in state.topics or ()},
    )
    yield _gauges(
        "living_relays",
        "Relays of the whole fleet that serve the topic and were seen within 30 seconds.",
        ["topic"],
        {each.topic: each.relays for each in state.topics or ()},
    )
    yield _gauges(
        "relay_missing",
        "1 when a relay of the topic ended without stopping in order, and no living one has taken its place.",
        ["topic"],
        {each.topic: each.relay_missing for each in state.topics or ()},
    )
    yield _gauges(
        "rabbitmq_messages",
        "Messages that wait in RabbitMQ, as a living relay counts them.",
        ["topic"],
        {each.topic: each.rabbitmq for each in state.topics or () if each.rabbitmq is not None},
    )
    yield _gauges(
        "relay_aside_messages",
        "Messages from RabbitMQ that the queue cannot hold, kept aside.",
        ["topic"],
        {each.topic: each.aside for each in state.topics or ()},
    )
    compared = [each for each in state.reconciliations if each.judged_utc is not None]
    yield _gauges(
        "reconcile_timestamp_seconds",
        "When reconcile last judged all of a kind.",
        ["kind"],
        {each.kind: each.judged_utc or 0.0 for each in compared},
    )
    yield _gauges(
        "reconcile_entities",
        "Orders, customers and carts of the shop by what reconcile found of them.",
        ["kind", "class"],
        {(each.kind, name): number for each in compared for name, number in each.counts.items()},
    )
    yield _gauges(
        "breaker_state",
        "1 for the state that a target's breaker is in.",
        ["target", "state"],
        {(target, each): each == now for target, now in state.breakers.items() for each in BREAKER_STATES},
    )
    yield _gauges(
        "throttled_seconds", "Seconds left of the pause that a target asked for.", ["target"], state.throttled_seconds
    )
    yield _counter("token_refreshes", "Access tokens requested from the API.", state.token_refreshes)
    if state.topics is not None:
        counts = {(topic.topic, status): each for topic in state.topics for status, each in _counts(topic).items()}
        yield _gauges(
            "queue_messages",
            "Messages on the queue, completed ones left out.",
            ["topic", "status"],
            {labels: messages for labels, (messages, _) in counts.items()},
        )
        yield _gauges(
            "queue_oldest_age_seconds",
            "Time since the oldest message of a status was last changed; 0 without one.",
            ["topic", "status"],
            {labels: round(oldest or 0.0, 3) for labels, (_, oldest) in counts.items()},
        )
        yield _gauge("queue_read_seconds", "How long the last count of the queues took.", state.read_seconds)
    if state.audit_writable is not None:
        yield _gauge("audit_writable", "1 when the audit file can be written.", state.audit_writable)
        yield _counter("audit_lines", "Lines written to the audit file.", state.audit_lines)
        yield _counter(
            "audit_lines_lost", "Lines dropped because the audit file could not be written.", state.audit_lines_lost
        )


def _counts(topic: TopicStatus) -> dict[str, tuple[int, float | None]]:
    """Magento's name of a status, lower case -> messages, and the age of the oldest in seconds."""
    return {
        "new": (topic.new, topic.oldest_new_seconds),
        "in_progress": (topic.in_progress, topic.oldest_in_progress_seconds),
        "retry_required": (topic.retry, topic.oldest_retry_seconds),
        "error": (topic.error, topic.oldest_error_seconds),
    }


def _from_values(values: MetricValues) -> Iterator[Metric]:
    yield _counters(
        "deliveries", "Messages whose outcome was written, by outcome.", ["topic", "outcome"], values.deliveries
    )
    yield _counters("retries", "Messages put back for another attempt, by reason.", ["topic", "reason"], values.retries)
    yield _counters("failures", "Messages that went to ERROR, by reason.", ["topic", "reason"], values.failures)
    yield _counters("skips", "Messages completed without a request, by reason.", ["topic", "reason"], values.skips)
    yield _counters("coalesced_messages", "Older snapshots completed by a newer one.", ["topic"], values.coalesced)
    yield _counters(
        "leases_lost",
        "Messages that another worker took over before their outcome was written.",
        ["topic"],
        values.leases_lost,
    )
    yield _counters(
        "relayed_messages", "Messages that this relay wrote from RabbitMQ into the queue.", ["topic"], values.relayed
    )
    yield _gauges("in_flight_messages", "Messages claimed and not yet settled.", ["topic"], values.in_flight)
    yield _gauges(
        "last_settled_timestamp_seconds", "When an outcome was last written.", ["topic"], values.last_settled_at
    )
    yield _histogram(
        "api_response_seconds",
        "From the first byte out to the last byte in, by endpoint and status class.",
        ["endpoint", "status_class"],
        values.response_seconds,
    )
    for name, text, by_topic in (
        ("delivery_seconds", "From claim to the outcome written, of delivered messages.", values.delivery_seconds),
        ("claim_seconds", "How long a claim took, empty ones included.", values.claim_seconds),
        ("settle_seconds", "How long writing a batch of outcomes took.", values.settle_seconds),
        ("claim_batch_messages", "Messages of a claim that found some.", values.claim_messages),
        ("settle_batch_messages", "Outcomes written together.", values.settle_messages),
    ):
        yield _histogram(name, text, ["topic"], by_topic)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, value=float(value))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"{PREFIX}_{name}", text, value=value)


def _gauges(name: str, text: str, labels: list[str], values: Mapping[Any, float]) -> Metric:
    """`values`: label value, or a tuple of them -> value."""
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for place, value in sorted(values.items()):
        family.add_metric(_tuple(place), float(value))
    return family


def _counters(name: str, text: str, labels: list[str], values: Mapping[Any, float]) -> Metric:
    family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for place, value in sorted(values.items()):
        family.add_metric(_tuple(place), float(value))
    return family


def _histogram(name: str, text: str, labels: list[str], distributions: Mapping[Any, Distribution]) -> Metric:
    family = HistogramMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for place, each in sorted(distributions.items()):
        family.add_metric(_tuple(place), _cumulative(each), each.total)
    return family


def _cumulative(distribution: Distribution) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    count = 0
    for bound, here in zip((*distribution.bounds, float("inf")), distribution.counts, strict=True):
        count += here
        buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), float(count)))
    return buckets


def _tuple(labels: str | tuple[str, ...]) -> tuple[str, ...]:
    return (labels,) if isinstance(labels, str) else labels
