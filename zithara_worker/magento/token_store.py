"""The access token that the PHP module and all workers share, in the active row of zithara_webhook_config."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock

from zithara_worker.errors import ShopError
from zithara_worker.magento.database import Database
from zithara_worker.zithara.tokens import StoredToken

#: Seconds to wait for another worker that is refreshing; longer than a token request may take.
LOCK_SECONDS = 15


class DatabaseTokenStore:
    """Loads and saves the token through a session of its own, open only while somebody needs it.

    Delivery threads call it; the token source lets one of them in at a time, and the lock here makes sure.
    """

    def __init__(self, open_database: Callable[[], Database], *, database_name: str) -> None:
        self._open_database = open_database
        self._database: Database | None = None
        self._lock = RLock()
        self._lock_name = "zithara-token-" + hashlib.sha256(database_name.encode()).hexdigest()[:32]

    def load(self) -> StoredToken | None:
        """The token of the active row with its expiry, seconds since the epoch; None when there is none."""
        with self._session() as database:
            rows = database.rows("token_load")
        if not rows or not rows[0]["access_token"] or rows[0]["expires_at"] is None:
            return None
        return StoredToken(token=str(rows[0]["access_token"]), expires_at_utc=float(rows[0]["expires_at"]))

    def save(self, token: StoredToken) -> None:
        """Writes the token back for PHP and the other workers. Raises ShopError when no row is active."""
        with self._session() as database:
            rows = database.rows("token_load")
            if not rows:
                raise ShopError(
                    f"no active row in {database.prefix}zithara_webhook_config to keep the access token in: "
                    "activate a configuration in the shop's admin"
                )
            database.execute(
                "token_save", token=token.token, expires_at=int(token.expires_at_utc), config_id=rows[0]["config_id"]
            )

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Holds off the other workers' refreshes. A lock not had in time is no reason not to deliver: go on without."""
        with self._session() as database:
            got = database.rows("token_lock", name=self._lock_name, seconds=LOCK_SECONDS)[0]["got"]
            try:
                yield
            finally:
                if got:
                    database.rows("token_unlock", name=self._lock_name)

    @contextmanager
    def _session(self) -> Iterator[Database]:
        """The open session; the outermost user closes it."""
        with self._lock:
            if self._database is not None:
                yield self._database
                return
            self._database = self._open_database()
            try:
                yield self._database
            finally:
                self._database.close()
                self._database = None
