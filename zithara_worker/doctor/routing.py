"""Checks of the way from the shop to the queue: where the shop publishes, and who brings what lies in RabbitMQ.

Judged by the shop's deployment configuration, by what lies in RabbitMQ, and by what has arrived in the database.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from zithara_worker.database.session import Database
from zithara_worker.doctor.finding import Finding, failed, ok, warning
from zithara_worker.errors import BrokerUnavailable, ConfigurationError
from zithara_worker.monitor import fleet
from zithara_worker.monitor.fleet import RELAY, WorkerStatus
from zithara_worker.pages import folder, page
from zithara_worker.queue.queues import QueueRow
from zithara_worker.settings.sources import LoadedSettings
from zithara_worker.shop.configuration import require_rabbitmq
from zithara_worker.shop.deployment_config import Connection, published_to
from zithara_worker.topics import TOPICS, short_name
from zithara_worker.units import count, duration

if TYPE_CHECKING:
    from zithara_worker.relay.connection import Waiting

MODULE = f"enable the module of {folder('packaging/magento')} (its README has the commands, cron first)"
#: Of a message that arrived so recently, the way is known, whatever the configuration may say.
_RECENT_SECONDS = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What is known of the way of all topics."""

    #: Topic -> where the shop's files let it be published; topics of which they tell nothing are left out
    configured: Mapping[str, Connection] = field(default_factory=dict)
    #: Queue -> what RabbitMQ has of it, None: it has no such queue; empty where RabbitMQ was not asked
    rabbitmq: Mapping[str, Waiting | None] = field(default_factory=dict)
    relays: Sequence[WorkerStatus] = ()


def checks(
    configured: LoadedSettings,
    database: Database,
    queues: Sequence[QueueRow],
    now: float,
    *,
    worker_tables_usable: bool,
) -> Iterator[Finding]:
    processes = fleet.read_workers(database, queues, now) if worker_tables_usable else ()
    route = Route(
        configured=_configured_route(configured.settings.magento.root),
        relays=[each for each in processes if each.role == RELAY and not each.stopped],
    )
    finding, answer = _ask(configured, queues, route)
    yield finding
    yield from published(database, queues, now, replace(route, rabbitmq=answer))
    if worker_tables_usable:
        yield from relays(database, route.relays)


def _ask(
    configured: LoadedSettings, queues: Sequence[QueueRow], route: Route
) -> tuple[Finding, Mapping[str, Waiting | None]]:
    """Asks RabbitMQ what it has of our queues, if one is configured."""
    relay = configured.settings.relay
    if not relay.host:
        return ok("rabbitmq", "none is configured ([relay] host, or queue/amqp in app/etc/env.php)"), {}
    # Where nothing of ours goes through RabbitMQ, one that cannot be asked is no fault: the shop has it for others.
    needed = route.relays or any(route.configured.get(each.topic) is not Connection.DATABASE for each in queues)
    complain = failed if needed else warning
    try:
        require_rabbitmq(configured)
        from zithara_worker.relay.connection import count_waiting

        found = count_waiting(relay, [queue.name for queue in queues])
    except ConfigurationError as error:
        return complain("rabbitmq", str(error), "set host, user, password and vhost in [relay]"), {}
    except ModuleNotFoundError:
        text = "the Python library pika is not installed: RabbitMQ cannot be asked, and no relay can run here"
        return complain("rabbitmq", text, "apt install python3-pika, or pip install 'zithara-worker[relay]'"), {}
    except BrokerUnavailable as error:
        text, closed, remedy = str(error).rpartition("): ")
        if not closed:
            text, remedy = remedy, "see [relay], and queue/amqp in app/etc/env.php"
        return complain("rabbitmq", text + closed.rstrip(": "), remedy), {}
    there = [name for name, waiting in found.items() if waiting is not None]
    return ok("rabbitmq", f"{relay.host} answers, and has {', '.join(there) or 'none of our queues'}"), found


def published(database: Database, queues: Sequence[QueueRow], now: float, route: Route) -> Iterator[Finding]:
    """By topic: which way the shop publishes, and whether its messages reach the database's queue."""
    for queue in queues:
        newest = database.rows("newest_of_queue", queue_id=queue.queue_id)
        age = now - float(newest[0]["updated_at"]) if newest else None
        arrived = (
            f"no message in {queue.name} of the database"
            if age is None
            else f"newest message {newest[0]['message_id']}, last touched {duration(age)} ago"
        )
        yield _published(queue, route, arrived=arrived, age=age)


def _published(queue: QueueRow, route: Route, *, arrived: str, age: float | None) -> Finding:
    topic = queue.topic
    check = f"published.{short_name(topic)}"
    start = f"start a relay ('zithara-worker relay {short_name(topic)}'), or {MODULE}: see {page('routing.md')}"
    relays = [relay for relay in route.relays if topic in relay.topics and relay.alive]
    waiting = route.rabbitmq.get(queue.name)
    way = route.configured.get(topic)
    if relays:
        return _relayed(check, topic, relays, arrived)
    if waiting is not None and (waiting.messages or waiting.consumers) and way is not Connection.DATABASE:
        others = f", and {waiting.consumers} consumers that are no relay (PHP) take them" if waiting.consumers else ""
        return failed(
            check,
            f"the shop publishes to RabbitMQ: {count(waiting.messages)} messages lie there in {queue.name}"
            f"{others or ', and nothing takes them'}; {arrived}",
            f"stop the PHP consumers of {queue.name}, then {start}" if waiting.consumers else start,
        )
    if waiting is not None and waiting.messages:
        return failed(
            check,
            f"the shop publishes to the database, but {count(waiting.messages)} messages of before lie in RabbitMQ; "
            f"{arrived}",
            f"'zithara-worker relay {short_name(topic)} --stop-when-empty' brings them, then 'zithara-worker "
            "reconcile' tells whether newer ones were overwritten",
        )
    if way is Connection.RABBITMQ and (age is None or age > _RECENT_SECONDS):
        return warning(check, f"the shop publishes to RabbitMQ, and no relay is alive for it; {arrived}", start)
    if way is Connection.NONE and (age is None or age > _RECENT_SECONDS):
        return failed(
            check,
            "the shop publishes nowhere: app/etc/env.php has no RabbitMQ (queue/amqp), and no module routes the topic "
            f"to the database, so each publish fails ('Unknown connection name amqp' in var/log/system.log); {arrived}",
            MODULE,
        )
    if age is not None:
        return ok(check, arrived)
    if way is Connection.DATABASE:
        return warning(check, f"the shop publishes to the database; {arrived}", "save a customer in the shop's admin")
    text = f"{arrived}: none was ever published there, or Magento has cleaned up"
    return warning(check, text, f"if the shop has had such events, it publishes elsewhere (RabbitMQ): {MODULE}")


def _relayed(check: str, topic: str, relays: Sequence[WorkerStatus], arrived: str) -> Finding:
    told = [(relay, relay.rabbitmq[topic]) for relay in relays if topic in relay.rabbitmq]
    for relay, queue in told:
        if queue.active:
            waits = "" if queue.waiting is None else f", where {count(queue.waiting)} wait"
            return ok(check, f"relay {relay.host} {relay.pid} brings them from RabbitMQ{waits}; {arrived}")
    for relay, queue in told:
        if queue.why:
            return failed(
                check,
                f"relay {relay.host} {relay.pid} brings nothing from RabbitMQ, it is {queue.state}: {queue.why}",
                "see the text; it goes on by itself",
            )
    return warning(
        check,
        f"a relay is alive and has not begun to bring messages from RabbitMQ; {arrived}",
        "run doctor again in a minute, and look at the relay's log",
    )


def relays(database: Database, found: Sequence[WorkerStatus]) -> Iterator[Finding]:
    """Relays that have died, and messages that they kept aside."""
    lost = [topic for topic in TOPICS if fleet.relay_missing(topic, found)]
    if lost:
        yield failed(
            "relays",
            f"the relay of {', '.join(lost)} was killed or has died, and none has taken its place",
            f"start it ('zithara-worker relay {' '.join(map(short_name, lost))}', or the supervisor or systemd "
            "program), and look at its log",
        )
    elif found:
        yield ok("relays", f"{sum(relay.alive for relay in found)} alive")
    aside = {str(row["topic_name"]): int(row["messages"]) for row in database.rows("relay_aside_counts")}
    if aside:
        told = ", ".join(f"{count(messages)} of {topic}" for topic, messages in sorted(aside.items()))
        yield warning(
            "relays.aside",
            f"messages from RabbitMQ that the queue cannot hold are kept aside: {told}",
            "see 'zithara-worker failed aside list'",
        )


def _configured_route(root: Path | None) -> Mapping[str, Connection]:
    """Where the shop's files let each topic be published. Empty where they cannot be read."""
    if root is None:
        return {}
    try:
        return published_to(root)
    except ConfigurationError:
        return {}  # The findings about [magento] root have the error.
