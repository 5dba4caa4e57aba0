"""What the shop itself says: its queues, its switches, and the module's configuration rows. Read only.

Sources: the module's etc/config.xml and etc/db_schema.xml (zithara/webhook 1.0.3); Magento_MysqlMq's etc/config.xml.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from zithara_worker.errors import ShopError
from zithara_worker.magento.database import Database
from zithara_worker.magento.topics import PHP_SIDE
from zithara_worker.settings import Secret

#: Minutes after which Magento's cleanup deletes NEW messages, unless core_config_data says otherwise; 0 = never.
DEFAULT_NEW_MESSAGES_LIFETIME = 10_080

#: The shop's switches under zithara_webhook/ that stand for settings of ours: path -> (section, key).
_SWITCHES = {
    "zithara_webhook/general/retry_limit": ("retry", "limit"),
    "zithara_webhook/general/retry_delay": ("retry", "delay"),
    "zithara_webhook/queue/batch_size": ("worker", "batch_size"),
}


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
    new_messages_lifetime_minutes: int
    values: Mapping[tuple[str, str], tuple[str, str]] = field(default_factory=dict, repr=False)

    @property
    def consumable(self) -> bool:
        """Whether the shop wants its events delivered: the module is enabled and a configuration row is active."""
        return self.enabled and self.active_config_id is not None


@dataclass(frozen=True, slots=True)
class QueueRow:
    queue_id: int
    name: str
    topic: str


def read_configuration(database: Database) -> ShopConfiguration:
    """Reads core_config_data (default scope) and zithara_webhook_config. Raises ShopError, DatabaseUnavailable."""
    config = {str(row["path"]): row["value"] for row in database.rows("shop_config")}
    rows = database.rows("webhook_configs")
    active = next((row for row in rows if int(row["is_active"] or 0) == 1), None)
    values: dict[tuple[str, str], tuple[str, str]] = {}
    for path, place in _SWITCHES.items():
        if config.get(path) not in (None, ""):
            values[place] = (str(config[path]), f"core_config_data {path}")
    if active is not None:
        source = f"zithara_webhook_config row {active['config_id']}"
        for key in ("client_id", "client_secret"):
            if active[key]:
                values["zithara", key] = (str(active[key]), source)
    lifetime = str(config.get("system/mysqlmq/new_messages_lifetime") or "")
    return ShopConfiguration(
        enabled=str(config.get("zithara_webhook/general/enabled", "1")) != "0",
        active_config_id=int(active["config_id"]) if active else None,
        config_ids=frozenset(int(row["config_id"]) for row in rows),
        webhook_url=(active["webhook_url"] or None) if active else None,
        client_id=str(active["client_id"] or "") if active else "",
        client_secret=Secret(str(active["client_secret"] or "") if active else ""),
        event_types=tuple(kind.strip() for kind in str(active["event_types"] or "").split(",") if kind.strip())
        if active
        else (),
        new_messages_lifetime_minutes=int(lifetime) if lifetime.isdigit() else DEFAULT_NEW_MESSAGES_LIFETIME,
        values=values,
    )


def find_queues(database: Database, topics: Sequence[str], overrides: Mapping[str, str]) -> list[QueueRow]:
    """The queue of each topic: the override, else the module's name, else one named like the topic.

    Raises ShopError naming every topic that has none.
    """
    names = {topic: _candidates(topic, overrides) for topic in topics}
    wanted = sorted({name for candidates in names.values() for name in candidates})
    ids = {str(row["name"]): int(row["id"]) for row in database.rows("queues_by_name", names=wanted)}
    found = []
    missing = []
    for topic, candidates in names.items():
        name = next((candidate for candidate in candidates if candidate in ids), None)
        if name is None:
            missing.append(f"{topic} (looked for {' and '.join(candidates)})")
        else:
            found.append(QueueRow(ids[name], name, topic))
    if missing:
        raise ShopError(
            f"no row in table {database.prefix}queue for {'; '.join(missing)}: run 'zithara-worker install', "
            "or name the queue in section [queues]"
        )
    return found


def _candidates(topic: str, overrides: Mapping[str, str]) -> Collection[str]:
    if topic in overrides:
        return (overrides[topic],)
    return (PHP_SIDE[topic].queue, topic) if topic in PHP_SIDE else (topic,)
