"""What the audit file says of each delivery, and what a worker does while it cannot be written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.messages import message_of
from support.processes import WorkerProcess
from support.waiting import eventually

from zithara_worker.logs.audit import AuditFile
from zithara_worker.messages import Outcome, OutcomeKind, Pending
from zithara_worker.queue.settle import Settlement
from zithara_worker.sandbox.api import FakeZithara
from zithara_worker.sandbox.shop import Shop
from zithara_worker.worker.outcomes import audit_lines


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def settlement(kind: OutcomeKind, *, supersedes: tuple[Pending, ...] = (), **outcome: Any) -> Settlement:
    message = message_of(
        7, message_id=17, group_key="order:100", number_of_trials=5, attempts=2, status_before=5, supersedes=supersedes
    )
    return Settlement(message=message, outcome=Outcome(kind=kind, **outcome))


def test_line_names_the_message_and_not_what_was_in_it(tmp_path: Path) -> None:
    file = AuditFile(tmp_path / "audit.log")
    sent = settlement(
        OutcomeKind.DELIVERED,
        http_status=200,
        duration_ms=12.345,
        endpoint="POST /order",
        detail="asha@example.com",
        request_sha256="ab",
        supersedes=(Pending(15, 5), Pending(16, 6)),
    )
    file.append(audit_lines([sent], worker_id="w1"))
    file.close()
    (line,) = lines(tmp_path / "audit.log")
    assert line.pop("time")
    assert line == {
        "kind": "delivery",
        "worker": "w1",
        "topic": "zithara.order.events",
        "queue": "zithara_order_queue",
        "message_id": 17,
        "id": 7,
        "group": "order:100",
        "attempt": 3,
        "outcome": "delivered",
        "reason": None,
        "endpoint": "POST /order",
        "http_status": 200,
        "duration_ms": 12.3,
        "request_sha256": "ab",
        "superseded": [15, 16],
    }


@pytest.mark.parametrize(
    ("kind", "outcome", "told"),
    [
        (OutcomeKind.RETRY, {"reason": "connect_error", "endpoint": "POST /order"}, True),
        (OutcomeKind.FAILED, {"reason": "not_json"}, True),
        (OutcomeKind.SKIPPED, {"reason": "cart_without_items"}, True),
        (OutcomeKind.RELEASED, {"reason": "throttled", "endpoint": "POST /order", "http_status": 429}, True),
        (OutcomeKind.RELEASED, {"reason": "late"}, True),
        (OutcomeKind.RELEASED, {"reason": "shutdown"}, False),
        (OutcomeKind.LEASE_LOST, {"reason": "lease_lost"}, False),
    ],
)
def test_what_was_tried_or_decided_is_told_and_what_was_only_put_back_is_not(
    tmp_path: Path, kind: OutcomeKind, outcome: dict[str, Any], told: bool
) -> None:
    file = AuditFile(tmp_path / "audit.log")
    file.append(audit_lines([settlement(kind, **outcome)], worker_id="w1"))
    file.close()
    assert len(lines(tmp_path / "audit.log") if (tmp_path / "audit.log").exists() else []) == int(told)


def test_worker_audits_each_attempt_with_the_digest_of_its_request(
    shop: Shop, api: FakeZithara, worker_config: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "audit.log"
    shop.publish_order("000000007")
    shop.publish_body("zithara.order.events", "no json")
    config = worker_config(logging={"audit_file": str(path)})
    with WorkerProcess(config, "consume", "--all", "--stop-when-empty") as worker:
        assert worker.wait() == 0
    (request,) = api.requests("/v1/order")
    by_outcome = {line["outcome"]: line for line in lines(path)}
    assert by_outcome.keys() == {"delivered", "failed"}
    assert by_outcome["delivered"]["request_sha256"] == hashlib.sha256(request.body).hexdigest()
    assert by_outcome["failed"]["request_sha256"] is None


def test_worker_that_must_audit_takes_nothing_while_it_cannot(
    shop: Shop, api: FakeZithara, worker_config: Callable[..., Path], tmp_path: Path
) -> None:
    directory = tmp_path / "later"
    shop.publish_order("000000008")
    config = worker_config(logging={"audit_file": str(directory / "audit.log"), "audit_required": "true"})
    with WorkerProcess(config, "consume", "--all") as worker:
        worker.wait_for_log(event="audit_unwritable")
        assert shop.statuses() == [2] and api.requests("/v1/order") == []
        directory.mkdir()
        worker.wait_for_log(event="delivered")
        eventually(lambda: len(lines(directory / "audit.log")) == 1)
        worker.terminate()
        assert worker.wait() == 0
