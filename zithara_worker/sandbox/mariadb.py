"""A private database server with its own data directory and socket. Nothing of it is left after `close`.

Knows server binaries and their options. Knows no table: that is `shop`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pymysql
import pymysql.err

from zithara_worker.errors import ConfigurationError, DatabaseUnavailable, ShopError
from zithara_worker.sandbox.private_server import PrivateServer, free_port

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


class MariaDbServer(PrivateServer):
    """A private server with an empty root password, reachable over its socket.

    `tcp=True` also listens on a loopback port chosen by the system (`tcp_port`, the same after a restart).
    `options` are appended to the server's command line, e.g. ("--innodb-lock-wait-timeout=1",).
    """

    _called = "database server"
    _unavailable = DatabaseUnavailable

    def __init__(
        self,
        *,
        binary: Path | None = None,
        tcp: bool = False,
        options: Sequence[str] = (),
        start_timeout_seconds: float = 60.0,
    ) -> None:
        super().__init__(start_timeout_seconds=start_timeout_seconds)
        self._binary = binary
        #: May be changed between a stop and the next start
        self.options = tuple(options)
        self._wants_tcp = tcp
        #: The loopback port; None without `tcp`, or before the first start
        self.tcp_port: int | None = None

    # --- access -----------------------------------------------------------------------------------------------

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
            **settings,
        }
        # pymysql leaves a socket open if nobody answers, and Python then warns about it later.
        wire = socket.socket(socket.AF_UNIX)
        try:
            wire.settimeout(_CONNECT_SECONDS)
            wire.connect(str(self.socket_path))
            connection = pymysql.connect(**arguments, defer_connect=True)
            connection.connect(wire)
            # Not as init_command: PyMySQL 1.0.2 sends COMMIT behind it, which a Galera node without a majority refuses.
            connection.query("SET time_zone = '+00:00'")
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
        directory = self._make_directory()
        # Servers that start at the same time would overwrite each other's temporary tables in a common /tmp.
        (directory / "tmp").mkdir()
        if os.geteuid() == 0:
            shutil.chown(directory, _server_account())
            shutil.chown(directory / "tmp", _server_account())
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
        if self._directory is None:
            self._create_data()
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
        self._run(
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
        )

    def _probe(self) -> None:
        self.connect().close()

    @property
    def _logs(self) -> Sequence[Path]:
        return [self.error_log]


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
