"""Stand-ins for what surrounds the API's client; a server that says exactly the bytes a test wants among them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count

import httpx

from zithara_worker.zithara.answers import Answer
from zithara_worker.zithara.http import MAY_SEND, send, usable_url
from zithara_worker.zithara.tokens import StoredToken

#: Gets an open connection and its number (1 = first), and does with it what the test wants.
Script = Callable[[socket.socket, int], None]


class MemoryStore:
    """The shop's token row and its lock. Counts, and says whether somebody saved without holding the lock."""

    def __init__(self, token: StoredToken | None = None) -> None:
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

    def load(self) -> StoredToken | None:
        self.loads += 1
        return self.token

    def save(self, token: StoredToken) -> None:
        self.token = token

    def lock(self) -> bool:
        return not self.locked_elsewhere and self._lock.acquire(blocking=False)


class MemoryRow:
    """One use of a MemoryStore."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.locked = False

    def load(self) -> StoredToken | None:
        return self._store.load()

    def save(self, token: StoredToken) -> None:
        self._store.saved_unlocked |= not self.locked
        self._store.save(token)

    def lock(self) -> bool:
        self.locked = self.locked or self._store.lock()
        return self.locked


class RawServer:
    """Accepts on loopback and runs a script on each connection, in a thread of its own, then closes it."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._numbers = count(1)
        self.connection_count = 0
        self.stopping = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1/order"

    def stop(self) -> None:
        self.stopping.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connection_count += 1
            self._open.append(connection)
            thread = threading.Thread(target=self._run, args=(connection, next(self._numbers)), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, connection: socket.socket, number: int) -> None:
        with connection, suppress(OSError):
            self._script(connection, number)


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


def read_request(connection: socket.socket) -> bytes:
    """One request as it came, head and body; b"" when the client is gone."""
    got = b""
    while b"\r\n\r\n" not in got:
        chunk = connection.recv(65536)
        if not chunk:
            return b""
        got += chunk
    head, _, body = got.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            while len(body) < int(line.partition(b":")[2]):
                body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


class Clock:
    """Seconds since the epoch that a test moves."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class Pauses(list[float]):
    """Takes no time, and remembers what it was asked for."""

    def __call__(self, seconds: float) -> bool:
        self.append(seconds)
        return False
