"""Magento's deployment configuration: app/etc/env.php and app/etc/config.php.

env.php has the database, the table prefix, RabbitMQ, the crypt keys, and which PHP consumers Magento's cron starts.
Both files may have settings of the shop under `system`, where `bin/magento config:set --lock-env` and `--lock-config`
write them. Only their default scope is read, because the worker serves the whole shop. Knows no table.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from zithara_worker.errors import ConfigurationError
from zithara_worker.settings.sources import Place
from zithara_worker.settings.values import split_hosts
from zithara_worker.shop.php_array import Unknown, Value, php_text, read_returned_array
from zithara_worker.topics import TOPIC_TABLE

log = logging.getLogger(__name__)

#: Where the files are, below the root of the shop.
ENV_PHP = Path("app/etc/env.php")
_CONFIG_PHP = Path("app/etc/config.php")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopEnvironment:
    """What the worker uses of env.php. Its repr shows neither the password nor a key."""

    #: ("database", key) -> text, for host, port, unix_socket, user, password, name, table_prefix and ssl_ca, and
    #: ("relay", key) -> text, for what is set under queue/amqp, as far as the file has them
    values: Mapping[Place, str]
    #: The oldest first: an encrypted value names its key by the position. Empty if the file has none, or if only PHP
    #: can determine them
    crypt_keys: tuple[str, ...] = ()
    #: Why only PHP can determine the keys, with file and line; "" if they are known, or the file has none
    crypt_keys_unread: str = ""
    #: ("relay", key) -> why its value under queue/amqp cannot be used, with file and line
    amqp_unread: Mapping[Place, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        shown = {".".join(at): "***" if at[1] == "password" else text for at, text in self.values.items()}
        return f"ShopEnvironment({shown}, crypt_keys={len(self.crypt_keys)} masked)"


def read_env_php(path: Path, *, given: Collection[Place] = ()) -> ShopEnvironment:
    """Reads env.php at `path`.

    `given`: keys that another source gives. Their values are not read, so that they may be of a kind that only PHP can
    determine. A given host or unix_socket replaces the shop's whole address, because the port of one host means nothing
    on another. Raises ConfigurationError with one line for each problem.
    """
    shop = read_returned_array(path)
    errors: list[str] = []
    values = _database_values(shop, path, frozenset(given), errors)
    if errors:
        raise ConfigurationError("\n".join(errors))
    keys = _at(shop, "crypt", "key")
    amqp, amqp_unread = _amqp_values(shop, path, frozenset(given))
    return ShopEnvironment(
        values={**values, **amqp},
        amqp_unread=amqp_unread,
        crypt_keys=tuple(keys.split()) if isinstance(keys, str) else (),
        crypt_keys_unread=f"{path}, line {keys.line}: crypt/key: {keys.why}" if isinstance(keys, Unknown) else "",
    )


_CONNECTION = ("db", "connection", "default")
#: Where env.php has the values that are used as they are.
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
    """The address that `host` means to Magento\\Framework\\DB\\Adapter\\Pdo\\Mysql and its PDO driver.

    Forms: 'localhost', 'localhost:3307', '/run/mysqld.sock' and 'localhost:/run/mysqld.sock'. The worker also takes
    several, as its own setting does: 'db1,db2:3307,[::1]'.
    """
    if "," in host or host.startswith("["):
        with suppress(ValueError):
            split_hosts(host)
            return {("database", "host"): host}
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
        f"{path}: the database host {host!r} is neither a name, name:port, several of them, nor the path of a socket: "
        "correct it, or set [database] host and port"
    )
    return {}


_AMQP = ("queue", "amqp")
#: Where env.php has what the relay needs of RabbitMQ. Source: Magento\\Framework\\Amqp\\Config, whose ssl_options are
#: PHP's context options of TLS.
_AMQP_PLAIN: Mapping[str, tuple[str, ...]] = {
    "host": (*_AMQP, "host"),
    "port": (*_AMQP, "port"),
    "user": (*_AMQP, "user"),
    "password": (*_AMQP, "password"),
    "vhost": (*_AMQP, "virtualhost"),
    "ssl": (*_AMQP, "ssl"),
}
_AMQP_TLS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "ca_file": ((*_AMQP, "ssl_options", "cafile"), (*_AMQP, "ssl_options", "capath")),
    "certificate": ((*_AMQP, "ssl_options", "local_cert"),),
    "certificate_key": ((*_AMQP, "ssl_options", "local_pk"),),
}


def _amqp_values(shop: Value, path: Path, given: frozenset[Place]) -> tuple[Mapping[Place, str], Mapping[Place, str]]:
    """The values under queue/amqp, and why others cannot be used. Never an error: most commands need no RabbitMQ.

    A given host replaces the shop's whole address, and a given `ssl` all that belongs to TLS. verify_peer is not
    obeyed: the certificate is always checked.
    """
    found: dict[Place, str] = {}
    unread: dict[Place, str] = {}
    ways: dict[str, tuple[tuple[str, ...], ...]] = {key: (way,) for key, way in _AMQP_PLAIN.items()}
    # Magento connects with TLS for the text 'true' only (ConnectionTypeResolver's options: trim($ssl) === 'true').
    tls = _at(shop, *_AMQP_PLAIN["ssl"])
    if isinstance(tls, str) and tls.strip() == "true":
        ways |= _AMQP_TLS
    elsewhere = ("relay", "host") in given
    for key, alternatives in ways.items():
        place = ("relay", key)
        if place in given or (elsewhere and key not in ("user", "password", "vhost")):
            continue
        if ("relay", "ssl") in given and key in _AMQP_TLS:
            continue
        problems: list[str] = []
        text = next(filter(None, (_text(shop, way, key, path, problems, "relay") for way in alternatives)), "")
        if key == "ssl":
            text = "true" if text.strip() == "true" else ""
        if key == "port" and text and not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
            problems.append(
                f"{path}: {'/'.join(_AMQP_PLAIN[key])} {text!r} is no port; correct it, or set [relay] port"
            )
        elif text and key != "password" and not text.isprintable():
            problems.append(f"{path}: the value for [relay] {key} is not one line; set [relay] {key}")
        if problems:
            unread[place] = problems[0]
        elif text:
            found[place] = text
    return found, unread


def _text(
    shop: Value, way: tuple[str | int, ...], key: str, path: Path, errors: list[str], section: str = "database"
) -> str:
    """The value at `way` as PHP passes it to a driver; '' if there is none. Adds problems to `errors`, which name the
    worker's key [section] key as the remedy."""
    value = _at(shop, *way)
    name = "/".join("driver_options[MYSQL_ATTR_SSL_CA]" if step == 1009 else str(step) for step in way)
    if value is None or value is False:
        return ""
    if isinstance(value, Unknown):
        errors.append(
            f"{path}, line {value.line}: {name}: {value.why}; set [{section}] {key} in the worker's configuration"
        )
        return ""
    if isinstance(value, int) and value is not True:
        return str(value)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            errors.append(f"{path}: {name} is not UTF-8; store the file as UTF-8, or set [{section}] {key}")
            return ""
        return value
    errors.append(f"{path}: {name} should be a text in quotes; correct it, or set [{section}] {key}")
    return ""


def _at(value: Value, *way: str | int) -> Value:
    """The value at the end of `way`. None if there is none, the Unknown if an array on the way is unknown."""
    for step in way:
        if isinstance(value, Unknown):
            return value
        if not isinstance(value, dict):
            return None
        value = value.get(step)
    return value


# ---------------------------------------------------------------- where the topics are published

#: The module of packaging/magento, which routes all topics to the database.
_ROUTING_MODULE = "Zithara_DatabaseQueue"


class Connection(Enum):
    """Where Magento publishes a topic."""

    DATABASE = "db"
    RABBITMQ = "amqp"
    #: Each publish fails: the topic's connection is RabbitMQ, and none is configured
    NONE = "none"


def published_to(root: Path) -> Mapping[str, Connection]:
    """Topic -> where the shop at `root` publishes it, as far as its two files tell; another module may say otherwise.

    Raises ConfigurationError where env.php cannot be read.
    Source: `queue/config/publishers/TOPIC/connections` of env.php stands above the publishers of all modules
    (Magento\\Framework\\MessageQueue\\Publisher\\Config\\RemoteService and Env); `modules` of config.php: 1 is enabled.
    """
    env = read_returned_array(root / ENV_PHP)
    try:
        routed = _at(read_returned_array(root / _CONFIG_PHP), "modules", _ROUTING_MODULE) in (1, "1", True)
    except ConfigurationError:
        routed = None
    otherwise = Connection.RABBITMQ if _at(env, *_AMQP_PLAIN["host"]) else Connection.NONE
    found = {}
    for topic in TOPIC_TABLE:
        connections = _at(env, "queue", "config", "publishers", topic, "connections")
        enabled = [
            name
            for name in ("db", "amqp")
            if isinstance(connections, dict)
            and isinstance(told := connections.get(name), dict)
            and told.get("disabled") in (None, False, 0, "0", "false")
        ]
        if enabled == ["db"] or (not enabled and routed):
            found[topic] = Connection.DATABASE
        elif enabled == ["amqp"] or (not enabled and routed is False):
            found[topic] = otherwise
    return found


# ---------------------------------------------------------------- PHP consumers started by cron


@dataclass(frozen=True, slots=True, kw_only=True)
class CronConsumers:
    """`started`: the module's PHP consumers that Magento's own cron starts. `block`: what to write into env.php so that
    it starts all but those; "" where that needs the list of all consumers, which env.php does not have."""

    started: tuple[str, ...]
    block: str = ""


def cron_consumers(path: Path) -> CronConsumers:
    """What the env.php at `path` lets Magento's cron start. Raises ConfigurationError.

    Source: Magento\\MessageQueue\\Model\\Cron\\ConsumersRunner: `cron_consumers_runner/cron_run` (true if absent) and
    `cron_consumers_runner/consumers` (empty: all). A value that only PHP can determine counts as absent.
    """
    shop = read_returned_array(path)
    ours = tuple(topic.php_consumer for topic in TOPIC_TABLE.values())
    if _at(shop, "cron_consumers_runner", "cron_run") in (False, "", "0", "false"):
        return CronConsumers(started=())
    chosen = _at(shop, "cron_consumers_runner", "consumers")
    if not isinstance(chosen, dict) or not chosen:
        return CronConsumers(started=ours)
    started = tuple(name for name in ours if name in chosen.values())
    others = [name for name in chosen.values() if name not in ours]
    runner = _at(shop, "cron_consumers_runner")
    wanted: dict[str | int | Unknown, Value] = dict(runner) if isinstance(runner, dict) else {}
    # An empty list would mean all.
    wanted |= {"cron_run": bool(others), "consumers": dict(enumerate(others))}
    return CronConsumers(started=started, block=f"'cron_consumers_runner' => {php_text(wanted)},")


# ---------------------------------------------------------------- settings of the shop

#: Seconds between two log lines about a file that cannot be read.
_LOG_SECONDS = 60.0


class SettingsFile:
    """The settings under `system` in one of the two files, read again after a change.

    A file that cannot be read, because it is half written for example, keeps its former settings in force. If it has
    never been read, each of its settings is unknown. `required`: a missing file is an error too.
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
        """Reads the file if it has changed. Never raises: logs, once a minute, that it cannot be read."""
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
        """A setting in the form of core_config_data, and its source. None: the file does not have it, or has null.

        `path` as in core_config_data: "system/mysqlmq/new_messages_lifetime".
        """
        value = self._tree
        for step in ("system", "default", *path.split("/")):
            if not isinstance(value, dict):
                break
            # A key that only PHP can determine may be this one.
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
    """The settings in both files of the shop at `root`."""

    def __init__(self, root: Path) -> None:
        self.env = SettingsFile(root / ENV_PHP, required=True)
        self.config = SettingsFile(root / _CONFIG_PHP, required=False)

    def refresh(self) -> None:
        self.env.refresh()
        self.config.refresh()


def deployment_config(root: Path | None) -> DeploymentConfig | None:
    """The files of the shop at `root`; None if [magento] root is not set."""
    return None if root is None else DeploymentConfig(root)
