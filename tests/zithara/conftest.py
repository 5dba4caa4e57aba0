"""Transports that are closed after the test, and a client of the local API."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support.clock import Clock
from support.raw_server import RawServer, Script
from zithara_doubles import MemoryStore, Pauses

from zithara_worker.sandbox.api import FakeZithara
from zithara_worker.settings.values import Secret
from zithara_worker.zithara.api import ZitharaApi
from zithara_worker.zithara.http import Transport, tls_context
from zithara_worker.zithara.tokens import TokenSource


@pytest.fixture(scope="session")
def trusting_all() -> ssl.SSLContext:
    return tls_context(verify=False)


@pytest.fixture
def make_transport(trusting_all: ssl.SSLContext) -> Iterator[Callable[..., Transport]]:
    """make_transport(timeout_seconds=5.0, tls=...)"""
    with ExitStack() as transports:

        def make(
            *,
            timeout_seconds: float = 5.0,
            tls: ssl.SSLContext = trusting_all,
            monotonic: Callable[[], float] = time.monotonic,
        ) -> Transport:
            made = Transport(tls=tls, timeout_seconds=timeout_seconds, monotonic=monotonic)
            transports.callback(made.close)
            return made

        yield make


@pytest.fixture
def raw_server() -> Iterator[Callable[..., RawServer]]:
    """raw_server(script, tls=...)"""
    with ExitStack() as servers:

        def serve(script: Script, tls: ssl.SSLContext | None = None) -> RawServer:
            server = RawServer(script, tls)
            servers.callback(server.close)
            return server

        yield serve


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def transport(make_transport: Callable[..., Transport]) -> Transport:
    return make_transport()


@pytest.fixture
def make_tokens(api: FakeZithara, store: MemoryStore, clock: Clock, transport: Transport) -> Callable[..., TokenSource]:
    """make_tokens(pause=...): what TokenSource takes, in the place of what the other fixtures give."""

    def make(**changes: Any) -> TokenSource:
        credentials = {"client_id": api.client_id, "client_secret": Secret(api.client_secret)}
        given = {"base_url": api.base_url, "shared_token": store.opened, "clock": clock, "transport": transport}
        return TokenSource(**{**given, **credentials, **changes})

    return make


@pytest.fixture
def tokens(make_tokens: Callable[..., TokenSource]) -> TokenSource:
    return make_tokens()


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
def make_api(
    api: FakeZithara, tokens: TokenSource, transport: Transport, clock: Clock, pauses: Pauses
) -> Callable[..., ZitharaApi]:
    """make_api(mask=False): what ZitharaApi takes, in the place of what the other fixtures give."""

    def make(**changes: Any) -> ZitharaApi:
        given = {"base_url": api.base_url, "tokens": tokens, "transport": transport, "pause": pauses, "now_utc": clock}
        return ZitharaApi(**{**given, **changes})

    return make


@pytest.fixture
def zithara(make_api: Callable[..., ZitharaApi]) -> ZitharaApi:
    return make_api()
