"""The local Zithara API behaves like HTTP and like Zithara, and misbehaves exactly as told."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPSConnection, IncompleteRead, RemoteDisconnected

import httpx
import pytest
import trustme
from support.waiting import eventually

from zithara_worker.sandbox.api import TOKEN_PATH, FakeZithara, RecordedRequest, Reply, in_turn


@pytest.fixture
def client(api: FakeZithara) -> Iterator[httpx.Client]:
    """A client with a valid token."""
    with httpx.Client(base_url=api.base_url, headers={"Authorization": api.issue_token()}, timeout=5) as client:
        yield client


def test_requests_are_recorded_as_they_came(api: FakeZithara, client: httpx.Client) -> None:
    assert client.post("/order", json={"order": {"name": "é/1"}}).json() == {"status": 200, "message": "ok"}
    assert client.patch("/order?dry=1", content=b"{}").status_code == 404
    (posted, patched) = api.wait_for(2)
    assert (posted.method, posted.path, posted.json) == ("POST", "/v1/order", {"order": {"name": "é/1"}})
    assert posted.headers["content-type"] == "application/json"
    assert (patched.method, patched.path, patched.body) == ("PATCH", "/v1/order?dry=1", b"{}")
    assert posted.at < patched.at


def test_connection_is_kept_alive(api: FakeZithara, client: httpx.Client) -> None:
    for _ in range(5):
        client.post("/customer", json={})
    assert [request.connection for request in api.requests()] == [1] * 5
    assert api.connection_count == 1


def test_connection_closes_when_the_client_says_so(api: FakeZithara, client: httpx.Client) -> None:
    for _ in range(2):
        assert client.post("/cart", json={}, headers={"Connection": "close"}).headers["connection"] == "close"
    assert api.connection_count == 2


def test_two_requests_sent_at_once_are_answered_in_order(api: FakeZithara) -> None:
    with socket.create_connection(("127.0.0.1", api.port), timeout=5) as wire:
        wire.sendall(
            b"POST /hook HTTP/1.1\r\nContent-Length: 1\r\n\r\n1GET /nothing HTTP/1.1\r\nConnection: close\r\n\r\n"
        )
        answers = b"".join(iter(lambda: wire.recv(65536), b""))
    first, second = (answers.find(b"HTTP/1.1 " + status) for status in (b"200 OK", b"404 Not Found"))
    assert 0 == first < second
    assert [request.body for request in api.requests()] == [b"1", b""]


def test_curl_is_told_to_continue(api: FakeZithara) -> None:
    with socket.create_connection(("127.0.0.1", api.port), timeout=5) as wire:
        wire.sendall(b"POST /hook HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert wire.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        wire.sendall(b"{}")
        assert wire.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"POST /hook HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /hook HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (b"GET /hook HTTP/1.1\r\nX: " + b"x" * 70_000, b"431"),
    ],
)
def test_what_it_cannot_read_is_refused(api: FakeZithara, sent: bytes, status: bytes) -> None:
    with socket.create_connection(("127.0.0.1", api.port), timeout=5) as wire:
        wire.sendall(sent)
        assert wire.recv(65536).startswith(b"HTTP/1.1 " + status)


def test_token_needs_the_right_credentials(api: FakeZithara) -> None:
    wrong = httpx.get(f"{api.base_url}/generate-access-token", headers={"client_id": "x", "client_secret": "y"})
    assert (wrong.status_code, wrong.json()["message"]) == (401, "invalid client credentials")
    credentials = {"client_id": api.client_id, "client_secret": api.client_secret}
    right = httpx.get(f"{api.base_url}/generate-access-token", headers=credentials).json()
    assert right["expires_in"] == 3600
    accepted = httpx.post(f"{api.base_url}/order", json={}, headers={"Authorization": right["access_token"]})
    assert accepted.status_code == 200
    assert httpx.post(f"{api.base_url}/generate-access-token", headers=credentials).status_code == 405
    assert [request.path for request in api.requests()] == ["/v1/order"]
    assert len(api.requests(TOKEN_PATH)) == 3


def test_revoked_token_is_refused_and_a_new_one_works(api: FakeZithara, client: httpx.Client) -> None:
    assert client.post("/order", json={}).status_code == 200
    api.revoke_tokens()
    assert client.post("/order", json={}).status_code == 401
    assert client.post("/order", json={}, headers={"Authorization": api.issue_token()}).status_code == 200
    assert api.tokens_issued == 2


def test_token_expires() -> None:
    with FakeZithara(token_lifetime_seconds=0) as api:
        answer = httpx.post(f"{api.base_url}/order", json={}, headers={"Authorization": api.issue_token()})
    assert answer.status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("PATCH", "/order", b"{}", 200),
        ("GET", "/order", b"", 405),
        ("PATCH", "/customer", b"{}", 405),
        ("POST", "/orders", b"{}", 404),
        ("POST", "/order", b"{", 400),
        ("POST", "/order", b"[]", 400),
    ],
)
def test_endpoints_take_what_zithara_takes(
    client: httpx.Client, method: str, path: str, content: bytes, status: int
) -> None:
    assert client.request(method, path, content=content).status_code == status


def test_webhook_receiver_needs_no_token(api: FakeZithara) -> None:
    assert httpx.post(api.webhook_url, json={"customer_id": "1"}).status_code == 200
    assert httpx.get(api.webhook_url).status_code == 405


def test_responder_decides_and_leaves_the_rest_alone(api: FakeZithara, client: httpx.Client) -> None:
    api.responder = lambda request: Reply.error(503) if request.path == "/v1/cart" else None
    assert client.post("/cart", json={}).json() == {
        "status": 503,
        "error": "Service Unavailable",
        "message": "internal error",
    }
    assert client.post("/order", json={}).status_code == 200


def test_replies_come_in_turn_and_then_ordinary_ones(api: FakeZithara, client: httpx.Client) -> None:
    api.responder = in_turn(Reply.too_many_requests(7), None, Reply.not_json(502), path="/v1/order")
    assert client.post("/cart", json={}).status_code == 200
    answers = [client.post("/order", json={}) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [429, 200, 502, 200]
    assert answers[0].headers["retry-after"] == "7"
    assert answers[2].text.startswith("<html>")


def test_reset_after_the_request_was_read(api: FakeZithara, client: httpx.Client) -> None:
    api.responder = in_turn(Reply.reset())
    with pytest.raises(httpx.ReadError):
        client.post("/order", json={})
    assert len(api.requests()) == 1
    assert client.post("/order", json={}).status_code == 200


def test_reset_before_anything_is_read(api: FakeZithara, client: httpx.Client) -> None:
    api.reset_next_connections(1)
    with pytest.raises(httpx.TransportError):
        client.post("/order", json={})
    assert api.requests() == []
    assert client.post("/order", json={}).status_code == 200


def test_closed_without_an_answer(api: FakeZithara) -> None:
    api.responder = in_turn(Reply.closed())
    connection = HTTPConnection("127.0.0.1", api.port, timeout=5)
    connection.request("POST", "/hook", b"{}")
    with pytest.raises(RemoteDisconnected):
        connection.getresponse()
    connection.close()


def test_truncated_body(api: FakeZithara) -> None:
    api.responder = in_turn(Reply.truncated())
    connection = HTTPConnection("127.0.0.1", api.port, timeout=5)
    connection.request("POST", "/hook", b"{}")
    with pytest.raises(IncompleteRead):
        connection.getresponse().read()
    connection.close()


def test_idle_connections_can_be_dropped(api: FakeZithara, client: httpx.Client) -> None:
    client.post("/order", json={})
    api.drop_connections()
    eventually(lambda: api.open_connection_count == 0)
    assert client.post("/order", json={}).status_code == 200
    assert api.connection_count == 2


def test_delayed_answer_takes_its_time(api: FakeZithara, client: httpx.Client) -> None:
    api.responder = in_turn(Reply().after(0.2))
    assert client.post("/order", json={}).elapsed.total_seconds() >= 0.2


def test_latency_delays_every_ordinary_answer() -> None:
    with FakeZithara(latency_seconds=0.1) as api:
        assert httpx.post(api.webhook_url, json={}).elapsed.total_seconds() >= 0.1


def test_held_requests_are_answered_when_the_test_lets_go(api: FakeZithara) -> None:
    gate = threading.Event()
    api.responder = lambda _: Reply().held(gate)
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(httpx.post(api.webhook_url, json={}).status_code))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    api.wait_for(3)
    assert statuses == []
    gate.set()
    for thread in threads:
        thread.join(5)
    assert statuses == [200, 200, 200]
    assert api.most_in_flight == 3


def test_unanswered_request_ends_with_the_server() -> None:
    with FakeZithara() as api:
        api.responder = lambda _: Reply.never()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(api.webhook_url, json={}, timeout=0.2)
    assert api.open_connection_count == 0


def test_server_comes_back_on_its_port_after_an_outage(api: FakeZithara) -> None:
    assert httpx.post(api.webhook_url, json={}).status_code == 200
    port = api.port
    api.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.post(api.webhook_url, json={})
    api.start()
    assert api.port == port
    assert httpx.post(api.webhook_url, json={}).status_code == 200
    assert len(api.requests()) == 2


def test_waiting_in_vain_tells_what_came_instead(api: FakeZithara, client: httpx.Client) -> None:
    client.post("/cart", json={})
    with pytest.raises(AssertionError, match=r"0 of 1 expected requests for /v1/order .*POST /v1/cart"):
        api.wait_for(path="/v1/order", within=0.05)


def test_waiting_sees_requests_that_come_later(api: FakeZithara) -> None:
    def post_twice() -> None:
        for number in (1, 2):
            httpx.post(api.webhook_url, json={"number": number})

    sender = threading.Thread(target=post_twice)
    sender.start()

    def is_second(request: RecordedRequest) -> bool:
        return bool(request.json["number"] == 2)

    assert [request.json for request in api.wait_for(1, matching=is_second)] == [{"number": 2}]
    sender.join(5)


def test_record_is_bounded_and_bodies_can_be_left_out() -> None:
    with FakeZithara(keep_requests=2, keep_bodies=False) as api, httpx.Client() as client:
        for number in range(3):
            client.post(api.webhook_url, json={"number": number})
        assert [(request.number, request.body) for request in api.requests()] == [(2, b""), (3, b"")]
        assert api.request_count == 3
        api.forget_requests()
        assert api.requests() == []


def test_serves_https() -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with FakeZithara(tls=context) as api:
        assert api.base_url.startswith("https://127.0.0.1:")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.post(api.webhook_url, json={})
        connection = HTTPSConnection("127.0.0.1", api.port, timeout=5, context=trusting)
        connection.request("POST", "/hook", b"{}")
        assert connection.getresponse().status == 200
        connection.close()
        assert len(api.requests()) == 1
