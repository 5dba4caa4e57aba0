"""One HTTP exchange at a time over a connection that the calling thread keeps: `httpx.Request` in, `Response` out.

httpx's documented extension point (`httpx.BaseTransport`) over the standard library's `http.client`; docs/decisions.md
says why not httpx's own. What follows, and is wanted: no redirect is followed, no cookie kept, no body decompressed,
and HTTP_PROXY and its kin are not obeyed: requests carry the shop's token, and go where the configuration says and
nowhere else. Proxies are not supported.

This is the edge where errors of `http.client` and the sockets become httpx's. Knows nothing of tokens or of what an
answer means.
"""

from __future__ import annotations

import http.client
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from zithara_worker import reasons
from zithara_worker.errors import ConfigurationError
from zithara_worker.messages import Evidence
from zithara_worker.settings.values import is_loopback
from zithara_worker.zithara.answers import BODY_LIMIT, Answer

#: Seconds an idle connection is kept: less than what common servers allow (nginx 75, AWS load balancers 60).
KEEPALIVE_SECONDS = 30.0
#: A host that has not accepted a connection after this many seconds will not do so later, whatever `timeout` says.
CONNECT_SECONDS = 10.0

#: Of a request: asked right before it leaves, when connecting is over. If the answer is no, Withdrawn is raised.
MAY_SEND = "may_send"
#: Of a response: whether the connection ended, or time ran out, within the body.
BROKEN = "broken"

#: What `http.client` raises about an answer; ValueError for the size of a chunk that is none.
_NO_ANSWER = (OSError, http.client.HTTPException, ValueError)


#: What a header's value may not hold; http.client lets a NUL and folded lines pass.
_control_character = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search


class Withdrawn(Exception):
    """The caller no longer wants the request sent; nothing of it has left."""


class UrlRefused(ConfigurationError):
    """A URL that nothing is sent to; `reason` is a code of `reasons`."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why no answer came. `reason`: a code of `reasons`; `detail`: for people, without the request's headers.

    `may_have_been_processed`: sending had begun, and the host may have acted on the request.
    `again_at_once`: a new connection may do better right now (not so after a timeout).
    """

    reason: str
    detail: str
    evidence: Evidence
    may_have_been_processed: bool
    again_at_once: bool


def usable_url(text: str) -> httpx.URL:
    """Raises UrlRefused: not an absolute http(s) URL, or http:// to a host that is not this one.

    User and password in the URL are not used (an Authorization header goes with every request) and not repeated.
    """
    try:
        url = httpx.URL(text)
        host = url.host
    except (httpx.InvalidURL, ValueError) as error:
        raise UrlRefused(reasons.INVALID_URL, f"URL cannot be parsed ({type(error).__name__}): correct it") from error
    if url.scheme not in ("http", "https") or not host:
        raise UrlRefused(
            reasons.INVALID_URL, f"URL with scheme {url.scheme!r} and host {host!r}: give a whole https:// URL"
        )
    if url.scheme == "http" and not is_loopback(host):
        raise UrlRefused(
            reasons.INSECURE_URL,
            f"http://{host} would carry the access token in clear: use https:// (http:// is for this host only)",
        )
    return url


def origin_of(url: httpx.URL) -> str:
    """ "https://host:port", without user and password; the port only where it is not the usual one."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


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


def send(transport: httpx.BaseTransport, request: httpx.Request) -> Answer:
    """The whole answer, whatever its status. Raises httpx.TransportError (see `failure_of`) when none came, Withdrawn
    when `MAY_SEND` said no."""
    started = time.monotonic()
    response = transport.handle_request(request)
    body = b"".join(response.iter_raw())
    return Answer(
        status=response.status_code,
        headers=response.headers,
        body=body,
        broken=bool(response.extensions.get(BROKEN)),
        duration_ms=(time.monotonic() - started) * 1000,
    )


def failure_of(error: httpx.TransportError) -> Failure:
    """The most specific reason that can be told."""
    # Nobody but the host and the network between has a say before the first byte of a request.
    connecting = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
    evidence = Evidence.HOST if connecting else Evidence.PATH
    if isinstance(error, httpx.LocalProtocolError):
        reason, evidence = reasons.INVALID_REQUEST, Evidence.NONE
    elif isinstance(error, httpx.TimeoutException):
        reason = reasons.TIMEOUT
    elif _is_tls(error.__cause__):
        reason = reasons.TLS_ERROR
    elif connecting:
        reason = reasons.CONNECT_ERROR
    elif isinstance(error, httpx.ProtocolError):
        reason = reasons.PROTOCOL_ERROR
    else:
        reason = reasons.CONNECTION_LOST
    return Failure(
        reason=reason,
        detail=str(error),
        evidence=evidence,
        may_have_been_processed=evidence is Evidence.PATH,
        again_at_once=reason in (reasons.CONNECT_ERROR, reasons.CONNECTION_LOST, reasons.PROTOCOL_ERROR),
    )


class Transport(httpx.BaseTransport):
    """Exchanges of any number of threads, each over connections of its own.

    `timeout_seconds` bounds a whole exchange: connecting, sending and the answer; a host that drips a byte now and then
    is cut off as well. Only the resolver can take longer.
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

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends one request with its `MAY_SEND` and reads its answer up to one byte more than BODY_LIMIT, `BROKEN` or
        not. Raises httpx.TransportError when no answer came, Withdrawn."""
        return self._connection_to(request.url).exchange(request, self._monotonic() + self._timeout)

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

    def _connection_to(self, url: httpx.URL) -> _Connection:
        mine: dict[str, _Connection] = self._mine.__dict__
        origin = origin_of(url)
        connection = mine.get(origin)
        if connection is None:
            connection = mine[origin] = _Connection(url, self._tls, self._monotonic)
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


class _Connection:
    """One thread's connection to one host, with the deadline of the exchange it is in."""

    __slots__ = (
        "_closed",
        "_deadline",
        "_host",
        "_http",
        "_idle_since",
        "_lock",
        "_monotonic",
        "_overdue",
        "_port",
        "_readable",
        "_socket",
        "_tls",
    )

    def __init__(self, url: httpx.URL, tls: ssl.SSLContext, monotonic: Callable[[], float]) -> None:
        self._host = url.raw_host.decode("ascii")
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._tls = tls if url.scheme == "https" else None
        self._monotonic = monotonic
        self._http: _Http | None = None
        self._readable = select.poll()
        self._idle_since = 0.0
        self._lock = threading.Lock()
        # All below is guarded by _lock: the watcher comes from another thread. `http.client` lets go of its socket when
        # an answer's head announces the end of the connection, and the body may still drip then.
        self._socket: socket.socket | None = None
        self._closed = False
        self._deadline: float | None = None
        self._overdue = False

    def exchange(self, request: httpx.Request, deadline: float) -> httpx.Response:
        with self._lock:
            self._deadline, self._overdue = deadline, False
        reusable = False
        try:
            connection = self._opened(deadline)
            may_send: Callable[[], bool] | None = request.extensions.get(MAY_SEND)
            if may_send is not None and not may_send():
                reusable = True
                raise Withdrawn
            sent = _sent(connection, request)
            try:
                answer, body, broken = _received(connection)
            except _NO_ANSWER as error:
                raise self._no_answer(error) from error
            if not sent and 200 <= answer.status < 300:
                raise httpx.WriteError(f"answered {answer.status} before it had the whole request")
            if self._overdue and not body:
                raise self._no_answer(TimeoutError())
            broken = broken or self._overdue
            reusable = sent and not broken and answer.isclosed() and not answer.will_close
            return httpx.Response(
                answer.status,
                headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()],
                stream=httpx.ByteStream(body),
                extensions={BROKEN: broken},
            )
        finally:
            self._end(keep=reusable)

    def enforce(self, now: float) -> None:
        with self._lock:
            if self._deadline is not None and now >= self._deadline:
                self._overdue = True
                self._shut_down()

    def close(self) -> None:
        """An exchange under way fails, and its thread closes the socket that it holds."""
        with self._lock:
            self._closed = True
            self._shut_down()
            if self._deadline is None and self._http is not None:
                self._http.close()

    def _end(self, *, keep: bool) -> None:
        with self._lock:
            self._deadline = None
            self._idle_since = self._monotonic()
            if self._http is not None and (not keep or self._overdue or self._closed):
                self._http.close()
                self._http = None

    def _shut_down(self) -> None:
        """Wakes the thread that waits on the socket; called with the lock held.

        Not SSLSocket.shutdown: it drops the TLS object under the feet of the thread that is reading through it.
        """
        if self._socket is not None:
            with suppress(OSError):  # closed or replaced meanwhile: nothing waits on it
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def _opened(self, deadline: float) -> _Http:
        """The connection, a new one where there is none that will surely do."""
        known = self._http
        if known is not None:
            if self._is_quiet(known) and self._monotonic() - self._idle_since < KEEPALIVE_SECONDS:
                return known
            known.close()
            self._http = None
        try:
            self._http = self._connected(deadline)
        except UnicodeError as error:
            raise httpx.LocalProtocolError(f"the host's name cannot be looked up: {error}") from error
        except TimeoutError as error:
            raise httpx.ConnectTimeout(_told(error)) from error
        except OSError as error:
            raise httpx.ConnectError(_told(error)) from error
        return self._http

    def _is_quiet(self, connection: http.client.HTTPConnection) -> bool:
        """Whether nothing waits to be read: neither the end of the connection nor bytes that nobody asked for, which
        would be taken for the answer to the next request."""
        waiting = isinstance(connection.sock, ssl.SSLSocket) and connection.sock.pending()
        return not waiting and not self._readable.poll(0)

    def _connected(self, deadline: float) -> _Http:
        """Tries each address of the host, none longer than its share of the time: the first may be a dead one."""
        addresses = list(
            dict.fromkeys(
                str(found[4][0]) for found in socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            )
        )
        while True:
            share = self._seconds_left(deadline) / len(addresses)
            connection = _Http(addresses.pop(0), self._port, min(share, CONNECT_SECONDS))
            try:
                connection.connect()
                break
            except OSError:
                if not addresses:
                    raise
        try:
            if self._tls is not None:
                connection.sock.settimeout(min(self._seconds_left(deadline), CONNECT_SECONDS))
                connection.sock = self._tls.wrap_socket(connection.sock, server_hostname=self._host)
            readable = select.poll()
            readable.register(connection.sock, select.POLLIN)
            with self._lock:
                if self._closed:
                    raise ConnectionAbortedError("the worker ends its connections")
                if self._overdue:
                    raise TimeoutError("no connection within the time of the exchange")
                self._socket, self._readable = connection.sock, readable
            # From here on the deadline alone limits: see Transport._watch.
            connection.sock.settimeout(None)
        except BaseException:
            connection.close()
            raise
        return connection

    def _seconds_left(self, deadline: float) -> float:
        left = deadline - self._monotonic()
        if left <= 0:
            raise TimeoutError("no connection within the time of the exchange")
        return left

    def _no_answer(self, error: Exception) -> httpx.TransportError:
        if self._overdue:
            return httpx.ReadTimeout("no complete answer within [zithara] timeout")
        if isinstance(error, OSError) and not isinstance(error, http.client.HTTPException):
            return httpx.ReadError(_told(error))
        return httpx.RemoteProtocolError(_told(error))


class _Http(http.client.HTTPConnection):
    """Keeps what is to be sent until all of it leaves at once: http.client writes head and body apart, which is one
    more packet, TLS record and hand-over of the interpreter's lock a request."""

    def __init__(self, host: str, port: int, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._parts: list[bytes] = []

    def send(self, data: Any) -> None:
        self._parts.append(data)

    def flush(self) -> None:
        whole = b"".join(self._parts)
        self._parts.clear()
        self.sock.sendall(whole)


def _sent(connection: _Http, request: httpx.Request) -> bool:
    """Whether the whole request was written. A host may answer and close before it has read all: its answer is worth
    more than the broken pipe. Raises httpx.LocalProtocolError for what HTTP cannot say."""
    try:
        target = request.url.raw_path.decode("ascii")
        connection.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.raw:
            if _control_character(value):
                raise ValueError
            connection.putheader(name, value)
    except ValueError:
        # `from None`: http.client quotes the header that it cannot write, and that may be the token.
        raise httpx.LocalProtocolError("a header holds characters that HTTP does not allow") from None
    try:
        connection.endheaders(request.content or None)
        connection.flush()
    except OSError:
        return False
    return True


def _received(connection: http.client.HTTPConnection) -> tuple[http.client.HTTPResponse, bytes, bool]:
    """The answer, its body up to one byte more than BODY_LIMIT, and whether the body broke off."""
    answer = connection.getresponse()
    while answer.status < 200:
        # http.client skips 100 only; 102 and 103 also announce an answer and are none.
        answer.headers = answer.msg = None  # type: ignore[assignment]
        answer.begin()
    try:
        # Without chunks and length the body ends where the connection ends, and so does a head that was cut off:
        # http.client takes the one for the other. What then has no body may have lost it.
        until_closed = answer.length is None and not answer.chunked
        body = answer.read(BODY_LIMIT + 1)
    except http.client.IncompleteRead as error:
        return answer, error.partial, True
    except _NO_ANSWER:
        return answer, b"", True
    # What is left of the length though the connection gave no more
    missing = bool(answer.length) and len(body) <= BODY_LIMIT
    return answer, body, missing or (until_closed and not body)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _is_tls(error: BaseException | None) -> bool:
    """Whether TLS itself objected. An end of file within TLS is a connection that ended, like any other."""
    return isinstance(error, ssl.SSLError) and not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError))


def _system_has_authorities() -> bool:
    paths = ssl.get_default_verify_paths()  # only what exists is told
    return paths.cafile is not None or (paths.capath is not None and any(Path(paths.capath).iterdir()))
