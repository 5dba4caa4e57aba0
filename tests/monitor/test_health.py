"""What /healthz/live says of a delivery that hangs."""

from __future__ import annotations

from zithara_worker import Settings
from zithara_worker.monitor.health import Health, LoopStatus, longest_delivery_seconds, worker_health
from zithara_worker.settings.sections import ZitharaSettings


def health(oldest: float, allowed: float) -> Health:
    loop = LoopStatus(
        turned_at=0.0,
        longest_wait_seconds=1.0,
        database_up=True,
        consumable=True,
        paused=(),
        oldest_request_seconds=oldest,
    )
    return worker_health(loop, 0.0, down={}, stopping=False, audit_problem=None, longest_delivery_seconds=allowed)


def test_a_delivery_that_no_timeout_explains_is_no_sign_of_life() -> None:
    assert health(240.0, 240.0).live and health(240.0, 240.0).ready
    hanging = health(240.5, 240.0)
    assert not hanging.live and not hanging.ready
    assert "under way for 4m00s, longer than all timeouts allow" in hanging.reasons[0]


def test_what_is_allowed_goes_by_the_timeout() -> None:
    assert longest_delivery_seconds(Settings(zithara=ZitharaSettings(timeout=30))) == 240.0
