"""The order of the steps: renew, settle, poll, claim, process, submit. Knows neither SQL nor HTTP.

One thread runs the loop and owns the database session; delivery threads send and put what came of it in the inbox.
Every wait but a short rest is on the inbox, and ends with a result, a wish of the operator, or the next thing that is
due.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol

from zithara_worker.delivery.reasons import LATE, SHOP_UNREAD
from zithara_worker.errors import Contention, DatabaseRefused, DatabaseUnavailable, ZitharaWorkerError
from zithara_worker.messages import Claimed, Event, Message, Outcome, OutcomeKind, Rejection, Request, Skip
from zithara_worker.monitor.health import LoopStatus
from zithara_worker.monitor.registry import MinuteCounters
from zithara_worker.monitor.service_manager import ServiceManager
from zithara_worker.processors.reasons import UNKNOWN_CONFIG_ID
from zithara_worker.queue.held import Held, Stage
from zithara_worker.queue.message_queue import MessageQueue
from zithara_worker.queue.reader import BYTES_IN_HAND
from zithara_worker.queue.settle import Settled, Settlement
from zithara_worker.worker.duties import LOG_INTERVAL, Duties, Timer
from zithara_worker.worker.ending import End, Limits
from zithara_worker.worker.outcomes import Outcomes
from zithara_worker.worker.reload import Reload

log = logging.getLogger(__name__)

#: Seconds between two tries to reach the database: first, and at most.
DATABASE_RETRY = (0.1, 5.0)
#: Messages in hand for each delivery thread, besides one batch: none may run dry while a turn settles and claims.
#: With 1 they did: 64 threads at 50 ms lost a tenth of their pace (docs/performance.md).
HELD_A_THREAD = 2
#: Seconds that a stop may take beyond shutdown_timeout, because the last outcomes are written after it.
STOP_MARGIN_SECONDS = 15.0
#: Seconds for which suspects are delivered one after another before others have their turn.
SUSPECTS_SECONDS = 1.0
#: Seconds for which results wait for others, as settling is dear: while every thread has its next message (too short to
#: be worth a way to end it), and while some have none (the next result ends it).
LINGER = 0.02
SHORT_LINGER = 0.005


class Wish(Enum):
    """What an operator asks of a running loop; goes through the inbox, so that it ends every wait. RELOAD does no more
    than that: see `Reload`."""

    STOP = "stop"
    RELOAD = "reload"


class Pool(Protocol):
    """The delivery threads, as the loop needs them."""

    @property
    def oldest_seconds(self) -> float: ...
    def submit(self, message: Message, request: Request) -> None: ...
    def drain(self) -> list[Message]: ...


class Gate(Protocol):
    """What may be sent now, as the loop needs it."""

    def allowance(self, gate: str) -> int | None: ...
    def is_open(self, gate: str) -> bool: ...
    def served_since(self, gate: str, since: float) -> bool: ...
    def served_others_since(self, gate: str, group: str, failed_at: float) -> bool: ...
    def shutdown(self) -> None: ...


class Doubtful(Protocol):
    """Who brings what is held in step with the tables."""

    def wake(self) -> None: ...


class Observer(Protocol):
    """Whoever counts what the loop does; called in the loop's thread, once a batch. `seconds`: what the step took."""

    def claimed(self, topic: str, messages: Sequence[Message], seconds: float) -> None: ...
    def decided(self, settlements: Sequence[Settlement]) -> None:
        """What shall be written: told once a message, before anything is written."""
        ...

    def settled(self, topic: str, settled: Settled, seconds: float) -> None: ...


class Unobserved:
    """Counts nothing."""

    def claimed(self, topic: str, messages: Sequence[Message], seconds: float) -> None: ...
    def decided(self, settlements: Sequence[Settlement]) -> None: ...
    def settled(self, topic: str, settled: Settled, seconds: float) -> None: ...


@dataclass(slots=True)
class _Lane:
    """One queue in the loop, and the gates that its messages pass: the host's, then their path's."""

    queue: MessageQueue
    gates: tuple[str, ...]


class Loop:
    """Takes, hands out and settles until it is asked to stop or its limits are reached."""

    def __init__(
        self,
        *,
        queues: Sequence[tuple[MessageQueue, tuple[str, ...]]],
        duties: Duties,
        reload: Reload,
        held: Held,
        renewal: Doubtful,
        gate: Gate,
        pool: Pool,
        inbox: SimpleQueue[tuple[Message, Outcome] | Wish],
        process: Callable[[Event], Request | Skip | Rejection],
        create: Callable[[Event], Request | Skip | Rejection],
        delay_before: Callable[[int], float],
        minute_counters: MinuteCounters,
        monotonic: Callable[[], float],
        rest: Callable[[float], None] = time.sleep,
        concurrency: int,
        batch_size: int,
        lease_seconds: float,
        shutdown_timeout_seconds: float,
        attempt_limit: int,
        limits: Limits,
        on_settled: Callable[[Sequence[Settlement]], None] = lambda settlements: None,
        may_claim: Callable[[], bool] = lambda: True,
        observer: Observer | None = None,
        service_manager: ServiceManager | None = None,
    ) -> None:
        self._lanes = {queue.queue_id: _Lane(queue, gates) for queue, gates in queues}
        self._duties = duties
        self._reload = reload
        self._renewal = renewal
        self._gate = gate
        self._pool = pool
        self._inbox = inbox
        self._process = process
        self._monotonic = monotonic
        self._rest = rest
        self._concurrency = concurrency
        self._batch_size = batch_size
        self._shutdown_timeout = shutdown_timeout_seconds
        self._limits = limits
        self._may_claim = may_claim
        self._observer: Observer = observer or Unobserved()
        self._service_manager = service_manager or ServiceManager()
        self._turned_at = monotonic()

        self._outcomes = Outcomes(
            queues=[(queue, gates[-1]) for queue, gates in queues],
            outages=gate,
            create=create,
            delay_before=delay_before,
            attempt_limit=attempt_limit,
            minute_counters=minute_counters,
            monotonic=monotonic,
            on_settled=on_settled,
        )
        self._held = held
        self._results: list[tuple[Message, Outcome]] = []
        self._doubtful: list[tuple[Message, Event]] = []
        self._unsettled: list[Settlement] = []
        self._in_doubt = False
        self._settled_count = 0
        #: When the last message that was released for a while, as after 429, may be claimed again
        self._released_until = 0.0
        #: Since when suspects have their turn, whether one has been in hand in it, and when they may have the next one
        self._suspects_since: float | None = None
        self._suspect_seen = False
        self._suspects_at = 0.0
        self._end: End | None = None
        self._started = monotonic()
        self._renew = Timer(lease_seconds / 3)
        self._complain = Timer(LOG_INTERVAL)
        self._database_retry = DATABASE_RETRY[0]
        self._database_down_until: float | None = None
        self._refused = False
        self._more = False
        self._turn = 0

    # ---------------------------------------------------------------- from outside

    @property
    def in_hand(self) -> int:
        """Messages claimed and not yet settled."""
        return len(self._held)

    @property
    def settled_count(self) -> int:
        """Messages settled for good or for a retry; what was only put back does not count."""
        return self._settled_count

    def status(self) -> LoopStatus:
        """From any thread."""
        return LoopStatus(
            turned_at=self._turned_at,
            longest_wait_seconds=max(self._duties.poll_interval_seconds, DATABASE_RETRY[1]),
            database_up=self._database_down_until is None,
            consumable=self._duties.consumable,
            paused=tuple(lane.queue.topic for lane in self._lanes.values() if self._is_paused(lane)),
            oldest_request_seconds=self._pool.oldest_seconds,
        )

    def run(self) -> End:
        """Runs until it ends; every message it held is settled or put back, unless the database stays away."""
        while self._end is None:
            self.turn()
        if self._end is End.RELOAD:
            self._service_manager.reloading()
        else:
            self._service_manager.stopping(within_seconds=self._shutdown_timeout + STOP_MARGIN_SECONDS)
        self._finish()
        return self._end

    def turn(self) -> None:
        """One turn: what came back is settled, what is due is done, what is free is filled."""
        self._collect(self._patience())
        self._service_manager.alive()
        self._held.turned()
        now = self._turned_at = self._monotonic()
        if self._reload.is_ready(database_up=self._database_down_until is None):
            self._end = self._end or End.RELOAD
            return
        if self._database_down_until is not None and now < self._database_down_until:
            return
        try:
            self._recover()
            self._settle()
            self._duties.run(now, in_flight=len(self._held))
            self._end = self._end or self._duties.end
            if self._duties.changed:
                self._reload.want()
            self._claim()
            self._database_up()
        except Contention as error:
            # Nothing is lost or in doubt: what was not written is written with the next turn.
            self._contended(error)
            return
        except DatabaseUnavailable as error:
            self._database_away(error)
            return
        except Exception as error:
            self._met_a_defect(error)
            return
        self._check_limits(now)

    # ---------------------------------------------------------------- waiting

    def _patience(self) -> float:
        """Seconds until something is due."""
        now = self._monotonic()
        if self._database_down_until is not None:
            return max(0.0, self._database_down_until - now)
        if self._results or self._more:
            return 0.0
        until = self._duties.next_at
        if self._limits.max_runtime_seconds is not None:
            until = min(until, self._started + self._limits.max_runtime_seconds)
        if self._service_manager.interval_seconds is not None:
            until = min(until, now + self._service_manager.interval_seconds)
        return max(0.0, until - now)

    def _collect(self, seconds: float) -> None:
        """Waits for the inbox, then empties it."""
        try:
            self._take_in(self._inbox.get(timeout=seconds) if seconds > 0 else self._inbox.get_nowait())
            if self._results and len(self._held) > HELD_A_THREAD * self._concurrency:
                # The next message lasts a thread about as long as this one did. Woken by each result, the loop would
                # settle three at a time: three times the statements (docs/performance.md).
                self._rest(min(LINGER, (self._results[0][1].duration_ms or 0.0) / 1000))
            elif len(self._results) < self._concurrency and len(self._held) > 1:
                self._take_in(self._inbox.get(timeout=SHORT_LINGER))
            while True:
                self._take_in(self._inbox.get_nowait())
        except Empty:
            return

    def _take_in(self, item: tuple[Message, Outcome] | Wish) -> None:
        if item is Wish.STOP:
            self._end = self._end or End.STOPPED
        elif not isinstance(item, Wish):
            self._results.append(item)
            self._held.answered(item[0])

    # ---------------------------------------------------------------- the database comes and goes

    def _database_away(self, error: DatabaseUnavailable) -> None:
        now = self._monotonic()
        refused = isinstance(error, DatabaseRefused)
        if refused:
            # The configuration may have the new password by now.
            self._reload.want()
        if self._complain.due(now) or (refused and not self._refused):
            self._complain.set(now)
            log.warning(
                "database not available, waiting for it",
                extra={"event": "database_away", "detail": str(error), "in_hand": len(self._held)},
            )
        self._refused = refused
        self._in_doubt = True
        self._database_down_until = now + self._database_retry
        self._database_retry = min(self._database_retry * 2, DATABASE_RETRY[1])

    def _met_a_defect(self, error: Exception) -> None:
        """Whatever a turn raised: what is held stays held, and is tried again after a pause that grows. The worker goes
        on, because ending it would leave its messages to their leases, and the next worker to the same defect."""
        now = self._monotonic()
        if self._complain.due(now):
            self._complain.set(now)
            log.error(
                "a turn of the loop failed; what is in hand is kept, and the worker tries again",
                exc_info=None if isinstance(error, ZitharaWorkerError) else error,
                extra={"event": "turn_failed", "detail": str(error), "in_hand": len(self._held)},
            )
        # A claim whose messages nobody started, and nobody else can know of.
        known = {message.id for message, _ in (*self._results, *self._doubtful)}
        known |= {each.message.id for each in self._unsettled}
        for message in self._held.messages(Stage.CLAIMED):
            if message.id not in known:
                self._results.append((message, Outcome(kind=OutcomeKind.RELEASED, reason="internal_error")))
        self._in_doubt = True
        self._database_down_until = now + self._database_retry
        self._database_retry = min(self._database_retry * 2, DATABASE_RETRY[1])

    def _contended(self, error: Contention) -> None:
        now = self._monotonic()
        if self._complain.due(now):
            self._complain.set(now)
            log.warning(
                "other sessions hold rows that the worker needs; it goes on trying",
                extra={"event": "database_contention", "detail": str(error), "in_hand": len(self._held)},
            )

    def _recover(self) -> None:
        """After a lost connection what is written is looked at first, and claims without our knowing are put back."""
        if not self._in_doubt and not self._duties.reconnected():
            return
        self._in_doubt = True
        self._renewal.wake()

    def _database_up(self) -> None:
        if self._database_down_until is not None:
            log.info("database available again", extra={"event": "database_back"})
        self._in_doubt = False
        self._database_down_until = None
        self._database_retry = DATABASE_RETRY[0]

    # ---------------------------------------------------------------- settle

    def _settle(self) -> None:
        if self._end is None:
            self._send_absent_orders()
        results, self._results = self._results, []
        if results:
            decided = [self._outcomes.settlement(message, outcome) for message, outcome in results]
            self._unsettled += decided
            self._observer.decided(decided)
        if not self._unsettled:
            self._outcomes.catch_up(self._held)
            return
        by_queue: dict[int, list[Settlement]] = {}
        for each in self._unsettled:
            by_queue.setdefault(each.message.queue_id, []).append(each)
        for queue_id, settlements in by_queue.items():
            self._write(self._lanes[queue_id], settlements)
        self._outcomes.catch_up(self._held)

    def _send_absent_orders(self) -> None:
        """Sends updates of orders that the API does not know as their creates."""
        # Asks the database, so that nothing is taken out of the results before it has answered.
        results = [(message, self._outcomes.of_absent_order(message, outcome)) for message, outcome in self._results]
        self._results = [(message, outcome) for message, outcome in results if isinstance(outcome, Outcome)]
        for message, outcome in results:
            if isinstance(outcome, Request):
                self._held.hand_out(message)
                self._pool.submit(message, outcome)

    def _write(self, lane: _Lane, settlements: Sequence[Settlement]) -> None:
        """Writes a batch; one that cannot be written for one message's sake is written message by message."""
        before = self._monotonic()
        try:
            settled = lane.queue.settle(settlements, in_doubt=self._in_doubt)
        except DatabaseUnavailable:
            raise
        except Exception as error:
            if len(settlements) > 1:
                self._write_apart(lane, settlements)
                return
            if isinstance(error, ZitharaWorkerError):
                raise  # the database's side, such as a privilege taken away: its outcome stays true until then
            message = settlements[0].message
            log.exception("an outcome cannot be written", extra={"event": "internal_error", **message.log_fields})
            plain = Outcome(
                kind=OutcomeKind.RETRY, reason="internal_error", detail=f"{type(error).__name__}, see the worker's log"
            )
            settled = lane.queue.settle([self._outcomes.settlement(message, plain)], in_doubt=True)
        self._observer.settled(lane.queue.topic, settled, self._monotonic() - before)
        self._forget(lane, settlements, settled)

    def _write_apart(self, lane: _Lane, settlements: Sequence[Settlement]) -> None:
        failed: Exception | None = None
        for each in settlements:
            try:
                self._write(lane, [each])
            except DatabaseUnavailable:
                raise
            except Exception as error:
                failed = error
        if failed is not None:
            raise failed

    def _forget(self, lane: _Lane, settlements: Sequence[Settlement], settled: Settled) -> None:
        """Takes what was settled, or lost, out of our hands."""
        gone = {each.message.id for each in settlements}
        self._unsettled = [each for each in self._unsettled if each.message.id not in gone]
        self._settled_count += self._outcomes.settled(lane.queue.queue_id, settled)
        pauses = [each.delay_seconds for each in settled.done if each.outcome.kind is OutcomeKind.RELEASED]
        self._released_until = max([self._released_until, *(self._monotonic() + pause for pause in pauses)])

    # ---------------------------------------------------------------- claim, process, submit

    def _claim(self) -> None:
        self._more = False
        if self._end is not None or not self._duties.consumable or not self._may_claim():
            return
        lanes = list(self._lanes.values())
        first = self._turn % len(lanes)
        self._turn += 1
        if self._suspects_turn(lanes[first:] + lanes[:first]):
            return
        for position, lane in enumerate(lanes[first:] + lanes[:first], start=first):
            room = self._room(lane)
            if room > 0 and lane.queue.may_have_work:
                room_bytes, large = self._room_bytes()
                self._claim_from(lane, partial(lane.queue.claim, room, room=room_bytes, large=large))
                if lane.queue.short_of_room:
                    # What becomes free is for the message that waits for it: this lane is the first of the next turn.
                    self._turn = position
                    break
                # A claim that got on may get on at once again; one that got nowhere waits for the next poll.
                self._more = self._more or (
                    lane.queue.made_progress and lane.queue.may_have_work and self._room(lane) > 0
                )

    def _claim_from(self, lane: _Lane, claim: Callable[[], list[Claimed]]) -> int:
        """Claims and starts what the claim brings; how many messages."""
        before = self._monotonic()
        claimed = claim()
        messages = [message for message, _ in claimed]
        self._observer.claimed(lane.queue.topic, messages, self._monotonic() - before)
        for message, content in claimed:
            self._start(message, content)
        self._start_doubtful()
        return len(claimed)

    def _suspects_turn(self, lanes: Sequence[_Lane]) -> bool:
        """Whether nothing else is claimed now, because a message whose worker died is in hand, or is to come.

        Only what is in hand alone can be blamed for the next death. Suspects and others take turns: suspects one after
        another for a second, or one of them for as long as it takes, then the others for as long as that took.
        """
        if self._held.has_suspect:
            return True
        now = self._monotonic()
        waiting = [
            lane
            for lane in lanes
            if lane.queue.suspects_wait
            and not self._is_paused(lane)
            and all(self._gate.allowance(gate) != 0 for gate in lane.gates)
        ]
        if self._suspects_since is None:
            if not waiting or now < self._suspects_at:
                return False
            self._suspects_since, self._suspect_seen = now, False
        elif not waiting or (self._suspect_seen and now - self._suspects_since >= SUSPECTS_SECONDS):
            self._suspects_at, self._suspects_since = now + (now - self._suspects_since), None
            return False
        if self._held:
            return True
        for lane in waiting:
            if self._room(lane) > 0 and self._claim_from(lane, lane.queue.claim_suspect):
                self._suspect_seen = True
                return True
        self._suspects_since = None
        return False

    def _room_bytes(self) -> tuple[int, bool]:
        """Bytes that the bodies of further messages may have, and whether one larger than all of them may come."""
        lengths = [message.length for message in self._held.messages()]
        large = [length for length in lengths if length > BYTES_IN_HAND]
        return BYTES_IN_HAND - (sum(lengths) - sum(large)), not large

    def _is_paused(self, lane: _Lane) -> bool:
        return lane.queue.topic in self._duties.paused

    def _room(self, lane: _Lane) -> int:
        """How many messages of this lane to claim now. Few at a time costs more than it brings, unless threads idle."""
        if self._is_paused(lane):
            return 0
        room = HELD_A_THREAD * self._concurrency + self._batch_size - len(self._held)
        room = min(room, self._batch_size)
        if len(self._held) >= self._concurrency and room < (self._batch_size + 1) // 2:
            return 0
        for gate in lane.gates:
            allowance = self._gate.allowance(gate)
            if allowance is not None:
                sharing = [id for id, each in self._lanes.items() if gate in each.gates]
                room = min(room, allowance - self._held.count(sharing))
        if self._limits.max_messages is not None:
            room = min(room, self._limits.max_messages - self._settled_count - len(self._held))
        return room

    def _start(self, message: Message, content: Event | Rejection, *, final: bool = False) -> None:
        """Turns a message into a request and hands it out; what cannot be sent has its outcome at once. `final`: the
        shop has been looked at since the claim."""
        if isinstance(content, Rejection):
            self._results.append((message, _refused(content)))
            return
        try:
            step = self._process(content)
        except Exception:
            # One bad message must not stop a queue; the traceback tells the bug, the protocol keeps the message.
            log.exception("processing failed", extra={"event": "internal_error", **message.log_fields})
            detail = "an error in the worker, see its log"
            self._results.append((message, Outcome(kind=OutcomeKind.RETRY, reason="internal_error", detail=detail)))
            return
        if isinstance(step, Request):
            for warning in step.warnings:
                log.warning("message has a flaw", extra={"event": warning, **message.log_fields})
            self._held.hand_out(message)
            self._pool.submit(message, step)
        elif isinstance(step, Skip):
            self._results.append((message, Outcome(kind=OutcomeKind.SKIPPED, reason=step.reason)))
        elif step.code == UNKNOWN_CONFIG_ID and not final:
            self._doubtful.append((message, content))
        else:
            self._results.append((message, _refused(step)))

    def _start_doubtful(self) -> None:
        """Looks at the shop afresh, once for all, before a message is rejected for a row that it may have by now."""
        doubtful, self._doubtful = self._doubtful, []
        if not doubtful:
            return
        try:
            self._duties.look_at_shop()
        except ZitharaWorkerError:
            for message, _ in doubtful:
                self._results.append((message, Outcome(kind=OutcomeKind.RELEASED, reason=SHOP_UNREAD)))
            raise
        for message, content in doubtful:
            self._start(message, content, final=True)

    # ---------------------------------------------------------------- the end

    def _check_limits(self, now: float) -> None:
        limits = self._limits
        if self._end is not None:
            return
        if limits.max_messages is not None and self._settled_count >= limits.max_messages:
            self._end = End.MESSAGES
        elif limits.max_runtime_seconds is not None and now - self._started >= limits.max_runtime_seconds:
            self._end = End.RUNTIME
        elif limits.stop_when_empty and not self._held and self._empty():
            self._end = End.EMPTY

    def _empty(self) -> bool:
        """Nothing left that could be claimed now; looks everywhere before it says so."""
        if not self._duties.consumable:
            return True
        if self._monotonic() < self._released_until:
            return False
        try:
            self._duties.poll()
            self._end = self._end or self._duties.end
            for lane in self._lanes.values():
                if self._is_paused(lane):
                    continue
                if lane.queue.may_have_work or lane.queue.suspects_wait:
                    return False
                lane.queue.sweep_all()
                lane.queue.recheck()
                if lane.queue.may_have_work or lane.queue.suspects_wait:
                    return False
        except DatabaseUnavailable as error:
            self._database_away(error)
            return False
        return True

    def _finish(self) -> None:
        """Stops in order: what has not begun goes back, what is on its way gets its time, the rest is released."""
        deadline = self._monotonic() + self._shutdown_timeout
        self._gate.shutdown()
        log.info("stopping", extra={"event": "stopping", "in_hand": len(self._held)})
        for message in self._pool.drain():
            self._results.append((message, Outcome(kind=OutcomeKind.RELEASED, reason="shutdown")))
        while self._held and self._monotonic() < deadline:
            waiting = self._results or self._unsettled
            self._collect(
                0.0 if waiting and self._database_down_until is None else min(0.2, deadline - self._monotonic())
            )
            self._finish_turn()
        answered = {message.id for message, _ in self._results} | {each.message.id for each in self._unsettled}
        late = [message for message in self._held.messages() if message.id not in answered]
        for message in late:
            # It may still wait for a token, or be sent once more after a reset: not after another worker has it.
            self._held.revoke(message)
            log.warning("no answer within shutdown_timeout: released", extra={"event": "late", **message.log_fields})
            self._results.append((message, Outcome(kind=OutcomeKind.RELEASED, reason=LATE)))
        self._finish_turn()
        if self._held:
            log.warning(
                "stopped without the database: leases bring these messages back",
                extra={"event": "left_behind", "count": len(self._held)},
            )

    def _finish_turn(self) -> None:
        self._service_manager.alive()
        self._held.turned()
        now = self._turned_at = self._monotonic()
        if self._database_down_until is not None and now < self._database_down_until:
            return
        try:
            self._recover()
            self._settle()
            self._database_up()
        except DatabaseUnavailable as error:
            self._database_away(error)
        except Exception as error:
            self._met_a_defect(error)


def _refused(rejection: Rejection) -> Outcome:
    return Outcome(kind=OutcomeKind.FAILED, reason=rejection.code, detail=rejection.detail)
