"""The manual pages as roff (man(7)): the command's from click's help, the configuration file's from the table of keys.

The texts stand in the commands and in `zithara_worker.settings`, so that page, `--help` and sample file say the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from install_steps import STEPS
from zithara_worker.settings.sections import KEYS, SECTIONS
from zithara_worker.settings.sources import DEFAULT_FILE
from zithara_worker.settings.values import Key, as_ini_text
from zithara_worker.topics import TOPIC_TABLE
from zithara_worker.version import VERSION

#: Exit code -> when (`zithara_worker.commands.root`).
_EXIT_CODES = {
    "0": "Done, or asked to stop.",
    "1": "A check or a command failed.",
    "2": "The command line is wrong.",
    "75": "The database cannot be reached. (consume and relay wait for it instead.)",
    "78": "The configuration is wrong; the message names file, section and key.",
}


def command_manual(command: click.Group, *, program: str = "zithara-worker", date: str) -> str:
    """zithara-worker(1). `date`: of the release, as YYYY-MM-DD."""
    context = click.Context(command, info_name=program, **command.context_settings)
    summary, _, rest = _help(command).partition("\n\n")
    lines = [
        *_header(program, 1, date, _first_sentence(summary)),
        ".SH SYNOPSIS",
        rf".B {_escaped(program)}",
        r"[\fIOPTIONS\fR] \fICOMMAND\fR [\fIARGS\fR]...",
        ".SH DESCRIPTION",
        *_paragraphs(summary + "\n\n" + rest),
        "A message travels from the shop's queue tables to the Zithara API. Messages of one order, customer or cart",
        "are delivered one at a time and in order, each at least once. The topics are",
        *_topic_list(),
        ".SH OPTIONS",
        *_options(command, context),
        ".SH COMMANDS",
    ]
    for name in command.list_commands(context):
        lines += _command(command, name, context)
    lines += [".SH INSTALLATION", "As root; magento stands for the shop's database:"]
    for step in STEPS:
        lines += [".PP", _escaped(f"{step.what[:1].upper()}{step.what[1:]}:"), ".RS", ".nf"]
        lines += [*map(_escaped, step.commands), ".fi", ".RE"]
    lines += [".SH EXIT STATUS"]
    for code, meaning in _EXIT_CODES.items():
        lines += [".TP", f".B {code}", _escaped(meaning)]
    lines += [
        ".SH SIGNALS",
        ".TP",
        '.BR SIGTERM ", " SIGINT',
        "consume stops claiming messages, lets the requests in flight finish for up to [worker] shutdown_timeout,",
        "releases the other messages and exits with 0. A second one ends it at once; its messages become free when",
        "their leases expire. relay stores what it has taken, or leaves it in RabbitMQ, and exits with 0.",
        ".TP",
        ".B SIGHUP",
        "consume and relay read the configuration again and reopen their log files.",
        ".SH ENVIRONMENT",
        "Each key of the configuration file can be set by a variable, as",
        rf".B {_escaped('ZITHARA_WORKER_DATABASE_PASSWORD')}",
        "for [database] password. Options of the command line are stronger, the file is weaker. Under systemd,",
        '.BR NOTIFY_SOCKET " and " WATCHDOG_USEC',
        "are obeyed.",
        ".SH FILES",
        ".TP",
        f".I {_escaped(str(DEFAULT_FILE))}",
        "The configuration, unless \\-\\-config names another one.",
        ".SH SEE ALSO",
        rf".BR {_escaped(program)}.conf (5),",
        ".BR supervisorctl (1),",
        ".BR systemctl (1)",
    ]
    return "\n".join(lines) + "\n"


def configuration_manual(*, program: str = "zithara-worker", date: str) -> str:
    """zithara-worker.conf(5). `date`: of the release, as YYYY-MM-DD."""
    lines = [
        *_header(f"{program}.conf", 5, date, f"configuration of {program}"),
        ".SH DESCRIPTION",
        "An INI file: sections in brackets, then lines of",
        '.IR key " = " value .',
        "A line that begins with # is a comment. A section or key that does not exist is an error, and so is a value",
        "out of range: the program then exits with 78 and names file, section and key.",
        ".PP",
        "A value is taken from the first of these that has one: the command line, the environment, this file, the shop",
        "(its app/etc/env.php and its database), the default.",
        rf".B {_escaped(program)} config",
        "prints each value with where it came from.",
        ".PP",
        "The file may hold secrets: only root and the worker's group should be able to read it. Secrets can stand in",
        "files of their own, which password_file and client_secret_file name.",
    ]
    for section in SECTIONS:
        lines += [f".SH [{_escaped(section)}]"]
        for key in (key for key in KEYS if key.section == section):
            lines += _key(key)
        if section == "retry":
            lines += [
                ".SH [queues]",
                "A queue whose name is neither the module's nor its topic's. The keys are topics:",
                *_topic_list(),
            ]
    lines += [".SH EXAMPLE", ".nf", *map(_escaped, _EXAMPLE.splitlines()), ".fi"]
    lines += [".SH SEE ALSO", rf".BR {_escaped(program)} (1)"]
    return "\n".join(lines) + "\n"


_EXAMPLE = """\
[database]
user = zithara_worker
password_file = /etc/zithara-worker/database-password
name = magento

[worker]
concurrency = 32"""


def _header(title: str, section: int, date: str, summary: str) -> list[str]:
    return [
        f'.TH "{_escaped(title.upper())}" {section} {date} "zithara\\-worker {VERSION}"',
        ".ad l",
        ".nh",
        ".SH NAME",
        rf"{_escaped(title)} \- {_escaped(summary)}",
    ]


def _first_sentence(text: str) -> str:
    """The description that apropos shows behind the name: the first sentence in lower case, without its full stop."""
    sentence = " ".join(text.split()).partition(". ")[0].rstrip(".")
    return sentence[:1].lower() + sentence[1:]


def _help(command: click.Command) -> str:
    return re.sub(r"[ \t]+\n", "\n", (command.help or "").strip())


def _paragraphs(text: str) -> Iterator[str]:
    """click's help text: paragraphs, and blocks after a \\b that keep their lines."""
    for block in re.split(r"\n\s*\n", text.strip()):
        if not block.strip():
            continue
        yield ".PP"
        if block.lstrip().startswith("\b"):
            head, *rest = block.lstrip().lstrip("\b").strip("\n").splitlines()
            yield _escaped(head.strip())
            yield from (".RS", ".nf", *(_escaped(line.strip()) for line in rest), ".fi", ".RE")
        else:
            yield _escaped(" ".join(block.split()))
    yield ".PP"


def _command(group: click.Group, name: str, parent: click.Context) -> Iterator[str]:
    command = group.get_command(parent, name)
    if command is None or command.hidden:
        return
    context = click.Context(command, info_name=name, parent=parent, **command.context_settings)
    yield f".SS {_escaped(' '.join(context.command_path.split()[1:]))}"
    yield rf".B {_escaped(context.command_path)}"
    yield _escaped(" ".join(command.collect_usage_pieces(context)))
    yield from _paragraphs(_help(command))
    yield from _options(command, context)
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            yield from _command(command, each, context)


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[1]:  # arguments stand in the usage line
            names, meaning = record
            yield from (".TP", rf".B {_escaped(names)}", _escaped(" ".join(meaning.split())))


def _key(key: Key) -> Iterator[str]:
    default = as_ini_text(key.default)
    yield ".TP"
    yield rf".BI {_escaped(key.name)} {_quoted(' = ' + (default or '...'))}"
    yield _escaped(key.doc)
    unit = f", in {key.unit}" if key.unit else ""
    fallback = f"Default: {default}." if default else "No default."
    yield ".br"
    yield _escaped(f"It must be {key.kind.wants}{unit}. {fallback}")
    yield from (".br", _escaped(f"Environment: {key.environment}"))


def _topic_list() -> Iterator[str]:
    for topic in TOPIC_TABLE.values():
        yield from (".IP", rf".BR {_escaped(topic.name)} {_quoted(f', or {topic.short_name}')}")
    yield ".PP"


def _quoted(text: str) -> str:
    return '"' + _escaped(text).replace('"', r"\(dq") + '"'


def _escaped(text: str) -> str:
    """One line of text that roff prints unchanged, with a leading full stop, hyphens and other scripts."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("~", "\\(ti").replace("^", "\\(ha")
    text = "".join(character if ord(character) < 128 else f"\\[u{ord(character):04X}]" for character in text)
    return "\\&" + text if text[:1] in (".", "'") else text
