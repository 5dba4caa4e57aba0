"""The API on its worst day. One address for each worker, one name and one set of tokens for all."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from chaos.world import Blow, Fate, Poison, World
from zithara_worker.sandbox.api import TOKEN_PATH, FakeZithara, RecordedRequest, Reply

#: Fault -> share of the requests. The rest is answered after a latency of up to LATENCY_SECONDS.
FAULTS = {
    "500": 0.012,
    "503": 0.008,
    "reset after reading": 0.008,
    "closed after reading": 0.004,
    "truncated answer": 0.004,
    "answer is not JSON": 0.004,
    "429": 0.002,
    "no answer": 0.001,
}
#: Share of the connections that are reset before anything is read: as many as this at every tick of the killer.
EARLY_RESETS = 2
LATENCY_SECONDS = 0.03
#: The worker's patience. Latency stays far below it, so that only "no answer" is a timeout.
TIMEOUT_SECONDS = 4.0

_LOST = {"reset after reading", "closed after reading", "truncated answer", "answer is not JSON", "no answer"}


class Host:
    """`environment(slot)` leads the worker in that place to its address. The `base_url` is the same for all, since the
    delivery ledger knows an account by it. Faults are drawn from `seed`."""

    def __init__(self, world: World, *, slots: int, seed: int) -> None:
        self._world = world
        self._apis = [FakeZithara(keep_requests=0, keep_bodies=False) for _ in range(slots)]
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._tokens: set[str] = set()
        self._token_count = 0
        self._stack = ExitStack()
        self.calm = False
        #: Kills the worker in a place with -9 and starts another one
        self.kill: Callable[[int], None] = lambda slot: None

    def __enter__(self) -> Host:
        for slot, api in enumerate(self._apis):
            api.responder = lambda request, slot=slot: self._respond(slot, request)
            self._stack.enter_context(api)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def client(self) -> tuple[str, str]:
        return self._apis[0].client_id, self._apis[0].client_secret

    def environment(self, slot: int) -> dict[str, str]:
        api = urlsplit(self._apis[slot].base_url)
        return {
            "PYTHONPATH": str(Path(__file__).with_name("own_server")),
            "CHAOS_API_PORT": str(api.port),
            "ZITHARA_WORKER_ZITHARA_BASE_URL": f"http://127.0.0.1{api.path}",
            "ZITHARA_WORKER_ZITHARA_WEBHOOK_URL": self._apis[slot].webhook_url,
        }

    def revoke_tokens(self) -> None:
        with self._lock:
            self._tokens.clear()

    def reset_some_connections(self) -> None:
        """Open connections of one worker, idle ones too, and the next new ones before anything is read."""
        slot = self._random.randrange(len(self._apis))
        at = time.monotonic()
        self._apis[slot].drop_connections()
        self._apis[slot].reset_next_connections(EARLY_RESETS)
        self._world.befell(Blow.CONNECTIONS, slot, at, time.monotonic())

    def _respond(self, slot: int, request: RecordedRequest) -> Reply:
        if request.path == TOKEN_PATH:
            return self._issue_token()
        key = f"{self._world.epoch}/{request.message}"
        poison = self._world.poison.get(key)
        with self._lock:
            known = request.path == "/hook" or request.headers.get("authorization") in self._tokens
            fault = "none" if self.calm else self._draw()
            latency = self._random.uniform(0, LATENCY_SECONDS)
        if not known:
            self._world.arrived(key, slot, Fate.REFUSED, "token refused")
            return Reply.error(401, "invalid or expired token")
        if poison is not None:
            self._world.arrived(key, slot, Fate.REFUSED, poison.value)
            return self._poisoned(poison, slot)
        fate = Fate.ANSWERED if fault == "none" else Fate.ANSWER_LOST if fault in _LOST else Fate.REFUSED
        self._world.arrived(key, slot, fate, fault)
        return _reply(fault, webhook=request.path == "/hook").after(latency)

    def _poisoned(self, poison: Poison, slot: int) -> Reply:
        if poison is Poison.KILLS:
            at = time.monotonic()
            self.kill(slot)
            self._world.befell(Blow.POISON, slot, at, time.monotonic())
            return Reply.reset()
        return Reply.never() if poison is Poison.SILENT else Reply.error(int(poison.value))

    def _issue_token(self) -> Reply:
        with self._lock:
            self._token_count += 1
            token = f"chaos-token-{self._token_count}"
            self._tokens.add(token)
            failing = not self.calm and self._random.random() < 0.05
        return Reply.error(503) if failing else Reply.of(200, {"access_token": token, "expires_in": 3600})

    def _draw(self) -> str:
        drawn = self._random.random()
        for fault, share in FAULTS.items():
            drawn -= share
            if drawn < 0:
                return fault
        return "none"


def _reply(fault: str, *, webhook: bool) -> Reply:
    if fault.isdigit():
        return Reply.too_many_requests(1) if fault == "429" else Reply.error(int(fault))
    if fault == "reset after reading":
        return Reply.reset()
    if fault == "closed after reading":
        return Reply.closed()
    if fault == "truncated answer":
        # A webhook's receiver vouches with its status line alone: there, a cut body is an answer.
        return Reply.closed() if webhook else Reply.truncated()
    if fault == "answer is not JSON":
        return Reply.closed() if webhook else Reply.not_json()
    return Reply.never() if fault == "no answer" else Reply()
