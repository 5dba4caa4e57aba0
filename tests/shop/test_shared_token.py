"""The token that all workers share, in the shop's database."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from support.waiting import eventually, together
from support.workers import settings_of

from zithara_worker.database.session import Database
from zithara_worker.sandbox.api import FakeZithara
from zithara_worker.sandbox.shop import Shop
from zithara_worker.settings.values import Secret
from zithara_worker.shop.configuration import shared_token
from zithara_worker.zithara.http import Transport, tls_context
from zithara_worker.zithara.tokens import TokenSource, TokenUnavailable


@pytest.fixture
def transport() -> Iterator[Transport]:
    made = Transport(tls=tls_context(verify=False), timeout_seconds=5)
    yield made
    made.close()


@pytest.fixture
def make_tokens(shop: Shop, api: FakeZithara, transport: Transport) -> Callable[..., TokenSource]:
    """A worker's tokens; its sessions are in `make_tokens.opened`."""

    def make(owner: str = "worker-a", **changes: object) -> TokenSource:
        def open_database() -> Database:
            opened.append(Database(settings_of(shop, **changes)))
            return opened[-1]

        return TokenSource(
            base_url=api.base_url,
            client_id=api.client_id,
            client_secret=Secret(api.client_secret),
            shared_token=lambda: shared_token(open_database(), owner=owner),
            clock=time.time,
            transport=transport,
        )

    opened: list[Database] = []
    make.opened = opened  # type: ignore[attr-defined]
    return make


def locks_of(shop: Shop) -> list[tuple[str, str]]:
    return [(row[0], row[1]) for row in shop.query("SELECT name, owner FROM {prefix}zithara_lock")]


def test_the_first_worker_asks_and_the_second_takes_what_it_wrote(
    shop: Shop, api: FakeZithara, make_tokens: Callable[..., TokenSource]
) -> None:
    token = make_tokens().get()
    assert make_tokens("worker-b").get() == token
    assert api.tokens_issued == 1
    assert locks_of(shop) == []
    assert shop.query("SELECT access_token FROM {prefix}zithara_webhook_config") == [(token,)]


def test_a_good_token_costs_no_statement_and_a_shared_one_no_lock(make_tokens: Callable[..., TokenSource]) -> None:
    tokens = make_tokens()
    tokens.get()
    opened: list[Database] = make_tokens.opened  # type: ignore[attr-defined]
    assert len(opened) == 1
    assert tokens.get() == tokens.get()
    assert len(opened) == 1
    make_tokens("worker-b").get()
    assert opened[1].statements_sent == len(("server", "indexes_of_status", "token_load"))


def test_the_session_of_each_use_is_closed_with_it(shop: Shop, make_tokens: Callable[..., TokenSource]) -> None:
    """A worker would otherwise keep one session more for every hour of its life."""
    make_tokens().get()
    sessions = "SELECT COUNT(*) FROM information_schema.processlist WHERE user = %s"
    eventually(lambda: shop.query(sessions, (shop.user,)) == [(0,)])


def test_workers_that_are_refused_together_renew_once(
    api: FakeZithara, make_tokens: Callable[..., TokenSource]
) -> None:
    workers = [make_tokens(f"worker-{number}") for number in range(6)]
    (rejected,) = {worker.get() for worker in workers}
    got = together(partial(worker.refresh, rejected) for worker in workers)
    assert (len(got), len(set(got)), api.tokens_issued) == (6, 1, 2)


def test_a_worker_that_died_while_it_renewed_stands_in_the_way_until_its_lease_ends(
    shop: Shop, api: FakeZithara, make_tokens: Callable[..., TokenSource]
) -> None:
    shop.query("INSERT INTO {prefix}zithara_lock VALUES ('token', 'dead', UTC_TIMESTAMP(3) + INTERVAL 0.5 SECOND)")
    began = time.monotonic()
    make_tokens().get()
    assert time.monotonic() - began >= 0.4
    assert (api.tokens_issued, locks_of(shop)) == (1, [])


def test_without_the_right_to_lock_the_token_is_renewed_all_the_same(
    shop: Shop, api: FakeZithara, make_tokens: Callable[..., TokenSource]
) -> None:
    shop.query(f"REVOKE INSERT ON {shop.name}.{{prefix}}zithara_lock FROM '{shop.user}'@'%'")
    assert make_tokens().get()
    assert api.tokens_issued == 1


@pytest.mark.parametrize("changes", [{"password": Secret("wrong")}, {"name": "nowhere"}, {"unix_socket": "/nowhere"}])
def test_a_database_that_lets_nobody_in_is_a_token_that_cannot_be_had_now(
    api: FakeZithara, make_tokens: Callable[..., TokenSource], changes: dict[str, object]
) -> None:
    with pytest.raises(TokenUnavailable, match="cannot be read"):
        make_tokens(**changes).get()
    assert api.request_count == 0
