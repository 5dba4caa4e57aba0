"""Where each setting comes from: command line > environment > file > the shop > default.

Fills `Settings` and remembers the source of every value. Reads files and the environment it is given, no database: what
the shop says is passed in as plain values.
"""

from __future__ import annotations

import configparser
import difflib
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zithara_worker.errors import ConfigurationError
from zithara_worker.messages import TOPICS
from zithara_worker.settings import KEY_AT, KEYS, QUEUES, SECTIONS, Key, Secret, Settings, queue_problem, written

DEFAULT_FILE = Path("/etc/zithara-worker/zithara-worker.conf")
#: What `Configured.sources` says of a value that nobody gave.
DEFAULT = "default"

#: (section, key) -> (text, where it stands)
Values = Mapping[tuple[str, str], tuple[str, str]]
#: Root of the shop -> what its app/etc/env.php gives.
ReadShop = Callable[[Path], Values]

_FILE_KEYS = {("database", "password_file"): "password", ("zithara", "client_secret_file"): "client_secret"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Configured:
    """The settings in force, and for each (section, key) where its value came from."""

    settings: Settings
    given: Mapping[tuple[str, str], Any] = field(default_factory=dict, repr=False)
    sources: Mapping[tuple[str, str], str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def source(self, section: str, key: str) -> str:
        return self.sources.get((section, key), DEFAULT)


def load(
    file: Path | None,
    overrides: Mapping[tuple[str, str], Any],
    environ: Mapping[str, str],
    read_shop: ReadShop,
) -> Configured:
    """The configuration as far as it goes without a database.

    `file`: None = the default file, if it is there. `overrides`: what the command line gave. Raises ConfigurationError
    with one line for each thing that is wrong.
    """
    errors: list[str] = []
    warnings: list[str] = []
    given: dict[tuple[str, str], tuple[Any, str]] = {}
    if file is None and DEFAULT_FILE.exists():
        file = DEFAULT_FILE
    layers = [
        _from_file(file, errors, warnings) if file is not None else {},
        _from_environment(environ, errors),
        {place: (str(value), "command line") for place, value in overrides.items()},
    ]
    for layer in layers:
        _drop_lower_secrets(given, layer)
        for place, (text, source) in layer.items():
            _convert(place, text, source, given, errors)
    _read_secret_files(given, errors)
    root = given.get(("magento", "root"), (None, ""))[0]
    if root is not None and not errors:
        for place, (text, source) in read_shop(root).items():
            if place not in given:
                _convert(place, text, source, given, errors)
    if errors:
        raise ConfigurationError("\n".join(errors))
    return Configured(
        settings=_filled({}, given),
        given={place: value for place, (value, _) in given.items()},
        sources={place: source for place, (_, source) in given.items()},
        warnings=tuple(warnings),
    )


def with_shop_values(configured: Configured, values: Values) -> Configured:
    """Adds what the shop's database says, where nobody else has given a value."""
    errors: list[str] = []
    given: dict[tuple[str, str], tuple[Any, str]] = {}
    for place, (text, source) in values.items():
        if place not in configured.sources:
            _convert(place, text, source, given, errors)
    if errors:
        raise ConfigurationError("\n".join(errors))
    return replace(
        configured,
        settings=_filled(configured.given, given),
        given={**configured.given, **{place: value for place, (value, _) in given.items()}},
        sources={**configured.sources, **{place: source for place, (_, source) in given.items()}},
    )


def sample_file() -> str:
    """A file with every key, its default, and a sentence about it; all commented out."""
    parts = ["# zithara-worker: configuration. Every key with its default; remove the # to set one."]
    for section in SECTIONS:
        parts.append(f"\n[{section}]")
        for key in (key for key in KEYS if key.section == section):
            unit = f" ({key.unit})" if key.unit else ""
            parts.append(f"# {key.doc}{unit}\n#{key.name} = {written(key.default)}".rstrip())
        if section == "retry":
            parts.append("\n[queues]\n# A queue whose name is not the module's.")
            parts += [f"#{topic} = zithara_{topic.split('.')[1]}_queue" for topic in TOPICS]
    return "\n".join(parts) + "\n"


# ---------------------------------------------------------------- the layers


def _from_file(path: Path, errors: list[str], warnings: list[str]) -> dict[tuple[str, str], tuple[str, str]]:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), default_section="\0")
    try:
        with path.open(encoding="utf-8") as stream:
            parser.read_file(stream)
            mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        text = " ".join(str(getattr(error, "strerror", None) or error).split())
        errors.append(f"cannot read the configuration file {path}: {text}")
        return {}
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for section in parser.sections():
        if section != "queues" and section not in SECTIONS:
            errors.append(f"{path}: section [{section}] is not known{_nearest(section, [*SECTIONS, 'queues'])}")
            continue
        for name, text in parser.items(section):
            found[section, name] = (text or "", f"{path} [{section}] {name}")
    secrets = [place for place in found if place in KEY_AT and KEY_AT[place].secret and found[place][0]]
    if secrets and mode & stat.S_IROTH:
        warnings.append(
            f"{path} holds a secret ([{secrets[0][0]}] {secrets[0][1]}) and everybody on this host can read it: "
            f"chmod 0640 {path}"
        )
    return found


def _from_environment(environ: Mapping[str, str], errors: list[str]) -> dict[tuple[str, str], tuple[str, str]]:
    known = {key.environment: key.place for key in KEYS}
    known |= {f"ZITHARA_WORKER_QUEUES_{topic.replace('.', '_').upper()}": ("queues", topic) for topic in TOPICS}
    found = {}
    for variable, text in environ.items():
        if not variable.startswith("ZITHARA_WORKER_"):
            continue
        if variable in known:
            found[known[variable]] = (text, f"environment {variable}")
        else:
            errors.append(f"environment variable {variable} names no setting{_nearest(variable, known)}")
    return found


def _drop_lower_secrets(given: dict[tuple[str, str], Any], layer: Mapping[tuple[str, str], Any]) -> None:
    """A secret given in a higher layer replaces a secret file of a lower one, and the other way round."""
    for (section, file_key), key in _FILE_KEYS.items():
        if (section, key) in layer and (section, file_key) not in layer:
            given.pop((section, file_key), None)
        elif (section, file_key) in layer and (section, key) not in layer:
            given.pop((section, key), None)


def _convert(
    place: tuple[str, str], text: str, source: str, given: dict[tuple[str, str], tuple[Any, str]], errors: list[str]
) -> None:
    section, name = place
    if section == "queues":
        problem = queue_problem(name, text.strip())
        if problem:
            errors.append(f"{source}: {problem}")
        else:
            given[place] = (text.strip(), source)
        return
    key = KEY_AT.get(place)
    if key is None:
        names = [each.name for each in KEYS if each.section == section]
        errors.append(f"{source}: there is no such key{_nearest(name, names)}")
        return
    try:
        given[place] = (key.read(text), source)
    except ValueError as error:
        errors.append(f"{source}: {error}{_seen(key, text)}")


def _seen(key: Key, text: str) -> str:
    return "" if key.secret else f" (it is {text.strip()[:100]!r})"


def _read_secret_files(given: dict[tuple[str, str], tuple[Any, str]], errors: list[str]) -> None:
    for (section, file_key), key in _FILE_KEYS.items():
        path, source = given.get((section, file_key), (None, ""))
        if path is None:
            continue
        if (section, key) in given:
            errors.append(f"{source}: give either {key} or {file_key}, not both")
            continue
        try:
            given[section, key] = (Secret(path.read_text(encoding="utf-8").partition("\n")[0].strip()), str(path))
        except (OSError, UnicodeDecodeError) as error:
            errors.append(f"{source}: cannot read {path}: {getattr(error, 'strerror', None) or error}")


def _filled(before: Mapping[tuple[str, str], Any], given: Mapping[tuple[str, str], tuple[Any, str]]) -> Settings:
    """Settings of all that is given; each section checks its values together. Raises ConfigurationError."""
    values = {**before, **{place: value for place, (value, _) in given.items()}}
    problems: list[str] = []
    sections: dict[str, Any] = {}
    for name, section in SECTIONS.items():
        try:
            sections[name] = section(**{key: value for (each, key), value in values.items() if each == name})
        except ConfigurationError as error:
            problems.append(str(error))
    if problems:
        raise ConfigurationError("\n".join(problems))
    return Settings(**sections, queues={key: value for (each, key), value in values.items() if each == QUEUES})


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}" if len(known) < 12 else ""
