"""A webhook that names a configuration row: rejected only after a look at the table that is newer than its claim."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.waiting import eventually
from worker.test_outage import running, settings_for

from zithara_worker import Worker
from zithara_worker.errors import DatabaseUnavailable
from zithara_worker.limits import Limits
from zithara_worker.sandbox.api import FakeZithara
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_WEBHOOK
from zithara_worker.worker import duties

Looks = list[object]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    """The looks at the shop that the duties have ended; none comes by time but the first."""
    made: Looks = []
    original = duties.read_configuration

    def look(*arguments: object) -> object:
        found = original(*arguments)  # type: ignore[arg-type]  # passed through
        made.append(arguments)
        return found

    monkeypatch.setattr(duties, "read_configuration", look)
    monkeypatch.setattr(duties, "SHOP_INTERVAL", 3600.0)
    return made


@pytest.fixture
def worker(shop: Shop, api: FakeZithara) -> Worker:
    return Worker(settings_for(shop, api))


def test_a_webhook_of_a_row_saved_a_moment_ago_is_delivered(
    shop: Shop, api: FakeZithara, worker: Worker, looks: Looks
) -> None:
    with running(worker, "webhook"):
        eventually(lambda: looks)
        shop.configure_webhook(config_id=2, webhook_url=api.webhook_url, is_active=False)
        shop.publish_webhook(config_id=2)
        eventually(lambda: shop.statuses() in ([4], [6]))
    assert shop.statuses() == [4]
    assert len(looks) == 2


def test_many_webhooks_of_a_dead_row_cost_one_look_a_claim(shop: Shop, worker: Worker, looks: Looks) -> None:
    for number in range(250):
        shop.publish_webhook(config_id=7, payload={"order_id": number})
    worker.run([TOPIC_WEBHOOK], limits=Limits(stop_when_empty=True))
    assert shop.status_counts() == {6: 250}
    assert len(looks) <= 1 + 6, "batches of 100 at most"


def test_what_cannot_be_looked_up_is_given_back_and_tried_again(
    shop: Shop, worker: Worker, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: Callable[..., object] = duties.read_configuration

    def fails_once(*arguments: object) -> object:
        found = counted(*arguments)
        if len(looks) == 2:
            raise DatabaseUnavailable("gone")
        return found

    monkeypatch.setattr(duties, "read_configuration", fails_once)
    shop.publish_webhook(config_id=7)
    with running(worker, "webhook"):
        eventually(lambda: shop.statuses() == [6])
    assert [row.number_of_trials for row in shop.rows()] == [1]
    assert len(looks) == 3
