"""When what is recorded of a topic is compared: not while others deliver it, nor before it is known what they did."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.workers import Clock, MakeWorker, StepWorker

from zithara_worker.database.session import Database
from zithara_worker.monitor.registry import Identity, Registry
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART
from zithara_worker.worker.ledger_duties import OTHERS_SECONDS, LedgerDuties
from zithara_worker.worker.relevance import Relevance


@pytest.fixture
def relevance() -> Relevance:
    return Relevance({}, look_at_carts=None, utc=lambda: 0.0)


@pytest.fixture
def carts(make_worker: MakeWorker) -> StepWorker:
    return make_worker(topic=TOPIC_CART)


@pytest.fixture
def duties(carts: StepWorker, clock: Clock, relevance: Relevance) -> LedgerDuties:
    return LedgerDuties(carts.database, {carts.queue_id: TOPIC_CART}, relevance=relevance, monotonic=clock)


def old_worker(database: Database, topic: str) -> Callable[[], None]:
    """A worker of version 0.2 that tells that it lives, as often as this is called."""
    registry = Registry(database, Identity(id="old", host="shop1", pid=7, version="0.2.1", topics=(topic,)))
    return lambda: registry.update(in_flight=0, metrics_address=None, state={}, minutes={})


def test_an_older_worker_on_the_topic_switches_the_comparison_off_and_its_end_switches_it_on(
    carts: StepWorker, clock: Clock, relevance: Relevance, duties: LedgerDuties
) -> None:
    lives = old_worker(carts.database, TOPIC_CART)
    for _ in range(3):
        lives()
        assert duties.look_at_others()
        assert relevance.unrecorded == {TOPIC_CART}
        clock.pass_by(OTHERS_SECONDS / 2)
    # It was seen last half of the time ago, and not for a minute.
    duties.look_at_others()
    assert relevance.unrecorded == {TOPIC_CART}
    clock.pass_by(OTHERS_SECONDS / 2)
    duties.look_at_others()
    assert relevance.unrecorded == frozenset()


def test_an_older_worker_on_another_topic_concerns_nobody(
    carts: StepWorker, relevance: Relevance, duties: LedgerDuties
) -> None:
    old_worker(carts.database, "zithara.order.events")()
    assert duties.look_at_others()
    assert relevance.unrecorded == frozenset()


def test_nothing_counts_as_unchanged_before_the_first_look(relevance: Relevance, duties: LedgerDuties) -> None:
    assert relevance.unsure == {TOPIC_CART}
    assert duties.look_at_others()
    assert relevance.unsure == frozenset()


def test_what_was_confirmed_before_the_newest_message_vanished_proves_nothing(
    shop: Shop, carts: StepWorker, duties: LedgerDuties
) -> None:
    """A restored backup, or a failover that lost its tail, also lost what Zithara accepted since."""

    def sure_since() -> bool:
        text = "SELECT sure_since > '2000-01-01' FROM {prefix}zithara_ledger WHERE topic = %s"
        return bool(shop.query(text, [TOPIC_CART])[0][0])

    assert duties.look_at_others()
    for newest in (7, 9, 9):
        duties.polled({carts.queue_id: newest})
    assert not sure_since()
    duties.polled({carts.queue_id: 8})
    assert sure_since()
