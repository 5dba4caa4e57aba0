"""Renews the leases of one worker in a thread of its own. Finds leases that were lost, and leases without a message."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from datetime import datetime, timezone
from functools import partial
from typing import Any

from zithara_worker.database.session import Database
from zithara_worker.errors import ZitharaWorkerError
from zithara_worker.queue.held import Held
from zithara_worker.queue.statuses import Status

log = logging.getLogger(__name__)

#: Seconds until a renewal that failed is tried again, doubling up to a third of a lease.
RETRY_SECONDS = 0.1
#: Seconds that `stop` waits for a statement under way.
STOP_SECONDS = 2.0
#: Seconds between two log lines about renewals that fail.
LOG_SECONDS = 60.0


class Leases:
    """Compares what the worker holds with what the tables say. Not thread-safe."""

    def __init__(self, database: Database, held: Held) -> None:
        self._database = database
        self._held = held

    def renew(self) -> None:
        """Extends every lease that is still ours, marks lost ones, and puts back messages of leases that nobody knows.

        Raises DatabaseUnavailable; then the leases run out. A row stays ours until another worker takes it over, even
        after `lease_until`. One statement for each queue, and one for all, whatever the number of messages.
        """
        with self._database.in_step():
            self._renew()

    def _renew(self) -> None:
        held = self._held.renewable()
        valid_until = self._held.clock() + self._held.lease_seconds
        by_queue: dict[int, list[tuple[str, int]]] = defaultdict(list)
        for message in held:
            by_queue[message.queue_id].append((message.group_key, message.claim))
        for queue_id, claims in by_queue.items():
            claims.sort()
            self._database.execute(
                "lease_renew",
                queue_id=queue_id,
                group_keys=[group_key for group_key, _ in claims],
                worker_id=self._held.worker_id,
                claims=claims,
                lease_us=int(self._held.lease_seconds * 1e6),
            )
        # Read after the extension, so a row that is found now has been extended.
        rows = self._database.rows("leases_held", worker_id=self._held.worker_id)
        found = {(int(row["id"]), int(row["claim"])) for row in rows}
        self._held.renewed([each for each in held if (each.id, each.claim) in found], valid_until)
        for message in self._held.lose(each for each in held if (each.id, each.claim) not in found):
            log.warning("lease lost", extra={"event": "lease_lost", **message.log_fields})
        orphans = [row for row in rows if self._held.is_orphan(int(row["id"]), int(row["claim"]))]
        count = sum(self._database.again_on_contention(partial(self._put_back, row)) for row in orphans)
        if count:
            log.info(
                "put back messages of a claim whose commit was in doubt", extra={"event": "reconciled", "count": count}
            )

    def _put_back(self, row: dict[str, Any]) -> bool:
        """Puts back the message of a claim whose COMMIT was in doubt; whether the lease was still ours.

        The message was never sent. It gets the status that its number of trials suggests, because the status before the
        claim is not known any more.
        """
        id, ours = int(row["id"]), (self._held.worker_id, int(row["claim"]))
        group = {"queue_id": int(row["queue_id"]), "group_keys": [row["group_key"]]}
        with self._database.transaction():
            found = self._database.rows("settle_lock", ids=[id])
            now = self._database.rows("settle_groups", **group)
            if not now or (now[0]["worker_id"], int(now[0]["claim"])) != ours:
                return False
            if found and int(found[0]["status"]) == Status.IN_PROGRESS:
                trials = int(found[0]["number_of_trials"])
                self._database.execute(
                    "settle_release",
                    ids=[id],
                    number_of_trials=trials,
                    status=int(Status.RETRY_REQUIRED if trials else Status.NEW),
                    updated_at=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S"),
                )
            self._database.execute(
                "group_wait", **group, worker_id=ours[0], claims=[(row["group_key"], ours[1])], delay_us=0
            )
        return True


class Renewal:
    """The thread that renews every third of a lease. It has its own session, so a long turn of the loop loses none.

    It looks at the clock of leases once a second, so that a machine that was suspended renews as soon as it runs again.
    `database` is closed at the end.
    """

    def __init__(self, database: Database, held: Held) -> None:
        self._database = database
        self._held = held
        self._leases = Leases(database, held)
        self._interval = held.lease_seconds / 3
        self._awake = threading.Event()
        self._ended = False
        self._complain_at = 0.0
        self._thread = threading.Thread(target=self._run, name="lease-renewal", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Renews at once, because a lease or a COMMIT is in doubt."""
        self._awake.set()

    def stop(self) -> None:
        """Ends the thread. Waits up to STOP_SECONDS for a statement under way."""
        self._ended = True
        self._awake.set()
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        due_at = 0.0
        try:
            while not self._ended:
                if self._awake.wait(min(1.0, self._interval)) or self._held.clock() >= due_at:
                    self._awake.clear()
                    self._renew()
                    due_at = self._held.clock() + self._interval
        finally:
            self._database.close()

    def _renew(self) -> None:
        """Renews, and tries again until it succeeds."""
        pause = RETRY_SECONDS
        while not self._ended:
            try:
                if not self._held.is_abandoned:
                    self._leases.renew()
                    return
                self._complain(
                    "the loop has not turned for minutes: its leases run out, and other workers take over",
                    event="leases_abandoned",
                )
            except ZitharaWorkerError as error:
                self._complain("leases cannot be renewed; trying again", event="renewal_failed", detail=str(error))
            except Exception:
                # A defect must not end the thread: other workers would deliver everything in hand a second time.
                log.exception("renewing leases met a defect of this program", extra={"event": "internal_error"})
            self._awake.wait(min(pause, self._interval))
            self._awake.clear()
            pause *= 2

    def _complain(self, what: str, **fields: str) -> None:
        now = self._held.clock()
        if len(self._held) and now >= self._complain_at:
            self._complain_at = now + LOG_SECONDS
            log.warning(what, extra={**fields, "in_hand": len(self._held)})
