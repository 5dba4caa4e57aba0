"""What processors know of a shop in the tests."""

from __future__ import annotations

from datetime import datetime, timezone

from zithara_worker.processors import ShopContext

#: Its clock stands where PHP's stood when tests/fixtures/plugin-cases.jsonl was recorded.
SHOP = ShopContext(
    webhook_url="https://hooks.example.com/zithara",
    active_config_id=1,
    config_ids=frozenset({1}),
    invented_phone="send",
    now_utc=datetime(2026, 11, 23, 12, 0, 0, tzinfo=timezone.utc),
)
