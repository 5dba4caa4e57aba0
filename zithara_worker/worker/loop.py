"""The order of the steps of a turn: collect, settle, run duties, claim and start. Knows neither SQL nor HTTP.

One thread runs the loop and owns the database session. Delivery threads send requests, and put the outcomes into the
inbox. A turn waits only for the inbox; an outcome, a request of the operator, or the time of the next duty ends the
wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

from zithara_worker.delivery.courier import Courier
from zithara_worker.delivery.threads import DeliveryPool
from zithara_worker.errors import Contention, DatabaseRefused, DatabaseUnavailable, ZitharaWorkerError
from zithara_worker.limits import End, Limits
from zithara_worker.messages import Evidence, Outcome, OutcomeKind
from zithara_worker.monitor.health import LoopStatus
from zithara_worker.monitor.service_manager import ServiceManager
from zithara_worker.queue.held import Held, Stage
from zithara_worker.queue.renewal import Renewal
from zithara_worker.reasons import INTERNAL_ERROR, LATE, SHUTDOWN
from zithara_worker.settings.reload import Reload
from zithara_worker.worker.claiming import Claiming
from zithara_worker.worker.duties import LOG_INTERVAL, Duties, Timer
from zithara_worker.worker.inbox import Inbox
from zithara_worker.worker.settling import Settling

log = logging.getLogger(__name__)

#: Seconds between two attempts to reach the database: at first, then doubled up to the maximum.
FIRST_DATABASE_PAUSE = 0.1
MAX_DATABASE_PAUSE = 5.0
#: Seconds that a stop may take in addition to shutdown_timeout, because the last outcomes are written after it.
STOP_MARGIN_SECONDS = 15.0
#: Longest wait for an answer while the loop ends, so that it notices in time that the database is back.
ENDING_WAIT_SECONDS = 0.2


class Loop:
    """Claims, starts and settles messages until it is asked to stop or a limit is reached."""

    def __init__(
        self,
        *,
        # what the worker holds, and what arrives
        held: Held,
        inbox: Inbox,
        # the steps of a turn, in this order
        settling: Settling,
        duties: Duties,
        claiming: Claiming,
        # how requests are sent
        pool: DeliveryPool,
        courier: Courier,
        # when the loop ends
        limits: Limits,
        shutdown_timeout_seconds: float,
        reload: Reload,
        # who is told: that leases must be checked now, and how the loop is
        renewal: Renewal,
        service_manager: ServiceManager,
    ) -> None:
        self._held = held
        self._inbox = inbox
        self._settling = settling
        self._duties = duties
        self._claiming = claiming
        self._pool = pool
        self._courier = courier
        self._limits = limits
        self._shutdown_timeout = shutdown_timeout_seconds
        self._reload = reload
        self._renewal = renewal
        self._service_manager = service_manager
        self._monotonic = held.clock
        self._started_at = self._turned_at = self._monotonic()
        self._end: End | None = None
        #: Until when the database is left alone after an error; None: it answered last time
        self._database_down_until: float | None = None
        self._database_pause = FIRST_DATABASE_PAUSE
        self._refused = False
        #: Why the last turn failed though the database answers, "" if it did not
        self.turn_problem = ""
        #: Whether the last settlement may have been committed although an error was raised
        self._in_doubt = False
        self._complain = Timer(LOG_INTERVAL)

    # ---------------------------------------------------------------- from outside

    @property
    def settled_count(self) -> int:
        """Messages settled for good or for a retry; those that were only released do not count."""
        return self._settling.settled_count

    def status(self) -> LoopStatus:
        """From any thread."""
        return LoopStatus(
            turned_at=self._turned_at,
            longest_wait_seconds=max(self._duties.poll_interval_seconds, MAX_DATABASE_PAUSE),
            database_up=self._database_down_until is None,
            consumable=self._duties.consumable,
            paused=tuple(sorted(self._duties.paused)),
            oldest_request_seconds=self._courier.oldest_seconds,
            turn_problem=self.turn_problem,
        )

    def run(self) -> End:
        """Runs until it ends. Every message that it held is then settled or released, unless the database stays
        away."""
        while self._end is None:
            self.turn()
        if self._end is End.RELOAD:
            self._service_manager.reloading()
        else:
            self._service_manager.stopping(within_seconds=self._shutdown_timeout + STOP_MARGIN_SECONDS)
        self._finish()
        return self._end

    def turn(self) -> None:
        """One turn: settle the results that arrived, run the duties that are due, claim messages for free threads."""
        self._collect(self._seconds_until_due())
        if self._inbox.stop_requested:
            self._end = self._end or End.STOPPED
        if self._reload.is_ready(database_up=self._database_down_until is None):
            self._end = self._end or End.RELOAD
        else:
            self._with_database(self._settle_and_claim)
            # Also if the database is not available.
            self._end = self._end or self._limit_reached()

    def _settle_and_claim(self) -> None:
        self._settle()
        self._duties.run(in_hand=len(self._held))
        self._end = self._end or self._duties.end
        if self._duties.shop_changed:
            self._reload.want()
        if self._end is None:
            self._claiming.claim(self._messages_left())
        self._end = self._end or self._limit_reached() or self._empty()

    def _settle(self) -> None:
        self._settling.settle(in_doubt=self._in_doubt, ending=self._end is not None)

    # ---------------------------------------------------------------- waiting

    def _seconds_until_due(self) -> float:
        """How long to wait for the inbox, unless something arrives before."""
        now = self._monotonic()
        if self._database_down_until is not None:
            until = self._database_down_until
        elif self._inbox.results or self._claiming.may_continue:
            return 0.0
        else:
            until = self._duties.next_at
        if self._limits.max_runtime_seconds is not None:
            until = min(until, self._started_at + self._limits.max_runtime_seconds)
        if self._service_manager.interval_seconds is not None:
            until = min(until, now + self._service_manager.interval_seconds)
        return max(0.0, until - now)

    def _collect(self, seconds: float) -> None:
        self._inbox.collect(seconds)
        self._service_manager.alive()
        self._held.turned()
        self._turned_at = self._monotonic()

    # ---------------------------------------------------------------- the database comes and goes

    def _with_database(self, steps: Callable[[], None]) -> None:
        """Runs these steps, unless the database is left alone for a while after an error. What could not be written is
        written with the next turn."""
        if self._database_down_until is not None and self._monotonic() < self._database_down_until:
            return
        try:
            if self._duties.reconnected() or self._in_doubt:
                # Leases are checked, and messages of a claim in doubt put back, before more is lost by waiting.
                self._in_doubt = True
                self._renewal.wake()
            steps()
        except Contention as error:
            self._log_contention(error)
        except DatabaseUnavailable as error:
            self._database_is_away(error)
        except Exception as error:
            self._met_a_defect(error)
        else:
            self._database_answered()

    def _database_answered(self) -> None:
        if self._database_down_until is not None:
            log.info("database available again", extra={"event": "database_back"})
        self._in_doubt = False
        self.turn_problem = ""
        self._database_down_until = None
        self._database_pause = FIRST_DATABASE_PAUSE

    def _log_contention(self, error: Contention) -> None:
        """Nothing is in doubt: the transaction was rolled back."""
        now = self._monotonic()
        if self._complain.due(now):
            self._complain.set(now)
            log.warning(
                "other sessions hold rows that the worker needs; it goes on trying",
                extra={"event": "database_contention", "detail": str(error), "in_hand": len(self._held)},
            )

    def _database_is_away(self, error: DatabaseUnavailable) -> None:
        now = self._monotonic()
        refused = isinstance(error, DatabaseRefused)
        if refused:
            # The configuration may have the new password by now.
            self._reload.want()
        if self._complain.due(now) or (refused and not self._refused):
            self._complain.set(now)
            log.warning(
                "database not available, waiting for it",
                extra={"event": "database_away", "detail": str(error), "in_hand": len(self._held)},
            )
        self._refused = refused
        self.turn_problem = ""
        self._leave_database_alone(now)

    def _met_a_defect(self, error: Exception) -> None:
        """Keeps what is held and tries again after a pause that grows. To end the worker would leave its messages to
        their leases, and the next worker would meet the same defect."""
        now = self._monotonic()
        if self._complain.due(now):
            self._complain.set(now)
            log.error(
                "a turn of the loop failed; what is in hand is kept, and the worker tries again",
                exc_info=None if isinstance(error, ZitharaWorkerError) else error,
                extra={"event": "turn_failed", "detail": str(error), "in_hand": len(self._held)},
            )
        # What a defect's own text may hold is for the log, which masks it.
        if isinstance(error, ZitharaWorkerError):
            self.turn_problem = error.seen
        else:
            self.turn_problem = f"a defect of this program ({type(error).__name__}), which its log has"
        with suppress(ZitharaWorkerError):
            self._duties.register(len(self._held))
        # Messages of a claim that was not started: nobody else would ever settle them.
        for message in self._held.messages(Stage.CLAIMED):
            self._inbox.add(message, Outcome(kind=OutcomeKind.RELEASED, reason=INTERNAL_ERROR))
        self._leave_database_alone(now)

    def _leave_database_alone(self, now: float) -> None:
        self._in_doubt = True
        self._database_down_until = now + self._database_pause
        self._database_pause = min(self._database_pause * 2, MAX_DATABASE_PAUSE)

    # ---------------------------------------------------------------- the end

    def _messages_left(self) -> int | None:
        """How many messages may be in hand before max_messages is reached; None: any number."""
        limit = self._limits.max_messages
        return None if limit is None else limit - self._settling.settled_count

    def _limit_reached(self) -> End | None:
        return self._limits.reached(settled=self._settling.settled_count, seconds=self._turned_at - self._started_at)

    def _empty(self) -> End | None:
        """EMPTY if the loop shall end when nothing is left, and nothing is."""
        if not self._limits.stop_when_empty or self._held:
            return None
        if self._duties.consumable and self._monotonic() < self._settling.released_until:
            return None
        return End.EMPTY if self._duties.nothing_left() else None

    def _finish(self) -> None:
        """Ends in order: releases what was not sent, waits for answers up to shutdown_timeout, releases the rest."""
        deadline = self._monotonic() + self._shutdown_timeout
        self._courier.shutdown()
        log.info("stopping", extra={"event": "stopping", "in_hand": len(self._held)})
        for message in self._pool.drain():
            self._inbox.add(message, Outcome(kind=OutcomeKind.RELEASED, reason=SHUTDOWN))
        while self._held and self._monotonic() < deadline:
            at_once = self._inbox.results and self._database_down_until is None
            self._collect(0.0 if at_once else min(ENDING_WAIT_SECONDS, deadline - self._monotonic()))
            self._with_database(self._settle)
        self._release_unanswered()
        self._with_database(self._settle)
        if self._held:
            log.warning(
                "stopped without the database: leases bring these messages back",
                extra={"event": "left_behind", "count": len(self._held)},
            )

    def _release_unanswered(self) -> None:
        for message in self._held.messages(Stage.CLAIMED, Stage.HANDED_OUT):
            # Its thread may still wait for a token, or send again after a reset: not after another worker has the
            # message.
            self._held.revoke(message)
            log.warning("no answer within shutdown_timeout: released", extra={"event": "late", **message.log_fields})
            # Its request may have left, and may still be processed.
            self._inbox.add(message, Outcome(kind=OutcomeKind.RELEASED, reason=LATE, evidence=Evidence.PATH))
