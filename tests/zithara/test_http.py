from __future__ import annotations

import gc
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from support.raw_server import RawServer, read_request
from support.waiting import together
from zithara_doubles import exchange

from zithara_worker import reasons
from zithara_worker.errors import ConfigurationError
from zithara_worker.messages import Evidence
from zithara_worker.sandbox.api import FakeZithara, Reply, in_turn
from zithara_worker.zithara import http
from zithara_worker.zithara.answers import BODY_LIMIT
from zithara_worker.zithara.http import (
    Failure,
    Transport,
    UrlRefused,
    Withdrawn,
    failure_of,
    origin_of,
    tls_context,
    usable_url,
)

MakeTransport = Callable[..., Transport]
Serve = Callable[..., RawServer]

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def failure(transport: Transport, url: str, body: bytes = b"{}") -> Failure:
    with pytest.raises(httpx.TransportError) as caught:
        exchange(transport, "POST", url, body)
    return failure_of(caught.value)


# --- what travels


def test_a_request_arrives_as_given_and_its_answer_comes_back(api: FakeZithara, transport: Transport) -> None:
    api.responder = in_turn(Reply(201, b'{"id": 7}', {"X-Trace": "abc"}))
    body = '{"name":"Ünïcode"}'.encode()

    answer = exchange(transport, "PATCH", api.base_url + "/order?x=1", body, headers={"X-One": "1"})

    (request,) = api.requests()
    assert (request.method, request.path, request.body) == ("PATCH", "/v1/order?x=1", body)
    assert request.headers == {"host": f"127.0.0.1:{api.port}", "x-one": "1", "content-length": str(len(body))}
    assert (answer.status, answer.body, answer.headers["x-trace"], answer.broken) == (201, b'{"id": 7}', "abc", False)
    assert 0 < answer.duration_ms < 5000


def test_a_request_has_no_header_but_those_given_and_its_length(raw_server: Serve, transport: Transport) -> None:
    read: list[bytes] = []

    def respond(connection: socket.socket, number: int) -> None:
        read.append(read_request(connection))
        connection.sendall(ANSWER)

    server = raw_server(respond)
    exchange(transport, "POST", server.url, b"{}", headers={"X-One": "1"})

    # Host once: many servers refuse a request that has it twice.
    line, *headers = read[0].partition(b"\r\n\r\n")[0].split(b"\r\n")
    host = server.url.split("/")[2].encode()
    assert line == b"POST /v1/order HTTP/1.1"
    assert sorted(headers) == [b"Content-Length: 2", b"Host: " + host, b"X-One: 1"]


def test_a_redirect_is_an_answer_and_is_not_followed(api: FakeZithara, transport: Transport) -> None:
    api.responder = in_turn(Reply(302, b"", {"Location": f"{api.base_url}/elsewhere"}))

    assert exchange(transport, "POST", api.base_url + "/order", b"{}").status == 302
    assert api.request_count == 1


def test_the_proxy_of_the_environment_is_not_used(
    api: FakeZithara, make_transport: MakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    api.responder = in_turn(Reply())

    assert exchange(make_transport(), "POST", api.base_url + "/order", b"{}").status == 200


def test_a_long_body_is_read_up_to_the_limit_and_seen_to_be_longer(api: FakeZithara, transport: Transport) -> None:
    api.responder = in_turn(Reply(500, b"x" * (BODY_LIMIT * 20)), Reply())
    order = api.base_url + "/order"

    answer = exchange(transport, "POST", order, b"{}")

    assert (len(answer.body), answer.broken) == (BODY_LIMIT + 1, False)
    assert exchange(transport, "POST", order, b"{}").status == 200


def test_a_request_withdrawn_when_its_body_is_due_does_not_arrive(api: FakeZithara, transport: Transport) -> None:
    api.responder = lambda request: Reply()
    order = api.base_url + "/order"
    for _ in range(2):
        with pytest.raises(Withdrawn):
            exchange(transport, "POST", order, b"{}", may_send=lambda: False)

    assert exchange(transport, "POST", order, b"{}", may_send=lambda: True).status == 200
    assert (api.request_count, api.connection_count) == (1, 1)


# --- connections


def test_each_thread_keeps_one_connection(api: FakeZithara, transport: Transport) -> None:
    api.responder = lambda request: Reply()
    order = api.base_url + "/order"

    def send_many() -> None:
        for _ in range(25):
            exchange(transport, "POST", order, b"{}")

    together([send_many] * 4)

    assert api.request_count == 100
    assert api.connection_count == 4


def test_a_connection_that_the_host_closed_while_idle_is_replaced_unnoticed(
    api: FakeZithara, transport: Transport
) -> None:
    api.responder = lambda request: Reply()
    order = api.base_url + "/order"
    exchange(transport, "POST", order, b"{}")
    api.stop()
    api.start()

    assert exchange(transport, "POST", order, b"{}").status == 200
    assert api.connection_count == 2


def test_head_and_body_do_not_wait_for_each_other(api: FakeZithara, transport: Transport) -> None:
    api.responder = lambda request: Reply()
    order = api.base_url + "/order"
    exchange(transport, "POST", order, b"{}")

    fastest = min(exchange(transport, "POST", order, b"x" * 2000).duration_ms for _ in range(30))

    # Nagle's algorithm against a delayed acknowledgement takes 40 ms and more, every time.
    assert fastest < 35


def test_two_hosts_have_a_connection_each(transport: Transport) -> None:
    with FakeZithara() as one, FakeZithara() as two:
        one.responder = two.responder = lambda request: Reply()
        for _ in range(3):
            for host in (one, two):
                exchange(transport, "POST", host.webhook_url, b"{}")
        assert (one.connection_count, two.connection_count) == (1, 1)
        transport.close()


# --- connecting

Resolve = Callable[..., None]
NAMED = "localhost"


@contextmanager
def silent(port: int) -> Iterator[None]:
    """127.0.0.2 answers no attempt to connect: its queue is full, and the kernel drops what comes."""
    with socket.create_server(("127.0.0.2", port), backlog=0), socket.create_connection(("127.0.0.2", port)):
        yield


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """resolve("127.0.0.2", "127.0.0.1"): what the resolver tells of NAMED from now on; `asked` is called before."""
    real = socket.getaddrinfo

    def tell(*addresses: str, asked: Callable[[], object] = lambda: None) -> None:
        def found(host: str, port: int, *more: int, **others: int) -> Any:
            if host != NAMED:
                return real(host, port, *more, **others)
            asked()
            return [each for address in addresses for each in real(address, port, *more, **others)]

        monkeypatch.setattr(socket, "getaddrinfo", found)

    return tell


def test_the_next_address_of_a_name_is_tried_where_one_refuses(
    api: FakeZithara, transport: Transport, resolve: Resolve
) -> None:
    api.responder = lambda request: Reply()
    resolve("127.0.0.3", "127.0.0.4", "127.0.0.1")

    assert exchange(transport, "POST", f"http://{NAMED}:{api.port}/v1/order", b"{}").status == 200


def test_an_address_that_does_not_answer_leaves_the_next_one_its_share_of_the_time(
    api: FakeZithara, make_transport: MakeTransport, resolve: Resolve
) -> None:
    api.responder = lambda request: Reply()
    resolve("127.0.0.2", "127.0.0.1")

    with silent(api.port):
        transport = make_transport(timeout_seconds=2.0)
        assert exchange(transport, "POST", f"http://{NAMED}:{api.port}/v1/order", b"{}").status == 200


def test_the_last_address_that_refuses_is_a_connect_error(
    api: FakeZithara, transport: Transport, resolve: Resolve
) -> None:
    resolve("127.0.0.3", "127.0.0.4")

    error = failure(transport, f"http://{NAMED}:{api.port}/v1/order")

    assert (error.reason, error.evidence, error.again_at_once) == (reasons.CONNECT_ERROR, Evidence.HOST, True)


@pytest.mark.parametrize(
    ("timeout_seconds", "connect_seconds"), [(0.3, 60.0), (60.0, 0.3)], ids=["timeout", "CONNECT_SECONDS"]
)
def test_a_host_that_does_not_accept_is_a_timeout_before_anything_was_sent(
    api: FakeZithara,
    make_transport: MakeTransport,
    monkeypatch: pytest.MonkeyPatch,
    timeout_seconds: float,
    connect_seconds: float,
) -> None:
    monkeypatch.setattr(http, "CONNECT_SECONDS", connect_seconds)
    started = time.monotonic()

    with silent(api.port):
        error = failure(make_transport(timeout_seconds=timeout_seconds), f"http://127.0.0.2:{api.port}/v1/order")

    assert (error.reason, error.evidence) == (reasons.TIMEOUT, Evidence.HOST)
    assert (error.may_have_been_processed, error.again_at_once) == (False, False)
    assert time.monotonic() - started < 10


def test_no_address_is_tried_once_the_time_of_the_exchange_is_over(
    api: FakeZithara, make_transport: MakeTransport, resolve: Resolve
) -> None:
    now = [0.0]
    resolve("127.0.0.1", asked=lambda: now.append(6.0))
    transport = make_transport(timeout_seconds=5.0, monotonic=lambda: now[-1])

    error = failure(transport, f"http://{NAMED}:{api.port}/v1/order")

    assert (error.reason, error.evidence, api.connection_count) == (reasons.TIMEOUT, Evidence.HOST, 0)


def test_a_tls_handshake_has_what_connecting_left_of_the_time(make_transport: MakeTransport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def connected() -> bool:
            return bool(select.select([listener], [], [], 0)[0])

        # Connecting took most of the time; then the host, which accepts nobody, does not answer the greeting.
        transport = make_transport(timeout_seconds=30.0, monotonic=lambda: 29.7 if connected() else 0.0)
        started = time.monotonic()
        error = failure(transport, f"https://127.0.0.1:{listener.getsockname()[1]}/v1/order")

    assert (error.reason, error.evidence) == (reasons.TIMEOUT, Evidence.HOST)
    assert time.monotonic() - started < 5


@pytest.fixture
def during_handshake(server_tls: ssl.SSLContext) -> Iterator[Callable[[Callable[[], None]], None]]:
    """during_handshake(act): each TLS handshake waits until `act` has run."""

    def run(act: Callable[[], None]) -> None:
        server_tls.sni_callback = lambda *_: act()

    yield run
    server_tls.sni_callback = None


def test_nothing_is_sent_when_the_time_ran_out_while_connecting(
    make_transport: MakeTransport,
    server_tls: ssl.SSLContext,
    during_handshake: Callable[[Callable[[], None]], None],
) -> None:
    now, watched = [0.0], threading.Semaphore(0)

    def monotonic() -> float:
        if now[-1] and threading.current_thread().name == "http-deadlines":
            watched.release()
        return now[-1]

    def run_out() -> None:
        now.append(6.0)
        for _ in range(2):  # the second look begins when the first has cut off what is overdue
            assert watched.acquire(timeout=5)

    during_handshake(run_out)
    with FakeZithara(tls=server_tls) as api:
        transport = make_transport(timeout_seconds=5.0, monotonic=monotonic)
        error = failure(transport, f"https://{NAMED}:{api.port}/v1/order")
        assert (error.reason, error.evidence, api.request_count) == (reasons.TIMEOUT, Evidence.HOST, 0)


def test_nothing_is_sent_when_the_transport_was_closed_while_connecting(
    make_transport: MakeTransport,
    server_tls: ssl.SSLContext,
    during_handshake: Callable[[Callable[[], None]], None],
) -> None:
    transport = make_transport()
    during_handshake(transport.close)
    with FakeZithara(tls=server_tls) as api:
        error = failure(transport, f"https://{NAMED}:{api.port}/v1/order")
        assert (error.reason, error.evidence, api.request_count) == (reasons.CONNECT_ERROR, Evidence.HOST, 0)


# --- failures


def test_a_refused_connection_is_a_connect_error_and_surely_not_processed(
    api: FakeZithara, transport: Transport
) -> None:
    url = api.base_url + "/order"
    api.stop()

    error = failure(transport, url)

    assert (error.reason, error.may_have_been_processed, error.again_at_once) == (reasons.CONNECT_ERROR, False, True)


def test_an_unknown_name_is_a_connect_error(transport: Transport) -> None:
    error = failure(transport, "https://no-such-host.invalid/order")

    assert (error.reason, error.may_have_been_processed) == (reasons.CONNECT_ERROR, False)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [(Reply.reset(), reasons.CONNECTION_LOST), (Reply.closed(), reasons.PROTOCOL_ERROR)],
    ids=["reset", "closed"],
)
def test_a_connection_that_ends_after_the_request_leaves_it_in_doubt(
    api: FakeZithara, transport: Transport, reply: Reply, reason: str
) -> None:
    api.responder = in_turn(reply)

    error = failure(transport, api.base_url + "/order")

    assert (error.reason, error.may_have_been_processed, error.again_at_once) == (reason, True, True)


def test_what_is_not_http_is_a_protocol_error(raw_server: Serve, transport: Transport) -> None:
    def talk_smtp(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(b"220 mail.example.com ESMTP\r\n\r\n")

    error = failure(transport, raw_server(talk_smtp).url)

    assert error.reason == reasons.PROTOCOL_ERROR


def test_a_host_that_does_not_answer_is_a_timeout(api: FakeZithara, make_transport: MakeTransport) -> None:
    api.responder = lambda request: Reply.never()
    started = time.monotonic()

    error = failure(make_transport(timeout_seconds=0.3), api.base_url + "/order")

    assert (error.reason, error.may_have_been_processed, error.again_at_once) == (reasons.TIMEOUT, True, False)
    assert time.monotonic() - started < 3


def test_an_exchange_after_one_that_ran_out_of_time_goes_well(api: FakeZithara, make_transport: MakeTransport) -> None:
    api.responder = in_turn(Reply.never(), Reply())
    transport = make_transport(timeout_seconds=0.3)
    failure(transport, api.base_url + "/order")

    assert exchange(transport, "POST", api.base_url + "/order", b"{}").status == 200


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nX-Slow: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\n\r\nx",
    ],
    ids=["head", "body", "body up to the end of the connection"],
)
def test_a_host_that_drips_bytes_is_cut_off(
    raw_server: Serve, server_tls: ssl.SSLContext, make_transport: MakeTransport, said: bytes, tls: bool
) -> None:
    def drip(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(said)
        while not server.stopping.wait(0.02):
            connection.sendall(b"x")

    server = raw_server(drip, server_tls if tls else None)
    transport = make_transport(timeout_seconds=0.4)
    started = time.monotonic()

    if b"\r\n\r\n" in said:
        # Either a broken answer or none: the host may reset the connection that was shut down, and bytes are lost then.
        with suppress(httpx.ReadTimeout):
            assert exchange(transport, "POST", server.url, b"{}").broken
    else:
        error = failure(transport, server.url)
        assert (error.reason, error.may_have_been_processed) == (reasons.TIMEOUT, True)
    assert 0.3 < time.monotonic() - started < 3


@pytest.mark.parametrize("length", [b"", b"Content-Length: 2\r\n"], ids=["up to the end of the connection", "length"])
def test_a_head_whose_body_does_not_come_is_a_timeout_and_leaves_no_socket_open(
    raw_server: Serve, make_transport: MakeTransport, length: bytes
) -> None:
    def begin(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n")
        server.stopping.wait()

    server = raw_server(begin)

    assert failure(make_transport(timeout_seconds=0.3), server.url).reason == reasons.TIMEOUT
    gc.collect()  # a socket that nobody has closed is a warning, which is an error here


def test_a_host_that_drips_on_a_kept_connection_is_cut_off_too(
    raw_server: Serve, make_transport: MakeTransport
) -> None:
    def answer_then_drip(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(ANSWER)
        read_request(connection)
        while not server.stopping.wait(0.02):
            connection.sendall(b"H")

    server = raw_server(answer_then_drip)
    transport = make_transport(timeout_seconds=0.4)
    exchange(transport, "POST", server.url, b"{}")

    assert failure(transport, server.url).reason == reasons.TIMEOUT
    assert server.connection_count == 1


def test_a_host_that_reads_too_slowly_is_cut_off(raw_server: Serve, make_transport: MakeTransport) -> None:
    def sip(connection: socket.socket, number: int) -> None:
        while not server.stopping.wait(0.02):
            connection.recv(64 * 1024)

    server = raw_server(sip)
    started = time.monotonic()

    error = failure(make_transport(timeout_seconds=0.5), server.url, body=b"x" * 200_000_000)

    assert (error.reason, error.may_have_been_processed) == (reasons.TIMEOUT, True)
    assert time.monotonic() - started < 5


def test_the_deadline_of_one_exchange_does_not_hit_the_next(api: FakeZithara, make_transport: MakeTransport) -> None:
    transport = make_transport(timeout_seconds=0.5)
    order = api.base_url + "/order"
    api.responder = lambda request: Reply().after(0.2)

    assert [exchange(transport, "POST", order, b"{}").status for _ in range(6)] == [200] * 6
    assert api.connection_count == 1


def test_a_body_that_breaks_off_is_a_broken_answer(api: FakeZithara, transport: Transport) -> None:
    api.responder = in_turn(Reply.truncated(), Reply())
    order = api.base_url + "/order"

    answer = exchange(transport, "POST", order, b"{}")

    assert (answer.status, answer.broken) == (200, True)
    assert not exchange(transport, "POST", order, b"{}").broken


def test_an_answer_that_does_not_wait_for_the_whole_request_is_heard(raw_server: Serve, transport: Transport) -> None:
    def refuse(connection: socket.socket, number: int) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    answer = exchange(transport, "POST", raw_server(refuse).url, b"x" * 20_000_000)

    assert answer.status == 413


def test_a_reset_before_anything_was_read_is_no_answer(raw_server: Serve, transport: Transport) -> None:
    def reset(connection: socket.socket, number: int) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    error = failure(transport, raw_server(reset).url)

    assert error.reason in (reasons.CONNECTION_LOST, reasons.PROTOCOL_ERROR, reasons.CONNECT_ERROR)
    assert error.again_at_once


def test_a_header_that_cannot_be_written_is_an_invalid_request(api: FakeZithara, transport: Transport) -> None:
    with pytest.raises(httpx.LocalProtocolError) as caught:
        exchange(transport, "POST", api.base_url + "/order", b"{}", headers={"X-Event": "s3cret\r\nHost: b"})

    failed = failure_of(caught.value)
    assert (failed.reason, failed.evidence, failed.may_have_been_processed) == (
        reasons.INVALID_REQUEST,
        Evidence.NONE,
        False,
    )
    assert "s3cret" not in str(caught.value) and caught.value.__suppress_context__
    assert api.request_count == 0


def test_a_name_that_no_resolver_takes_is_an_invalid_request(transport: Transport) -> None:
    error = failure(transport, f"https://{'x' * 64}.example.com/order")

    assert (error.reason, error.may_have_been_processed, error.again_at_once) == (reasons.INVALID_REQUEST, False, False)
    assert "cannot be looked up" in error.detail


def test_closing_ends_an_exchange_under_way(api: FakeZithara, make_transport: MakeTransport) -> None:
    api.responder = lambda request: Reply.never()
    transport = make_transport(timeout_seconds=60)
    failed: list[Failure] = []
    sending = threading.Thread(target=lambda: failed.append(failure(transport, api.base_url + "/order")))
    sending.start()
    api.wait_for(1)

    transport.close()

    sending.join(5)
    assert failed and failed[0].may_have_been_processed


def test_nothing_is_sent_once_the_transport_is_closed(api: FakeZithara, make_transport: MakeTransport) -> None:
    api.responder = lambda request: Reply()
    used, unused = make_transport(), make_transport()
    exchange(used, "POST", api.base_url + "/order", b"{}")

    for transport in (used, unused):
        transport.close()
        error = failure(transport, api.base_url + "/order")
        assert (error.reason, error.may_have_been_processed) == (reasons.CONNECT_ERROR, False)
    assert api.request_count == 1


# --- TLS


def test_a_host_of_an_authority_in_ca_file_is_trusted(
    server_tls: ssl.SSLContext, ca_file: str, make_transport: MakeTransport
) -> None:
    with FakeZithara(tls=server_tls) as api:
        api.responder = lambda request: Reply()
        transport = make_transport(tls=tls_context(ca_file=ca_file))
        order = api.base_url + "/order"

        assert [exchange(transport, "POST", order, b"{}").status for _ in range(3)] == [200] * 3
        assert api.connection_count == 1
        transport.close()


def test_a_host_of_an_unknown_authority_is_a_tls_error(
    server_tls: ssl.SSLContext, make_transport: MakeTransport
) -> None:
    with FakeZithara(tls=server_tls) as api:
        error = failure(make_transport(tls=tls_context()), api.base_url + "/order")

        assert (error.reason, error.may_have_been_processed, error.again_at_once) == (reasons.TLS_ERROR, False, False)
        assert api.request_count == 0


def test_checks_can_be_switched_off(server_tls: ssl.SSLContext, make_transport: MakeTransport) -> None:
    with FakeZithara(tls=server_tls) as api:
        api.responder = lambda request: Reply()
        transport = make_transport(tls=tls_context(verify=False))
        assert exchange(transport, "POST", api.base_url + "/order", b"{}").status == 200
        transport.close()


def test_a_plain_answer_to_a_tls_greeting_is_a_tls_error(raw_server: Serve, transport: Transport) -> None:
    def speak_plain(connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    error = failure(transport, raw_server(speak_plain).url.replace("http:", "https:"))

    assert (error.reason, error.may_have_been_processed) == (reasons.TLS_ERROR, False)


def test_a_ca_file_without_certificates_is_a_configuration_error(tmp_path: Path) -> None:
    empty = tmp_path / "ca.pem"
    empty.write_text("nothing")

    for file in (empty, tmp_path / "missing.pem"):
        with pytest.raises(ConfigurationError, match=f"ca_file {file}"):
            tls_context(ca_file=str(file))


def test_head_and_body_leave_as_one_record(raw_server: Serve, server_tls: ssl.SSLContext, transport: Transport) -> None:
    read: list[bytes] = []

    def respond(connection: socket.socket, number: int) -> None:
        read.append(connection.recv(65536))
        connection.sendall(ANSWER)

    exchange(transport, "POST", raw_server(respond, server_tls).url, b"x" * 2000)

    assert read[0].endswith(b"\r\n\r\n" + b"x" * 2000)


# --- URLs


@pytest.mark.parametrize(
    "url",
    [
        "http://pos-api.zithara.com/v1",
        "http://10.0.0.1/hook",
        "http://localhost.example.com/hook",
        "http://127.0.0.1.example.com/",
        "http://[2001:db8::1]/",
    ],
)
def test_http_to_another_host_is_refused(url: str) -> None:
    with pytest.raises(UrlRefused, match="use https://") as caught:
        usable_url(url)
    assert caught.value.reason == reasons.INSECURE_URL


@pytest.mark.parametrize("url", ["http://localhost:8080/x", "http://127.0.0.2/x", "http://[::1]:1/x"])
def test_http_to_this_host_is_allowed(url: str) -> None:
    assert usable_url(url).path == "/x"


@pytest.mark.parametrize(
    "url", ["", "/hook", "ftp://example.com/", "https://", "example.com/hook", "http://[::1", "https://h:x/"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UrlRefused) as caught:
        usable_url(url)
    assert caught.value.reason == reasons.INVALID_URL


def test_a_refused_url_does_not_repeat_its_password() -> None:
    with pytest.raises(UrlRefused) as caught:
        usable_url("http://shop:s3cret@example.com/hook?key=s3cret")
    assert "s3cret" not in str(caught.value)


def test_the_name_of_a_host_has_no_password_and_the_port_only_where_it_is_not_the_usual_one() -> None:
    assert origin_of(usable_url("https://example.com:443/a")) == "https://example.com"
    assert origin_of(usable_url("https://example.com:8443/a")) == "https://example.com:8443"
    assert origin_of(usable_url("https://user:pw@bücher.example/a")) == "https://xn--bcher-kva.example"
