"""A stretch of network between a worker and the database that fails on demand: silence, delays, cuts around a COMMIT.

Knows just enough of the MySQL protocol: a packet's header and COM_QUERY.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from enum import Enum
from pathlib import Path
from types import TracebackType

_COM_QUERY = b"\x03"
_CLIENT_SSL = 0x0800


class Cut(Enum):
    """Where the connection ends, as seen from the COMMIT."""

    #: The server never gets it, and rolls back
    BEFORE = "before COMMIT"
    #: The server has committed, and its answer is lost
    AFTER = "after COMMIT"


class Wire:
    """Listens on a loopback port that the system chose and passes everything on to the server's socket.

    As a context manager it is up from entry to end.
    """

    def __init__(self, server_socket: Path) -> None:
        self._server_socket = server_socket
        self._lock = threading.Lock()
        self._silent = False
        self._cut: tuple[bytes, Cut] | None = None
        self._delay: tuple[bytes, float, int] | None = None
        #: Set when a cut that was ordered has been made
        self.was_cut = threading.Event()
        #: Set when something has been swallowed
        self.has_swallowed = threading.Event()
        self._pairs: list[_Pair] = []
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self.port = 0

    def __enter__(self) -> Wire:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._acceptor = threading.Thread(target=self._accept, args=(self._listener,), name="wire", daemon=True)
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        if self._acceptor is not None:
            self._acceptor.join()
        for pair in self._pairs:
            pair.end()

    def fall_silent(self) -> None:
        """The connections that are open now stay open, but nothing gets through any more; new ones work."""
        with self._lock:
            for pair in self._pairs:
                pair.silent = True

    def cut_at_commit(self, *, of: str, where: Cut) -> None:
        """Once: the connection on which a statement containing `of` is sent ends at the COMMIT that follows."""
        with self._lock:
            self._cut = (of.encode(), where)
            self.was_cut.clear()

    def take_cut(self, query: bytes) -> Cut | None:
        """The cut that was ordered, if this statement is in the transaction it was ordered for."""
        with self._lock:
            if self._cut is None or self._cut[0] not in query:
                return None
            (_, where), self._cut = self._cut, None
            return where

    def delay(self, *, of: str, seconds: float, times: int) -> None:
        """The next `times` statements containing `of` reach the server that much later; other connections go on."""
        with self._lock:
            self._delay = (of.encode(), seconds, times)

    @property
    def delays_left(self) -> int:
        """How many of the delays that were ordered have not begun."""
        return self._delay[2] if self._delay else 0

    def take_delay(self, query: bytes) -> float:
        """Seconds by which this statement is late."""
        with self._lock:
            if self._delay is None or self._delay[0] not in query:
                return 0.0
            of, seconds, times = self._delay
            self._delay = (of, seconds, times - 1) if times > 1 else None
            return seconds

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # closed: the end
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(str(self._server_socket))
            except OSError:  # the server is down: the client learns it as a lost connection
                server.close()
                client.close()
                continue
            pair = _Pair(self, client, server)
            with self._lock:
                self._pairs.append(pair)
            pair.start()


def _without_tls(greeting: bytes) -> bytes:
    """The server's first packet without its offer of TLS, which a client would take up and hide its statements."""
    version_ends = greeting.find(b"\0", 5)
    # After the version: thread id (4), random bytes (8), a zero, then the lower half of the capabilities.
    place = version_ends + 1 + 4 + 8 + 1 + 1
    if version_ends < 0 or len(greeting) <= place:
        return greeting  # an error instead of a greeting
    return greeting[:place] + bytes([greeting[place] & ~(_CLIENT_SSL >> 8)]) + greeting[place + 1 :]


class _Pair:
    """One connection: two threads, one for each direction."""

    def __init__(self, wire: Wire, client: socket.socket, server: socket.socket) -> None:
        self._wire = wire
        self._client = client
        self._server = server
        self.silent = False
        self._cut_next: Cut | None = None
        self._cut_answer = False
        self._threads = [
            threading.Thread(target=self._forward, name="wire-to-server", daemon=True),
            threading.Thread(target=self._backward, name="wire-to-client", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._break()
        for thread in self._threads:
            thread.join()
        self._client.close()
        self._server.close()

    def _break(self) -> None:
        for each in (self._client, self._server):
            with suppress(OSError):  # the other side was faster
                each.shutdown(socket.SHUT_RDWR)

    def _forward(self) -> None:
        pending = b""
        with suppress(OSError):  # an end of either side is the end of the pair
            while chunk := self._client.recv(65536):
                if self.silent:
                    self._wire.has_swallowed.set()
                    continue
                pending += chunk
                # Whole packets, so that a statement is seen in one piece.
                while len(pending) >= 4 and len(pending) >= (size := 4 + int.from_bytes(pending[:3], "little")):
                    packet, pending = pending[:size], pending[size:]
                    if not self._pass(packet):
                        return
        self._break()

    def _pass(self, packet: bytes) -> bool:
        query = packet[5:] if packet[4:5] == _COM_QUERY else b""
        if self._cut_next is not None and query.upper() == b"COMMIT":
            if self._cut_next is Cut.BEFORE:
                self._break()
                self._wire.was_cut.set()
                return False
            self._cut_answer = True
        self._cut_next = self._wire.take_cut(query) or self._cut_next
        if delay := self._wire.take_delay(query):
            time.sleep(delay)
        self._server.sendall(packet)
        return True

    def _backward(self) -> None:
        with suppress(OSError):
            self._client.sendall(_without_tls(self._server.recv(65536)))
            while chunk := self._server.recv(65536):
                if self._cut_answer:  # the server has answered, so it has committed
                    self._break()
                    self._wire.was_cut.set()
                    return
                if not self.silent:
                    self._client.sendall(chunk)
        self._break()
