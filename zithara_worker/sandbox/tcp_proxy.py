"""A TCP proxy between a worker and the database that fails on demand.

It stops forwarding, delays statements, or cuts the connection at a COMMIT. It reads only what it needs of the MySQL
protocol: packet headers and COM_QUERY.
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
    """On which side of the COMMIT the connection ends."""

    #: The server never receives the COMMIT, and rolls back
    BEFORE = "before COMMIT"
    #: The server has committed, and its answer is lost
    AFTER = "after COMMIT"


class TcpProxy:
    """Listens on a loopback port that the system chose and forwards everything to the server's socket.

    As a context manager it listens from entry to exit.
    """

    def __init__(self, server_socket: Path) -> None:
        self._server_socket = server_socket
        self._lock = threading.Lock()
        self._cut: tuple[bytes, Cut] | None = None
        self._delay: tuple[bytes, float, int] | None = None
        #: Set when the requested cut has been made
        self.was_cut = threading.Event()
        #: Set when something was received and not forwarded
        self.has_swallowed = threading.Event()
        self._pairs: list[_Pair] = []
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self.port = 0

    def __enter__(self) -> TcpProxy:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._acceptor = threading.Thread(target=self._accept, args=(self._listener,), name="proxy", daemon=True)
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

    def move(self, server_socket: Path, *, cut: bool) -> None:
        """Forwards new connections to another server, as an address does that moves with the primary.

        `cut`: ends the connections that are open now; else they go on with the old server.
        """
        with self._lock:
            self._server_socket = server_socket
            pairs, self._pairs = (self._pairs, []) if cut else ([], self._pairs)
        for pair in pairs:
            pair.end()

    def fall_silent(self) -> None:
        """Stops forwarding on the connections that are open now, without closing them. New connections work."""
        with self._lock:
            for pair in self._pairs:
                pair.silent = True

    def cut_at_commit(self, *, of: str, where: Cut) -> None:
        """Cuts once: at the COMMIT that follows a statement containing `of`, on that connection."""
        with self._lock:
            self._cut = (of.encode(), where)
            self.was_cut.clear()

    def take_cut(self, query: bytes) -> Cut | None:
        """The requested cut, if `query` is the statement that it waits for; it is then requested no longer."""
        with self._lock:
            if self._cut is None or self._cut[0] not in query:
                return None
            (_, where), self._cut = self._cut, None
            return where

    def delay(self, *, of: str, seconds: float, times: int) -> None:
        """Delays each of the next `times` statements containing `of` by `seconds`, and only their connections."""
        with self._lock:
            self._delay = (of.encode(), seconds, times)

    @property
    def delays_left(self) -> int:
        """How many of the requested delays have not begun."""
        return self._delay[2] if self._delay else 0

    def take_delay(self, query: bytes) -> float:
        """Seconds by which to delay this statement; 0 for most."""
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
            except OSError:  # the listener was closed
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(str(self._server_socket))
            except OSError:  # the server is down: the client sees a lost connection
                server.close()
                client.close()
                continue
            pair = _Pair(self, client, server)
            with self._lock:
                self._pairs.append(pair)
            pair.start()


def _without_tls(greeting: bytes) -> bytes:
    """The server's first packet without its offer of TLS. A client that accepts it encrypts its statements."""
    version_ends = greeting.find(b"\0", 5)
    # After the version: thread id (4), random bytes (8), a zero, then the lower half of the capabilities.
    place = version_ends + 1 + 4 + 8 + 1 + 1
    if version_ends < 0 or len(greeting) <= place:
        return greeting  # an error instead of a greeting
    return greeting[:place] + bytes([greeting[place] & ~(_CLIENT_SSL >> 8)]) + greeting[place + 1 :]


class _Pair:
    """One connection of a client, and ours to the server. A thread forwards in each direction."""

    def __init__(self, proxy: TcpProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self.silent = False
        self._cut_next: Cut | None = None
        self._cut_answer = False
        self._threads = [
            threading.Thread(target=self._forward, name="proxy-to-server", daemon=True),
            threading.Thread(target=self._backward, name="proxy-to-client", daemon=True),
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
            with suppress(OSError):  # it is closed already
                each.shutdown(socket.SHUT_RDWR)

    def _forward(self) -> None:
        pending = b""
        with suppress(OSError):  # when one side ends, both are closed
            while chunk := self._client.recv(65536):
                if self.silent:
                    self._proxy.has_swallowed.set()
                    continue
                pending += chunk
                # Forward whole packets, so that a statement is read in one piece.
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
                self._proxy.was_cut.set()
                return False
            self._cut_answer = True
        self._cut_next = self._proxy.take_cut(query) or self._cut_next
        if delay := self._proxy.take_delay(query):
            time.sleep(delay)
        self._server.sendall(packet)
        return True

    def _backward(self) -> None:
        with suppress(OSError):
            self._client.sendall(_without_tls(self._server.recv(65536)))
            while chunk := self._server.recv(65536):
                if self._cut_answer:  # the server answers a COMMIT only after it has committed
                    self._break()
                    self._proxy.was_cut.set()
                    return
                if not self.silent:
                    self._client.sendall(chunk)
        self._break()
