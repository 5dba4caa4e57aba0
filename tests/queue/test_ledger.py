"""The delivery ledger, sequence by sequence: each would lose news or put older over newer without its rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from typing import Any

import pytest
from support.shops import SHOP
from support.workers import Clock, StepWorker

from zithara_worker.errors import DatabaseUnavailable
from zithara_worker.messages import (
    Event,
    Evidence,
    Message,
    Outcome,
    OutcomeKind,
    Request,
)
from zithara_worker.processors import outline, process, supersedes
from zithara_worker.queue.ledger import DOUBT_SECONDS
from zithara_worker.queue.ledger_others import INTERVAL, OVERLAP, Others
from zithara_worker.queue.ledger_rules import Rules
from zithara_worker.queue.ledger_upkeep import ids_began_again, next_id
from zithara_worker.queue.settle import Settled, Settlement
from zithara_worker.reasons import OVERTAKEN, UNCHANGED
from zithara_worker.sandbox import examples
from zithara_worker.sandbox.publisher import Published, Publisher
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_CUSTOMER, TOPIC_ORDER
from zithara_worker.zithara.api import _accepted, request_digest

DAY = 86400.0
HERE = "a" * 64


class Crm:
    """What Zithara holds: group -> names and values, written over by each request that it processes."""

    def __init__(self) -> None:
        self.requests: list[int] = []
        self.holds: dict[str, dict[str, Any]] = {}

    def takes(self, message: Message, request: Request) -> None:
        self.requests.append(message.message_id)
        held = self.holds.setdefault(message.group_key, {})
        entity = request.entity
        assert entity is not None
        held.update(entity.state)


class Shipper(StepWorker):
    """A worker that keeps the ledger: asks its rules before it sends, and settles what came of it."""

    def __init__(self, *arguments: Any, crm: Crm, coalesce: bool = False, **options: Any) -> None:
        if coalesce:
            options |= {"supersedes": supersedes, "outline": outline}
        super().__init__(*arguments, **{"destination": HERE, **options})
        self.crm = crm
        self.rules = Rules(digest=request_digest, unchanged_for=DAY)
        self.others = Others(self.database, {self.queue_id: self.queue.topic}, clock=self.clock)

    def request(self, message: Message) -> Request:
        event = self.contents[message.id]
        assert isinstance(event, Event)
        request = process(event, SHOP)
        assert isinstance(request, Request)
        return request

    def ship(self, message: Message) -> Outcome:
        request = self.request(message)
        reason = self.rules.reason_not_to_send(message, request)
        if reason:
            return Outcome(kind=OutcomeKind.SKIPPED, reason=reason)
        self.crm.takes(message, request)
        assert request.entity is not None
        accepted = _accepted(request, request.entity, request_digest(request).encode())
        return Outcome(
            kind=OutcomeKind.DELIVERED, accepted=replace(accepted, request=request_digest(request), content="c" * 64)
        )

    def settle_as(self, message: Message, outcome: Outcome, *, delay: float = 0.0) -> Settled:
        return self.queue.settle([Settlement(message=message, outcome=outcome, delay_seconds=delay)])

    def run(self) -> list[tuple[int, str]]:
        """Until nothing is left: message ids, each with the reason why it was not sent or "sent"."""
        done = []
        while messages := self.claim():
            outcomes = [(message, self.ship(message)) for message in messages]
            self.queue.settle([Settlement(message=message, outcome=outcome) for message, outcome in outcomes])
            done += [(message.message_id, outcome.reason or "sent") for message, outcome in outcomes]
        return done

    def times_out(self, message: Message, *, processed: bool) -> None:
        """No answer comes in time; the request may have been processed."""
        if processed:
            self.crm.takes(message, self.request(message))
        outcome = Outcome(kind=OutcomeKind.RETRY, reason="timeout", evidence=Evidence.PATH)
        self.settle_as(message, outcome, delay=1.0)


@pytest.fixture
def crm() -> Crm:
    return Crm()


@pytest.fixture
def make_shipper(shop: Shop, clock: Clock, crm: Crm) -> Iterable[Callable[..., Shipper]]:
    with ExitStack() as made:

        def make(topic: str = TOPIC_CART, worker_id: str = "worker-a", **options: Any) -> Shipper:
            shipper = Shipper(shop, clock, crm=crm, topic=topic, worker_id=worker_id, **options)
            return made.enter_context(closing(shipper))

        yield make


@pytest.fixture
def worker(make_shipper: Callable[..., Shipper]) -> Shipper:
    return make_shipper()


@pytest.fixture
def other(make_shipper: Callable[..., Shipper]) -> Shipper:
    return make_shipper(worker_id="worker-b")


@pytest.fixture
def coalescing(make_shipper: Callable[..., Shipper]) -> Shipper:
    return make_shipper(coalesce=True)


@pytest.fixture
def of_orders(make_shipper: Callable[..., Shipper]) -> Shipper:
    return make_shipper(TOPIC_ORDER)


@pytest.fixture
def of_customers(make_shipper: Callable[..., Shipper]) -> Shipper:
    return make_shipper(TOPIC_CUSTOMER)


def cart(shop: Shop, total: float) -> Published:
    return shop.publish(TOPIC_CART, examples.cart("7001", total_price=total))


def accept(shop: Shop, worker: Shipper, total: float, *, times: int = 1) -> None:
    """Zithara accepts a cart of this total."""
    for _ in range(times):
        cart(shop, total)
    worker.run()


def ledger_row(shop: Shop) -> Mapping[str, Any]:
    columns = "message_id, request IS NOT NULL, stale, accepted, doubt_until IS NOT NULL"
    row = shop.query(f"SELECT {columns} FROM {{prefix}}zithara_delivery")[0]
    return dict(zip(("message_id", "sure", "stale", "accepted", "doubt"), row, strict=True))


def put_back(shop: Shop, published: Published) -> None:
    """What Magento's cron does with a row that a PHP consumer died with, a day later."""
    shop.query(
        "UPDATE {prefix}queue_message_status SET status = 5, number_of_trials = 1, updated_at = NOW() WHERE id = %s",
        [published.relation_id],
    )


def php_delivers(shop: Shop, clock: Clock, published: Published, *, status: int = 4) -> None:
    """What is left of it: the status and the time."""
    shop.query(
        "UPDATE {prefix}queue_message_status SET status = %s, updated_at = FROM_UNIXTIME(%s) WHERE id = %s",
        [status, clock(), published.relation_id],
    )


def ids_begin_again(shop: Shop) -> None:
    for table in ("queue_message_status", "queue_lock", "queue_message"):
        shop.query(f"DELETE FROM {{prefix}}{table}")
    shop.query("ALTER TABLE {prefix}queue_message AUTO_INCREMENT = 1")


def held_by_php(shop: Shop, published: Published) -> None:
    shop.query("UPDATE {prefix}queue_message_status SET status = 3 WHERE id = %s", [published.relation_id])


# ---------------------------------------------------------------- unchanged


def test_the_same_cart_every_minute_becomes_one_request(shop: Shop, worker: Shipper) -> None:
    first, *others = [cart(shop, 10) for _ in range(5)]
    assert worker.run() == [(first.message_id, "sent")] + [(each.message_id, UNCHANGED) for each in others]
    assert ledger_row(shop) == {"message_id": others[-1].message_id, "sure": 1, "stale": 0, "accepted": 1, "doubt": 0}
    assert shop.statuses() == [4] * 5


def test_an_older_snapshot_that_comes_late_does_not_undo_what_was_unchanged(
    shop: Shop, worker: Shipper, crm: Crm
) -> None:
    """A, A again, and then B that was published between them."""
    cart(shop, 10)
    late = cart(shop, 20)
    held_by_php(shop, late)
    accept(shop, worker, 10)
    put_back(shop, late)
    assert worker.run() == [(late.message_id, OVERTAKEN)]
    assert crm.holds["cart:7001"]["cart"]["total_price"] == 10.0


@pytest.mark.parametrize("processed", [True, False])
def test_what_timed_out_is_no_longer_unchanged(
    shop: Shop, coalescing: Shipper, clock: Clock, crm: Crm, processed: bool
) -> None:
    """A is accepted, B times out, and A comes again."""
    accept(shop, coalescing, 10)
    second = cart(shop, 20)
    [message] = coalescing.claim()
    coalescing.times_out(message, processed=processed)
    again = cart(shop, 10)
    clock.pass_by(2)
    assert coalescing.run()[-1] == (again.message_id, "sent")
    assert crm.holds["cart:7001"]["cart"]["total_price"] == 10.0
    assert shop.row(second.relation_id).status == 4


def test_a_request_that_arrives_late_is_mended_by_the_next_snapshot(
    shop: Shop, coalescing: Shipper, clock: Clock, crm: Crm
) -> None:
    """B times out in a gateway that processes it after C was accepted. C again must not be taken for known."""
    cart(shop, 20)
    [message] = coalescing.claim()
    coalescing.times_out(message, processed=False)
    late = coalescing.request(message)
    cart(shop, 30)
    coalescing.look()
    clock.pass_by(2)
    coalescing.run()
    crm.takes(message, late)
    again = cart(shop, 30)
    assert coalescing.run() == [(again.message_id, "sent")]
    assert crm.holds["cart:7001"]["cart"]["total_price"] == 30.0
    clock.pass_by(DOUBT_SECONDS + 1)
    cart(shop, 30)
    assert [reason for _, reason in coalescing.run()] == ["sent"]
    cart(shop, 30)
    assert [reason for _, reason in coalescing.run()] == [UNCHANGED]


def test_what_a_dead_worker_may_have_sent_is_no_longer_unchanged(
    shop: Shop, worker: Shipper, other: Shipper, clock: Clock
) -> None:
    accept(shop, worker, 10)
    second = cart(shop, 20)
    worker.claim()
    clock.pass_by(61)
    assert other.run() == [(second.message_id, "sent")]
    # The dead worker's request for B may still be under way, and so may any older one.
    again = cart(shop, 20)
    assert other.run() == [(again.message_id, "sent")]


def test_an_operator_who_asks_between_claim_and_settle_gets_the_cart_sent(shop: Shop, worker: Shipper) -> None:
    accept(shop, worker, 10)
    again = cart(shop, 10)
    [message] = worker.claim()
    outcome = worker.ship(message)
    assert outcome.reason == UNCHANGED
    shop.query("UPDATE {prefix}zithara_delivery SET request = NULL")
    worker.settle_as(message, outcome)
    assert shop.row(again.relation_id).status == 2
    assert worker.run() == [(again.message_id, "sent")]


def test_what_is_known_of_another_account_counts_as_nothing(
    shop: Shop, worker: Shipper, make_shipper: Callable[..., Shipper]
) -> None:
    accept(shop, worker, 10)
    there = cart(shop, 10)
    assert make_shipper(worker_id="worker-b", destination="b" * 64).run() == [(there.message_id, "sent")]
    back = cart(shop, 10)
    assert worker.run() == [(back.message_id, "sent")]
    assert ledger_row(shop)["accepted"] == 1


def test_after_a_day_the_same_cart_is_sent_again(shop: Shop, worker: Shipper, clock: Clock) -> None:
    accept(shop, worker, 10)
    clock.pass_by(DAY / 2)
    cart(shop, 10)
    assert [reason for _, reason in worker.run()] == [UNCHANGED]
    clock.pass_by(DAY / 2 + 1)
    cart(shop, 10)
    assert [reason for _, reason in worker.run()] == ["sent"]


@pytest.mark.parametrize("is_update", [True, False])
def test_an_order_that_is_unchanged_overtakes_what_was_published_before_it(
    shop: Shop, of_orders: Shipper, crm: Crm, is_update: bool
) -> None:
    """A create is accepted, a PHP consumer dies with the next state, and the first state comes again as a create."""

    def publish(state: str, hour: int, *, is_update: bool = False) -> Published:
        order = examples.order("100", is_update=is_update, state=state, updated_at=f"2026-11-02 {hour}:00:00")
        return shop.publish(TOPIC_ORDER, order)

    publish("processing", 10)
    of_orders.run()
    late = publish("complete", 11, is_update=is_update)
    held_by_php(shop, late)
    again = publish("processing", 12)
    assert of_orders.run() == [(again.message_id, UNCHANGED)]
    put_back(shop, late)
    assert of_orders.run() == [(late.message_id, OVERTAKEN)]
    assert crm.holds["order:100"]["status"] == "processing"


def test_an_unchanged_snapshot_completes_those_that_it_replaces(shop: Shop, coalescing: Shipper) -> None:
    accept(shop, coalescing, 10)
    cart(shop, 20)
    newest = cart(shop, 10)
    assert coalescing.run() == [(newest.message_id, UNCHANGED)]
    assert shop.statuses() == [4, 4, 4]


# ---------------------------------------------------------------- what others deliver


@pytest.mark.parametrize("status", [4, 5, 6])
def test_what_others_delivered_while_no_worker_ran_is_looked_up_at_the_start(
    shop: Shop, worker: Shipper, make_shipper: Callable[..., Shipper], clock: Clock, status: int
) -> None:
    """A is recorded, PHP delivers B (or fails: it may have arrived), and A comes again."""
    cart(shop, 10)
    other = shop.publish_cart("7002")
    worker.run()
    clock.pass_by(3600)
    php_delivers(shop, clock, cart(shop, 20), status=status)
    clock.pass_by(3600)
    started = make_shipper(worker_id="worker-b")
    while not started.others.look():
        pass
    assert started.others.up_to_date
    known = shop.query("SELECT group_key, request IS NOT NULL FROM {prefix}zithara_delivery ORDER BY group_key")
    assert known == [("cart:7001", 0), ("cart:7002", 1)]
    assert other.message_id > 0


def test_an_older_state_that_php_sent_over_the_recorded_one_is_noticed(
    shop: Shop, worker: Shipper, clock: Clock
) -> None:
    """PHP knows no order: it takes an orphan that Magento's cron freed."""
    orphan = cart(shop, 10)
    held_by_php(shop, orphan)
    accept(shop, worker, 20)
    assert worker.others.look()
    clock.pass_by(INTERVAL)
    php_delivers(shop, clock, orphan)
    assert worker.others.look()
    again = cart(shop, 20)
    assert worker.run() == [(again.message_id, "sent")]


def test_what_workers_themselves_end_is_not_taken_for_the_work_of_others(
    shop: Shop, coalescing: Shipper, clock: Clock
) -> None:
    """Messages delivered, superseded and unchanged, in one look and over several."""
    for total in (10, 20, 20):
        cart(shop, total)
        cart(shop, total)
        coalescing.run()
        assert coalescing.others.look()
        clock.pass_by(INTERVAL)
    accept(shop, coalescing, 20)
    clock.pass_by(1)
    cart(shop, 20)
    assert [reason for _, reason in coalescing.run()] == [UNCHANGED]
    assert coalescing.others.look()
    assert ledger_row(shop)["sure"]


def test_a_long_time_is_looked_at_in_parts_and_nothing_is_believed_before_its_end(
    shop: Shop, worker: Shipper, clock: Clock
) -> None:
    carts = [shop.publish_cart(str(7001 + number)) for number in range(3)]
    worker.run()
    assert worker.others.look()
    again = [shop.publish_cart(str(7001 + number), total_price=99) for number in range(3)]
    for published in again:
        clock.pass_by(7 * 3600)
        php_delivers(shop, clock, published)
    clock.pass_by(3600)
    steps = iter(range(1_000_000))
    started = Others(worker.database, {worker.queue_id: TOPIC_CART}, clock=lambda: next(steps) * 0.05)
    looks = 0
    while not started.look():
        assert not started.up_to_date
        looks += 1
    assert looks > 3
    assert shop.query("SELECT COUNT(*) FROM {prefix}zithara_delivery WHERE request IS NULL") == [(len(carts),)]


def test_what_was_committed_later_than_it_says_is_found_by_the_next_look(
    shop: Shop, worker: Shipper, clock: Clock
) -> None:
    accept(shop, worker, 10)
    clock.pass_by(INTERVAL)
    by_php = cart(shop, 20)
    assert worker.others.look()
    clock.pass_by(-2)
    php_delivers(shop, clock, by_php)
    clock.pass_by(2 + INTERVAL)
    assert worker.others.look()
    assert ledger_row(shop)["doubt"]


def test_a_stretch_that_the_server_gives_up_is_followed_by_a_shorter_one(
    shop: Shop, worker: Shipper, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night with nothing makes stretches long, and then comes a day with millions of messages."""
    assert worker.others.look()
    clock.pass_by(3600)
    rows, asked = worker.database.rows, []

    def give_up(statement: str, /, **parameters: Any) -> list[dict[str, Any]]:
        if statement == "ledger_ended":
            asked.append(parameters["up_to"] - parameters["after"])
            if asked[-1] > 2 * OVERLAP:
                raise DatabaseUnavailable("the statement took too long")
        return rows(statement, **parameters)

    monkeypatch.setattr(worker.database, "rows", give_up)
    for _ in range(4):
        with suppress(DatabaseUnavailable):
            worker.others.look()
    assert asked[0] > asked[1] > asked[2] and min(asked) <= 2 * OVERLAP


def test_after_more_than_a_day_without_a_worker_each_entity_is_sent_once_more(
    shop: Shop, worker: Shipper, clock: Clock
) -> None:
    """Magento may have deleted the messages by which others could be recognised."""
    worker.rules = replace(worker.rules, unchanged_for=30 * DAY)
    accept(shop, worker, 10)
    assert worker.others.look()
    clock.pass_by(DAY + 60)
    assert worker.others.look()
    for reason in ("sent", UNCHANGED):
        clock.pass_by(1)
        cart(shop, 10)
        assert [each for _, each in worker.run()] == [reason]


def test_a_message_that_php_took_before_us_leaves_its_entity_unsure_at_once(shop: Shop, worker: Shipper) -> None:
    """B is in the backlog when PHP takes it; A, which comes next, equals what is recorded."""
    accept(shop, worker, 10)
    shop.publish_cart("7002")
    by_php, again = cart(shop, 20), cart(shop, 10)
    worker.look()
    assert [message.group_key for message in worker.take(1)] == ["cart:7002"]
    held_by_php(shop, by_php)
    assert worker.take(1) == []
    [message] = worker.take(1)
    assert message.message_id == again.message_id
    assert worker.ship(message).reason == ""


@pytest.mark.parametrize("status", [3, 4])
@pytest.mark.parametrize("waits", [False, True])
def test_an_older_snapshot_that_php_took_is_not_replaced_by_one_that_tells_nothing_new(
    shop: Shop, coalescing: Shipper, clock: Clock, status: int, waits: bool
) -> None:
    """B would complete with A, which equals what is recorded; PHP sends B. Also where B was released before."""
    accept(shop, coalescing, 10)
    if not waits:
        shop.publish_cart("7002")
    by_php = cart(shop, 20)
    if waits:
        [message] = coalescing.claim()
    again = cart(shop, 10)
    if waits:
        shop.publish_cart("7002")
    assert len(coalescing.claim(1)) == 1
    if waits:
        coalescing.settle_as(message, Outcome(kind=OutcomeKind.RELEASED, reason="throttled"))
    php_delivers(shop, clock, by_php, status=status)
    [message] = coalescing.take(1)
    assert (message.message_id, message.supersedes) == (again.message_id, ())
    assert coalescing.ship(message).reason == ""
    assert ledger_row(shop)["doubt"]


def test_a_message_that_php_ended_before_one_that_waits_leaves_its_entity_unsure(
    shop: Shop, make_shipper: Callable[..., Shipper], clock: Clock
) -> None:
    """A is recorded. PHP sends B, which another worker never saw; the next one equals A, and was released there."""
    worker, other = make_shipper(coalesce=True), make_shipper(worker_id="worker-b", coalesce=True)
    accept(shop, worker, 10)
    shop.publish_cart("7002")
    by_php = cart(shop, 20)
    assert [message.group_key for message in worker.claim(1)] == ["cart:7002"], "it has read what comes next, too"
    held_by_php(shop, by_php)
    again = cart(shop, 10)
    [message] = other.claim()
    assert (message.message_id, message.supersedes) == (again.message_id, ())
    other.settle_as(message, Outcome(kind=OutcomeKind.RELEASED, reason="throttled"))
    php_delivers(shop, clock, by_php)
    worker.poll()
    [message] = worker.take(1)
    assert message.message_id == again.message_id
    assert worker.ship(message).reason == ""


def test_a_message_whose_row_was_changed_by_hand_while_it_was_sent_leaves_its_entity_unsure(
    shop: Shop, coalescing: Shipper, crm: Crm
) -> None:
    """A is recorded; B is accepted and cannot be settled; A comes again and would complete B unsent."""
    accept(shop, coalescing, 10)
    second = cart(shop, 20)
    [message] = coalescing.claim()
    outcome = coalescing.ship(message)
    again = cart(shop, 10)
    shop.publish_cart("7002")
    assert len(coalescing.claim(1)) == 1
    put_back(shop, second)
    assert coalescing.settle_as(message, outcome).lost == [message]
    assert coalescing.run() == [(again.message_id, "sent")]
    assert crm.holds["cart:7001"]["cart"]["total_price"] == 10.0


def test_a_clock_that_went_back_makes_nothing_unchanged(shop: Shop, worker: Shipper, clock: Clock) -> None:
    """How long ago the request was accepted is not known any more."""
    accept(shop, worker, 10)
    clock.pass_by(-60)
    cart(shop, 10)
    assert [reason for _, reason in worker.run()] == ["sent"]


def test_a_message_that_another_worker_took_leaves_nothing_unsure(shop: Shop, worker: Shipper, other: Shipper) -> None:
    accept(shop, worker, 10)
    shop.publish_cart("7002")
    cart(shop, 10)
    worker.look()
    assert worker.take(1)
    [message] = other.claim()
    assert worker.take(1) == []
    assert ledger_row(shop)["sure"]
    other.settle_as(message, other.ship(message))
    assert worker.run() == []
    assert ledger_row(shop)["sure"]


# ---------------------------------------------------------------- overtaken


def test_what_php_died_with_a_day_ago_does_not_go_over_newer_data(shop: Shop, of_orders: Shipper, crm: Crm) -> None:
    with shop.transaction() as publisher:
        create = publisher.publish_order("100")
        orphan = publisher.publish(TOPIC_ORDER, examples.order("100", is_update=True, state="processing"))
    held_by_php(shop, orphan)
    newer = shop.publish(TOPIC_ORDER, examples.order("100", is_update=True, state="complete"))
    assert of_orders.run() == [(create.message_id, "sent"), (newer.message_id, "sent")]
    put_back(shop, orphan)
    assert of_orders.run() == [(orphan.message_id, OVERTAKEN)]
    assert crm.holds["order:100"]["status"] == "completed"
    assert shop.row(orphan.relation_id).status == 4


def test_a_create_is_news_behind_an_update(shop: Shop, of_orders: Shipper, crm: Crm) -> None:
    """The create failed and the update was accepted: customer and items are known to nobody but the create."""
    create = shop.publish_order("100")
    held_by_php(shop, create)
    shop.publish(TOPIC_ORDER, examples.order("100", is_update=True, state="complete"))
    of_orders.run()
    put_back(shop, create)
    assert of_orders.run() == [(create.message_id, "sent")]
    assert ledger_row(shop)["stale"] == 1
    assert not ledger_row(shop)["sure"]
    shop.publish(TOPIC_ORDER, examples.order("100", is_update=True, state="closed"))
    of_orders.run()
    assert ledger_row(shop)["stale"] == 0


def test_a_create_is_news_behind_an_older_create_and_a_newer_update(shop: Shop, of_orders: Shipper) -> None:
    """Its items are known to nobody: the older create told others, and an update tells none."""
    with shop.transaction() as publisher:
        publisher.publish_order("100")
        second = publisher.publish_order("100")
        publisher.publish(TOPIC_ORDER, examples.order("100", is_update=True))
    held_by_php(shop, second)
    of_orders.run()
    put_back(shop, second)
    assert of_orders.run() == [(second.message_id, "sent")]


def test_an_address_is_news_behind_a_newer_message_without_one(shop: Shop, of_customers: Shipper, crm: Crm) -> None:
    address = {"address_data": {"city": "Pune"}}
    with_address = shop.publish_customer(custom_attributes=address)
    held_by_php(shop, with_address)
    with shop.transaction() as publisher:
        newer = publisher.publish_customer(last_name="Rao")
        without = publisher.publish_customer(last_name="Rao")
    held_by_php(shop, newer)
    of_customers.run()
    put_back(shop, with_address)
    put_back(shop, newer)
    assert of_customers.run() == [(with_address.message_id, "sent"), (newer.message_id, OVERTAKEN)]
    assert without.message_id > newer.message_id
    assert ledger_row(shop)["stale"] == 1


def test_an_older_address_that_commits_late_within_the_same_second_leaves_the_entity_to_reconcile(
    shop: Shop, of_customers: Shipper, crm: Crm
) -> None:
    """Nobody can tell by the time which of two messages of one second is the later state: the ids may, or may not."""
    with shop.transaction() as publisher:
        late = publisher.publish_customer(custom_attributes={"address_data": {"city": "Pune"}})
        shop.publish_customer(last_name="Rao")
        of_customers.run()
    shop.query(
        "UPDATE {prefix}queue_message_status SET updated_at = (SELECT published_at FROM {prefix}zithara_delivery) "
        "WHERE id = %s",
        [late.relation_id],
    )
    assert of_customers.run() == [(late.message_id, "sent")]
    assert ledger_row(shop)["stale"] == 1


def test_a_message_without_the_address_leaves_the_entity_to_reconcile_behind_an_older_address(
    shop: Shop, of_customers: Shipper, crm: Crm
) -> None:
    """An older address went over a newer one, since the message between them told none; so does the next one."""
    old, new = ({"address_data": {"city": city}} for city in ("Pune", "Delhi"))
    orphan = shop.publish_customer(custom_attributes=old)
    held_by_php(shop, orphan)
    shop.publish_customer(custom_attributes=new)
    of_customers.run()
    shop.publish_customer(last_name="Rao")
    of_customers.run()
    put_back(shop, orphan)
    assert of_customers.run() == [(orphan.message_id, "sent")]
    assert ledger_row(shop)["stale"] == 1
    shop.publish_customer(last_name="Rao")
    of_customers.run()
    assert ledger_row(shop)["stale"] == 1
    published = shop.publish_customer(custom_attributes=new)
    shop.query("UPDATE {prefix}zithara_delivery SET reconcile_id = %s", [published.message_id])
    of_customers.run()
    assert ledger_row(shop)["stale"] == 0


def test_ids_that_began_again_overtake_nothing_while_the_worker_runs(shop: Shop, worker: Shipper, crm: Crm) -> None:
    accept(shop, worker, 10, times=3)
    ids_begin_again(shop)
    assert ids_began_again(worker.database)
    news = cart(shop, 99)
    held_by_php(shop, news)
    put_back(shop, news)
    assert news.message_id == 1
    assert worker.run() == [(news.message_id, "sent")]
    assert crm.holds["cart:7001"]["cart"]["total_price"] == 99.0
    assert not ids_began_again(worker.database)


def test_of_two_workers_one_notices_that_ids_began_again_and_both_go_by_it(
    shop: Shop, worker: Shipper, other: Shipper
) -> None:
    accept(shop, worker, 10, times=3)
    ids_begin_again(shop)
    assert [ids_began_again(each.database) for each in (worker, other)] == [True, False]
    news = cart(shop, 99)
    held_by_php(shop, news)
    put_back(shop, news)
    assert other.run() == [(news.message_id, "sent")]


def test_what_is_unchanged_after_ids_began_again_counts_by_its_new_id(shop: Shop, worker: Shipper) -> None:
    """Its id is far below the recorded one, which must not come to count again."""
    accept(shop, worker, 10, times=3)
    ids_begin_again(shop)
    assert ids_began_again(worker.database)
    orphan = cart(shop, 10)
    assert worker.run() == [(orphan.message_id, UNCHANGED)]
    assert ledger_row(shop)["message_id"] == orphan.message_id == 1
    news = cart(shop, 99)
    held_by_php(shop, news)
    put_back(shop, news)
    assert worker.run() == [(news.message_id, "sent")]


@pytest.mark.parametrize("first", ["sent", UNCHANGED])
def test_a_create_of_old_ids_covers_no_create_of_new_ones(shop: Shop, of_orders: Shipper, first: str) -> None:
    """After a restore of the shop, an order's number is given out again, to another order."""
    with shop.transaction() as publisher:
        for _ in range(5):
            publisher.publish_order("100")
        publisher.publish(TOPIC_ORDER, examples.order("100", is_update=True, state="complete"))
    of_orders.run()
    ids_begin_again(shop)
    assert ids_began_again(of_orders.database)
    with shop.transaction() as publisher:
        create = publisher.publish_order("100", grand_total="99")
        state = "complete" if first == UNCHANGED else "closed"
        publisher.publish(TOPIC_ORDER, examples.order("100", is_update=True, state=state))
    held_by_php(shop, create)
    assert [reason for _, reason in of_orders.run()] == [first]
    put_back(shop, create)
    assert of_orders.run() == [(create.message_id, "sent")]


def test_a_server_that_does_not_say_which_id_is_next_is_believed_by_its_newest_message(
    shop: Shop, worker: Shipper
) -> None:
    accept(shop, worker, 10, times=3)
    # Ids are given by hand from now on: the server has none to tell.
    shop.query("SET foreign_key_checks = 0")
    shop.query("ALTER TABLE {prefix}queue_message MODIFY id BIGINT UNSIGNED NOT NULL")
    assert next_id(worker.database) == 0
    assert not ids_began_again(worker.database)
    shop.query("DELETE FROM {prefix}queue_message_status WHERE message_id > 1")
    shop.query("DELETE FROM {prefix}queue_message WHERE id > 1")
    assert ids_began_again(worker.database)
    assert not ids_began_again(worker.database)


def test_a_server_that_gives_out_lower_ids_later_loses_nothing(
    shop: Shop, worker: Shipper, clock: Clock, crm: Crm
) -> None:
    """Two writing servers: the later state has the lower id. Its failed attempts do not make it an older one."""
    later, earlier = cart(shop, 20), cart(shop, 10)
    held_by_php(shop, later)
    worker.run()
    shop.query(
        "UPDATE {prefix}queue_message_status SET status = 2, updated_at = NOW() + INTERVAL 5 SECOND WHERE id = %s",
        [later.relation_id],
    )
    assert earlier.message_id > later.message_id
    [message] = worker.claim()
    assert worker.rules.reason_not_to_send(message, worker.request(message)) == ""
    worker.times_out(message, processed=False)
    clock.pass_by(2)
    assert worker.run() == [(later.message_id, "sent")]
    assert crm.holds["cart:7001"]["cart"]["total_price"] == 20.0


def test_in_one_second_ids_tell_the_order_unless_several_servers_give_them_out(shop: Shop, worker: Shipper) -> None:
    first, second = cart(shop, 10), cart(shop, 20)
    shop.query("UPDATE {prefix}queue_message_status SET updated_at = '2026-11-24 10:00:00'")
    held_by_php(shop, first)
    shop.query(
        "UPDATE {prefix}queue_message_status SET updated_at = '2026-11-24 10:00:00' WHERE id = %s", [second.relation_id]
    )
    worker.run()
    shop.query(
        "UPDATE {prefix}queue_message_status SET status = 2, updated_at = '2026-11-24 10:00:00' WHERE id = %s",
        [first.relation_id],
    )
    [message] = worker.claim()
    request = worker.request(message)
    assert worker.rules.reason_not_to_send(message, request) == OVERTAKEN
    assert replace(worker.rules, ordered_ids=False).reason_not_to_send(message, request) == ""


def test_of_orders_their_own_time_decides(shop: Shop, of_orders: Shipper, crm: Crm) -> None:
    with shop.transaction() as publisher:
        publisher.publish_order("100")
        later = publisher.publish(
            TOPIC_ORDER, examples.order("100", is_update=True, state="closed", updated_at="2026-11-02 12:00:00")
        )
        publisher.publish(
            TOPIC_ORDER, examples.order("100", is_update=True, state="complete", updated_at="2026-11-02 11:00:00")
        )
    held_by_php(shop, later)
    of_orders.run()
    put_back(shop, later)
    assert of_orders.run() == [(later.message_id, "sent")]
    assert crm.holds["order:100"]["status"] == "closed"


def test_a_message_that_became_visible_late_leaves_the_entity_to_reconcile(shop: Shop, worker: Shipper) -> None:
    shop.query("INSERT INTO {prefix}quote (entity_id) VALUES (7001)")
    with shop.connect(autocommit=False) as connection:
        late = Publisher(connection, prefix=shop.prefix).publish(TOPIC_CART, examples.cart("7001", total_price=20))
        newer = cart(shop, 10)
        assert worker.run() == [(newer.message_id, "sent")]
        connection.commit()
    assert worker.run() == [(late.message_id, OVERTAKEN)]
    assert ledger_row(shop)["stale"] == 1


def test_a_message_that_a_dead_worker_held_does_not_go_over_newer_data_and_reconcile_looks(
    shop: Shop, worker: Shipper, other: Shipper, clock: Clock
) -> None:
    """Whether it has been sent behind the newer one, nobody knows. To send it now would be sure to put it there."""
    orphan = cart(shop, 10)
    held_by_php(shop, orphan)
    accept(shop, worker, 20)
    put_back(shop, orphan)
    assert worker.claim()
    clock.pass_by(61)
    assert other.run() == [(orphan.message_id, OVERTAKEN)]
    assert ledger_row(shop)["stale"] == 1


def test_a_message_that_a_dead_worker_held_is_sent_where_several_servers_give_out_ids(
    shop: Shop, worker: Shipper, other: Shipper, clock: Clock
) -> None:
    """Its row no longer tells that it was published later."""
    later, earlier = cart(shop, 20), cart(shop, 10)
    held_by_php(shop, later)
    assert worker.run() == [(earlier.message_id, "sent")]
    put_back(shop, later)
    assert worker.claim()
    clock.pass_by(61)
    other.rules = replace(other.rules, ordered_ids=False)
    assert other.run() == [(later.message_id, "sent")]
