"""What the operator's commands share: an open database, who is asking, and the audit file."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from zithara_worker.commands.root import Context
from zithara_worker.database.session import Database
from zithara_worker.errors import ZitharaWorkerError
from zithara_worker.logs.audit import AuditFile, current_user
from zithara_worker.queue.operator import Audit


@contextmanager
def shop_database(context: Context) -> Iterator[Database]:
    """The shop's database, closed at the end."""
    from zithara_worker.worker.worker import open_database

    database = open_database(context.configured.settings)
    try:
        yield database
    finally:
        database.close()


@contextmanager
def audit_file(context: Context) -> Iterator[Audit]:
    """Where the lines of an operator's action go: the configured audit file, or nowhere.

    Raises ZitharaWorkerError before anything is done when the file is required and cannot be written.
    """
    settings = context.configured.settings.logging
    if settings.file is not None:
        context.start_logging()
    if settings.audit_file is None:
        yield lambda records: None
        return
    file = AuditFile(settings.audit_file, required=settings.audit_required)
    try:
        if settings.audit_required and not file.ready():
            raise ZitharaWorkerError(
                f"the audit file {settings.audit_file} cannot be written ({file.problem}) and [logging] audit_required "
                "is true: nothing was done; free space or correct its permissions"
            )
        yield file.append
    finally:
        file.close()


def operator_name() -> str:
    """Who gives a command: 'anna@shop1', 'anna as root@shop1'."""
    return f"{current_user()}@{socket.gethostname()}"
