"""`doctor`: everything that can be wrong between shop, database, API and this host, one small check each.

A check is a function that yields findings; it is handed what it looks at. This module puts them in order, leaves out
those that make no sense after a failure, and turns an error within a check into a finding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from zithara_worker.database.session import Database
from zithara_worker.doctor import api, configuration, database, host, queues, shop
from zithara_worker.doctor.finding import Finding, Level, failed, warning
from zithara_worker.errors import ConfigurationError, DatabaseUnavailable, ZitharaWorkerError
from zithara_worker.monitor import fleet
from zithara_worker.settings.sources import LoadedSettings
from zithara_worker.shop.configuration import ShopConfiguration, read_configuration
from zithara_worker.shop.deployment_config import deployment_config

__all__ = ["Doctor", "Finding", "Level", "unreadable"]

unreadable = configuration.unreadable


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """`complete` adds to the configuration what the shop says (`app.complete`). `etc`, `run` and `utc` are
    this host's own unless a test says otherwise."""

    configured: LoadedSettings
    database: Database
    complete: Callable[[LoadedSettings, ShopConfiguration], LoadedSettings]
    etc: Path = Path("/etc")
    run: host.Run = host.run_command
    utc: Callable[[], float] = time.time

    def examine(self) -> Iterator[Finding]:
        """Findings, each as soon as it is known."""
        configured = self.configured
        yield from configuration.sources(configured)
        yield from configuration.permissions(configured)
        yield from configuration.certificate_check(configured)
        found: ShopConfiguration | None = None
        for finding_or_shop in self._database_side():
            if isinstance(finding_or_shop, ShopConfiguration):
                found = finding_or_shop
            else:
                yield finding_or_shop
        yield from queues.cron(configured.settings.magento.root)
        yield from self._api_side(found)
        yield from host.programs(self.etc, self.run)
        yield from host.log_files(configured.settings.logging)

    def _database_side(self) -> Iterator[Finding | ShopConfiguration]:
        """Findings, and the shop's configuration where it can be read."""
        try:
            yield from database.server(self.database)
        except (DatabaseUnavailable, ConfigurationError) as error:
            yield failed(
                "database",
                str(error),
                "check that the server runs, and [database] host, port, unix_socket, user, password and name",
            )
            return
        tables = [*self._guarded("tables.magento", lambda: database.magento_tables(self.database))]
        tables += self._guarded("tables.worker", lambda: database.worker_tables(self.database))
        yield from tables
        verified = self.configured.settings.database.ssl_ca is not None
        yield from self._guarded("database.encryption", lambda: database.encryption(self.database, verified=verified))
        yield from self._guarded("database.isolation", lambda: database.session(self.database))
        yield from self._guarded("database.clock", lambda: database.clock(self.database, self.utc))
        if not database.has_queue_tables(self.database):
            return
        yield from self._guarded("privileges", lambda: database.privileges(self.database))
        yield from self._guarded("database.index", lambda: database.optional_index(self.database))
        try:
            files = deployment_config(self.configured.settings.magento.root)
            read = read_configuration(self.database, files)
        except ZitharaWorkerError as error:
            yield failed("shop.configuration", str(error), "see the findings above")
            read = None
        if read is not None:
            yield read
            yield from shop.enabled(read)
            yield from shop.active_row(read)
            yield from shop.webhook_url(read, self.configured.settings.zithara.webhook_url)
            yield from shop.event_types(read)
            yield from shop.cleanup(read, files_read=files is not None)
        yield from self._queue_side(
            read, owned=all(each.level is not Level.FAILED for each in tables if each.check == "tables.worker")
        )

    def _queue_side(self, read: ShopConfiguration | None, *, owned: bool) -> Iterator[Finding]:
        """`owned`: the worker's own tables are there."""
        overrides = self.configured.settings.queues
        yield from self._guarded("queues", lambda: queues.rows(self.database, overrides))
        try:
            found = queues.present(self.database, overrides)
            now = fleet.now_utc(self.database)
        except ZitharaWorkerError:
            return  # "queues" has told it
        if not found:
            return
        yield from self._guarded("published", lambda: queues.published(self.database, found, now))
        yield from self._guarded("published.unlinked", lambda: queues.unlinked(self.database))
        if read is not None:
            lifetime = read.new_messages_lifetime_minutes
            yield from self._guarded("expiry", lambda: queues.near_deletion(self.database, found, lifetime, now))
        if not owned:
            return
        yield from self._guarded("in_progress", lambda: queues.in_progress(self.database, found, now))
        yield from self._guarded("php_consumers.rejected", lambda: queues.rejected_elsewhere(self.database, found))
        yield from self._guarded("failed", lambda: queues.failures(self.database, found, now))
        yield from self._guarded("workers", lambda: queues.workers(self.database, found, now))
        yield from self._guarded("paused", lambda: queues.paused(self.database, now))

    def _api_side(self, found: ShopConfiguration | None) -> Iterator[Finding]:
        configured = self.configured
        if found is not None:
            try:
                configured = self.complete(configured, found)
            except ConfigurationError as error:
                yield from configuration.unreadable(error)
                return
            told = set(self.configured.warnings)
            for text in configured.warnings:
                if text not in told:
                    yield warning(
                        "shop.settings", text, "correct it in the shop, or set it in the worker's configuration"
                    )
        yield from api.checks(configured.settings.zithara, self.utc)

    def _guarded(self, check: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
        """An error within a check is a finding, and the other checks go on."""
        try:
            return list(look())
        except ZitharaWorkerError as error:
            return [failed(check, str(error), "see the text")]
