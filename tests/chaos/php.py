"""A real PHP consumer that competes with the workers for one queue: a shop that forgot to switch its own off."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from pathlib import Path
from typing import NamedTuple

from support.php import find_php

from zithara_worker.sandbox.shop import Shop
from zithara_worker.topics import WEBHOOK

SCRIPT = Path(__file__).parent.parent / "php" / "consumer.php"
#: Between reading a message and taking it, seconds at most: the window in which a worker may be faster.
WINDOW_SECONDS = 0.08


class Held(NamedTuple):
    """What PHP did with a message. `processed` False: it died with it in hand, and nobody heard how far it got."""

    at: float
    processed: bool


class PhpConsumer(threading.Thread):
    """Runs the consumer of the webhook queue, again and again when the database has been killed under it."""

    def __init__(self, shop: Shop, *, seed: int) -> None:
        super().__init__(name="php-consumer", daemon=True)
        self._command = [
            find_php(), "-d", "display_errors=0", str(SCRIPT), "--",
            str(shop.server.socket_path), shop.name, WEBHOOK.queue, WEBHOOK.php_consumer, "step",
        ]  # fmt: skip
        self._random = random.Random(seed)
        self._stop_asked = threading.Event()
        self._php: subprocess.Popen[str] | None = None
        #: Message id -> what PHP did with it
        self.held: dict[int, Held] = {}

    def run(self) -> None:
        while not self._stop_asked.is_set():
            with subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            ) as php:
                self._php = php
                self._step(php)
                php.kill()
            self._stop_asked.wait(0.3)

    def end(self) -> None:
        """Kills it, wherever it is, and waits for the thread."""
        self._stop_asked.set()
        while self.is_alive():
            if self._php is not None:
                self._php.kill()  # an idle consumer says nothing; its end does
            self.join(0.5)

    def _step(self, php: subprocess.Popen[str]) -> None:
        """Lets it take what it has read, after a pause, until it dies or is to stop."""
        assert php.stdin is not None and php.stdout is not None
        for line in php.stdout:
            word, _, number = line.strip().partition(" ")
            if word == "selected":
                if self._stop_asked.wait(self._random.uniform(0, WINDOW_SECONDS)):
                    return
                before = self.held.get(int(number))
                self.held[int(number)] = Held(time.monotonic(), processed=False)
                try:
                    php.stdin.write("\n")
                    php.stdin.flush()
                except BrokenPipeError:
                    return
            elif word == "processed":
                self.held[int(number)] = Held(time.monotonic(), processed=True)
            elif word in ("passed", "acknowledged"):
                # Somebody else had it: it is as it was before PHP looked.
                del self.held[int(number)]
                if before is not None:
                    self.held[int(number)] = before
