"""Whatever a host sends behind, before or instead of its answer: each request is read whole, and has its own answer."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress

import httpx
import pytest
import trustme
from zithara_doubles import RawServer, Script, exchange, read_request

from zithara_worker.zithara.http import Transport, tls_context

ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 422 Unprocessable Content\r\nContent-Length: 2\r\n\r\n{}",
]
LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 30000\r\n\r\n" + b"x" * 30_000
BY_NAME = {
    "doubled": lambda own, other: own + other,
    "a long one behind": lambda own, other: own + LONG,
    "a stray line end": lambda own, other: own + b"\r\n",
    "408 behind": lambda own, other: own + b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n",
    "204 with a body": lambda own, other: own.replace(b"200 OK", b"204 No Content") + other,
    "100 before": lambda own, other: b"HTTP/1.1 100 Continue\r\n\r\n" + own,
    "103 before": lambda own, other: b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + own,
    "too short a length": lambda own, other: own.replace(b"{}", b'{"status": 200}'),
}


@pytest.fixture(params=["tcp", "tls"])
def server_tls(request: pytest.FixtureRequest) -> Iterator[ssl.SSLContext | None]:
    context = None
    if request.param == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    yield context


@pytest.mark.parametrize("name", BY_NAME)
def test_each_request_arrives_and_has_its_own_answer(
    raw_server: Callable[[Script], RawServer], server_tls: ssl.SSLContext | None, name: str
) -> None:
    read: list[bytes] = []

    def answer(plain: socket.socket, number: int) -> None:
        connection = server_tls.wrap_socket(plain, server_side=True) if server_tls else plain
        with connection, suppress(OSError):
            while request := read_request(connection):
                read.append(request.partition(b"\r\n\r\n")[2])
                turn = int(read[-1])
                connection.sendall(BY_NAME[name](ANSWERS[turn % 2], ANSWERS[(turn + 1) % 2]))

    url = raw_server(answer).url
    transport = Transport(tls=tls_context(verify=False), timeout_seconds=5)
    try:
        statuses = [
            exchange(transport, "POST", url.replace("http:", "https:") if server_tls else url, b"%d" % turn).status
            for turn in range(8)
        ]
    finally:
        transport.close()
    assert read == [b"%d" % turn for turn in range(8)]
    success = 204 if name == "204 with a body" else 200
    assert statuses == [success, 422] * 4


def test_a_success_to_a_request_that_was_not_read_whole_is_none(raw_server: Callable[[Script], RawServer]) -> None:
    def answer_early(connection: socket.socket, number: int) -> None:
        connection.recv(1000)
        connection.sendall(ANSWERS[0])

    transport = Transport(tls=tls_context(verify=False), timeout_seconds=5)
    with pytest.raises(httpx.TransportError):
        exchange(transport, "POST", raw_server(answer_early).url, b"x" * 20_000_000)
    transport.close()


@pytest.mark.parametrize("cut", range(9, len(ANSWERS[0])))
def test_an_answer_that_is_cut_off_anywhere_is_no_whole_one(
    raw_server: Callable[[Script], RawServer], transport: Transport, cut: int
) -> None:
    def answer(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(ANSWERS[0][:cut])

    with suppress(httpx.RemoteProtocolError):
        assert exchange(transport, "POST", raw_server(answer).url, b"{}").broken
