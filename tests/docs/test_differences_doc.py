"""docs/differences.md keeps up with the code: every repaired defect of the PHP module is explained."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from pathlib import Path

from support.shops import SHOP
from zithara_worker.messages import Event, Request
from zithara_worker.processors import ShopContext, process
from zithara_worker.reasons import REASONS
from zithara_worker.topics import TOPIC_WEBHOOK

ROOT = Path(__file__).parents[2]


def test_the_differences_document_names_every_class_of_defect_in_the_cases() -> None:
    cases = (ROOT / "tests" / "fixtures" / "plugin-cases.jsonl").read_text(encoding="utf-8").splitlines()
    classes = {defect for case in cases for defect in json.loads(case)["bug"]}
    document = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8")
    first_cells = re.findall(r"^\| ([^|]+) \|", document, re.MULTILINE)
    assert classes
    assert classes <= {code for cell in first_cells for code in re.findall(r"`([a-z0-9_]+)`", cell)}


def test_what_a_real_shop_publishes_is_told_and_the_reasons_that_it_names_exist() -> None:
    document = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8")
    told = document.partition("## What a real shop publishes\n")[2].partition("\n## ")[0]
    for fact in ("newest item", "one empty cart", "CartAddProduct", "`is_active` 0", "every minute", "`is_update` false"):
        assert fact in told, fact
    named = {code for code in re.findall(r"completes as `(\w+)`", told)}
    assert named == {"cart_without_items", "cart_inactive", "unchanged"} and named <= REASONS.keys()
    assert "newest item is missing" in REASONS["cart_without_items"].meaning


def test_a_webhook_keeps_an_empty_object_that_php_would_send_as_a_list() -> None:
    payload = {"order_id": "7", "payment": {}, "items": [{"extension_attributes": {}}]}
    event = Event(topic=TOPIC_WEBHOOK, payload={"event_type": "update_order", "payload": payload})
    request = process(event, SHOP)
    assert isinstance(request, Request) and json.dumps(request.json) == json.dumps(payload)
    row = r"^\| empty objects in a webhook's payload .*\| .*`\[\]`.* \| sends `\{\}`"
    assert re.search(row, (ROOT / "docs" / "differences.md").read_text(encoding="utf-8"), re.MULTILINE)
