"""Exchanges one `httpx.Request` for one `httpx.Response`, over a connection that each thread keeps to each host.

`Transport` implements httpx's extension point (`httpx.BaseTransport`) with the standard library's `http.client`;
docs/decisions.md says why httpx's own transport is not used. Redirects are not followed, cookies are not kept, bodies
are not decompressed, and HTTP_PROXY and similar variables are ignored, because requests carry the shop's token and must
go only where the configuration says.

Errors of `http.client` and of sockets become httpx's errors here. Knows nothing of tokens, nor of what an answer means.
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
from zithara_worker.settings.values import is_loopback, is_metadata_address
from zithara_worker.zithara.answers import BODY_LIMIT, Answer

#: Seconds that an idle connection is kept: less than common servers keep it (nginx 75, AWS load balancers 60).
KEEPALIVE_SECONDS = 30.0
#: Longest time to connect to one address, in seconds, however long `timeout` is. A host that has not accepted by then
#: will not accept later.
CONNECT_SECONDS = 10.0

#: Extension of a request: a function that is called after connecting, right before the request leaves. If it returns
#: False, Withdrawn is raised.
MAY_SEND = "may_send"
#: Extension of a response: whether the connection ended, or the time ran out, within the body.
BROKEN = "broken"

#: What `http.client` raises while it reads an answer; ValueError if the size of a chunk is not a number.
_NO_ANSWER = (OSError, http.client.HTTPException, ValueError)

_REFUSED_ADDRESS = "{} is a link-local address or a cloud's metadata service, to which nothing is sent"
#: Finds what the value of a header must not contain. http.client itself accepts NUL and folded lines.
_control_character = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search


class Withdrawn(Exception):
    """`MAY_SEND` returned False. Nothing of the request was sent."""


class UrlRefused(ConfigurationError):
    """A URL to which nothing is sent. `reason`: a code of `reasons`."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why there is no answer. `reason`: a code of `reasons`. `detail`: for people, without headers of the request.

    `may_have_been_processed`: sending had begun, so the host may have processed the request.
    `again_at_once`: a new connection may succeed at once; not after a timeout.
    """

    reason: str
    detail: str
    evidence: Evidence
    may_have_been_processed: bool
    again_at_once: bool


def usable_url(text: str) -> httpx.URL:
    """The parsed URL. Raises UrlRefused if it is not an absolute http(s) URL, is http:// to another host than this, or
    names an address that `is_metadata_address` refuses.

    User and password in a URL are not used, because each request has an Authorization header. Errors do not quote them.
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
    if is_metadata_address(host):
        raise UrlRefused(reasons.INVALID_URL, f"{_REFUSED_ADDRESS.format(host)}: correct the URL")
    return url


def origin_of(url: httpx.URL) -> str:
    """ "https://host:port" without user and password. The port is left out if it is the default of the scheme."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def tls_context(*, verify: bool = True, ca_file: str = "") -> ssl.SSLContext:
    """The TLS context for all connections. It is shared, because creating one takes 10 ms and more.

    It trusts the authorities of the operating system, to which an administrator can add; those of httpx (certifi) where
    the system has none, as in slim containers; and those of the PEM file `ca_file` in addition. Raises
    ConfigurationError if that file cannot be read.
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
    """Sends the request and returns its answer, whatever the status. Raises httpx.TransportError if there is no answer
    (see `failure_of`), and Withdrawn."""
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
    """What an error of `send` means."""
    # No message can cause an error before the first byte of its request was sent.
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
    """Sends for any number of threads; each thread has its own connections.

    `timeout_seconds`: the limit for a whole exchange, which is connecting, sending and the answer, so that a host that
    sends single bytes is cut off too. Only the resolver can take longer.
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
        """Sends one request, which may have the extension MAY_SEND. Returns its answer with up to BODY_LIMIT + 1 bytes
        of the body and the extension BROKEN. Raises httpx.TransportError if there is no answer, and Withdrawn."""
        return self._connection_to(request.url).exchange(request, self._monotonic() + self._timeout)

    def close(self) -> None:
        """Closes the connections of all threads. Requests under way fail, and no more are sent.

        A thread that is just connecting sends nothing either, because nothing would enforce its deadline any more.
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
        """Cuts off exchanges whose deadline has passed. Runs in a thread of its own.

        The timeout of a socket limits a single operation: a host that sends a byte every 29 seconds would keep a thread
        and its message for hours. Therefore the sockets have no timeout, and this thread shuts them down. Blocking
        sockets also save a `poll` before each operation, and with it a release of the interpreter's lock.
        """
        tick = min(1.0, max(0.02, self._timeout / 10))
        while not self._closed.wait(tick):
            now = self._monotonic()
            with self._lock:
                connections = list(self._connections)
            for connection in connections:
                connection.enforce(now)


class _Connection:
    """The connection of one thread to one host, with the deadline of the current exchange."""

    def __init__(self, url: httpx.URL, tls: ssl.SSLContext, monotonic: Callable[[], float]) -> None:
        self._host = url.raw_host.decode("ascii")
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._tls = tls if url.scheme == "https" else None
        self._monotonic = monotonic
        self._http: _Http | None = None
        self._readable = select.poll()
        self._idle_since = 0.0
        self._lock = threading.Lock()
        # _lock guards all below, because the watcher calls `enforce` from another thread. _socket is kept here, because
        # `http.client` drops its own reference when the head of an answer says "Connection: close", and the body still
        # has to be cut off then.
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
            read_whole = answer.isclosed()
            # If the connection ends with the answer, http.client leaves the socket to the answer.
            answer.close()
            if not sent and 200 <= answer.status < 300:
                raise httpx.WriteError(f"answered {answer.status} before the whole request was sent")
            if self._overdue and not body:
                raise self._no_answer(TimeoutError())
            broken = broken or self._overdue
            reusable = sent and not broken and read_whole and not answer.will_close
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
        """Closes the connection. If an exchange is under way, it fails, and its thread closes the socket."""
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
        """Wakes the thread that waits on the socket. The caller holds the lock.

        SSLSocket.shutdown must not be used: it removes the TLS object while the other thread reads through it.
        """
        if self._socket is not None:
            with suppress(OSError):  # already closed, so no thread waits on it
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def _opened(self, deadline: float) -> _Http:
        """The connection that was kept if it is surely usable, else a new one."""
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
        """Whether there is nothing to read: neither the end of the connection nor surplus bytes behind an answer, which
        would be taken for the answer to the next request."""
        waiting = isinstance(connection.sock, ssl.SSLSocket) and connection.sock.pending()
        return not waiting and not self._readable.poll(0)

    def _connected(self, deadline: float) -> _Http:
        """Tries the addresses of the host in turn, each for its share of the remaining time, because the first may not
        answer. Raises UnicodeError for a name that cannot be looked up, else OSError."""
        addresses = list(
            dict.fromkeys(
                str(found[4][0]) for found in socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            )
        )
        if any(map(is_metadata_address, addresses)):
            # Whoever may change the host's record could have the worker's requests sent there.
            raise OSError(f"{self._host}: " + _REFUSED_ADDRESS.format(", ".join(addresses)))
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
                    raise ConnectionAbortedError("the worker closes its connections")
                if self._overdue:
                    raise TimeoutError("no connection within the time of the exchange")
                self._socket, self._readable = connection.sock, readable
            # From here on only the deadline limits the exchange; see Transport._watch.
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
    """Collects head and body, and sends them at once. http.client sends them apart, which costs each request one more
    packet, one more TLS record and one more release of the interpreter's lock."""

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
    """Writes the request; whether all of it was written. If not, there may be an answer all the same, because a host
    may answer and close before it has read everything. Raises httpx.LocalProtocolError for invalid headers."""
    try:
        target = request.url.raw_path.decode("ascii")
        connection.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.raw:
            if _control_character(value):
                raise ValueError
            connection.putheader(name, value)
    except ValueError:
        # `from None`, because http.client quotes the invalid header, which may be the token.
        raise httpx.LocalProtocolError("a header holds characters that HTTP does not allow") from None
    try:
        connection.endheaders(request.content or None)
        connection.flush()
    except OSError:
        return False
    return True


def _received(connection: http.client.HTTPConnection) -> tuple[http.client.HTTPResponse, bytes, bool]:
    """The answer, up to BODY_LIMIT + 1 bytes of its body, and whether the body broke off."""
    answer = connection.getresponse()
    while answer.status < 200:
        # http.client skips only 100, but 102 and 103 also come before the answer.
        answer.headers = answer.msg = None  # type: ignore[assignment]  # begin() reads only an answer without them
        answer.begin()
    try:
        # Without chunks and length, the body ends where the connection ends. A head that was cut off looks the same to
        # http.client. So if such an answer has no body, it may have been lost.
        until_closed = answer.length is None and not answer.chunked
        body = answer.read(BODY_LIMIT + 1)
    except http.client.IncompleteRead as error:
        return answer, error.partial, True
    except _NO_ANSWER:
        return answer, b"", True
    # The connection ended before the announced length was read
    missing = bool(answer.length) and len(body) <= BODY_LIMIT
    return answer, body, missing or (until_closed and not body)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _is_tls(error: BaseException | None) -> bool:
    """Whether TLS failed. An end of file within TLS is a connection that ended, not a failure of TLS."""
    return isinstance(error, ssl.SSLError) and not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError))


def _system_has_authorities() -> bool:
    paths = ssl.get_default_verify_paths()  # paths that do not exist are None
    return paths.cafile is not None or (paths.capath is not None and any(Path(paths.capath).iterdir()))
