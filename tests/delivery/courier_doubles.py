"""Messages, a clock that tests move, and an API that answers what it is told."""

from __future__ import annotations

from collections.abc import Callable

from support.messages import message_of

from zithara_worker.delivery.pace import RateLimit, turns_of
from zithara_worker.messages import Evidence, Lease, Message, Outcome, OutcomeKind, Request, Target
from zithara_worker.reasons import LEASE_LOST

CART = Request(target=Target.API, method="POST", path="/cart", json={})
WEBHOOK = Request(target=Target.WEBHOOK, method="POST", path="https://h.example/", json={}, idempotent=False)

DELIVERED = Outcome(kind=OutcomeKind.DELIVERED, http_status=200, evidence=Evidence.SERVED)
DOWN = Outcome(kind=OutcomeKind.RETRY, reason="http_503", detail="busy", http_status=503, evidence=Evidence.PATH)


def message(number: int = 1, *, valid_until: float = 1e12, failed_at: float | None = None) -> Message:
    cart = {"queue_name": "zithara_cart_queue", "topic": "zithara.cart.events", "group_key": f"cart:{number}"}
    return message_of(number, message_id=1000 + number, failed_at=failed_at, lease=Lease(valid_until), **cart)


class Api:
    """Gives `answer`, or calls it."""

    def __init__(self, answer: Outcome | Callable[[], Outcome] = DELIVERED) -> None:
        self.answer = answer
        self.keys: list[str] = []
        #: Runs between the courier's last look at the lease and the sending.
        self.before_sending: Callable[[], None] = lambda: None

    def send(
        self, request: Request, message: str, *, retries: int = 0, may_send: Callable[[], bool] | None = None
    ) -> Outcome:
        self.before_sending()
        if may_send is not None and not may_send():
            return Outcome(kind=OutcomeKind.LEASE_LOST, reason=LEASE_LOST)
        self.keys.append(message)
        return self.answer if isinstance(self.answer, Outcome) else self.answer()


class FleetTurns:
    """The turns that the workers of a fleet share, in memory. `calls`: how many turns each reservation asked for."""

    def __init__(self, clock: Callable[[], float], *, rate: float, burst: int = 0) -> None:
        self._clock = clock
        self._turns = turns_of(rate, burst)
        self._next = clock()
        self.calls: list[int] = []

    def reserve(self, count: int) -> tuple[float, int]:
        self.calls.append(count)
        now = self._clock()
        first = max(self._next, now - self._turns.credit_seconds)
        self._next = first + count * self._turns.seconds_each
        return first - now, count

    def limit(self, wait: Callable[[float], bool]) -> RateLimit:
        """One worker's rate limit."""
        return RateLimit(self.reserve, seconds_each=self._turns.seconds_each, clock=self._clock, wait=wait)


def unlimited(clock: Callable[[], float], wait: Callable[[float], bool]) -> RateLimit:
    return RateLimit(None, seconds_each=0.0, clock=clock, wait=wait)
