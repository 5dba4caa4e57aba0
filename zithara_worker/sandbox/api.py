"""A local Zithara API: a real HTTP/1.1 server that checks tokens, records requests, and fails on demand.

One thread per connection, and a parser for only what HTTP clients send, so that a benchmark measures the client and not
this server.
Knows the API's endpoints (zithara/webhook 1.0.3, Model/Queue/*Processor and Helper/Data); knows no database.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from http import HTTPStatus
from http.client import responses
from itertools import takewhile
from types import TracebackType
from typing import Any, NamedTuple

#: The API's endpoints: path -> methods. The receiver of webhooks is not part of the API, but uses the same port.
ENDPOINTS: Mapping[str, tuple[str, ...]] = {
    "/v1/order": ("POST", "PATCH"),
    "/v1/customer": ("POST",),
    "/v1/cart": ("POST",),
}
TOKEN_PATH = "/v1/generate-access-token"
WEBHOOK_PATH = "/hook"

_MAX_HEAD_BYTES = 64 * 1024
_HANDSHAKE_SECONDS = 5.0
#: An Idempotency-Key is queue name, message id, digest of the request, and the number of an operator's retry, if any.
_MESSAGE_OF_KEY = re.compile(r"(.+-[0-9]+)-[0-9a-f]{16}(-[0-9]+)?$")
_NO_HOLD = threading.Event()
_NO_HOLD.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRequest:
    """One request as it was received."""

    #: 1 for the first request of the server's life
    number: int
    #: 1 for the first connection; requests of one keep-alive connection share it
    connection: int
    #: time.monotonic() when its last byte was read
    at: float
    method: str
    #: As sent, query string included
    path: str
    #: Names in lower case
    headers: Mapping[str, str]
    #: b"" if the server keeps no bodies
    body: bytes

    @property
    def message(self) -> str:
        """Queue name and message id, "zithara_order_queue-17", of its Idempotency-Key; "" where it has none."""
        found = _MESSAGE_OF_KEY.match(self.headers.get("idempotency-key", ""))
        return found[1] if found else ""

    @property
    def json(self) -> Any:
        """The body, parsed. Raises ValueError when it is not JSON."""
        return json.loads(self.body)


class Fault(Enum):
    NONE = "none"
    #: The connection is reset (RST) instead of an answer
    RESET = "reset"
    #: The connection is closed in order (FIN) instead of an answer
    CLOSE = "close"
    #: The full Content-Length is sent, then half the body, then the connection is closed
    TRUNCATE = "truncate"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer or a fault: at once, `after` some seconds, or `held` until a test releases it."""

    status: int = 200
    body: bytes = b'{"status": 200, "message": "ok"}'
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    #: The answer waits until this is set; the server sets it when it stops
    hold: threading.Event = _NO_HOLD
    fault: Fault = Fault.NONE

    @classmethod
    def of(cls, status: int, value: Any) -> Reply:
        """A JSON answer."""
        return cls(status, json.dumps(value).encode())

    @classmethod
    def error(cls, status: int = 500, message: str = "internal error") -> Reply:
        """An error in the API's own shape: `status`, `error`, `message`."""
        return cls.of(status, {"status": status, "error": responses.get(status, "Unknown"), "message": message})

    @classmethod
    def too_many_requests(cls, retry_after: str | int | None = None) -> Reply:
        """429; `retry_after` in seconds or as an HTTP date, None: without the header."""
        reply = cls.error(429, "too many requests")
        return reply if retry_after is None else replace(reply, headers={"Retry-After": str(retry_after)})

    @classmethod
    def not_json(cls, status: int = 200) -> Reply:
        return cls(status, b"<html><body>It works!</body></html>", {"Content-Type": "text/html"})

    @classmethod
    def reset(cls) -> Reply:
        """Reads the request, then resets the connection: the client cannot know whether it was processed."""
        return cls(fault=Fault.RESET)

    @classmethod
    def closed(cls) -> Reply:
        return cls(fault=Fault.CLOSE)

    @classmethod
    def truncated(cls) -> Reply:
        return cls(fault=Fault.TRUNCATE)

    @classmethod
    def never(cls) -> Reply:
        """Never answers. The connection is closed when the server stops."""
        return cls(hold=threading.Event(), fault=Fault.CLOSE)

    def after(self, seconds: float) -> Reply:
        return replace(self, delay_seconds=seconds)

    def held(self, gate: threading.Event) -> Reply:
        """The same answer, but not before the test calls gate.set()."""
        return replace(self, hold=gate)


#: Answers a request; None leaves it to the API's ordinary behaviour. Called by many threads.
Responder = Callable[[RecordedRequest], "Reply | None"]


def in_turn(*replies: Reply | None, path: str | None = None) -> Responder:
    """A responder that gives these replies one by one (None: ordinary behaviour), then behaves ordinarily.

    `path`: the requests that it answers; None: all but those for a token.
    """
    waiting = deque(replies)

    def respond(request: RecordedRequest) -> Reply | None:
        if not _is_for(request, path):
            return None
        try:
            return waiting.popleft()
        except IndexError:
            return None

    return respond


class FakeZithara:
    """Serves the API at `base_url` and a webhook receiver at `webhook_url`, on a loopback port that the system chose.

    `tls`: a server-side context makes it https. `latency_seconds`: before every ordinary answer but a token's.
    `keep_requests`: how many of the last requests are recorded (None: all); `keep_bodies=False` for long runs.
    As a context manager it serves from entry to exit. `stop` and `start` keep the port: clients see an outage.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        client_id: str = "sandbox-client",
        client_secret: str = "sandbox-secret",
        token_lifetime_seconds: int = 3600,
        latency_seconds: float = 0.0,
        keep_requests: int | None = 20_000,
        keep_bodies: bool = True,
    ) -> None:
        self.client_id = client_id
        self.client_secret = client_secret
        self.token_lifetime_seconds = token_lifetime_seconds
        self.latency_seconds = latency_seconds
        self.responder: Responder | None = None
        self._tls = tls
        self._keep_bodies = keep_bodies
        self._changed = threading.Condition()
        # _changed guards everything below.
        self._records: deque[RecordedRequest] = deque(maxlen=keep_requests)
        self._request_count = 0
        self._connections: dict[int, socket.socket] = {}
        self._connection_count = 0
        self._connections_to_reset = 0
        self._threads: set[threading.Thread] = set()
        self._held: set[threading.Event] = set()
        self._tokens: dict[str, float] = {}
        self._token_count = 0
        self._in_flight = 0
        self._most_in_flight = 0
        self._stopping = threading.Event()
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._port = 0

    # --- life -------------------------------------------------------------------------------------------------

    def __enter__(self) -> FakeZithara:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listens. A start after a stop takes the same port again."""
        if self._listener is not None:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", self._port))
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
        self._port = int(listener.getsockname()[1])
        self._stopping = threading.Event()
        self._listener = listener
        self._acceptor = threading.Thread(target=self._accept, args=(listener,), name="api-accept", daemon=True)
        self._acceptor.start()

    def stop(self) -> None:
        """Closes the listener and all connections, releases held answers, waits for its threads. The record stays."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        self._stopping.set()
        listener.shutdown(socket.SHUT_RDWR)  # wakes the accept(), which close() alone does not
        listener.close()
        if self._acceptor is not None:
            self._acceptor.join()
        with self._changed:
            for gate in self._held:
                gate.set()
            threads = list(self._threads)
        self.drop_connections()
        for thread in threads:
            thread.join()

    # --- addresses and record -----------------------------------------------------------------------------

    @property
    def port(self) -> int:
        return self._port

    @property
    def origin(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    @property
    def base_url(self) -> str:
        """For [zithara] base_url."""
        return f"{self.origin}/v1"

    @property
    def webhook_url(self) -> str:
        return f"{self.origin}{WEBHOOK_PATH}"

    @property
    def request_count(self) -> int:
        """Requests read since the first start, those for tokens included."""
        with self._changed:
            return self._request_count

    @property
    def connection_count(self) -> int:
        """Connections accepted since the first start."""
        with self._changed:
            return self._connection_count

    @property
    def open_connection_count(self) -> int:
        with self._changed:
            return len(self._connections)

    @property
    def most_in_flight(self) -> int:
        """The highest number of requests that waited for their answers at the same time."""
        with self._changed:
            return self._most_in_flight

    def requests(self, path: str | None = None) -> list[RecordedRequest]:
        """The recorded requests in the order of arrival; without `path` all but those for tokens."""
        with self._changed:
            return [request for request in self._records if _is_for(request, path)]

    def wait_for(
        self,
        count: int = 1,
        *,
        path: str | None = None,
        matching: Callable[[RecordedRequest], bool] = lambda _: True,
        within: float = 5.0,
    ) -> list[RecordedRequest]:
        """Waits until at least `count` requests (see `requests` for `path`) match, and returns them in order.

        `within`: seconds. Raises AssertionError that lists what came instead. A request counts as soon as it has been
        read; its answer may still be held or delayed.
        """
        deadline = time.monotonic() + within
        found: list[RecordedRequest] = []
        seen = 0
        with self._changed:
            while True:
                fresh = _after(seen, self._records)
                seen = self._request_count
                found += [request for request in fresh if _is_for(request, path) and matching(request)]
                if len(found) >= count:
                    return found
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not self._changed.wait(remaining):
                    came = [f"{request.method} {request.path}" for request in self._records][-20:]
                    raise AssertionError(
                        f"{len(found)} of {count} expected requests for {path or 'the API'} within {within:g} s; "
                        f"last of {self._request_count} in all: {came}"
                    )

    def forget_requests(self) -> None:
        """Empties the record. The counters stay."""
        with self._changed:
            self._records.clear()

    # --- tokens -----------------------------------------------------------------------------------------------

    def issue_token(self) -> str:
        """A new valid token, as the token endpoint gives it."""
        with self._changed:
            self._token_count += 1
            token = f"sandbox-token-{self._token_count}"
            self._tokens[token] = time.monotonic() + self.token_lifetime_seconds
            return token

    @property
    def tokens_issued(self) -> int:
        with self._changed:
            return self._token_count

    def revoke_tokens(self) -> None:
        """Every token issued so far is refused from now on."""
        with self._changed:
            self._tokens.clear()

    # --- faults below HTTP -------------------------------------------------------------------------------

    def drop_connections(self) -> None:
        """Resets every open connection, idle keep-alive ones too."""
        with self._changed:
            for connection in self._connections.values():
                with suppress(OSError):  # the client has closed it already
                    _reset_on_close(connection)
                    connection.shutdown(socket.SHUT_RDWR)

    def reset_next_connections(self, count: int) -> None:
        """Resets the next `count` connections before anything is read, so that no request is processed."""
        with self._changed:
            self._connections_to_reset = count

    # --- serving ----------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                if self._stopping.is_set():
                    return
                raise
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._changed:
                self._connection_count += 1
                number = self._connection_count
                reset = self._connections_to_reset > 0
                if reset:
                    self._connections_to_reset -= 1
                    _reset_on_close(connection)
                    connection.close()
                    continue
                self._connections[number] = connection
                thread = threading.Thread(
                    target=self._serve, args=(connection, number), name=f"api-{number}", daemon=True
                )
                self._threads.add(thread)
            thread.start()

    def _serve(self, plain: socket.socket, number: int) -> None:
        connection = plain
        try:
            if self._tls is not None:
                plain.settimeout(_HANDSHAKE_SECONDS)  # a client that says nothing would keep stop() waiting
                connection = self._tls.wrap_socket(plain, server_side=True)
                connection.settimeout(None)
                with self._changed:
                    self._connections[number] = connection
            self._serve_requests(connection, number)
        except OSError:  # a client that leaves, or a failed handshake, concerns only its own connection
            pass
        finally:
            with self._changed:
                self._connections.pop(number, None)
                self._threads.discard(threading.current_thread())
            connection.close()

    def _serve_requests(self, connection: socket.socket, number: int) -> None:
        pending = b""
        while not self._stopping.is_set():
            message = _read_request(connection, pending)
            if message is None:
                return
            head, body, pending = message
            if head.refusal:
                connection.sendall(_encoded(Reply.error(head.refusal, "this sandbox cannot read that"), close=True))
                return
            request = self._record(head, body, number)
            try:
                reply = self._decide(request)
                self._await_turn(reply)
            finally:  # before the answer is sent: a test that has it may read the counters at once
                with self._changed:
                    self._in_flight -= 1
            if reply.fault is Fault.RESET:
                _reset_on_close(connection)
                return
            if reply.fault is Fault.CLOSE or self._stopping.is_set():
                return
            if reply.fault is Fault.TRUNCATE:
                answer = _encoded(reply, close=False)
                connection.sendall(answer[: len(answer) - max(1, len(reply.body) // 2)])
                return
            connection.sendall(_encoded(reply, close=head.closes))
            if head.closes:
                return

    def _record(self, head: _Head, body: bytes, connection: int) -> RecordedRequest:
        with self._changed:
            self._request_count += 1
            request = RecordedRequest(
                number=self._request_count,
                connection=connection,
                at=time.monotonic(),
                method=head.method,
                path=head.path,
                headers=head.headers,
                body=body,
            )
            self._records.append(request if self._keep_bodies else replace(request, body=b""))
            self._in_flight += 1
            self._most_in_flight = max(self._most_in_flight, self._in_flight)
            self._changed.notify_all()
            return request

    def _await_turn(self, reply: Reply) -> None:
        if reply.delay_seconds > 0:
            self._stopping.wait(reply.delay_seconds)
        if reply.hold.is_set():
            return
        with self._changed:
            if self._stopping.is_set():
                return
            self._held.add(reply.hold)
        reply.hold.wait()
        with self._changed:
            self._held.discard(reply.hold)

    def _decide(self, request: RecordedRequest) -> Reply:
        scripted = self.responder(request) if self.responder is not None else None
        if scripted is not None:
            return scripted
        if request.path == TOKEN_PATH:
            return self._answer_token_request(request)
        reply = self._answer(request)
        return reply.after(self.latency_seconds) if self.latency_seconds else reply

    def _answer_token_request(self, request: RecordedRequest) -> Reply:
        if request.method != "GET":
            return Reply.error(405, "use GET")
        given = (request.headers.get("client_id"), request.headers.get("client_secret"))
        if given != (self.client_id, self.client_secret):
            return Reply.error(401, "invalid client credentials")
        return Reply.of(200, {"access_token": self.issue_token(), "expires_in": self.token_lifetime_seconds})

    def _answer(self, request: RecordedRequest) -> Reply:
        if request.path == WEBHOOK_PATH:
            return Reply() if request.method == "POST" else Reply.error(405, "use POST")
        methods = ENDPOINTS.get(request.path)
        if methods is None:
            return Reply.error(404, f"no such endpoint: {request.path}")
        if request.method not in methods:
            return Reply.error(405, f"use {' or '.join(methods)}")
        with self._changed:
            valid_until = self._tokens.get(request.headers.get("authorization", ""), 0.0)
        if valid_until <= time.monotonic():
            return Reply.error(401, "invalid or expired token")
        try:
            parsed = request.json
        except ValueError:
            return Reply.error(400, "the body is not JSON")
        return Reply() if isinstance(parsed, dict) else Reply.error(400, "the body is not an object")


class _Head(NamedTuple):
    method: str
    path: str
    headers: Mapping[str, str]
    closes: bool
    length: int
    #: The status to refuse with, 0: none
    refusal: int


def _read_request(connection: socket.socket, pending: bytes) -> tuple[_Head, bytes, bytes] | None:
    """The next request's head and body, and the bytes read after it; None if the client has closed."""
    while (end := pending.find(b"\r\n\r\n")) < 0:
        if len(pending) > _MAX_HEAD_BYTES:
            return _Head("", "", {}, True, 0, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE), b"", b""
        chunk = connection.recv(65536)
        if not chunk:
            return None
        pending += chunk
    head = _parse_head(pending[:end].decode("latin-1"))
    body = pending[end + 4 :]
    if head.length > len(body):
        if head.headers.get("expect", "").lower() == "100-continue":  # curl asks before it sends more than 1 KB
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        chunks = [body]
        missing = head.length - len(body)
        while missing > 0:
            chunk = connection.recv(min(missing, 1 << 20))
            if not chunk:
                return None
            chunks.append(chunk)
            missing -= len(chunk)
        body = b"".join(chunks)
    return head, body[: head.length], body[head.length :]


def _parse_head(text: str) -> _Head:
    request_line, *lines = text.split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    words = request_line.split(" ")
    length = headers.get("content-length", "0")
    refusal = 0
    if len(words) != 3 or not length.isdecimal():
        refusal = int(HTTPStatus.BAD_REQUEST)
    elif "transfer-encoding" in headers:
        refusal = int(HTTPStatus.LENGTH_REQUIRED)
    if refusal:
        return _Head("", "", headers, True, 0, refusal)
    closes = words[2] == "HTTP/1.0" or headers.get("connection", "").lower() == "close"
    return _Head(words[0], words[1], headers, closes, int(length), 0)


def _encoded(reply: Reply, *, close: bool) -> bytes:
    headers = {"Content-Type": "application/json", **reply.headers, "Content-Length": str(len(reply.body))}
    if close:
        headers["Connection"] = "close"
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return (
        f"HTTP/1.1 {reply.status} {responses.get(reply.status, 'Unknown')}\r\n{lines}\r\n".encode("latin-1")
        + reply.body
    )


def _is_for(request: RecordedRequest, path: str | None) -> bool:
    return request.path != TOKEN_PATH if path is None else request.path == path


def _after(number: int, records: deque[RecordedRequest]) -> list[RecordedRequest]:
    """The requests after number `number`, without reading all the earlier ones."""
    return list(takewhile(lambda request: request.number > number, reversed(records)))[::-1]


def _reset_on_close(connection: socket.socket) -> None:
    """Lets close() send RST and not FIN, by a linger time of zero."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
