"""Delivers one message: checks lease, breakers and rate limit, sends, and learns from the answer.

Every result is an `Outcome`. Runs in the delivery threads. Knows neither HTTP nor the database.

A target is a host, or one path of the API's host. Each target has a circuit breaker, a throttle and witnesses of its
own. Targets that are hosts are called "api" and "webhook"; a path is called as it is ("/order").
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from zithara_worker import reasons
from zithara_worker.delivery.breaker import FIRST_PAUSE_SECONDS, BreakerStatus, CircuitBreaker, Permit
from zithara_worker.delivery.down import CREDENTIALS, down, remedy, targets_of
from zithara_worker.delivery.pace import FIRST_THROTTLE_SECONDS, REFUSALS_PER_ATTEMPT, RateLimit, Throttle
from zithara_worker.delivery.witnesses import WITNESS_SECONDS, Success, Witnesses
from zithara_worker.messages import Evidence, Message, Outcome, OutcomeKind, Request
from zithara_worker.reasons import CREDENTIALS_REFUSED, LEASE_LOST, THROTTLED, TOKEN_UNAVAILABLE

log = logging.getLogger(__name__)

#: Characters of an answer that a breaker keeps as the reason why it is open.
WHY_LENGTH = 200
_MEANINGS = {
    CREDENTIALS_REFUSED: CREDENTIALS,
    "http_401": CREDENTIALS,
    "http_403": "access is refused",
    TOKEN_UNAVAILABLE: "no access token can be had",
}


class Api(Protocol):
    """The part of `ZitharaApi` that a courier needs."""

    def send(
        self, request: Request, message: str, *, retries: int = 0, may_send: Callable[[], bool] | None = None
    ) -> Outcome: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetStatus:
    """How one target is. `throttled_seconds`: the rest of the pause that it asked for with 429; 0 without one."""

    breaker: BreakerStatus
    throttled_seconds: float


class _TargetState:
    """What is known of one target."""

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.name = name
        self.breaker = CircuitBreaker(clock=clock)
        self.throttle = Throttle(clock=clock)
        self.witnesses = Witnesses()


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One attempt to deliver a message. `targets`: those of the request, the path last, each with its permit."""

    message: Message
    targets: Sequence[_TargetState]
    permits: Sequence[Permit]
    began_at: float
    #: The latest success of another group at the time of sending
    witness: Success | None
    #: When the group failed the last time
    failed_at: float | None

    @property
    def path(self) -> _TargetState:
        return self.targets[-1]

    @property
    def failed_before(self) -> bool:
        """Whether the group failed earlier, and another group was served since."""
        return self.failed_at is not None and self.witness is not None and self.witness.began_at > self.failed_at

    @property
    def witnessed(self) -> bool:
        """Whether another group was served within WITNESS_SECONDS, and since this group failed the last time."""
        return (
            self.witness is not None
            and self.began_at - self.witness.answered_at <= WITNESS_SECONDS
            and (self.failed_at is None or self.failed_before)
        )


class Courier:
    """Delivers for all delivery threads. Thread-safe.

    `clock`: monotonic seconds, the clock of the leases. `targets`: the names of all targets that its requests may go
    to. `stopping`: the event whose `wait` the rate limit was given, so that setting it ends the waits for turns.
    """

    def __init__(
        self,
        *,
        api: Api,
        rate_limit: RateLimit,
        stopping: threading.Event,
        clock: Callable[[], float],
        targets: Iterable[str],
    ) -> None:
        self._api = api
        self._rate_limit = rate_limit
        self._stopping = stopping
        self._clock = clock
        self._targets = {name: _TargetState(name, clock) for name in targets}
        #: Relation id -> when its request began
        self._under_way: dict[int, float] = {}

    @property
    def oldest_seconds(self) -> float:
        """How long the oldest request under way has taken so far; 0 if none is. A wait for the rate limit does not
        count: other workers may be ahead, or the database away."""
        return max((self._clock() - began for began in list(self._under_way.values())), default=0.0)

    def deliver(self, message: Message, request: Request) -> Outcome:
        """Sends the request, or returns why not. Checks in this order: the lease, the targets, the rate limit.

        A wait for the rate limit can outlast a lease, and an outage can begin during it, so the first two checks are
        repeated after it.
        """
        targets = [self._targets[name] for name in targets_of(request.target, request.path)]
        refused = self._refusal(message, targets)
        if refused is None and not self._rate_limit.take():
            refused = _released(reasons.SHUTDOWN, "stopped while waiting for the rate limit")
        refused = refused or self._refusal(message, targets)
        if refused is not None:
            return refused
        permits = _admit(targets)
        if permits is None:
            return _outage()
        witnesses, group = targets[-1].witnesses, message.group_key
        attempt = _Attempt(
            message,
            targets,
            permits,
            began_at=self._clock(),
            witness=witnesses.other_than(group),
            failed_at=witnesses.last_failure(group, message.failed_at),
        )
        self._under_way[message.id] = attempt.began_at
        try:
            outcome = self._api.send(
                request,
                message.key,
                retries=message.retries,
                may_send=lambda: message.lease.valid_until > self._clock(),
            )
        except BaseException:
            _give_back(targets, permits)
            raise
        finally:
            del self._under_way[message.id]
        return self._learn(attempt, outcome)

    # ---------------------------------------------------------------- the state of targets

    def allowance(self, target: str) -> int | None:
        """How many messages for this target may be claimed at the same time: None for no limit, 1 for a probe, 0.

        A claimed message takes its permit only when it is delivered, so the caller subtracts the messages that it has
        claimed already.
        """
        state = self._targets[target]
        return 0 if state.throttle.remaining_seconds() > 0 else state.breaker.allowance()

    def next_opening_seconds(self, target: str) -> float:
        """Seconds until the allowance may rise from 0; 0 if something may be sent now."""
        state = self._targets[target]
        return max(state.throttle.remaining_seconds(), state.breaker.next_opening_seconds())

    def is_open(self, target: str) -> bool:
        """Whether the breaker of this target is open or half-open."""
        return self._targets[target].breaker.is_open

    def served_since(self, target: str, since: float) -> bool:
        """Whether a message was sent after `since` and served."""
        return _is_after(self._targets[target].witnesses.latest, since)

    def served_others_since(self, target: str, group: str, failed_at: float) -> bool:
        """Whether a message of another group was sent after this group failed, and served. `failed_at`: when the
        failure of the group was settled."""
        witnesses = self._targets[target].witnesses
        return _is_after(witnesses.other_than(group), witnesses.last_failure(group, failed_at))

    def states(self) -> Mapping[str, TargetStatus]:
        return {
            name: TargetStatus(breaker=state.breaker.status(), throttled_seconds=state.throttle.remaining_seconds())
            for name, state in list(self._targets.items())
        }

    def forget(self, target: str) -> None:
        """Drops what is known of this target, because from now on its name stands for another host."""
        if target in self._targets:
            self._targets[target] = _TargetState(target, self._clock)

    def shutdown(self) -> None:
        """Sends nothing more: messages that wait for the rate limit are released. Requests under way continue."""
        self._stopping.set()

    # ---------------------------------------------------------------- what an answer means

    def _refusal(self, message: Message, targets: Sequence[_TargetState]) -> Outcome | None:
        if message.lease.valid_until <= self._clock():
            return Outcome(kind=OutcomeKind.LEASE_LOST, reason=LEASE_LOST, detail="not sent: the lease ended")
        if self._stopping.is_set():
            return _released(reasons.SHUTDOWN, "the worker stops")
        for target in targets:
            if target.throttle.remaining_seconds() > 0:
                return _released(THROTTLED, "not sent: the pause after a 429 is not over")
            if target.breaker.allowance() == 0:
                return _outage()
        return None

    def _learn(self, attempt: _Attempt, outcome: Outcome) -> Outcome:
        """Tells breakers, throttles and witnesses what came back. Returns the outcome as it is then to be settled: a
        failure that an outage explains becomes RELEASED."""
        if outcome.evidence is Evidence.SERVED:
            return self._served(attempt, outcome)
        if outcome.evidence is Evidence.HOST:
            return self._unreachable(attempt, outcome)
        if outcome.evidence is Evidence.PATH:
            return self._failed(attempt, outcome)
        if outcome.http_status is None:  # nothing was sent: a wrong URL or header, or a lost lease
            _give_back(attempt.targets, attempt.permits)
            return outcome
        self._answered(attempt.targets[:-1])
        _give_back(attempt.targets[-1:], attempt.permits[-1:])
        return self._throttled(attempt, outcome) if outcome.reason == THROTTLED else outcome

    def _served(self, attempt: _Attempt, outcome: Outcome) -> Outcome:
        group = attempt.message.group_key
        attempt.path.witnesses.add(Success(group, attempt.began_at, self._clock()))
        self._answered(attempt.targets)
        attempt.path.throttle.relax(group)
        return outcome

    def _answered(self, targets: Sequence[_TargetState]) -> None:
        for target in targets:
            if target.breaker.record_success():
                log.info("%s serves again", target.name, extra={"event": "breaker_closed", "target": target.name})

    def _unreachable(self, attempt: _Attempt, outcome: Outcome) -> Outcome:
        """No message can cause this, so no message loses an attempt."""
        host, path = attempt.targets[0], attempt.path
        for_all = outcome.reason in (TOKEN_UNAVAILABLE, CREDENTIALS_REFUSED)
        if host.breaker.record_unreachable(attempt.permits[0], _why(outcome), for_all=for_all):
            _log_opened(host, outcome)
        if path is not host:
            path.breaker.learn_nothing(attempt.permits[-1], _why(outcome))
        if host.breaker.is_open:
            return _as_outage(outcome)
        return replace(outcome, kind=OutcomeKind.RELEASED, retry_after_seconds=FIRST_PAUSE_SECONDS)

    def _failed(self, attempt: _Attempt, outcome: Outcome) -> Outcome:
        self._answered(attempt.targets[:-1])  # the connection proves that the host is reachable
        path = attempt.path
        group = attempt.message.group_key
        path.witnesses.failed(group, self._clock())
        suspect = path.witnesses.suspects(group, failed_before=attempt.failed_before)
        if path.breaker.record_failure(attempt.permits[-1], _why(outcome), group=None if suspect else group):
            _log_opened(path, outcome)
        if path.breaker.is_open:
            return _as_outage(outcome)
        return replace(outcome, witnessed=attempt.witnessed)

    def _throttled(self, attempt: _Attempt, outcome: Outcome) -> Outcome:
        """After a 429: pauses the path, or only the message's own group where others were served meanwhile."""
        path, group = attempt.path, attempt.message.group_key
        witness = path.witnesses.other_than(group)
        pause = path.throttle.refused(
            group, outcome.retry_after_seconds, others_served_at=witness.began_at if witness else None
        )
        if pause.seconds > 0:
            path.breaker.narrow()
            log.warning(
                "%s asked for a pause",
                path.name,
                extra={"event": "throttled", "target": path.name, "pause_seconds": round(pause.seconds, 1)},
            )
            return outcome
        loses_attempt = pause.times == REFUSALS_PER_ATTEMPT
        return replace(
            outcome,
            kind=OutcomeKind.RETRY if loses_attempt else OutcomeKind.RELEASED,
            retry_after_seconds=outcome.retry_after_seconds or FIRST_THROTTLE_SECONDS,
            witnessed=True,
        )


def _is_after(success: Success | None, moment: float | None) -> bool:
    return success is not None and moment is not None and success.began_at > moment


def _admit(targets: Sequence[_TargetState]) -> list[Permit] | None:
    """A permit of each target. None if one of them gives none; then no permit is kept."""
    permits: list[Permit] = []
    for target in targets:
        permit = target.breaker.admit()
        if permit is None:
            _give_back(targets, permits)
            return None
        permits.append(permit)
    return permits


def _give_back(targets: Sequence[_TargetState], permits: Sequence[Permit]) -> None:
    """`permits`: those of the first targets, which may be fewer."""
    for target, permit in zip(targets, permits, strict=False):
        target.breaker.give_back(permit)


def _why(outcome: Outcome) -> str:
    """For people: what went wrong, and the answer."""
    answer = outcome.detail[:WHY_LENGTH]
    meaning = _MEANINGS.get(outcome.reason)
    if meaning is None:
        return answer or outcome.reason
    return f"{meaning} ({answer})" if answer else meaning


def _log_opened(target: _TargetState, outcome: Outcome) -> None:
    why = _why(outcome)
    log.warning(
        "%s: %s",
        down(target.name, why),
        remedy(target.name, why),
        extra={
            "event": "breaker_opened",
            "target": target.name,
            "reason": outcome.reason,
            "http_status": outcome.http_status,
            "detail": outcome.detail,
        },
    )


def _as_outage(outcome: Outcome) -> Outcome:
    detail = f"{outcome.reason}: {outcome.detail}" if outcome.detail else outcome.reason
    # Retry-After is dropped: the breaker's probes decide when the message is sent again.
    return replace(outcome, kind=OutcomeKind.RELEASED, reason=reasons.OUTAGE, detail=detail, retry_after_seconds=None)


def _outage() -> Outcome:
    return _released(reasons.OUTAGE, "not sent: the circuit breaker is open")


def _released(reason: str, detail: str) -> Outcome:
    return Outcome(kind=OutcomeKind.RELEASED, reason=reason, detail=detail)
