"""`doctor`: all that can be wrong between shop, database, API and this host, one small check each.

A check is a function that is given what it looks at and yields findings. This module puts the checks in order, leaves
out those that need something an earlier one did not find, and turns an error within a check into a finding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from zithara_worker.database import schema
from zithara_worker.database.session import Database
from zithara_worker.doctor import api, cluster, completeness, database, host, ledger, queues, routing, shop
from zithara_worker.doctor.finding import Finding, Level, failed, warning
from zithara_worker.doctor.shop import unreadable
from zithara_worker.errors import ConfigurationError, DatabaseUnavailable, ZitharaWorkerError
from zithara_worker.monitor import fleet
from zithara_worker.queue.queues import queues_present
from zithara_worker.settings.sources import LoadedSettings
from zithara_worker.shop.configuration import ShopConfiguration, complete, read_configuration
from zithara_worker.shop.deployment_config import deployment_config

__all__ = ["Doctor", "Finding", "Level", "unreadable"]


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """`etc`, `run` and `utc` are this host's own; a test gives others."""

    configured: LoadedSettings
    database: Database
    etc: Path = Path("/etc")
    run: host.Run = host.run_command
    utc: Callable[[], float] = time.time

    def examine(self) -> Iterator[Finding]:
        """Findings, each as soon as it is known."""
        settings = self.configured.settings
        yield from shop.sources(self.configured)
        yield from shop.permissions(self.configured)
        yield from shop.certificate_check(self.configured)
        found = yield from self._database_side()
        yield from queues.cron(settings.magento.root)
        yield from self._api_side(found)
        yield from host.programs(self.etc, self.run)
        yield from host.log_files(settings.logging)

    def _database_side(self) -> Generator[Finding, None, ShopConfiguration | None]:
        """Returns the shop's configuration; None where it cannot be read."""
        settings = self.configured.settings
        try:
            yield from database.server(self.database)
        except (DatabaseUnavailable, ConfigurationError) as error:
            yield _away(error)
            return None
        yield from self._guarded("cluster", lambda: cluster.nodes(self.database))
        yield from self._guarded(
            "cluster.addresses", lambda: cluster.addresses(self.database, settings.database, self.utc)
        )
        yield from self._guarded("database.proxy", lambda: cluster.proxy(self.database))
        yield from self._guarded("database.durability", lambda: cluster.durability(self.database))
        yield from self._guarded("tables.magento", lambda: database.magento_tables(self.database))
        is_shop = schema.has_queue_tables(self.database)
        # Where Magento's tables are not found, one finding says so: ours have the same prefix.
        worker_tables = self._guarded("tables.worker", lambda: database.worker_tables(self.database) if is_shop else ())
        yield from worker_tables
        verified = settings.database.ssl_ca is not None
        yield from self._guarded("database.encryption", lambda: database.encryption(self.database, verified=verified))
        yield from self._guarded("database.isolation", lambda: database.session(self.database))
        yield from self._guarded("database.clock", lambda: database.clock(self.database, self.utc))
        if not is_shop:
            return None
        yield from self._guarded("privileges", lambda: database.privileges(self.database))
        yield from self._guarded("database.index", lambda: database.optional_index(self.database))
        found = None
        try:
            files = deployment_config(settings.magento.root)
            found = read_configuration(self.database, files)
        except ZitharaWorkerError as error:
            yield failed("shop.configuration", error.seen, error.remedy or "see the findings above")
        if found is not None:
            yield from shop.enabled(found, self.database.prefix)
            yield from shop.active_row(found)
            yield from shop.webhook_url(found, settings.zithara.webhook_url)
            yield from shop.event_types(found)
            yield from shop.cleanup(found, files_read=settings.magento.root is not None)
        usable = all(finding.level is not Level.FAILED for finding in worker_tables)
        yield from self._queue_side(found, worker_tables_usable=usable)
        return found

    def _queue_side(self, found: ShopConfiguration | None, *, worker_tables_usable: bool) -> Iterator[Finding]:
        overrides = self.configured.settings.queues
        yield from self._guarded("queues", lambda: queues.rows(self.database, overrides))
        try:
            present, _ = queues_present(self.database, overrides)
            now = fleet.now_utc(self.database)
        except ZitharaWorkerError:
            return  # The finding "queues" has the error.
        yield from self._guarded(
            "published",
            lambda: routing.checks(
                self.configured, self.database, present, now, worker_tables_usable=worker_tables_usable
            ),
        )
        yield from self._guarded("published.unlinked", lambda: queues.unlinked(self.database))
        if found is not None:
            lifetime = found.new_messages_lifetime_minutes
            yield from self._guarded("expiry", lambda: queues.near_deletion(self.database, present, lifetime, now))
        if not worker_tables_usable:
            return
        yield from self._guarded("in_progress", lambda: queues.in_progress(self.database, present, now))
        yield from self._guarded("php_consumers.rejected", lambda: queues.rejected_by_php(self.database, present))
        yield from self._guarded("failed", lambda: queues.failures(self.database, present, now))
        yield from self._guarded("workers", lambda: queues.workers(self.database, present, now))
        yield from self._guarded("ledger", lambda: ledger.checks(self.database, present))
        yield from self._guarded("reconcile", lambda: completeness.checks(self.database, now))
        yield from self._guarded("paused", lambda: queues.paused(self.database, now))

    def _api_side(self, found: ShopConfiguration | None) -> Iterator[Finding]:
        configured = self.configured
        if found is not None:
            try:
                configured = complete(configured, found)
            except ConfigurationError as error:
                yield from unreadable(error)
                return
            for text in configured.warnings:
                if text not in self.configured.warnings:
                    yield warning(
                        "shop.settings", text, "correct it in the shop, or set it in the worker's configuration"
                    )
        # That the shop's credentials are not known is told where its row is looked for.
        zithara = configured.settings.zithara
        has_row = found is not None and found.active_config_id is not None
        known = has_row or bool(zithara.client_id and zithara.client_secret)
        yield from api.checks(zithara, self.utc, credentials_known=known)

    def _guarded(self, check: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
        """An error within a check is a finding, and the other checks go on."""
        try:
            return list(look())
        except ZitharaWorkerError as error:
            return [failed(check, error.seen, error.remedy or "see the text")]


def _away(error: DatabaseUnavailable | ConfigurationError) -> Finding:
    """The one finding of a database that cannot be used, with what cannot be checked because of it."""
    return failed(
        "database",
        f"{error.seen}; so tables, privileges, queues, workers and the shop's settings and credentials were not "
        "checked",
        error.remedy or "see the text",
    )
