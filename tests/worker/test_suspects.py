"""Messages whose worker died, in the running loop: delivered alone, and in turns with the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import groupby

import pytest
from support.waiting import eventually
from support.workers import Clock, StepWorker, settings_of
from worker.test_outage import FastClock, running, settings_for

from zithara_worker import Worker
from zithara_worker.database.session import Database
from zithara_worker.sandbox.api import FakeZithara, RecordedRequest, Reply
from zithara_worker.sandbox.shop import Shop
from zithara_worker.worker.claiming import SUSPECTS_SECONDS

#: Seconds that the delivery of one of the other messages takes, on the clock of the test.
OTHERS_TAKE = 0.05


class CountedClock(FastClock):
    """Counts how often a worker looks at it."""

    looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        return super().monotonic()


def leave_behind(shop: Shop, count: int) -> set[str]:
    """Messages in the hands of a worker that died an hour ago; the keys of their requests without what is in them."""
    published = [shop.publish_order(f"dead-{number}") for number in range(count)]
    clock = Clock()
    clock.pass_by(-3600)
    dead = StepWorker(shop, clock, worker_id="dead")
    assert len(dead.claim()) == count
    dead.close()
    return {f"zithara_order_queue-{each.message_id}" for each in published}


@pytest.fixture
def looking(shop: Shop) -> Iterator[Database]:
    """A session of the test's own, for the threads of the API, one at a time."""
    with closing(Database(settings_of(shop))) as database:
        yield database


@pytest.mark.parametrize(("count", "suspects_take"), [(8, 0.4), (3, 3.0)])
def test_suspects_are_delivered_alone_and_take_turns_with_the_others(
    shop: Shop, api: FakeZithara, looking: Database, count: int, suspects_take: float
) -> None:
    """One thread, so that the order of arrivals is that of the loop. The API moves the clock that the loop sees."""
    suspects = leave_behind(shop, count)
    for number in range(150):
        shop.publish_order(f"other-{number}")
    ids = [row.relation_id for row in shop.rows()]
    clock = CountedClock()
    arrived: list[bool] = []
    in_hand: list[int] = []

    def respond(request: RecordedRequest) -> Reply | None:
        if request.message:
            suspect = request.message in suspects
            arrived.append(suspect)
            clock.ahead += suspects_take if suspect else OTHERS_TAKE
            if suspect:
                # Turns of the loop, in which it might claim something else beside the suspect.
                enough = clock.looks + 100
                eventually(lambda: clock.looks > enough)
                rows = looking.rows("statuses", ids=ids)
                in_hand.append(sum(int(row["status"]) == 3 for row in rows))
        return None

    api.responder = respond
    settings = settings_for(shop, api, batch_size=2)
    settings = replace(settings, worker=replace(settings.worker, concurrency=1))
    with running(Worker(settings, monotonic=clock.monotonic, utc=clock.utc, clock=clock.utc)):
        eventually(lambda: arrived.count(True) == count and shop.status_counts().get(4, 0) > 20, within=30)
    # What is still IN_PROGRESS and nobody's is among the suspects; the one that is sent is the only one in hand.
    assert in_hand == list(range(count, 0, -1))

    runs = [(suspect, len(list(run))) for suspect, run in groupby(arrived)]
    last = max(place for place, (suspect, _) in enumerate(runs) if suspect)
    turns = [length for suspect, length in runs[: last + 1] if suspect]
    between = [length for suspect, length in runs[1:last] if not suspect]
    a_turn = -(-SUSPECTS_SECONDS // suspects_take)
    assert max(turns) <= a_turn + 1
    # The others have as long as the suspects before them had, and what is in hand then is delivered first.
    as_long = a_turn * suspects_take / OTHERS_TAKE
    assert all(0.5 * as_long <= length <= 1.3 * as_long + 5 for length in between), (turns, between)
    assert len(between) >= count / a_turn - 2
