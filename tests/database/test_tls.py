"""`ssl_ca` is a promise: nothing is said to a server that does not prove who it is, and no password in clear."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trustme
from pymysql.constants import CLIENT
from support.workers import settings_of

from zithara_worker.database.session import Database
from zithara_worker.doctor.database import encryption
from zithara_worker.doctor.finding import Level
from zithara_worker.errors import ConfigurationError, DatabaseUnavailable
from zithara_worker.sandbox.mariadb import MariaDbServer
from zithara_worker.sandbox.shop import Shop
from zithara_worker.settings.sections import DatabaseSettings
from zithara_worker.settings.values import Secret

PASSWORD = "in-nobodys-hands"


class FakeServer:
    """Greets like a server that offers no TLS, keeps what the client says, and asks for the password by `plugin`."""

    def __init__(self, plugin: bytes = b"") -> None:
        self.heard = b""
        self._plugin = plugin
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.join(10)
        self._listening.close()

    def settings(self, **changes: object) -> DatabaseSettings:
        given = {"host": "127.0.0.1", "port": self.port, "user": "worker", "name": "shop", **changes}
        return DatabaseSettings(password=Secret(PASSWORD), **given)  # type: ignore[arg-type]  # as the test gives them

    def _serve(self) -> None:
        client, _ = self._listening.accept()
        with client:
            client.settimeout(10)
            client.sendall(_packet(0, self._greeting()))
            self._hear(client)
            if self._plugin:
                client.sendall(_packet(2, b"\xfe" + self._plugin + b"\0" + b"\x04Password: "))
                self._hear(client)

    def _hear(self, client: socket.socket) -> None:
        with suppress(ConnectionResetError):
            self.heard += client.recv(65536)

    def _greeting(self) -> bytes:
        offered = CLIENT.CAPABILITIES & ~CLIENT.SSL
        return (
            b"\x0a11.4.2-MariaDB\0"
            + struct.pack("<I8sx", 7, b"saltsalt")
            + struct.pack("<HBHHB10x", offered & 0xFFFF, 45, 2, offered >> 16, 21)
            + b"saltsaltsalt\0mysql_native_password\0"
        )


def _packet(number: int, payload: bytes) -> bytes:
    return struct.pack("<I", len(payload))[:3] + bytes([number]) + payload


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ssl_ca(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def test_a_server_that_offers_no_tls_hears_nothing_where_ssl_ca_is_set(ssl_ca: Path) -> None:
    with FakeServer() as server:
        database = Database(server.settings(ssl_ca=ssl_ca))
        with pytest.raises(ConfigurationError, match=r"ssl_ca asks for: .*server.*nothing was sent"):
            database.rows("server")
    assert server.heard == b""


@pytest.mark.parametrize("plugin", [b"mysql_clear_password", b"dialog"])
def test_no_server_is_told_the_password_in_clear(plugin: bytes) -> None:
    with FakeServer(plugin) as server:
        database = Database(server.settings())
        with pytest.raises(ConfigurationError, match=rf"{plugin.decode()}.*ssl_ca"):
            database.rows("server")
    assert b"worker" in server.heard, "the client had begun to log in"
    assert PASSWORD.encode() not in server.heard


@pytest.fixture(scope="module")
def tls_server(authority: trustme.CA) -> Iterator[MariaDbServer]:
    """A server of its own whose certificate is for localhost."""
    certificate = authority.issue_cert("localhost")
    # Not below pytest's directory: a server that runs as another user could not read it.
    with TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        certificate.private_key_pem.write_to_path(str(directory / "key.pem"))
        certificate.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
        authority.cert_pem.write_to_path(str(directory / "ca.pem"))
        options = [f"--ssl-{what}={directory / what}.pem" for what in ("key", "cert", "ca")]
        with MariaDbServer(tcp=True, options=options) as server:
            yield server


def over_tcp(shop: Shop, server: MariaDbServer, **changes: object) -> Database:
    return Database(settings_of(shop, unix_socket="", port=server.tcp_port, **{"host": "localhost", **changes}))


def test_a_session_with_ssl_ca_is_encrypted(
    tls_server: MariaDbServer, make_shop: Callable[..., Shop], ssl_ca: Path
) -> None:
    with closing(over_tcp(make_shop(tls_server), tls_server, ssl_ca=ssl_ca)) as database:
        assert "_" in database.cipher or "-" in database.cipher, "such as TLS_AES_256_GCM_SHA384"


def findings(database: Database, *, verified: bool) -> list[tuple[Level, str]]:
    return [(each.level, each.found) for each in encryption(database, verified=verified)]


def test_doctor_shows_the_cipher_and_warns_of_a_network_without(
    tls_server: MariaDbServer,
    make_shop: Callable[..., Shop],
    ssl_ca: Path,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert findings(database, verified=False) == [(Level.OK, "not encrypted, within this host")]
    monkeypatch.setattr(Database, "is_local", False)
    with closing(over_tcp(make_shop(tls_server), tls_server, ssl_ca=ssl_ca)) as encrypted:
        assert findings(encrypted, verified=True) == [(Level.OK, f"encrypted ({encrypted.cipher})")]
        [(level, found)] = findings(encrypted, verified=False)
        assert (level, "right server" in found) == (Level.WARNING, True)
    [(level, found)] = findings(database, verified=False)
    assert (level, "not encrypted" in found) == (Level.WARNING, True)


def test_a_server_of_another_name_or_authority_is_told_nothing(
    tls_server: MariaDbServer, make_shop: Callable[..., Shop], ssl_ca: Path, tmp_path: Path
) -> None:
    shop = make_shop(tls_server)
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))
    for changes in ({"host": "127.0.0.1", "ssl_ca": ssl_ca}, {"ssl_ca": stranger}):
        with pytest.raises(DatabaseUnavailable, match="certificate"):
            over_tcp(shop, tls_server, **changes).rows("server")


def test_a_session_over_the_socket_has_no_cipher(database: Database) -> None:
    assert database.cipher == ""


def test_a_first_login_over_the_socket_needs_no_package_beside_the_driver(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MySQL 8 then asks for the password itself, which never leaves this host. Over a network, RSA would encrypt it."""
    monkeypatch.setattr("pymysql._auth._have_cryptography", False)
    assert database.rows("paused") == []
