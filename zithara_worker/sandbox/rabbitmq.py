"""A private RabbitMQ node, and a shop's exchange and queues in a virtual host of it. Nothing is left after `close`.

Knows the Debian package rabbitmq-server, and how Magento declares and publishes. The node has a
data directory, an epmd and ports of its own, so that it meets neither the machine's RabbitMQ nor another sandbox.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from zithara_worker.errors import ConfigurationError, ShopError
from zithara_worker.sandbox import examples
from zithara_worker.sandbox.private_server import PrivateServer, free_port
from zithara_worker.sandbox.publisher import stored_body
from zithara_worker.topics import TOPIC_TABLE

try:
    import pika
    import pika.exceptions
except ImportError as error:
    raise ConfigurationError(
        "the sandbox's RabbitMQ needs the Python library pika, which is not installed: install the Debian package "
        "python3-pika (apt-get install python3-pika), or pip install 'zithara-worker[relay]'"
    ) from error

#: The package's start script itself: the one in PATH insists on the account rabbitmq and on its directories.
_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
#: The exchange of the module's topics. Source: zithara/webhook 1.0.3, etc/queue_topology.xml.
EXCHANGE = "magento"
_NODE = "zithara@localhost"
#: How often a start is tried while another process has a port, and seconds between two tries with the same ports.
_ATTEMPTS = 5
_TAKEN_SECONDS = 2.0
#: A high watermark that any node exceeds, and RabbitMQ's default.
_NO_MEMORY, _USUAL_MEMORY = "0.00001", "0.4"


class RabbitMqServer(PrivateServer):
    """A private node, reachable over the loopback address.

    `certificate`: PEM files (chain with private key, authority) for a second port with TLS, `tls_port`.
    `options`: further lines of rabbitmq.conf, e.g. ("consumer_timeout = 60000",).
    Ports are chosen by the system and stay the same after a restart. The user guest exists as in a fresh installation;
    each `VirtualHost` has a user of its own.
    """

    _called = "RabbitMQ"
    _unavailable = ShopError

    def __init__(
        self,
        *,
        certificate: tuple[Path, Path] | None = None,
        options: Iterable[str] = (),
        start_timeout_seconds: float = 60.0,
    ) -> None:
        super().__init__(start_timeout_seconds=start_timeout_seconds)
        self._certificate = certificate
        self._options = tuple(options)
        self._epmd_port = self._distribution_port = 0
        #: The port for clients without TLS, and the one with TLS; 0 before the first start
        self.port = self.tls_port = 0

    @property
    def log(self) -> Path:
        return self.directory / "rabbitmq.log"

    # --- as an administrator ----------------------------------------------------------------------------------

    def evaluate(self, expressions: str) -> str:
        """What the node makes of Erlang expressions, as erl_call prints the last one's value. Takes milliseconds, where
        rabbitmqctl takes seconds.

        Raises ShopError when the node cannot be reached, or when an expression fails.
        """
        done = subprocess.run(
            ["erl_call", "-sname", _NODE, "-e"],
            input=f"{expressions}.\n",
            capture_output=True,
            text=True,
            errors="replace",
            env=self._environment,
            timeout=60,
        )
        answer = re.fullmatch(r"\{ok, (.*)\}", done.stdout.strip(), re.DOTALL)
        if done.returncode != 0 or answer is None:
            raise ShopError(f"the sandbox's RabbitMQ refuses {expressions!r}: {done.stdout or done.stderr}")
        return answer[1]

    @property
    def version(self) -> str:
        return self.evaluate("rabbit_misc:version()").strip('"')

    def close_connections(self) -> None:
        """Closes all client connections, as `rabbitmqctl close_all_connections` does."""
        self.evaluate('rabbit_networking:close_connections(rabbit_networking:connections(), "sandbox")')

    def raise_memory_alarm(self) -> None:
        """From now on connections that publish are blocked, as when the machine has no memory left."""
        self._set_memory(_NO_MEMORY)

    def clear_memory_alarm(self) -> None:
        self._set_memory(_USUAL_MEMORY)

    # --- inside -----------------------------------------------------------------------------------------------

    def _launch(self) -> None:
        """Takes about 4 s, 2 s of a processor."""
        for attempts_left in reversed(range(_ATTEMPTS)):
            fresh = not self.port
            if fresh:
                self._choose_ports()
            try:
                self._try_launch()
                return
            except ShopError:
                # Another process may have taken a chosen port before the node did. Later starts keep the ports,
                # because clients wait for them: whoever has one now, for a connection of its own, is waited for.
                log = self._log_tail()
                if not attempts_left or not ("eaddrinuse" in log or "already_used" in log):
                    raise
                if fresh:
                    self.port = 0
                else:
                    time.sleep(_TAKEN_SECONDS)

    def _set_memory(self, watermark: str) -> None:
        self.evaluate(f"vm_memory_monitor:set_vm_memory_high_watermark({watermark})")

    def _choose_ports(self) -> None:
        self.port, self._epmd_port, self._distribution_port = free_port(), free_port(), free_port()
        self.tls_port = free_port() if self._certificate else 0

    @property
    def _environment(self) -> Mapping[str, str]:
        """Of the node, its epmd and erl_call, without anything of this process or of /etc/rabbitmq."""
        home = str(self.directory)
        return {
            "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/bin:/usr/sbin",
            "LANG": "C.UTF-8",
            "HOME": home,  # where Erlang has its cookie
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_NODENAME": _NODE,
            "RABBITMQ_CONFIG_FILE": f"{home}/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{home}/advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{home}/enabled_plugins",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{home}/generated",
            "RABBITMQ_MNESIA_BASE": f"{home}/data",
            "RABBITMQ_LOG_BASE": home,
            "RABBITMQ_PID_FILE": f"{home}/pid",
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2",
            # The script then becomes the node, instead of staying beside it as a shell that SIGKILL leaves behind.
            "RABBITMQ_ALLOW_INPUT": "true",
            "RABBITMQ_SERVER_START_ARGS": "-noinput",
        }

    def _configuration(self) -> str:
        lines = [
            f"listeners.tcp.1 = 127.0.0.1:{self.port}",
            f"log.file = {self.log}",
            "log.console = false",
            "disk_free_limit.absolute = 1MB",  # or a full disk of the machine raises an alarm
            *self._options,
        ]
        if self._certificate:
            chain, authority = self._certificate
            lines += [
                f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}",
                f"ssl_options.cacertfile = {authority}",
                f"ssl_options.certfile = {chain}",
                f"ssl_options.keyfile = {chain}",
                "ssl_options.verify = verify_none",
            ]
        return "\n".join(lines) + "\n"

    def _try_launch(self) -> None:
        if not os.access(_SERVER, os.X_OK):
            raise ShopError(
                f"no RabbitMQ on this machine (looked for {_SERVER}): install the Debian package rabbitmq-server "
                "(apt-get install rabbitmq-server)"
            )
        if self._directory is None:
            directory = self._make_directory()
            (directory / "enabled_plugins").write_text("[].\n")
            cookie = directory / ".erlang.cookie"
            cookie.touch(mode=0o600)
            cookie.write_text(secrets.token_hex(16))
            cookie.chmod(0o400)
        (self.directory / "rabbitmq.conf").write_text(self._configuration())
        # In the foreground and ours: without one the node would start a daemon that outlives it.
        epmd = ("epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1")
        self._helpers = [self._spawn(*epmd, environment=self._environment)]
        self._run(str(_SERVER), environment=self._environment)

    def _probe(self) -> None:
        if self.evaluate("rabbit:is_booted()") != "true":
            raise ShopError("it does not serve clients yet")

    @property
    def _logs(self) -> Sequence[Path]:
        return [self.directory / "output", self.log]


class VirtualHost:
    """A shop's part of a node: a virtual host with a user that may do everything in it.

    As a context manager it creates both at entry and removes them at exit. Each call opens a connection of its own.
    """

    def __init__(self, server: RabbitMqServer) -> None:
        self.server = server
        self.name = f"shop_{secrets.token_hex(6)}"
        self.user = f"magento_{secrets.token_hex(6)}"
        self.password = secrets.token_urlsafe(18)

    def __enter__(self) -> VirtualHost:
        self.create()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.drop()

    def create(self) -> None:
        self.server.evaluate(f'rabbit_vhost:add(<<"{self.name}">>, <<"sandbox">>)')
        self.add_user(self.user, self.password)

    def add_user(self, user: str, password: str, *, configure: str = ".*", write: str = ".*", read: str = ".*") -> None:
        """A user with these permissions in this virtual host: regular expressions of names, "" for none."""
        self.server.evaluate(
            f'rabbit_auth_backend_internal:add_user(<<"{user}">>, <<"{password}">>, <<"sandbox">>), '
            f'rabbit_auth_backend_internal:set_permissions(<<"{user}">>, <<"{self.name}">>, '
            f'<<"{configure}">>, <<"{write}">>, <<"{read}">>, <<"sandbox">>)'
        )

    def drop(self) -> None:
        """Removes both, and closes what is connected. Does nothing if the node no longer runs."""
        if self.server.running:
            self.server.evaluate(
                f'rabbit_vhost:delete(<<"{self.name}">>, <<"sandbox">>), '
                f'rabbit_auth_backend_internal:delete_user(<<"{self.user}">>, <<"sandbox">>)'
            )

    # --- access -----------------------------------------------------------------------------------------------

    @property
    def relay_settings(self) -> Mapping[str, str]:
        """The section [relay] of a configuration, without TLS."""
        return {
            "host": "127.0.0.1",
            "port": str(self.server.port),
            "user": self.user,
            "password": self.password,
            "vhost": self.name,
        }

    @contextmanager
    def channel(self, **parameters: Any) -> Iterator[Any]:
        """A channel on a connection of its own; `parameters` are further ones of pika.ConnectionParameters."""
        settings = {
            "host": "127.0.0.1",
            "port": self.server.port,
            "virtual_host": self.name,
            "credentials": pika.PlainCredentials(self.user, self.password),
            **parameters,
        }
        connection = pika.BlockingConnection(pika.ConnectionParameters(**settings))
        try:
            yield connection.channel()
        finally:
            if connection.is_open:
                connection.close()

    # --- as Magento -------------------------------------------------------------------------------------------

    def declare(self, *, arguments: Mapping[str, Any] | None = None) -> None:
        """Exchange, queues and bindings as setup:upgrade declares them for the module.

        `arguments` are further ones of the queues, e.g. {"x-queue-type": "quorum"}: a shop's administrator may have
        declared them so. Source: Magento\\Framework\\Amqp\\Topology; tests/fixtures/amqp-samples.jsonl.
        """
        with self.channel() as channel:
            channel.exchange_declare(EXCHANGE, exchange_type="topic", durable=True)
            for topic in TOPIC_TABLE.values():
                channel.queue_declare(
                    topic.queue, durable=True, arguments={"routing_key": topic.name, **(arguments or {})}
                )
                channel.queue_bind(topic.queue, EXCHANGE, routing_key=topic.name)

    def publish(self, topic: str, payload: Any) -> str:
        """Publishes what an observer would pass: an array (dict or list), or its JSON as a string; its message id."""
        return self.publish_bodies([(topic, stored_body(payload))])[0]

    def publish_samples(self) -> list[str]:
        return self.publish_bodies((topic, stored_body(payload)) for topic, payload in examples.SAMPLES)

    def publish_bodies(self, bodies: Iterable[tuple[str, str]], *, message_ids: Iterable[str | None] = ()) -> list[str]:
        """Publishes (topic, body) in order on one connection, and returns the message ids.

        Returns when RabbitMQ has confirmed all of them, which Magento does not wait for. `message_ids`: for the first
        messages, None for a message without one. Raises pika's AMQPError when the node goes away; the last message may
        then be in the queue or not.
        """
        given = iter(message_ids)
        published = []
        with self.channel() as channel:
            channel.confirm_delivery()
            for topic, body in bodies:
                message_id = next(given, secrets.token_hex(16))
                channel.basic_publish(
                    EXCHANGE,
                    topic,
                    body.encode(),
                    # All that Magento sets.
                    pika.BasicProperties(delivery_mode=2, message_id=message_id),
                    mandatory=True,
                )
                published.append(message_id or "")
        return published

    def waiting(self) -> dict[str, int]:
        """Topic -> messages in its queue that no consumer holds. Queues that do not exist are left out."""
        return {topic: count for topic, (count, _) in self._declared().items()}

    def consumers(self) -> dict[str, int]:
        """Topic -> consumers of its queue."""
        return {topic: count for topic, (_, count) in self._declared().items()}

    def unsettled(self) -> dict[str, int]:
        """Topic -> messages in its queue, those included that a consumer holds unacknowledged."""
        counted = self.server.evaluate(
            'lists:flatten([io_lib:format("~s ~b ", [element(4, N), M]) || '
            f'[{{name, N}}, {{messages, M}}] <- rabbit_amqqueue:info_all(<<"{self.name}">>, [name, messages])])'
        )
        words = counted.strip('"').split()
        counts = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        return {topic.name: counts[topic.queue] for topic in TOPIC_TABLE.values() if topic.queue in counts}

    def _declared(self) -> dict[str, tuple[int, int]]:
        found = {}
        for topic in TOPIC_TABLE.values():
            # A queue that is not there closes the channel.
            with self.channel() as channel:
                try:
                    declared = channel.queue_declare(topic.queue, passive=True).method
                except pika.exceptions.ChannelClosedByBroker:
                    continue
                found[topic.name] = (int(declared.message_count), int(declared.consumer_count))
        return found
