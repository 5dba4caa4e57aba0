"""Stand-ins for what surrounds the API's client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import httpx

from zithara_worker.settings.values import Secret
from zithara_worker.zithara.answers import Answer
from zithara_worker.zithara.http import MAY_SEND, send, usable_url


class MemoryStore:
    """The shop's token row and its lock. Counts, and says whether somebody saved without holding the lock."""

    def __init__(self, token: tuple[Secret, float] | None = None) -> None:
        self.token = token
        self.loads = 0
        self.saved_unlocked = False
        #: Whether a worker that is not among those of the test holds the lock.
        self.locked_elsewhere = False
        self._lock = threading.Lock()

    @contextmanager
    def opened(self) -> Iterator[MemoryRow]:
        row = MemoryRow(self)
        try:
            yield row
        finally:
            if row.locked:
                self._lock.release()

    def load(self) -> tuple[Secret, float] | None:
        self.loads += 1
        return self.token

    def save(self, token: Secret, expires_at_utc: float) -> None:
        self.token = (token, expires_at_utc)

    def lock(self) -> bool:
        return not self.locked_elsewhere and self._lock.acquire(blocking=False)


class MemoryRow:
    """One use of a MemoryStore."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.locked = False

    def load(self) -> tuple[Secret, float] | None:
        return self._store.load()

    def save(self, token: Secret, expires_at_utc: float) -> None:
        self._store.saved_unlocked |= not self.locked
        self._store.save(token, expires_at_utc)

    def lock(self) -> bool:
        self.locked = self.locked or self._store.lock()
        return self.locked


def exchange(
    transport: httpx.BaseTransport,
    method: str,
    url: str,
    body: bytes = b"",
    *,
    headers: Mapping[str, str] | None = None,
    may_send: Callable[[], bool] | None = None,
) -> Answer:
    """One exchange as the API's client makes it."""
    extensions = {} if may_send is None else {MAY_SEND: may_send}
    request = httpx.Request(method, usable_url(url), headers=headers, content=body, extensions=extensions)
    return send(transport, request)


class Pauses(list[float]):
    """Takes no time, and remembers what it was asked for."""

    def __call__(self, seconds: float) -> bool:
        self.append(seconds)
        return False
