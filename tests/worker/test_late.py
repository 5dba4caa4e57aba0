"""A request that waits when the worker gives its message back as `late` never leaves, whatever it waited for."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import trustme
from support.raw_server import RawServer, answer, read_request
from support.waiting import eventually
from worker.test_outage import running, settings_for

from zithara_worker import Worker
from zithara_worker.messages import Outcome, OutcomeKind
from zithara_worker.queue.message_queue import MessageQueue
from zithara_worker.queue.settle import Settled, Settlement
from zithara_worker.reasons import LATE
from zithara_worker.sandbox.api import FakeZithara, Reply
from zithara_worker.sandbox.shop import Shop
from zithara_worker.zithara.api import ZitharaApi


@pytest.fixture
def goes_on_when_late(monkeypatch: pytest.MonkeyPatch) -> Callable[[threading.Event], list[Outcome]]:
    """goes_on_when_late(gate): what the request waits for comes as soon as its message has been given back, while the
    worker still ends. The list gets what came of the request."""
    outcomes: list[Outcome] = []
    settle, send = MessageQueue.settle, ZitharaApi.send

    def arrange(gate: threading.Event) -> list[Outcome]:
        def settled(self: MessageQueue, settlements: Sequence[Settlement], **more: Any) -> Settled:
            done = settle(self, settlements, **more)
            if any(each.outcome.reason == LATE for each in settlements):
                gate.set()
                eventually(lambda: outcomes)
            return done

        def sent(self: ZitharaApi, *arguments: Any, **more: Any) -> Outcome:
            outcomes.append(send(self, *arguments, **more))
            return outcomes[-1]

        monkeypatch.setattr(MessageQueue, "settle", settled)
        monkeypatch.setattr(ZitharaApi, "send", sent)
        return outcomes

    return arrange


def test_a_request_that_waits_for_its_token_is_not_sent_once_it_is_late(
    shop: Shop, api: FakeZithara, goes_on_when_late: Callable[[threading.Event], list[Outcome]]
) -> None:
    gate = threading.Event()
    outcomes = goes_on_when_late(gate)
    api.responder = lambda request: Reply.of(200, {"access_token": "t", "expires_in": 3600}).held(gate)
    shop.publish_order("1")
    with running(Worker(settings_for(shop, api, shutdown_timeout=0.1))):
        eventually(lambda: api.requests("/v1/generate-access-token"))
    assert [outcome.kind for outcome in outcomes] == [OutcomeKind.LEASE_LOST]
    assert api.requests("/v1/order") == []
    assert shop.statuses() == [2]


def test_a_request_that_waits_for_its_connection_is_not_sent_once_it_is_late(
    shop: Shop, api: FakeZithara, goes_on_when_late: Callable[[threading.Event], list[Outcome]], tmp_path: Path
) -> None:
    """The handshake ends only when the message has been given back."""
    gate, requests = threading.Event(), []
    outcomes = goes_on_when_late(gate)
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    def serve(connection: socket.socket, number: int) -> None:
        gate.wait()
        with tls.wrap_socket(connection, server_side=True) as secured:
            if request := read_request(secured):
                requests.append(request)
                secured.sendall(answer("200 OK"))

    in_an_hour = (datetime.now(timezone.utc) + timedelta(hours=1)).strftime("%Y-%m-%d %H:%M:%S")
    shop.configure_webhook(access_token="t", token_expiry=in_an_hour)
    server = RawServer(serve)
    try:
        settings = settings_for(shop, api, shutdown_timeout=0.1)
        base_url = server.url.replace("http:", "https:").removesuffix("/order")
        zithara = replace(settings.zithara, base_url=base_url, ca_file=str(tmp_path / "ca.pem"))
        shop.publish_order("1")
        with running(Worker(replace(settings, zithara=zithara))):
            eventually(lambda: server.connection_count)
    finally:
        gate.set()
        server.close()
    assert [outcome.kind for outcome in outcomes] == [OutcomeKind.LEASE_LOST]
    assert requests == []
    assert shop.statuses() == [2]
