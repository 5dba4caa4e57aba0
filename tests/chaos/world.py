"""What happened during a run. Written by many threads, read when all is over. Knows neither HTTP nor SQL."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from enum import Enum


class Fate(Enum):
    """What the API did with a request that it read."""

    #: Acted on it and answered
    ANSWERED = "answered"
    #: Acted on it, and the client cannot know: the answer was lost, cut off, late, or no answer of an API
    ANSWER_LOST = "answer lost"
    #: Said that it did not act on it (5xx, 429, 401)
    REFUSED = "refused"


class Poison(Enum):
    """What happens to a message whenever it is sent."""

    REJECTED = "422"
    FAILS = "500"
    FORBIDDEN = "403"
    SILENT = "no answer"
    KILLS = "kill -9 of whoever sends it"


class Blow(Enum):
    KILL = "worker killed"
    STOP = "worker stopped"
    DATABASE = "database killed"
    CONNECTIONS = "connections reset"
    POISON = "worker killed by a message"
    RELAY = "relay killed"
    RELAY_STOP = "relay stopped"
    BROKER = "RabbitMQ killed"
    BROKER_FROZEN = "RabbitMQ frozen"
    BROKER_CUT = "RabbitMQ's connections closed"
    NODE_KILLED = "node killed"
    NODE_STOPPED = "node stopped"
    NO_MAJORITY = "majority lost"
    NODE_RESTARTED = "node restarted"
    NODE_LAGS = "node lags"
    SWITCH = "primary switched"
    TAIL_LOST = "primary lost with its last transactions"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that the API has read. `slot`: the place of the worker that sent it. `fault`: what was done to it."""

    at: float
    slot: int
    fate: Fate
    fault: str


@dataclass(frozen=True, slots=True)
class Misfortune:
    """`slot`: whom it hit, None: all. `until`: when it was over."""

    blow: Blow
    slot: int | None
    at: float
    until: float


def message_key(epoch: int, queue: str, message_id: int) -> str:
    """`epoch`: how often message ids had begun again."""
    return f"{epoch}/{queue}-{message_id}"


@dataclass(slots=True)
class World:
    """`arrivals`: a message's key -> arrivals in order. `order`: all of them in the order of arrival. `poison`: key ->
    what happens to the message, known before it is visible. `epoch`: see `message_key`."""

    arrivals: dict[str, list[Arrival]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    misfortunes: list[Misfortune] = field(default_factory=list)
    poison: dict[str, Poison] = field(default_factory=dict)
    epoch: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def arrived(self, key: str, slot: int, fate: Fate, fault: str) -> None:
        with self._lock:
            self.arrivals.setdefault(key, []).append(Arrival(time.monotonic(), slot, fate, fault))
            self.order.append(key)

    def befell(self, blow: Blow, slot: int | None, at: float, until: float) -> None:
        with self._lock:
            self.misfortunes.append(Misfortune(blow, slot, at, until))

    @property
    def arrival_count(self) -> int:
        return len(self.order)
