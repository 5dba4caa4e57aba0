"""Checks of what the shop's administrator has set."""

from __future__ import annotations

from collections.abc import Iterator

from zithara_worker.magento.shop import ShopConfiguration
from zithara_worker.operations.doctor.finding import Finding, failed, ok, warning
from zithara_worker.zithara.transport import UrlRefused, endpoint_of


def enabled(shop: ShopConfiguration) -> Iterator[Finding]:
    if shop.enabled:
        yield ok("shop.enabled", "the module is enabled")
    else:
        yield failed(
            "shop.enabled",
            "zithara_webhook/general/enabled is 0: no message is taken",
            "bin/magento config:set zithara_webhook/general/enabled 1, then cache:flush",
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
    """`given`: [zithara] webhook_url, which comes before the shop's."""
    if given:
        yield ok("shop.webhook_url", "set by [zithara] webhook_url")
    elif shop.webhook_url is None:
        yield warning(
            "shop.webhook_url",
            "no webhook URL: webhook events complete as skipped",
            "if you want them, save the URL in the shop's admin, or set [zithara] webhook_url",
        )
    else:
        try:
            endpoint_of(shop.webhook_url)
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
