"""The HTTP server of the worker: finds a port, and answers requests with what a callable returns for their path.

Requests are few and small, so each has a thread of its own, and only a few are served at once.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from zithara_worker.logs.escaping import escaped
from zithara_worker.settings.sections import MetricsSettings
from zithara_worker.settings.values import split_address
from zithara_worker.version import VERSION

log = logging.getLogger(__name__)

#: Ports that are tried after the first one when that is taken.
NEXT_PORTS = 15
DEFAULT_LISTEN = MetricsSettings().listen
#: The longest time for a whole connection, however slowly its bytes arrive.
REQUEST_SECONDS = 5.0
#: Connections that are served at once.
MAX_CONNECTIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "text/plain; charset=utf-8"
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


#: Path -> what answers it, given the request's Accept header.
Routes = Mapping[str, Callable[[str], Reply]]


class NoFreePort(OSError):
    """None of the ports can be used. The text names the ports that were tried, and why the last one failed."""


class Listener:
    """Serves `routes` from `start` to `close`. `listen`: host:port of the settings; port 0 takes any free one."""

    def __init__(self, listen: str, routes: Routes) -> None:
        self._listen = listen
        self._host, self._port = split_address(listen)
        self._routes = dict(routes)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """host:port that it listens on, '[::1]:9209' for IPv6."""
        if self._server is None:
            raise RuntimeError("start the listener first")
        host, port = self._server.server_address[:2]
        return f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}"

    def start(self) -> None:
        """Binds the port, or the next free one of the following, and serves. Raises NoFreePort."""
        self._server = self._bound()
        self._thread = threading.Thread(target=self._server.accept_all, name="web", daemon=True)
        self._thread.start()
        taken = self._port not in (0, self._server.server_address[1])
        # Several workers that were given no address share the default's ports at each start: nobody needs to look.
        log.log(
            logging.WARNING if taken and self._listen != DEFAULT_LISTEN else logging.INFO,
            "metrics, health and status page at http://%s/%s",
            self.address,
            f" (port {self._port} is taken)" if taken else "",
            extra={"event": "listening", "address": self.address},
        )
        if self._server.server_address[0] in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
            log.warning(
                "[metrics] listen is on all addresses of this host: anybody who reaches it can read topics, counts "
                "and errors; name one address, or let a firewall admit the monitoring only",
                extra={"event": "configuration_warning"},
            )

    def close(self) -> None:
        """Frees the port. Requests that are being served go on in their threads, which end with the process."""
        server, self._server = self._server, None
        if server is None or self._thread is None:
            return
        server.closing.set()
        with suppress(OSError):
            server.socket.shutdown(socket.SHUT_RDWR)  # ends the accept(), which close() alone does not
        self._thread.join()
        server.server_close()

    def _bound(self) -> _Server:
        ports = [0] if self._port == 0 else range(self._port, min(self._port + NEXT_PORTS, 65535) + 1)
        try:
            family = socket.getaddrinfo(self._host, None, type=socket.SOCK_STREAM)[0][0]
        except OSError as error:
            raise NoFreePort(f"[metrics] listen: no such host {self._host!r} ({error.strerror})") from error
        problem = OSError(errno.EADDRNOTAVAIL, "no port to try")
        for port in ports:
            try:
                return _Server(self._host, port, self._routes, family)
            except OSError as error:
                problem = error
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    break
        raise NoFreePort(
            f"[metrics] listen: cannot listen on {self._host}, ports {ports[0]} to {ports[-1]}: "
            f"{problem.strerror or problem}; name another address, or leave it empty"
        ) from problem


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 16

    def __init__(self, host: str, port: int, routes: Routes, family: int) -> None:
        self.address_family = family
        self.routes = routes
        #: Names that a request may have in its Host header, in addition to addresses and names without a dot
        self.names = {host.lower(), socket.gethostname().lower()}
        self.free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        #: Connections that wait for their client, the oldest first: when no connection is free, the oldest is closed.
        self.waiting: dict[socket.socket, None] = {}
        self.waiting_lock = threading.Lock()
        self.closing = threading.Event()
        super().__init__((host, port), _Handler)

    def accept_all(self) -> None:
        """Until `closing`. `serve_forever` would wake up twice a second to see whether it must end."""
        while not self.closing.is_set():
            try:
                request, address = self.get_request()
            except OSError as error:
                if not self.closing.is_set():
                    log.warning("cannot accept a connection", extra={"event": "accept_failed", "detail": str(error)})
                    self.closing.wait(1.0)  # most likely out of file descriptors, which are freed again
                continue
            try:
                self.process_request(request, address)
            except Exception:
                # The thread must survive a defect that one connection meets: it accepts all the others.
                log.exception("a connection could not be served", extra={"event": "page_failed"})
                self.shutdown_request(request)

    def server_bind(self) -> None:
        # Without HTTPServer's own: it resolves the name of this host, which can take seconds and is not used here.
        # SO_REUSEADDR: a restarted worker gets its port back at once. A port that another worker serves stays taken.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.free.acquire(blocking=False) and not self._close_slowest():
            with suppress(OSError):
                request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.shutdown_request(request)
            return
        self.wait_for_client(request)
        try:
            super().process_request(request, client_address)
        except BaseException:
            self.free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        deadline = threading.Timer(REQUEST_SECONDS, _hang_up, [request])
        deadline.daemon = True
        deadline.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self.work_for_client(request)
            self.free.release()

    def wait_for_client(self, request: socket.socket) -> None:
        with self.waiting_lock:
            self.waiting[request] = None

    def work_for_client(self, request: socket.socket) -> None:
        with self.waiting_lock:
            self.waiting.pop(request, None)

    def _close_slowest(self) -> bool:
        """Closes the connection that has waited longest for its client; whether one is free now."""
        with self.waiting_lock:
            slowest = next(iter(self.waiting), None)
            if slowest is None:
                return False
            del self.waiting[slowest]
            _hang_up(slowest)
        return self.free.acquire(timeout=1.0)

    def is_ours(self, host: str) -> bool:
        """Whether a request with this Host header is meant for this worker.

        A web page can let a name of its own resolve to this address (DNS rebinding) and read the answers in a visitor's
        browser. It cannot do so with an address, or with a name without a dot.
        """
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        return "." not in name or name in self.names or _is_address(name)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client closed its connection: no error of the worker. `_Handler` catches all others."""
        log.debug("a client went away", exc_info=True, extra={"event": "client_gone"})


def _hang_up(request: socket.socket) -> None:
    with suppress(OSError):  # closed already
        request.shutdown(socket.SHUT_RDWR)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_SECONDS
    server_version = f"zithara-worker/{VERSION}"
    protocol_version = "HTTP/1.1"

    def version_string(self) -> str:
        """Without Python's version, so that clients do not learn it."""
        return self.server_version

    def do_GET(self) -> None:
        self.server.work_for_client(self.connection)
        path = urlsplit(self.path).path
        route = self.server.routes.get(path)
        if not self.server.is_ours(self.headers.get("Host", "")):
            reply = text(
                HTTPStatus.MISDIRECTED_REQUEST,
                "ask by an address, a name without a dot, the host's own name, or the one in [metrics] listen",
            )
        elif route is None:
            known = ", ".join(sorted(self.server.routes))
            reply = text(HTTPStatus.NOT_FOUND, f"there is nothing here; look at {known}")
        else:
            try:
                reply = route(self.headers.get("Accept", ""))
            except Exception:
                # A page that meets a defect is answered all the same.
                log.exception("a page could not be made", extra={"event": "page_failed", "path": path})
                reply = text(HTTPStatus.INTERNAL_SERVER_ERROR, "an error in the worker, see its log")
        self.server.wait_for_client(self.connection)
        self._send(reply)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        headers = {
            "Content-Type": reply.content_type,
            "Content-Length": str(len(reply.body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Connection": "close",
            **reply.headers,
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def log_message(self, format: str, *arguments: Any) -> None:
        log.debug("%s", format % arguments, extra={"event": "page_request"})


def text(status: HTTPStatus, sentence: str) -> Reply:
    return Reply(status=status, body=f"{sentence}\n".encode())


def as_json(status: HTTPStatus, value: Any) -> Reply:
    return Reply(
        status=status,
        content_type="application/json; charset=utf-8",
        body=(escaped(json.dumps(value, ensure_ascii=False)) + "\n").encode("utf-8", "backslashreplace"),
    )
