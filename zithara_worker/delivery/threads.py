"""The delivery threads: a fixed number, each delivers one message at a time.

They only deliver. The loop owns the database session, so these threads need none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from zithara_worker import reasons
from zithara_worker.logs.formatting import set_current_message
from zithara_worker.messages import Message, Outcome, OutcomeKind, Request

log = logging.getLogger(__name__)


class DeliveryPool:
    """Starts `size` threads at once. `on_result` is called in a delivery thread, once for each message that is
    submitted and not drained; it must not raise.
    """

    def __init__(
        self,
        size: int,
        deliver: Callable[[Message, Request], Outcome],
        on_result: Callable[[Message, Outcome], object],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deliver = deliver
        self._on_result = on_result
        self._monotonic = monotonic
        #: None tells one thread to end
        self._waiting: SimpleQueue[tuple[Message, Request] | None] = SimpleQueue()
        # Daemon threads: a second signal ends the process although an answer is outstanding.
        self._threads = [
            threading.Thread(target=self._run, name=f"delivery-{number}", daemon=True) for number in range(size)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, message: Message, request: Request) -> None:
        self._waiting.put((message, request))

    def drain(self) -> list[Message]:
        """Takes back the messages that no thread has begun; they bring no result."""
        taken: list[Message] = []
        try:
            while (item := self._waiting.get_nowait()) is not None:
                taken.append(item[0])
        except Empty:
            pass
        return taken

    def stop(self, timeout_seconds: float) -> None:
        """Ends each thread after its current message, and waits for that up to `timeout_seconds`. Drains the rest."""
        self.drain()
        for _ in self._threads:
            self._waiting.put(None)
        deadline = self._monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - self._monotonic()))

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            message, request = item
            set_current_message(message)
            try:
                outcome = self._deliver(message, request)
            except Exception as error:
                # A defect that one message meets must not end the thread, or a few such messages would end them all.
                log.exception(
                    "delivery met a defect of this program; the message is tried again",
                    extra={"event": "internal_error", **message.log_fields},
                )
                outcome = Outcome(
                    kind=OutcomeKind.RETRY, reason=reasons.INTERNAL_ERROR, detail=f"{type(error).__name__}, see the log"
                )
            # Otherwise a thread that waits would keep its last request in memory, up to a hundred megabytes decoded.
            del item, request
            self._on_result(message, outcome)
