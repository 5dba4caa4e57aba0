"""A new configuration: wanted, tried out beside the one in force, and taken once it can be used."""

from __future__ import annotations

import logging
from collections.abc import Callable

from zithara_worker.errors import ZitharaWorkerError

log = logging.getLogger(__name__)

#: Seconds between two tries; between two log lines about the same problem.
RETRY_SECONDS = 5.0
LOG_SECONDS = 60.0


class Reload:
    """Lives as long as the process: what is wanted while no loop runs is done by the next one.

    `prepare(database_up)` reads the configuration and tries out everything it needs. False: nothing has changed, and
    the shop's side cannot be tried while the database is away. Raises ZitharaWorkerError or OSError where it cannot be
    used.
    """

    def __init__(self, prepare: Callable[[bool], bool], *, monotonic: Callable[[], float]) -> None:
        self._prepare = prepare
        self._monotonic = monotonic
        self._next_at = 0.0
        self._complain_at = 0.0
        self.wanted = False
        #: Why the configuration that is wanted cannot be used, in words; None when there is nothing to complain of
        self.problem: str | None = None

    def ask(self) -> None:
        """With the next turn. Takes no lock: may be called in a signal handler."""
        self._next_at = 0.0
        self.wanted = True

    def want(self) -> None:
        """With the next turn, but not sooner than RETRY_SECONDS after the last try."""
        self.wanted = True

    def is_ready(self, *, database_up: bool) -> bool:
        """Tries, if it is time; whether the loop may end and its successor go on with the new configuration."""
        now = self._monotonic()
        if not self.wanted or now < self._next_at:
            return False
        # Before the try: whoever asks during it asks for what comes after it.
        self.wanted, self._next_at = False, now + RETRY_SECONDS
        try:
            ready = self._prepare(database_up)
        except (ZitharaWorkerError, OSError) as error:
            self.wanted = True
            self.failed(str(error))
            return False
        except Exception:
            # The loop at work may hold messages, which a defect in here must not cost their worker.
            log.exception("trying the changed configuration failed", extra={"event": "internal_error"})
            self.wanted = True
            self.failed("an error in the worker, see its log")
            return False
        if ready:
            self.problem = None
        else:
            self.wanted = True
        return ready

    def failed(self, problem: str) -> None:
        """Says so at once, and while it lasts once a minute."""
        now = self._monotonic()
        if problem != self.problem or now >= self._complain_at:
            self._complain_at = now + LOG_SECONDS
            log.error(
                "the changed configuration cannot be used; going on with the one in force, and trying again",
                extra={"event": "reload_failed", "detail": problem},
            )
        self.problem = problem
