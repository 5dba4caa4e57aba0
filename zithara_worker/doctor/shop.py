"""Checks of the configuration: the worker's own, and what the shop's administrator has set."""

from __future__ import annotations

from collections.abc import Iterator

from zithara_worker.doctor.finding import Finding, failed, ok, warning
from zithara_worker.errors import ConfigurationError
from zithara_worker.settings.sources import LoadedSettings
from zithara_worker.shop.configuration import NEW_LIFETIME, ShopConfiguration
from zithara_worker.zithara.http import UrlRefused, usable_url


def unreadable(error: ConfigurationError) -> Iterator[Finding]:
    """One finding for each thing that is wrong with the configuration."""
    for line in str(error).splitlines():
        yield failed("configuration", line, "correct it; 'zithara-worker config --sample' shows every key")


def sources(configured: LoadedSettings) -> Iterator[Finding]:
    """Which files and environment variables gave a value."""
    named = {source.partition(" [")[0].partition(", named by")[0] for source in configured.sources.values()}
    where = ", ".join(sorted(named)) or "defaults only"
    yield ok("configuration", f"read from {where}")


def permissions(configured: LoadedSettings) -> Iterator[Finding]:
    """The warnings that came up when the configuration was read, such as a secret that everybody on this host can
    read."""
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


def enabled(shop: ShopConfiguration, prefix: str) -> Iterator[Finding]:
    """`prefix`: of the tables. The module has no system.xml, so `bin/magento config:set` knows none of its paths."""
    if shop.enabled:
        yield ok("shop.enabled", "the module is enabled")
    else:
        source = shop.enabled_source
        in_table = source.startswith("core_config_data")
        yield failed(
            "shop.enabled",
            f"zithara_webhook/general/enabled is 0 ({source}): no message is taken",
            (
                f"UPDATE {prefix}core_config_data SET value = '1' "  # noqa: S608 - printed, not executed
                "WHERE path = 'zithara_webhook/general/enabled' AND scope = 'default'; then bin/magento cache:flush "
                "(config:set does not know this path)"
                if in_table
                else "set it to 1 there, then bin/magento cache:flush"
            ),
        )


def active_row(shop: ShopConfiguration) -> Iterator[Finding]:
    if shop.active_config_id is not None:
        yield ok("shop.configuration", f"row {shop.active_config_id} of zithara_webhook_config is active")
    elif shop.config_ids:
        yield failed(
            "shop.configuration",
            f"none of the {len(shop.config_ids)} rows of zithara_webhook_config is active: no message is taken",
            "activate one in the shop's admin",
        )
    else:
        yield failed(
            "shop.configuration",
            "zithara_webhook_config has no row: no message is taken",
            "save the Zithara configuration in the shop's admin",
        )


def webhook_url(shop: ShopConfiguration, given: str) -> Iterator[Finding]:
    """`given`: [zithara] webhook_url, which has precedence over the shop's."""
    if given:
        yield ok("shop.webhook_url", "set by [zithara] webhook_url")
    elif shop.active_config_id is None:
        return
    elif shop.webhook_url is None:
        yield warning(
            "shop.webhook_url",
            "no webhook URL: webhook events complete as skipped",
            "if you want them, save the URL in the shop's admin, or set [zithara] webhook_url",
        )
    else:
        try:
            usable_url(shop.webhook_url)
        except UrlRefused as error:
            yield failed(
                "shop.webhook_url",
                f"webhook events will fail ({error.reason}): {error}",
                "correct it in the shop's admin, or set [zithara] webhook_url",
            )
        else:
            yield ok("shop.webhook_url", "the shop has one")


def event_types(shop: ShopConfiguration) -> Iterator[Finding]:
    if shop.active_config_id is None:
        return
    if shop.event_types:
        yield ok("shop.event_types", ", ".join(shop.event_types))
    else:
        yield warning(
            "shop.event_types",
            "the active row names no event types: the shop publishes no webhook events",
            "choose them in the shop's admin, if you want any",
        )


#: What each rule of Magento's cleanup does; the sentence goes on with "after 10080 minutes".
_RULES = {
    NEW_LIFETIME: "new messages are deleted",
    "successful_messages_lifetime": "complete ones are deleted",
    "failed_messages_lifetime": "failed ones are deleted",
    "retry_inprogress_after": "those that PHP has in progress are put back",
}


def cleanup(shop: ShopConfiguration, *, files_read: bool) -> Iterator[Finding]:
    """The rules of Magento's cleanup in force, each with its source. `files_read`: [magento] root is set."""
    rules = []
    for name, rule in _RULES.items():
        minutes, source = shop.cleanup[name].minutes, shop.cleanup[name].source
        when = (
            "after a time that only PHP can work out"
            if minutes is None
            else f"after {minutes} minutes"
            if minutes
            else "never"
        )
        path = f"system/mysqlmq/{name}"
        rules.append(f"{rule} {when} ({source if path in source else f'{path}, {source}'})")
    text = "; ".join(rules)
    if not files_read:
        text += "; app/etc/env.php, which may say otherwise, is not read because [magento] root is not set"
    assumed = shop.new_messages_lifetime_minutes
    if shop.cleanup[NEW_LIFETIME].minutes == assumed:
        yield ok("shop.cleanup", text)
    else:
        yield warning(
            "shop.cleanup",
            f"{text}. To be safe, workers keep new messages as if they were deleted after {assumed} minutes",
            f"write one number there: bin/magento config:set --lock-env system/mysqlmq/{NEW_LIFETIME} 10080",
        )
