"""The Zithara API as a process, so that its CPU does not count in a client's.

Started by `ApiProcess`. It obeys one JSON object a line on standard input and answers each with one on standard output;
it ends when its input does.
"""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

from zithara_worker.sandbox.api import TOKEN_PATH, FakeZithara, RecordedRequest, Reply

_ORDER = re.compile(rb'"platform_order_id": ?"([^"]*)"')


class Arrival(NamedTuple):
    """A request that came. `message`: queue name and message id, "zithara_order_queue-17"; `order`: the number of the
    order that it tells of, or ""; `at`: time.monotonic()."""

    message: str
    order: str
    at: float


class _Window:
    """When the first and the last request came, how many, and each one's arrival when asked for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.reset()

    def reset(self, *, keep_arrivals: bool = False, failing: Sequence[str] = (), failing_seconds: float = 0.0) -> None:
        with self._changed:
            self._failing, self._failed = frozenset(failing), 0
            self._failure = Reply.error().after(failing_seconds)
            self._first = self._last = 0.0
            self._count = 0
            self._arrivals: list[Arrival] | None = [] if keep_arrivals else None
            #: Of the arrivals, by the first digit of the order's number
            self._of_orders: Counter[str] = Counter()

    def note(self, request: RecordedRequest) -> Reply | None:
        if request.path != TOKEN_PATH:
            with self._changed:
                if request.message in self._failing:
                    self._failed += 1
                    return self._failure
                if self._count == 0:
                    self._first = request.at
                self._count += 1
                self._last = request.at
                if self._arrivals is not None:
                    told = _ORDER.search(request.body)
                    order = told[1].decode() if told else ""
                    self._arrivals.append(Arrival(request.message, order, request.at))
                    self._of_orders[order[:1]] += 1
                self._changed.notify_all()
        return None

    def wait(self, count: int, seconds: float, digit: str) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: (self._of_orders[digit] if digit else self._count) >= count, seconds)

    def seen(self) -> dict[str, Any]:
        with self._changed:
            return {
                "requests": self._count,
                "failed": self._failed,
                "first": self._first,
                "last": self._last,
                **({"arrivals": self._arrivals} if self._arrivals is not None else {}),
            }


def serve() -> None:
    """Arguments: a PEM file with key and certificate for TLS, or none."""
    tls = None
    if len(sys.argv) > 1:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(sys.argv[1])
    window = _Window()
    with FakeZithara(tls=tls, keep_requests=1, keep_bodies=False) as api:
        api.responder = window.note
        _answer({"base_url": api.base_url, "token": api.issue_token(), "pid": 0})
        for line in sys.stdin:
            order = json.loads(line)
            if order["do"] == "reset":
                api.latency_seconds = order["latency_seconds"]
                window.reset(**order["window"])
                _answer({"connections": api.connection_count})
            elif order["do"] == "wait":
                _answer({"came": window.wait(order["count"], order["seconds"], order["digit"])})
            else:
                _answer({**window.seen(), "connections": api.connection_count, "cpu_seconds": time.process_time()})


def _answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


class ApiProcess:
    """`base_url`, `token`; `reset` before a contestant starts, `seen` after it ended."""

    def __init__(self, certificate: str = "") -> None:
        self._arguments = [certificate] if certificate else []

    def __enter__(self) -> ApiProcess:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.api_server", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._connections_before = 0
        hello = self._hear()
        self.base_url: str = hello["base_url"]
        self.token: str = hello["token"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.communicate()

    def reset(self, *, latency_seconds: float = 0.0, **window: Any) -> None:
        """`window`: `keep_arrivals`; `failing`: messages whose requests get 500 after `failing_seconds`, and are
        counted apart."""
        before = self._ask({"do": "reset", "latency_seconds": latency_seconds, "window": window})
        self._connections_before = int(before["connections"])

    def wait(self, count: int, within: float, *, digit: str = "") -> bool:
        """Whether `count` requests have come since the reset, within so many seconds. `digit`: requests about orders
        whose number begins so, if arrivals are kept."""
        return bool(self._ask({"do": "wait", "count": count, "seconds": within, "digit": digit})["came"])

    def arrivals(self) -> list[Arrival]:
        """All since a reset that keeps them."""
        return [Arrival(*each) for each in self._ask({"do": "seen"})["arrivals"]]

    def seen(self) -> dict[str, Any]:
        """Since the reset: requests, connections, first and last arrival (time.monotonic), CPU of the server."""
        seen = self._ask({"do": "seen"})
        return {**seen, "connections": seen["connections"] - self._connections_before}

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the benchmark's API server ended with {self._process.wait()}")
        heard: dict[str, Any] = json.loads(line)
        return heard


if __name__ == "__main__":
    serve()
