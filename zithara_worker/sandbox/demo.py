"""The whole path in one run: recorded shop events, Magento's tables, the real command, HTTP, and a report.

    python -m zithara_worker.sandbox.demo tests/fixtures/plugin-cases.jsonl tests/fixtures/amqp-samples.jsonl

The second file has messages as the module publishes them to RabbitMQ: they take the way through a relay. At the end a
shop whose module has published some orders nowhere is made complete by `reconcile`. Exits 0 only if every message had
its required outcome, and the CRM has every order.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from zithara_worker.errors import ZitharaWorkerError
from zithara_worker.queue.statuses import Status
from zithara_worker.sandbox import shop_tables
from zithara_worker.sandbox.api import RecordedRequest
from zithara_worker.sandbox.fixtures import Fate, FixtureMessage, fixture_messages, published_messages
from zithara_worker.sandbox.session import Sandbox, interruptible, open_sandbox, publish_to_rabbitmq, worker_command
from zithara_worker.sandbox.shop import MessageRow
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER, TOPICS

#: Width of the two columns of an example, characters, and the lines of it that are shown.
_COLUMN, _LINES = 58, 26
#: Longest time for the command to empty the queue, seconds.
_WITHIN = 120


class DemoError(ZitharaWorkerError):
    """The command failed or took too long. The text holds the end of its output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The outcome of one message."""

    message: FixtureMessage
    row: MessageRow
    requests: tuple[RecordedRequest, ...]
    #: The recorded reason of an ERROR
    reason: str
    #: queue_message.body
    body: str = ""
    #: Seconds from the start of the command to the arrival of its (last) request
    arrived_after: float | None = None

    @property
    def fate(self) -> Fate | None:
        """None if the message is not finished, was sent more than once, or was sent and failed."""
        if self.row.status == Status.COMPLETE and len(self.requests) <= 1:
            return Fate.DELIVERED if self.requests else Fate.SKIPPED
        if self.row.status == Status.ERROR and not self.requests:
            return Fate.REJECTED
        return None

    @property
    def complaint(self) -> str | None:
        """How the outcome differs from the required one; None if it does not."""
        if self.fate is None or not self.message.fate.allows(self.fate):
            actual = self.fate.value if self.fate else f"status {self.row.status} after {len(self.requests)} requests"
            return f"must be {self.message.fate.value}, but is {actual}{self.reason and f' ({self.reason})'}"
        made = [_described(request) for request in self.requests]
        if self.message.expected_request and made != [self.message.expected_request]:
            return f"must be sent as {self.message.expected_request}, but was sent as {made}"
        return None


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m zithara_worker.sandbox.demo PLUGIN-CASES.JSONL AMQP-SAMPLES.JSONL", file=sys.stderr)
        return 2
    try:
        with interruptible():
            return (
                _run(fixture_messages(Path(arguments[0])))
                or _relayed(published_messages(Path(arguments[1])))
                or _reconciled()
            )
    except ZitharaWorkerError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; everything is removed", file=sys.stderr)
        return 130


def _run(messages: Sequence[FixtureMessage]) -> int:
    # Without coalescing, so that each recorded message is sent.
    with open_sandbox(sections={"worker": {"coalesce": ""}, "metrics": {"listen": ""}}) as sandbox:
        print(f"database server {sandbox.server.version}, Zithara API at {sandbox.api.base_url}")
        accounts = [
            *_deliver(sandbox, [message for message in messages if message.webhook_url], sandbox.api.webhook_url),
            *_deliver(sandbox, [message for message in messages if not message.webhook_url], None),
        ]
    _print_account(accounts)
    complaints = [account for account in accounts if account.complaint]
    for account in complaints:
        print(f"WRONG {account.message.id} ({account.message.description}): {account.complaint}")
    if complaints:
        print(f"\n{len(complaints)} of {len(accounts)} messages did not have the required outcome.")
        return 1
    print(f"All {len(accounts)} messages are accounted for: none lost, none sent twice.")
    return 0


def _deliver(sandbox: Sandbox, messages: Iterable[FixtureMessage], webhook_url: str | None) -> list[Account]:
    """Publishes as the shop would, with or without a webhook URL, and lets the real command empty the queue."""
    shop, api = sandbox.shop, sandbox.api
    shop.configure_webhook(client_id=api.client_id, client_secret=api.client_secret, webhook_url=webhook_url)
    published = {
        (
            shop.publish_body(message.topic, message.body)
            if message.published is None
            else shop.publish(message.topic, message.published)
        ).relation_id: message
        for message in messages
    }
    started = _consume(sandbox)
    rows = {row.relation_id: row for row in shop.rows()}
    reasons = dict(shop.query("SELECT id, reason_code FROM {prefix}zithara_delivery_failure"))
    requests = _by_message(api.requests())
    accounts = []
    for relation_id, message in published.items():
        row = rows[relation_id]
        sent = requests.get(f"{row.queue}-{row.message_id}", ())
        accounts.append(
            Account(
                message=message,
                row=row,
                requests=sent,
                reason=reasons.get(relation_id, ""),
                body=shop.body(row.message_id) or "",
                arrived_after=sent[-1].at - started if sent else None,
            )
        )
    return accounts


def _relayed(messages: Sequence[tuple[str, str]]) -> int:
    """A shop on RabbitMQ: its messages are there, the relay brings them, a worker delivers them."""
    with open_sandbox(sections={"worker": {"coalesce": ""}, "metrics": {"listen": ""}}, rabbitmq=True) as sandbox:
        assert sandbox.virtual_host is not None
        print(f"\na shop on RabbitMQ {sandbox.virtual_host.server.version}: {len(messages)} messages recorded there")
        publish_to_rabbitmq(sandbox, messages)
        _consume(sandbox, "relay")
        stored = [(row.topic, sandbox.shop.body(row.message_id)) for row in sandbox.shop.rows()]
        # RabbitMQ keeps the order within a queue.
        if any(
            [body for at, body in stored if at == topic] != [b for at, b in messages if at == topic] for topic in TOPICS
        ):
            print("WRONG: the database's queue does not hold the same messages in the same order.")
            return 1
        _consume(sandbox)
        statuses = Counter(sandbox.shop.statuses())
        requests = _by_message(sandbox.api.requests())
        left = sum(sandbox.virtual_host.unsettled().values())
    requests.pop("", None)  # those for tokens
    if left or statuses != {Status.COMPLETE: len(messages)} or any(len(each) != 1 for each in requests.values()):
        print(f"WRONG: {left} left in RabbitMQ, statuses {dict(statuses)}, or a message was sent twice.")
        return 1
    print(f"All {len(messages)} were relayed once and in order, and {len(requests)} of them had something to deliver.")
    return 0


def _reconciled() -> int:
    """A shop whose module has published some of its orders nowhere: they are found, published and delivered."""
    with open_sandbox(sections={"metrics": {"listen": ""}}) as sandbox:
        shop = sandbox.shop
        messages = shop_tables.published_messages()
        numbers = {number for (number,) in shop.query("SELECT increment_id FROM {prefix}sales_order")}
        print(f"\na shop of {len(numbers)} orders; {len(messages)} messages that its module has published")
        for message in messages:
            shop.publish_body(message.topic, message.body)
        _consume(sandbox)
        found = _reconcile(sandbox)
        _reconcile(sandbox, "--publish", "--yes")
        _consume(sandbox)
        complete = _reconcile(sandbox)
        told = {
            request.json["order"]["platform_order_id"]
            for request in sandbox.api.requests("/v1/order")
            if request.method == "POST"
        }
    if (found, complete) != (1, 0) or told != numbers:
        print(f"WRONG: not told: {', '.join(sorted(numbers - told)) or 'none'}; exit codes {found} and {complete}.")
        return 1
    print("Every order of the shop is in the CRM.")
    return 0


def _reconcile(sandbox: Sandbox, *options: str) -> int:
    """Runs the real command and prints what it prints; its exit code."""
    print(f"$ zithara-worker --config {sandbox.operator_config.name} {' '.join(['reconcile', *options])}")
    command = [worker_command(), "--config", str(sandbox.operator_config), "reconcile", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_WITHIN)
    print(done.stdout)
    if done.returncode not in (0, 1):
        raise DemoError(f"the command ended with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    return done.returncode


def _consume(sandbox: Sandbox, name: str = "consume") -> float:
    """Runs the real command until there is nothing left to do. Returns when it started, monotonic seconds."""
    command = [worker_command(), "--config", str(sandbox.config), name, "--all", "--stop-when-empty"]
    print(f"$ zithara-worker --config {sandbox.config.name} {name} --all --stop-when-empty")
    started = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_WITHIN)
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"the command has not emptied the queue within {_WITHIN} s") from error
    if done.returncode != 0:
        raise DemoError(f"the command ended with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    return started


def _by_message(requests: Iterable[RecordedRequest]) -> dict[str, tuple[RecordedRequest, ...]]:
    grouped: dict[str, tuple[RecordedRequest, ...]] = {}
    for request in requests:
        grouped[request.message] = (*grouped.get(request.message, ()), request)
    return grouped


def _described(request: RecordedRequest) -> str:
    """As fixtures name requests: 'POST /order', 'POST webhook'."""
    endpoint = request.path.removeprefix("/v1")
    return f"{request.method} {'webhook' if endpoint == '/hook' else endpoint}"


def _print_account(accounts: Sequence[Account]) -> None:
    print(f"\n{'topic':<26}{'published':>10}{'delivered':>10}{'skipped':>10}{'rejected':>10}{'all arrived':>14}")
    for topic in TOPICS:
        fates = Counter(account.fate for account in accounts if account.message.topic == topic)
        arrived = [a.arrived_after for a in accounts if a.message.topic == topic and a.arrived_after is not None]
        print(
            f"{topic:<26}{sum(fates.values()):>10}{fates[Fate.DELIVERED]:>10}{fates[Fate.SKIPPED]:>10}"
            f"{fates[Fate.REJECTED]:>10}{f'after {max(arrived):.2f} s' if arrived else '-':>14}"
        )
    print("(time from the start of the command, its own start-up included)")
    print("\nrejected, kept with the reason:")
    rejected: dict[str, list[str]] = {}
    for account in accounts:
        if account.fate is Fate.REJECTED:
            rejected.setdefault(account.reason or "(no reason recorded)", []).append(account.message.id)
    for reason, ids in sorted(rejected.items()):
        print(f"  {reason:<24}{len(ids):>4}  {', '.join(ids[:6])}{' ...' if len(ids) > 6 else ''}")
    for topic in (TOPIC_ORDER, TOPIC_CART):
        sample = next((a for a in accounts if a.message.topic == topic and a.fate is Fate.DELIVERED), None)
        if sample is not None:
            _print_side_by_side(sample)
    print("\nfinal statuses:")
    for status, count in sorted(Counter(account.row.status for account in accounts).items()):
        print(f"  {status} {Status(status).name:<16}{count:>4}")
    print()


def _print_side_by_side(account: Account) -> None:
    """Prints the queue row on the left and its request on the right."""
    row, request = account.row, account.requests[0]
    left = [
        f"queue {row.queue}",
        f"queue_message.id {row.message_id}",
        f"status {row.status} {Status(row.status).name}, trials {row.number_of_trials}",
        "body:",
        *textwrap.wrap(account.body, _COLUMN, break_long_words=True, break_on_hyphens=False),
    ]
    right = [
        f"{request.method} {request.path}",
        *(f"{name}: {'***' if name == 'authorization' else value}" for name, value in request.headers.items()),
        "",
        *json.dumps(request.json, indent=1, ensure_ascii=False).splitlines(),
    ]
    print(f"\n{account.message.id}: {account.message.description}")
    for number, (one, other) in enumerate(zip_longest(left, right, fillvalue="")):
        if number == _LINES:
            print(f"{'...':<{_COLUMN}} | ...")
            break
        print(f"{one:<{_COLUMN}} | {other[:_COLUMN]}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
