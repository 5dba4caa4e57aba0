"""What wakes the loop: results of the delivery threads, and requests of the operator."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from queue import Empty, SimpleQueue
from typing import TypeAlias

from zithara_worker.messages import Message, Outcome
from zithara_worker.queue.held import Held

#: Messages to keep claimed for each delivery thread, in addition to one batch, so that no thread is idle while the loop
#: settles and claims. With 1, throughput of 64 threads at 50 ms fell by 10 % (docs/performance.md).
CLAIMED_PER_THREAD = 2
#: Seconds for which results wait for more results, because settling many at once costs fewer statements: while every
#: thread has its next message, and while some have none. In the second case the next result ends the wait.
RESULTS_WAIT_SECONDS = 0.02
RESULTS_WAIT_IDLE_SECONDS = 0.005


class ControlRequest(Enum):
    """What an operator asks of a running loop. RELOAD only ends the wait of the loop; `Reload` keeps what is wanted."""

    STOP = "stop"
    RELOAD = "reload"


#: Filled from any thread, also from signal handlers.
Arrivals: TypeAlias = "SimpleQueue[tuple[Message, Outcome] | ControlRequest]"


class Inbox:
    """Takes in what arrives, in the loop's thread. `concurrency`: the number of delivery threads."""

    def __init__(
        self, arrivals: Arrivals, held: Held, *, concurrency: int, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._arrivals = arrivals
        self._held = held
        self._concurrency = concurrency
        self._sleep = sleep
        #: Messages whose outcome is known and not decided upon yet
        self.results: list[tuple[Message, Outcome]] = []
        self.stop_requested = False

    def add(self, message: Message, outcome: Outcome) -> None:
        """The outcome of a message that is known without a delivery, or after it."""
        self.results.append((message, outcome))
        self._held.answered(message)

    def collect(self, seconds: float) -> None:
        """Waits up to `seconds` for something to arrive, and takes in everything that has."""
        try:
            self._take_in(self._arrivals.get(timeout=seconds) if seconds > 0 else self._arrivals.get_nowait())
            if self.results and len(self._held) > CLAIMED_PER_THREAD * self._concurrency:
                # A thread is busy with its next message for about as long as with this one. If each result woke the
                # loop, it would settle three at a time, with three times the statements (docs/performance.md).
                self._sleep(min(RESULTS_WAIT_SECONDS, (self.results[0][1].duration_ms or 0.0) / 1000))
            elif len(self.results) < self._concurrency and len(self._held) > 1:
                self._take_in(self._arrivals.get(timeout=RESULTS_WAIT_IDLE_SECONDS))
            while True:
                self._take_in(self._arrivals.get_nowait())
        except Empty:
            return

    def _take_in(self, item: tuple[Message, Outcome] | ControlRequest) -> None:
        if item is ControlRequest.STOP:
            self.stop_requested = True
        elif not isinstance(item, ControlRequest):
            self.add(*item)
