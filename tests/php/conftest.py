"""Real PHP beside the worker."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import pytest
from support.php import find_php, run_php
from support.waiting import eventually

from zithara_worker.sandbox.shop import Shop

HERE = Path(__file__).parent


class PhpProcess:
    """A PHP script that is told and asked line by line; at the end of the block its input ends, and so must it."""

    def __init__(self, script: str, *arguments: str) -> None:
        self._command = [find_php(), "-d", "display_errors=stderr", "-d", "error_reporting=-1", str(HERE / script)]
        self._command += ["--", *arguments]
        self._lines: list[str] = []
        self._changed = threading.Condition()

    def __enter__(self) -> PhpProcess:
        self._errors = ""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )
        self._readers = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for reader in self._readers:
            reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10 if kind is None else 0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        if kind is None:
            assert self._process.returncode == 0 and not self._errors, f"php: {self._errors}{self.lines[-5:]}"

    def tell(self, line: str = "") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")

    @property
    def lines(self) -> list[str]:
        """What it has said so far."""
        with self._changed:
            return list(self._lines)

    def said(self, verb: str) -> list[int]:
        """The message ids of the lines that begin with this word."""
        return [int(line.split()[1]) for line in self.lines if line.startswith(verb + " ")]

    def wait_for(self, line: str, *, within: float = 10.0) -> str:
        """The first line that begins so."""
        return eventually(lambda: next((each for each in self.lines if each.startswith(line)), ""), within=within)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self._lines.append(line.rstrip("\n"))

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self._errors = self._process.stderr.read()


@pytest.fixture
def php(shop: Shop) -> Iterator[Callable[..., PhpProcess]]:
    """php("consumer.php", QUEUE, ...) starts a script on the shop's database; it ends with the test."""
    with ExitStack() as running:

        def start(script: str, *arguments: str) -> PhpProcess:
            return running.enter_context(PhpProcess(script, str(shop.server.socket_path), shop.name, *arguments))

        yield start


@pytest.fixture
def magento(shop: Shop) -> Callable[[str], str]:
    """magento("clean_up") calls one function of magento.php."""

    def call(function: str) -> str:
        code = f"require $argv[1]; {function}(connect([$argv[2], $argv[3]]));"
        return run_php(code, str(HERE / "magento.php"), str(shop.server.socket_path), shop.name)

    return call
