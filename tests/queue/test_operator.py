"""What operators do: retry, discard, pause and resume."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from support.workers import settings_of

from zithara_worker import Settings, Worker
from zithara_worker.database.session import Database
from zithara_worker.limits import Limits
from zithara_worker.queue import failures, operator
from zithara_worker.queue.failures import Failure, Selection
from zithara_worker.queue.queues import find_queues
from zithara_worker.queue.statuses import Status
from zithara_worker.sandbox.api import FakeZithara, RecordedRequest, Reply
from zithara_worker.sandbox.php_consumer import PhpConsumer
from zithara_worker.sandbox.publisher import Published, stored_body
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER

Consume = Callable[[], None]


class Desk:
    """What an operator does with these messages of a shop, or with all that have failed."""

    def __init__(self, database: Database, everything: Selection, audit: Any) -> None:
        self.database = database
        self.everything = everything
        self.audit = audit

    def retry(self, *relation_ids: int, force: bool = False, **options: Any) -> operator.Retried:
        ids = relation_ids or failures.matching(self.database, self.everything)
        return operator.retry(self.database, ids, by="anna@shop1", force=force, audit=self.audit, **options)

    def discard(self, *relation_ids: int, note: str = "test order") -> operator.Discarded:
        ids = relation_ids or failures.matching(self.database, self.everything)
        given: dict[str, Any] = {"audit": self.audit, "content": lambda topic, body: ""}
        return operator.discard(self.database, ids, by="anna@shop1", note=note, **given)

    def release(self, published: Published) -> operator.Released:
        ids = [published.relation_id]
        return operator.release(self.database, ids, by="anna@shop1", note="php died", audit=self.audit)

    def newest(self, **selection: Any) -> list[Failure]:
        return failures.newest(self.database, replace(self.everything, **selection), limit=10)[0]

    def find(self, published: Published) -> Failure:
        (found,), _ = failures.find(self.database, self.everything.queue_ids, [published.message_id])
        return found


@pytest.fixture
def desk(database: Database, everything: Selection, audit: Any) -> Desk:
    return Desk(database, everything, audit)


@pytest.fixture
def failed(shop: Shop, consume: Consume, refused: set[str]) -> Published:
    """An order that the API refused once."""
    refused.add("000000777")
    published = shop.publish_order("000000777")
    consume()
    refused.clear()
    return published


def test_what_a_php_consumer_rejected_is_found_and_can_be_retried(shop: Shop, consume: Consume, desk: Desk) -> None:
    published = shop.publish_order("000000777")
    shop.query("UPDATE {prefix}queue_message_status SET status = 6 WHERE id = %s", (published.relation_id,))
    [found] = desk.newest()
    assert (found.reason, found.topic) == ("unrecorded", TOPIC_ORDER)
    assert [each.id for each in desk.newest(reasons=["unrecorded"])] == [published.relation_id]
    assert desk.retry().retried == (published.message_id,)
    assert shop.query("SELECT group_key FROM {prefix}zithara_message_group") == [("order:000000777",)]
    consume()
    assert shop.statuses() == [4]


def test_a_retried_message_starts_with_all_attempts_and_leaves_no_failure_when_it_arrives(
    shop: Shop, consume: Consume, desk: Desk, failed: Published
) -> None:
    assert desk.retry().retried == (failed.message_id,)
    row = shop.row(failed.relation_id)
    assert (row.status, row.number_of_trials) == (5, 0)
    [found] = desk.newest(statuses=[Status.RETRY_REQUIRED])
    assert found.history[-1]["operator"] == "anna@shop1"
    consume()
    assert shop.statuses() == [4]
    assert shop.query("SELECT COUNT(*) FROM {prefix}zithara_delivery_failure") == [(0,)]
    (line,) = desk.audit.lines
    assert (line["action"], line["message_ids"], line["who"]) == ("retry", [failed.message_id], "anna@shop1")


def test_a_retry_makes_its_group_due_at_once(shop: Shop, desk: Desk, failed: Published) -> None:
    desk.retry()
    poll = desk.database.rows("poll", queue_ids=list(desk.everything.queue_ids))
    (order_queue,) = (queue.queue_id for queue in find_queues(desk.database, [TOPIC_ORDER], {}))
    assert [row["queue_id"] for row in poll if row["due"]] == [order_queue]
    assert shop.row(failed.relation_id).status == 5


def test_several_failed_messages_of_one_group_are_delivered_in_their_order(
    shop: Shop, api: FakeZithara, consume: Consume, refused: set[str], desk: Desk
) -> None:
    refused.add("000000777")
    first = shop.publish_order("000000777", grand_total="1.0000").message_id
    second = shop.publish_order("000000777", grand_total="2.0000").message_id
    consume()
    refused.clear()
    api.forget_requests()
    assert desk.retry().retried == (first, second)
    consume()
    keys = [each.message for each in api.requests() if each.message]
    assert keys == [f"zithara_order_queue-{first}", f"zithara_order_queue-{second}"]


def test_a_retry_that_would_overwrite_newer_data_wants_force(
    shop: Shop, consume: Consume, desk: Desk, failed: Published
) -> None:
    shop.publish_order("000000777")
    consume()
    [found] = desk.newest()
    assert found.newer_delivered
    refusal = desk.retry()
    assert (refusal.retried, refusal.overtaken) == ((), (failed.message_id,))
    assert shop.row(failed.relation_id).status == 6 and desk.audit.lines == []
    assert desk.retry(force=True).retried == (failed.message_id,)
    assert desk.audit.lines[0]["forced"] is True


def test_only_messages_in_error_are_retried_or_discarded(shop: Shop, consume: Consume, desk: Desk) -> None:
    done = shop.publish_order("000000776")
    consume()
    new = shop.publish_order("000000777")
    ids = [done.relation_id, new.relation_id]
    retried = desk.retry(*ids, force=True)
    assert (retried.retried, retried.not_failed) == ((), (done.message_id, new.message_id))
    discarded = desk.discard(*ids)
    assert (discarded.discarded, discarded.not_failed) == ((), (done.message_id, new.message_id))
    assert shop.statuses() == [4, 2] and desk.audit.lines == []


def test_a_discarded_message_is_complete_and_what_is_known_of_it_stays(
    shop: Shop, consume: Consume, desk: Desk
) -> None:
    published = shop.publish_body(TOPIC_ORDER, "{nonsense")
    consume()
    done = desk.discard(note="broken extension")
    assert done.discarded == (published.message_id,)
    assert shop.statuses() == [4]
    # A PHP consumer that finds its lock acknowledges without processing: none may stand beside what can be taken back.
    assert shop.query("SELECT COUNT(*) FROM {prefix}queue_lock") == [(0,)]
    assert failures.newest(desk.database, desk.everything, limit=10) == ([], 0)
    found = desk.find(published)
    assert found.discarded_utc and found.reason == "not_json"
    assert (found.history[-1]["act"], found.history[-1]["note"]) == ("discard", "broken extension")
    (line,) = desk.audit.lines
    told = ("discard", "broken extension", [published.message_id])
    assert (line["action"], line["note"], line["message_ids"]) == told


@pytest.mark.parametrize("by_php", [False, True])
def test_a_discarded_message_can_be_taken_back(
    shop: Shop, consume: Consume, refused: set[str], by_php: bool, desk: Desk
) -> None:
    refused.add("000000777")
    published = shop.publish_order("000000777")
    if by_php:
        shop.query("UPDATE {prefix}queue_message_status SET status = 6")
    else:
        consume()
    refused.clear()
    desk.discard()
    assert shop.statuses() == [4]
    ids = [published.relation_id]
    twice = desk.discard(*ids)
    assert (twice.discarded, twice.not_failed, len(desk.audit.lines)) == ((), (published.message_id,), 1)
    assert desk.retry(*ids).retried == (published.message_id,)
    assert shop.row(published.relation_id).status == 5
    found = desk.find(published)
    assert (found.discarded_utc, found.retries, found.attempts, found.unwitnessed) == (None, 1, 0, 0)
    consume()
    assert shop.statuses() == [4]
    assert shop.query("SELECT COUNT(*) FROM {prefix}zithara_delivery_failure") == [(0,)]


def test_what_was_delivered_is_not_taken_back(shop: Shop, consume: Consume, desk: Desk, failed: Published) -> None:
    """A message that was discarded, taken back and delivered has been discarded no more."""
    desk.discard()
    desk.retry(failed.relation_id)
    consume()
    again = desk.retry(failed.relation_id, force=True)
    assert (again.retried, again.not_failed, shop.statuses()) == ((), (failed.message_id,), [4])


def test_a_discarded_message_that_newer_data_has_overtaken_wants_force(
    shop: Shop, consume: Consume, desk: Desk, failed: Published
) -> None:
    desk.discard()
    shop.publish_order("000000777")
    consume()
    done = desk.retry(failed.relation_id)
    assert (done.retried, done.overtaken) == ((), (failed.message_id,))
    assert shop.row(failed.relation_id).status == 4


def test_what_is_known_of_a_discarded_message_goes_with_it(shop: Shop, consume: Consume, desk: Desk) -> None:
    shop.publish_body(TOPIC_ORDER, "{nonsense")
    consume()
    desk.discard()
    failures.forget_deleted(desk.database)
    assert shop.query("SELECT COUNT(*) FROM {prefix}zithara_delivery_failure") == [(1,)]
    shop.make_older(minutes=8 * 1440)
    assert shop.run_cleanup_cron()["deleted"] == 1
    failures.forget_deleted(desk.database)
    assert shop.query("SELECT COUNT(*) FROM {prefix}zithara_delivery_failure") == [(0,)]


# ---------------------------------------------------------------- release


def orphan(shop: Shop, number: str, *, minutes: int) -> Any:
    """A message that a PHP consumer took so long ago and did not end."""
    published = shop.publish_order(number)
    php = PhpConsumer(shop.operator, TOPIC_ORDER, prefix=shop.prefix)
    selected = php.select()
    assert selected is not None and selected.message_id == published.message_id and php.take(selected)
    shop.make_older(minutes=minutes, relation_ids=[published.relation_id])
    return published


def test_what_a_dead_php_consumer_left_is_released_and_delivered(
    shop: Shop, api: FakeZithara, consume: Consume, desk: Desk
) -> None:
    left = orphan(shop, "000000777", minutes=11)
    newer = shop.publish_order("000000777")
    done = desk.release(left)
    assert (done.released, done.held, done.at_work, done.not_in_progress) == ((left.message_id,), (), (), ())
    assert [(line["action"], line["message_ids"]) for line in desk.audit.lines] == [("release", [left.message_id])]
    consume()
    assert attempts_of(api) == [str(left.message_id), str(newer.message_id)]
    assert shop.statuses() == [4, 4]
    assert desk.release(left).not_in_progress == (left.message_id,)


def test_nothing_is_released_while_a_php_consumer_is_at_work_on_the_queue(shop: Shop, desk: Desk) -> None:
    left = orphan(shop, "000000777", minutes=60)
    orphan(shop, "000000778", minutes=9)
    assert desk.release(left).at_work == (left.message_id,)
    assert shop.statuses() == [3, 3] and desk.audit.lines == []


def test_what_a_worker_holds_is_not_released(shop: Shop, desk: Desk) -> None:
    left = orphan(shop, "000000777", minutes=60)
    group_row(shop, left, worker="w1")
    assert desk.release(left).held == (left.message_id,)
    assert shop.statuses() == [3]


def test_what_the_ledger_knows_of_a_released_entity_is_in_doubt(shop: Shop, consume: Consume, desk: Desk) -> None:
    # The consumer that died may have sent its state: the one that was accepted before would not be unchanged behind it.
    shop.publish_order("000000777")
    consume()
    known = "SELECT request IS NULL FROM {prefix}zithara_delivery"
    assert shop.query(known) == [(0,)]
    assert desk.release(orphan(shop, "000000777", minutes=60)).released
    assert shop.query(known) == [(1,)]


# ---------------------------------------------------------------- a retry beside newer messages of its group


def attempts_of(api: FakeZithara) -> list[str]:
    """Message ids in the order in which they reached the API."""
    keys = (each.headers.get("idempotency-key", "") for each in api.requests())
    return [match[1] for key in keys if (match := re.match(r"zithara_order_queue-(\d+)", key))]


def group_row(shop: Shop, published: Any, *, worker: str | None = None, group: str = "order:000000777") -> None:
    """The group's row as a worker that holds this message leaves it, or (no worker) as it waits for its retry."""
    shop.query(
        "INSERT INTO {prefix}zithara_message_group"
        " (queue_id, group_key, id, message_id, worker_id, lease_until, not_before)"
        " SELECT queue_id, %s, id, message_id, %s, IF(%s IS NULL, NULL, UTC_TIMESTAMP(3) + INTERVAL 1 HOUR),"
        " IF(%s IS NULL, UTC_TIMESTAMP(3) + INTERVAL 1 HOUR, NULL)"
        " FROM {prefix}queue_message_status WHERE id = %s",
        (group, worker, worker, worker, published.relation_id),
    )


def failed_before(shop: Shop, published: Any) -> None:
    """The failure row of a message that waits for its next attempt, or is at it."""
    shop.query(
        "INSERT INTO {prefix}zithara_delivery_failure (id, queue_id, message_id, topic_name, group_key, attempts, "
        "reason_code, detail, first_failed_at, last_failed_at, history) SELECT id, queue_id, message_id, '', "
        "'order:000000777', 1, 'http_500', '', NOW(3), NOW(3), '' FROM {prefix}queue_message_status WHERE id = %s",
        (published.relation_id,),
    )


def test_a_retried_message_goes_before_a_newer_one_that_only_waits(
    shop: Shop, api: FakeZithara, consume: Consume, desk: Desk, failed: Published
) -> None:
    api.forget_requests()
    new = shop.publish_order("000000777")
    assert desk.retry().retried == (failed.message_id,)
    consume()
    assert attempts_of(api) == [str(failed.message_id), str(new.message_id)]


def test_a_retried_message_goes_before_a_newer_one_that_waits_for_its_next_attempt(
    shop: Shop, api: FakeZithara, settings: Settings, desk: Desk
) -> None:
    old, new, newest = (shop.publish_order("000000777") for _ in range(3))
    replies = [Reply.error(400, "bad"), Reply.error(500, "ill")]
    api.responder = lambda request: replies.pop(0) if "idempotency-key" in request.headers and replies else None
    patient = replace(settings, retry=replace(settings.retry, delay=60.0))
    limits = Limits(max_messages=2, max_runtime_seconds=20)
    Worker(patient).run([TOPIC_ORDER], limits=limits)
    assert shop.statuses() == [6, 5, 2]
    api.forget_requests()
    assert desk.retry().retried == (old.message_id,)
    Worker(patient).run([TOPIC_ORDER], limits=Limits(max_messages=3, max_runtime_seconds=20))
    assert attempts_of(api) == [str(each.message_id) for each in (old, new, newest)]


def test_a_newer_message_in_flight_may_arrive_first_so_a_retry_wants_force(
    shop: Shop, desk: Desk, failed: Published
) -> None:
    new = shop.publish_order("000000777")
    shop.query("UPDATE {prefix}queue_message_status SET status = 3 WHERE id = %s", (new.relation_id,))
    group_row(shop, new, worker="w1")
    failed_before(shop, new)
    done = desk.retry()
    assert (done.retried, done.passed) == ((), ((failed.message_id, new.message_id),))
    assert shop.row(failed.relation_id).status == 6 and desk.audit.lines == []
    assert desk.retry(force=True).retried == (failed.message_id,)


@pytest.mark.parametrize("why", ["it stands for older snapshots", "it was released"])
def test_a_waiting_head_that_cannot_make_way_is_not_passed(shop: Shop, why: str, desk: Desk, failed: Published) -> None:
    """Its older snapshots, and a head without a failure row, would be found again by a sweep only: too late."""
    new = shop.publish_order("000000777")
    group_row(shop, new)
    if why == "it stands for older snapshots":
        failed_before(shop, new)
        shop.query("UPDATE {prefix}zithara_message_group SET supersedes = '7:7'")
    assert desk.retry().passed == ((failed.message_id, new.message_id),)
    assert shop.query("SELECT message_id FROM {prefix}zithara_message_group") == [(new.message_id,)]


def test_a_retried_message_waits_behind_an_older_one_in_flight_and_goes_before_newer_ones(
    shop: Shop, api: FakeZithara, settings: Settings, desk: Desk
) -> None:
    """While the worker sends the oldest, the next one is retried: the newest, which the worker has long seen, waits."""
    first, second, third = (shop.publish_order("000000777") for _ in range(3))
    shop.query("UPDATE {prefix}queue_message_status SET status = 6 WHERE id = %s", (second.relation_id,))
    done = []

    def respond(request: RecordedRequest) -> Reply | None:
        if "idempotency-key" in request.headers and not done:
            with closing(Database(settings_of(shop))) as other:
                done.append(Desk(other, desk.everything, desk.audit).retry())
        return None

    api.responder = respond
    Worker(settings).run([TOPIC_ORDER], limits=Limits(max_messages=3, max_runtime_seconds=20))
    assert done[0].retried == (second.message_id,)
    assert attempts_of(api) == [str(each.message_id) for each in (first, second, third)]


def test_many_are_retried_batch_by_batch_with_progress(shop: Shop, monkeypatch: pytest.MonkeyPatch, desk: Desk) -> None:
    shop.publish_bodies(TOPIC_ORDER, [stored_body({"order_id": str(n)}) for n in range(25)])
    shop.query("UPDATE {prefix}queue_message_status SET status = 6")
    monkeypatch.setattr(failures, "PAGE", 7)
    monkeypatch.setattr(operator, "BATCH", 10)
    progress: list[int] = []
    done = desk.retry(on_progress=progress.append)
    assert (len(done.retried), progress) == (25, [10, 10, 5])
    assert shop.status_counts() == {5: 25}


# ---------------------------------------------------------------- pause and resume


def test_a_paused_topic_stays_on_the_queue_and_the_others_go_on(
    shop: Shop, database: Database, consume: Callable[[], None], audit: Any
) -> None:
    shop.publish_order()
    shop.publish_cart()
    (paused,) = operator.pause(database, [TOPIC_ORDER], by="anna@shop1", reason="import", audit=audit)
    assert paused.changed and paused.pause is not None and paused.pause.reason == "import"
    consume()
    assert (shop.statuses(TOPIC_ORDER), shop.statuses(TOPIC_CART)) == ([2], [4])
    (resumed,) = operator.resume(database, [TOPIC_ORDER], by="anna@shop1", audit=audit)
    assert resumed.changed and resumed.pause is None
    consume()
    assert shop.statuses(TOPIC_ORDER) == [4]
    assert [(line["action"], line["topic"], line["who"]) for line in audit.lines] == [
        ("pause", TOPIC_ORDER, "anna@shop1"),
        ("resume", TOPIC_ORDER, "anna@shop1"),
    ]


def test_whoever_paused_first_stays_on_record(database: Database, audit: Any) -> None:
    operator.pause(database, [TOPIC_ORDER], by="anna@shop1", reason="import", audit=audit)
    (again,) = operator.pause(database, [TOPIC_ORDER], by="ben@shop2", reason="", audit=audit)
    assert not again.changed
    assert again.pause is not None and (again.pause.paused_by, again.pause.reason) == ("anna@shop1", "import")
    assert len(audit.lines) == 1


def test_resuming_what_runs_changes_nothing(database: Database, audit: Any) -> None:
    (resumed,) = operator.resume(database, [TOPIC_CART], by="anna@shop1", audit=audit)
    assert not resumed.changed and resumed.pause is None and audit.lines == []
