"""A real loop with its real steps, on a clock of the test: queues, database and delivery threads are in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import Empty
from typing import Any

import pytest

from support.clock import Clock
from support.memory_queue import MemoryQueue, Row
from zithara_worker.delivery.courier import Courier
from zithara_worker.delivery.pace import RateLimit
from zithara_worker.limits import Limits
from zithara_worker.messages import Event, Evidence, Message, Outcome, OutcomeKind, Rejection, Request, Skip, Target
from zithara_worker.monitor.counters import WorkerMetrics
from zithara_worker.monitor.registry import MinuteCounters
from zithara_worker.monitor.service_manager import ServiceManager
from zithara_worker.queue.held import Held
from zithara_worker.settings.reload import Reload
from zithara_worker.settings.sections import RetrySettings, WorkerSettings
from zithara_worker.shop.configuration import ShopConfiguration
from zithara_worker.topics import TOPIC_ORDER
from zithara_worker.worker import duties
from zithara_worker.worker.building import TARGETS
from zithara_worker.worker.claiming import Claiming
from zithara_worker.worker.duties import DebugSwitch, Duties, PoisonPill
from zithara_worker.worker.inbox import ControlRequest, Inbox
from zithara_worker.worker.ledger_duties import LedgerDuties
from zithara_worker.worker.loop import Loop
from zithara_worker.worker.outcomes import Outcomes, TopicState
from zithara_worker.worker.relevance import Relevance
from zithara_worker.worker.settling import Settling
from zithara_worker.worker.starting import Starter

SERVED = Outcome(kind=OutcomeKind.DELIVERED, http_status=200, evidence=Evidence.SERVED)
CREATE = Request(target=Target.API, method="POST", path="/order", json={"create": True})


class TimedArrivals:
    """What arrives at the loop: now (`put`), or while it waits (`at`). Waiting moves the clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._here: list[Any] = []
        self._later: list[tuple[float, Callable[[], None]]] = []

    def put(self, item: Any) -> None:
        self._here.append(item)

    def at(self, moment: float, action: Callable[[], None]) -> None:
        self._later = sorted([*self._later, (moment, action)], key=lambda each: each[0])

    def get(self, timeout: float) -> Any:
        until = self._clock.now + timeout
        while not self._here and self._later and self._later[0][0] <= until:
            moment, action = self._later.pop(0)
            self._clock.now = max(self._clock.now, moment)
            action()
        if not self._here:
            self._clock.now = until
        return self.get_nowait()

    def get_nowait(self) -> Any:
        if not self._here:
            raise Empty
        return self._here.pop(0)


class Threads:
    """Delivery threads that answer when the test says so."""

    def __init__(self, loop: LoopOnClock) -> None:
        self._loop = loop
        #: Relation id -> what is with a thread, and what waits for one
        self.under_way: dict[int, tuple[Message, Request]] = {}
        self.waiting: list[tuple[Message, Request]] = []

    def submit(self, message: Message, request: Request) -> None:
        self._loop.step("submit")
        if len(self.under_way) < self._loop.settings.concurrency:
            self.under_way[message.id] = (message, request)
        else:
            self.waiting.append((message, request))

    def drain(self) -> list[Message]:
        drained, self.waiting = [message for message, _ in self.waiting], []
        return drained

    def answer(self, number: int, outcome: Outcome = SERVED) -> None:
        message, _ = self.under_way.pop(number)
        if self.waiting:
            following = self.waiting.pop(0)
            self.under_way[following[0].id] = following
        self._loop.arrivals.put((message, outcome))


class StepDatabase:
    """Answers the duties' statements, and names each of them as a step."""

    def __init__(self, loop: LoopOnClock) -> None:
        self._loop = loop
        self.generation = 1

    def rows(self, statement: str, /, **parameters: Any) -> list[dict[str, Any]]:
        self._loop.step(statement)
        if statement != "poll":
            return []
        return [
            {
                "queue_id": queue.queue_id,
                "newest": queue.newest,
                "due": queue.due,
                "expired": queue.may_have_suspects,
                "paused": ",".join(self._loop.paused),
                "poison_pill": self._loop.poison_pill,
            }
            for queue in self._loop.queues
        ]

    def execute(self, statement: str, /, **parameters: Any) -> int:
        self._loop.step(statement)
        return 0


class ToldServiceManager(ServiceManager):
    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def reloading(self) -> None:
        self.told.append("reloading")

    def stopping(self, *, within_seconds: float) -> None:
        self.told.append(f"stopping within {within_seconds:g} s")


class LoopOnClock:
    """`steps`: every call that would reach the database or a delivery thread, in order. `fail`: step -> the error that
    it raises, as long as it stands there. `process`: event -> request."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        topics: Sequence[str] = (TOPIC_ORDER,),
        *,
        limits: Limits | None = None,
        **settings: Any,
    ) -> None:
        self.settings = WorkerSettings(**{"concurrency": 2, "batch_size": 4, "poll_interval": 1.0, **settings})
        self.clock = Clock(1000.0)
        self.steps: list[str] = []
        self.fail: dict[str, Exception] = {}
        self.arrivals = TimedArrivals(self.clock)
        self.slept: list[float] = []
        self.renewals_woken = 0
        self.paused: set[str] = set()
        self.poison_pill: str | None = "1"
        self.may_claim = True
        #: Instead of `shop`
        self.read_shop: Callable[[], ShopConfiguration] | None = None
        #: Whether a new configuration can be used, and with which `database_up` each was tried
        self.reload_is_usable = True
        self.prepared_reloads: list[bool] = []
        self.database = StepDatabase(self)
        self.threads = Threads(self)
        self.service_manager = ToldServiceManager()
        self.shop = ShopConfiguration(
            enabled=True,
            active_config_id=1,
            config_ids=frozenset({1}),
            event_types=(),
            webhook_url=None,
            new_messages_lifetime_minutes=10_080,
        )
        monkeypatch.setattr(duties, "read_configuration", self._read_configuration)
        self.held = Held(worker_id="w", lease_seconds=self.settings.lease, clock=self.clock)
        self.queues = [
            MemoryQueue(number, topic, self.clock, held=self.held, before=self.step)
            for number, topic in enumerate(topics)
        ]
        self.stopping = threading.Event()
        self.courier = Courier(
            api=self,
            rate_limit=RateLimit(None, seconds_each=0.0, clock=self.clock, wait=self.stopping.wait),
            stopping=self.stopping,
            clock=self.clock,
            targets={target for topic in topics for target in TARGETS[topic]},
        )
        self.reload = Reload(self._prepare_reload, monotonic=self.clock)
        self.loop = self._build(limits or Limits())

    def _build(self, limits: Limits) -> Loop:
        states = {queue.queue_id: TopicState(queue, TARGETS[queue.topic]) for queue in self.queues}
        self.metrics = WorkerMetrics(monotonic=self.clock, utc=self.clock)
        inbox = Inbox(self.arrivals, self.held, concurrency=self.settings.concurrency, sleep=self._sleep)
        relevance = Relevance({}, look_at_carts=None, utc=lambda: 0.0)
        self.duties = Duties(
            self.database,
            self.queues,
            shop=self.shop,
            files=None,
            poison_pill=PoisonPill(),
            debug=DebugSwitch(),
            registry=self,
            register=lambda in_hand: self.step(f"register {in_hand}"),
            on_shop=lambda shop: None,
            ledger=LedgerDuties(self.database, {}, relevance=relevance, monotonic=self.held.clock),
            monotonic=self.clock,
            poll_interval_seconds=self.settings.poll_interval,
        )
        starter = Starter(
            self.threads,
            self.held,
            inbox,
            process=self._process,
            relevance=relevance,
            look_at_shop=self.duties.look_at_shop,
        )
        self.outcomes = Outcomes(
            states,
            courier=self.courier,
            create=lambda event: self.create(event),
            policy=RetrySettings(),
            jitter=lambda: 0.0,
            monotonic=self.clock,
            minute_counters=MinuteCounters(self.clock),
            metrics=self.metrics,
        )
        return Loop(
            held=self.held,
            inbox=inbox,
            settling=Settling(states, held=self.held, inbox=inbox, outcomes=self.outcomes, starter=starter),
            duties=self.duties,
            claiming=Claiming(
                states,
                settings=self.settings,
                held=self.held,
                courier=self.courier,
                duties=self.duties,
                starter=starter,
                metrics=self.metrics,
                may_claim=lambda: self.may_claim,
            ),
            pool=self.threads,
            courier=self.courier,
            limits=limits,
            shutdown_timeout_seconds=self.settings.shutdown_timeout,
            reload=self.reload,
            renewal=self,
            service_manager=self.service_manager,
        )

    # ---------------------------------------------------------------- what the test does

    def publish(self, topic: str = TOPIC_ORDER, *, count: int = 1, suspect: bool = False, length: int = 0) -> None:
        queue = next(queue for queue in self.queues if queue.topic == topic)
        for _ in range(count):
            number = len(queue.rows)
            queue.rows.append(Row(number, topic, f"{topic}:{number}", suspect=suspect, length=length))

    def begin(self, **messages: Any) -> None:
        """Publishes and takes a turn, which hands them to the delivery threads."""
        self.publish(**messages)
        self.turns(1)

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.loop.turn()

    def turn_until(self, seconds: float) -> None:
        """Turns until so many seconds have passed."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.loop.turn()

    def steps_of_a_turn(self) -> list[str]:
        self.steps.clear()
        self.loop.turn()
        return list(self.steps)

    def stop(self) -> None:
        self.arrivals.put(ControlRequest.STOP)

    def claimed(self) -> int:
        return len(self.held)

    # ---------------------------------------------------------------- what the loop asks

    def step(self, name: str) -> None:
        self.steps.append(name)
        if name in self.fail:
            raise self.fail[name]

    def wake(self) -> None:
        self.renewals_woken += 1

    def remove_stale(self) -> None:
        self.step("remove_stale")

    def process(self, event: Event) -> Request | Skip | Rejection:
        return Request(target=Target.API, method="POST", path="/order", json=dict(event.payload))

    def create(self, event: Event) -> Request | Skip | Rejection:
        return CREATE

    def _process(self, event: Event) -> Request | Skip | Rejection:
        return self.process(event)

    def _read_configuration(self, *arguments: Any) -> ShopConfiguration:
        self.step("shop")
        return self.read_shop() if self.read_shop else self.shop

    def _prepare_reload(self, database_up: bool) -> bool:
        self.prepared_reloads.append(database_up)
        return self.reload_is_usable

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock.now += seconds
