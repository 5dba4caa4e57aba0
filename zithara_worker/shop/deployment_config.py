"""Magento's deployment configuration: app/etc/env.php and app/etc/config.php.

From env.php come the database, the table prefix and the crypt keys, and which PHP consumers Magento's cron starts.
Either file may hold settings of the shop under `system`, where `bin/magento config:set --lock-env` and `--lock-config`
write them. Only the default scope is read: the worker serves the whole shop. Knows no table.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from zithara_worker.errors import ConfigurationError
from zithara_worker.shop.php_array import Unknown, Value, read_returned_array
from zithara_worker.topics import TOPIC_TABLE

log = logging.getLogger(__name__)

#: (section, key) of the worker's settings
Place: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopEnvironment:
    """What env.php says; its repr shows neither the password nor a key."""

    #: ("database", key) -> text, for host, port, unix_socket, user, password, name, table_prefix, ssl_ca; without those
    #: that the file leaves out or empty.
    values: Mapping[Place, str]
    #: Oldest first; the position is the key number in an encrypted value. Empty if the file has none, or only PHP could
    #: work it out (only a shop with encrypted values needs them).
    crypt_keys: tuple[str, ...] = ()
    #: Why there are none though the file has something in their place: the file, the line, what stands there.
    crypt_keys_unread: str = ""

    def __repr__(self) -> str:
        shown = {key: "***" if key == "password" else text for (_, key), text in self.values.items()}
        return f"ShopEnvironment({shown}, crypt_keys={len(self.crypt_keys)} masked)"


def read_env_php(path: Path, *, given: Collection[Place] = ()) -> ShopEnvironment:
    """Reads the file at `path` (the shop's app/etc/env.php itself, not the shop's root).

    `given` are the settings that somebody else provides: they are left out, and need not be readable; a given host or
    unix_socket leaves out the shop's whole address, because a shop's socket or port does not belong to another host.
    Raises ConfigurationError, with one line for each thing wrong.
    """
    shop = read_returned_array(path)
    errors: list[str] = []
    values = _database_values(shop, path, frozenset(given), errors)
    if errors:
        raise ConfigurationError("\n".join(errors))
    keys = _at(shop, "crypt", "key")
    return ShopEnvironment(
        values=values,
        crypt_keys=tuple(keys.split()) if isinstance(keys, str) else (),
        crypt_keys_unread=f"{path}, line {keys.line}: crypt/key: {keys.why}" if isinstance(keys, Unknown) else "",
    )


_CONNECTION = ("db", "connection", "default")
#: Where env.php has what can be taken over as it is.
_PLAIN: Mapping[str, tuple[str | int, ...]] = {
    "unix_socket": (*_CONNECTION, "unix_socket"),
    "user": (*_CONNECTION, "username"),
    "password": (*_CONNECTION, "password"),
    "name": (*_CONNECTION, "dbname"),
    "table_prefix": ("db", "table_prefix"),
    "ssl_ca": (*_CONNECTION, "driver_options", 1009),
}
_ADDRESS = frozenset({("database", "host"), ("database", "unix_socket")})


def _database_values(shop: Value, path: Path, given: frozenset[Place], errors: list[str]) -> Mapping[Place, str]:
    connection = _at(shop, *_CONNECTION)
    required = {("database", key) for key in ("user", "password", "name")}
    if not isinstance(connection, dict):
        if required <= given and given & _ADDRESS:
            connection = {}
        else:
            where = f"line {connection.line}: {connection.why}" if isinstance(connection, Unknown) else "it has none"
            errors.append(
                f"{path}: 'db' => 'connection' => 'default' should be an array ({where}); is the shop installed? "
                "Correct [magento] root, or set [database] host, user, password and name"
            )
            return {}
    found: dict[Place, str] = {}
    wanted = dict(_PLAIN)
    if given & _ADDRESS:
        del wanted["unix_socket"]
    else:
        host = _text(shop, (*_CONNECTION, "host"), "host", path, errors)
        found.update(_address(host, path, errors))
    for key, way in wanted.items():
        if ("database", key) not in given and (text := _text(shop, way, key, path, errors)):
            found["database", key] = text
    return {place: text for place, text in found.items() if place not in given}


def _address(host: str, path: Path, errors: list[str]) -> Mapping[Place, str]:
    """The forms of 'host' that Magento\\Framework\\DB\\Adapter\\Pdo\\Mysql and its PDO driver take.

    'localhost', 'localhost:3307', '/run/mysqld.sock' and 'localhost:/run/mysqld.sock'.
    """
    name, colon, rest = host.partition(":")
    if "/" in host:
        return {("database", "unix_socket"): host[host.index("/") :]}
    if not host:
        return {}
    if not colon:
        return {("database", "host"): name}
    if name and rest.isascii() and rest.isdigit() and 0 < int(rest) < 65536:
        return {("database", "host"): name, ("database", "port"): str(int(rest))}
    errors.append(
        f"{path}: the database host {host!r} is neither a name, name:port, nor the path of a socket: "
        "correct it, or set [database] host and port"
    )
    return {}


def _text(shop: Value, way: tuple[str | int, ...], key: str, path: Path, errors: list[str]) -> str:
    """The value at `way` as PHP would pass it to the database driver; '' if there is none."""
    value = _at(shop, *way)
    name = "/".join("driver_options[MYSQL_ATTR_SSL_CA]" if step == 1009 else str(step) for step in way)
    if value is None or value is False:
        return ""
    if isinstance(value, Unknown):
        errors.append(
            f"{path}, line {value.line}: {name}: {value.why}; set [database] {key} in the worker's configuration"
        )
        return ""
    if isinstance(value, int) and value is not True:
        return str(value)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            errors.append(f"{path}: {name} is not UTF-8; store the file as UTF-8, or set [database] {key}")
            return ""
        return value
    errors.append(f"{path}: {name} should be a text in quotes; correct it, or set [database] {key}")
    return ""


def _at(value: Value, *way: str | int) -> Value:
    """What stands at the end of `way`, or the unknown that hides it; None if there is nothing."""
    for step in way:
        if isinstance(value, Unknown):
            return value
        if not isinstance(value, dict):
            return None
        value = value.get(step)
    return value


# ---------------------------------------------------------------- cron


def started_by_cron(path: Path) -> tuple[str, ...]:
    """The names of the module's consumers that cron would start. Raises ConfigurationError when nobody can tell."""
    shop: Any = read_returned_array(path)
    ours = tuple(topic.php_consumer for topic in TOPIC_TABLE.values())
    runner = shop.get("cron_consumers_runner") if isinstance(shop, dict) else None
    if not isinstance(runner, dict):
        return ours
    if "cron_run" in runner and runner["cron_run"] in (False, 0, "", "0", "false"):
        return ()
    chosen = runner.get("consumers")
    if not isinstance(chosen, dict) or not chosen:
        return ours
    return tuple(name for name in ours if name in chosen.values())


# ---------------------------------------------------------------- settings of the shop

#: Seconds that a file which cannot be read stays silent between two log lines.
_LOG_SECONDS = 60.0


class SettingsFile:
    """One of the two files, read again when it has changed.

    A file that cannot be read leaves in force what it said before: it may be half written at this moment. If it could
    never be read, each of its settings is unknown. `required`: its absence is an error, too.
    """

    def __init__(self, path: Path, *, required: bool, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._required = required
        self._monotonic = monotonic
        self._seen: tuple[int, int, int] | None = None
        self._tree: Value = None
        self._was_read = False
        self._complain_at = 0.0

    def refresh(self) -> None:
        """Looks whether the file has changed. Never raises; says in the log, once a minute, what cannot be read."""
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_ino, status.st_size)
            if seen != self._seen:
                self._tree, self._seen, self._was_read = read_returned_array(self._path), seen, True
        except FileNotFoundError as error:
            if self._required:
                self._failed(f"there is no file {error.filename}")
            else:
                self._tree, self._seen, self._was_read = None, None, True
        except (ConfigurationError, OSError) as error:
            self._failed(str(error))

    def get(self, path: str) -> tuple[str | Unknown | None, str]:
        """A setting as PHP would write it in core_config_data, and where it stands; None: the file gives none, or null.

        `path` as in core_config_data: "system/mysqlmq/new_messages_lifetime".
        """
        value = self._tree
        for step in ("system", "default", *path.split("/")):
            if not isinstance(value, dict):
                break
            # A key that only PHP knows may be this one.
            value = value.get(step, next((key for key in value if isinstance(key, Unknown)), None))
        if isinstance(value, bool):
            value = int(value)
        if isinstance(value, (int, float)):
            value = str(value)
        if isinstance(value, dict):
            value = Unknown(line=1, why="an array stands there")
        return value, f"{self._path} system/default/{path}"

    def _failed(self, problem: str) -> None:
        if not self._was_read:
            self._tree = Unknown(line=1, why="the file cannot be read")
        if self._monotonic() >= self._complain_at:
            self._complain_at = self._monotonic() + _LOG_SECONDS
            log.warning(
                "the shop's settings in %s cannot be read; %s",
                self._path,
                "what it said before stays in force" if self._was_read else "each of them is taken as unknown",
                extra={"event": "shop_file_unreadable", "file": str(self._path), "detail": problem},
            )


class DeploymentConfig:
    """Both files of the shop below `root`."""

    def __init__(self, root: Path) -> None:
        self.env = SettingsFile(root / "app" / "etc" / "env.php", required=True)
        self.config = SettingsFile(root / "app" / "etc" / "config.php", required=False)

    def refresh(self) -> None:
        self.env.refresh()
        self.config.refresh()


def deployment_config(root: Path | None) -> DeploymentConfig | None:
    """The files of the shop in `root`; None where [magento] root is not set."""
    return None if root is None else DeploymentConfig(root)
