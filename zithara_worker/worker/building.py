"""Builds one loop: a function for each of its parts, and `running_loop`, which joins them and takes them down again.

The only module that knows every room.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from zithara_worker.database import schema
from zithara_worker.database.session import Database
from zithara_worker.delivery.courier import WEBHOOK, Courier, targets_of
from zithara_worker.delivery.pace import TokenBucket
from zithara_worker.delivery.threads import DeliveryPool
from zithara_worker.errors import ZitharaWorkerError
from zithara_worker.logs.audit import AuditFile
from zithara_worker.messages import Message, Outcome
from zithara_worker.monitor.counters import WorkerMetrics
from zithara_worker.monitor.endpoints import Endpoints, MonitoredWorker
from zithara_worker.monitor.registry import Identity, MinuteCounters, Registry
from zithara_worker.monitor.service_manager import ServiceManager
from zithara_worker.processors import identify, outline, supersedes
from zithara_worker.queue.held import Held
from zithara_worker.queue.message_queue import MessageQueue
from zithara_worker.queue.queues import QueueRow, find_queues
from zithara_worker.queue.renewal import Renewal
from zithara_worker.settings.sections import LoggingSettings, Settings
from zithara_worker.settings.sources import LoadedSettings
from zithara_worker.shop.configuration import DatabaseTokenStore, ShopConfiguration, complete, read_configuration
from zithara_worker.shop.deployment_config import DeploymentConfig, deployment_config
from zithara_worker.topics import TOPIC_TABLE, full_name
from zithara_worker.version import VERSION
from zithara_worker.worker.claiming import Claiming
from zithara_worker.worker.duties import DebugSwitch, Duties, PoisonPill
from zithara_worker.worker.ending import Limits
from zithara_worker.worker.inbox import Arrivals, Inbox
from zithara_worker.worker.loop import Loop
from zithara_worker.worker.outcomes import DeliveryAudit, Outcomes, TopicState
from zithara_worker.worker.reload import Reload
from zithara_worker.worker.settling import Settling
from zithara_worker.worker.starting import RequestFactory, Starter
from zithara_worker.zithara.api import ZitharaApi
from zithara_worker.zithara.http import Transport, tls_context, usable_url
from zithara_worker.zithara.tokens import TokenSource

log = logging.getLogger(__name__)

#: Topic -> the targets of its requests, known before a message is read: nothing is claimed for a target that serves
#: nobody.
TARGETS = {name: targets_of(topic.target, topic.path) for name, topic in TOPIC_TABLE.items()}
#: Stack of a delivery thread. A few hundred calls from C into Python and back overran 256 KB, which ends the process.
#: Less than a huge page, which the kernel could otherwise reserve for every thread.
_STACK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A configuration that was tried out, with what was opened for it. Nothing is left for which it could fail."""

    #: As far as it goes without a database
    base: LoadedSettings
    #: With what the shop says
    configured: LoadedSettings
    shop: ShopConfiguration
    files: DeploymentConfig | None
    queues: Sequence[QueueRow]
    database: Database
    tls: ssl.SSLContext
    audit: AuditFile | None

    @property
    def settings(self) -> Settings:
        return self.configured.settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Lasting:
    """What lives as long as the process, through every reload. Times are seconds."""

    #: The clock of leases and pauses; runs on while the machine is suspended
    monotonic: Callable[[], float]
    #: Since the epoch
    utc: Callable[[], float]
    #: Replaces the time of the database's sessions, for tests; None: the server's
    database_clock: Callable[[], float] | None
    service_manager: ServiceManager
    endpoints: Endpoints
    metrics: WorkerMetrics
    minute_counters: MinuteCounters
    poison_pill: PoisonPill
    debug: DebugSwitch
    reload: Reload


def prepare(
    base: LoadedSettings, topics: Sequence[str], lasting: Lasting, audit: Callable[[LoggingSettings], AuditFile | None]
) -> Prepared:
    """Opens and checks everything that the configuration needs. `audit`: the audit file that these settings want.
    Raises ConfigurationError, ShopError, DatabaseUnavailable."""
    settings = base.settings
    files = deployment_config(settings.magento.root)
    database = Database(settings.database, clock=lasting.database_clock)
    try:
        schema.require(database)
        shop = read_configuration(database, files)
        configured = complete(base, shop)
        queues = find_queues(database, topics, settings.queues)
        usable_url(settings.zithara.base_url)
        tls = tls_context(verify=settings.zithara.verify, ca_file=str(settings.zithara.ca_file or ""))
    except BaseException:
        database.close()
        raise
    return Prepared(
        base=base,
        configured=configured,
        shop=shop,
        files=files,
        queues=queues,
        database=database,
        tls=tls,
        audit=audit(settings.logging),
    )


@contextmanager
def running_loop(prepared: Prepared, lasting: Lasting, limits: Limits, arrivals: Arrivals) -> Iterator[Loop]:
    """A loop with everything it needs, its threads started. `arrivals`: where its results and requests arrive."""
    settings = prepared.settings
    stopping = threading.Event()
    identity = _identity(prepared)
    registry = Registry(prepared.database, identity)
    held = Held(worker_id=identity.id, lease_seconds=settings.worker.lease, clock=lasting.monotonic)
    transport = Transport(tls=prepared.tls, timeout_seconds=settings.zithara.timeout)
    tokens = _tokens(prepared, lasting, transport, stopping, owner=held.worker_id)
    courier = _courier(prepared, lasting, transport, tokens, stopping)
    pool = _delivery_threads(settings.worker.concurrency, courier, arrivals)
    renewal = Renewal(Database(settings.database, clock=lasting.database_clock), held)
    renewal.start()
    lasting.metrics.begin([row.topic for row in prepared.queues])
    try:
        loop = _loop(
            prepared,
            lasting,
            limits,
            registry=registry,
            held=held,
            inbox=Inbox(arrivals, held, concurrency=settings.worker.concurrency),
            courier=courier,
            pool=pool,
            renewal=renewal,
        )
        lasting.endpoints.attach(_monitored(prepared, loop, courier, tokens))
        yield loop
        _leave(registry)
    finally:
        lasting.endpoints.detach()
        courier.shutdown()
        pool.stop(0.0)
        renewal.stop()
        transport.close()


def _identity(prepared: Prepared) -> Identity:
    host = socket.gethostname()
    return Identity(
        id=f"{host[:32]}-{os.getpid()}-{secrets.token_hex(4)}",
        host=host,
        pid=os.getpid(),
        version=VERSION,
        topics=[row.topic for row in prepared.queues],
    )


def _tokens(
    prepared: Prepared, lasting: Lasting, transport: Transport, stopping: threading.Event, *, owner: str
) -> TokenSource:
    settings = prepared.settings
    return TokenSource(
        base_url=settings.zithara.base_url,
        client_id=settings.zithara.client_id,
        client_secret=settings.zithara.client_secret,
        store=DatabaseTokenStore(lambda: Database(settings.database), owner=owner),
        pause=stopping.wait,
        clock=lasting.utc,
        transport=transport,
    )


def _courier(
    prepared: Prepared, lasting: Lasting, transport: Transport, tokens: TokenSource, stopping: threading.Event
) -> Courier:
    settings = prepared.settings
    return Courier(
        api=ZitharaApi(
            base_url=settings.zithara.base_url,
            tokens=tokens,
            transport=transport,
            pause=stopping.wait,
            now_utc=lasting.utc,
            digest=prepared.audit is not None,
            mask=settings.logging.mask,
        ),
        bucket=TokenBucket(
            rate=settings.worker.rate_limit,
            burst=settings.worker.burst,
            clock=lasting.monotonic,
            wait=stopping.wait,
        ),
        stopping=stopping,
        clock=lasting.monotonic,
        targets=sorted({target for row in prepared.queues for target in TARGETS[row.topic]}),
    )


def _delivery_threads(concurrency: int, courier: Courier, arrivals: Arrivals) -> DeliveryPool:
    def on_result(message: Message, outcome: Outcome) -> None:
        arrivals.put((message, outcome))

    before = threading.stack_size(_STACK_BYTES)
    try:
        return DeliveryPool(concurrency, courier.deliver, on_result)
    finally:
        # The threads of an embedding program keep their size.
        threading.stack_size(before)


def _loop(
    prepared: Prepared,
    lasting: Lasting,
    limits: Limits,
    *,
    registry: Registry,
    held: Held,
    inbox: Inbox,
    courier: Courier,
    pool: DeliveryPool,
    renewal: Renewal,
) -> Loop:
    settings = prepared.settings
    requests = RequestFactory(
        settings.zithara, prepared.shop, utc=lasting.utc, on_webhook_url=lambda: courier.forget(WEBHOOK)
    )
    topics = {row.queue_id: TopicState(_queue(prepared, row, held), TARGETS[row.topic]) for row in prepared.queues}
    duties = _duties(prepared, lasting, topics, registry=registry, courier=courier, on_shop=requests.use)
    starter = Starter(pool, held, inbox, process=requests.process, look_at_shop=duties.look_at_shop)
    return Loop(
        held=held,
        inbox=inbox,
        settling=Settling(
            topics,
            held=held,
            inbox=inbox,
            outcomes=_outcomes(prepared, lasting, topics, courier=courier, requests=requests, worker_id=held.worker_id),
            starter=starter,
        ),
        duties=duties,
        claiming=Claiming(
            topics,
            settings=settings.worker,
            held=held,
            courier=courier,
            duties=duties,
            starter=starter,
            metrics=lasting.metrics,
            may_claim=_may_claim(prepared),
        ),
        pool=pool,
        courier=courier,
        limits=limits,
        shutdown_timeout_seconds=settings.worker.shutdown_timeout,
        reload=lasting.reload,
        renewal=renewal,
        service_manager=lasting.service_manager,
    )


def _queue(prepared: Prepared, row: QueueRow, held: Held) -> MessageQueue:
    settings = prepared.settings
    coalesced = {full_name(word) for word in settings.worker.coalesce}
    return MessageQueue(
        prepared.database,
        queue_id=row.queue_id,
        name=row.name,
        topic=row.topic,
        held=held,
        identify=identify,
        supersedes=supersedes if row.topic in coalesced else None,
        outline=outline,
        attempt_limit=settings.retry.limit,
    )


def _duties(
    prepared: Prepared,
    lasting: Lasting,
    topics: Mapping[int, TopicState],
    *,
    registry: Registry,
    courier: Courier,
    on_shop: Callable[[ShopConfiguration], None],
) -> Duties:
    def register(in_hand: int) -> None:
        registry.update(
            in_flight=in_hand,
            metrics_address=lasting.endpoints.address,
            state=_states(courier),
            minutes=lasting.minute_counters.minutes(),
        )

    return Duties(
        prepared.database,
        [topic.queue for topic in topics.values()],
        shop=prepared.shop,
        files=prepared.files,
        poison_pill=lasting.poison_pill,
        debug=lasting.debug,
        registry=registry,
        register=register,
        on_shop=on_shop,
        monotonic=lasting.monotonic,
        poll_interval_seconds=prepared.settings.worker.poll_interval,
    )


def _outcomes(
    prepared: Prepared,
    lasting: Lasting,
    topics: Mapping[int, TopicState],
    *,
    courier: Courier,
    requests: RequestFactory,
    worker_id: str,
) -> Outcomes:
    return Outcomes(
        topics,
        outages=courier,
        create=requests.create,
        policy=prepared.settings.retry,
        jitter=lambda: random.uniform(-1, 1),  # noqa: S311
        monotonic=lasting.monotonic,
        minute_counters=lasting.minute_counters,
        metrics=lasting.metrics,
        audit=DeliveryAudit(prepared.audit, worker_id=worker_id) if prepared.audit else None,
    )


def _may_claim(prepared: Prepared) -> Callable[[], bool]:
    """False while an audit file that is required cannot be written."""
    audit = prepared.audit if prepared.settings.logging.audit_required else None
    return audit.ready if audit else lambda: True


def _monitored(prepared: Prepared, loop: Loop, courier: Courier, tokens: TokenSource) -> MonitoredWorker:
    return MonitoredWorker(
        status=loop.status,
        targets=courier.states,
        token_refreshes=lambda: tokens.refresh_count,
        queues=prepared.queues,
        targets_by_topic={row.topic: TARGETS[row.topic] for row in prepared.queues},
        settings=prepared.settings,
        audit=prepared.audit,
    )


def _states(courier: Courier) -> dict[str, Any]:
    """The state of breakers and throttles, as the row in zithara_worker has it."""
    return {
        target: {
            "breaker": status.breaker.state.value,
            "why": status.breaker.why,
            "next_probe_seconds": round(courier.next_opening_seconds(target), 1),
            "throttled_seconds": round(status.throttled_seconds, 1),
        }
        for target, status in courier.states().items()
    }


def _leave(registry: Registry) -> None:
    """Deletes this worker's row in zithara_worker."""
    try:
        registry.remove()
    except ZitharaWorkerError as error:
        log.info(
            "could not delete this worker's row in zithara_worker, because the database is not available; `status` "
            "shows the worker as dead until another worker removes the row after a day",
            extra={"event": "registry_away", "detail": str(error)},
        )
