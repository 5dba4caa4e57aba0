"""The listener finds its port, answers, and is disturbed by nobody."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http import HTTPStatus

import httpx
import pytest
from support.waiting import eventually

from zithara_worker.monitor import server
from zithara_worker.monitor.server import Listener, NoFreePort, Reply, as_json, text
from zithara_worker.settings.sections import MetricsSettings

ROUTES = {"/": lambda accept: Reply(body=b"hello", headers={"X-Accept": accept})}


@pytest.fixture
def listeners() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def started(stack: ExitStack, listen: str = "127.0.0.1:0", routes: server.Routes = ROUTES) -> Listener:
    listener = Listener(listen, routes)
    listener.start()
    stack.callback(listener.close)
    return listener


def test_page_is_served_with_its_headers(listeners: ExitStack) -> None:
    address = started(listeners).address
    answer = httpx.get(f"http://{address}/?a=b", headers={"Accept": "text/x"})
    assert (answer.status_code, answer.text, answer.headers["x-accept"]) == (200, "hello", "text/x")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "Python" not in answer.headers["server"]
    head = httpx.head(f"http://{address}/")
    assert (head.status_code, head.text, head.headers["content-length"]) == (200, "", "5")


def test_other_paths_and_methods_are_refused(listeners: ExitStack) -> None:
    address = started(listeners).address
    assert httpx.get(f"http://{address}/etc/passwd").status_code == 404
    assert httpx.post(f"http://{address}/").status_code == 501


def test_next_free_port_is_taken_and_told(listeners: ExitStack, caplog: pytest.LogCaptureFixture) -> None:
    first = started(listeners)
    second = started(listeners, first.address)
    assert second.address != first.address
    taken, got = (int(each.address.rpartition(":")[2]) for each in (first, second))
    assert taken < got <= taken + server.NEXT_PORTS
    assert [each.levelname for each in caplog.records if f"port {taken} is taken" in each.message] == ["WARNING"]
    assert httpx.get(f"http://{second.address}/").text == "hello"


def test_workers_that_share_the_default_address_make_no_noise(
    listeners: ExitStack, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    first = started(listeners)
    monkeypatch.setattr(server, "DEFAULT_LISTEN", first.address)
    started(listeners, first.address)
    assert {each.levelname for each in caplog.records} == {"INFO"} and "is taken" in caplog.text


def test_no_free_port_is_told_with_the_remedy(listeners: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "NEXT_PORTS", 0)
    first = started(listeners)
    with pytest.raises(NoFreePort, match="name another address, or leave it empty"):
        started(listeners, first.address)
    with pytest.raises(NoFreePort, match="no such host"):
        Listener("nowhere.invalid:9209", ROUTES).start()


def test_port_is_free_again_after_closing(listeners: ExitStack) -> None:
    listener = Listener("127.0.0.1:0", ROUTES)
    listener.start()
    address = listener.address
    httpx.get(f"http://{address}/")
    listener.close()
    listener.close()
    again = started(listeners, address)
    assert again.address == address


def test_ipv6_address_is_written_with_brackets(listeners: ExitStack) -> None:
    listener = started(listeners, "[::1]:0")
    assert listener.address.startswith("[::1]:")
    assert httpx.get(f"http://{listener.address}/").text == "hello"
    assert MetricsSettings(listen=listener.address)


def test_defect_of_a_page_is_answered_and_logged(listeners: ExitStack, caplog: pytest.LogCaptureFixture) -> None:
    def broken(accept: str) -> Reply:
        raise RuntimeError("secret detail")

    address = started(listeners, routes={"/": broken}).address
    answer = httpx.get(f"http://{address}/")
    assert answer.status_code == 500 and "secret" not in answer.text
    assert "page_failed" in {getattr(record, "event", "") for record in caplog.records}
    assert httpx.get(f"http://{address}/").status_code == 500


def test_crowd_is_turned_away_and_comes_in_later(listeners: ExitStack) -> None:
    gate, inside = threading.Event(), threading.Semaphore(0)

    def slow(accept: str) -> Reply:
        inside.release()
        assert gate.wait(10)
        return Reply()

    address = started(listeners, routes={"/": slow, "/quick": lambda accept: Reply(body=b"ok")}).address
    crowd = [
        threading.Thread(target=httpx.get, args=(f"http://{address}/",), kwargs={"timeout": 20})
        for _ in range(server.MAX_CONNECTIONS)
    ]
    for each in crowd:
        each.start()
    for _ in crowd:
        assert inside.acquire(timeout=5)
    with socket.create_connection(address.split(":")) as wire:  # httpx would send first, and may find the door shut
        assert wire.recv(100).startswith(b"HTTP/1.1 503")
    gate.set()
    for each in crowd:
        each.join()
    assert eventually(lambda: httpx.get(f"http://{address}/quick").status_code == 200)


def test_silent_client_is_left_after_a_while(listeners: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.1)
    address = started(listeners).address
    with socket.create_connection(address.split(":")) as wire:
        wire.settimeout(5)
        wire.sendall(b"GET / HT")
        assert wire.recv(100) == b""


def test_a_client_that_drips_bytes_has_no_more_time_than_one_that_is_silent(
    listeners: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.2)
    address = started(listeners).address
    ended = threading.Event()
    with socket.create_connection(address.split(":")) as wire:

        def drip() -> None:
            with suppress(OSError):
                while not ended.wait(0.02):
                    wire.sendall(b"G")

        dripping = threading.Thread(target=drip)
        dripping.start()
        wire.settimeout(5)
        with suppress(ConnectionResetError):
            assert wire.recv(100) == b""
        ended.set()
        dripping.join()


def test_slow_clients_on_all_connections_give_way_to_a_request(listeners: ExitStack) -> None:
    address = started(listeners).address
    slow = [
        listeners.enter_context(socket.create_connection(address.split(":"))) for _ in range(server.MAX_CONNECTIONS)
    ]
    for wire in slow:
        wire.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
    for _ in range(3 * server.MAX_CONNECTIONS):
        assert httpx.get(f"http://{address}/").text == "hello"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((host, 200) for host in ("localhost:9209", "127.0.0.1", "[::1]:9209", "10.0.0.7:9209", "worker:9209", "")),
        *((host, 421) for host in ("evil.example", "evil.example:9209", "127.0.0.1.evil.example", "[::1", "a.b@c.d")),
    ],
)
def test_only_who_asks_for_this_host_is_answered(listeners: ExitStack, host: str, status: int) -> None:
    address = started(listeners).address
    assert httpx.get(f"http://{address}/", headers={"Host": host}).status_code == status


def test_the_name_in_listen_and_the_hosts_own_are_its_own(
    listeners: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Shop1.example.org")
    listener = started(listeners)
    assert httpx.get(f"http://{listener.address}/", headers={"Host": "shop1.example.org:9209"}).status_code == 200
    assert httpx.get(f"http://{listener.address}/", headers={"Host": "shop2.example.org:9209"}).status_code == 421


def test_listening_on_all_addresses_is_warned_of(listeners: ExitStack, caplog: pytest.LogCaptureFixture) -> None:
    started(listeners)
    assert "all addresses" not in caplog.text
    started(listeners, "0.0.0.0:0")
    assert "all addresses" in caplog.text


def test_json_is_whole_whatever_it_holds() -> None:
    assert as_json(HTTPStatus.OK, {"text": "é\udc80"}).body == '{"text": "é\\udc80"}\n'.encode()
    assert text(HTTPStatus.NOT_IMPLEMENTED, "no").body == b"no\n"
