"""Builds one loop, with a function for each of its parts; `running_loop` takes it down again.

The only module that knows every room.
"""

from __future__ import annotations

import logging
import random
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

from zithara_worker.database import schema
from zithara_worker.database.locks import take_turns
from zithara_worker.database.session import Database
from zithara_worker.delivery.courier import Courier
from zithara_worker.delivery.down import WEBHOOK, targets_of
from zithara_worker.delivery.pace import RateLimit, turns_of
from zithara_worker.delivery.threads import DeliveryPool
from zithara_worker.errors import ZitharaWorkerError
from zithara_worker.limits import Limits
from zithara_worker.logs.audit import AuditFile
from zithara_worker.monitor.counters import WorkerMetrics
from zithara_worker.monitor.endpoints import Endpoints, MonitoredWorker
from zithara_worker.monitor.fleet import AUDIT_PROBLEM, RATE_LIMITED, SHOP_DISABLED, TURN_PROBLEM, UNCOMPARED
from zithara_worker.monitor.registry import Identity, MinuteCounters, Registry
from zithara_worker.monitor.service_manager import ServiceManager
from zithara_worker.processors import identify, outline, supersedes
from zithara_worker.queue.held import Held
from zithara_worker.queue.ledger import Ledger
from zithara_worker.queue.ledger_rules import LEDGER_TOPICS, Rules, destination
from zithara_worker.queue.message_queue import MessageQueue
from zithara_worker.queue.queues import QueueRow, find_queues
from zithara_worker.queue.renewal import Renewal
from zithara_worker.settings.reload import Reload
from zithara_worker.settings.sections import LoggingSettings, Settings
from zithara_worker.settings.sources import LoadedSettings
from zithara_worker.settings.values import webhook_keys
from zithara_worker.shop.carts import active_carts
from zithara_worker.shop.configuration import ShopConfiguration, complete, read_configuration, shared_token
from zithara_worker.shop.deployment_config import DeploymentConfig, deployment_config
from zithara_worker.topics import TOPIC_TABLE, full_name
from zithara_worker.worker.claiming import Claiming
from zithara_worker.worker.duties import DebugSwitch, Duties, PoisonPill
from zithara_worker.worker.inbox import Arrivals, Inbox
from zithara_worker.worker.ledger_duties import LedgerDuties
from zithara_worker.worker.loop import Loop
from zithara_worker.worker.outcomes import Outcomes, TopicState
from zithara_worker.worker.relevance import Relevance, look_at_carts
from zithara_worker.worker.settling import Settling
from zithara_worker.worker.starting import RequestFactory, Starter
from zithara_worker.zithara.api import ZitharaApi, request_digest
from zithara_worker.zithara.http import Transport, tls_context, usable_url
from zithara_worker.zithara.signature import WebhookSigner
from zithara_worker.zithara.tokens import TokenSource

log = logging.getLogger(__name__)

#: Topic -> the targets of its requests, known before a message is read: nothing is claimed for a target that serves
#: nobody.
TARGETS = {name: targets_of(topic.target, topic.path) for name, topic in TOPIC_TABLE.items()}
#: Name of the row of zithara_lock that bounds the requests of the whole fleet.
RATE_LIMIT = "rate_limit"
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
    parts = Parts(prepared, lasting, limits, arrivals)
    parts.renewal.start()
    lasting.metrics.begin([row.topic for row in prepared.queues])
    try:
        lasting.endpoints.attach(parts.monitored)
        yield parts.loop
        _leave(parts.registry, lasting.minute_counters)
    finally:
        lasting.endpoints.detach()
        parts.courier.shutdown()
        parts.pool.stop(0.0)
        parts.renewal.stop()
        parts.transport.close()
        parts.turns_session.close()


class Parts:
    """The parts of one loop, one function each. A part is built when it is first asked for, from those that it names.

    Nothing is connected or started but the delivery threads, by `pool`.
    """

    def __init__(self, prepared: Prepared, lasting: Lasting, limits: Limits, arrivals: Arrivals) -> None:
        settings = prepared.settings
        self._prepared = prepared
        self._settings = settings
        self._lasting = lasting
        self._limits = limits
        self._arrivals = arrivals
        #: Set when the loop ends: it ends every wait of a delivery thread
        self._stopping = threading.Event()
        identity = Identity.of_this_process([row.topic for row in prepared.queues])
        self.registry = Registry(prepared.database, identity)
        self.held = Held(worker_id=identity.id, lease_seconds=settings.worker.lease, clock=lasting.monotonic)
        self.renewal = Renewal(self._another_session(clock=lasting.database_clock), self.held)
        self.transport = Transport(tls=prepared.tls, timeout_seconds=settings.zithara.timeout)
        #: Used by the delivery threads, one at a time; not connected where there is no rate limit
        self.turns_session = self._another_session(clock=lasting.database_clock)
        self.inbox = Inbox(arrivals, self.held, concurrency=settings.worker.concurrency)

    def _another_session(self, clock: Callable[[], float] | None = None) -> Database:
        """With the same server as the loop's."""
        return Database(self._settings.database, addresses=self._prepared.database.addresses, clock=clock)

    # ---------------------------------------------------------------- how requests are made and sent

    @cached_property
    def requests(self) -> RequestFactory:
        return RequestFactory(
            self._settings.zithara,
            self._prepared.shop,
            utc=self._lasting.utc,
            on_webhook_url=lambda: self.courier.forget(WEBHOOK),
        )

    @cached_property
    def tokens(self) -> TokenSource:
        return TokenSource(
            base_url=self._settings.zithara.base_url,
            client_id=self._settings.zithara.client_id,
            client_secret=self._settings.zithara.client_secret,
            shared_token=lambda: shared_token(self._another_session(), owner=self.held.worker_id),
            pause=self._stopping.wait,
            clock=self._lasting.utc,
            transport=self.transport,
        )

    @cached_property
    def courier(self) -> Courier:
        api = ZitharaApi(
            base_url=self._settings.zithara.base_url,
            tokens=self.tokens,
            transport=self.transport,
            signer=WebhookSigner(webhook_keys(self._settings.zithara.webhook_secret.reveal())),
            pause=self._stopping.wait,
            now_utc=self._lasting.utc,
            digest=self._prepared.audit is not None,
            mask=self._settings.logging.mask,
        )
        return Courier(
            api=api,
            rate_limit=self.rate_limit,
            stopping=self._stopping,
            clock=self._lasting.monotonic,
            targets={target for row in self._prepared.queues for target in TARGETS[row.topic]},
        )

    @cached_property
    def rate_limit(self) -> RateLimit:
        worker = self._settings.worker
        turns = turns_of(worker.rate_limit, worker.burst)
        reserve = partial(take_turns, self.turns_session, RATE_LIMIT, owner=self.held.worker_id, **turns._asdict())
        return RateLimit(
            reserve if worker.rate_limit else None,
            seconds_each=turns.seconds_each,
            clock=self._lasting.monotonic,
            wait=self._stopping.wait,
        )

    @cached_property
    def pool(self) -> DeliveryPool:
        before = threading.stack_size(_STACK_BYTES)
        try:
            return DeliveryPool(
                self._settings.worker.concurrency,
                self.courier.deliver,
                lambda message, outcome: self._arrivals.put((message, outcome)),
            )
        finally:
            # The threads of an embedding program keep their size.
            threading.stack_size(before)

    # ---------------------------------------------------------------- the loop and its steps

    @cached_property
    def loop(self) -> Loop:
        return Loop(
            held=self.held,
            inbox=self.inbox,
            settling=Settling(
                self.topics, held=self.held, inbox=self.inbox, outcomes=self.outcomes, starter=self.starter
            ),
            duties=self.duties,
            claiming=self.claiming,
            pool=self.pool,
            courier=self.courier,
            limits=self._limits,
            shutdown_timeout_seconds=self._settings.worker.shutdown_timeout,
            reload=self._lasting.reload,
            renewal=self.renewal,
            service_manager=self._lasting.service_manager,
        )

    @cached_property
    def topics(self) -> Mapping[int, TopicState]:
        """By queue id."""
        return {row.queue_id: TopicState(self._queue(row), TARGETS[row.topic]) for row in self._prepared.queues}

    def _queue(self, row: QueueRow) -> MessageQueue:
        coalesced = {full_name(word) for word in self._settings.worker.coalesce}
        return MessageQueue(
            self._prepared.database,
            queue_id=row.queue_id,
            name=row.name,
            topic=row.topic,
            held=self.held,
            identify=identify,
            supersedes=supersedes if row.topic in coalesced else None,
            outline=outline,
            attempt_limit=self._settings.retry.limit,
            ledger=self._ledger(row.topic) if row.topic in LEDGER_TOPICS else None,
        )

    def _ledger(self, topic: str) -> Ledger:
        return Ledger(self._prepared.database, topic=topic, destination=destination(self._settings.zithara))

    @cached_property
    def relevance(self) -> Relevance:
        database, worker = self._prepared.database, self._settings.worker
        skipped = {full_name(word) for word in worker.skip_unchanged}
        rules = {
            topic: Rules(
                digest=request_digest,
                unchanged_for=worker.unchanged_for if topic in skipped else 0.0,
                ordered_ids=database.orders_ids,
            )
            for topic in self._ledger_topics.values()
        }
        carts = look_at_carts(partial(active_carts, database))
        return Relevance(
            rules,
            look_at_carts=carts if self._settings.zithara.inactive_carts == "skip" else None,
            utc=self._lasting.utc,
        )

    @property
    def _ledger_topics(self) -> Mapping[int, str]:
        """Queue id -> topic, of those with a ledger."""
        return {row.queue_id: row.topic for row in self._prepared.queues if row.topic in LEDGER_TOPICS}

    @cached_property
    def outcomes(self) -> Outcomes:
        return Outcomes(
            self.topics,
            courier=self.courier,
            create=self.requests.create,
            policy=self._settings.retry,
            jitter=lambda: random.uniform(-1, 1),  # noqa: S311
            monotonic=self._lasting.monotonic,
            minute_counters=self._lasting.minute_counters,
            metrics=self._lasting.metrics,
            audit=self._prepared.audit,
            worker_id=self.held.worker_id,
        )

    @cached_property
    def duties(self) -> Duties:
        return Duties(
            self._prepared.database,
            [topic.queue for topic in self.topics.values()],
            shop=self._prepared.shop,
            files=self._prepared.files,
            poison_pill=self._lasting.poison_pill,
            debug=self._lasting.debug,
            registry=self.registry,
            register=self._register,
            on_shop=self.requests.use,
            ledger=LedgerDuties(
                self._prepared.database,
                self._ledger_topics,
                relevance=self.relevance,
                monotonic=self._lasting.monotonic,
            ),
            monotonic=self._lasting.monotonic,
            poll_interval_seconds=self._settings.worker.poll_interval,
        )

    @property
    def _required_audit(self) -> AuditFile | None:
        return self._prepared.audit if self._settings.logging.audit_required else None

    @cached_property
    def claiming(self) -> Claiming:
        # Nothing is claimed while an audit file that is required cannot be written.
        audit = self._required_audit
        return Claiming(
            self.topics,
            settings=self._settings.worker,
            held=self.held,
            courier=self.courier,
            duties=self.duties,
            starter=self.starter,
            metrics=self._lasting.metrics,
            may_claim=audit.ready if audit else lambda: True,
        )

    @cached_property
    def starter(self) -> Starter:
        return Starter(
            self.pool,
            self.held,
            self.inbox,
            process=self.requests.process,
            relevance=self.relevance,
            look_at_shop=self.duties.look_at_shop,
        )

    # ---------------------------------------------------------------- what others see of it

    def _register(self, in_hand: int) -> None:
        """Updates this worker's row in zithara_worker."""
        targets = {
            target: {
                "breaker": status.breaker.state.value,
                "why": status.breaker.why,
                "next_probe_seconds": round(self.courier.next_opening_seconds(target), 1),
                "throttled_seconds": round(status.throttled_seconds, 1),
            }
            for target, status in self.courier.states().items()
        }
        audit = self._required_audit
        self.registry.update(
            in_flight=in_hand,
            metrics_address=self._lasting.endpoints.address,
            state={
                **targets,
                UNCOMPARED: sorted(self.relevance.unrecorded),
                RATE_LIMITED: self.rate_limit.is_limiting,
                SHOP_DISABLED: not self.duties.consumable,
                AUDIT_PROBLEM: "" if audit is None or audit.ready() else str(audit.problem),
                TURN_PROBLEM: self.loop.turn_problem,
            },
            minutes=self._lasting.minute_counters.minutes(),
        )

    @property
    def monitored(self) -> MonitoredWorker:
        """What the endpoints read."""
        return MonitoredWorker(
            topics=[row.topic for row in self._prepared.queues],
            status=self.loop.status,
            targets=self.courier.states,
            token_refreshes=lambda: self.tokens.refresh_count,
            queues=self._prepared.queues,
            targets_by_topic={row.topic: TARGETS[row.topic] for row in self._prepared.queues},
            settings=self._settings,
            audit=self._prepared.audit,
        )


def _leave(registry: Registry, minute_counters: MinuteCounters) -> None:
    """Writes in this worker's row in zithara_worker that it has stopped."""
    try:
        registry.stopped(minute_counters.minutes())
    except ZitharaWorkerError as error:
        log.info(
            "could not write in zithara_worker that this worker stops, because the database is not available; `status` "
            "shows it as dead until another worker removes the row after a day",
            extra={"event": "registry_away", "detail": str(error)},
        )
