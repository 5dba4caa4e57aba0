"""The leases of one worker: renewed all at once, and told when one was lost."""

from __future__ import annotations

from collections.abc import Callable, Collection

from zithara_worker.magento.database import Database
from zithara_worker.messages import Message


class Leases:
    """Renews what this worker holds. A row stays ours until somebody takes it over, even past `lease_until`."""

    def __init__(
        self, database: Database, *, worker_id: str, lease_seconds: float, monotonic: Callable[[], float]
    ) -> None:
        self._database = database
        self._worker_id = worker_id
        self._lease_seconds = lease_seconds
        self._monotonic = monotonic

    def renew(self, held: Collection[Message]) -> list[Message]:
        """Extends all leases with one statement; the messages whose lease was lost, which must not be sent any more.

        Raises DatabaseUnavailable; the leases then run out by themselves.
        """
        if not held:
            return []
        valid_until = self._monotonic() + self._lease_seconds
        found = self._database.execute(
            "lease_renew", worker_id=self._worker_id, lease_us=int(self._lease_seconds * 1e6)
        )
        lost: list[Message] = []
        if found < len(held):
            still = {int(row["id"]) for row in self._database.rows("leases_held", worker_id=self._worker_id)}
            lost = [message for message in held if message.id not in still]
        gone = {message.id for message in lost}
        for message in held:
            message.lease.valid_until = 0.0 if message.id in gone else valid_until
        return lost
