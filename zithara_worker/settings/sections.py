"""Every setting: one frozen value a section, and the table of keys from which parser, `config` and documents are made.

The fields of the section classes are that table. A field's name is the key of the INI file, its default stands beside
it, and its metadata says how its text is read, its unit and its meaning. Each value checks itself, however it was made.
`sources` fills in where values come from; this module reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from zithara_worker.errors import ConfigurationError
from zithara_worker.settings import values
from zithara_worker.settings.values import Key, Kind, Secret, as_ini_text
from zithara_worker.topics import TOPICS, full_name

T = TypeVar("T")
#: What becomes of a telephone number that the PHP module made up.
InventedPhone = Literal["send", "omit", "reject"]
InactiveCarts = Literal["skip", "send"]

#: The API's addresses (the module's Helper and its API documentation).
BASE_URLS: Mapping[str, str] = MappingProxyType(
    {"production": "https://pos-api.zithara.com/v1", "development": "https://dev-pos-api.zithara.com/v1"}
)
#: The section whose keys are topics; it has no entries in KEYS.
QUEUES = "queues"

#: queue.name is varchar(255).
_QUEUE_NAME_LENGTH = 255


# ---------------------------------------------------------------- sections


def _key(default: T, kind: Kind, doc: str, *, unit: str = "") -> T:
    """A field of a section class: a key of the INI file. Typed as its default, as dataclasses.field() is."""
    return field(default=default, metadata={"kind": kind, "doc": doc, "unit": unit})


class _Section:
    """Checks the values of a section when it is made: each by its kind, then all together."""

    __slots__ = ()

    def __post_init__(self) -> None:
        problems = []
        for key in _keys_of(self):
            try:
                value = key.read(getattr(self, key.name))
            except ValueError as error:
                seen = "" if key.secret else f" = {as_ini_text(getattr(self, key.name))!r}"
                problems.append(f"[{key.section}] {key.name}{seen}: {error}")
            else:
                object.__setattr__(self, key.name, value)
        if not problems:
            self._derive()
            contradictions = (*self._unread_files(), *self._contradictions())
            problems = [f"[{_section_name(type(self))}] {text}" for text in contradictions]
        if problems:
            raise ConfigurationError("\n".join(problems))

    def _derive(self) -> None:
        """Sets values that follow from others."""

    def _unread_files(self) -> Iterator[str]:
        for name in (key.name for key in _keys_of(self) if key.secret):
            if getattr(self, f"{name}_file") and not getattr(self, name):
                yield (
                    f"{name}_file is given without {name}: only zithara_worker.settings.sources.load reads the file; a "
                    f"program that makes Settings itself passes {name}"
                )

    def _contradictions(self) -> Iterator[str]:
        """A sentence for each contradiction between values that are valid by themselves."""
        return iter(())


def _section_name(section: type) -> str:
    return section.__name__.removesuffix("Settings").lower()


def _keys_of(section: Any) -> Iterator[Key]:
    name = _section_name(section if isinstance(section, type) else type(section))
    for each in fields(section):
        yield Key(section=name, name=each.name, default=each.default, **each.metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class MagentoSettings(_Section):
    root: Path | None = _key(
        None,
        values.path(),
        "Directory of the Magento installation; its app/etc/env.php then gives the database, the table prefix and the "
        "encryption keys. Empty: the shop's files are not read.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseSettings(_Section):
    host: str = _key(
        "localhost",
        values.hosts(),
        "Host of the shop's database server. For a cluster without an address that moves: its servers as host or "
        "host:port, separated by commas; the first one that takes writes is used, and kept while it serves.",
    )
    port: int = _key(3306, values.whole(1, 65535), "Port of the database server, where host names none.")
    unix_socket: str = _key("", values.text(), "Socket file of the database server; used instead of host and port.")
    user: str = _key("magento", values.text(), "Database user.")
    password: Secret = _key(Secret(), values.secret(), "Password of the database user.")
    password_file: Path | None = _key(
        None, values.path(), "File whose first line is the database password; instead of password."
    )
    name: str = _key("magento", values.text(), "Name of the shop's database.")
    table_prefix: str = _key("", values.table_prefix(), "Prefix of the shop's table names.")
    ssl_ca: Path | None = _key(
        None,
        values.path(),
        "Certificate authority (PEM) of the database server. If it is set, nothing is sent to a server without TLS.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ZitharaSettings(_Section):
    """`base_url` is never empty: without one it becomes that of `environment` when the section is made.

    dataclasses.replace(environment=...) keeps the old URL: replace `base_url` with "" in the same call.
    """

    environment: str = _key("production", values.choice(*BASE_URLS), "Which of Zithara's two APIs to talk to.")
    base_url: str = _key(
        "", values.url(), "URL of the API, version included, without a trailing slash. Empty: that of environment."
    )
    webhook_url: str = _key(
        "",
        values.url(),
        "URL to which webhook events are posted. Where neither this nor the shop has one, they complete as skipped.",
    )
    client_id: str = _key("", values.header_text(), "Client id of the Zithara API.")
    client_secret: Secret = _key(Secret(), values.secret_header_text(), "Client secret of the Zithara API.")
    client_secret_file: Path | None = _key(
        None, values.path(), "File whose first line is the client secret; instead of client_secret."
    )
    webhook_secret: Secret = _key(
        Secret(),
        values.webhook_secrets(),
        "Secret by which webhooks are signed, so that receivers can verify them (standardwebhooks.com). Empty: "
        "webhooks are not signed.",
    )
    webhook_secret_file: Path | None = _key(
        None, values.path(), "File whose first line is the webhook secret; instead of webhook_secret."
    )
    timeout: float = _key(30.0, values.number(0.1, 600), "How long an answer of the API may take.", unit="seconds")
    verify: bool = _key(
        True, values.flag(), "Whether the API's certificate is checked; false is for a test system only."
    )
    ca_file: Path | None = _key(
        None, values.path(), "PEM file with certificate authorities to trust for the API, in addition to the system's."
    )
    invented_phone: InventedPhone = _key(
        "send",
        values.choice("send", "omit", "reject"),
        "What to do with a customer whose telephone number the PHP module made up: send it, leave the number out, or "
        "reject the message.",
    )

    inactive_carts: InactiveCarts = _key(
        "skip",
        values.choice("skip", "send"),
        "What to do with a cart that became an order or was merged into another one: skip it, or send it as the PHP "
        "module does.",
    )

    def _derive(self) -> None:
        if not self.base_url:
            object.__setattr__(self, "base_url", BASE_URLS[self.environment])

    def _contradictions(self) -> Iterator[str]:
        if self.ca_file and not self.verify:
            yield "ca_file is given but verify is false: it would not be used; set verify to true or remove ca_file"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings(_Section):
    concurrency: int = _key(16, values.whole(1, 512), "Requests in flight at once, one thread each.")
    batch_size: int = _key(100, values.whole(1, 1000), "Messages claimed in one transaction, at most.")
    poll_interval: float = _key(
        0.25, values.number(0.01, 3600), "How long an idle worker waits between two polls of the queue.", unit="seconds"
    )
    lease: float = _key(
        60.0,
        values.number(2, 86_400),
        "How long a claimed message stays with this worker unless the worker renews its lease; after a crash its "
        "messages are delivered by others this much later. Must be longer than poll_interval.",
        unit="seconds",
    )
    rate_limit: float = _key(
        0.0,
        values.number(0, 100_000),
        "Requests of all workers of the shop together, at most; 0 means no limit.",
        unit="requests per second",
    )
    burst: int = _key(
        0,
        values.whole(0, 100_000),
        "Requests that may go out at once after a pause; 0 means those of one second of rate_limit.",
    )
    shutdown_timeout: float = _key(
        30.0,
        values.number(0, 3600),
        "How long requests in flight may take to finish once the worker was asked to stop.",
        unit="seconds",
    )
    coalesce: tuple[str, ...] = _key(
        ("cart", "customer"),
        values.short_topics(),
        "Topics with coalescing: of several pending messages of one cart or customer only the newest is sent. Only for "
        "topics in which every message is a full snapshot.",
    )
    skip_unchanged: tuple[str, ...] = _key(
        ("cart", "customer"),
        values.short_topics(),
        "Topics of which a message is not sent when Zithara accepted the same request last.",
    )
    unchanged_for: float = _key(
        86_400.0, values.number(0, 2_592_000), "How long an accepted request need not be sent again.", unit="seconds"
    )
    topics: tuple[str, ...] = _key(
        (), values.topics(), "Topics that consume takes when its command line names none, separated by commas."
    )

    def _contradictions(self) -> Iterator[str]:
        if self.lease <= self.poll_interval:
            yield (
                f"lease = '{self.lease:.15g}' must be longer than poll_interval = '{self.poll_interval:.15g}': a "
                "waiting worker could lose its messages to another one; raise lease or lower poll_interval"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrySettings(_Section):
    limit: int = _key(
        8, values.whole(1, 1000), "Attempts, the first one included, after which a message goes to ERROR."
    )
    delay: float = _key(30.0, values.number(0, 604_800), "Wait after the first failed attempt.", unit="seconds")
    factor: float = _key(3.0, values.number(1, 100), "By how much the wait grows with each further failed attempt.")
    max_delay: float = _key(21_600.0, values.number(0, 604_800), "Longest wait between two attempts.", unit="seconds")

    def _contradictions(self) -> Iterator[str]:
        if self.max_delay < self.delay:
            yield (
                f"max_delay = '{self.max_delay:.15g}' must not be less than delay = '{self.delay:.15g}': "
                "raise max_delay or lower delay"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySettings(_Section):
    """Where RabbitMQ is, and how `relay` takes from it. An empty `host`: no RabbitMQ is configured."""

    host: str = _key("", values.text(), "Host of the shop's RabbitMQ.")
    port: int = _key(0, values.whole(0, 65535), "Port of RabbitMQ. 0: 5671 with ssl, 5672 without.")
    user: str = _key("guest", values.text(), "User at RabbitMQ; it needs the right to read the queues.")
    password: Secret = _key(Secret(), values.secret(), "Password of the RabbitMQ user.")
    password_file: Path | None = _key(
        None, values.path(), "File whose first line is the RabbitMQ password; instead of password."
    )
    vhost: str = _key("/", values.text(), "Virtual host with the shop's queues.")
    ssl: bool = _key(False, values.flag(), "Whether to connect with TLS; the certificate is always checked.")
    ca_file: Path | None = _key(
        None,
        values.path(),
        "PEM file, or directory as of OpenSSL, with the certificate authorities to trust for RabbitMQ. Empty: those of "
        "the system.",
    )
    certificate: Path | None = _key(
        None, values.path(), "Certificate (PEM) to present to RabbitMQ, where it asks for one."
    )
    certificate_key: Path | None = _key(
        None, values.path(), "Private key of that certificate. Empty: it is in the same file."
    )
    prefetch: int = _key(
        200,
        values.whole(1, 5000),
        "Messages that RabbitMQ sends ahead, at most; the relay lowers it by itself while bodies are large.",
    )
    max_pending: int = _key(
        10_000,
        values.whole(1, 10_000_000),
        "Pending messages of a queue in the shop's database above which the relay leaves further ones in RabbitMQ.",
    )

    def _contradictions(self) -> Iterator[str]:
        if not self.ssl and (self.ca_file or self.certificate or self.certificate_key):
            yield "ca_file, certificate and certificate_key need ssl = true: set it, or remove them"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggingSettings(_Section):
    level: str = _key(
        "INFO", values.choice("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"), "Lowest level that is logged."
    )
    format: str = _key("json", values.choice("json", "text"), "One JSON object a line, or text for people.")
    file: Path | None = _key(
        None, values.path(), "Log file; reopened on SIGHUP and after rotation. Empty: standard error."
    )
    audit_file: Path | None = _key(
        None,
        values.path(),
        "File that gets one JSON line for each delivery attempt and each operator's action. Empty: none.",
    )
    audit_required: bool = _key(
        False, values.flag(), "Whether the worker stops taking messages while the audit file cannot be written."
    )
    mask: bool = _key(
        True,
        values.flag(),
        "Whether personal data is masked in logs: in bodies and answers all values except those of known keys (ids, "
        "states, amounts and the like). Secrets always are.",
    )

    def _contradictions(self) -> Iterator[str]:
        if self.audit_required and not self.audit_file:
            yield "audit_required is true but audit_file is not given: name the file or set audit_required to false"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSettings(_Section):
    listen: str = _key(
        "127.0.0.1:9209",
        values.address(),
        "Address that serves metrics and health; if the port is taken, the next free one of the following 15. "
        "Port 0: any free one. Empty: off.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings. `queues`: topic -> name of its queue, only where it differs from the module's own."""

    magento: MagentoSettings = field(default_factory=MagentoSettings)
    database: DatabaseSettings = field(default_factory=DatabaseSettings)
    zithara: ZitharaSettings = field(default_factory=ZitharaSettings)
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    retry: RetrySettings = field(default_factory=RetrySettings)
    queues: Mapping[str, str] = field(default_factory=dict)
    relay: RelaySettings = field(default_factory=RelaySettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)

    def __post_init__(self) -> None:
        """Raises ConfigurationError for an invalid name of a topic or a queue."""
        problems = [
            f"[{QUEUES}] {topic} = {queue!r}: {problem}"
            for topic, queue in self.queues.items()
            if (problem := queue_problem(topic, queue))
        ]
        # A copy: the caller may change its own mapping later, and these settings are frozen.
        queues = {full_name(topic): queue for topic, queue in self.queues.items()}
        if len(queues) < len(self.queues):
            problems.append(f"[{QUEUES}] gives a queue to a topic twice, under its short and its full name: remove one")
        if problems:
            raise ConfigurationError("\n".join(problems))
        object.__setattr__(self, QUEUES, MappingProxyType(queues))


def queue_problem(topic: str, queue: str) -> str:
    """Why a line of [queues] is invalid; "" if it is valid."""
    if full_name(topic) not in TOPICS:
        return f"the key must be one of the topics {', '.join(TOPICS)}"
    if not queue or len(queue) > _QUEUE_NAME_LENGTH:
        return f"must be the name of the topic's queue, 1 to {_QUEUE_NAME_LENGTH} characters"
    return ""


#: Section -> its class, in the order in which people read them. `queues` has free keys and is not among them.
SECTIONS: Mapping[str, type[_Section]] = MappingProxyType(
    {
        _section_name(section): section
        for section in (
            MagentoSettings,
            DatabaseSettings,
            ZitharaSettings,
            WorkerSettings,
            RetrySettings,
            RelaySettings,
            LoggingSettings,
            MetricsSettings,
        )
    }
)
KEYS: tuple[Key, ...] = tuple(key for section in SECTIONS.values() for key in _keys_of(section))
KEY_AT: Mapping[tuple[str, str], Key] = MappingProxyType({key.place: key for key in KEYS})
