"""The worker processes, each in its place, and the killer that goes about among them and the database."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO

from support.waiting import eventually

from chaos.host import TIMEOUT_SECONDS, Host
from chaos.world import Blow, World
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.session import worker_command

#: Blow -> share. A stop lasts longer than the lease in two of three cases.
BLOWS = {Blow.KILL: 0.6, Blow.STOP: 0.25, Blow.DATABASE: 0.15}
LEASE_SECONDS = 5.0
STOP_SECONDS = (3.0, 9.0)
#: How long the database stays away, seconds.
OUTAGE_SECONDS = (0.0, 3.0)
#: Seconds between two blows, two changes of the API's tokens, two rounds of dropped connections.
BLOW_SECONDS = (1.5, 4.5)
TOKEN_SECONDS = 11.0
RESET_SECONDS = 4.0


def write_config(
    path: Path, database: Mapping[str, str], *, attempt_limit: int, relay: Mapping[str, str] | None = None
) -> Path:
    """The configuration of all workers and relays; what differs between them is in their environment."""
    sections = {
        "database": database,
        "zithara": {"timeout": f"{TIMEOUT_SECONDS:g}"},
        "worker": {"lease": f"{LEASE_SECONDS:g}", "concurrency": "8", "batch_size": "40", "poll_interval": "0.2"},
        "retry": {"limit": str(attempt_limit), "delay": "0.3", "factor": "1.5", "max_delay": "3"},
        "metrics": {"listen": ""},
        "relay": relay or {},
    }
    path.touch(mode=0o600)
    path.write_text(
        "".join(
            f"[{section}]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())
            for section, keys in sections.items()
        )
    )
    return path


class Worker:
    """One place in the fleet: `zithara-worker consume --all`, started again whenever it has been killed."""

    def __init__(
        self, slot: int, config: Path, log: Path, environment: Mapping[str, str], command: str = "consume"
    ) -> None:
        self.slot = slot
        self._command = [worker_command(), "--config", str(config), command, "--all"]
        self._log = log
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ZITHARA_WORKER_")}
        self._environment = {**inherited, **environment}
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._log_before = 0
        self.stopped = False
        #: The killer and a message may strike at the same time
        self.lock = threading.RLock()

    def start(self) -> None:
        self._output = self._log.open("ab")
        self._log_before = self._output.tell()
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
        )

    @property
    def has_started(self) -> bool:
        """Whether it is past the moments in which Python itself still dies of a signal."""
        with self._log.open("rb") as log:
            log.seek(self._log_before)
            return b'"event": "started"' in log.read()

    def send(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._output is not None:
            self._output.close()
        self._process = self._output = None
        self.stopped = False

    def replace(self) -> None:
        """Killed, and another one in its place."""
        with self.lock:
            self.kill()
            self.start()

    def wait(self, seconds: float) -> int | None:
        """Its exit code; None when it still runs after that long."""
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None


class Fleet:
    """All workers and relays; kills what is left of them at the end of the block. `died`: exit codes that nobody asked
    for.

    `environment`: what the worker in a place gets in addition.
    """

    def __init__(
        self,
        config: Path,
        host: Host,
        directory: Path,
        *,
        slots: int,
        relays: int = 0,
        environment: Callable[[int], Mapping[str, str]] = lambda slot: {},
    ) -> None:
        self.workers = [
            Worker(
                slot,
                config,
                directory / f"worker-{slot}.log",
                {**host.environment(slot), **environment(slot)},
            )
            for slot in range(slots)
        ]
        self.relays = [
            Worker(slots + number, config, directory / f"relay-{number}.log", {}, "relay") for number in range(relays)
        ]
        self._everyone = [*self.workers, *self.relays]
        self.died: list[str] = []

    def __enter__(self) -> Fleet:
        for worker in self._everyone:
            worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self._everyone:
            worker.kill()

    def look_after(self) -> None:
        """A worker that ended by itself is a finding; it is started again, so that the run can go on."""
        for worker in self._everyone:
            with worker.lock:
                code = worker.exit_code
                if code is not None:
                    self.died.append(f"worker {worker.slot} ended by itself with exit code {code}")
                    worker.replace()

    def stop(self, *, within: float) -> None:
        """SIGTERM to all, also to those that the killer has started again a moment ago; each must end with 0."""
        for worker in self._everyone:
            eventually(partial(_started_or_ended, worker), within=within)
            worker.send(signal.SIGTERM)
        for worker in self._everyone:
            code = worker.wait(within)
            if code != 0:
                said = f"still ran {within:g} s after" if code is None else f"ended with exit code {code} at"
                self.died.append(f"worker {worker.slot} {said} SIGTERM")


def _started_or_ended(worker: Worker) -> bool:
    return worker.has_started or worker.exit_code is not None


class Killer:
    """Strikes `blows` times. Everything it does is drawn from `seed`; when it does it depends on the machine."""

    def __init__(
        self,
        world: World,
        fleet: Fleet,
        server: MariaDbServer,
        host: Host,
        *,
        seed: int,
        blows: int,
        stop: threading.Event,
        shares: Mapping[Blow, float] = BLOWS,
    ) -> None:
        self._world = world
        self._fleet = fleet
        self._server = server
        self._host = host
        self._random = random.Random(seed)
        # The shares hold exactly, in an order by chance: a short run has a bit of everything too.
        plan = [blow for blow, share in shares.items() for _ in range(max(1, round(blows * share)))]
        self._random.shuffle(plan)
        self._plan = plan
        self._stop = stop
        self._resumed: list[tuple[float, Worker, float]] = []
        self.done: Counter[Blow] = Counter()

    @property
    def seconds(self) -> float:
        """How long the plan takes, about."""
        return sum(BLOW_SECONDS) / 2 * len(self._plan)

    def run(self) -> None:
        """Until the plan is done; then everybody who was stopped goes on."""
        tokens_at = time.monotonic() + TOKEN_SECONDS
        resets_at = time.monotonic() + RESET_SECONDS
        for blow in self._plan:
            strike_at = time.monotonic() + self._random.uniform(*BLOW_SECONDS)
            while time.monotonic() < strike_at and not self._stop.wait(0.05):
                self._resume(time.monotonic())
                self._fleet.look_after()
                if time.monotonic() > tokens_at:
                    self._host.revoke_tokens()
                    tokens_at += TOKEN_SECONDS
                if time.monotonic() > resets_at:
                    self._host.reset_some_connections()
                    resets_at += RESET_SECONDS
            if self._stop.is_set():
                break
            self._strike(blow)
        while self._resumed:
            self._stop.wait(0.05)
            self._resume(time.monotonic())

    def _strike(self, blow: Blow) -> None:
        at = time.monotonic()
        if blow is Blow.DATABASE:
            self._server.kill()
            self._stop.wait(self._random.uniform(*OUTAGE_SECONDS))
            self._server.start()
            self._world.befell(blow, None, at, time.monotonic())
        else:
            worker = self._random.choice(self._fleet.workers)
            if blow is Blow.KILL:
                worker.replace()
                self._world.befell(blow, worker.slot, at, time.monotonic())
            elif not self._suspend(worker, STOP_SECONDS):
                return
        self.done[blow] += 1

    def _suspend(self, worker: Worker, seconds: tuple[float, float]) -> bool:
        """Until `_resume`; False if it was suspended before."""
        at = time.monotonic()
        with worker.lock:
            if worker.stopped:
                return False  # as well as dead already
            worker.send(signal.SIGSTOP)
            worker.stopped = True
        self._resumed.append((at + self._random.uniform(*seconds), worker, at))
        return True

    def _resume(self, now: float) -> None:
        for each in list(self._resumed):
            until, worker, since = each
            if now < until:
                continue
            self._resumed.remove(each)
            with worker.lock:
                if worker.stopped:  # it may have been killed and started again meanwhile
                    worker.send(signal.SIGCONT)
                    worker.stopped = False
            self._world.befell(Blow.STOP, worker.slot, since, time.monotonic())
