"""A private database server with its own data directory and socket. Nothing of it is left after `close`.

Knows server binaries, their options and their processes. Knows no table: that is `shop`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pymysql
import pymysql.err

from zithara_worker.errors import ConfigurationError, DatabaseUnavailable, ShopError

SERVER_VARIABLE = "ZITHARA_SANDBOX_SERVER"

#: Debian keeps servers in /usr/sbin, which is not in an ordinary user's PATH.
_SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])

#: Durable like a shop's server (it flushes each commit, and its sql_mode is strict), but small and quick to start.
#: Its time zone is +05:30 on purpose: code that forgets to set the session's time zone is off by 5:30 h in a test.
_OPTIONS = (
    "--innodb-flush-log-at-trx-commit=1",
    "--innodb-buffer-pool-size=128M",
    "--loose-innodb-log-file-size=48M",
    "--skip-log-bin",
    "--skip-name-resolve",
    "--performance-schema=OFF",
    "--loose-mysqlx=OFF",
    "--max-connections=500",
    "--character-set-server=utf8mb4",
    "--default-time-zone=+05:30",
)

_CONNECT_SECONDS = 5.0

#: A shell that kills the server and removes its directory as soon as its standard input closes, which happens however
#: this process ends, SIGKILL included. Arguments: the server's process id, the directory.
_GUARD = 'read -r _; kill -9 "$1" 2>/dev/null; rm -rf -- "$2"'


def find_server() -> Path:
    """The server binary: the one that ZITHARA_SANDBOX_SERVER names (MySQL 8 or MariaDB), else the machine's.

    Raises ConfigurationError when the variable names no program, ShopError when the machine has no server.
    """
    named = os.environ.get(SERVER_VARIABLE)
    if named:
        if not os.access(named, os.X_OK) or Path(named).is_dir():
            raise ConfigurationError(
                f"{SERVER_VARIABLE} names {named!r}, which is not a program: give the path of mariadbd or mysqld"
            )
        return Path(named)
    for name in ("mariadbd", "mysqld"):
        found = shutil.which(name, path=_SEARCH_PATH)
        if found:
            return Path(found)
    raise ShopError(
        "no database server on this machine (looked for mariadbd and mysqld): install the Debian package "
        f"mariadb-server (apt-get install mariadb-server), or name a server binary in {SERVER_VARIABLE}"
    )


class MariaDbServer:
    """A private server with an empty root password, reachable over its socket.

    `tcp=True` also listens on a loopback port chosen by the system (`tcp_port`, the same after a restart).
    `options` are appended to the server's command line, e.g. ("--innodb-lock-wait-timeout=1",).
    As a context manager it starts at entry, and leaves neither a process nor a file at exit.
    """

    def __init__(
        self,
        *,
        binary: Path | None = None,
        tcp: bool = False,
        options: Sequence[str] = (),
        start_timeout_seconds: float = 60.0,
    ) -> None:
        self._binary = binary
        #: May be changed between a stop and the next start
        self.options = tuple(options)
        self._start_timeout_seconds = start_timeout_seconds
        self._wants_tcp = tcp
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        #: The loopback port; None without `tcp`, or before the first start
        self.tcp_port: int | None = None

    # --- life -------------------------------------------------------------------------------------------------

    def __enter__(self) -> MariaDbServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Starts the server and waits until it answers. The first start creates its data directory.

        Raises ShopError or ConfigurationError when there is no usable server, with the end of the server's log.
        """
        if self.running:
            return
        try:
            if self._directory is None:
                self._create_data()
            self._launch()
        except BaseException:  # KeyboardInterrupt too: leave no half-started server behind
            self.close()
            raise

    def stop(self) -> None:
        """Shuts down in order (SIGTERM). The data stay."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._forget_process()

    def kill(self) -> None:
        """Kills the server (SIGKILL), like a power cut. The data stay, and the next start recovers them."""
        if self._process is not None:
            self._process.kill()
        self._forget_process()

    def restart(self) -> None:
        """Stops the server in order, if it runs, and starts it again with the same data, socket and port."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Kills the server and removes its directory."""
        self.kill()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The server's process id. Raises DatabaseUnavailable when it does not run."""
        if self._process is None:
            raise DatabaseUnavailable("the sandbox's database server does not run: call start()")
        return self._process.pid

    # --- access -----------------------------------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        if self._directory is None:
            raise DatabaseUnavailable("the sandbox's database server has no directory yet: call start()")
        return self._directory

    @property
    def socket_path(self) -> Path:
        return self.directory / "server.sock"

    @property
    def error_log(self) -> Path:
        return self.directory / "error.log"

    @property
    def root_connection_settings(self) -> Mapping[str, Any]:
        """Arguments of pymysql.connect() for the server's root, over the socket."""
        return {"unix_socket": str(self.socket_path), "user": "root", "password": "", "charset": "utf8mb4"}

    def connect(self, database: str | None = None, **settings: Any) -> pymysql.connections.Connection[Any]:
        """A new autocommit connection as root, in Magento's session time zone '+00:00'.

        `settings` are further or other arguments of pymysql.connect(). Raises DatabaseUnavailable.
        """
        arguments = {
            **self.root_connection_settings,
            "database": database,
            "autocommit": True,
            "init_command": "SET time_zone = '+00:00'",
            **settings,
        }
        # pymysql leaves a socket open if nobody answers, and Python then warns about it later.
        wire = socket.socket(socket.AF_UNIX)
        try:
            wire.settimeout(_CONNECT_SECONDS)
            wire.connect(str(self.socket_path))
            connection = pymysql.connect(**arguments, defer_connect=True)
            connection.connect(wire)
        except (pymysql.err.OperationalError, OSError) as error:
            wire.close()
            raise DatabaseUnavailable(f"the sandbox's server at {self.socket_path} refuses: {error}") from error
        return connection

    @property
    def version(self) -> str:
        """As the server reports it, e.g. '10.11.6-MariaDB' or '8.0.39'."""
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT VERSION()")
            return str(cursor.fetchone()[0])

    # --- inside -----------------------------------------------------------------------------------------------

    @property
    def _server(self) -> Path:
        if self._binary is None:
            self._binary = find_server()
        return self._binary

    @property
    def _account(self) -> list[str]:
        """Servers refuse to run as root unless --user names an account."""
        if os.geteuid() != 0:
            return []
        return [f"--user={_server_account()}"]

    def _create_data(self) -> None:
        # A short path, not pytest's or the user's directory: the path of a socket may have only 107 characters.
        self._directory = Path(tempfile.mkdtemp(prefix="zithara-sandbox-"))
        # Servers that start at the same time would overwrite each other's temporary tables in a common /tmp.
        (self._directory / "tmp").mkdir()
        if os.geteuid() == 0:
            shutil.chown(self._directory, _server_account())
            shutil.chown(self._directory / "tmp", _server_account())
        if self._is_mysql():
            command = [str(self._server), "--no-defaults", "--initialize-insecure", f"--log-error={self.error_log}"]
        else:
            command = [
                str(_find_installer(self._server)),
                "--no-defaults",
                f"--basedir={_base_directory(self._server)}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--skip-name-resolve",
            ]
        done = subprocess.run(
            [*command, f"--datadir={self.directory / 'data'}", f"--tmpdir={self.directory / 'tmp'}", *self._account],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode != 0:
            raise ShopError(
                f"{command[0]} could not create a data directory (exit code {done.returncode}):\n"
                f"{done.stdout[-2000:]}{self._log_tail()}"
            )

    def _is_mysql(self) -> bool:
        said = subprocess.run([str(self._server), "--no-defaults", "--version"], capture_output=True, text=True)
        if said.returncode != 0:
            raise ConfigurationError(
                f"{self._server} --version failed, so it is not a usable database server: {said.stderr.strip()[-500:]}"
            )
        return "mariadb" not in said.stdout.lower()

    def _launch(self) -> None:
        if not self._wants_tcp:
            self._try_launch(["--skip-networking"])
            return
        # Another process may take the chosen port before the server does: then choose another one. A restart keeps the
        # port, because clients wait for it.
        for attempts_left in (2, 1, 0):
            port = self.tcp_port or free_port()
            try:
                self._try_launch(["--bind-address=127.0.0.1", f"--port={port}"])
            except ShopError:
                if attempts_left == 0 or self.tcp_port is not None or "port" not in self._log_tail().lower():
                    raise
            else:
                self.tcp_port = port
                return

    def _try_launch(self, network: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [
                str(self._server),
                "--no-defaults",
                f"--datadir={self.directory / 'data'}",
                f"--tmpdir={self.directory / 'tmp'}",
                f"--socket={self.socket_path}",
                f"--pid-file={self.directory / 'server.pid'}",
                f"--log-error={self.error_log}",
                *self._account,
                *_OPTIONS,
                *network,
                *self.options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that Ctrl-C in the terminal does not reach the server
        )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", str(self._process.pid), str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._start_timeout_seconds
        while True:
            try:
                self.connect().close()
            except DatabaseUnavailable as error:
                refused = error
            else:
                return
            if self._process is None or self._process.poll() is not None:
                raise ShopError(f"{self._server} ended at once; its log says:\n{self._log_tail()}") from refused
            if time.monotonic() > deadline:
                raise ShopError(
                    f"{self._server} does not answer after {self._start_timeout_seconds:g} s ({refused}); "
                    f"its log says:\n{self._log_tail()}"
                ) from refused
            time.sleep(0.02)  # there is no event to wait for: only a connection shows that the server is ready

    def _forget_process(self) -> None:
        """Ends the guard, then reaps the server. The order matters: the guard would remove the data directory."""
        if self._guard is not None:
            self._guard.kill()
            self._guard.wait()
            if self._guard.stdin is not None:
                self._guard.stdin.close()
            self._guard = None
        if self._process is not None:
            self._process.wait()
            self._process = None

    def _log_tail(self) -> str:
        if self._directory is None or not self.error_log.exists():
            return "(no log)"
        return "\n".join(self.error_log.read_text(errors="replace").splitlines()[-20:])


def _server_account() -> str:
    """The account for a server that root starts: mysql if the package created it, else root."""
    try:
        return pwd.getpwnam("mysql").pw_name
    except KeyError:
        return "root"


def _base_directory(binary: Path) -> Path:
    """/usr for /usr/sbin/mariadbd, the unpacked directory for a release from an archive."""
    return binary.resolve().parent.parent


def _find_installer(binary: Path) -> Path:
    base = _base_directory(binary)
    for name in ("mariadb-install-db", "mysql_install_db"):
        for directory in (binary.parent, base / "scripts", base / "bin"):
            if os.access(directory / name, os.X_OK):
                return directory / name
    raise ShopError(
        f"{binary} has no mariadb-install-db beside it: install the Debian package mariadb-server "
        "(apt-get install mariadb-server), or unpack the whole release"
    )


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
