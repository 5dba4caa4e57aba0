"""An API that answers every request twice: no message is settled by an answer that was not its own."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import trustme
from support.processes import WorkerProcess
from support.raw_server import RawServer, answer, filling_answer, read_request

from zithara_worker.queue.statuses import Status
from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import TOPIC_CART

CARTS = 100
OK, REFUSED = "200 OK", "422 Unprocessable Content"
TOKEN = answer(OK, b'{"access_token": "abc", "expires_in": 3600}')


class Doubler:
    """Answers every message twice, the second time otherwise; half the answers leave the second in the socket."""

    def __init__(self) -> None:
        #: What each cart that was read whole has been answered; its id is its answer's number.
        self.own: dict[str, Status] = {}

    def __call__(self, connection: socket.socket, number: int) -> None:
        while request := read_request(connection):
            head, _, body = request.partition(b"\r\n\r\n")
            if head.startswith(b"GET "):
                connection.sendall(TOKEN)
                continue
            cart = json.loads(body)["cart"]["platform_cart_id"]
            refused, short = int(cart) % 2, int(cart) % 4 < 2
            self.own[cart] = Status.ERROR if refused else Status.COMPLETE
            own, other = (REFUSED, OK) if refused else (OK, REFUSED)
            connection.sendall((answer if short else filling_answer)(own) + answer(other))


@pytest.mark.parametrize("secured", [False, True], ids=["tcp", "tls"])
def test_every_cart_has_been_read_whole_and_has_the_outcome_of_its_own_answer(
    shop: Shop, worker_config: Callable[..., Path], tmp_path: Path, secured: bool
) -> None:
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    carts = {shop.publish_cart(str(number)).relation_id: str(number) for number in range(1, CARTS + 1)}
    doubler = Doubler()
    with closing(RawServer(doubler, tls if secured else None)) as server:
        api = {"base_url": server.url.removesuffix("/order"), "ca_file": str(tmp_path / "ca.pem")}
        with WorkerProcess(worker_config(zithara=api), "consume", TOPIC_CART, "--stop-when-empty") as worker:
            assert worker.wait(within=60) == 0

    assert len(doubler.own) == CARTS
    assert {carts[row.relation_id]: Status(row.status) for row in shop.rows()} == doubler.own
