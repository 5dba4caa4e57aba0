"""One HTTP exchange at a time over a connection that the calling thread keeps: bytes out, `Answer` in.

Why not httpx.Client, nor httpx.HTTPTransport: a pool costs time quadratic in its connections, the client layer as much
CPU as the exchange, the transport layer half as much. Each thread keeps one httpcore.HTTP11Connection, the engine
inside httpx, for each host, over a socket of ours (docs/performance.md has the figures).

What follows, and is wanted: no redirect is followed, no cookie kept, no body decompressed (none is asked for), and
HTTP_PROXY and its kin are not obeyed: requests carry the shop's token, and go where the configuration says and nowhere
else. Proxies are not supported.

This is the edge where errors of httpx, httpcore and the sockets become ours. Knows nothing of tokens or of what an
answer means.
"""

from __future__ import annotations

import ipaddress
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpcore
import httpx

from zithara_worker.errors import ConfigurationError, ZitharaWorkerError
from zithara_worker.zithara import reasons
from zithara_worker.zithara.answers import Answer

if TYPE_CHECKING:
    from httpcore import NetworkStream
else:  # httpcore before 0.17 keeps its name to itself, and asks for its methods only
    NetworkStream = object

#: Bytes of an answer's body that are read; an API answer is a few hundred.
BODY_LIMIT = 64 * 1024
#: Seconds an idle connection is kept: less than what common servers allow (nginx 75, AWS load balancers 60).
KEEPALIVE_SECONDS = 30.0
#: A host that has not accepted a connection after this many seconds will not do so later, whatever `timeout` says.
CONNECT_SECONDS = 10.0

#: What httpcore raises while a request is under way; `_Stream` turns what the socket raises into the same.
_BROKEN = (httpcore.NetworkError, httpcore.ProtocolError)

Header = tuple[bytes, bytes]


class ExchangeFailed(ZitharaWorkerError):
    """No answer came. `reason`: a code of `reasons`; `detail`: for people, without the request's headers.

    `may_have_been_processed`: sending had begun, and the host may have acted on the request.
    `again_at_once`: a new connection may do better right now (not so after a timeout).
    """

    def __init__(self, reason: str, detail: str, *, may_have_been_processed: bool, again_at_once: bool) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.may_have_been_processed = may_have_been_processed
        self.again_at_once = again_at_once


class Withdrawn(Exception):
    """The caller no longer wants the request sent; nothing of it has left."""


class UrlRefused(ConfigurationError):
    """A URL that nothing is sent to; `reason` is a code of `reasons`."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A URL taken apart once: parsing it costs a tenth of a request."""

    url: httpx.URL
    #: "scheme://host:port", what a connection is kept for
    origin: str
    host_header: bytes
    #: The same URL as httpcore takes it
    wire: httpcore.URL


def endpoint_of(url: str) -> Endpoint:
    """Raises UrlRefused: not an absolute http(s) URL, or http:// to a host that is not this one.

    User and password in the URL are not used (an Authorization header goes with every request) and not repeated.
    """
    try:
        parsed = httpx.URL(url)
        host, netloc = parsed.host, parsed.netloc
    except (httpx.InvalidURL, ValueError) as error:
        raise UrlRefused(reasons.INVALID_URL, f"URL cannot be parsed ({type(error).__name__}): correct it") from error
    if parsed.scheme not in ("http", "https") or not host:
        raise UrlRefused(
            reasons.INVALID_URL, f"URL with scheme {parsed.scheme!r} and host {host!r}: give a whole https:// URL"
        )
    if parsed.scheme == "http" and not _is_loopback(host):
        raise UrlRefused(
            reasons.INSECURE_URL,
            f"http://{host} would carry the access token in clear: use https:// (http:// is for this host only)",
        )
    wire = httpcore.URL(
        scheme=parsed.scheme.encode("ascii"), host=parsed.raw_host, port=parsed.port, target=parsed.raw_path
    )
    return Endpoint(parsed, f"{parsed.scheme}://{netloc.decode('ascii')}", netloc, wire)


def tls_context(*, verify: bool = True, ca_file: str = "") -> ssl.SSLContext:
    """The context that all connections share: building one takes 10 ms and more, and each holds all authorities.

    Trusted are the system's authorities, which its administrator can add to; those of httpx (certifi) where the system
    has none, as in slim containers; and those in the PEM file `ca_file` besides. Raises ConfigurationError when that
    file cannot be read.
    """
    if not verify:
        context = httpx.create_ssl_context(verify=False)
    else:
        context = ssl.create_default_context() if _system_has_authorities() else httpx.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    if verify and ca_file:
        try:
            context.load_verify_locations(cafile=ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigurationError(
                f"[zithara] ca_file {ca_file}: no certificates read from it ({error}); name a PEM file"
            ) from error
    return context


class Transport:
    """Exchanges of any number of threads, each over connections of its own.

    `timeout_seconds` bounds a whole exchange: a host that drips a byte now and then is cut off as well. Only the
    resolver, and a name with several dead addresses (CONNECT_SECONDS each), can take longer.
    """

    def __init__(
        self, *, tls: ssl.SSLContext, timeout_seconds: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._tls = tls
        self._timeout = timeout_seconds
        self._monotonic = monotonic
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._connections: list[_Connection] = []
        self._closed = threading.Event()
        self._watcher: threading.Thread | None = None

    def exchange(
        self,
        method: str,
        endpoint: Endpoint,
        headers: Sequence[Header],
        body: bytes = b"",
        *,
        may_send: Callable[[], bool] | None = None,
    ) -> Answer:
        """Sends one request and reads its answer, whatever its status. Raises ExchangeFailed when none came.

        `headers`: without Host and Content-Length, which are added. `may_send` is asked right before the request
        leaves, when connecting is over; raises Withdrawn if the answer is no.
        """
        connection = self._connection_to(endpoint)
        started = self._monotonic()
        content = _Body(body, may_send)
        request = httpcore.Request(
            method, endpoint.wire, headers=[(b"Host", endpoint.host_header), *headers, *_length(body)], content=content
        )
        connection.begin(started + self._timeout)
        try:
            response = connection.opened(started, min(self._timeout, CONNECT_SECONDS)).handle_request(request)
            # The head is known from here on, so a body that breaks off is no failure of the exchange.
            received, broken = _read(response)
        except (_ConnectError, *_BROKEN) as error:
            overdue = connection.end(self._monotonic())
            failed = _translated(error, processed=content.begun, overdue=overdue, seconds=self._timeout)
            # h11 quotes the header that it cannot write, and that may be the token: such a cause is not kept.
            raise failed from None if failed.reason == reasons.INVALID_REQUEST else error
        except BaseException:
            connection.end(self._monotonic())
            raise
        now = self._monotonic()
        connection.end(now)
        return Answer(
            status=response.status,
            headers={name.lower().decode("latin-1"): value.decode("latin-1") for name, value in response.headers},
            body=received,
            broken=broken,
            duration_ms=(now - started) * 1000,
        )

    def close(self) -> None:
        """Ends every connection of every thread, now and from now on; a request still on its way fails.

        A thread that is connecting just then sends nothing: nobody would cut it off any more.
        """
        self._closed.set()
        with self._lock:
            watcher, connections = self._watcher, self._connections
            self._watcher, self._connections = None, []
        if watcher is not None:
            watcher.join()
        for connection in connections:
            connection.close()

    def _connection_to(self, endpoint: Endpoint) -> _Connection:
        mine: dict[str, _Connection] = self._mine.__dict__
        connection = mine.get(endpoint.origin)
        if connection is None:
            connection = mine[endpoint.origin] = _Connection(endpoint.wire.origin, self._tls)
            with self._lock:
                self._connections.append(connection)
                if self._closed.is_set():
                    connection.close()
                elif self._watcher is None:
                    self._watcher = threading.Thread(target=self._watch, name="http-deadlines", daemon=True)
                    self._watcher.start()
        return connection

    def _watch(self) -> None:
        """Cuts off what is overdue.

        A socket's own timeout is that of a single operation: a host that sends a byte every 29 seconds would hold a
        thread and a message for hours, and no code of ours runs in that thread meanwhile. So the sockets have none,
        which also spares each operation a wait of its own, and with it a hand-over of the interpreter's lock.
        """
        tick = min(1.0, max(0.02, self._timeout / 10))
        while not self._closed.wait(tick):
            now = self._monotonic()
            with self._lock:
                connections = list(self._connections)
            for connection in connections:
                connection.enforce(now)


class _ConnectError(Exception):
    """No connection; its cause says why."""


class _Connection:
    """One thread's connection to one host, with the deadline of the exchange it is in."""

    __slots__ = (
        "_closed",
        "_deadline",
        "_http",
        "_idle_since",
        "_lock",
        "_origin",
        "_overdue",
        "_readable",
        "_socket",
        "_tls",
    )

    def __init__(self, origin: httpcore.Origin, tls: ssl.SSLContext) -> None:
        self._origin = origin
        self._tls = tls
        self._http: httpcore.HTTP11Connection | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._readable = select.poll()
        self._idle_since = 0.0
        self._deadline: float | None = None
        self._overdue = False

    def opened(self, now: float, connect_seconds: float) -> httpcore.HTTP11Connection:
        """The connection, a new one where there is none that will surely do. Raises _ConnectError.

        An idle socket that is readable has been closed by the host.
        """
        http = self._http
        if http is not None:
            if http.is_idle() and now - self._idle_since < KEEPALIVE_SECONDS and not self._readable.poll(0):
                return http
            self._http = None
            http.close()
        try:
            connected = self._connected(connect_seconds)
        except (OSError, UnicodeError) as error:
            raise _ConnectError(str(error)) from error
        self._http = httpcore.HTTP11Connection(self._origin, _Stream(connected))
        return self._http

    def _connected(self, connect_seconds: float) -> socket.socket:
        host = self._origin.host.decode("ascii")
        connected = socket.create_connection((host, self._origin.port), timeout=connect_seconds)
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._origin.scheme == b"https":
                connected = self._tls.wrap_socket(connected, server_hostname=host)
            readable = select.poll()
            readable.register(connected, select.POLLIN)
            with self._lock:
                if self._closed:
                    raise ConnectionAbortedError("the worker ends its connections")
                self._socket, self._readable = connected, readable
            # From here on the deadline alone limits: see Transport._watch.
            connected.settimeout(None)
        except BaseException:
            connected.close()
            raise
        return connected

    def begin(self, deadline: float) -> None:
        with self._lock:
            self._deadline = deadline
            self._overdue = False

    def end(self, now: float) -> bool:
        """Whether the exchange was cut off."""
        with self._lock:
            self._deadline = None
            self._idle_since = now
            return self._overdue

    def enforce(self, now: float) -> None:
        with self._lock:
            if self._deadline is None or now < self._deadline:
                return
            self._overdue = True
            self._shut_down()

    def close(self) -> None:
        """An exchange under way fails, and its thread closes the socket that it holds."""
        with self._lock:
            self._closed = True
            self._shut_down()
            if self._deadline is None and self._http is not None:
                self._http.close()

    def _shut_down(self) -> None:
        """Wakes the thread that waits on the socket; called with the lock held.

        Not SSLSocket.shutdown: it drops the TLS object under the feet of the thread that is reading through it.
        """
        if self._socket is not None:
            with suppress(OSError):  # closed or replaced meanwhile: nothing waits on it
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class _Stream(NetworkStream):
    """A connected socket as httpcore wants it. What is written leaves with the next read, in one piece.

    h11 hands out head and body apart; two writes would be two hand-overs of the interpreter's lock, and two packets.
    """

    __slots__ = ("_socket", "_unsent")

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._unsent: list[bytes] = []

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            self._unsent.append(buffer)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            if self._unsent:
                request = b"".join(self._unsent)
                self._unsent.clear()
                # A host may answer and close before it has read all: its answer is worth more than the broken pipe.
                with suppress(OSError):
                    self._socket.sendall(request)
            return self._socket.recv(min(max_bytes, 8192))
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    def close(self) -> None:
        self._socket.close()

    def get_extra_info(self, info: str) -> Any:
        return None


class _Body:
    """A request's body that knows whether sending it has begun: until then nothing has left (see `_Stream`)."""

    __slots__ = ("_body", "_may_send", "begun")

    def __init__(self, body: bytes, may_send: Callable[[], bool] | None = None) -> None:
        self._body = body
        self._may_send = may_send
        self.begun = False

    def __iter__(self) -> Iterator[bytes]:
        if self._may_send is not None and not self._may_send():
            raise Withdrawn
        self.begun = True
        if self._body:
            yield self._body


def _length(body: bytes) -> Sequence[Header]:
    return ((b"Content-Length", b"%d" % len(body)),) if body else ()


def _read(response: httpcore.Response) -> tuple[bytes, bool]:
    """The body up to BODY_LIMIT, and whether it broke off. What is beyond the limit costs the connection, no more."""
    received = bytearray()
    try:
        for chunk in response.iter_stream():
            received += chunk
            if len(received) >= BODY_LIMIT:
                break
    except _BROKEN:
        return bytes(received[:BODY_LIMIT]), True
    finally:
        response.close()
    return bytes(received[:BODY_LIMIT]), False


def _translated(error: Exception, *, processed: bool, overdue: bool, seconds: float) -> ExchangeFailed:
    """Our error for one of httpcore or the sockets; the most specific reason that can be told."""
    seen = error.__cause__ or error
    detail = f"{type(seen).__name__}: {seen}" if str(seen) else type(seen).__name__
    if overdue:
        reason, detail = reasons.TIMEOUT, f"no complete answer within {seconds:g} s"
    elif isinstance(seen, TimeoutError):
        reason = reasons.TIMEOUT
    elif isinstance(error, httpcore.LocalProtocolError):
        reason, detail = reasons.INVALID_REQUEST, "a header holds characters that HTTP does not allow"
    elif isinstance(seen, UnicodeError):
        reason, detail = reasons.INVALID_REQUEST, f"the host's name cannot be looked up: {seen}"
    elif _is_tls(error):
        reason = reasons.TLS_ERROR
    elif isinstance(error, _ConnectError):
        reason = reasons.CONNECT_ERROR
    elif isinstance(error, httpcore.ProtocolError):
        reason = reasons.PROTOCOL_ERROR
    else:
        reason = reasons.CONNECTION_LOST
    return ExchangeFailed(
        reason,
        detail,
        may_have_been_processed=processed,
        again_at_once=reason in (reasons.CONNECT_ERROR, reasons.CONNECTION_LOST, reasons.PROTOCOL_ERROR),
    )


def _is_tls(error: BaseException | None) -> bool:
    """Whether TLS itself objected. An end of file within TLS is a connection that ended, like any other."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError))
        error = error.__cause__ or error.__context__
    return False


def _system_has_authorities() -> bool:
    paths = ssl.get_default_verify_paths()  # only what exists is told
    return paths.cafile is not None or (paths.capath is not None and any(Path(paths.capath).iterdir()))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
