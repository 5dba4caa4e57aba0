"""Whatever a host sends behind, before or instead of its answer: each request is read whole, and has its own answer."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress

import httpx
import pytest
import trustme
from support.raw_server import RawServer, answer, filling_answer, read_request, wait_until_taken
from zithara_doubles import exchange

from zithara_worker.zithara.http import KEEPALIVE_SECONDS, Transport, tls_context

Serve = Callable[..., RawServer]

STATUSES = ["200 OK", "422 Unprocessable Content"]
LONG = answer("200 OK", b"x" * 30_000)
#: What a server sends, given the request's own status and the other one
BY_NAME = {
    "doubled": lambda own, other: answer(own) + answer(other),
    "doubled, the second still in the socket": lambda own, other: filling_answer(own) + answer(other),
    "a long one behind": lambda own, other: answer(own) + LONG,
    "a stray line end": lambda own, other: answer(own) + b"\r\n",
    "408 behind": lambda own, other: answer(own) + answer("408 Request Timeout", b""),
    "204 with a body": lambda own, other: answer(own.replace("200 OK", "204 No Content")) + answer(other),
    "100 before": lambda own, other: b"HTTP/1.1 100 Continue\r\n\r\n" + answer(own),
    "103 before": lambda own, other: b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + answer(own),
    "too short a length": lambda own, other: answer(own).replace(b"{}", b'{"status": 200}'),
}


@pytest.fixture(scope="module", params=["tcp", "tls"])
def server_tls(request: pytest.FixtureRequest) -> ssl.SSLContext | None:
    if request.param == "tcp":
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.mark.parametrize("name", BY_NAME)
def test_each_request_arrives_and_has_its_own_answer(
    raw_server: Serve, server_tls: ssl.SSLContext | None, name: str
) -> None:
    read: list[bytes] = []

    def respond(connection: socket.socket, number: int) -> None:
        while request := read_request(connection):
            read.append(request.partition(b"\r\n\r\n")[2])
            turn = int(read[-1])
            connection.sendall(BY_NAME[name](STATUSES[turn % 2], STATUSES[(turn + 1) % 2]))

    url = raw_server(respond, server_tls).url
    transport = Transport(tls=tls_context(verify=False), timeout_seconds=5)
    try:
        statuses = [exchange(transport, "POST", url, b"%d" % turn).status for turn in range(8)]
    finally:
        transport.close()
    assert read == [b"%d" % turn for turn in range(8)]
    success = 204 if name == "204 with a body" else 200
    assert statuses == [success, 422] * 4


def test_a_success_to_a_request_that_was_not_read_whole_is_none(
    raw_server: Serve, transport: Transport, server_tls: ssl.SSLContext | None
) -> None:
    def answer_early(connection: socket.socket, number: int) -> None:
        connection.recv(1000)
        connection.sendall(answer("200 OK"))

    with pytest.raises(httpx.TransportError):
        exchange(transport, "POST", raw_server(answer_early, server_tls).url, b"x" * 20_000_000)


@pytest.mark.parametrize("cut", range(9, len(answer("200 OK"))))
def test_an_answer_that_is_cut_off_anywhere_is_no_whole_one(
    raw_server: Serve, transport: Transport, server_tls: ssl.SSLContext | None, cut: int
) -> None:
    def respond(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(answer("200 OK")[:cut])

    with suppress(httpx.RemoteProtocolError):
        assert exchange(transport, "POST", raw_server(respond, server_tls).url, b"{}").broken


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
#: Answers, whether each is broken, and whether its connection may serve another request
FORMS = {
    "chunks with a trailer": (CHUNKED + b"2\r\n{}\r\n0\r\nX-Sum: 1\r\n\r\n", False, True),
    "chunks without a size": (CHUNKED + b"no size\r\n{}\r\n", True, False),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", False, False),
    "closing": (CLOSING, False, False),
    "longer than is read": (answer("200 OK", b"x" * 70_000)[:-1], False, False),
}


@pytest.mark.parametrize("name", FORMS)
def test_only_a_connection_whose_answer_was_read_whole_is_used_again(
    raw_server: Serve, transport: Transport, server_tls: ssl.SSLContext | None, name: str
) -> None:
    said, broken, again = FORMS[name]

    def respond(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            connection.sendall(said)

    server = raw_server(respond, server_tls)
    first = exchange(transport, "POST", server.url, b"{}")
    # The numbers of closed sockets are given away anew: who asks such a one whether it is quiet would be told yes.
    pairs = [each for _ in range(8) for each in socket.socketpair()]
    second = exchange(transport, "POST", server.url, b"{}")

    for each in pairs:
        each.close()
    assert (first.status, first.broken, second.status, second.broken) == (200, broken, 200, broken)
    assert server.connection_count == (1 if again else 2)


def test_heads_without_end_are_a_failure(raw_server: Serve, transport: Transport) -> None:
    def flood(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + b"X-Flood: 1\r\n" * 1000)

    with pytest.raises(httpx.RemoteProtocolError):
        exchange(transport, "POST", raw_server(flood).url, b"{}")


def test_a_connection_idle_for_long_is_replaced(raw_server: Serve) -> None:
    def respond(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            connection.sendall(answer("200 OK"))

    now = [0.0]
    server = raw_server(respond)
    transport = Transport(tls=tls_context(verify=False), timeout_seconds=5, monotonic=lambda: now[0])
    for moment in (0.0, KEEPALIVE_SECONDS - 1, 2 * KEEPALIVE_SECONDS):
        now[0] = moment
        exchange(transport, "POST", server.url, b"{}")
    transport.close()
    assert server.connection_count == 2


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("said", [CHUNKED + b"50\r\n{", answer("200 OK", b"x" * 50)[:-49]], ids=["chunk", "length"])
def test_a_body_that_ends_early_is_broken(
    raw_server: Serve, transport: Transport, server_tls: ssl.SSLContext | None, said: bytes, reset: bool
) -> None:
    def respond(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(said)
        if reset:
            wait_until_taken(connection)  # a reset throws away what the client has not read
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    heard = exchange(transport, "POST", raw_server(respond, server_tls).url, b"{}")

    assert (heard.status, heard.broken) == (200, True)
