"""The delivery threads: a fixed number, fed through one queue, each with one message at a time.

A thread does nothing but deliver, so it needs no database connection and no lock on anything but a counter.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from zithara_worker.delivery import reasons
from zithara_worker.logs import handlers as logs
from zithara_worker.messages import Message, Outcome, OutcomeKind, Request

log = logging.getLogger(__name__)


class DeliveryPool:
    """Starts `size` threads at once. `on_result` is called in a delivery thread, once for every submitted message
    that is neither drained nor given up by `stop`; it should only pass the result on.
    """

    def __init__(
        self,
        size: int,
        deliver: Callable[[Message, Request], Outcome],
        on_result: Callable[[Message, Outcome], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deliver = deliver
        self._on_result = on_result
        self._monotonic = monotonic
        self._waiting: SimpleQueue[tuple[int, Message, Request] | None] = SimpleQueue()
        self._lock = threading.Lock()
        # Guarded by the lock. A message is open until its result is at hand, then being passed on, then gone.
        self._serial = 0
        self._open: dict[int, Message] = {}
        self._being_passed_on = 0
        self._stopped = False
        # When each thread began with the message that it has, None without one. A place a thread: no lock is needed.
        self._begun_at: list[float | None] = [None] * size
        # Daemons: a second signal, or an answer that never comes, must not keep the process.
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"delivery-{number}", daemon=True)
            for number in range(size)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def in_flight(self) -> int:
        """Messages submitted whose result has not been passed on: waiting for a thread, or with one."""
        with self._lock:
            return len(self._open) + self._being_passed_on

    @property
    def oldest_seconds(self) -> float:
        """For how long the message that has been longest with a thread has been there; 0 when none is."""
        begun = min((at for at in self._begun_at if at is not None), default=None)
        return 0.0 if begun is None else self._monotonic() - begun

    def submit(self, message: Message, request: Request) -> None:
        """Hands a message over. After `stop` it comes straight back, released."""
        with self._lock:
            stopped = self._stopped
            if not stopped:
                self._serial += 1
                self._open[self._serial] = message
                # Within the lock, so that no message can come to rest behind the end marks of `stop`.
                self._waiting.put((self._serial, message, request))
        if stopped:
            self._on_result(message, _SHUTDOWN)

    def drain(self) -> list[Message]:
        """Takes back what no thread has begun; no result will come for these."""
        taken: list[Message] = []
        while True:
            try:
                item = self._waiting.get_nowait()
            except Empty:
                return taken
            if item is None:  # an end mark of `stop`, which a thread still needs
                self._waiting.put(None)
                return taken
            with self._lock:
                del self._open[item[0]]
            taken.append(item[1])

    def stop(self, timeout_seconds: float) -> list[Message]:
        """Releases what no thread has begun (as results), and waits for the rest up to `timeout_seconds`.

        Returns those that were still under way then: they are given up, and no result will come for them. Calling it
        again waits again.
        """
        deadline = self._monotonic() + timeout_seconds
        with self._lock:
            first_call, self._stopped = not self._stopped, True
        if first_call:
            for message in self.drain():
                self._on_result(message, _SHUTDOWN)
            for _ in self._threads:
                self._waiting.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - self._monotonic()))
        with self._lock:
            late = list(self._open.values())
            self._open.clear()
        return late

    def _run(self, number: int) -> None:
        while (item := self._waiting.get()) is not None:
            serial, message, request = item
            self._begun_at[number] = self._monotonic()
            logs.about(message)
            try:
                outcome = self._deliver(message, request)
            except Exception as error:
                # The guard of the thread: one message that meets a defect must not take a thread with it for good.
                log.exception(
                    "delivery met a defect of this program; the message is tried again",
                    extra={"event": "internal_error", **message.log_fields},
                )
                outcome = Outcome(
                    kind=OutcomeKind.RETRY, reason=reasons.INTERNAL_ERROR, detail=f"{type(error).__name__}, see the log"
                )
            # A thread that waits keeps nothing of the last request, which may take a hundred megabytes decoded.
            del item, request
            self._begun_at[number] = None
            with self._lock:
                if self._open.pop(serial, None) is None:
                    continue  # given up by `stop`
                self._being_passed_on += 1
            try:
                self._on_result(message, outcome)
            except Exception:
                # Nobody is left to tell: the lease brings the message back.
                log.exception(
                    "a result could not be passed on",
                    extra={"event": "internal_error", **message.log_fields},
                )
            # Only now: whoever reads an `in_flight` of 0 finds every result already passed on.
            with self._lock:
                self._being_passed_on -= 1


_SHUTDOWN = Outcome(kind=OutcomeKind.RELEASED, reason=reasons.SHUTDOWN, detail="stopped before it was sent")
