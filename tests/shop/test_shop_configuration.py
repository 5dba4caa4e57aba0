"""The shop's settings: which layer counts, what only PHP knows, and files that change while they are read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.workers import Clock, settings_of

from zithara_worker.database.session import Database
from zithara_worker.errors import ConfigurationError
from zithara_worker.sandbox.shop import Shop
from zithara_worker.settings.sections import MagentoSettings, Settings
from zithara_worker.settings.sources import LoadedSettings
from zithara_worker.shop.configuration import (
    NEW_LIFETIME,
    SHORTEST_LIFETIME,
    ShopConfiguration,
    complete,
    read_configuration,
)
from zithara_worker.shop.deployment_config import DeploymentConfig, SettingsFile

LIFETIME = f"system/mysqlmq/{NEW_LIFETIME}"
RETRY_LIMIT = "zithara_webhook/general/retry_limit"
ENABLED = "zithara_webhook/general/enabled"
DEBUG = "zithara_webhook/general/debug"


def settings_php(php: str, path: str = LIFETIME) -> str:
    """A file as `config:set --lock-env` leaves it; `php` stands where the value of `path` belongs."""
    section, group, key = path.split("/")
    return f"<?php\nreturn ['system' => ['default' => ['{section}' => ['{group}' => ['{key}' => {php}]]]]];\n"


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """app/etc of a shop whose env.php says nothing of interest."""
    folder = tmp_path / "app" / "etc"
    folder.mkdir(parents=True)
    (folder / "env.php").write_text("<?php return ['db' => []];")
    return folder


@pytest.fixture
def read(shop: Shop, etc: Path) -> Iterator[Callable[[], ShopConfiguration]]:
    """What one worker reads, again and again."""
    database, files = Database(settings_of(shop)), DeploymentConfig(etc.parents[1])
    yield lambda: read_configuration(database, files)
    database.close()


Read = Callable[[], ShopConfiguration]


def test_env_php_stands_above_the_table_and_that_above_config_php(shop: Shop, etc: Path, read: Read) -> None:
    assert read().values.get(("retry", "limit")) is None
    (etc / "config.php").write_text(settings_php("'3'", RETRY_LIMIT))
    limit, source = read().values["retry", "limit"]
    assert limit == "3" and source == f"{etc}/config.php system/default/{RETRY_LIMIT}"
    shop.set_config(RETRY_LIMIT, "4")
    assert read().values["retry", "limit"] == ("4", f"core_config_data {RETRY_LIMIT}")
    (etc / "env.php").write_text(settings_php("5", RETRY_LIMIT))
    assert read().values["retry", "limit"] == ("5", f"{etc}/env.php system/default/{RETRY_LIMIT}")


@pytest.mark.parametrize(
    ("php", "minutes"),
    [
        ("'120'", 120),
        ("120", 120),
        ("120.0", 120),
        ("' 120 minutes'", 120),
        ("'0'", 0),
        ("0", 0),
        ("false", 0),
        ("'-5'", 0),
        ("'never'", 0),
        ("true", 1),
        ("'99999999999999999999999'", 10_000_000),
    ],
)
def test_a_locked_lifetime_counts_as_php_would_read_it(
    shop: Shop, etc: Path, read: Read, php: str, minutes: int
) -> None:
    shop.set_config(LIFETIME, "30")
    (etc / "env.php").write_text(settings_php(php))
    found = read()
    assert found.cleanup[NEW_LIFETIME].minutes == found.new_messages_lifetime_minutes == minutes
    assert found.cleanup[NEW_LIFETIME].source.startswith(f"{etc}/env.php")
    assert found.unknown == ()


@pytest.mark.parametrize("php", ["null", "''"])
def test_null_and_nothing_leave_the_word_to_the_next_layer(shop: Shop, etc: Path, read: Read, php: str) -> None:
    (etc / "env.php").write_text(settings_php(php))
    assert read().cleanup[NEW_LIFETIME].minutes == 10_080
    shop.set_config(LIFETIME, "300")
    assert read().cleanup[NEW_LIFETIME].minutes == 300


@pytest.mark.parametrize(
    "file",
    [
        settings_php("getenv('LIFETIME')"),
        settings_php("getenv('LIFETIME') ?: 10080"),
        settings_php("[1]"),
        "<?php return ['system' => require 'system.php'];",
        "<?php return ['system' => ['default' => [...shop()]]];",
        "<?php return [...shop()];",
    ],
)
def test_a_lifetime_that_only_php_knows_is_taken_for_the_shortest(shop: Shop, etc: Path, read: Read, file: str) -> None:
    shop.set_config(LIFETIME, "10080")
    (etc / "env.php").write_text(file)
    found = read()
    assert found.cleanup[NEW_LIFETIME].minutes is None
    assert found.new_messages_lifetime_minutes == SHORTEST_LIFETIME
    assert any(f"{etc}/env.php system/default/{LIFETIME}" in each.why for each in found.unknown)


def test_other_settings_that_only_php_knows_are_passed_over(shop: Shop, etc: Path, read: Read) -> None:
    shop.set_config(RETRY_LIMIT, "4")
    (etc / "env.php").write_text(settings_php("getenv('LIMIT')", RETRY_LIMIT))
    found = read()
    assert found.values["retry", "limit"][0] == "4"
    (unknown,) = found.unknown
    assert unknown.place == ("retry", "limit")
    assert "getenv('LIMIT') reads the environment of PHP" in unknown.why and "line 2" in unknown.why


def test_where_table_and_config_php_differ_the_shorter_lifetime_is_guarded(shop: Shop, etc: Path, read: Read) -> None:
    shop.set_config(LIFETIME, "0")
    (etc / "config.php").write_text(settings_php("'90'"))
    found = read()
    assert (found.cleanup[NEW_LIFETIME].minutes, found.new_messages_lifetime_minutes) == (0, 90)
    (etc / "env.php").write_text(settings_php("'300'"))
    assert read().new_messages_lifetime_minutes == 300


@pytest.mark.parametrize(
    ("php", "enabled"), [("0", False), ("'0'", False), ("false", False), ("1", True), ("''", True)]
)
def test_a_locked_switch_is_obeyed(shop: Shop, etc: Path, read: Read, php: str, enabled: bool) -> None:
    shop.set_config(ENABLED, "1")
    (etc / "env.php").write_text(settings_php(php, ENABLED))
    assert read().enabled is enabled


@pytest.mark.parametrize(
    ("php", "debug"), [("1", True), ("'1'", True), ("true", True), ("0", False), ("''", True), ("getenv('D')", True)]
)
def test_a_locked_debug_switch_is_obeyed(shop: Shop, etc: Path, read: Read, php: str, debug: bool) -> None:
    assert not read().debug
    shop.set_config(DEBUG, "1")
    (etc / "env.php").write_text(settings_php(php, DEBUG))
    found = read()
    assert found.debug is debug
    assert [unknown.place for unknown in found.unknown] == ([None] if "getenv" in php else [])


def test_websites_and_stores_are_not_read(etc: Path, read: Read) -> None:
    (etc / "env.php").write_text(settings_php("0", ENABLED).replace("'default'", "'websites'"))
    assert read().enabled


def test_a_change_of_the_files_is_seen_and_an_unchanged_file_is_not_read_again(
    etc: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    (etc / "env.php").write_text(settings_php("'120'"))
    assert read().new_messages_lifetime_minutes == 120
    reads: list[Path] = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path) or original(path))
    assert read().new_messages_lifetime_minutes == 120
    assert reads == []
    replacement = etc / "env.php.new"
    replacement.write_text(settings_php("'240'"))
    replacement.replace(etc / "env.php")
    assert read().new_messages_lifetime_minutes == 240


def test_a_half_written_file_leaves_in_force_what_it_said_before(etc: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    file = SettingsFile(etc / "env.php", required=True, monotonic=clock)
    whole = settings_php("'120'")
    (etc / "env.php").write_text(whole)
    file.refresh()
    caplog.set_level(logging.WARNING)
    for damaged in (whole[: len(whole) // 2], "", None):
        if damaged is None:
            (etc / "env.php").unlink()
        else:
            (etc / "env.php").write_text(damaged)
        file.refresh()
        assert file.get(LIFETIME)[0] == "120"
    assert len(caplog.records) == 1, "once a minute"
    clock.pass_by(60)
    file.refresh()
    assert len(caplog.records) == 2
    (etc / "env.php").write_text(settings_php("'121'"))
    file.refresh()
    assert file.get(LIFETIME)[0] == "121"


def test_of_a_file_that_could_never_be_read_each_setting_is_unknown(etc: Path, read: Read) -> None:
    (etc / "config.php").write_text("<?php $a = 1; return [];")
    found = read()
    assert found.new_messages_lifetime_minutes == SHORTEST_LIFETIME
    assert found.enabled
    whys = [unknown.why for unknown in found.unknown]
    assert any(f"{etc}/config.php system/default/{LIFETIME} (line 1): the file cannot be read" in why for why in whys)


def test_without_files_the_table_has_the_word(shop: Shop) -> None:
    shop.set_config(LIFETIME, "77")
    database = Database(settings_of(shop))
    try:
        assert read_configuration(database, None).new_messages_lifetime_minutes == 77
    finally:
        database.close()


def test_an_encrypted_value_whose_key_only_php_knows_names_line_and_setting(tmp_path: Path) -> None:
    env_php = tmp_path / "app" / "etc" / "env.php"
    env_php.parent.mkdir(parents=True)
    env_php.write_text(
        "<?php return ['db' => ['connection' => ['default' => []]],\n'crypt' => ['key' => getenv('K')]];"
    )
    found = LoadedSettings(
        settings=Settings(magento=MagentoSettings(root=tmp_path)), sources={("magento", "root"): "test"}
    )
    shop = ShopConfiguration(
        values={("zithara", "client_secret"): ("0:3:" + "c2Vj" * 20, "zithara_webhook_config")},
        enabled=True,
        active_config_id=1,
        config_ids=frozenset({1}),
        webhook_url=None,
        event_types=(),
        new_messages_lifetime_minutes=10_080,
    )

    with pytest.raises(ConfigurationError) as raised:
        complete(found, shop)
    told = str(raised.value)
    assert told.startswith("zithara_webhook_config holds an encrypted client_secret")
    assert f"{env_php}, line 2: crypt/key: getenv('K') reads the environment of PHP" in told
    assert "set [zithara] client_secret" in told and "c2Vj" not in told
