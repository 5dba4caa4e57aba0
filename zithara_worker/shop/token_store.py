"""The access token that the PHP module and all workers share, in the active row of zithara_webhook_config."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from zithara_worker.database import locks
from zithara_worker.database.session import Database
from zithara_worker.errors import ShopError, ZitharaWorkerError
from zithara_worker.zithara.tokens import StoredToken

LOCK = "token"
#: Seconds after which a worker that died while it renewed the token is in nobody's way; longer than a token request.
LEASE_SECONDS = 60.0


class DatabaseTokenStore:
    """Each use has a session of its own, open only meanwhile. `owner`: unique among the workers of a shop."""

    def __init__(self, open_database: Callable[[], Database], *, owner: str) -> None:
        self._open_database = open_database
        self._owner = owner

    @contextmanager
    def opened(self) -> Iterator[TokenRow]:
        """The row, until the block ends; a lock that was taken meanwhile is freed then."""
        database = self._open_database()
        row = TokenRow(database, self._owner)
        try:
            yield row
        finally:
            row.unlock()
            database.close()


class TokenRow:
    """The active row, in one session."""

    def __init__(self, database: Database, owner: str) -> None:
        self._database = database
        self._owner = owner
        self._locked = False

    def load(self) -> StoredToken | None:
        """The token with its expiry, seconds since the epoch; None when there is none."""
        rows = self._database.rows("token_load")
        if not rows or not rows[0]["access_token"] or rows[0]["expires_at"] is None:
            return None
        return StoredToken(token=str(rows[0]["access_token"]), expires_at_utc=float(rows[0]["expires_at"]))

    def save(self, token: StoredToken) -> None:
        """Writes the token back for PHP and the other workers. Raises ShopError when no row is active."""
        rows = self._database.rows("token_load")
        if not rows:
            raise ShopError(
                f"no active row in {self._database.prefix}zithara_webhook_config to keep the access token in: "
                "activate a configuration in the shop's admin"
            )
        self._database.execute(
            "token_save", token=token.token, expires_at=int(token.expires_at_utc), config_id=rows[0]["config_id"]
        )

    def lock(self) -> bool:
        """Whether nobody else may renew the token now."""
        self._locked = locks.take(self._database, LOCK, owner=self._owner, lease_seconds=LEASE_SECONDS)
        return self._locked

    def unlock(self) -> None:
        if self._locked:
            self._locked = False
            # A database that went away meanwhile: the lease ends by itself.
            with suppress(ZitharaWorkerError):
                locks.free(self._database, LOCK, owner=self._owner)
