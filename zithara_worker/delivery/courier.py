"""Takes one message to its host, if the message is still ours and the host wants it now.

Every way out is an `Outcome`. Runs in the delivery threads; knows neither HTTP nor the database.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from zithara_worker.delivery import reasons
from zithara_worker.delivery.breaker import BreakerStatus, CircuitBreaker, Permit
from zithara_worker.delivery.rate import Throttle, TokenBucket
from zithara_worker.messages import Message, Outcome, OutcomeKind, Request, Target
from zithara_worker.zithara.reasons import CREDENTIALS_REFUSED, LEASE_LOST, THROTTLED

log = logging.getLogger(__name__)


class Api(Protocol):
    """The part of `ZitharaApi` that a courier needs."""

    def send(
        self, request: Request, message: str, *, retries: int = 0, may_send: Callable[[], bool] | None = None
    ) -> Outcome: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetStatus:
    """`throttled_seconds`: what is left of a pause that the host asked for, 0 when there is none."""

    breaker: BreakerStatus
    throttled_seconds: float


@dataclass(frozen=True, slots=True)
class _Gate:
    breaker: CircuitBreaker
    throttle: Throttle


class Courier:
    """One for all delivery threads. `clock`: monotonic seconds, the clock of the leases.

    `stopping` is the event whose `wait` the bucket was given: `shutdown` sets it.
    """

    def __init__(
        self,
        *,
        api: Api,
        bucket: TokenBucket,
        stopping: threading.Event,
        clock: Callable[[], float],
        make_breaker: Callable[[], CircuitBreaker] | None = None,
    ) -> None:
        self._api = api
        self._bucket = bucket
        self._stopping = stopping
        self._clock = clock
        self._gates = {
            target: _Gate(make_breaker() if make_breaker else CircuitBreaker(clock=clock), Throttle(clock=clock))
            for target in Target
        }

    def deliver(self, message: Message, request: Request) -> Outcome:
        """Sends, or says why not. In turn: the lease, the host's state, the rate limit, the request.

        Waiting for the rate limit can take longer than a lease or an outage, so the first two are asked again after it.
        """
        gate = self._gates[request.target]
        refused = self._refusal(message, gate)
        if refused is not None:
            return refused
        if not self._bucket.take():
            return _released(reasons.SHUTDOWN, "stopped while waiting for the rate limit")
        refused = self._refusal(message, gate)
        if refused is not None:
            return refused
        permit = gate.breaker.admit()
        if permit is None:
            return _outage()
        try:
            outcome = self._api.send(
                request,
                message.key,
                retries=message.retries,
                may_send=lambda: message.lease.valid_until > self._clock(),
            )
        except BaseException:
            gate.breaker.give_back(permit)
            raise
        return self._learn(request.target, gate, permit, outcome)

    def allowance(self, target: Target) -> int | None:
        """How many messages may be claimed for a target: None as many as one likes, 1 a probe, 0.

        A claimed message takes the probe only when it is delivered: whoever claims must count what it has in hand.
        """
        gate = self._gates[target]
        return 0 if gate.throttle.remaining_seconds() > 0 else gate.breaker.allowance()

    def next_opening_seconds(self, target: Target) -> float:
        """Seconds until the allowance may rise from 0; 0 when something may be sent now."""
        gate = self._gates[target]
        return max(gate.throttle.remaining_seconds(), gate.breaker.next_opening_seconds())

    def is_open(self, target: Target) -> bool:
        """Whether the target is taken to be down, probes included."""
        return self._gates[target].breaker.is_open

    def states(self) -> Mapping[Target, TargetStatus]:
        return {
            target: TargetStatus(breaker=gate.breaker.status(), throttled_seconds=gate.throttle.remaining_seconds())
            for target, gate in self._gates.items()
        }

    def shutdown(self) -> None:
        """From now on nothing more is sent: who waits for the rate limit is released. Requests under way go on."""
        self._stopping.set()

    def _refusal(self, message: Message, gate: _Gate) -> Outcome | None:
        if message.lease.valid_until <= self._clock():
            return _lease_lost()
        if self._stopping.is_set():
            return _released(reasons.SHUTDOWN, "the worker stops")
        if gate.throttle.remaining_seconds() > 0:
            return _released(THROTTLED, "the host asked for a pause, which is not over")
        if gate.breaker.allowance() == 0:
            return _outage()
        return None

    def _learn(self, target: Target, gate: _Gate, permit: Permit, outcome: Outcome) -> Outcome:
        """Feeds what came back to the breaker and the throttle, and tells an outage from a message's own failure."""
        if outcome.outage:
            failed = gate.breaker.trip if outcome.reason == CREDENTIALS_REFUSED else gate.breaker.record_failure
            if failed(permit):
                log.warning(
                    "nothing more is sent to %s until a probe gets through",
                    target.value,
                    extra={"event": "breaker_opened", "target": target.value, "reason": outcome.reason},
                )
            if outcome.kind is OutcomeKind.RETRY and gate.breaker.is_open:
                detail = f"{outcome.reason}: {outcome.detail}" if outcome.detail else outcome.reason
                return replace(outcome, kind=OutcomeKind.RELEASED, reason=reasons.OUTAGE, detail=detail)
            return outcome
        if outcome.http_status is None:
            # Not sent (a URL, a header, a lease that ended): says nothing about the host.
            gate.breaker.give_back(permit)
            return outcome
        # Any answer shows that the host is there, also one that asks for peace or does not like the message.
        if gate.breaker.record_success():
            log.info("%s answers again", target.value, extra={"event": "breaker_closed", "target": target.value})
        if outcome.reason == THROTTLED:
            seconds = gate.throttle.pause(outcome.retry_after_seconds)
            log.warning(
                "%s asked for a pause",
                target.value,
                extra={"event": "throttled", "target": target.value, "pause_seconds": round(seconds, 1)},
            )
        else:
            gate.throttle.relax()
        return outcome


def _lease_lost() -> Outcome:
    return Outcome(kind=OutcomeKind.LEASE_LOST, reason=LEASE_LOST, detail="not sent: the lease ended")


def _outage() -> Outcome:
    return Outcome(kind=OutcomeKind.RELEASED, reason=reasons.OUTAGE, detail="not sent: the host is down", outage=True)


def _released(reason: str, detail: str) -> Outcome:
    return Outcome(kind=OutcomeKind.RELEASED, reason=reason, detail=detail)
