"""The connection to RabbitMQ: its parameters, what people are told when it fails, and a count over one of its own.

Knows no consumer: that is `amqp`.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker, ConnectionClosedByBroker

from zithara_worker.errors import BrokerUnavailable, ConfigurationError
from zithara_worker.settings.sections import RelaySettings

#: pika reports each problem several times, with tracebacks; the relay does once.
logging.getLogger("pika").setLevel(logging.CRITICAL + 1)

HEARTBEAT_SECONDS = 30
#: Seconds for each step of connecting, and for all of it.
SOCKET_TIMEOUT = 5
CONNECT_TIMEOUT = 15
#: AMQP's reply codes that are told apart.
ACCESS_REFUSED, NOT_FOUND, RESOURCE_LOCKED, NOT_ALLOWED = 403, 404, 405, 530


def parameters(settings: RelaySettings, name: str) -> pika.ConnectionParameters:
    """`name`: shown by RabbitMQ's own tools. Raises ConfigurationError if the files for TLS cannot be used."""
    options = None
    if settings.ssl:
        options = pika.SSLOptions(_tls_context(settings), settings.host)
    return pika.ConnectionParameters(
        host=settings.host,
        port=settings.port or (5671 if settings.ssl else 5672),
        virtual_host=settings.vhost,
        credentials=pika.PlainCredentials(settings.user, settings.password.reveal()),
        heartbeat=HEARTBEAT_SECONDS,
        socket_timeout=SOCKET_TIMEOUT,
        stack_timeout=CONNECT_TIMEOUT,
        connection_attempts=1,
        ssl_options=options,
        client_properties={"connection_name": name},
    )


def _tls_context(settings: RelaySettings) -> ssl.SSLContext:
    trusted, certificate = settings.ca_file, settings.certificate
    told = f"ca_file: {trusted}"
    try:
        if trusted is None:
            context = ssl.create_default_context()
        elif trusted.is_dir():
            context = ssl.create_default_context(capath=str(trusted))
        else:
            context = ssl.create_default_context(cafile=str(trusted))
        if certificate is not None:
            told = f"certificate: {certificate}"
            context.load_cert_chain(certificate, settings.certificate_key, password=_no_password)
    except OSError as error:  # an ssl.SSLError is one, too
        raise ConfigurationError(
            f"[relay] {told} cannot be used: {error.strerror or error}; name PEM files that the worker's user may "
            "read, a private key without password"
        ) from error
    return context


def _no_password() -> str:
    """Otherwise OpenSSL would ask on the terminal."""
    return ""


def connection_problem(error: BaseException, settings: RelaySettings) -> str:
    """What is wrong with the connection, and what to do."""
    where = f"{settings.host}:{settings.port or (5671 if settings.ssl else 5672)}"
    causes = list(_causes(error))
    names = {type(each).__name__ for each in causes}
    told = next((str(each) for each in reversed(causes) if str(each)), repr(error))
    closed = next((each for each in causes if isinstance(each, ConnectionClosedByBroker)), None)
    code = closed.reply_code if closed else None
    if "ProbableAuthenticationError" in names or code == ACCESS_REFUSED:
        return f"RabbitMQ at {where} refuses user {settings.user} ({told}): correct [relay] user and password"
    if "ProbableAccessDeniedError" in names or code == NOT_ALLOWED:
        return (
            f"RabbitMQ at {where} refuses user {settings.user} the virtual host {settings.vhost}, or has no such one "
            f"({told}): correct [relay] vhost, or grant it with 'rabbitmqctl set_permissions -p {settings.vhost} "
            f'{settings.user} "" "" "^zithara_.*_queue$"\''
        )
    if any(isinstance(each, ssl.SSLError) for each in causes):
        return (
            f"TLS with RabbitMQ at {where} fails ({told}): correct [relay] host and port, or name the authority of its "
            "certificate in [relay] ca_file"
        )
    if "IncompatibleProtocolError" in names and not settings.ssl:
        return f"RabbitMQ at {where} does not answer without TLS ({told}): set [relay] ssl = true, or correct the port"
    return f"RabbitMQ at {where}: {told}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those within it: pika wraps what the system or the server said."""
    seen = 0
    while error is not None and seen < 10:
        yield error
        seen += 1
        inner = [each for each in (getattr(error, "exception", None), *error.args) if isinstance(each, BaseException)]
        error = inner[0] if inner else error.__cause__


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What RabbitMQ has of a queue."""

    messages: int
    consumers: int


def count_waiting(settings: RelaySettings, queues: Sequence[str]) -> Mapping[str, Waiting | None]:
    """The messages that RabbitMQ holds ready in each of these queues, and their consumers. None: no such queue.

    Messages that a consumer holds unacknowledged are not counted. Raises BrokerUnavailable.
    """
    found: dict[str, Waiting | None] = {}
    with _connected(settings) as connection:
        for queue in queues:
            channel = connection.channel()
            try:
                declared = channel.queue_declare(queue, passive=True).method
            except ChannelClosedByBroker as error:
                if error.reply_code != NOT_FOUND:
                    raise
                found[queue] = None
            else:
                found[queue] = Waiting(messages=declared.message_count, consumers=declared.consumer_count)
                channel.close()
    return found


@contextmanager
def _connected(settings: RelaySettings) -> Iterator[Any]:
    connection = None
    try:
        connection = pika.BlockingConnection(parameters(settings, "zithara-worker"))
        yield connection
    except (AMQPError, OSError) as error:
        raise BrokerUnavailable(connection_problem(error, settings)) from error
    finally:
        if connection is not None and connection.is_open:
            with suppress(AMQPError, OSError):
                connection.close()
