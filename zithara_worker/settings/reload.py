"""A new configuration: tried out while the loop goes on with the one in force, and taken once it can be used."""

from __future__ import annotations

import logging
from collections.abc import Callable

from zithara_worker.errors import ZitharaWorkerError

log = logging.getLogger(__name__)

#: Seconds between two tries, and between two log lines about the same problem.
RETRY_SECONDS = 5.0
LOG_SECONDS = 60.0


class Reload:
    """Lives as long as the process, so that the next loop does what is asked for while none runs.

    `prepare(database_up)` reads the configuration and tries out everything that it needs. It returns False if the
    worker's own settings have not changed, and the shop's cannot be read because the database is away. It raises
    ZitharaWorkerError or OSError if the configuration cannot be used.
    """

    def __init__(self, prepare: Callable[[bool], bool], *, monotonic: Callable[[], float]) -> None:
        self._prepare = prepare
        self._monotonic = monotonic
        self._next_at = 0.0
        self._complain_at = 0.0
        self.wanted = False
        #: Why the last configuration that was tried cannot be used, for people; None if it can be
        self.problem: str | None = None

    def ask(self) -> None:
        """Tries the configuration with the next turn. Takes no lock, so a signal handler may call it."""
        self._next_at = 0.0
        self.wanted = True

    def want(self) -> None:
        """Tries the configuration with the next turn, but not sooner than RETRY_SECONDS after the last try."""
        self.wanted = True

    def is_ready(self, *, database_up: bool) -> bool:
        """Tries the configuration if one is wanted and it is time. True: the loop may end, and its successor uses the
        new configuration."""
        now = self._monotonic()
        if not self.wanted or now < self._next_at:
            return False
        # Reset before the try, so that a request that arrives during it causes another one.
        self.wanted, self._next_at = False, now + RETRY_SECONDS
        try:
            ready = self._prepare(database_up)
        except (ZitharaWorkerError, OSError) as error:
            self.failed(str(error))
            ready = False
        except Exception:
            # The loop goes on: it may hold messages, and a defect in here must not end it.
            log.exception("trying the changed configuration failed", extra={"event": "internal_error"})
            self.failed("an error in the worker, see its log")
            ready = False
        if ready:
            self.problem = None
        else:
            self.wanted = True
        return ready

    def failed(self, problem: str) -> None:
        """Logs a new problem at once, and one that lasts once a minute."""
        now = self._monotonic()
        if problem != self.problem or now >= self._complain_at:
            self._complain_at = now + LOG_SECONDS
            log.error(
                "the changed configuration cannot be used; going on with the one in force, and trying again",
                extra={"event": "reload_failed", "detail": problem},
            )
        self.problem = problem
