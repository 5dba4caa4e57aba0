"""queue/amqp of env.php: where the shop's RabbitMQ is, as `bin/magento setup:install` writes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from zithara_worker.errors import ConfigurationError
from zithara_worker.settings.sections import RelaySettings
from zithara_worker.settings.sources import LoadedSettings
from zithara_worker.settings.values import Secret
from zithara_worker.shop.configuration import configure, require_rabbitmq

Load = Callable[..., LoadedSettings]

PLAIN = """'host' => 'mq.example.com', 'port' => '5673', 'user' => 'shop', 'password' => 'p\\'w', 'virtualhost' => 'm2',
    'ssl' => ''"""
TLS = """'host' => 'mq.example.com', 'port' => '5671', 'user' => 'shop', 'password' => 'p', 'virtualhost' => '/',
    'ssl' => 'true', 'ssl_options' => ['cafile' => '/etc/ca.pem', 'local_cert' => '/etc/c.pem',
    'local_pk' => '/etc/k.pem', 'verify_peer' => false]"""


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads the settings of a shop whose queue/amqp holds the given PHP, with the environment's variables."""

    def loaded(amqp: str | None, **environ: str) -> LoadedSettings:
        env = tmp_path / "app" / "etc" / "env.php"
        env.parent.mkdir(parents=True, exist_ok=True)
        queue = "" if amqp is None else f"'queue' => ['amqp' => [{amqp}]],"
        env.write_text(
            f"<?php return [{queue} 'db' => ['connection' => ['default' => ['host' => 'localhost', 'dbname' => 'm',"
            "'username' => 'm', 'password' => 'm']]]];"
        )
        given = {f"ZITHARA_WORKER_RELAY_{name}": value for name, value in environ.items()}
        file = tmp_path / "worker.conf"
        file.write_text(f"[magento]\nroot = {tmp_path}\n")
        return configure(file, {}, given)

    return loaded


def test_shop_without_tls(load: Load) -> None:
    found = load(PLAIN).settings.relay
    assert found == RelaySettings(host="mq.example.com", port=5673, user="shop", password=Secret("p'w"), vhost="m2")


def test_shop_with_tls_is_always_verified(load: Load) -> None:
    found = load(TLS).settings.relay
    assert (found.ssl, found.ca_file, found.certificate, found.certificate_key) == (
        True,
        Path("/etc/ca.pem"),
        Path("/etc/c.pem"),
        Path("/etc/k.pem"),
    )


def test_options_of_tls_mean_nothing_without_it(load: Load) -> None:
    """Magento writes what the administrator gave, and connects with TLS for the text 'true' only."""
    assert load(TLS.replace("'true'", "'1'")).settings.relay.ca_file is None


def test_directory_of_authorities(load: Load) -> None:
    assert load(TLS.replace("cafile", "capath")).settings.relay.ca_file == Path("/etc/ca.pem")


def test_given_host_replaces_the_whole_address_and_keeps_the_credentials(load: Load) -> None:
    found = load(TLS, HOST="other").settings.relay
    assert (found.host, found.port, found.ssl, found.ca_file) == ("other", 0, False, None)
    assert (found.user, found.password) == ("shop", Secret("p"))


def test_given_ssl_replaces_all_that_belongs_to_it(load: Load) -> None:
    found = load(TLS, SSL="false").settings.relay
    assert (found.host, found.ssl, found.ca_file) == ("mq.example.com", False, None)


def test_what_only_php_knows_stops_the_relay_and_nothing_else(load: Load) -> None:
    configured = load(PLAIN.replace("'p\\'w'", "getenv('MQ')"))
    with pytest.raises(ConfigurationError, match=r"queue/amqp/password: .*set \[relay\] password"):
        require_rabbitmq(configured)
    require_rabbitmq(load(PLAIN.replace("'p\\'w'", "getenv('MQ')"), PASSWORD="given"))


@pytest.mark.parametrize("port", ["'none'", "'0'", "'65536'", "['5672']"])
def test_port_that_is_none_stops_the_relay_and_nothing_else(load: Load, port: str) -> None:
    with pytest.raises(ConfigurationError, match=r"set \[relay\] port"):
        require_rabbitmq(load(PLAIN.replace("'5673'", port)))


def test_shop_without_rabbitmq(load: Load) -> None:
    with pytest.raises(ConfigurationError, match=r"env.php has no queue/amqp/host"):
        require_rabbitmq(load(None))


def test_password_is_not_shown(load: Load) -> None:
    assert "p'w" not in repr(load(PLAIN))
