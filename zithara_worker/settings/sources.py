"""Where each setting comes from: command line > environment > file > the shop > default.

Fills `Settings` and remembers the source of every value. It reads the INI file and files of secrets; the environment
and the shop's values are passed in, so it knows no database and no PHP.
"""

from __future__ import annotations

import configparser
import difflib
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zithara_worker.errors import ConfigurationError
from zithara_worker.settings.sections import KEY_AT, KEYS, QUEUES, SECTIONS, Settings, queue_problem
from zithara_worker.settings.values import ENVIRONMENT_PREFIX, Key, as_ini_text
from zithara_worker.topics import SHORT_NAMES, TOPICS, full_name

DEFAULT_FILE = Path("/etc/zithara-worker/zithara-worker.conf")
#: The source of a value that no other source has.
DEFAULT = "default"

#: (section, key)
Place = tuple[str, str]
#: Place -> (its text, and the source of it, for people)
Values = Mapping[Place, tuple[str, str]]
#: (value as Settings holds it, its source)
_Given = tuple[Any, str]
#: (the shop's root, places that have a value already) -> the values of its app/etc/env.php. Raises ConfigurationError
#: for a value that cannot be read, unless its place has one already.
ReadShop = Callable[[Path, Collection[Place]], Values]

#: Every secret may stand in a file of its own: the place of the file's key -> that of the secret.
_SECRET_FILES: Mapping[Place, Place] = {
    (key.section, f"{key.name}_file"): (key.section, key.name) for key in KEYS if key.secret
}
#: Keys that replace each other: host and unix_socket, a secret and its file. A value for one of them overrides all of
#: the group from sources of lower precedence.
_ALTERNATIVES: Mapping[Place, tuple[Place, ...]] = {
    place: group
    for group in ((("database", "host"), ("database", "unix_socket")), *_SECRET_FILES.items())
    for place in group
}
_ADDRESS = frozenset({("database", "host"), ("database", "port"), ("database", "unix_socket")})
#: Kubernetes sets these variables in every container when a service is called zithara-worker; they are no settings.
_SERVICE_LINK = re.compile(r"(SERVICE_(HOST|PORT)|PORT)(_[A-Z0-9_]+)?\Z")
_USER_IN_URL = re.compile(r"//[^/@]*@")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSettings:
    """The settings in force, and the source of each value that is not a default.

    `warnings`: sentences about what works but should be corrected.
    """

    settings: Settings
    sources: Mapping[Place, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def source(self, section: str, key: str) -> str:
        return self.sources.get((section, key), DEFAULT)


def load(
    file: Path | None,
    overrides: Mapping[Place, Any],
    environ: Mapping[str, str],
    read_shop: ReadShop,
    *,
    default_file: Path = DEFAULT_FILE,
) -> LoadedSettings:
    """The configuration from all sources except the shop's database, which `with_shop_values` adds.

    `file`: the INI file; None: `default_file`, if there is one. `overrides`: from the command line, as text or as the
    values that Settings holds. Raises ConfigurationError with one line for each thing that is wrong.
    """
    errors: list[str] = []
    warnings: list[str] = []
    given: dict[Place, _Given] = {}
    layers: tuple[Mapping[Place, tuple[Any, str]], ...] = (
        _from_file(file or default_file, errors, warnings, optional=file is None),
        _from_environment(environ, errors),
        {place: (value, "command line") for place, value in overrides.items()},
    )
    for layer in layers:
        # Values that a higher layer overrides are checked too, so that a slip is reported before it has an effect.
        values = _converted(layer, errors)
        for place, (value, _) in values.items():
            for other in _ALTERNATIVES.get(place, ()) if value else ():
                given.pop(other, None)
        given.update(values)
    _read_secret_files(given, errors, warnings)
    root, _ = given.get(("magento", "root"), (None, ""))
    if root is not None and not errors:
        placed = _places_with_value(given)
        given |= _converted(_still_wanted(read_shop(root, placed), placed), errors)
    if errors:
        raise ConfigurationError("\n".join(errors))
    return LoadedSettings(
        settings=_settings(given),
        sources={place: source for place, (_, source) in given.items()},
        warnings=tuple(warnings),
    )


def with_shop_values(configured: LoadedSettings, values: Values) -> LoadedSettings:
    """Adds the values of the shop's database for keys that have no other source.

    A number that the PHP module allows but the worker does not is left out with a warning. Raises ConfigurationError
    when the credentials or the webhook URL cannot be used.
    """
    errors: list[str] = []
    warnings: list[str] = []
    settings = configured.settings
    sources = dict(configured.sources)
    for place, (text, source) in values.items():
        if place in configured.sources:
            continue
        section, name = place
        problems: list[str] = []
        converted = _converted({place: (text, source)}, problems)
        try:
            for value, _ in converted.values():
                settings = replace(settings, **{section: replace(getattr(settings, section), **{name: value})})
                sources[place] = source
        except ConfigurationError as error:
            problems.append(f"{source}: {error}")
        if section == "zithara":
            errors += [f"{problem}; correct it in the shop, or set [{section}] {name}" for problem in problems]
        else:
            kept = as_ini_text(getattr(getattr(settings, section), name))
            warnings += [
                f"{problem}; [{section}] {name} stays {kept}: set it to end this warning" for problem in problems
            ]
    if errors:
        raise ConfigurationError("\n".join(errors))
    return LoadedSettings(settings=settings, sources=sources, warnings=(*configured.warnings, *warnings))


def given_by_program(settings: Settings) -> LoadedSettings:
    """The settings that an embedding program made. A value that differs from its default was given; the shop may give
    the others."""
    plain = Settings()
    sources = {
        key.place: "program"
        for key in KEYS
        if getattr(getattr(settings, key.section), key.name) != getattr(getattr(plain, key.section), key.name)
    }
    return LoadedSettings(settings=settings, sources=sources)


# ---------------------------------------------------------------- the layers


def _from_file(path: Path, errors: list[str], warnings: list[str], *, optional: bool) -> Values:
    parser = configparser.ConfigParser(
        interpolation=None, delimiters=("=",), default_section="\0", empty_lines_in_values=False
    )
    try:
        with path.open(encoding="utf-8-sig") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            parser.read_file(stream)
    except FileNotFoundError:
        if not optional:
            errors.append(f"there is no configuration file {path}: correct --config, or create the file")
        return {}
    except OSError as error:
        errors.append(f"cannot read the configuration file {path}: {error.strerror}; correct its owner or mode")
        return {}
    except UnicodeDecodeError as error:
        errors.append(f"{path}: the byte at offset {error.start} is not UTF-8: save the file as UTF-8")
        return {}
    except configparser.Error as error:
        errors += [f"{path}{problem}" for problem in _malformed(error)]
        return {}
    found: dict[Place, tuple[str, str]] = {}
    for section in parser.sections():
        if section not in SECTIONS and section != QUEUES:
            errors.append(f"{path}: there is no section [{section}]{_nearest(section, [*SECTIONS, QUEUES])}")
            continue
        for name, text in parser.items(section):
            source = f"{path} [{section}] {name}"
            if "\n" in text:
                errors.append(
                    f"{source}: the next line is indented, so it would belong to this value: a value is one line"
                )
                continue
            place = (section, full_name(name) if section == QUEUES else name)
            _add(found, place, text, source, errors)
    secrets = [f"[{key.section}] {key.name}" for key in KEYS if key.secret and found.get(key.place, ("", ""))[0]]
    if secrets and mode & stat.S_IROTH:
        warnings.append(
            f"{path} holds {' and '.join(secrets)}, and everybody on this host can read it: chmod o= {path}"
        )
    return found


def _add(found: dict[Place, tuple[str, str]], place: Place, text: str, source: str, errors: list[str]) -> None:
    """Only a queue can be given twice in one source: under the short and the full name of its topic."""
    if place in found:
        errors.append(f"{source}: {found[place][1]} gives the same topic a queue; remove one of the two")
    found[place] = (text, source)


def _malformed(error: configparser.Error) -> Iterator[str]:
    """What is wrong with the form of the file, by line. The line itself is not quoted: it may hold a secret."""
    if isinstance(error, configparser.DuplicateSectionError):
        yield f", line {error.lineno}: section [{error.section}] is there twice: join the two"
    elif isinstance(error, configparser.DuplicateOptionError):
        yield f", line {error.lineno}: [{error.section}] {error.option} is there twice: remove one"
    elif isinstance(error, configparser.MissingSectionHeaderError):
        yield f", line {error.lineno}: a section such as [worker] must come first"
    elif isinstance(error, configparser.ParsingError):
        for number, _ in error.errors:
            yield f", line {number}: is neither 'key = value', nor a [section], nor a comment that begins with #"
    else:
        yield f": not an INI file ({type(error).__name__})"


def _from_environment(environ: Mapping[str, str], errors: list[str]) -> Values:
    known: dict[str, Place] = {key.environment: key.place for key in KEYS}
    known |= {
        f"{ENVIRONMENT_PREFIX}{QUEUES}_{name.replace('.', '_')}".upper(): (QUEUES, full_name(name))
        for name in (*TOPICS, *SHORT_NAMES)
    }
    found: dict[Place, tuple[str, str]] = {}
    for variable, text in environ.items():
        if variable in known:
            _add(found, known[variable], text, f"environment {variable}", errors)
        elif variable.startswith(ENVIRONMENT_PREFIX) and not _SERVICE_LINK.match(
            variable.removeprefix(ENVIRONMENT_PREFIX)
        ):
            errors.append(f"environment {variable}: there is no such setting{_nearest(variable, known)}")
    return found


def _read_secret_files(given: dict[Place, _Given], errors: list[str], warnings: list[str]) -> None:
    """Adds the secret that each file holds: its first line."""
    for file_place, place in _SECRET_FILES.items():
        path, source = given.get(file_place, (None, ""))
        if path is None:
            continue
        if given.get(place, (None, ""))[0]:
            errors.append(f"{source}: [{place[0]}] {place[1]} is given too; remove one of the two")
            continue
        try:
            with path.open(encoding="utf-8") as stream:
                mode = os.fstat(stream.fileno()).st_mode
                text = stream.readline().rstrip("\r\n")
        except OSError as error:
            errors.append(f"{source}: cannot read {path}: {error.strerror}; correct the path, or its owner or mode")
            continue
        except UnicodeDecodeError:
            errors.append(f"{source}: {path} is not UTF-8; it should hold the secret and nothing else")
            continue
        if not text:
            errors.append(f"{source}: the first line of {path} is empty; it should hold the secret")
            continue
        if mode & stat.S_IROTH:
            warnings.append(f"{path} holds a secret, and everybody on this host can read it: chmod o= {path}")
        given |= _converted({place: (text, f"{path}, named by {source}")}, errors)


def _places_with_value(given: Mapping[Place, _Given]) -> Collection[Place]:
    """The places for which the shop is not asked. An empty host or socket is no value; an empty password is one."""
    return {place for place, (value, _) in given.items() if value or place not in _ADDRESS}


def _still_wanted(values: Values, placed: Collection[Place]) -> Values:
    """The shop's values for other places. Host, port and socket belong together: a host that is given already must not
    be combined with the shop's port."""
    elsewhere = any(place in placed for place in _ADDRESS if place[1] != "port")
    return {
        place: value for place, value in values.items() if place not in placed and not (elsewhere and place in _ADDRESS)
    }


# ---------------------------------------------------------------- values


def _converted(layer: Mapping[Place, tuple[Any, str]], errors: list[str]) -> dict[Place, _Given]:
    """The layer's values as Settings holds them. For each value that cannot be used, a line is added to `errors`."""
    found: dict[Place, _Given] = {}
    for (section, name), (value, source) in layer.items():
        if section == QUEUES:
            problem = queue_problem(name, value)
            if problem:
                errors.append(f"{source}: {problem} (it is {value!r})")
            else:
                found[section, name] = (value, source)
            continue
        key = KEY_AT.get((section, name))
        if key is None:
            names = [each.name for each in KEYS if each.section == section]
            errors.append(f"{source}: there is no such key{_nearest(name, names)}")
            continue
        try:
            found[section, name] = (key.read(value), source)
        except ValueError as error:
            errors.append(f"{source}: {error}{_seen(key, value)}")
    return found


def _seen(key: Key, value: object) -> str:
    if key.secret:
        return ""
    return f" (it is {_USER_IN_URL.sub('//***@', str(value))[:100]!r})"


def _settings(given: Mapping[Place, _Given]) -> Settings:
    """Raises ConfigurationError when values contradict each other that are valid by themselves."""
    problems: list[str] = []
    sections: dict[str, Any] = {}
    for name, section in SECTIONS.items():
        try:
            sections[name] = section(**{key: value for (its, key), (value, _) in given.items() if its == name})
        except ConfigurationError as error:
            problems.append(str(error))
    if problems:
        raise ConfigurationError("\n".join(problems))
    return Settings(**sections, queues={topic: queue for (its, topic), (queue, _) in given.items() if its == QUEUES})


def _nearest(name: str, known: Collection[str]) -> str:
    """The end of a sentence about an unknown name: the name that was probably meant, else those there are."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are {', '.join(known)}" if len(known) < 15 else "; 'zithara-worker config --sample' shows all"
