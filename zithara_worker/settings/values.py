"""The kinds of values that settings have: how each is written, checked and shown.

A `Kind` reads one way of writing a value, `Secret` is a text that no log shows, and `Key` is a key of the INI file.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from zithara_worker.topics import SHORT_NAMES, TOPICS, full_name, short_name

ENVIRONMENT_PREFIX = "ZITHARA_WORKER_"

_MASK = "********"


class Secret:
    """A text that is printed as its mask. Only `reveal()` returns it, so no log or traceback shows it by accident."""

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
    """A kind of value: `parse` reads its text, `accept` checks what `parse` returned or an embedding program gave.

    `accept` returns the value as the settings hold it. Both raise ValueError, whose text is empty where "must be" and
    `wants` say enough; it never holds the value itself, which may be a secret.
    """

    wants: str
    parse: Callable[[str], Any]
    accept: Callable[[Any], Any]
    secret: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key of the INI file: its place, how its value is read, and what it means."""

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


def as_ini_text(value: object) -> str:
    """A setting as the INI file has it; a secret as its mask."""
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


def _checked(fits: Callable[[Any], object]) -> Callable[[Any], Any]:
    """An `accept` that returns each value for which `fits` is true."""

    def accept(value: Any) -> Any:
        if not fits(value):
            raise ValueError
        return value

    return accept


def _same(text: str) -> str:
    return text


def whole(low: int, high: int) -> Kind:
    def parse(text: str) -> int:
        # int() takes '1_000' and digits of other scripts too, which are slips here.
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            raise ValueError
        return int(text)

    return Kind(
        wants=f"a whole number from {low} to {high}",
        parse=parse,
        accept=_checked(lambda value: type(value) is int and low <= value <= high),
    )


def number(low: float, high: float) -> Kind:
    fits = _checked(lambda value: type(value) in (int, float) and low <= value <= high)

    def parse(text: str) -> float:
        if not re.fullmatch(r"[+-]?([0-9]{1,18}(\.[0-9]*)?|\.[0-9]+)", text):
            raise ValueError
        return float(text)

    return Kind(wants=f"a number from {low:.15g} to {high:.15g}", parse=parse, accept=lambda value: float(fits(value)))


def flag() -> Kind:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

    def parse(text: str) -> bool:
        if text.lower() not in words:
            raise ValueError
        return words[text.lower()]

    return Kind(wants="true or false", parse=parse, accept=_checked(lambda value: isinstance(value, bool)))


def choice(*words: str) -> Kind:
    """One of the words in any case; the setting holds it as it is given here."""
    by_folded = {word.lower(): word for word in words}

    def accept(value: Any) -> str:
        if not isinstance(value, str) or value.lower() not in by_folded:
            raise ValueError
        return by_folded[value.lower()]

    return Kind(wants=f"{', '.join(words[:-1])} or {words[-1]}", parse=_same, accept=accept)


def text() -> Kind:
    return Kind(
        wants="a text on one line",
        parse=_same,
        accept=_checked(lambda value: isinstance(value, str) and value.isprintable()),
    )


def secret() -> Kind:
    return Kind(wants="a text", parse=Secret, accept=_checked(lambda value: isinstance(value, Secret)), secret=True)


def header_text() -> Kind:
    """The value of an HTTP header. Blanks around it, which come along with copy and paste, are removed."""

    def accept(value: Any) -> str:
        if not isinstance(value, str) or not (value.isascii() and value.isprintable()):
            raise ValueError
        return value.strip()

    return Kind(wants="made of visible ASCII characters", parse=_same, accept=accept)


def _secret_of(wants: str, accept: Callable[[str], str]) -> Kind:
    """`accept`: of the text that the secret hides."""

    def accepted(value: Any) -> Secret:
        if not isinstance(value, Secret):
            raise ValueError("must be a Secret")
        return Secret(accept(value.reveal()))

    return Kind(wants=wants, parse=Secret, accept=accepted, secret=True)


def secret_header_text() -> Kind:
    return _secret_of(header_text().wants, header_text().accept)


def webhook_keys(text: str) -> tuple[bytes, ...]:
    """The keys of one or two secrets as the Standard Webhooks specification writes them: 'whsec_' and the base64 of 24
    to 64 random bytes, separated by a comma or a blank. Raises ValueError, which does not quote them."""
    words = _words(text)
    keys = []
    for word in words:
        if not word.startswith("whsec_"):
            raise ValueError
        try:
            keys.append(base64.b64decode(word.removeprefix("whsec_"), validate=True))
        except binascii.Error:
            raise ValueError from None
    if len(keys) > 2 or any(not 24 <= len(key) <= 64 for key in keys):
        raise ValueError
    return tuple(keys)


def webhook_secrets() -> Kind:
    def accept(text: str) -> str:
        webhook_keys(text)
        return text

    return _secret_of(
        "'whsec_' and the base64 of 24 to 64 random bytes; during a rotation two of them, separated by a comma", accept
    )


def path() -> Kind:
    """A path; the setting is None where the text is empty."""
    return Kind(
        wants="a path",
        parse=lambda text: Path(text) if text else None,
        accept=_checked(lambda value: value is None or (isinstance(value, Path) and str(value).isprintable())),
    )


def table_prefix() -> Kind:
    return Kind(
        wants="made of letters, digits and _ only, as in the shop's app/etc/env.php",
        parse=_same,
        accept=_checked(lambda value: isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_]*", value)),
    )


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine itself, so that what is sent to it crosses no network."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


#: Addresses besides link-local ones at which clouds give credentials away: AWS (IPv6), Alibaba, Oracle, Azure.
_METADATA_ADDRESSES = frozenset(
    ipaddress.ip_address(each) for each in ("fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")
)


def is_metadata_address(host: str) -> bool:
    """Whether `host` is the address of a cloud's metadata service or any link-local address. Nothing that a shop would
    send to has such an address, but a request to it can give away the credentials of the machine."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_link_local or address in _METADATA_ADDRESSES


def url() -> Kind:
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
        if is_metadata_address(host):
            raise ValueError("must not name a link-local address or a cloud's metadata service")
        if parts.scheme == "http" and not is_loopback(host):
            raise ValueError(
                "must begin with https:// (http:// only to this machine itself): customers' data travel there"
            )
        return value.rstrip("/") if not parts.query and not parts.fragment else value

    return Kind(wants="an https:// URL", parse=_same, accept=accept)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in re.split(r"[,\s]+", text) if word)


def topics() -> Kind:
    """Topics by their short or full names; the setting holds the full names."""

    def accept(value: Any) -> tuple[str, ...]:
        if not isinstance(value, tuple):
            raise ValueError
        names = tuple(full_name(word) for word in value)
        if not set(names) <= set(TOPICS):
            raise ValueError
        return tuple(dict.fromkeys(names))

    return Kind(
        wants=f"some of {', '.join(SHORT_NAMES)} (or their full names, such as {TOPICS[0]}), separated by commas",
        parse=_words,
        accept=accept,
    )


def short_topics() -> Kind:
    """As `topics`, but the setting holds their short names."""
    full = topics()
    return Kind(
        wants=full.wants,
        parse=full.parse,
        accept=lambda value: tuple(short_name(topic) for topic in full.accept(value)),
    )


def split_hosts(text: str) -> tuple[tuple[str, int | None], ...]:
    """(("db1", None), ("::1", 3307)) for 'db1, [::1]:3307'. Raises ValueError."""
    found: list[tuple[str, int | None]] = []
    for part in map(str.strip, (text or "localhost").split(",")):
        host, port = part, None
        try:
            ipaddress.IPv6Address(part)
        except ValueError:
            bracketed = part.startswith("[") and part.endswith("]")
            if bracketed or ":" in part:
                host, port = split_address(f"{part}:1" if bracketed else part)
                port = None if bracketed else port
        if not host or port == 0 or re.search(r"[\s/\[\]]", host):
            raise ValueError(f"{part!r} is no host")
        found.append((host, port))
    return tuple(found)


def hosts() -> Kind:
    def accept(value: Any) -> str:
        if not isinstance(value, str) or not value.isprintable():
            raise ValueError
        try:
            split_hosts(value)
        except ValueError as error:
            raise ValueError(
                "must be host, host:port or [IPv6 address]:port, several separated by commas (a socket file belongs to "
                "unix_socket)"
            ) from error
        return value

    return Kind(wants="a host, or several separated by commas", parse=_same, accept=accept)


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


def address() -> Kind:
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
