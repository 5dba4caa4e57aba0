"""What the shop itself says: its switches, and the module's configuration rows. Read only.

Sources: the module's etc/config.xml and etc/db_schema.xml (zithara/webhook 1.0.3); Magento_MysqlMq's etc/config.xml.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zithara_worker.database.session import Database
from zithara_worker.settings.sections import Secret
from zithara_worker.shop.deployment_config import DeploymentConfig
from zithara_worker.shop.php_array import Unknown

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
    enabled = settings.first(_ENABLED)
    return ShopConfiguration(
        enabled=enabled is None or enabled[0] != "0",
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
            for path in (*_SWITCHES, _ENABLED, *(f"system/mysqlmq/{name}" for name in _CLEANUP))
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
