"""Where values come from, and what is said when they are wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from zithara_worker.commands.config import rows, sample_file
from zithara_worker.errors import ConfigurationError
from zithara_worker.settings.sections import KEYS, DatabaseSettings, RetrySettings, Settings
from zithara_worker.settings.sources import LoadedSettings, Values, given_by_program, load, with_shop_values
from zithara_worker.settings.values import Key, Secret

Load = Callable[..., LoadedSettings]
SHOP = Path("/srv/shop")


def no_shop(root: Path, given: Collection[tuple[str, str]]) -> Values:
    raise AssertionError(f"nobody asked for the shop in {root}")


@pytest.fixture
def configured(tmp_path: Path) -> Load:
    """configured("INI text", overrides, environ, shop={...}): what `load` makes of it; the shop's root is SHOP."""

    def run(
        ini: str | None = None,
        overrides: Mapping[tuple[str, str], Any] | None = None,
        environ: Mapping[str, str] | None = None,
        shop: Mapping[str, str] | None = None,
    ) -> LoadedSettings:
        file = None
        if ini is not None:
            file = tmp_path / "worker.conf"
            file.write_text(ini, encoding="utf-8")
            file.chmod(0o640)

        def read_shop(root: Path, given: Collection[tuple[str, str]]) -> Values:
            assert root == SHOP
            return {("database", key): (text, "env.php") for key, text in (shop or {}).items()}

        return load(
            file,
            overrides or {},
            environ or {},
            no_shop if shop is None else read_shop,
            default_file=tmp_path / "absent.conf",
        )

    return run


def errors_of(run: Callable[[], object]) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        run()
    return str(caught.value).splitlines()


# ---------------------------------------------------------------- precedence


def test_without_anything_all_values_are_defaults(configured: Load) -> None:
    found = configured()
    assert found.settings == Settings()
    assert found.source("worker", "lease") == "default"
    assert found.warnings == ()


def test_each_source_overrules_the_ones_below_it(configured: Load, tmp_path: Path) -> None:
    found = configured(
        f"[magento]\nroot = {SHOP}\n[database]\nuser = file\nname = file\nhost = file\n",
        {("database", "user"): "command line"},
        {"ZITHARA_WORKER_DATABASE_USER": "environment", "ZITHARA_WORKER_DATABASE_NAME": "environment"},
        shop={"user": "shop", "name": "shop", "table_prefix": "m2_"},
    )
    database = found.settings.database
    assert (database.user, database.name, database.host) == ("command line", "environment", "file")
    assert (database.table_prefix, database.port) == ("m2_", 3306)
    assert [found.source("database", key) for key in ("user", "name", "host", "table_prefix", "port")] == [
        "command line",
        "environment ZITHARA_WORKER_DATABASE_NAME",
        f"{tmp_path}/worker.conf [database] host",
        "env.php",
        "default",
    ]


def test_the_default_file_is_read_when_it_exists_and_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "zithara-worker.conf"
    file.write_text("[worker]\nlease = 90\n")
    assert load(None, {}, {}, no_shop, default_file=file).settings.worker.lease == 90.0


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    (error,) = errors_of(lambda: load(tmp_path / "nowhere.conf", {}, {}, no_shop))
    assert str(tmp_path / "nowhere.conf") in error and "--config" in error


def test_the_command_line_may_give_typed_values(configured: Load) -> None:
    found = configured(overrides={("worker", "poll_interval"): 0.00001 * 1e4, ("worker", "concurrency"): 4})
    assert (found.settings.worker.poll_interval, found.settings.worker.concurrency) == (0.1, 4)


def test_the_base_url_follows_the_environment_wherever_that_was_given(configured: Load) -> None:
    found = configured("[zithara]\nenvironment = development\n")
    assert found.settings.zithara.base_url == "https://dev-pos-api.zithara.com/v1"


def test_a_host_of_ones_own_replaces_the_shops_whole_address(configured: Load) -> None:
    shop = {"unix_socket": "/run/shop.sock", "port": "3399", "user": "shop"}
    root = f"[magento]\nroot = {SHOP}\n"
    database = configured(f"{root}[database]\nhost = db2\n", shop=shop).settings.database
    assert (database.host, database.port, database.unix_socket, database.user) == ("db2", 3306, "", "shop")
    assert configured(root, shop=shop).settings.database.unix_socket == "/run/shop.sock"


def test_an_empty_host_or_socket_leaves_the_shops_address_in_force(configured: Load) -> None:
    ini = f"[magento]\nroot = {SHOP}\n[database]\nhost =\nunix_socket =\n"
    database = configured(ini, shop={"host": "db1", "port": "3399"}).settings.database
    assert (database.host, database.port) == ("db1", 3399)


def test_a_host_from_a_higher_source_overrules_the_socket_of_a_lower_one(configured: Load) -> None:
    ini = "[database]\nunix_socket = /run/mysqld.sock\n"
    found = configured(ini, environ={"ZITHARA_WORKER_DATABASE_HOST": "db2"})
    assert (found.settings.database.host, found.settings.database.unix_socket) == ("db2", "")
    assert configured(ini, environ={"ZITHARA_WORKER_DATABASE_HOST": ""}).settings.database.unix_socket != ""


def test_queues_are_named_by_topic_in_file_and_environment(configured: Load) -> None:
    found = configured(
        "[queues]\nzithara.order.events = orders\ncart = carts\n",
        environ={"ZITHARA_WORKER_QUEUES_ZITHARA_ORDER_EVENTS": "orders_2"},
    )
    assert found.settings.queues == {"zithara.order.events": "orders_2", "zithara.cart.events": "carts"}
    assert found.source("queues", "zithara.order.events") == "environment ZITHARA_WORKER_QUEUES_ZITHARA_ORDER_EVENTS"


def test_the_environment_too_may_name_a_queue_by_the_short_name_of_its_topic(configured: Load) -> None:
    found = configured(environ={"ZITHARA_WORKER_QUEUES_CART": "carts"})
    assert found.settings.queues == {"zithara.cart.events": "carts"}


@pytest.mark.parametrize(
    ("ini", "environ"),
    [
        ("[queues]\nzithara.cart.events = one\ncart = two\n", {}),
        ("", {"ZITHARA_WORKER_QUEUES_CART": "one", "ZITHARA_WORKER_QUEUES_ZITHARA_CART_EVENTS": "two"}),
    ],
)
def test_a_queue_given_under_both_names_of_its_topic_is_refused(
    configured: Load, ini: str, environ: dict[str, str]
) -> None:
    with pytest.raises(ConfigurationError, match="gives the same topic a queue; remove one of the two"):
        configured(ini, environ=environ)


def test_a_value_is_taken_as_it_is(configured: Load) -> None:
    found = configured('[database]\npassword = 50%(x)s $HOME "q" # ; =\n')
    assert found.settings.database.password.reveal() == '50%(x)s $HOME "q" # ; ='


def test_a_byte_order_mark_is_no_part_of_the_file(configured: Load) -> None:
    assert configured("\ufeff[worker]\nlease = 90\n").settings.worker.lease == 90.0


# ---------------------------------------------------------------- errors


def test_everything_wrong_is_told_at_once_a_line_each(configured: Load, tmp_path: Path) -> None:
    ini = "[worker]\nconcurency = 4\nlease = soon\n[databse]\nhost = a\n[queues]\nzithara.orders.events = q\n"
    errors = errors_of(
        lambda: configured(
            ini,
            {("retry", "limit"): 0},
            {"ZITHARA_WORKER_WORKER_BATCHSIZE": "5", "ZITHARA_WORKER_DATABASE_PORT": "mysql"},
        )
    )
    file = f"{tmp_path}/worker.conf"
    assert errors == [
        f"{file}: there is no section [databse]; did you mean 'database'?",
        "environment ZITHARA_WORKER_WORKER_BATCHSIZE: there is no such setting; "
        "did you mean 'ZITHARA_WORKER_WORKER_BATCH_SIZE'?",
        f"{file} [worker] concurency: there is no such key; did you mean 'concurrency'?",
        f"{file} [worker] lease: must be a number from 2 to 86400 (it is 'soon')",
        f"{file} [queues] zithara.orders.events: the key must be one of the topics zithara.order.events, "
        "zithara.customer.events, zithara.cart.events, zithara.webhook.events (it is 'q')",
        "environment ZITHARA_WORKER_DATABASE_PORT: must be a whole number from 1 to 65535 (it is 'mysql')",
        "command line: must be a whole number from 1 to 1000 (it is '0')",
    ]


def test_values_that_contradict_each_other_are_told_for_all_sections(configured: Load) -> None:
    errors = errors_of(lambda: configured("[worker]\nlease = 5\npoll_interval = 6\n[logging]\naudit_required = yes\n"))
    assert [error.split(" ")[0] for error in errors] == ["[worker]", "[logging]"]


@pytest.mark.parametrize(
    ("ini", "problem"),
    [
        ("[database]\npassword hunter2\n", "line 2: is neither"),
        ("password = hunter2\n", "line 1: a section"),
        ("[database]\npassword = hunter2\npassword = hunter2\n", "line 3: [database] password"),
        ("[worker]\n[worker]\n", "line 2: section [worker]"),
        ("[DEFAULT]\npassword = hunter2\n", "no section [DEFAULT]"),
        ("[database]\npassword = hunter2\n  port = 3306\n", "a value is one line"),
        ("[zithara]\nwebhook_url = https://me:hunter2@api.example/\n", "***@api.example"),
        ("[zithara]\nclient_secret = hunter2\u00e4\n", "visible ASCII"),
        ("[database]\npasword = hunter2\n", "did you mean 'password'?"),
    ],
)
def test_an_error_names_the_place_and_never_a_secret(configured: Load, ini: str, problem: str) -> None:
    errors = errors_of(lambda: configured(ini))
    assert problem in "\n".join(errors)
    assert "hunter2" not in "\n".join(errors)


def test_a_file_that_is_not_utf_8_is_told(tmp_path: Path) -> None:
    file = tmp_path / "worker.conf"
    file.write_bytes(b"[database]\npassword = hunter2\xff\n")
    (error,) = errors_of(lambda: load(file, {}, {}, no_shop))
    assert str(file) in error and "UTF-8" in error and "hunter2" not in error


def test_a_file_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (error,) = errors_of(lambda: load(tmp_path, {}, {}, no_shop))
    assert "cannot read" in error and str(tmp_path) in error


def test_a_slip_in_the_file_is_told_even_where_it_is_overruled(configured: Load) -> None:
    assert len(errors_of(lambda: configured("[worker]\nlease = soon\n", {("worker", "lease"): 60}))) == 1


def test_variables_that_kubernetes_adds_for_a_service_are_no_settings(configured: Load) -> None:
    found = configured(
        environ={
            "ZITHARA_WORKER_SERVICE_HOST": "10.0.0.7",
            "ZITHARA_WORKER_SERVICE_PORT_METRICS": "9209",
            "ZITHARA_WORKER_PORT": "tcp://10.0.0.7:9209",
            "ZITHARA_WORKER_PORT_9209_TCP_ADDR": "10.0.0.7",
            "ZITHARA_WORKERS": "another program's",
        }
    )
    assert found.settings == Settings()


# ---------------------------------------------------------------- secrets


def test_a_secret_is_read_from_the_first_line_of_its_file(configured: Load, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("p% w \r\nsecond line\n")
    secret.chmod(0o600)
    ini = f"[database]\npassword_file = {secret}\n"
    found = configured(ini)
    assert found.settings.database.password == Secret("p% w ")
    assert found.settings.database.password_file == secret
    assert found.source("database", "password").startswith(f"{secret}, named by ")
    assert found.warnings == ()


@pytest.mark.parametrize("key", [key for key in KEYS if key.secret], ids=lambda key: f"{key.section}.{key.name}")
def test_every_secret_may_stand_in_a_file(configured: Load, tmp_path: Path, key: Key) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"whsec_{'QUJD' * 8}" if key.name == "webhook_secret" else "hunter2")
    found = configured(f"[{key.section}]\n{key.name}_file = {secret}\n")
    section = getattr(found.settings, key.section)
    assert getattr(section, key.name) == Secret(secret.read_text())
    assert getattr(section, f"{key.name}_file") == secret


def test_a_secret_and_its_file_exclude_each_other_in_one_source(configured: Load) -> None:
    (error,) = errors_of(lambda: configured("[zithara]\nclient_secret = hunter2\nclient_secret_file = /tmp/x\n"))
    assert "[zithara] client_secret is given too; remove one" in error and "hunter2" not in error


def test_of_a_secret_and_a_file_from_two_sources_the_higher_counts(configured: Load, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("from its file")
    ini = f"[database]\npassword_file = {tmp_path / 'nowhere'}\n"
    found = configured(ini, environ={"ZITHARA_WORKER_DATABASE_PASSWORD": "from the environment"})
    assert found.settings.database == DatabaseSettings(password=Secret("from the environment"))
    found = configured("[database]\npassword = p\n", environ={"ZITHARA_WORKER_DATABASE_PASSWORD_FILE": str(secret)})
    assert found.settings.database.password == Secret("from its file")


def test_a_secret_file_overrules_the_shops_secret(configured: Load, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("mine")
    ini = f"[magento]\nroot = {SHOP}\n[database]\npassword_file = {secret}\n"
    assert configured(ini, shop={"password": "theirs"}).settings.database.password == Secret("mine")


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "cannot read"), (b"", "is empty"), (b"\n\nx", "is empty"), (b"\xff", "not UTF-8")]
)
def test_a_secret_file_without_a_secret_is_told(
    configured: Load, tmp_path: Path, content: bytes | None, problem: str
) -> None:
    secret = tmp_path / "password"
    if content is not None:
        secret.write_bytes(content)
    (error,) = errors_of(lambda: configured(f"[database]\npassword_file = {secret}\n"))
    assert "password_file" in error and str(secret) in error and problem in error


def test_a_secret_that_everybody_can_read_is_warned_about(configured: Load, tmp_path: Path) -> None:
    file, secret = tmp_path / "open.conf", tmp_path / "secret"
    secret.write_text("s")
    file.write_text(f"[database]\npassword = hunter2\n[zithara]\nclient_secret_file = {secret}\n")
    for path in (file, secret):
        path.chmod(0o644)
    warnings = load(file, {}, {}, no_shop).warnings
    assert [str(path) in warning for path, warning in zip((file, secret), warnings, strict=True)] == [True, True]
    assert all("chmod o= " in warning and "hunter2" not in warning for warning in warnings)
    for path in (file, secret):
        path.chmod(0o640)
    assert load(file, {}, {}, no_shop).warnings == ()


def test_a_file_without_a_secret_may_be_read_by_everybody(tmp_path: Path) -> None:
    file = tmp_path / "open.conf"
    file.write_text("[worker]\nlease = 90\n")
    file.chmod(0o644)
    assert load(file, {}, {}, no_shop).warnings == ()


def test_no_secret_shows_in_what_was_loaded(configured: Load) -> None:
    found = configured("[database]\npassword = hunter2\n[zithara]\nclient_secret = hunter2\n")
    assert "hunter2" not in repr(found)


# ---------------------------------------------------------------- the shop


def test_the_shops_files_are_left_alone_without_a_root(configured: Load) -> None:
    assert configured("[magento]\nroot =\n").settings.magento.root is None


def test_the_reader_of_the_shops_file_learns_what_it_need_not_find(tmp_path: Path) -> None:
    learnt: set[tuple[str, str]] = set()

    def read_shop(root: Path, given: Collection[tuple[str, str]]) -> Values:
        learnt.update(given)
        return {}

    environ = {"ZITHARA_WORKER_DATABASE_PASSWORD": "", "ZITHARA_WORKER_DATABASE_HOST": ""}
    load(None, {("magento", "root"): str(SHOP)}, environ, read_shop, default_file=tmp_path / "absent.conf")
    # An empty password is a password; an empty host is none, and the shop's address is still wanted.
    assert learnt == {("magento", "root"), ("database", "password")}


def test_a_wrong_value_in_the_shops_file_is_told_with_its_place(configured: Load) -> None:
    (error,) = errors_of(lambda: configured(f"[magento]\nroot = {SHOP}\n", shop={"table_prefix": "m2-"}))
    assert error.startswith("env.php: must be made of letters, digits and _") and "'m2-'" in error


def test_the_shops_database_fills_only_what_nobody_gave(configured: Load) -> None:
    before = configured("[retry]\ndelay = 10\n[zithara]\nclient_id = mine\nclient_secret = s\n")
    found = with_shop_values(
        before,
        {
            ("retry", "delay"): ("300", "core_config_data"),
            ("worker", "batch_size"): ("50", "core_config_data"),
            ("zithara", "client_id"): ("theirs", "row 1"),
            ("zithara", "webhook_url"): ("https://hooks.example/x", "row 1"),
        },
    )
    assert found.settings.retry.delay == 10.0
    assert found.settings.worker.batch_size == 50
    assert (found.settings.zithara.client_id, found.settings.zithara.client_secret) == ("mine", Secret("s"))
    assert found.settings.zithara.webhook_url == "https://hooks.example/x"
    assert found.source("worker", "batch_size") == "core_config_data"
    assert found.source("zithara", "client_id").endswith("[zithara] client_id")


def test_the_shops_values_leave_settings_made_by_a_program_alone() -> None:
    given = Settings(database=DatabaseSettings(name="shop"), retry=RetrySettings(limit=3))
    found = with_shop_values(
        given_by_program(given),
        {("retry", "limit"): ("9", "core_config_data"), ("retry", "delay"): ("300", "core_config_data")},
    )
    assert found.source("retry", "limit") == found.source("database", "name") == "program"
    assert found.source("retry", "factor") == "default"
    assert found.settings == Settings(database=DatabaseSettings(name="shop"), retry=RetrySettings(limit=3, delay=300))


def test_the_shops_retry_limit_is_the_limit_of_attempts(configured: Load) -> None:
    found = with_shop_values(configured(), {("retry", "limit"): ("5", "core_config_data retry_limit")})
    assert found.settings.retry.limit == 5
    assert found.source("retry", "limit") == "core_config_data retry_limit"


@pytest.mark.parametrize(
    ("place", "text", "kept"),
    [
        (("worker", "batch_size"), "5000", "100"),
        (("retry", "limit"), "many", "8"),
        (("retry", "limit"), "9" * 5000, "8"),
        (("retry", "delay"), "-1", "30"),
        (("retry", "delay"), "90000", "30"),
    ],
)
def test_a_number_for_php_that_does_not_suit_the_worker_is_left_out_with_a_warning(
    configured: Load, place: tuple[str, str], text: str, kept: str
) -> None:
    found = with_shop_values(configured(), {place: (text, "core_config_data x/y")})
    assert found.settings == Settings()
    assert found.source(*place) == "default"
    (warning,) = found.warnings
    assert warning.startswith("core_config_data x/y: ") and f"[{place[0]}] {place[1]} stays {kept}" in warning


def test_credentials_of_the_shop_that_cannot_be_used_are_an_error(configured: Load) -> None:
    errors = errors_of(
        lambda: with_shop_values(
            configured(),
            {
                ("zithara", "client_secret"): ("hünter2", "zithara_webhook_config row 1"),
                ("zithara", "webhook_url"): ("http://hooks.example/", "zithara_webhook_config row 1"),
            },
        )
    )
    assert len(errors) == 2
    assert all(
        error.startswith("zithara_webhook_config row 1: must ") and "set [zithara] " in error for error in errors
    )
    assert "hünter2" not in "".join(errors)


# ---------------------------------------------------------------- sample, rows, page


def test_the_sample_has_every_key_commented_out(configured: Load) -> None:
    sample = sample_file()
    assert configured(sample).sources == {}
    assert all(f"\n#{key.name} = ".rstrip() in sample for key in KEYS)
    assert max(map(len, sample.splitlines())) <= 120


def test_the_sample_with_every_comment_mark_removed_is_the_default_configuration(configured: Load) -> None:
    found = configured(re.sub(r"^#(?! )", "", sample_file(), flags=re.MULTILINE))
    assert {key.place for key in KEYS} <= set(found.sources)
    queues = {topic: f"zithara_{topic.split('.')[1]}_queue" for topic in found.settings.queues}
    assert len(queues) == 4
    assert found.settings == Settings(queues=queues)


def test_rows_tell_every_value_with_its_source_and_no_secret(configured: Load) -> None:
    found = rows(configured("[database]\npassword = hunter2\n[queues]\ncart = carts\n[worker]\ntopics = order, cart\n"))
    assert [(row.section, row.key) for row in found[:-1]] == [key.place for key in KEYS]
    assert (found[-1].section, found[-1].key, found[-1].value) == ("queues", "zithara.cart.events", "carts")
    by_place = {(row.section, row.key): row for row in found}
    assert by_place["database", "password"].value == "********"
    assert by_place["database", "password"].source.endswith("[database] password")
    assert by_place["worker", "topics"].value == "zithara.order.events,zithara.cart.events"
    assert by_place["worker", "lease"] == ("worker", "lease", "60", "default")
    assert "hunter2" not in repr(found)
