"""Messages that become visible behind the cursor: publishers take ids inside transactions that end later."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.workers import StepWorker

from zithara_worker.messages import OutcomeKind
from zithara_worker.sandbox.shop import Shop


@pytest.mark.parametrize("index", [False, True], ids=["without the optional index", "with it"])
def test_a_newer_message_of_its_group_does_not_pass_one_that_was_committed_late(
    shop: Shop, make_worker: Callable[..., StepWorker], index: bool
) -> None:
    """Both are visible at the same poll, but only the newer one lies in front of the cursor."""
    if index:
        shop.run_script("optional_index.sql")
    worker = make_worker()
    with shop.transaction() as checkout:
        late = checkout.publish_order("1")
        other = shop.publish_order("2")
        worker.pulse()
        (claimed,) = worker.take(10)
        assert claimed.message_id == other.message_id
    newer = shop.publish_order("1", is_update=True)
    worker.pulse()
    assert [message.message_id for message in worker.take(10)] == [late.message_id]
    assert newer.message_id not in worker.drain()


def test_a_worker_that_has_just_started_looks_back_as_well(shop: Shop, make_worker: Callable[..., StepWorker]) -> None:
    with shop.transaction() as checkout:
        late = checkout.publish_order("1")
        shop.publish_order("2")
        worker = make_worker()
        worker.deliver(worker.claim())  # a whole round of the sweep included
    newer = shop.publish_order("1", is_update=True)
    worker.pulse()
    claimed = worker.take(10)
    assert [message.message_id for message in claimed] == [late.message_id]
    worker.settle(*((message, OutcomeKind.DELIVERED) for message in claimed))
    assert worker.drain() == [newer.message_id]
