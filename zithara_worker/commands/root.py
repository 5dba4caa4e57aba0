"""The command itself: the options that all commands share, exit codes, and what commands need of their surroundings."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from zithara_worker.commands.signals import Signals
from zithara_worker.errors import (
    AS_OPERATOR,
    ConfigurationError,
    DatabaseUnavailable,
    NotGranted,
    ZitharaWorkerError,
)
from zithara_worker.settings.sources import LoadedSettings
from zithara_worker.topics import SHORT_NAMES, TOPICS, full_name
from zithara_worker.version import VERSION

if TYPE_CHECKING:  # `preview` runs without the database driver
    from zithara_worker.database.session import Database
    from zithara_worker.logs.audit import Audit

EXIT_FAILED = 1
EXIT_DATABASE = 75
EXIT_CONFIGURATION = 78

#: Command -> the module of this package that defines it; imported only when it is called.
_COMMANDS = {
    "consume": "consume",
    "relay": "relay",
    "publish": "publish",
    "preview": "preview",
    "reconcile": "reconcile",
    "status": "status",
    "check": "check",
    "failed": "failed",
    "ledger": "ledger",
    "trace": "trace",
    "pause": "pause",
    "resume": "pause",
    "doctor": "doctor",
    "install": "install",
    "config": "config",
    "sandbox": "sandbox",
}


@dataclass
class Context:
    """How the program was called, and what follows from it."""

    config_file: Path | None
    overrides: dict[tuple[str, str], Any] = field(default_factory=dict)
    signals: Signals = field(default_factory=Signals)

    @cached_property
    def configured(self) -> LoadedSettings:
        """The configuration without the settings that stand in the shop's database. Raises ConfigurationError."""
        return self.read_again()

    def read_again(self) -> LoadedSettings:
        """Reads the configuration once more. Raises ConfigurationError."""
        from zithara_worker.shop.configuration import configure

        return configure(self.config_file, self.overrides, os.environ)

    def start_logging(self) -> None:
        """Logs go where the configuration says from now on; warnings about the configuration come first."""
        from zithara_worker.logs import handlers as logs

        logs.configure(self.configured.settings.logging)
        logs.warn_of(self.configured.warnings)

    @contextmanager
    def database(self, **options: Any) -> Iterator[Database]:
        """A session on the shop's database, closed at the end. It connects with its first statement. `options`: of
        Database."""
        from zithara_worker.database.session import Database

        database = Database(self.configured.settings.database, **options)
        try:
            yield database
        finally:
            database.close()

    @contextmanager
    def audit(self) -> Iterator[Audit]:
        """Takes the audit lines of an operator's action: writes them to the configured file, or drops them.

        Raises ZitharaWorkerError when the file is required and cannot be written, before anything is done.
        """
        from zithara_worker.logs.audit import AuditFile

        settings = self.configured.settings.logging
        if settings.file is not None:
            self.start_logging()
        if settings.audit_file is None:
            yield lambda records: None
            return
        file = AuditFile(settings.audit_file, required=settings.audit_required)
        try:
            if settings.audit_required and not file.ready():
                raise ZitharaWorkerError(
                    f"the audit file {settings.audit_file} cannot be written ({file.problem}) and [logging] "
                    "audit_required is true: nothing was done; free space or correct its permissions"
                )
            yield file.append
        finally:
            file.close()


@contextmanager
def as_operator() -> Iterator[None]:
    """Around what the worker's account may not do, and need not: an error about privileges names the account that
    may."""
    try:
        yield
    except NotGranted as error:
        raise NotGranted(error.seen, AS_OPERATOR) from error


def operator_name() -> str:
    """Who gives the command: 'anna@shop1', 'anna as root@shop1'."""
    from zithara_worker.logs.audit import current_user

    return f"{current_user()}@{socket.gethostname()}"


class Commands(click.Group):
    """Imports each command when it is needed, so that `preview` runs without the database driver."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"zithara_worker.commands.{_COMMANDS[cmd_name]}"), cmd_name)
        return command


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), metavar="FILE", help="Configuration file (INI)."
)
@click.option("--log-level", metavar="L", help="DEBUG, INFO, WARNING or ERROR.")
@click.option("--log-format", metavar="F", help="json or text.")
@click.version_option(VERSION, prog_name="zithara-worker")
@click.pass_context
def command(ctx: click.Context, config_file: Path | None, log_level: str | None, log_format: str | None) -> None:
    """Delivers the Zithara events of a Magento 2 shop's own MySQL queue to the Zithara CRM.

    \b
    Example:
      zithara-worker --config /etc/zithara-worker/zithara-worker.conf consume zithara.order.events
    """
    context = Context(config_file, signals=ctx.obj or Signals())
    if log_level is not None:
        context.overrides["logging", "level"] = log_level
    if log_format is not None:
        context.overrides["logging", "format"] = log_format
    ctx.obj = context


#: A topic under its short or its full name; a slip gets the list of both.
_TOPIC = click.Choice([*SHORT_NAMES, *TOPICS])


def topic_argument(*, many: bool = False) -> Callable[[Any], Any]:
    """Adds the argument TOPIC, or several as `topics` if `many`; the command gets full names."""
    return click.argument(
        "topics" if many else "topic",
        type=_TOPIC,
        callback=lambda _ctx, _param, given: tuple(map(full_name, given)) if many else full_name(given),
        metavar="[TOPIC]..." if many else "TOPIC",
        nargs=-1 if many else 1,
        required=not many,
    )


def topic_option() -> Callable[[Any], Any]:
    """--topic TOPIC, as often as wanted; the command is called with the full names."""
    return click.option(
        "--topic",
        "topics",
        type=_TOPIC,
        callback=lambda _ctx, _param, given: tuple(map(full_name, given)),
        multiple=True,
        metavar="TOPIC",
        help="Only of this topic.",
    )


def _fail(text: str, code: int) -> NoReturn:
    click.echo(f"zithara-worker: {text}", err=True)
    sys.exit(code)


def main(signals: Signals) -> NoReturn:
    """Runs the command. An expected error is one text on standard error and an exit code, never a traceback.

    `signals`: already caught, if the command is `consume` or `relay`.
    """
    # httpx loads its own command line where rich is installed, as Debian's python3-httpx has it: 4 MB and 50 ms. Told
    # that rich is missing, it goes on without, as it is documented to (extra `cli`). A program that embeds the worker
    # keeps its httpx whole.
    sys.modules["rich"] = None  # type: ignore[assignment]  # Python's own way to say that a module is not there
    try:
        command.main(prog_name="zithara-worker", standalone_mode=True, obj=signals)
    except ConfigurationError as error:
        _fail(str(error), EXIT_CONFIGURATION)
    except DatabaseUnavailable as error:
        _fail(str(error), EXIT_DATABASE)
    except ZitharaWorkerError as error:
        _fail(str(error), EXIT_FAILED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
    sys.exit(0)
