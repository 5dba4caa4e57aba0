"""Checks of what `reconcile` needs and last found."""

from __future__ import annotations

from collections.abc import Iterator

from zithara_worker.database.session import Database
from zithara_worker.doctor.finding import Finding, ok, warning
from zithara_worker.errors import NotGranted
from zithara_worker.monitor.reconciliations import read_results
from zithara_worker.shop.readers import READERS
from zithara_worker.units import duration


def checks(database: Database, now_utc: float) -> Iterator[Finding]:
    """Whether this account may compare the shop with Zithara, and what was found last. A worker's account may not, and
    need not."""
    lacking = _lacking(database)
    may = "this account may run reconcile" + ("" if not lacking else f" only with more rights: it lacks {lacking}")
    results = [each for each in read_results(database) if each.judged_utc is not None]
    if not results:
        yield ok("reconcile", f"it never ran, so nothing says whether the CRM is complete; {may}")
    for each in results:
        ago = duration(now_utc - (each.judged_utc or now_utc))
        if each.wrong:
            yield warning(
                "reconcile",
                f"{each.wrong} of {each.total} {each.kind} were not with Zithara {ago} ago; {may}",
                f"zithara-worker reconcile {each.kind}, and --publish for what is missing",
            )
        else:
            yield ok("reconcile", f"all {each.total} {each.kind} of its window were with Zithara {ago} ago; {may}")


def _lacking(database: Database) -> str:
    """What the account lacks, as text; "" if nothing."""
    try:
        for reader in [each(database) for each in READERS]:
            reader.page(0, 1, since=None, until=None)
            reader.build([0])
    except NotGranted:
        return "the shop's tables ('zithara-worker install --print --operator ACCOUNT')"
    try:
        database.execute("privilege_publish_message")
        database.execute("privilege_publish_status")
    except NotGranted:
        return "INSERT on the queue, for --publish"
    return ""
