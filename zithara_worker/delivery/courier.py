"""Takes one message to its host, if the message is still ours and others are served there now.

Every way out is an `Outcome`. Runs in the delivery threads; knows neither HTTP nor the database.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from zithara_worker.delivery import rate, reasons
from zithara_worker.delivery.breaker import FIRST_PAUSE_SECONDS, BreakerStatus, CircuitBreaker, Permit
from zithara_worker.delivery.rate import REFUSALS_AN_ATTEMPT, Throttle, TokenBucket
from zithara_worker.delivery.witnesses import WITNESS_SECONDS, Success, Witnesses
from zithara_worker.messages import Evidence, Message, Outcome, OutcomeKind, Request, Target
from zithara_worker.zithara.reasons import CREDENTIALS_REFUSED, LEASE_LOST, THROTTLED, TOKEN_UNAVAILABLE

log = logging.getLogger(__name__)

#: Characters of an answer that are told with a breaker's state.
WHY_LENGTH = 200
_MEANINGS = {
    CREDENTIALS_REFUSED: "the API refuses the credentials",
    "http_401": "the credentials are refused",
    "http_403": "access is refused",
    TOKEN_UNAVAILABLE: "no access token can be had",
}

#: Gates that are hosts; those of the API's paths are called as the path is ("/order").
API = "api"
WEBHOOK = "webhook"


def gates_of(target: Target, path: str) -> tuple[str, ...]:
    """The gates that a request passes: the host's, then that of the path. A webhook's host has one path."""
    return (API, path) if target is Target.API else (WEBHOOK,)


class Api(Protocol):
    """The part of `ZitharaApi` that a courier needs."""

    def send(
        self, request: Request, message: str, *, retries: int = 0, may_send: Callable[[], bool] | None = None
    ) -> Outcome: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GateStatus:
    """`throttled_seconds`: what is left of a pause that was asked for, 0 when there is none."""

    breaker: BreakerStatus
    throttled_seconds: float


class _Gate:
    """What is known of one host, or of one path of it."""

    __slots__ = ("breaker", "name", "throttle", "witnesses")

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.name = name
        self.breaker = CircuitBreaker(clock=clock)
        self.throttle = Throttle(clock=clock)
        self.witnesses = Witnesses()


@dataclass(frozen=True, slots=True)
class _Passage:
    """One message on its way: the gates that it passes, the last of which is its path's, with its permits."""

    message: Message
    gates: Sequence[_Gate]
    permits: Sequence[Permit]
    began_at: float
    #: The latest success of another group when it was sent
    witness: Success | None
    #: When the group failed the last time
    failed_at: float | None

    @property
    def path(self) -> _Gate:
        return self.gates[-1]

    @property
    def failed_before(self) -> bool:
        """Whether it has failed already, and others were served since."""
        return self.failed_at is not None and self.witness is not None and self.witness.began_at > self.failed_at

    @property
    def witnessed(self) -> bool:
        """Whether another group was served a moment ago, and since this message failed the last time."""
        return (
            self.witness is not None
            and self.began_at - self.witness.answered_at <= WITNESS_SECONDS
            and (self.failed_at is None or self.failed_before)
        )


class Courier:
    """One for all delivery threads. `clock`: monotonic seconds, the clock of the leases.

    `gates`: the names of all that its requests may pass. `stopping` is the event whose `wait` the bucket was given:
    `shutdown` sets it.
    """

    def __init__(
        self,
        *,
        api: Api,
        bucket: TokenBucket,
        stopping: threading.Event,
        clock: Callable[[], float],
        gates: Iterable[str],
    ) -> None:
        self._api = api
        self._bucket = bucket
        self._stopping = stopping
        self._clock = clock
        self._gates = {name: _Gate(name, clock) for name in gates}

    def deliver(self, message: Message, request: Request) -> Outcome:
        """Sends, or says why not. In turn: the lease, the gates, the rate limit, the request.

        Waiting for the rate limit can take longer than a lease or an outage, so the first two are asked again after it.
        """
        gates = [self._gates[name] for name in gates_of(request.target, request.path)]
        refused = self._refusal(message, gates)
        if refused is not None:
            return refused
        if not self._bucket.take():
            return _released(reasons.SHUTDOWN, "stopped while waiting for the rate limit")
        refused = self._refusal(message, gates)
        if refused is not None:
            return refused
        permits: list[Permit] = []
        for gate in gates:
            permit = gate.breaker.admit()
            if permit is None:
                _give_back(gates, permits)
                return _outage()
            permits.append(permit)
        witnesses = gates[-1].witnesses
        passage = _Passage(
            message,
            gates,
            permits,
            self._clock(),
            witnesses.other_than(message.group_key),
            witnesses.last_failure(message.group_key, message.failed_at),
        )
        try:
            outcome = self._api.send(
                request,
                message.key,
                retries=message.retries,
                may_send=lambda: message.lease.valid_until > self._clock(),
            )
        except BaseException:
            _give_back(gates, permits)
            raise
        return self._learn(passage, outcome)

    # ---------------------------------------------------------------- what others ask

    def allowance(self, gate: str) -> int | None:
        """How many messages that pass this gate may be in hand: None as many as one likes, 1 a probe, 0.

        A claimed message takes the probe only when it is delivered: whoever claims must count what it has in hand.
        """
        asked = self._gates[gate]
        return 0 if asked.throttle.remaining_seconds() > 0 else asked.breaker.allowance()

    def next_opening_seconds(self, gate: str) -> float:
        """Seconds until the allowance may rise from 0; 0 when something may be sent now."""
        asked = self._gates[gate]
        return max(asked.throttle.remaining_seconds(), asked.breaker.next_opening_seconds())

    def is_open(self, gate: str) -> bool:
        """Whether nobody is taken to be served behind this gate, probes included."""
        return self._gates[gate].breaker.is_open

    def served_since(self, gate: str, since: float) -> bool:
        """Whether a message was sent after `since` and served."""
        return _is_after(self._gates[gate].witnesses.latest, since)

    def served_others_since(self, gate: str, group: str, failed_at: float) -> bool:
        """Whether a message of another group was sent after this group failed and served; `failed_at`: when its failure
        was written down."""
        witnesses = self._gates[gate].witnesses
        return _is_after(witnesses.other_than(group), witnesses.last_failure(group, failed_at))

    def states(self) -> Mapping[str, GateStatus]:
        return {
            name: GateStatus(breaker=gate.breaker.status(), throttled_seconds=gate.throttle.remaining_seconds())
            for name, gate in list(self._gates.items())
        }

    def forget(self, gate: str) -> None:
        """Another host stands behind this gate from now on."""
        if gate in self._gates:
            self._gates[gate] = _Gate(gate, self._clock)

    def shutdown(self) -> None:
        """From now on nothing more is sent: who waits for the rate limit is released. Requests under way go on."""
        self._stopping.set()

    # ---------------------------------------------------------------- what an answer means

    def _refusal(self, message: Message, gates: Sequence[_Gate]) -> Outcome | None:
        if message.lease.valid_until <= self._clock():
            return _lease_lost()
        if self._stopping.is_set():
            return _released(reasons.SHUTDOWN, "the worker stops")
        for gate in gates:
            if gate.throttle.remaining_seconds() > 0:
                return _released(THROTTLED, "a pause was asked for, which is not over")
            if gate.breaker.allowance() == 0:
                return _outage()
        return None

    def _learn(self, passage: _Passage, outcome: Outcome) -> Outcome:
        """Tells the gates what came back, and an outage from a message's own failure."""
        if outcome.evidence is Evidence.SERVED:
            return self._served(passage, outcome)
        if outcome.evidence is Evidence.HOST:
            return self._unreachable(passage, outcome)
        if outcome.evidence is Evidence.PATH:
            return self._failed(passage, outcome)
        if outcome.http_status is None:  # refused before anything was sent: a URL, a header, a lost lease
            _give_back(passage.gates, passage.permits)
            return outcome
        self._answered(passage.gates[:-1])
        _give_back(passage.gates[-1:], passage.permits[-1:])
        return self._throttled(passage, outcome) if outcome.reason == THROTTLED else outcome

    def _served(self, passage: _Passage, outcome: Outcome) -> Outcome:
        group = passage.message.group_key
        passage.path.witnesses.add(Success(group, passage.began_at, self._clock()))
        self._answered(passage.gates)
        passage.path.throttle.relax(group)
        return outcome

    def _answered(self, gates: Sequence[_Gate]) -> None:
        for gate in gates:
            if gate.breaker.record_success():
                log.info("%s serves again", gate.name, extra={"event": "breaker_closed", "target": gate.name})

    def _unreachable(self, passage: _Passage, outcome: Outcome) -> Outcome:
        """No message can cause this, so none pays for it."""
        host, path = passage.gates[0], passage.path
        for_all = outcome.reason in (TOKEN_UNAVAILABLE, CREDENTIALS_REFUSED)
        if host.breaker.record_unreachable(passage.permits[0], _why(outcome), for_all=for_all):
            _say_opened(host, outcome)
        if path is not host:
            path.breaker.learn_nothing(passage.permits[-1], _why(outcome))
        if host.breaker.is_open:
            return _as_outage(outcome)
        return replace(outcome, kind=OutcomeKind.RELEASED, retry_after_seconds=FIRST_PAUSE_SECONDS)

    def _failed(self, passage: _Passage, outcome: Outcome) -> Outcome:
        self._answered(passage.gates[:-1])  # there was a connection
        path = passage.path
        group = passage.message.group_key
        path.witnesses.failed(group, self._clock())
        suspect = path.witnesses.suspects(group, failed_before=passage.failed_before)
        if path.breaker.record_failure(passage.permits[-1], _why(outcome), group=None if suspect else group):
            _say_opened(path, outcome)
        if path.breaker.is_open:
            return _as_outage(outcome)
        return replace(outcome, witnessed=passage.witnessed)

    def _throttled(self, passage: _Passage, outcome: Outcome) -> Outcome:
        path, witness = passage.path, passage.path.witnesses.other_than(passage.message.group_key)
        pause = path.throttle.refused(
            passage.message.group_key,
            outcome.retry_after_seconds,
            others_served_at=witness.began_at if witness else None,
        )
        if pause.seconds > 0:
            path.breaker.narrow()
            log.warning(
                "%s asked for a pause",
                path.name,
                extra={"event": "throttled", "target": path.name, "pause_seconds": round(pause.seconds, 1)},
            )
            return outcome
        own_pause = outcome.retry_after_seconds or rate.FIRST_PAUSE_SECONDS
        pays = pause.times == REFUSALS_AN_ATTEMPT
        return replace(
            outcome,
            kind=OutcomeKind.RETRY if pays else OutcomeKind.RELEASED,
            retry_after_seconds=own_pause,
            witnessed=True,
        )


def _is_after(success: Success | None, moment: float | None) -> bool:
    return success is not None and moment is not None and success.began_at > moment


def _give_back(gates: Sequence[_Gate], permits: Sequence[Permit]) -> None:
    for gate, permit in zip(gates, permits, strict=False):
        gate.breaker.give_back(permit)


def _why(outcome: Outcome) -> str:
    """For people: what went wrong, and the answer."""
    said = outcome.detail[:WHY_LENGTH]
    meaning = _MEANINGS.get(outcome.reason)
    if meaning is None:
        return said or outcome.reason
    return f"{meaning} ({said})" if said else meaning


def _say_opened(gate: _Gate, outcome: Outcome) -> None:
    log.warning(
        "nothing more is sent to %s until a probe gets through",
        gate.name,
        extra={
            "event": "breaker_opened",
            "target": gate.name,
            "reason": outcome.reason,
            "http_status": outcome.http_status,
            "detail": outcome.detail,
        },
    )


def _as_outage(outcome: Outcome) -> Outcome:
    detail = f"{outcome.reason}: {outcome.detail}" if outcome.detail else outcome.reason
    # A Retry-After holds no message back: the probes keep their own times.
    return replace(outcome, kind=OutcomeKind.RELEASED, reason=reasons.OUTAGE, detail=detail, retry_after_seconds=None)


def _lease_lost() -> Outcome:
    return Outcome(kind=OutcomeKind.LEASE_LOST, reason=LEASE_LOST, detail="not sent: the lease ended")


def _outage() -> Outcome:
    return _released(reasons.OUTAGE, "not sent: nobody is served there now")


def _released(reason: str, detail: str) -> Outcome:
    return Outcome(kind=OutcomeKind.RELEASED, reason=reason, detail=detail)
