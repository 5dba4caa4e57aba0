"""The leases of one worker: renewed, told when one was lost, and freed when nobody holds its message."""

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

#: Seconds to the next try of a renewal that failed, doubling up to a third of a lease.
RETRY_SECONDS = 0.1
#: Seconds to wait at the end for a statement under way.
STOP_SECONDS = 2.0
#: Seconds between two lines about renewals that fail.
LOG_SECONDS = 60.0


class Leases:
    """Renews what a worker holds, and brings it in step with the tables. One thread and one session."""

    def __init__(self, database: Database, held: Held) -> None:
        self._database = database
        self._held = held

    def renew(self) -> None:
        """Extends every lease that is still ours, marks what was lost, frees what nobody holds. Raises
        DatabaseUnavailable; the leases then run out by themselves.

        A row stays ours until somebody takes it over, even past `lease_until`. Three statements and one a queue,
        whatever is held.
        """
        held = self._held.renewable()
        valid_until = self._held.clock() + self._held.lease_seconds
        by_queue: dict[int, list[tuple[str, int]]] = defaultdict(list)
        for message in held:
            by_queue[message.queue_id].append((message.group_key, message.claim))
        for queue_id, claims in by_queue.items():
            self._database.again_on_contention(partial(self._extend, queue_id, sorted(claims)))
        # Read after the extension: a row that is found now was found by it.
        rows = self._database.rows("leases_held", worker_id=self._held.worker_id)
        found = {(int(row["id"]), int(row["claim"])) for row in rows}
        self._held.renewed([each for each in held if (each.id, each.claim) in found], valid_until)
        for message in self._held.lose(each for each in held if (each.id, each.claim) not in found):
            log.warning("lease lost", extra={"event": "lease_lost", **message.log_fields})
        freed = sum(self._free(row) for row in rows if self._held.is_orphan(int(row["id"]), int(row["claim"])))
        if freed:
            log.info(
                "put back messages of a claim whose commit was in doubt", extra={"event": "reconciled", "count": freed}
            )

    def _extend(self, queue_id: int, claims: list[tuple[str, int]]) -> None:
        self._database.execute(
            "lease_renew",
            queue_id=queue_id,
            group_keys=[group_key for group_key, _ in claims],
            worker_id=self._held.worker_id,
            claims=claims,
            lease_us=int(self._held.lease_seconds * 1e6),
        )

    def _free(self, row: dict[str, Any]) -> bool:
        """Puts back a message that a claim brought without our knowing; whether it was still there.

        It was never delivered, so it goes back as it was, as far as that is still known.
        """
        return self._database.again_on_contention(partial(self._put_back, row))

    def _put_back(self, row: dict[str, Any]) -> bool:
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
    """Renews in a thread and with a session of its own, every third of a lease: no turn of the loop is too long for it.

    `database` is closed at the end. Time is that of the leases, looked at once a second, so that a machine that slept
    renews as soon as it wakes.
    """

    def __init__(self, database: Database, held: Held) -> None:
        self._database = database
        self._held = held
        self._leases = Leases(database, held)
        self._interval = held.lease_seconds / 3
        self._awake = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="lease-renewal", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Something is in doubt: look now."""
        self._awake.set()

    def stop(self) -> None:
        """Ends; waits a moment for a statement under way."""
        self._ended = True
        self._awake.set()
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        due_at, complain_at = 0.0, 0.0
        try:
            while not self._ended:
                if self._awake.wait(min(1.0, self._interval)) or self._held.clock() >= due_at:
                    self._awake.clear()
                    complain_at = self._try(complain_at)
                    due_at = self._held.clock() + self._interval
        finally:
            self._database.close()

    def _try(self, complain_at: float) -> float:
        """Renews, and again until it succeeds; when to complain again."""
        pause = RETRY_SECONDS
        while not self._ended:
            now = self._held.clock()
            try:
                if not self._held.is_abandoned:
                    self._leases.renew()
                    return complain_at
                what = "the loop has not turned for minutes: its leases are left to run out, so that others take over"
                extra: dict[str, Any] = {"event": "leases_abandoned", "in_hand": len(self._held)}
            except ZitharaWorkerError as error:
                what = "leases cannot be renewed; trying again"
                extra = {"event": "renewal_failed", "detail": str(error), "in_hand": len(self._held)}
            except Exception:
                # The guard of the thread: a defect must not end it, as everything in hand would be delivered twice.
                log.exception("renewing leases met a defect of this program", extra={"event": "internal_error"})
                what, extra = "", {}
            if what and len(self._held) and now >= complain_at:
                complain_at = now + LOG_SECONDS
                log.warning(what, extra=extra)
            self._awake.wait(min(pause, self._interval))
            self._awake.clear()
            pause *= 2
        return complain_at
