"""Checks of where the settings come from, and of who can read them."""

from __future__ import annotations

from collections.abc import Iterator

from zithara_worker.doctor.finding import Finding, failed, ok, warning
from zithara_worker.errors import ConfigurationError
from zithara_worker.settings.sources import LoadedSettings


def unreadable(error: ConfigurationError) -> Iterator[Finding]:
    """One finding for each thing that is wrong with the configuration."""
    for line in str(error).splitlines():
        yield failed("configuration", line, "correct it; 'zithara-worker config --sample' shows every key")


def sources(configured: LoadedSettings) -> Iterator[Finding]:
    """Which files and variables have a say."""
    named = {source.partition(" [")[0].partition(", named by")[0] for source in configured.sources.values()}
    where = ", ".join(sorted(named)) or "defaults only"
    yield ok("configuration", f"read from {where}")


def permissions(configured: LoadedSettings) -> Iterator[Finding]:
    """What reading the configuration has warned of: secrets that everybody on this host can read, above all."""
    for text in configured.warnings:
        found, _, remedy = text.rpartition(": ")
        yield warning("configuration.permissions", found or text, remedy if found else "see the text")


def certificate_check(configured: LoadedSettings) -> Iterator[Finding]:
    if not configured.settings.zithara.verify:
        yield warning(
            "configuration.verify",
            "the API's certificate is not checked: anybody on the way can read customers' data",
            "set [zithara] verify = true, and ca_file if the authority is your own",
        )
