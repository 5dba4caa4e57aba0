"""A shop on a bad day, in a minute: messages flow while a worker is killed, the API is down and the database is killed.

    python -m zithara_worker.sandbox.demo tests/fixtures/plugin-cases.jsonl
    python -m zithara_worker.sandbox.demo --rabbitmq tests/fixtures/amqp-samples.jsonl

Published are the messages of a real shop (shop_tables), orders that are placed and changed meanwhile, and the recorded
cases of the PHP module, some of which are faulty on purpose. `reconcile` then finds what the shop never published. The
verdict is counted from the database's rows and the API's record; exits 0 only if it is good. With `--rabbitmq`
messages that the module published to RabbitMQ go through a relay, and nothing is killed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pymysql.err

from zithara_worker.errors import ZitharaWorkerError
from zithara_worker.processors import identify
from zithara_worker.queue.statuses import Status
from zithara_worker.sandbox import shop_tables
from zithara_worker.sandbox.api import FakeZithara
from zithara_worker.sandbox.fixtures import Fate, FixtureMessage, fixture_messages, published_messages
from zithara_worker.sandbox.publisher import Publisher
from zithara_worker.sandbox.session import Sandbox, interruptible, open_sandbox, publish_to_rabbitmq, worker_command
from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.verdict import Account, Blow, Verdict, by_message, judge, name_of
from zithara_worker.topics import TOPIC_CART, TOPIC_ORDER, TOPICS

#: Longest time for whatever is waited for, seconds.
_WITHIN = 120
#: The API is down and the database away for so long, seconds.
_API_DOWN, _DATABASE_DOWN = 4.0, 2.0
#: Requests between two blows: messages flow again.
_BETWEEN = 60
#: Each message becomes a request, so that each can be counted. Leases and pauses are short, so that a minute is enough.
_SECTIONS = {
    "worker": {"coalesce": "", "skip_unchanged": "", "lease": "5"},
    "zithara": {"inactive_carts": "send"},
    "retry": {"delay": "1"},
    "metrics": {"listen": ""},
}
#: reconcile's kind -> path of the requests that tell of it, whom one tells of, and all whom the CRM must know
_KINDS: Mapping[str, tuple[str, Callable[[Any], object], str]] = {
    "orders": (
        "/v1/order",
        lambda told: told.get("order", told)["platform_order_id"],
        "SELECT increment_id FROM {prefix}sales_order",
    ),
    "customers": (
        "/v1/customer",
        lambda told: told["platform_customer_id"],
        "SELECT entity_id FROM {prefix}customer_entity",
    ),
    "carts": (
        "/v1/cart",
        lambda told: told["cart"]["platform_cart_id"],
        "SELECT entity_id FROM {prefix}quote WHERE is_active = 1 AND items_count > 0 AND customer_email IS NOT NULL",
    ),
}


class DemoError(ZitharaWorkerError):
    """The command failed or took too long. The text holds the end of its output."""


def main(arguments: Sequence[str]) -> int:
    with_rabbitmq = arguments[:1] == ["--rabbitmq"]
    files = arguments[1:] if with_rabbitmq else arguments
    if len(files) != 1:
        print(
            "usage: python -m zithara_worker.sandbox.demo [PLUGIN-CASES.JSONL | --rabbitmq AMQP-SAMPLES.JSONL]",
            file=sys.stderr,
        )
        return 2
    try:
        with interruptible():
            if with_rabbitmq:
                return _relayed(published_messages(Path(files[0])))
            return _bad_day(fixture_messages(Path(files[0])))
    except ZitharaWorkerError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; everything is removed", file=sys.stderr)
        return 130


# --- the bad day ------------------------------------------------------------------------------------------------------


def _bad_day(cases: Sequence[FixtureMessage]) -> int:
    with open_sandbox(sections=_SECTIONS) as sandbox, Workers(sandbox) as workers:
        day = Day(sandbox, workers)
        day.suffer()
        completed = day.reconcile()
        accounts = day.deliver(cases)
        verdict = day.judge(accounts)
    return told(verdict, accounts, completed)


class Day:
    """One run, step by step; each step tells when it is done."""

    def __init__(self, sandbox: Sandbox, workers: Workers) -> None:
        self._sandbox, self._workers = sandbox, workers
        self._started = time.monotonic()
        self._blows: list[Blow] = []
        self._wrong: list[str] = []

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._started:5.1f} s  {text}", flush=True)

    def suffer(self) -> None:
        """Three blows while orders are placed; returns when the queue is empty again."""
        sandbox, api, server, workers = self._sandbox, self._sandbox.api, self._sandbox.server, self._workers
        self._say(f"MariaDB {server.version.split('-')[0]}, a Zithara API, and 2 x zithara-worker consume --all")
        victim = workers.start()
        workers.start()
        recorded = shop_tables.published_messages()
        for message in recorded:
            sandbox.shop.publish_body(message.topic, message.body)
        self._until_delivered(f"{len(recorded)} messages of a real shop are delivered")
        api.latency_seconds = 0.3  # so that requests are under way when something is killed
        with Shoppers(sandbox.shop):
            self._say("orders are placed and changed from now on")
            self._until_it_flows()
            _until(lambda: workers.in_hand(victim) > 2, "a worker has messages in hand")
            at = time.monotonic()
            workers.kill(victim)
            what = f"a worker with {workers.in_hand(victim)} messages in hand"
            self._blows.append(Blow(what=what, is_crash=True, at=at, until=time.monotonic()))
            self._say(f"kill -9: {what}; a new one is started")
            workers.start()
            self._until_it_flows()

            at = time.monotonic()
            api.stop()
            self._say("the API is down")
            time.sleep(_API_DOWN)
            api.start()
            self._blow("the API", at, is_crash=False)

            at = time.monotonic()
            server.kill()
            self._say("kill -9: the database")
            time.sleep(_DATABASE_DOWN)
            server.start()
            self._blow("the database", at, is_crash=True)
        self._until_delivered("no more orders, and the queue is empty")

    def _blow(self, what: str, at: float, *, is_crash: bool) -> None:
        """`what` is back: waits until messages flow again."""
        blow = Blow(what=what, is_crash=is_crash, at=at, until=time.monotonic())
        self._blows.append(blow)
        api = self._sandbox.api
        _until(lambda: api.requests()[-1].at > blow.until, f"a request after the return of {what}")
        again = next(request.at for request in api.requests() if request.at > blow.until) - blow.until
        self._say(f"{what} is back after {blow.until - at:.1f} s; the first message arrives {again:.1f} s later")
        self._until_it_flows()

    def _until_it_flows(self) -> None:
        target = self._sandbox.api.request_count + _BETWEEN
        _until(lambda: self._sandbox.api.request_count >= target, "messages flow")

    def _until_delivered(self, what: str) -> None:
        shop, pending = self._sandbox.shop, {Status.NEW, Status.IN_PROGRESS, Status.RETRY_REQUIRED}
        _until(lambda: not pending & set(shop.status_counts()), "the queue is empty")
        self._say(what)

    def reconcile(self) -> Mapping[str, tuple[int, int]]:
        """Kind -> how many of them the CRM has now, and how many were found missing or stale."""
        found = _reconciled(self._sandbox, "--publish", "--yes")
        repaired = {each["kind"]: each["published"] for each in found["kinds"]}
        self._say(f"reconcile: {sum(repaired.values())} that the shop's module did not publish as they are now")
        self._until_delivered("they are delivered")
        result = _reconciled(self._sandbox)
        if any(each["counts"]["complete"] != each["total"] for each in result["kinds"]):
            self._wrong.append(f"reconcile says that the CRM is not complete: {json.dumps(result['kinds'])}")
        self._wrong += absent(self._sandbox.shop, self._sandbox.api)
        return {each["kind"]: (each["counts"]["complete"], repaired[each["kind"]]) for each in result["kinds"]}

    def deliver(self, cases: Sequence[FixtureMessage]) -> list[Account]:
        """The recorded cases, with or without a webhook URL as each wants it. Ends the workers in order."""
        shop, api = self._sandbox.shop, self._sandbox.api
        api.latency_seconds = 0.0
        published = _published(shop, [case for case in cases if case.webhook_url])
        self._until_delivered(f"{len(cases)} recorded cases of the PHP module are settled, the faulty ones kept")
        self._workers.stop()
        shop.configure_webhook(client_id=api.client_id, client_secret=api.client_secret, webhook_url=None)
        published |= _published(shop, [case for case in cases if not case.webhook_url])
        _consume(self._sandbox)
        reasons = dict(shop.query("SELECT id, reason_code FROM {prefix}zithara_delivery_failure"))
        requests = by_message(api.requests())
        return [
            Account(
                message=published[row.relation_id],
                row=row,
                requests=requests.get(name_of(row), ()),
                reason=reasons.get(row.relation_id, ""),
            )
            for row in shop.rows()
            if row.relation_id in published
        ]

    def judge(self, accounts: Iterable[Account]) -> Verdict:
        shop = self._sandbox.shop
        bodies = shop.query("SELECT id, topic_name, body FROM {prefix}queue_message")
        fates = {account.row.message_id: account.message.fate for account in accounts}
        for id, topic, body in bodies:
            if id not in fates and topic == TOPIC_CART and _is_empty_cart(body):
                fates[id] = Fate.SKIPPED
        verdict = judge(
            shop.rows(),
            self._sandbox.api.requests(),
            groups={id: identify(topic, id, body or "")[0] for id, topic, body in bodies},
            fates=fates,
            blows=self._blows,
        )
        verdict.wrong += self._wrong
        verdict.wrong += [
            f"{account.message.id} ({account.message.description}): {account.complaint}"
            for account in accounts
            if account.complaint
        ]
        return verdict


def absent(shop: Shop, api: FakeZithara) -> list[str]:
    """What the shop's tables have and no request has told of, whatever reconcile says; a line for each kind."""
    found = []
    for kind, (path, whom, statement) in _KINDS.items():
        known = {str(id) for (id,) in shop.query(statement)}
        if unknown := known - {str(whom(request.json)) for request in api.requests(path)}:
            found.append(f"the API was never told of these {kind}: {', '.join(sorted(unknown))}")
    return found


class Workers:
    """`zithara-worker consume --all`, each a process of its own; whatever still runs at the end is killed."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_error: object) -> None:
        for process in self._running:
            process.kill()
            process.wait()

    @property
    def _log(self) -> Path:
        return self._sandbox.server.directory / "workers.log"

    def start(self) -> int:
        """Its process id. It ends by itself in ten minutes, should nobody be left to end it."""
        command = [worker_command(), "--config", str(self._sandbox.config), "consume", "--all", "--max-runtime", "600"]
        with self._log.open("ab") as log:
            self._running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        return self._running[-1].pid

    def kill(self, pid: int) -> None:
        """Raises DemoError if it has ended by itself."""
        (process,) = (each for each in self._running if each.pid == pid)
        process.kill()
        self._running.remove(process)
        self._expect(-signal.SIGKILL, process)

    def in_hand(self, pid: int) -> int:
        """Messages that are leased to it."""
        [(count,)] = self._sandbox.shop.query(
            "SELECT COUNT(*) FROM {prefix}zithara_message_group g JOIN {prefix}zithara_worker w ON w.id = g.worker_id "
            "WHERE w.pid = %s",
            (pid,),
        )
        return int(count)

    def stop(self) -> None:
        """SIGTERM to all. Raises DemoError unless each ends with 0."""
        for process in self._running:
            process.terminate()
        while self._running:
            self._expect(0, self._running.pop())

    def _expect(self, code: int, process: subprocess.Popen[bytes]) -> None:
        try:
            ended = process.wait(timeout=_WITHIN)
        except subprocess.TimeoutExpired as error:
            raise DemoError(f"a worker has not ended within {_WITHIN} s") from error
        if ended != code:
            raise DemoError(f"a worker ended with exit code {ended}:\n{self._log.read_text()[-3000:]}")


class Shoppers:
    """Ten times a second, or as fast as the database takes it: an order is placed, and two older ones change."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._buy, name="shoppers", daemon=True)

    def __enter__(self) -> Shoppers:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _buy(self) -> None:
        placed = 0
        while not self._stop.wait(0.1):
            try:
                with self._shop.transaction() as publisher:
                    _place_orders(publisher, placed)
            except (ZitharaWorkerError, pymysql.err.Error, OSError):
                continue  # the database is down: the shopper tries again
            placed += 1


def _place_orders(publisher: Publisher, number: int) -> None:
    publisher.publish_order(f"{200000000 + number}")
    for age, state in ((5, "processing"), (10, "complete")):
        if number >= age:
            publisher.publish_order(f"{200000000 + number - age}", is_update=True, state=state, status=state)


def _published(shop: Shop, cases: Iterable[FixtureMessage]) -> dict[int, FixtureMessage]:
    """queue_message_status.id -> the case."""
    return {
        (
            shop.publish_body(case.topic, case.body)
            if case.published is None
            else shop.publish(case.topic, case.published)
        ).relation_id: case
        for case in cases
    }


def _is_empty_cart(body: str) -> bool:
    """No item has an id: the module's CartSave publishes a cart before its new items have theirs."""
    items = json.loads(json.loads(body))["cart_item"]
    return not any(item["platform_cart_item_id"] for item in items)


def _until(condition: Callable[[], bool], what: str) -> None:
    """Raises DemoError after _WITHIN seconds."""
    deadline = time.monotonic() + _WITHIN
    while not condition():
        if time.monotonic() > deadline:
            raise DemoError(f"waited for {_WITHIN} s until {what}")
        time.sleep(0.05)


# --- what is told -----------------------------------------------------------------------------------------------------


def told(verdict: Verdict, accounts: Sequence[Account], completed: Mapping[str, tuple[int, int]]) -> int:
    """Prints the verdict, its counts and two requests; the exit code. `completed`: see Day.reconcile."""
    repaired = sum(each for _, each in completed.values())
    lines = [
        f"\nVERDICT: {verdict.headline}\n",
        ("accepted", verdict.accepted, f"of {verdict.published}: COMPLETE in the database, and in the API's record"),
        ("crashes survived", len(verdict.crashes), _named(verdict.crashes)),
        ("outages survived", len(verdict.outages), _named(verdict.outages)),
        ("lost", len(verdict.lost), ""),
        ("out of order", len(verdict.out_of_order), "among the messages of one order, customer or cart"),
        (
            "sent twice",
            verdict.sent_again,
            "with the same Idempotency-Key, because nobody knew whether it had arrived",
        ),
        ("complete", sum(each for each, _ in completed.values()), _kinds(completed)),
        ("", "", f"zithara-worker reconcile found {repaired} of them missing or stale, and published them"),
        ("nothing to send", verdict.nothing_to_send, "carts without items and the like"),
        ("faulty on purpose", verdict.rejected, f"of {len(accounts)} recorded cases; kept in ERROR, with the reason:"),
        *(("", "", text) for text in _reasons(accounts)),
        *(f"WRONG  {finding}" for finding in verdict.findings),
    ]
    for line in lines:
        print(line if isinstance(line, str) else f"{line[0]:<18}{line[1]:>6}  {line[2]}".rstrip())
    print(*_examples(accounts), sep="\n")
    return 1 if verdict.findings else 0


def _named(blows: Iterable[Blow]) -> str:
    return ", ".join(f"{blow.what}{'' if blow.is_crash else f' for {blow.until - blow.at:.1f} s'}" for blow in blows)


def _kinds(completed: Mapping[str, tuple[int, int]]) -> str:
    return "of the shop's own tables: " + ", ".join(f"{each} {kind}" for kind, (each, _) in completed.items())


def _reasons(accounts: Iterable[Account]) -> list[str]:
    reasons = Counter(account.reason for account in accounts if account.fate is Fate.REJECTED)
    return textwrap.wrap(", ".join(f"{reason} {count}" for reason, count in reasons.most_common()), 90)


def _examples(accounts: Sequence[Account]) -> list[str]:
    """Two of the requests that were made, the people in them invented."""
    lines = []
    for topic in (TOPIC_ORDER, TOPIC_CART):
        sample = next((a for a in accounts if a.message.topic == topic and a.fate is Fate.DELIVERED), None)
        if sample is not None:
            [request] = sample.requests
            lines.append(f"\n{request.method} {request.path}   Idempotency-Key: {request.headers['idempotency-key']}")
            body = json.dumps(request.json, ensure_ascii=False)
            lines += textwrap.wrap(
                textwrap.shorten(body, 480, placeholder=" ..."), 116, initial_indent="  ", subsequent_indent="  "
            )
    return lines


# --- RabbitMQ ---------------------------------------------------------------------------------------------------------


def _relayed(messages: Sequence[tuple[str, str]]) -> int:
    """A shop on RabbitMQ: its messages are there, the relay brings them, a worker delivers them."""
    with open_sandbox(sections=_SECTIONS, rabbitmq=True) as sandbox:
        assert sandbox.virtual_host is not None
        print(f"a shop on RabbitMQ {sandbox.virtual_host.server.version}: {len(messages)} messages recorded there")
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
        requests = by_message(sandbox.api.requests())
        left = sum(sandbox.virtual_host.unsettled().values())
    if left or statuses != {Status.COMPLETE: len(messages)} or any(len(each) != 1 for each in requests.values()):
        print(f"WRONG: {left} left in RabbitMQ, statuses {dict(statuses)}, or a message was sent twice.")
        return 1
    print(f"All {len(messages)} were relayed once and in order, and {len(requests)} of them had something to deliver.")
    return 0


# --- the real command -------------------------------------------------------------------------------------------------


def _consume(sandbox: Sandbox, name: str = "consume") -> None:
    """Runs the real command until there is nothing left to do."""
    _run(sandbox.config, name, "--all", "--stop-when-empty")


def _reconciled(sandbox: Sandbox, *options: str) -> Any:
    """What `reconcile --json` prints."""
    return json.loads(_run(sandbox.operator_config, "reconcile", *options, "--json", codes=(0, 1)))


def _run(config: Path, *arguments: str, codes: Sequence[int] = (0,)) -> str:
    command = [worker_command(), "--config", str(config), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_WITHIN)
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"zithara-worker {' '.join(arguments)} has not ended within {_WITHIN} s") from error
    if done.returncode not in codes:
        raise DemoError(
            f"zithara-worker {' '.join(arguments)} ended with exit code {done.returncode}:\n{done.stderr[-3000:]}"
        )
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
