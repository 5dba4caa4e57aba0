from __future__ import annotations

import logging
import traceback
from collections.abc import Callable

import pytest
from support.clock import Clock
from support.waiting import together
from zithara_doubles import MemoryStore, Pauses

from zithara_worker.errors import ConfigurationError, DatabaseUnavailable, ShopError
from zithara_worker.sandbox.api import TOKEN_PATH, FakeZithara, Reply
from zithara_worker.settings.values import Secret
from zithara_worker.zithara.tokens import CredentialsRefused, TokenSource, TokenUnavailable

MakeTokens = Callable[..., TokenSource]


def stored(clock: Clock, token: str = "shared-token", seconds: float = 600) -> tuple[Secret, float]:
    return (Secret(token), clock() + seconds)


def answer_tokens_with(api: FakeZithara, reply: Reply) -> None:
    api.responder = lambda request: reply if request.path == TOKEN_PATH else None


def at_once(action: Callable[[], str], threads: int = 16) -> tuple[list[str], list[Exception]]:
    """What came of it in so many threads that start together."""
    results: list[str] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(action())
        except (TokenUnavailable, CredentialsRefused) as error:
            errors.append(error)

    together([run] * threads)
    return results, errors


def test_without_a_stored_token_one_is_asked_for_and_shared(
    api: FakeZithara, tokens: TokenSource, store: MemoryStore, clock: Clock
) -> None:
    token = tokens.get()

    (request,) = api.requests(TOKEN_PATH)
    assert request.method == "GET"
    assert (request.headers["client_id"], request.headers["client_secret"]) == (api.client_id, api.client_secret)
    assert store.token == (Secret(token), clock() + 3600)
    assert not store.saved_unlocked


def test_a_stored_token_is_used_as_it_is(
    api: FakeZithara, tokens: TokenSource, store: MemoryStore, clock: Clock
) -> None:
    store.token = stored(clock, seconds=61)

    assert tokens.get() == "shared-token"
    assert api.request_count == 0


@pytest.mark.parametrize("seconds", [60, 1, 0, -5000])
def test_a_token_that_is_about_to_end_is_renewed(
    api: FakeZithara, tokens: TokenSource, store: MemoryStore, clock: Clock, seconds: float
) -> None:
    store.token = stored(clock, seconds=seconds)

    assert tokens.get() != "shared-token"
    assert (tokens.refresh_count, api.tokens_issued) == (1, 1)


def test_a_token_is_kept_until_a_minute_before_its_end(tokens: TokenSource, store: MemoryStore, clock: Clock) -> None:
    first = tokens.get()
    loads = store.loads
    clock.now += 3600 - 61
    assert tokens.get() == first
    assert store.loads == loads

    clock.now += 2
    assert tokens.get() != first


def test_a_token_that_lives_for_less_than_a_minute_is_not_asked_for_each_time(
    api: FakeZithara, tokens: TokenSource, clock: Clock
) -> None:
    answer_tokens_with(api, Reply.of(200, {"access_token": "brief", "expires_in": 40}))

    assert [tokens.get() for _ in range(5)] == ["brief"] * 5
    assert api.request_count == 1
    clock.now += 21
    tokens.get()
    assert api.request_count == 2


@pytest.mark.parametrize(
    ("answered", "seconds"), [(None, 3600), ("soon", 3600), (0, 3600), (True, 3600), ("1800", 1800), (90.5, 90.5)]
)
def test_the_lifetime_is_what_the_api_says_or_an_hour(
    api: FakeZithara, tokens: TokenSource, store: MemoryStore, clock: Clock, answered: object, seconds: float
) -> None:
    answer = {"access_token": "t1"} if answered is None else {"access_token": "t1", "expires_in": answered}
    answer_tokens_with(api, Reply.of(200, answer))

    tokens.get()

    assert store.token == (Secret("t1"), clock() + seconds)


def test_threads_that_need_a_token_together_cause_one_request(api: FakeZithara, tokens: TokenSource) -> None:
    results, errors = at_once(tokens.get)

    assert (len(results), len(set(results)), errors) == (16, 1, [])
    assert api.tokens_issued == 1


def test_threads_refused_with_the_same_token_cause_one_refresh(api: FakeZithara, tokens: TokenSource) -> None:
    old = tokens.get()

    results, errors = at_once(lambda: tokens.refresh(old))

    assert (len(results), len(set(results)), errors) == (16, 1, [])
    assert results[0] != old
    assert (api.tokens_issued, tokens.refresh_count) == (2, 2)


def test_a_token_that_another_worker_has_saved_is_used_instead_of_a_new_one(
    api: FakeZithara, tokens: TokenSource, store: MemoryStore, clock: Clock
) -> None:
    old = tokens.get()
    store.token = stored(clock, "of-another-worker")

    assert tokens.refresh(old) == "of-another-worker"
    assert tokens.get() == "of-another-worker"
    assert api.tokens_issued == 1


def test_two_workers_that_are_refused_together_cause_one_refresh(api: FakeZithara, make_tokens: MakeTokens) -> None:
    workers = [make_tokens() for _ in range(2)]
    old = {worker.get() for worker in workers}
    assert len(old) == 1
    rejected = old.pop()

    turns = iter(workers * 8)
    results, errors = at_once(lambda: next(turns).refresh(rejected))

    assert (len(set(results)), errors) == (1, [])
    assert api.tokens_issued == 2


def test_a_refused_token_is_not_taken_from_the_store_again(
    api: FakeZithara, tokens: TokenSource, store: MemoryStore, clock: Clock
) -> None:
    store.token = stored(clock)
    assert tokens.get() == "shared-token"
    answer_tokens_with(api, Reply.error(500))
    with pytest.raises(TokenUnavailable):
        tokens.refresh("shared-token")
    api.responder = None
    clock.now += 2

    assert tokens.get() != "shared-token"


@pytest.mark.parametrize("status", [400, 401, 403])
def test_refused_credentials_are_told_from_a_sick_api(api: FakeZithara, tokens: TokenSource, status: int) -> None:
    answer_tokens_with(api, Reply.error(status, "invalid client"))

    with pytest.raises(CredentialsRefused, match=rf"HTTP {status}.*invalid client"):
        tokens.get()


@pytest.mark.parametrize(
    "reply",
    [
        Reply.error(500),
        Reply.error(429),
        Reply.error(404),
        Reply.of(200, {"status": 503, "message": "busy"}),
        Reply.of(200, {"token": "elsewhere"}),
        Reply.of(200, {"access_token": ""}),
        Reply.of(200, {"access_token": "two words"}),
        Reply.of(200, {"access_token": "a\r\nX-Evil: 1"}),
        Reply.of(200, ["access_token"]),
        Reply.not_json(),
        Reply(200, b"[" * 60_000),
        Reply.truncated(),
        Reply.reset(),
        Reply.closed(),
    ],
)
def test_no_usable_answer_is_a_passing_failure(api: FakeZithara, tokens: TokenSource, reply: Reply) -> None:
    answer_tokens_with(api, reply)

    with pytest.raises(TokenUnavailable, match=rf"no access token from {api.origin}: .+"):
        tokens.get()


def test_a_failure_is_shared_for_a_second_and_then_tried_again(
    api: FakeZithara, tokens: TokenSource, clock: Clock
) -> None:
    answer_tokens_with(api, Reply.error(500))

    results, errors = at_once(tokens.get)

    assert (results, len(errors)) == ([], 16)
    assert api.request_count == 1
    api.responder = None
    clock.now += 0.9
    with pytest.raises(TokenUnavailable):
        tokens.get()
    clock.now += 0.2
    assert tokens.get().startswith("sandbox-token")


class BrokenStore(MemoryStore):
    """Fails in one place."""

    def __init__(self, where: str, error: Exception) -> None:
        super().__init__()
        self._where = where
        self._error = error

    def load(self) -> tuple[Secret, float] | None:
        if self._where == "load":
            raise self._error
        return super().load()

    def save(self, token: Secret, expires_at_utc: float) -> None:
        if self._where == "save":
            raise self._error
        super().save(token, expires_at_utc)

    def lock(self) -> bool:
        if self._where == "lock":
            raise self._error
        return super().lock()


@pytest.mark.parametrize("where", ["load", "lock"])
@pytest.mark.parametrize("error", [DatabaseUnavailable("gone away"), ConfigurationError("gone away: refused the user")])
def test_a_database_that_cannot_be_asked_is_a_passing_failure(
    api: FakeZithara, make_tokens: MakeTokens, where: str, error: Exception
) -> None:
    with pytest.raises(TokenUnavailable, match="gone away"):
        make_tokens(shared_token=BrokenStore(where, error).opened).get()
    assert api.request_count == 0


def test_a_lock_that_the_database_refuses_is_no_reason_not_to_deliver(
    make_tokens: MakeTokens, caplog: pytest.LogCaptureFixture
) -> None:
    store = BrokenStore("lock", ShopError("INSERT command denied on zithara_lock: grant it"))

    assert make_tokens(shared_token=store.opened).get().startswith("sandbox-token")
    assert store.token is not None
    (told,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert (told.event, "grant it" in told.detail) == ("token_not_locked", True)


def test_what_another_worker_gets_meanwhile_is_used_without_its_lock(
    api: FakeZithara, store: MemoryStore, clock: Clock, make_tokens: MakeTokens
) -> None:
    store.locked_elsewhere = True
    pauses: list[float] = []

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        if len(pauses) == 3:
            store.token = stored(clock, "of-another-worker")
        return False

    assert make_tokens(pause=pause).get() == "of-another-worker"
    assert (pauses, api.request_count) == ([0.2] * 3, 0)


def test_a_worker_that_renews_for_ever_does_not_stop_the_others(
    store: MemoryStore, make_tokens: MakeTokens, pauses: Pauses
) -> None:
    store.locked_elsewhere = True

    assert make_tokens(pause=pauses).get().startswith("sandbox-token")
    assert sum(pauses) == pytest.approx(15)


def test_a_worker_that_stops_does_not_wait_for_anothers_token(
    api: FakeZithara, store: MemoryStore, make_tokens: MakeTokens
) -> None:
    store.locked_elsewhere = True

    with pytest.raises(TokenUnavailable, match="stopped"):
        make_tokens(pause=lambda seconds: True).get()
    assert api.request_count == 0


@pytest.mark.parametrize("error", [DatabaseUnavailable("gone away"), ShopError("no active row")])
def test_a_token_that_cannot_be_saved_is_used_all_the_same(
    api: FakeZithara, make_tokens: MakeTokens, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    tokens = make_tokens(shared_token=BrokenStore("save", error).opened)

    token = tokens.get()

    assert tokens.get() == token
    assert api.tokens_issued == 1
    assert [record.levelname for record in caplog.records if "not saved" in record.message] == ["WARNING"]


def test_credentials_are_never_shown(
    api: FakeZithara, clock: Clock, store: MemoryStore, tokens: TokenSource, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    first = tokens.get()
    tokens.refresh(first)
    answer_tokens_with(api, Reply.error(500, f"bad header client_secret={api.client_secret} token={first}"))
    clock.now += 5000
    with pytest.raises(TokenUnavailable) as caught:
        tokens.get()

    shown = caplog.text + repr(tokens) + repr(store.token) + str(caught.value) + repr(caught.value)
    assert "bad header" in shown
    assert api.client_secret not in shown
    assert first not in shown and "sandbox-token" not in shown


@pytest.mark.parametrize("secret", ["hush\r\nhush", "hush \ud83d"])
def test_a_secret_that_cannot_be_sent_is_refused_and_not_shown(
    api: FakeZithara, make_tokens: MakeTokens, secret: str
) -> None:
    with pytest.raises(CredentialsRefused, match="cannot be sent") as caught:
        make_tokens(client_secret=Secret(secret)).get()

    assert "hush" not in "".join(traceback.format_exception(caught.value))
    assert api.request_count == 0


def test_tokens_are_masked_also_in_the_spelling_of_php(
    api: FakeZithara, tokens: TokenSource, store: MemoryStore, clock: Clock
) -> None:
    store.token = stored(clock, "abc/def==")
    tokens.get()

    assert tokens.mask(r'{"a":"abc\/def==","b":"abc/def=="}') == '{"a":"[masked]","b":"[masked]"}'


def test_credentials_do_not_travel_in_clear(make_tokens: MakeTokens) -> None:
    with pytest.raises(ConfigurationError, match="use https://"):
        make_tokens(base_url="http://pos-api.zithara.com/v1")
