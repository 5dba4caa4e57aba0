"""The shop's debug switch and the levels that it leaves alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from support.waiting import eventually
from worker.test_outage import running, settings_for

from zithara_worker import Worker
from zithara_worker.sandbox.api import FakeZithara
from zithara_worker.sandbox.shop import Shop
from zithara_worker.worker.duties import DebugSwitch

PACKAGE = logging.getLogger("zithara_worker")
MODULE = logging.getLogger("zithara_worker.zithara.api")


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    root, package = logging.getLogger().level, PACKAGE.level
    yield
    logging.getLogger().setLevel(root)
    PACKAGE.setLevel(package)


def test_debug_is_on_for_the_package_only_and_off_again_at_the_configured_level() -> None:
    logging.getLogger().setLevel(logging.WARNING)
    switch = DebugSwitch()
    switch.set(on=False)
    assert MODULE.getEffectiveLevel() == logging.WARNING
    for _ in range(2):
        switch.set(on=True)
        assert MODULE.getEffectiveLevel() == logging.DEBUG
        assert logging.getLogger("httpx").getEffectiveLevel() == logging.WARNING
    logging.getLogger().setLevel(logging.INFO)
    assert MODULE.getEffectiveLevel() == logging.DEBUG, "a reload sets the root's level"
    for _ in range(2):
        switch.set(on=False)
        assert MODULE.getEffectiveLevel() == logging.INFO


def test_the_switch_tells_each_change_once_while_info_is_written(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger().setLevel(logging.ERROR)
    switch = DebugSwitch()
    for on in (True, True, False, False):
        switch.set(on=on)
    assert [getattr(record, "event", None) for record in caplog.records] == ["debug_on", "debug_off"]


def test_an_embedding_programs_own_level_comes_back_when_the_worker_ends(shop: Shop, api: FakeZithara) -> None:
    PACKAGE.setLevel(logging.ERROR)
    shop.set_config("zithara_webhook/general/debug", "1")
    with running(Worker(settings_for(shop, api))):
        eventually(lambda: PACKAGE.level == logging.DEBUG)
    assert PACKAGE.level == logging.ERROR
