"""Each check of `doctor`, made to speak on a real database, a real API and files."""

from __future__ import annotations

import json
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import trustme
from support.workers import settings_of

from zithara_worker import Settings
from zithara_worker.database.session import Database, knows_skip_locked
from zithara_worker.doctor import Doctor, Finding, Level, host, unreadable
from zithara_worker.doctor import database as database_checks
from zithara_worker.doctor.api import checks as api_checks
from zithara_worker.doctor.host import log_files, run_command
from zithara_worker.doctor.queues import cron
from zithara_worker.errors import ConfigurationError
from zithara_worker.monitor.registry import Identity, Registry
from zithara_worker.queue.operator import pause
from zithara_worker.queue.settle import message_code
from zithara_worker.sandbox.api import FakeZithara, Reply
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.shop import Shop
from zithara_worker.sandbox.shop_tables import ShopTables
from zithara_worker.settings.sections import LoggingSettings, MagentoSettings, ZitharaSettings
from zithara_worker.settings.sources import LoadedSettings
from zithara_worker.settings.values import Secret
from zithara_worker.topics import TOPIC_ORDER, TOPIC_TABLE, TOPICS

Examine = Callable[..., dict[str, Finding]]
Rooted = Callable[[str], LoadedSettings]


@pytest.fixture
def examine(database: Database, settings: Settings, tmp_path: Path) -> Examine:
    """Runs all checks; check -> finding. Keywords replace parts of the Doctor."""

    def run(**parts: Any) -> dict[str, Finding]:
        given: dict[str, Any] = {
            "configured": LoadedSettings(settings=settings, sources={("database", "name"): "program"}),
            "database": database,
            "etc": tmp_path / "etc",
            "run": lambda arguments: None,
        }
        return by_check(Doctor(**{**given, **parts}).examine())

    return run


@pytest.fixture
def rooted(settings: Settings, tmp_path: Path) -> Rooted:
    """The settings with a [magento] root whose env.php holds this besides."""

    def make(php: str) -> LoadedSettings:
        env_php = tmp_path / "app" / "etc" / "env.php"
        env_php.parent.mkdir(parents=True)
        env_php.write_text(f"<?php return ['db' => [], {php}];")
        return LoadedSettings(settings=replace(settings, magento=MagentoSettings(root=tmp_path)))

    return make


@pytest.fixture
def served(shop: Shop, database: Database) -> None:
    """A worker that was seen just now."""
    identity = Identity(id="worker-a", host="shop1", pid=7, version="1", topics=TOPICS)
    Registry(database, identity).update(in_flight=0, metrics_address=None, state={}, minutes={})


def by_check(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def levels(found: dict[str, Finding]) -> dict[str, Level]:
    return {check: finding.level for check, finding in found.items()}


def test_a_shop_in_order_has_no_complaint_but_of_the_host(shop: Shop, served: None, examine: Examine) -> None:
    shop.publish_samples()
    found = examine()
    complaints = {check: level for check, level in levels(found).items() if level is not Level.OK}
    expected = {"programs": Level.WARNING, "php_consumers.cron": Level.UNCHECKED}
    if not knows_skip_locked(shop.server.version):
        expected["database"] = Level.WARNING
    assert complaints == expected
    assert len(found) >= 25


def test_every_complaint_has_a_remedy_and_names_what_was_seen(shop: Shop, examine: Examine) -> None:
    shop.query("UPDATE {prefix}zithara_webhook_config SET is_active = 0")
    complaints = [finding for finding in examine().values() if finding.level is not Level.OK]
    assert complaints and all(finding.remedy and finding.found for finding in complaints)


# ---------------------------------------------------------------- configuration


def test_an_unreadable_configuration_is_a_finding_for_each_line() -> None:
    found = list(unreadable(ConfigurationError("[worker] lease: must be 2\n[retry] limit: must be 1")))
    assert [(finding.level, finding.found[:7]) for finding in found] == [
        (Level.FAILED, "[worker"),
        (Level.FAILED, "[retry]"),
    ]


def test_warnings_of_the_configuration_and_unchecked_certificates_are_told(
    examine: Examine, settings: Settings
) -> None:
    loose = replace(settings, zithara=replace(settings.zithara, verify=False))
    warnings = ("/etc/x.conf holds [database] password, and everybody on this host can read it: chmod o= /etc/x.conf",)
    found = examine(configured=LoadedSettings(settings=loose, warnings=warnings))
    assert found["configuration.permissions"].remedy == "chmod o= /etc/x.conf"
    assert "shop.settings" not in found, "a warning that has a finding already"
    assert found["configuration.verify"].level is Level.WARNING


# ---------------------------------------------------------------- database


def test_a_database_that_is_away_fails_and_the_api_is_checked_all_the_same(
    examine: Examine, settings: Settings, tmp_path: Path
) -> None:
    away = replace(settings.database, unix_socket=str(tmp_path / "no.sock"))
    found = examine(database=Database(away), configured=LoadedSettings(settings=replace(settings, database=away)))
    told = found["database"]
    assert told.level is Level.FAILED and f"there is no socket {tmp_path / 'no.sock'}; so tables, " in told.found
    assert told.remedy == "check that the server runs there, and [database] unix_socket"
    assert found["api.token"].level is Level.OK
    assert [finding.check for finding in found.values() if finding.level is Level.FAILED] == ["database"]
    # The credentials are the shop's: that they are not known is no finding of its own.
    remote = replace(settings.database, unix_socket="", host="127.0.0.1", port=1)
    unknown = replace(settings, database=remote, zithara=replace(settings.zithara, client_id=""))
    found = examine(database=Database(remote), configured=LoadedSettings(settings=unknown))
    assert [finding.check for finding in found.values() if finding.level is Level.FAILED] == ["database"]
    assert "no connection to 127.0.0.1:1 (" in found["database"].found and "api.token" not in found
    assert found["database"].remedy.endswith("[database] host and port")


def test_missing_tables_of_ours_fail(make_shop: Callable[..., Shop], examine: Examine) -> None:
    bare = make_shop(worker_tables=False)
    root = Database(settings_of(bare, user="root", password=Secret("")))
    try:
        found = examine(database=root)
    finally:
        root.close()
    assert found["tables.magento"].level is Level.OK
    assert found["tables.worker"].level is Level.FAILED and "install" in found["tables.worker"].remedy
    # What cannot have rights yet lacks none.
    assert found["privileges"].level is Level.OK and "after 'zithara-worker install'" in found["privileges"].found
    assert not {"in_progress", "failed", "workers", "paused"} & found.keys(), "one cause, one finding"


@pytest.mark.parametrize(
    ("comment", "level", "told", "remedy"),
    [
        ("zithara-worker schema 1", Level.FAILED, "schema 1, this program needs schema 4", "zithara-worker install"),
        ("zithara-worker schema 99", Level.WARNING, "schema 99, which a newer version made", "update zithara-worker"),
        ("my comment", Level.FAILED, "names no schema", "COMMENT = 'zithara-worker schema 4'"),
    ],
)
def test_tables_of_another_version_are_told(
    shop: Shop, examine: Examine, comment: str, level: Level, told: str, remedy: str
) -> None:
    shop.query("ALTER TABLE {prefix}zithara_message_group COMMENT = %s", (comment,))
    found = examine()["tables.worker"]
    assert found.level is level and told in found.found and remedy in found.remedy


def test_tables_without_transactions_fail(shop: Shop, examine: Examine) -> None:
    shop.query("ALTER TABLE {prefix}zithara_worker ENGINE = MyISAM")
    found = examine()["tables.worker"]
    assert found.level is Level.FAILED and found.remedy == "ALTER TABLE zithara_worker ENGINE=InnoDB"


@pytest.mark.parametrize(
    ("grant", "named"),
    [
        ("INSERT ON {name}.queue_lock", "INSERT on queue_lock"),
        ("SELECT ON {name}.core_config_data", "SELECT on core_config_data"),
        ("UPDATE (number_of_trials) ON {name}.queue_message_status", "UPDATE on queue_message_status"),
        ("UPDATE (access_token) ON {name}.zithara_webhook_config", "UPDATE on zithara_webhook_config"),
        ("DELETE ON {name}.zithara_delivery_failure", "DELETE on zithara_delivery_failure"),
        ("INSERT ON {name}.zithara_topic_control", "INSERT on zithara_topic_control"),
        ("DELETE ON {name}.zithara_lock", "DELETE on zithara_lock"),
    ],
)
def test_each_privilege_that_is_lacking_is_named(shop: Shop, examine: Examine, grant: str, named: str) -> None:
    shop.query(f"REVOKE {grant.format(name=shop.name)} FROM '{shop.user}'@'%'")
    found = examine()["privileges"]
    assert found.level is Level.FAILED and named in found.found and "install --print" in found.remedy


def test_trying_the_privileges_changes_nothing(shop: Shop, database: Database) -> None:
    shop.publish_samples()
    tables = [table for table, _ in database_checks.PRIVILEGES]
    before = [shop.query(f"CHECKSUM TABLE {{prefix}}{table}") for table in tables]
    assert [finding.level for finding in database_checks.privileges(database)] == [Level.OK]
    assert [shop.query(f"CHECKSUM TABLE {{prefix}}{table}") for table in tables] == before


def test_a_statement_based_binary_log_fails(tmp_path: Path) -> None:
    options = ("--log-bin=binlog", "--binlog-format=STATEMENT", "--server-id=1")
    with MariaDbServer(options=options) as server, Shop(server) as shop:
        opened = Database(settings_of(shop))
        try:
            (found,) = database_checks.session(opened)
        finally:
            opened.close()
    assert (found.check, found.level) == ("database.binlog_format", Level.FAILED)


def test_a_clock_that_is_off_is_told(examine: Examine) -> None:
    found = examine(utc=lambda: time.time() - 300)["database.clock"]
    assert found.level is Level.WARNING and "ahead" in found.found


def test_the_optional_index_is_seen(shop: Shop, database: Database, examine: Examine) -> None:
    shop.run_script("optional_index.sql")
    assert examine()["database.index"].found == "the optional index is there"


# ---------------------------------------------------------------- the shop


def test_a_disabled_module_fails(shop: Shop, examine: Examine) -> None:
    shop.set_config("zithara_webhook/general/enabled", "0")
    found = examine()["shop.enabled"]
    assert found.level is Level.FAILED and "(core_config_data zithara_webhook/general/enabled)" in found.found
    statement, _, then = found.remedy.partition("; then ")
    assert then.startswith("bin/magento cache:flush")
    shop.query(statement)
    assert examine()["shop.enabled"].level is Level.OK, "the remedy works as it stands"


def test_a_module_that_env_php_disables_is_enabled_there(shop: Shop, examine: Examine, rooted: Rooted) -> None:
    configured = rooted("'system' => ['default' => ['zithara_webhook' => ['general' => ['enabled' => '0']]]]")
    found = examine(configured=configured)["shop.enabled"]
    assert found.level is Level.FAILED and "env.php system/default/zithara_webhook/general/enabled)" in found.found
    assert found.remedy.startswith("set it to 1 there")


def test_a_shop_without_an_active_row_fails(shop: Shop, examine: Examine, settings: Settings) -> None:
    shop.query("UPDATE {prefix}zithara_webhook_config SET is_active = 0")
    of_the_shop = replace(settings, zithara=replace(settings.zithara, client_id=""))
    found = examine(configured=LoadedSettings(settings=of_the_shop))
    assert "none of the 1 rows" in found["shop.configuration"].found
    assert not {"shop.webhook_url", "api.token"} & found.keys(), "one cause, one finding"
    shop.query("DELETE FROM {prefix}zithara_webhook_config")
    assert "no row" in examine()["shop.configuration"].found


def test_webhook_url_and_event_types_are_looked_at(shop: Shop, examine: Examine) -> None:
    shop.configure_webhook(webhook_url=None, event_types="")
    found = examine()
    assert found["shop.webhook_url"].level is Level.WARNING
    assert found["shop.event_types"].level is Level.WARNING
    shop.configure_webhook(webhook_url="http://hooks.example.com/x")
    assert examine()["shop.webhook_url"].level is Level.FAILED


def test_a_setting_of_the_shop_that_is_out_of_range_is_told(shop: Shop, examine: Examine) -> None:
    shop.set_config("zithara_webhook/queue/batch_size", "-5")
    found = examine()["shop.settings"]
    assert found.level is Level.WARNING and "batch_size" in found.found


@pytest.mark.parametrize(
    ("php", "level", "told"),
    [
        ("'120'", Level.OK, "new messages are deleted after 120 minutes ("),
        ("0", Level.OK, "new messages are deleted never ("),
        ("getenv('X')", Level.WARNING, "new messages are deleted after a time that only PHP can work out ("),
    ],
)
def test_the_lifetimes_of_magentos_cleanup_are_told_with_their_source(
    shop: Shop, examine: Examine, rooted: Rooted, tmp_path: Path, php: str, level: Level, told: str
) -> None:
    shop.set_config("system/mysqlmq/failed_messages_lifetime", "99")
    env_php = tmp_path / "app" / "etc" / "env.php"
    locked = f"'system' => ['default' => ['system' => ['mysqlmq' => ['new_messages_lifetime' => {php}]]]]"
    found = examine(configured=rooted(locked))
    assert found["shop.cleanup"].level is level
    assert f"{told}{env_php} system/default/system/mysqlmq/new_messages_lifetime)" in found["shop.cleanup"].found
    assert "failed ones are deleted after 99 minutes (core_config_data " in found["shop.cleanup"].found
    assert (
        "put back after 1440 minutes (system/mysqlmq/retry_inprogress_after, Magento's default)"
        in found["shop.cleanup"].found
    )
    assert ("shop.settings" in found) is (level is Level.WARNING)
    assert "[magento] root is not set" in examine()["shop.cleanup"].found


# ---------------------------------------------------------------- the queues


def test_a_missing_queue_row_fails(shop: Shop, examine: Examine) -> None:
    shop.query("DELETE FROM {prefix}queue WHERE name = 'zithara_cart_queue'")
    found = examine()["queues"]
    assert found.level is Level.FAILED and "zithara.cart.events" in found.found


def test_a_shop_without_any_of_the_queues_fails_for_all_topics(shop: Shop, examine: Examine) -> None:
    shop.query("DELETE FROM {prefix}queue WHERE name LIKE 'zithara%'")
    found = examine()
    assert found["queues"].level is Level.FAILED and all(topic in found["queues"].found for topic in TOPICS)
    assert "workers" not in found


def test_a_topic_that_was_never_published_is_told(shop: Shop, examine: Examine) -> None:
    shop.publish_order()
    found = examine()
    assert found["published.order"].level is Level.OK
    assert found["published.cart"].level is Level.WARNING


def test_messages_that_no_queue_has_fail(shop: Shop, examine: Examine) -> None:
    shop.query("INSERT INTO {prefix}queue_message (topic_name, body) VALUES (%s, 'x')", (TOPIC_ORDER,))
    shop.query("INSERT INTO {prefix}queue_message (topic_name, body) VALUES ('other.topic', 'x')")
    found = examine()["published.unlinked"]
    assert found.level is Level.FAILED and found.found.startswith("1 messages of zithara.order.events")


def test_messages_in_progress_that_no_worker_holds_are_told(shop: Shop, examine: Examine) -> None:
    shop.publish_order("000000101")
    shop.query("UPDATE {prefix}queue_message_status SET status = 3")
    found = examine()["in_progress"]
    assert found.level is Level.WARNING and found.found.startswith("no worker holds 1 messages")
    shop.query(
        "INSERT INTO {prefix}zithara_message_group (queue_id, group_key, id, message_id, worker_id, lease_until) "
        "SELECT queue_id, 'order:1', id, message_id, 'worker-a', NOW(3) + INTERVAL 60 SECOND "
        "FROM {prefix}queue_message_status"
    )
    assert examine()["in_progress"].level is Level.OK


def test_a_user_who_may_read_the_locks_learns_whether_php_holds_them(shop: Shop, examine: Examine) -> None:
    shop.publish_order("000000101")
    consumer = shop.php_consumer(TOPIC_ORDER)
    selected = consumer.select()
    assert selected is not None and consumer.take(selected) and consumer.lock(selected)
    root = Database(settings_of(shop, user="root", password=Secret("")))
    try:
        found = examine(database=root)
        assert found["php_consumers.in_progress"].found.startswith("PHP consumers hold 1 messages")
        assert "in_progress" not in found
        code = message_code(TOPIC_TABLE[TOPIC_ORDER].php_consumer, selected.message_id)
        shop.query("DELETE FROM {prefix}queue_lock WHERE message_code = %s", (code,))
        assert examine(database=root)["in_progress"].found.startswith("neither a worker nor PHP holds 1 messages")
    finally:
        root.close()


def test_messages_that_php_rejected_are_told(shop: Shop, examine: Examine) -> None:
    shop.publish_order()
    shop.query("UPDATE {prefix}queue_message_status SET status = 6")
    found = examine()
    assert found["php_consumers.rejected"].level is Level.WARNING
    assert found["failed"].level is Level.WARNING


def test_new_messages_near_deletion_are_told_and_then_fail(shop: Shop, examine: Examine) -> None:
    shop.publish_order()
    shop.make_older(minutes=6 * 1440)
    assert examine()["expiry"].level is Level.WARNING
    shop.set_config("system/mysqlmq/new_messages_lifetime", "20000")
    assert examine()["expiry"].found.endswith("deletion, 20000 minutes after it was published")
    shop.set_config("system/mysqlmq/new_messages_lifetime", None)
    shop.make_older(minutes=2 * 1440)
    assert examine()["expiry"].level is Level.FAILED
    shop.set_config("system/mysqlmq/new_messages_lifetime", "0")
    assert examine()["expiry"].level is Level.OK


def test_topics_without_a_worker_and_paused_ones_are_told(shop: Shop, database: Database, examine: Examine) -> None:
    pause(database, [TOPIC_ORDER], by="anna@shop1", reason="import", audit=lambda lines: None)
    found = examine()
    assert found["workers"].level is Level.WARNING
    assert "anna@shop1" in found["paused.order"].found and "resume" in found["paused.order"].remedy


OTHERS = "'consumers' => ['async.operations.all', 'product_alert']"


@pytest.mark.parametrize(
    ("runner", "level", "block"),
    [
        ("'cron_consumers_runner' => ['cron_run' => true, 'consumers' => ['async.operations.all']],", Level.OK, ""),
        ("'cron_consumers_runner' => ['cron_run' => false],", Level.OK, ""),
        (
            "'cron_consumers_runner' => ['max_messages' => 20, 'consumers' => "
            "['async.operations.all', 'ZitharaCartConsumer', 'product_alert', 'ZitharaOrderConsumer']],",
            Level.WARNING,
            f"'cron_consumers_runner' => ['max_messages' => 20, {OTHERS}, 'cron_run' => true],",
        ),
        (  # An empty list would start all consumers.
            "'cron_consumers_runner' => ['cron_run' => true, 'consumers' => ['ZitharaCartConsumer']],",
            Level.WARNING,
            "'cron_consumers_runner' => ['cron_run' => false, 'consumers' => []],",
        ),
    ],
)
def test_php_consumers_that_cron_may_start_are_told_with_the_block_to_write(
    tmp_path: Path, runner: str, level: Level, block: str
) -> None:
    file = tmp_path / "app" / "etc" / "env.php"
    file.parent.mkdir(parents=True)
    file.write_text(f"<?php return [{runner} 'db' => []];")
    (found,) = cron(tmp_path)
    assert found.level is level, found
    assert found.remedy == (f"in {file} write {block}" if block else "")
    if block:
        file.write_text(f"<?php return [{block} 'db' => []];")
        assert [each.level for each in cron(tmp_path)] == [Level.OK], "with that block all is well"


@pytest.mark.parametrize("runner", ["", "'cron_consumers_runner' => ['cron_run' => true, 'consumers' => []],"])
def test_where_env_php_names_no_consumer_the_command_that_prints_the_block_is_told(tmp_path: Path, runner: str) -> None:
    file = tmp_path / "app" / "etc" / "env.php"
    file.parent.mkdir(parents=True)
    file.write_text(f"<?php return [{runner} 'db' => []];")
    magento = tmp_path / "bin" / "magento"
    magento.parent.mkdir()
    magento.write_text("#!/bin/sh\nprintf '%s\\n' async.operations.all ZitharaOrderConsumer product_alert\n")
    magento.chmod(0o755)
    (found,) = cron(tmp_path)
    assert found.level is Level.WARNING and "ZitharaOrderConsumer" in found.found
    command = found.remedy.partition("is printed by: ")[2]
    printed = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout
    file.write_text(f"<?php return [{printed} 'db' => []];")
    assert [each.level for each in cron(tmp_path)] == [Level.OK]
    assert "'product_alert'," in printed


def test_an_env_php_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (found,) = cron(tmp_path)
    assert found.level is Level.WARNING and "env.php" in found.found


# ---------------------------------------------------------------- the API


def zithara(api: FakeZithara, **changes: Any) -> ZitharaSettings:
    given = {"base_url": api.base_url, "client_id": api.client_id, "client_secret": Secret(api.client_secret)}
    return ZitharaSettings(**{**given, **changes})


def test_refused_credentials_fail_and_the_secret_stays_secret(api: FakeZithara) -> None:
    found = by_check(api_checks(zithara(api, client_secret=Secret("hunter2")), time.time))
    assert found["api.token"].level is Level.FAILED and found["api.token"].found.startswith(
        "API DOWN: credentials refused (HTTP 401"
    )
    assert found["api.token"].remedy.startswith("correct client id and secret")
    assert "hunter2" not in str(found)


def test_missing_credentials_fail(api: FakeZithara) -> None:
    assert by_check(api_checks(zithara(api, client_id=""), time.time))["api.token"].level is Level.FAILED


def test_an_api_that_is_down_fails(api: FakeZithara) -> None:
    settings = zithara(api)
    api.stop()
    assert by_check(api_checks(settings, time.time))["api.token"].level is Level.FAILED


def test_the_token_that_the_shop_has_is_left_alone(shop: Shop, examine: Examine) -> None:
    shop.query("UPDATE {prefix}zithara_webhook_config SET access_token = 'kept', token_expiry = '2037-01-01'")
    assert examine()["api.token"].level is Level.OK
    assert shop.query("SELECT access_token FROM {prefix}zithara_webhook_config") == [("kept",)]


def test_a_clock_that_differs_from_the_apis_is_told(api: FakeZithara) -> None:
    token = {"access_token": "abc", "expires_in": 3600}
    date = formatdate(time.time() - 600, usegmt=True)
    api.responder = lambda request: replace(Reply.of(200, token), headers={"Date": date})
    found = by_check(api_checks(zithara(api), time.time))["api.clock"]
    assert found.level is Level.WARNING and "ahead of the API's" in found.found
    api.responder = lambda request: replace(Reply.of(200, token), headers={"Date": formatdate(usegmt=True)})
    assert by_check(api_checks(zithara(api), time.time))["api.clock"].found == "this host's clock agrees with the API's"


def test_tls_is_checked_against_its_authority_and_its_end(tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    with FakeZithara(tls=tls) as api:
        untrusted = by_check(api_checks(zithara(api), time.time))
        assert untrusted["api.tls"].level is Level.FAILED and "ca_file" in untrusted["api.tls"].remedy
        assert "api.token" not in untrusted
        trusted = by_check(api_checks(zithara(api, ca_file=ca_file), time.time))
        assert (trusted["api.tls"].level, trusted["api.token"].level) == (Level.OK, Level.OK)
        far_future = 4e10  # trustme's certificates end in the year 3000
        found = by_check(api_checks(zithara(api, ca_file=ca_file), lambda: far_future))
        assert found["api.tls"].level is Level.WARNING


def test_no_tls_where_it_is_expected_fails(api: FakeZithara) -> None:
    settings = zithara(api, base_url=api.base_url.replace("http://", "https://"), timeout=0.5)
    found = by_check(api_checks(settings, time.time))
    assert found["api.tls"].level is Level.FAILED and "firewall" in found["api.tls"].remedy


# ---------------------------------------------------------------- this host


def programs(etc: Path, answers: dict[str, str] | None = None) -> dict[str, Finding]:
    return by_check(host.programs(etc, lambda arguments: (answers or {}).get(arguments[0])))


def test_programs_of_supervisor_are_found_with_their_topics_and_state(tmp_path: Path) -> None:
    folder = tmp_path / "supervisor" / "conf.d"
    folder.mkdir(parents=True)
    assert programs(tmp_path)["programs"].level is Level.WARNING
    (folder / "order.conf").write_text("[program:zithara-order]\ncommand=/usr/bin/zithara-worker consume order\n")
    missing = programs(tmp_path)["programs"].found
    assert "zithara.cart.events" in missing and "zithara.order.events" not in missing
    unseen = programs(tmp_path, {"supervisorctl": "error: <class 'PermissionError'>, [Errno 13] Permission denied"})
    assert unseen["programs.running"].level is Level.UNCHECKED, "supervisor answers root only"
    assert "supervisor zithara-order" in unseen["programs.running"].found
    (folder / "rest.conf").write_text("[program:zithara-all]\ncommand=/usr/bin/zithara-worker consume --all\n")
    running = "zithara-order RUNNING pid 7, uptime 1:00\nzithara-all:zithara-all_00 RUNNING pid 8, uptime 1:00\n"
    found = programs(tmp_path, {"supervisorctl": running})
    assert levels(found) == {"programs": Level.OK}
    stopped = running.replace("zithara-order RUNNING", "zithara-order FATAL")
    found = programs(tmp_path, {"supervisorctl": stopped})
    assert found["programs.running"].found == "not running: supervisor zithara-order (FATAL)"


def test_units_of_systemd_and_their_instances_are_found(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    units = tmp_path / "usr" / "lib" / "systemd" / "system"
    wants = etc / "systemd" / "system" / "multi-user.target.wants"
    units.mkdir(parents=True)
    wants.mkdir(parents=True)
    (units / "zithara-worker@.service").write_text("[Service]\nExecStart=/usr/bin/zithara-worker consume %i\n")
    assert programs(etc)["programs"].level is Level.WARNING
    for topic in TOPICS:
        (wants / f"zithara-worker@{topic}.service").symlink_to(units / "zithara-worker@.service")
    assert levels(programs(etc, {"systemctl": "active\n"})) == {"programs": Level.OK}
    assert "failed" in programs(etc, {"systemctl": "failed\n"})["programs.running"].found


def test_a_command_that_is_not_there_says_nothing() -> None:
    assert run_command(["no-such-command-at-all"]) is None
    assert run_command(["echo", "RUNNING"]) == "RUNNING\n"


def test_log_files_are_checked_for_directory_permission_and_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "worker.log"

    def level() -> Level:
        (found,) = log_files(LoggingSettings(file=file))
        return found.level

    free = 10**12
    monkeypatch.setattr(host.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    assert level() is Level.OK
    file.touch(mode=0o644)
    file.chmod(0o644)
    assert level() is Level.WARNING
    file.chmod(0o640)
    assert level() is Level.OK
    free = 500_000_000
    assert level() is Level.WARNING
    free = 1000
    assert level() is Level.FAILED
    monkeypatch.setattr(host.os, "access", lambda path, mode: False)
    assert level() is Level.FAILED
    (found,) = log_files(LoggingSettings(audit_file=tmp_path / "missing" / "audit.log"))
    assert found.level is Level.FAILED and "install -d" in found.remedy


def test_reconcile_tells_the_last_result_and_the_rights(shop: Shop, examine: Examine) -> None:
    def finding() -> Finding:
        return examine()["reconcile"]

    assert finding().level is Level.OK and "it never ran" in finding().found
    assert "only with more rights: it lacks the shop's tables" in finding().found
    counts = json.dumps({"finished_utc": 1.0, "counts": {"complete": 7, "missing": 2}})
    shop.query(
        "INSERT INTO {prefix}zithara_reconciliation (kind, started_at, result) VALUES ('orders', NOW(3), %s)", [counts]
    )
    assert finding().level is Level.WARNING and "2 of 9 orders were not with Zithara" in finding().found
    shop.query("UPDATE {prefix}zithara_reconciliation SET result = REPLACE(result, '2}', '0}')")
    ShopTables(shop).create()
    account = f"'{shop.user}'@'%'"
    shop.run_script("entity_grants.sql", database=shop.name, user=account)
    assert "it lacks INSERT on the queue" in finding().found
    shop.run_script("publish_grants.sql", database=shop.name, user=account)
    assert finding().found.endswith("this account may run reconcile") and "all 7 orders" in finding().found
    shop.query("DROP TABLE {prefix}sales_order_item")
    assert finding().level is Level.FAILED and "sales_order_item' doesn't exist: correct" in finding().found
