"""env.php, read without PHP: the database, the keys, and what is said of a file that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zithara_worker.errors import ConfigurationError
from zithara_worker.shop.deployment_config import ShopEnvironment, read_env_php

#: As `bin/magento setup:install` writes it, shortened.
INSTALLED = r"""<?php
return [
    'backend' => ['frontName' => 'admin_1x'],
    'remote_storage' => ['driver' => 'file'],
    'queue' => ['consumers_wait_for_messages' => 1],
    'crypt' => [
        'key' => 'e7a0cf0c46a2be6e9d5f3bba0cb2bd5b'
    ],
    'db' => [
        'table_prefix' => 'm2_',
        'connection' => [
            'default' => [
                'host' => 'db.example.com:3307',
                'dbname' => 'magento',
                'username' => 'shop',
                'password' => 'p%ss\'w\\rd"$x',
                'model' => 'mysql4',
                'engine' => 'innodb',
                'initStatements' => 'SET NAMES utf8;',
                'active' => '1',
                'driver_options' => [
                    1009 => '/etc/ssl/db-ca.pem',
                    1014 => false
                ]
            ]
        ]
    ],
    'install' => ['date' => 'Tue, 03 Feb 2026 10:11:12 +0000']
];
"""

Write = Callable[[str], Path]
Read = Callable[..., ShopEnvironment]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the text to app/etc/env.php of a shop and gives its path."""
    path = tmp_path / "app" / "etc" / "env.php"
    path.parent.mkdir(parents=True)

    def written(text: str) -> Path:
        path.write_text(text, encoding="utf-8", newline="")
        return path

    return written


@pytest.fixture
def read_connection(write: Write) -> Read:
    """Reads a file whose database connection holds the given PHP."""

    def read(connection: str, **arguments: Any) -> ShopEnvironment:
        return read_env_php(
            write(f"<?php\nreturn ['db' => ['connection' => ['default' => [{connection}]]]];\n"), **arguments
        )

    return read


def plain(found: ShopEnvironment) -> Mapping[str, str]:
    assert {section for section, _ in found.values} <= {"database"}
    return {key: text for (_, key), text in found.values.items()}


def test_installed_shop_is_read_whole(write: Write) -> None:
    found = read_env_php(write(INSTALLED))

    assert plain(found) == {
        "host": "db.example.com",
        "port": "3307",
        "user": "shop",
        "password": "p%ss'w\\rd\"$x",
        "name": "magento",
        "table_prefix": "m2_",
        "ssl_ca": "/etc/ssl/db-ca.pem",
    }
    assert found.crypt_keys == ("e7a0cf0c46a2be6e9d5f3bba0cb2bd5b",)


def test_neither_password_nor_key_is_shown(write: Write) -> None:
    shown = repr(read_env_php(write(INSTALLED)))

    assert "p%ss" not in shown
    assert "e7a0cf" not in shown
    assert "db.example.com" in shown


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", {"host": "localhost"}),
        ("db:3307", {"host": "db", "port": "3307"}),
        ("/run/mysqld/mysqld.sock", {"unix_socket": "/run/mysqld/mysqld.sock"}),
        ("localhost:/run/mysqld/mysqld.sock", {"unix_socket": "/run/mysqld/mysqld.sock"}),
        ("", {}),
        # Of the worker only: the servers of a cluster.
        ("db1,db2:3307", {"host": "db1,db2:3307"}),
        ("[::1],db2", {"host": "[::1],db2"}),
    ],
)
def test_host_has_these_forms(read_connection: Read, host: str, expected: Mapping[str, str]) -> None:
    assert plain(read_connection(f"'host' => '{host}'")) == expected


@pytest.mark.parametrize("host", ["db:", "db:x", "db:99999", "db:0", ":3306", "db:1:2", "::1", "db1,db2:x"])
def test_host_of_another_form_is_an_error(read_connection: Read, host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"env\.php: the database host .* set \[database\] host and port"):
        read_connection(f"'host' => '{host}'")


@pytest.mark.parametrize(
    "key", ["1009", "'1009'", r"\PDO::MYSQL_ATTR_SSL_CA", "PDO::MYSQL_ATTR_SSL_CA", r"\Pdo\Mysql::ATTR_SSL_CA"]
)
def test_certificate_authority_is_found_under_each_of_its_names(read_connection: Read, key: str) -> None:
    found = read_connection(rf"'driver_options' => [\Some\Other::OPTION => 1, {key} => BP . '/ca.pem', 1014 => false]")

    assert Path(plain(found)["ssl_ca"]).name == "ca.pem"


def test_paths_relative_to_the_shop_are_resolved(read_connection: Read, tmp_path: Path) -> None:
    assert plain(read_connection("'driver_options' => [1009 => BP . '/ca.pem']"))["ssl_ca"] == f"{tmp_path}/ca.pem"
    in_etc = plain(read_connection("'driver_options' => [1009 => __DIR__ . DIRECTORY_SEPARATOR . 'ca.pem']"))
    assert in_etc["ssl_ca"] == f"{tmp_path}/app/etc/ca.pem"


@pytest.mark.parametrize(
    "text",
    [
        "<?php\nreturn array('db' => array('connection' => array('default' => array('dbname' => 'm',),),),);",
        "<?php\ndeclare(strict_types=1);\nuse Some\\Name;\n"
        "return ['db' => ['connection' => ['default' => ['dbname' => 'm']]]]; ?>\n",
        "<?PHP # one\n// two 'x\n/* three ];\n*/ "
        "RETURN ['db' => ['connection' => ['default' => [/**/'dbname' => 'm' // ]\n]]]];",
        "\ufeff<?php\r\nreturn ['db' => ['connection' => ['default' => [\r\n'dbname' => 'm',\r\n]]]];\r\n",
        "<?php return ['db' => ['connection' => ['default' => ['dbname' => ('m')]]]] ?>",
        "<?php return ['db' => ['connection' => ['default' => ['dbname' => 'old', \"dbname\" => \"\\x6d\"]]]];",
    ],
)
def test_other_ways_to_write_the_same_file(write: Write, text: str) -> None:
    assert plain(read_env_php(write(text))) == {"name": "m"}


def test_bytes_that_are_not_utf8_matter_only_where_they_are_wanted(write: Write) -> None:
    path = write("")
    connection = b"['db' => ['connection' => ['default' => ['password' => '%s']]]];"
    path.write_bytes(b"<?php // caf\xe9\nreturn " + connection % b"geheim")
    assert plain(read_env_php(path)) == {"password": "geheim"}

    path.write_bytes(b"<?php return " + connection % b"caf\xe9")
    with pytest.raises(ConfigurationError, match=r"password is not UTF-8; .*\[database\] password") as raised:
        read_env_php(path)
    assert "caf" not in str(raised.value)


# ---------------------------------------------------------------- the environment


@pytest.mark.parametrize(
    ("php", "shown"),
    [
        ("getenv('X')", "getenv('X')"),
        ('\\getenv("X")', "getenv('X')"),
        ("GetEnv('X', true)", "getenv('X')"),
        ("getenv('X' . PHP_OS)", "getenv(...)"),
        ("getenv()", "getenv(...)"),
        ("$_ENV['X']", "$_ENV['X']"),
        ("$_SERVER['X']", "$_SERVER['X']"),
        ("(getenv('X'))", "getenv('X')"),
        ("getenv('X') ?: 'b'", "getenv('X')"),
        ("getenv('X') ?: getenv('Y')", "getenv('X')"),
        ("$_ENV['X'] ?? 'b'", "$_ENV['X']"),
        ("'' ?: getenv('X')", "getenv('X')"),
        ("getenv('X') . '_live'", "getenv('X')"),
        ("'live_' . $_ENV['X']", "$_ENV['X']"),
    ],
)
def test_environment_of_php_is_never_asked(
    read_connection: Read, monkeypatch: pytest.MonkeyPatch, php: str, shown: str
) -> None:
    """A variable of that name in the worker's own environment may be another shop's."""
    monkeypatch.setenv("X", "of-this-process")
    connection = f"\n\n'password' => {php}, 'dbname' => 'm'"

    with pytest.raises(ConfigurationError) as raised:
        read_connection(connection)
    told = str(raised.value)
    assert "env.php, line 4: db/connection/default/password: " + shown + " reads the environment of PHP" in told
    assert told.endswith("; set [database] password in the worker's configuration")
    assert "\n" not in told and "of-this-process" not in told
    assert plain(read_connection(connection, given={("database", "password")})) == {"name": "m"}


@pytest.mark.parametrize("php", ["'a' ?: getenv('X')", "'a' ?? $_ENV['X']", "null ?? 'a'"])
def test_default_that_php_would_not_need_is_not_asked_for(read_connection: Read, php: str) -> None:
    assert plain(read_connection(f"'dbname' => {php}")) == {"name": "a"}


def test_constants_are_joined_as_php_does(read_connection: Read) -> None:
    assert plain(read_connection("'dbname' => 'a' . 1 . true . false . null")) == {"name": "a11"}


@pytest.mark.parametrize(
    "php",
    [
        "file_get_contents('/run/secret')",
        "$password",
        '"a$b"',
        '"a{$b}"',
        "trim(file('x')[0])",
        "getenv('X') ? 'a' : 'b'",
        "(function () { return ['a', 'b']; })()",
        "new Secret('a', 'b')",
        "fn($x) => [1, 2]",
        "'a' === 'b'",
        "Vault::PASSWORD",
        "-'a'",
        "['a' . ['b']][0]",
        "Vault::$password",
    ],
)
def test_expression_beyond_this_parser_spoils_its_own_value_only(read_connection: Read, php: str) -> None:
    connection = f"'host' => 'db', 'password' => {php}, 'dbname' => 'm'"

    with pytest.raises(
        ConfigurationError, match=r"line 2: db/connection/default/password: .*\[database\] password"
    ) as e:
        read_connection(connection)
    assert "\n" not in str(e.value)
    assert plain(read_connection(connection, given={("database", "password")})) == {"host": "db", "name": "m"}


def test_odd_values_elsewhere_do_not_matter(write: Write) -> None:
    text = INSTALLED.replace(
        "'backend' =>",
        "...$more, $key => 1, foo() => 'x', 'redis' => json_decode(getenv('R'), true)['a'], 'backend' =>",
    )

    assert plain(read_env_php(write(text)))["name"] == "magento"


def test_all_values_in_error_are_told_together(read_connection: Read) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read_connection("'host' => getenv('H'), 'username' => ['a'], 'password' => 1.5, 'dbname' => getenv('N')")

    assert [line.split("default/")[1].split(":")[0].split()[0] for line in str(raised.value).splitlines()] == [
        "host",
        "username",
        "password",
        "dbname",
    ]


@pytest.mark.parametrize("place", [("database", "host"), ("database", "unix_socket")])
def test_given_address_leaves_out_the_whole_address_of_the_shop(read_connection: Read, place: tuple[str, str]) -> None:
    found = read_connection("'host' => 'db:3307', 'unix_socket' => '/s', 'dbname' => 'm'", given={place})

    assert plain(found) == {"name": "m"}


def test_given_port_leaves_the_host_of_the_shop(read_connection: Read) -> None:
    assert plain(read_connection("'host' => 'db:3307'", given={("database", "port")})) == {"host": "db"}


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("php", "keys"),
    [
        ("'one'", ("one",)),
        ('"one\\ntwo"', ("one", "two")),
        ("'\n  one\n\n  two '", ("one", "two")),
        ("''", ()),
        ("null", ()),
        ("getenv('KEY')", ()),
        ("secret_from_vault()", ()),
    ],
)
def test_keys_are_separated_by_white_space(write: Write, php: str, keys: tuple[str, ...]) -> None:
    path = write(f"<?php return ['crypt' => ['key' => {php}], 'db' => ['connection' => ['default' => []]]];")

    found = read_env_php(path)
    assert found.crypt_keys == keys
    assert bool(found.crypt_keys_unread) == (")" in php)


def test_keys_that_only_php_knows_are_told_with_their_line(write: Write) -> None:
    path = write("<?php return [\n'crypt' => ['key' => getenv('KEY')], 'db' => ['connection' => ['default' => []]]];")

    assert read_env_php(path).crypt_keys_unread.startswith(f"{path}, line 2: crypt/key: getenv('KEY') reads")


# ---------------------------------------------------------------- files that are not it


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "line 1: the file does not begin with <\\?php"),
        ("<html>", "line 1: the file does not begin with <\\?php"),
        ("<?php\n\n$x = 1; return [];", r"line 3: '\$x' stands where 'return' should"),
        ("<?php\n", "stands where 'return' should"),
        ("<?php\ndeclare(", "stands where 'return' should"),
        ("<?php\nreturn 5;", "line 2: what is returned is not a plain array"),
        ("<?php\nreturn array_merge([], []);", "line 2: what is returned is not a plain array"),
        ("<?php\nreturn Foo::", "line 2: what is returned is not a plain array"),
        ("<?php\nreturn [] + [];", r"line 2: '\+' follows the array"),
        ("<?php\nreturn []", "line 2: the file ends too early"),
        ("<?php\nreturn [\n'a' => ['b' => 1\n;", "line 3: the array that should end with ']' is not closed"),
        ("<?php\nreturn [\n'a' => array(1, 2];", "line 3: the array that should end with '\\)' is not closed"),
        ("<?php\nreturn [\n\n'a => 1];", "line 4: a string is not closed"),
        ("<?php\nreturn [\n/* 'a' => 1];", "line 3: a comment is not closed"),
        ("<?php\nreturn [\n'a' => <<<X\nb\nX\n];", "line 3: a heredoc text begins here"),
        ("<?php return " + "[" * 5000, "nested more than"),
        ("<?php return " + "(" * 5000, "nested more than"),
        ("<?php return [" + "getenv(" * 5000, "nested more than"),
        ("<?php return [];", r"'db' => 'connection' => 'default' should be an array \(it has none\)"),
        ("<?php return ['db' => 'x'];", r"should be an array \(it has none\)"),
        ("<?php return ['db' => load()];", r"should be an array \(line 1: this expression"),
    ],
)
def test_odd_file_is_told_with_line_and_remedy(write: Write, text: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{told}.*\[magento\] root.*\[database\] host"):
        read_env_php(write(text))


def test_shop_without_connection_is_fine_if_everything_is_given(write: Write) -> None:
    everything = {("database", key) for key in ("host", "user", "password", "name")}

    found = read_env_php(write("<?php return ['db' => ['table_prefix' => 'm2_']];"), given=everything)

    assert plain(found) == {"table_prefix": "m2_"}


def test_absent_file_is_told_with_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read .*env\.php: No such file.*\[magento\] root"):
        read_env_php(tmp_path / "env.php")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(
            ["[", "]", "(", ")", "'a'", '"b"', ",", "=>", ".", "?", ":", "??", "::", "-", "5", "1e999", "getenv", "Foo",
             "array", "$_ENV", "$x", ";", "{", "}", "9" * 5000, "0x" + "f" * 400, "0x_", "'", '"\\u{110000}"', "null"]
        )
    )
)  # fmt: skip
def test_no_text_brings_anything_but_a_configuration_error(write: Write, parts: list[str]) -> None:
    with pytest.raises(ConfigurationError):
        read_env_php(write("<?php return [" + " ".join(parts)))
