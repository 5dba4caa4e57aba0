"""Every setting: one frozen value a section, and the one table of keys behind parser, sample file, `config` and docs.

The fields of the section classes are that table: a field's metadata says how its text is read, its unit and what it
means, its default stands beside it, and its name is the key of the INI file. Values check themselves, however they were
made. Where values come from is the business of `config`; this module reads nothing.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from zithara_worker.errors import ConfigurationError
from zithara_worker.topics import SHORT_NAMES, TOPICS, full_name, short_name

T = TypeVar("T")
#: What becomes of a telephone number that the PHP module made up.
InventedPhone = Literal["send", "omit", "reject"]

#: The API's two homes (the module's Helper and its API documentation).
BASE_URLS: Mapping[str, str] = MappingProxyType(
    {"production": "https://pos-api.zithara.com/v1", "development": "https://dev-pos-api.zithara.com/v1"}
)
ENVIRONMENT_PREFIX = "ZITHARA_WORKER_"
#: The section whose keys are topics; it has no entries in KEYS.
QUEUES = "queues"

_PREFIX = re.compile(r"[A-Za-z0-9_]*\Z")
#: queue.name is varchar(255).
_QUEUE_NAME_LENGTH = 255
_MASK = "********"


class Secret:
    """A text that never shows itself: only `reveal()` gives it away, so no log or traceback can by accident."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Secret({str(self)!r})"

    def __str__(self) -> str:
        return _MASK if self._text else ""

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a Secret is not pickled: pass the settings on as a configuration file")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret:
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One way to write a value.

    `wants` completes the sentence "must be ...". `accept` takes what `parse` made of the text, or what a program gave,
    and returns the value as the settings hold it; both raise ValueError, whose text never holds the value itself and
    may be empty when `wants` says it all.
    """

    wants: str
    parse: Callable[[str], Any]
    accept: Callable[[Any], Any]
    secret: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key of the INI file: where it stands, how it is read, what it means."""

    section: str
    name: str
    kind: Kind
    default: Any
    unit: str
    doc: str

    @property
    def place(self) -> tuple[str, str]:
        return self.section, self.name

    @property
    def secret(self) -> bool:
        return self.kind.secret

    @property
    def environment(self) -> str:
        """The environment variable: ZITHARA_WORKER_WORKER_LEASE for [worker] lease."""
        return f"{ENVIRONMENT_PREFIX}{self.section}_{self.name}".upper()

    def read(self, value: object) -> Any:
        """The setting for a text as in the file, or for a typed value; ValueError's text begins with "must"."""
        try:
            return self.kind.accept(self.kind.parse(value) if isinstance(value, str) else value)
        except ValueError as error:
            raise ValueError(f"must be {self.kind.wants}" if not error.args else str(error)) from error


def written(value: object) -> str:
    """A setting as it is written in the INI file; a secret as its mask."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value)


# ---------------------------------------------------------------- kinds of values


def _only(*types: type) -> Callable[[Any], Any]:
    """An `accept` that passes these types on; bool is not taken for int."""

    def accept(value: Any) -> Any:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError
        return value

    return accept


def _same(text: str) -> str:
    return text


def _whole(low: int, high: int) -> Kind:
    def accept(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError
        return value

    def parse(text: str) -> int:
        # int() takes '1_000' and '٣' too, which nobody means.
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            raise ValueError
        return int(text)

    return Kind(wants=f"a whole number from {low} to {high}", parse=parse, accept=accept)


def _number(low: float, high: float) -> Kind:
    def accept(value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError
        return float(value)

    def parse(text: str) -> float:
        if not re.fullmatch(r"[+-]?([0-9]{1,18}(\.[0-9]*)?|\.[0-9]+)", text):
            raise ValueError
        return float(text)

    return Kind(wants=f"a number from {low:.15g} to {high:.15g}", parse=parse, accept=accept)


def _flag() -> Kind:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

    def parse(text: str) -> bool:
        if text.lower() not in words:
            raise ValueError
        return words[text.lower()]

    return Kind(wants="true or false", parse=parse, accept=_only(bool))


def _choice(*words: str) -> Kind:
    by_folded = {word.lower(): word for word in words}

    def accept(value: Any) -> str:
        if not isinstance(value, str) or value.lower() not in by_folded:
            raise ValueError
        return by_folded[value.lower()]

    return Kind(wants=f"{', '.join(words[:-1])} or {words[-1]}", parse=_same, accept=accept)


def _text() -> Kind:
    def accept(value: Any) -> str:
        if not isinstance(value, str) or not value.isprintable():
            raise ValueError
        return value

    return Kind(wants="a text on one line", parse=_same, accept=accept)


def _secret() -> Kind:
    def accept(value: Any) -> Secret:
        if not isinstance(value, Secret):
            raise ValueError
        return value

    return Kind(wants="a text", parse=Secret, accept=accept, secret=True)


def _header_text() -> Kind:
    """What travels as the value of an HTTP header. Blanks around it, easily pasted along, are no part of it."""

    def accept(value: Any) -> str:
        if not isinstance(value, str) or not (value.isascii() and value.isprintable()):
            raise ValueError
        return value.strip()

    return Kind(wants="made of visible ASCII characters", parse=_same, accept=accept)


def _secret_header_text() -> Kind:
    plain = _header_text()

    def accept(value: Any) -> Secret:
        if not isinstance(value, Secret):
            raise ValueError("must be a Secret")
        return Secret(plain.accept(value.reveal()))

    return Kind(wants=plain.wants, parse=Secret, accept=accept, secret=True)


def _path() -> Kind:
    def parse(text: str) -> Path | None:
        return Path(text) if text else None

    def accept(value: Any) -> Path | None:
        if value is not None and not (isinstance(value, Path) and str(value).isprintable()):
            raise ValueError
        return value

    return Kind(wants="a path", parse=parse, accept=accept)


def _table_prefix() -> Kind:
    def accept(value: Any) -> str:
        if not isinstance(value, str) or not _PREFIX.match(value):
            raise ValueError
        return value

    return Kind(
        wants="made of letters, digits and _ only, as in the shop's app/etc/env.php", parse=_same, accept=accept
    )


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine itself, so that what is said to it crosses no network."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _url() -> Kind:
    def accept(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError
        if not value:
            return value
        if any(character.isspace() or not character.isprintable() for character in value):
            raise ValueError("must be a URL, without spaces in it")
        try:
            parts = urlsplit(value)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise ValueError("must be a URL such as https://host/path") from error
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError("must be a URL such as https://host/path")
        if parts.username is not None or parts.password is not None:
            raise ValueError("must be a URL without user and password: it is printed and logged")
        if parts.scheme == "http" and not is_loopback(host):
            raise ValueError(
                "must begin with https:// (http:// only to this machine itself): customers' data travel there"
            )
        return value.rstrip("/") if not parts.query and not parts.fragment else value

    return Kind(wants="an https:// URL", parse=_same, accept=accept)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in re.split(r"[,\s]+", text) if word)


def _topics() -> Kind:
    def accept(value: Any) -> tuple[str, ...]:
        topics = tuple(full_name(word) for word in _only(tuple)(value))
        if not set(topics) <= set(TOPICS):
            raise ValueError
        return tuple(dict.fromkeys(topics))

    return Kind(
        wants=f"some of {', '.join(SHORT_NAMES)} (or their full names, such as {TOPICS[0]}), separated by commas",
        parse=_words,
        accept=accept,
    )


def _topic_words() -> Kind:
    topics = _topics()
    return Kind(
        wants=topics.wants,
        parse=topics.parse,
        accept=lambda value: tuple(short_name(topic) for topic in topics.accept(value)),
    )


def split_address(address: str) -> tuple[str, int]:
    """('127.0.0.1', 9209) for '127.0.0.1:9209', ('::1', 0) for '[::1]:0'. Raises ValueError."""
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ipaddress.ip_address(host).version != 6:
            raise ValueError("brackets are for an IPv6 address")
    elif ":" in host:
        raise ValueError("an IPv6 address needs brackets")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("not host:port")
    return host, int(port)


def _address() -> Kind:
    def accept(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError
        try:
            if value:
                split_address(value)
        except ValueError as error:
            raise ValueError("must be host:port, such as 127.0.0.1:9209 or [::1]:9209, or empty") from error
        return value

    return Kind(wants="host:port", parse=_same, accept=accept)


# ---------------------------------------------------------------- sections


def _key(default: T, kind: Kind, doc: str, *, unit: str = "") -> T:
    """A field that is a key; mypy sees the default's type, the dataclass sees the field."""
    return field(default=default, metadata={"kind": kind, "doc": doc, "unit": unit})


class _Section:
    """Checks the values of a section, each by its kind and then together."""

    __slots__ = ()

    def __post_init__(self) -> None:
        problems = []
        for key in _keys_of(self):
            try:
                value = key.read(getattr(self, key.name))
            except ValueError as error:
                seen = "" if key.secret else f" = {written(getattr(self, key.name))!r}"
                problems.append(f"[{key.section}] {key.name}{seen}: {error}")
            else:
                object.__setattr__(self, key.name, value)
        if not problems:
            self._derive()
            problems = [f"[{_section_name(type(self))}] {text}" for text in self._contradictions()]
        if problems:
            raise ConfigurationError("\n".join(problems))

    def _derive(self) -> None:
        """Fills what follows from other values."""

    def _contradictions(self) -> Iterator[str]:
        """What is wrong between values that are right each by itself."""
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
        _path(),
        "Directory of the Magento installation; its app/etc/env.php then gives the database, the table prefix and the "
        "encryption keys. Empty: the shop's files are not read.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseSettings(_Section):
    host: str = _key("localhost", _text(), "Host of the shop's database server.")
    port: int = _key(3306, _whole(1, 65535), "Port of the database server.")
    unix_socket: str = _key("", _text(), "Socket file of the database server; used instead of host and port.")
    user: str = _key("magento", _text(), "Database user.")
    password: Secret = _key(Secret(), _secret(), "Password of the database user.")
    password_file: Path | None = _key(
        None, _path(), "File whose first line is the database password; instead of password."
    )
    name: str = _key("magento", _text(), "Name of the shop's database.")
    table_prefix: str = _key("", _table_prefix(), "Prefix of the shop's table names.")
    ssl_ca: Path | None = _key(
        None,
        _path(),
        "Certificate authority (PEM) of the database server; given: nothing is sent to a server without TLS.",
    )

    def _contradictions(self) -> Iterator[str]:
        if self.password_file and not self.password:
            yield _unread_file("password")


@dataclass(frozen=True, slots=True, kw_only=True)
class ZitharaSettings(_Section):
    """`base_url` is the effective one: an empty one becomes that of `environment` at once.

    It does not follow when `environment` is replaced later: replace `base_url` with "" in the same step.
    """

    environment: str = _key("production", _choice(*BASE_URLS), "Which of Zithara's two APIs to talk to.")
    base_url: str = _key(
        "", _url(), "URL of the API, version included, without a trailing slash. Empty: that of environment."
    )
    webhook_url: str = _key(
        "", _url(), "Where webhook events are posted. Empty here and in the shop: they complete as skipped."
    )
    client_id: str = _key("", _header_text(), "Client id of the Zithara API.")
    client_secret: Secret = _key(Secret(), _secret_header_text(), "Client secret of the Zithara API.")
    client_secret_file: Path | None = _key(
        None, _path(), "File whose first line is the client secret; instead of client_secret."
    )
    timeout: float = _key(30.0, _number(0.1, 600), "How long an answer of the API may take.", unit="seconds")
    verify: bool = _key(True, _flag(), "Whether the API's certificate is checked; false is for a test system only.")
    ca_file: Path | None = _key(
        None, _path(), "Certificate authority (PEM) to trust for the API. Empty: those httpx trusts."
    )
    invented_phone: InventedPhone = _key(
        "send",
        _choice("send", "omit", "reject"),
        "What to do with a customer whose telephone number the PHP module made up: send it, leave the number out, or "
        "reject the message.",
    )

    def _derive(self) -> None:
        if not self.base_url:
            object.__setattr__(self, "base_url", BASE_URLS[self.environment])

    def _contradictions(self) -> Iterator[str]:
        if self.client_secret_file and not self.client_secret:
            yield _unread_file("client_secret")
        if self.ca_file and not self.verify:
            yield "ca_file is given but verify is false: it would not be used; set verify to true or remove ca_file"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings(_Section):
    concurrency: int = _key(16, _whole(1, 512), "Requests in flight at once, one thread each.")
    batch_size: int = _key(100, _whole(1, 1000), "Messages claimed in one transaction, at most.")
    poll_interval: float = _key(
        0.25, _number(0.01, 3600), "How long an idle worker waits between two looks at the queue.", unit="seconds"
    )
    lease: float = _key(
        60.0,
        _number(2, 86_400),
        "How long a claimed message stays this worker's without a sign of life; after a crash its messages come back "
        "this late. Must be longer than poll_interval.",
        unit="seconds",
    )
    rate_limit: float = _key(
        0.0, _number(0, 100_000), "Requests to the API, at most; 0 means no limit.", unit="requests per second"
    )
    burst: int = _key(
        0,
        _whole(0, 100_000),
        "Requests that may go out at once after a pause; 0 means those of one second of rate_limit.",
    )
    shutdown_timeout: float = _key(
        30.0,
        _number(0, 3600),
        "How long requests in flight may take to finish after a request to stop.",
        unit="seconds",
    )
    coalesce: tuple[str, ...] = _key(
        ("cart", "customer"),
        _topic_words(),
        "Topics of which only the newest of several pending messages of one cart or customer is sent. Only for topics "
        "whose every message is a full snapshot.",
    )
    topics: tuple[str, ...] = _key(
        (), _topics(), "Topics that consume takes when its command line names none, separated by commas."
    )

    @property
    def bucket_size(self) -> int:
        """The token bucket's size in requests: `burst`, else what `rate_limit` allows in one second, at least 1."""
        return self.burst or max(1, int(self.rate_limit))

    def _contradictions(self) -> Iterator[str]:
        if self.lease <= self.poll_interval:
            yield (
                f"lease = '{self.lease:.15g}' must be longer than poll_interval = '{self.poll_interval:.15g}': a "
                "waiting worker could lose its messages to another one; raise lease or lower poll_interval"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrySettings(_Section):
    limit: int = _key(8, _whole(1, 1000), "Attempts, the first one included, after which a message goes to ERROR.")
    delay: float = _key(30.0, _number(0, 604_800), "Wait after the first failed attempt.", unit="seconds")
    factor: float = _key(3.0, _number(1, 100), "By how much the wait grows with each further failed attempt.")
    max_delay: float = _key(21_600.0, _number(0, 604_800), "Longest wait between two attempts.", unit="seconds")

    def _contradictions(self) -> Iterator[str]:
        if self.max_delay < self.delay:
            yield (
                f"max_delay = '{self.max_delay:.15g}' must not be less than delay = '{self.delay:.15g}': "
                "raise max_delay or lower delay"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggingSettings(_Section):
    level: str = _key("INFO", _choice("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"), "Least level that is logged.")
    format: str = _key("json", _choice("json", "text"), "One JSON object a line, or text for people.")
    file: Path | None = _key(None, _path(), "Log file; reopened on SIGHUP and after rotation. Empty: standard error.")
    audit_file: Path | None = _key(
        None, _path(), "File that gets one JSON line for each message whose fate is decided. Empty: none."
    )
    audit_required: bool = _key(
        False, _flag(), "Whether the worker stops taking messages while the audit file cannot be written."
    )
    mask: bool = _key(
        True,
        _flag(),
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
        _address(),
        "Address that serves metrics and health; if the port is taken, the next free one of the following 15. "
        "Port 0: any free one. Empty: off.",
    )


def _unread_file(name: str) -> str:
    return (
        f"{name}_file is given without {name}: the file is read when a configuration is loaded "
        f"(zithara_worker.settings.sources.load); whoever makes settings by hand passes {name} itself"
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
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)

    def __post_init__(self) -> None:
        """Raises ConfigurationError for a topic or queue name that can be none."""
        problems = [
            f"[{QUEUES}] {topic} = {queue!r}: {problem}"
            for topic, queue in self.queues.items()
            if (problem := queue_problem(topic, queue))
        ]
        # A copy that nobody else holds: what is frozen shall stay so.
        queues = {full_name(topic): queue for topic, queue in self.queues.items()}
        if len(queues) < len(self.queues):
            problems.append(f"[{QUEUES}] gives a queue to a topic twice, under its short and its full name: remove one")
        if problems:
            raise ConfigurationError("\n".join(problems))
        object.__setattr__(self, QUEUES, MappingProxyType(queues))


def queue_problem(topic: str, queue: str) -> str:
    """What is wrong with a line of [queues], "" if nothing is."""
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
            LoggingSettings,
            MetricsSettings,
        )
    }
)
KEYS: tuple[Key, ...] = tuple(key for section in SECTIONS.values() for key in _keys_of(section))
KEY_AT: Mapping[tuple[str, str], Key] = MappingProxyType({key.place: key for key in KEYS})
