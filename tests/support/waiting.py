"""Waiting for what has no event to wait on: a row in a database, a file."""

from __future__ import annotations

import time
from collections.abc import Callable
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
