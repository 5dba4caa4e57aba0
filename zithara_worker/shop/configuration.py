"""The shop's configuration: reads it, joins it with the worker's own settings, and keeps the shared access token.

core_config_data has switches and lifetimes, zithara_webhook_config has credentials and the access token.
Sources: the module's etc/config.xml and etc/db_schema.xml (zithara/webhook 1.0.3); Magento_MysqlMq's etc/config.xml.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zithara_worker.database import locks
from zithara_worker.errors import ConfigurationError, ShopError, ZitharaWorkerError
from zithara_worker.pages import page
from zithara_worker.settings import sources
from zithara_worker.settings.sources import LoadedSettings, Place, Values
from zithara_worker.settings.values import Secret
from zithara_worker.shop.deployment_config import ENV_PHP, DeploymentConfig, read_env_php
from zithara_worker.shop.encryption import decrypt, is_encrypted
from zithara_worker.shop.php_array import Unknown

if TYPE_CHECKING:  # `preview` reads the configuration without the database driver
    from zithara_worker.database.session import Database

#: The name of the lock that a worker takes to ask the API for a new token.
TOKEN_LOCK = "token"  # noqa: S105 - a name, and no password
#: Seconds until another worker may take the lock of one that died. Longer than a token request.
TOKEN_LEASE_SECONDS = 60.0

#: The rules of Magento's cleanup under system/mysqlmq/, with Magento's defaults in minutes; 0 or less turns a rule off.
NEW_LIFETIME = "new_messages_lifetime"
_CLEANUP = {
    NEW_LIFETIME: 10_080,
    "successful_messages_lifetime": 10_080,
    "failed_messages_lifetime": 10_080,
    "retry_inprogress_after": 1440,
}
#: Minutes that are assumed as the lifetime of new messages if only PHP knows it. Magento's cleanup runs twice a day, so
#: hardly any shop has less. With it, the expiry guard writes a row at most every half hour.
SHORTEST_LIFETIME = 60

#: The shop's settings that give keys of the worker: path -> (section, key).
_GIVEN_KEYS: Mapping[str, Place] = {
    "zithara_webhook/general/retry_limit": ("retry", "limit"),
    "zithara_webhook/general/retry_delay": ("retry", "delay"),
    "zithara_webhook/queue/batch_size": ("worker", "batch_size"),
}
_ENABLED = "zithara_webhook/general/enabled"
_DEBUG = "zithara_webhook/general/debug"


@dataclass(frozen=True, slots=True)
class Lifetime:
    """One rule of Magento's cleanup."""

    #: 0: the rule is off. None: only PHP can determine it
    minutes: int | None
    #: Where it is set
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownSetting:
    """A setting of the shop that only PHP can determine."""

    #: The worker's key that it would give; None if it gives none
    place: Place | None
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopConfiguration:
    """The configuration of the shop at one moment."""

    enabled: bool
    #: Where `enabled` is set; "" for the default
    enabled_source: str = ""
    #: Whether the worker is to log at DEBUG
    debug: bool = False
    active_config_id: int | None
    config_ids: frozenset[int]
    #: Not among `values`, because a change of it needs no reload: it is read when a webhook is sent
    webhook_url: str | None
    event_types: tuple[str, ...]
    #: The shortest lifetime that may be in force, for the expiry guard; 0: new messages are never deleted
    new_messages_lifetime_minutes: int
    #: The rules of Magento's cleanup by their names under system/mysqlmq/
    cleanup: Mapping[str, Lifetime] = field(default_factory=dict)
    #: Keys of the worker that the shop gives. Encrypted values are still encrypted
    values: Values = field(default_factory=dict, repr=False)
    unknown: tuple[UnknownSetting, ...] = ()

    @property
    def consumable(self) -> bool:
        """Whether messages are taken: the module is enabled and a configuration row is active."""
        return self.enabled and self.active_config_id is not None


def read_configuration(database: Database, files: DeploymentConfig | None) -> ShopConfiguration:
    """Reads the shop's settings and the rows of zithara_webhook_config. Raises ShopError, DatabaseUnavailable.

    A setting of app/etc/env.php overrides core_config_data (default scope), which overrides app/etc/config.php.
    `files`: None if [magento] root is not set.
    """
    if files is not None:
        files.refresh()
    settings = _Settings({str(row["path"]): row["value"] for row in database.rows("shop_config")}, files)
    rows = database.rows("webhook_configs")
    active = next((row for row in rows if int(row["is_active"] or 0) == 1), None)
    values = {place: given for path, place in _GIVEN_KEYS.items() if (given := settings.first(path)) is not None}
    if active is not None:
        source = f"zithara_webhook_config row {active['config_id']}"
        for key in ("client_id", "client_secret"):
            if active[key]:
                values["zithara", key] = (str(active[key]), source)
    enabled, debug = settings.first(_ENABLED), settings.first(_DEBUG)
    return ShopConfiguration(
        enabled=enabled is None or enabled[0] != "0",
        enabled_source="" if enabled is None else enabled[1],
        debug=debug is not None and debug[0] == "1",
        active_config_id=int(active["config_id"]) if active else None,
        config_ids=frozenset(int(row["config_id"]) for row in rows),
        webhook_url=(active["webhook_url"] or None) if active else None,
        event_types=tuple(filter(None, map(str.strip, str(active["event_types"] or "").split(",")))) if active else (),
        new_messages_lifetime_minutes=settings.shortest(f"system/mysqlmq/{NEW_LIFETIME}", _CLEANUP[NEW_LIFETIME]),
        cleanup={name: settings.lifetime(f"system/mysqlmq/{name}", default) for name, default in _CLEANUP.items()},
        values=values,
        unknown=tuple(
            UnknownSetting(place=_GIVEN_KEYS.get(path), why=why)
            for path in (*_GIVEN_KEYS, _ENABLED, _DEBUG, *(f"system/mysqlmq/{name}" for name in _CLEANUP))
            if (why := settings.unknown(path)) is not None
        ),
    )


class _Settings:
    """The shop's settings by path, each from the highest layer that sets it. Empty and null count as not set."""

    def __init__(self, table: Mapping[str, Any], files: DeploymentConfig | None) -> None:
        self._table = table
        self._files = files

    def _given(self, path: str) -> list[tuple[str | Unknown, str]]:
        """The values of all layers with their sources, the highest first. Only env.php's value, if that is known."""
        layers = [(self._table.get(path), f"core_config_data {path}")]
        if self._files is not None:
            env = self._files.env.get(path)
            if env[0] and isinstance(env[0], str):
                return [(env[0], env[1])]
            layers = [env, *layers, self._files.config.get(path)]
        return [(value, source) for value, source in layers if value not in (None, "")]

    def first(self, path: str) -> tuple[str, str] | None:
        """The highest value that can be determined without PHP, with its source."""
        return next(((value, source) for value, source in self._given(path) if isinstance(value, str)), None)

    def unknown(self, path: str) -> str | None:
        """Why only PHP can determine the value in force; None if it is known."""
        for value, source in self._given(path):
            return f"{source} (line {value.line}): {value.why}" if isinstance(value, Unknown) else None
        return None

    def lifetime(self, path: str, default: int) -> Lifetime:
        for value, source in self._given(path):
            return Lifetime(None if isinstance(value, Unknown) else _minutes(value), source)
        return Lifetime(default, "Magento's default")

    def shortest(self, path: str, default: int) -> int:
        """The lowest number of minutes that may be in force; 0 if the rule is off.

        All layers below env.php count, because Magento itself lets config.php override the table here. Too short a
        lifetime costs a few updates; with too long a one, Magento deletes messages before they are delivered.
        """
        minutes = [
            SHORTEST_LIFETIME if isinstance(value, Unknown) else _minutes(value) for value, _ in self._given(path)
        ]
        return min((each for each in minutes or [default] if each > 0), default=0)


def _minutes(text: str) -> int:
    """The text as PHP converts it to an integer: its leading digits, else 0. At most 19 years."""
    match = re.match(r"\s*[+-]?[0-9]{1,18}", text)
    return min(max(0, int(match[0])), 10_000_000) if match else 0


# ---------------------------------------------------------------- joined with the worker's own settings


def configure(
    file: Path | None, overrides: Mapping[tuple[str, str], Any], environ: Mapping[str, str]
) -> LoadedSettings:
    """The configuration without what the shop's database has; see `sources.load`."""
    return sources.load(file, overrides, environ, _shop_file_values)


def complete(configured: LoadedSettings, shop: ShopConfiguration) -> LoadedSettings:
    """Adds the shop's values, decrypted, for keys that no other source gives. Raises ConfigurationError."""
    values = dict(shop.values)
    for place, (text, source) in shop.values.items():
        if place in configured.sources or not is_encrypted(text):
            continue
        root = configured.settings.magento.root
        if root is None:
            raise ConfigurationError(
                f"{source} holds an encrypted {place[1]}: set [magento] root, whose app/etc/env.php has the key, "
                f"or [{place[0]}] {place[1]}"
            )
        environment = read_env_php(root / ENV_PHP, given=configured.sources)
        if environment.crypt_keys_unread:
            raise ConfigurationError(
                f"{source} holds an encrypted {place[1]}, and its key cannot be read: {environment.crypt_keys_unread}; "
                f"set [{place[0]}] {place[1]} in the worker's configuration"
            )
        try:
            values[place] = (decrypt(text, environment.crypt_keys), source)
        except ConfigurationError as error:
            raise ConfigurationError(f"{source}, {place[1]}: {error}") from error
    completed = sources.with_shop_values(configured, values)
    return replace(completed, warnings=(*completed.warnings, *_warnings_of_unknown(configured, shop)))


def _warnings_of_unknown(configured: LoadedSettings, shop: ShopConfiguration) -> Iterator[str]:
    """Warnings about settings that only PHP can determine, unless the worker's own configuration gives them."""
    for setting in shop.unknown:
        if setting.place is None:
            remedy = f"write the value itself there; what is assumed until then: {page('configuration.md')}"
        elif setting.place not in configured.sources:
            remedy = f"it is not used: set [{setting.place[0]}] {setting.place[1]}"
        else:
            continue
        yield f"{setting.why}; {remedy}"


def _shop_file_values(root: Path, given: Collection[Place]) -> Values:
    path = root / ENV_PHP
    return {place: (text, str(path)) for place, text in read_env_php(path, given=given).values.items()}


def require_rabbitmq(configured: LoadedSettings) -> None:
    """Raises ConfigurationError unless it is known where the shop's RabbitMQ is."""
    root = configured.settings.magento.root
    unread: Mapping[Place, str] = {}
    if root is not None:
        given = [place for place, source in configured.sources.items() if source != str(root / ENV_PHP)]
        unread = read_env_php(root / ENV_PHP, given=given).amqp_unread
    if unread:
        raise ConfigurationError("\n".join(unread.values()))
    if not configured.settings.relay.host:
        told = f"{root / ENV_PHP} has no queue/amqp/host" if root else "[magento] root is not set"
        raise ConfigurationError(
            f"no RabbitMQ is configured: [relay] host is not set, and {told}. Set [relay] host, or publish to the "
            "database's queue, which needs no relay"
        )


# ---------------------------------------------------------------- the shared access token


@contextmanager
def shared_token(database: Database, *, owner: str) -> Iterator[TokenRow]:
    """The row of the token, for the block. Its end frees a lock that the block took, and closes `database`.

    `owner`: unique among the workers of a shop.
    """
    row = TokenRow(database, owner)
    try:
        yield row
    finally:
        row.unlock()
        database.close()


class TokenRow:
    """The active row of zithara_webhook_config, in one session."""

    def __init__(self, database: Database, owner: str) -> None:
        self._database = database
        self._owner = owner
        self._locked = False

    def load(self) -> tuple[Secret, float] | None:
        """The token and its expiry, seconds since the epoch; None if there is no token."""
        rows = self._database.rows("token_load")
        if not rows or not rows[0]["access_token"] or rows[0]["expires_at"] is None:
            return None
        return Secret(str(rows[0]["access_token"])), float(rows[0]["expires_at"])

    def save(self, token: Secret, expires_at_utc: float) -> None:
        """Saves the token for PHP and the other workers. Raises ShopError if no row is active."""
        rows = self._database.rows("token_load")
        if not rows:
            raise ShopError(
                f"no active row in {self._database.prefix}zithara_webhook_config to keep the access token in: "
                "activate a configuration in the shop's admin"
            )
        self._database.execute(
            "token_save", token=token.reveal(), expires_at=int(expires_at_utc), config_id=rows[0]["config_id"]
        )

    def lock(self) -> bool:
        """Takes the lock that keeps other workers from renewing the token; whether it did."""
        self._locked = locks.take(self._database, TOKEN_LOCK, owner=self._owner, lease_seconds=TOKEN_LEASE_SECONDS)
        return self._locked

    def unlock(self) -> None:
        if self._locked:
            self._locked = False
            # If the database is not available, the lease of the lock ends by itself.
            with suppress(ZitharaWorkerError):
                locks.free(self._database, TOKEN_LOCK, owner=self._owner)
