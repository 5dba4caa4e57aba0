"""Pausing and resuming topics for the whole fleet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zithara_worker.database.session import Database
from zithara_worker.queue.operator import pause, resume
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER


def test_a_paused_topic_stays_on_the_queue_and_the_others_go_on(
    shop: Shop, database: Database, consume: Callable[[], None], audit: Any
) -> None:
    shop.publish_order()
    shop.publish_cart()
    (paused,) = pause(database, [TOPIC_ORDER], by="anna@shop1", reason="import", audit=audit)
    assert paused.changed and paused.pause is not None and paused.pause.reason == "import"
    consume()
    assert (shop.statuses(TOPIC_ORDER), shop.statuses(TOPIC_CART)) == ([2], [4])
    (resumed,) = resume(database, [TOPIC_ORDER], by="anna@shop1", audit=audit)
    assert resumed.changed and resumed.pause is None
    consume()
    assert shop.statuses(TOPIC_ORDER) == [4]
    assert [(line["action"], line["topic"], line["who"]) for line in audit.lines] == [
        ("pause", TOPIC_ORDER, "anna@shop1"),
        ("resume", TOPIC_ORDER, "anna@shop1"),
    ]


def test_whoever_paused_first_stays_on_record(database: Database, audit: Any) -> None:
    pause(database, [TOPIC_ORDER], by="anna@shop1", reason="import", audit=audit)
    (again,) = pause(database, [TOPIC_ORDER], by="ben@shop2", reason="", audit=audit)
    assert not again.changed
    assert again.pause is not None and (again.pause.paused_by, again.pause.reason) == ("anna@shop1", "import")
    assert len(audit.lines) == 1


def test_resuming_what_runs_changes_nothing(database: Database, audit: Any) -> None:
    (resumed,) = resume(database, [TOPIC_CART], by="anna@shop1", audit=audit)
    assert not resumed.changed and resumed.pause is None and audit.lines == []
