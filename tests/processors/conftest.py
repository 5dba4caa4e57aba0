"""What the tests of the pure path share: a shop as the recorded cases saw it."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from zithara_worker.processors import ShopContext


@pytest.fixture(scope="session")
def shop() -> ShopContext:
    """Its clock stands where PHP's stood when tests/fixtures/plugin-cases.jsonl was recorded."""
    return ShopContext(
        webhook_url="https://hooks.example.com/zithara",
        active_config_id=1,
        config_ids=frozenset({1}),
        invented_phone="send",
        now_utc=datetime(2026, 11, 23, 12, 0, 0, tzinfo=timezone.utc),
    )
