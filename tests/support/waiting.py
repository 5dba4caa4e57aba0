"""Waiting for what has no event to wait on (a row in a database, a file), and for threads that begin together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def eventually(condition: Callable[[], T], *, within: float = 5.0) -> T:
    """Asks again and again until the answer is true, and returns it; AssertionError after `within` seconds.

    An AssertionError of the condition counts as 'not yet', and is the one that is raised in the end.
    """
    deadline = time.monotonic() + within
    while True:
        failed: AssertionError | None = None
        answer = None
        try:
            answer = condition()
        except AssertionError as error:
            failed = error
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise failed or AssertionError(f"still {answer!r} after {within:g} s")
        time.sleep(0.01)


def together(actions: Iterable[Callable[[], T]]) -> list[T]:
    """Runs them at the same moment, each in a thread of its own: what they return, in their order.

    What the first of them raised is raised, after the end of all.
    """
    waiting = list(actions)
    all_here = threading.Barrier(len(waiting), timeout=20)

    def run(action: Callable[[], T]) -> T:
        all_here.wait()
        return action()

    with ThreadPoolExecutor(len(waiting)) as threads:
        return list(threads.map(run, waiting))
