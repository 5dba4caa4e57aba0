"""An operator at work during the run: the real commands, at any moment, also while the database is away."""

from __future__ import annotations

import json
import random
import subprocess
import threading
from collections import Counter
from pathlib import Path

from zithara_worker.sandbox.session import worker_command
from zithara_worker.topics import TOPICS

#: Between two acts; how long a topic stays paused.
ACT_SECONDS = (2.0, 5.0)
PAUSE_SECONDS = 3.0
COMMAND_SECONDS = 60.0
#: Done; refused with a reason (a retry behind newer data); the database is away.
_EXPECTED = {0, 1, 75}


class Operator(threading.Thread):
    """Pauses and resumes topics, retries and discards failed messages, drawn from `seed`. `findings`: exit codes that
    no state of the shop explains."""

    def __init__(self, config: Path, *, seed: int) -> None:
        super().__init__(name="operator", daemon=True)
        self._command = [worker_command(), "--config", str(config)]
        self._random = random.Random(seed)
        self._stop_asked = threading.Event()
        self.done: Counter[str] = Counter()
        self.findings: list[str] = []
        #: Messages that were to be sent even behind newer ones
        self.forced: set[int] = set()

    def run(self) -> None:
        try:
            self._work()
        except Exception as error:
            self.findings.append(f"the operator could not go on: {error!r}")
            raise

    def _work(self) -> None:
        while not self._stop_asked.wait(self._random.uniform(*ACT_SECONDS)):
            act = self._random.choice(["pause", "retry", "retry", "discard"])
            if act == "pause":
                topic = self._random.choice(TOPICS)
                self._do("pause", topic, "--reason", "chaos")
                self._stop_asked.wait(PAUSE_SECONDS)
                self._resume(topic)
            elif failed := self._failed():
                one = self._random.choice(failed)
                force = act == "retry" and self._random.random() < 0.5
                if force:
                    self.forced.add(one)
                self._do("failed", act, str(one), "--yes", "--note", "chaos", *["--force"] * force)

    def end(self) -> None:
        """Waits for the act under way."""
        self._stop_asked.set()
        if self.is_alive():
            self.join(2 * COMMAND_SECONDS)

    def _resume(self, topic: str) -> None:
        """Until it is done: the database may be away."""
        while self._do("resume", topic) == 75:
            threading.Event().wait(0.5)

    def _failed(self) -> list[int]:
        done = self._run("failed", "list", "--json")
        return [int(each["id"]) for each in json.loads(done.stdout)] if done.returncode == 0 else []

    def _do(self, *arguments: str) -> int:
        code = self._run(*arguments).returncode
        name = " ".join(arguments[: 2 if arguments[0] == "failed" else 1])
        self.done[name if code == 0 else f"{name} refused" if code == 1 else f"{name} without the database"] += 1
        return code

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
        )
        if done.returncode not in _EXPECTED:
            told = done.stderr.strip().splitlines()[-1:]
            self.findings.append(f"{' '.join(arguments)} ended with exit code {done.returncode}: {told}")
        return done
