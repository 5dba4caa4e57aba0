"""A server that says exactly the bytes a test wants."""

from __future__ import annotations

import io
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

from support.waiting import eventually

#: Gets an open connection and its number (1 = first), and does with it what the test wants.
Script = Callable[[socket.socket, int], None]


class RawServer:
    """Accepts on loopback and runs a script on each connection, in a thread of its own, then closes it.

    `tls`: a server-side context makes it https.
    """

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._numbers = count(1)
        self.connection_count = 0
        self.stopping = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1/order"

    def close(self) -> None:
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
            if self._tls is None:
                self._script(connection, number)
                return
            with self._tls.wrap_socket(connection, server_side=True) as secured:
                self._script(secured, number)


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


def wait_until_taken(connection: socket.socket) -> None:
    """Returns when the client's program has read everything that was sent to it: the kernel holds none of it."""
    ports = [f"{connection.getsockname()[1]:04X}", f"{connection.getpeername()[1]:04X}"]

    def unread_bytes() -> int:
        unread = 0
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, _, queues, *_ = line.split()
            ends = [local.rpartition(":")[2], remote.rpartition(":")[2]]
            sent, _, received = queues.partition(":")
            if ends == ports:
                unread += int(sent, 16)
            elif ends == ports[::-1]:
                unread += int(received, 16)
        return unread

    eventually(lambda: unread_bytes() == 0)


def answer(status: str, body: bytes = b"{}") -> bytes:
    """A whole answer; `status` as in "200 OK"."""
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


def filling_answer(status: str) -> bytes:
    """An answer as long as http.client's buffer: what comes right behind it is still in the socket when it was read."""
    length = io.DEFAULT_BUFFER_SIZE - len(answer(status, b"0" * 1000)) + 1000
    return answer(status, b"{}".ljust(length))
