"""The request that a task of a general-purpose queue makes: one httpx.Client a thread, as its documentation advises."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx


def requests_of(file: str) -> Iterator[tuple[str, str, str]]:
    """Method, path, body."""
    with Path(file).open(encoding="utf-8") as lines:
        for line in lines:
            request = json.loads(line)
            yield request["method"], request["path"], request["body"]


class Poster:
    """Posts, counts, and calls `when_done` after the last of `expected` requests."""

    def __init__(self, base_url: str, token: str, *, expected: int, when_done: Callable[[], object]) -> None:
        self._base_url = base_url
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", "Authorization": token}
        self._left = expected
        self._when_done = when_done
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._tls = ssl.create_default_context()
        self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE

    def post(self, method: str, path: str, body: str) -> None:
        if not hasattr(self._mine, "client"):
            self._mine.client = httpx.Client(verify=self._tls, headers=self._headers, timeout=30)
        self._mine.client.request(method, self._base_url + path, content=body.encode()).raise_for_status()
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._when_done()
