"""What the shop's tables say about its configuration: its switches and lifetimes in core_config_data, credentials and
the shared access token in zithara_webhook_config. Joins them with the worker's own settings.

Sources: the module's etc/config.xml and etc/db_schema.xml (zithara/webhook 1.0.3); Magento_MysqlMq's etc/config.xml.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zithara_worker.database import locks
from zithara_worker.errors import ConfigurationError, ShopError, ZitharaWorkerError
from zithara_worker.settings import sources
from zithara_worker.settings.sources import LoadedSettings, Place, Values
from zithara_worker.settings.values import Secret
from zithara_worker.shop.deployment_config import DeploymentConfig, read_env_php
from zithara_worker.shop.encryption import decrypt, is_encrypted
from zithara_worker.shop.php_array import Unknown

if TYPE_CHECKING:  # `preview` reads the configuration without the database driver
    from zithara_worker.database.session import Database

#: The row of zithara_lock of whoever asks the API for a new token.
TOKEN_LOCK = "token"  # noqa: S105 - a name, and no password
#: Seconds after which another worker may renew the token although the one that began has not freed the lock: it died.
#: Longer than a token request.
TOKEN_LEASE_SECONDS = 60.0

#: system/mysqlmq/ and Magento's defaults (its config.xml), in minutes; 0 or less switches a rule off.
NEW_LIFETIME = "new_messages_lifetime"
_CLEANUP = {
    NEW_LIFETIME: 10_080,
    "successful_messages_lifetime": 10_080,
    "failed_messages_lifetime": 10_080,
    "retry_inprogress_after": 1440,
}
#: Minutes after which new messages are taken to be deleted where only PHP knows. Magento's cleanup runs twice a day, so
#: that hardly any shop has less; and no row is touched more often than every half hour.
SHORTEST_LIFETIME = 60

#: The shop's switches under zithara_webhook/ that stand for settings of ours: path -> (section, key).
_SWITCHES = {
    "zithara_webhook/general/retry_limit": ("retry", "limit"),
    "zithara_webhook/general/retry_delay": ("retry", "delay"),
    "zithara_webhook/queue/batch_size": ("worker", "batch_size"),
}
_ENABLED = "zithara_webhook/general/enabled"
_DEBUG = "zithara_webhook/general/debug"


@dataclass(frozen=True, slots=True)
class Lifetime:
    """One rule of Magento's cleanup. `minutes`: 0 = it is off, None = only PHP knows; `source`: where that stands."""

    minutes: int | None
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownSetting:
    """A setting of the shop that only PHP could work out. `place`: what it would stand for, None: nothing of ours."""

    place: tuple[str, str] | None
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopConfiguration:
    """The shop's answers at one moment. `values`: settings that the shop gives, (section, key) -> (value, source).

    The webhook URL is not among them: it is used as it is at the moment of sending, without a reload.
    """

    enabled: bool
    #: Whether the shop wants the worker to log at DEBUG now
    debug: bool = False
    active_config_id: int | None
    config_ids: frozenset[int]
    webhook_url: str | None
    client_id: str
    client_secret: Secret
    event_types: tuple[str, ...]
    #: What the expiry guard must reckon with: the shortest that may be in force; 0 = new messages are never deleted.
    new_messages_lifetime_minutes: int
    #: Of each rule of Magento's cleanup, by its name under system/mysqlmq/.
    cleanup: Mapping[str, Lifetime] = field(default_factory=dict)
    values: Mapping[tuple[str, str], tuple[str, str]] = field(default_factory=dict, repr=False)
    unknown: tuple[UnknownSetting, ...] = ()

    @property
    def consumable(self) -> bool:
        """Whether the shop wants its events delivered: the module is enabled and a configuration row is active."""
        return self.enabled and self.active_config_id is not None


def read_configuration(database: Database, files: DeploymentConfig | None) -> ShopConfiguration:
    """Reads zithara_webhook_config, and the settings: app/etc/env.php stands above core_config_data (default scope),
    that above app/etc/config.php. `files`: None where [magento] root is not set. Raises ShopError, DatabaseUnavailable.
    """
    if files is not None:
        files.refresh()
    settings = _Settings({str(row["path"]): row["value"] for row in database.rows("shop_config")}, files)
    rows = database.rows("webhook_configs")
    active = next((row for row in rows if int(row["is_active"] or 0) == 1), None)
    values: dict[tuple[str, str], tuple[str, str]] = {}
    for path, place in _SWITCHES.items():
        if (given := settings.first(path)) is not None:
            values[place] = given
    if active is not None:
        source = f"zithara_webhook_config row {active['config_id']}"
        for key in ("client_id", "client_secret"):
            if active[key]:
                values["zithara", key] = (str(active[key]), source)
    enabled, debug = settings.first(_ENABLED), settings.first(_DEBUG)
    return ShopConfiguration(
        enabled=enabled is None or enabled[0] != "0",
        debug=debug is not None and debug[0] == "1",
        active_config_id=int(active["config_id"]) if active else None,
        config_ids=frozenset(int(row["config_id"]) for row in rows),
        webhook_url=(active["webhook_url"] or None) if active else None,
        client_id=str(active["client_id"] or "") if active else "",
        client_secret=Secret(str(active["client_secret"] or "") if active else ""),
        event_types=tuple(kind.strip() for kind in str(active["event_types"] or "").split(",") if kind.strip())
        if active
        else (),
        new_messages_lifetime_minutes=settings.shortest(f"system/mysqlmq/{NEW_LIFETIME}", _CLEANUP[NEW_LIFETIME]),
        cleanup={name: settings.lifetime(f"system/mysqlmq/{name}", default) for name, default in _CLEANUP.items()},
        values=values,
        unknown=tuple(
            UnknownSetting(place=_SWITCHES.get(path), why=why)
            for path in (*_SWITCHES, _ENABLED, _DEBUG, *(f"system/mysqlmq/{name}" for name in _CLEANUP))
            if (why := settings.unknown(path)) is not None
        ),
    )


class _Settings:
    """Settings of the shop by their path, each from the highest layer that gives it. Empty or null gives nothing."""

    def __init__(self, table: Mapping[str, Any], files: DeploymentConfig | None) -> None:
        self._table = table
        self._files = files

    def _given(self, path: str) -> list[tuple[str | Unknown, str]]:
        """What each layer gives with its source, the highest first; only env.php's, where that is known."""
        layers = [(self._table.get(path), f"core_config_data {path}")]
        if self._files is not None:
            env = self._files.env.get(path)
            if env[0] and isinstance(env[0], str):
                return [(env[0], env[1])]
            layers = [env, *layers, self._files.config.get(path)]
        return [(value, source) for value, source in layers if value not in (None, "")]

    def first(self, path: str) -> tuple[str, str] | None:
        """The value in force, with its source. One that only PHP knows is passed over."""
        return next(((value, source) for value, source in self._given(path) if isinstance(value, str)), None)

    def unknown(self, path: str) -> str | None:
        """Why nobody but PHP knows which value is in force; None where it is known."""
        for value, source in self._given(path):
            return f"{source} (line {value.line}): {value.why}" if isinstance(value, Unknown) else None
        return None

    def lifetime(self, path: str, default: int) -> Lifetime:
        for value, source in self._given(path):
            return Lifetime(None if isinstance(value, Unknown) else _minutes(value), source)
        return Lifetime(default, "Magento's default")

    def shortest(self, path: str, default: int) -> int:
        """The least number of minutes that may be in force; 0 if no layer has one.

        Below env.php each layer counts: Magento itself lets config.php overrule the table, and a lifetime that is
        taken for too short costs a few updates, one taken for too long the messages.
        """
        minutes = [
            SHORTEST_LIFETIME if isinstance(value, Unknown) else _minutes(value) for value, _ in self._given(path)
        ]
        return min((each for each in minutes or [default] if each > 0), default=0)


def _minutes(text: str) -> int:
    """PHP's conversion to an integer: the digits that the text begins with, else 0. At most 19 years."""
    match = re.match(r"\s*[+-]?[0-9]{1,18}", text)
    return min(max(0, int(match[0])), 10_000_000) if match else 0


# ---------------------------------------------------------------- joined with the worker's own settings


def configure(
    file: Path | None, overrides: Mapping[tuple[str, str], Any], environ: Mapping[str, str]
) -> LoadedSettings:
    """The configuration as far as it goes without a database; see `sources.load`."""
    return sources.load(file, overrides, environ, _shop_file_values)


def complete(configured: LoadedSettings, shop: ShopConfiguration) -> LoadedSettings:
    """Adds what the shop says, decrypted, where nobody else has given a value. Raises ConfigurationError."""
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
        environment = read_env_php(_env_php(root), given=configured.sources)
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
    return replace(completed, warnings=(*completed.warnings, *_unknown_to_us(configured, shop)))


def _unknown_to_us(configured: LoadedSettings, shop: ShopConfiguration) -> Iterator[str]:
    """Sentences about the shop's settings that only PHP could work out, where the worker's own do not replace them."""
    for setting in shop.unknown:
        if setting.place is None:
            remedy = "write the value itself there; what is assumed until then: docs/configuration.md"
        elif setting.place not in configured.sources:
            remedy = f"it is passed over: set [{setting.place[0]}] {setting.place[1]}"
        else:
            continue
        yield f"{setting.why}; {remedy}"


def _shop_file_values(root: Path, given: Collection[Place]) -> Values:
    path = _env_php(root)
    return {place: (text, str(path)) for place, text in read_env_php(path, given=given).values.items()}


def _env_php(root: Path) -> Path:
    return root / "app" / "etc" / "env.php"


# ---------------------------------------------------------------- the shared access token


class DatabaseTokenStore:
    """Each use has a session of its own, open only meanwhile. `owner`: unique among the workers of a shop."""

    def __init__(self, open_database: Callable[[], Database], *, owner: str) -> None:
        self._open_database = open_database
        self._owner = owner

    @contextmanager
    def opened(self) -> Iterator[TokenRow]:
        """The row, until the block ends; a lock that was taken meanwhile is freed then."""
        database = self._open_database()
        row = TokenRow(database, self._owner)
        try:
            yield row
        finally:
            row.unlock()
            database.close()


class TokenRow:
    """The active row, in one session."""

    def __init__(self, database: Database, owner: str) -> None:
        self._database = database
        self._owner = owner
        self._locked = False

    def load(self) -> tuple[Secret, float] | None:
        """The token with its expiry, seconds since the epoch; None when there is none."""
        rows = self._database.rows("token_load")
        if not rows or not rows[0]["access_token"] or rows[0]["expires_at"] is None:
            return None
        return Secret(str(rows[0]["access_token"])), float(rows[0]["expires_at"])

    def save(self, token: Secret, expires_at_utc: float) -> None:
        """Writes the token back for PHP and the other workers. Raises ShopError when no row is active."""
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
        """Whether nobody else may renew the token now."""
        self._locked = locks.take(self._database, TOKEN_LOCK, owner=self._owner, lease_seconds=TOKEN_LEASE_SECONDS)
        return self._locked

    def unlock(self) -> None:
        if self._locked:
            self._locked = False
            # A database that went away meanwhile: the lease ends by itself.
            with suppress(ZitharaWorkerError):
                locks.free(self._database, TOKEN_LOCK, owner=self._owner)
