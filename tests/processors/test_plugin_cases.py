"""Every case recorded from the PHP module: equal where it is right, as wanted where it is not."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zithara_worker import reasons
from zithara_worker.messages import Event, Rejection, Request, Skip, Target
from zithara_worker.processors import ShopContext, identify, process

Case = dict[str, Any]
FIXTURES = Path(__file__).parents[1] / "fixtures" / "plugin-cases.jsonl"
CASES: list[Case] = [json.loads(line) for line in FIXTURES.read_text(encoding="utf-8").splitlines()]


def outcome(case: Case, shop: ShopContext) -> Request | Skip | Rejection:
    shop = replace(shop, webhook_url=case["config"]["webhook_url"])
    _, content = identify(case["topic"], 1, case["body"])
    if isinstance(content, Rejection):
        return content
    before = copy.deepcopy(content.payload)
    result = process(content, shop)
    assert content.payload == before, "the message was changed"
    return result


def exact(value: Any) -> Any:
    """A form in which only equal JSON compares equal: Python alone takes 1 for true."""
    if isinstance(value, dict):
        return {name: exact(item) for name, item in value.items()}
    if isinstance(value, list):
        return [exact(item) for item in value]
    return ("boolean", value) if isinstance(value, bool) else value


def right_json(case: Case) -> Any:
    """What PHP sent, with what it got wrong put right."""
    body = copy.deepcopy(case["expected"]["requests"][0]["json"])
    message = json.loads(case["published"])
    if "custom_attributes" in case["bug"]:
        body["custom_attributes"] = message.get("payload", message)["custom_attributes"]
    for path, value in (case["want"] or {}).items():
        if path == "request":
            continue
        *parents, name = path.split(".")
        target = body
        for parent in parents:
            target = target[parent]
        target[name] = value
    return body


@pytest.mark.parametrize("case", CASES, ids=[f"{case['id']}: {case['description']}" for case in CASES])
def test_the_message_becomes_what_the_case_says(case: Case, shop: ShopContext) -> None:
    result = outcome(case, shop)
    want = case["want"] or {}
    if want.get("error"):
        assert isinstance(result, Rejection)
        assert result.code in reasons.REASONS
        assert result.detail
    elif want.get("skip"):
        assert isinstance(result, Skip)
        assert result.reason in reasons.REASONS
    elif want.get("skip_or_error"):
        assert isinstance(result, (Skip, Rejection))
    else:
        assert isinstance(result, Request), result
        if "request" in want:
            method, path = want["request"].split()
            assert result.method == method
            assert (result.target is Target.WEBHOOK) if path == "webhook" else (result.path == path)
        if case["expected"]["requests"]:
            (recorded,) = case["expected"]["requests"]
            assert (result.method, result.path) == (recorded["method"], recorded["path"])
            assert dict(result.headers) == {k: v for k, v in recorded["headers"].items() if k == "X-Webhook-Event"}
            assert exact(result.json) == exact(right_json(case))
        else:
            for path, value in want.items():
                if path != "request":
                    part, name = path.split(".")
                    assert exact(result.json[part][name]) == exact(value)


def test_every_recorded_entity_has_a_group_key_that_fits_the_column() -> None:
    kinds = {"zithara.order.events": "order:", "zithara.customer.events": "customer:", "zithara.cart.events": "cart:"}
    named = 0
    for case in CASES:
        key, content = identify(case["topic"], 77, case["body"])
        assert len(key) <= 191
        assert key.isascii()
        assert key.isprintable()
        assert " " not in key
        if isinstance(content, Event) and not key.startswith("message:"):
            named += 1
            assert key.startswith(kinds.get(case["topic"], ("order:", "customer:", "cart:")))
    assert named > 80


def test_a_body_that_is_an_object_becomes_the_same_request_as_the_encoded_one(shop: ShopContext) -> None:
    compared = 0
    for case in CASES:
        if not case["published"] or not case["published"].startswith("{"):
            continue
        twice = identify(case["topic"], 1, json.dumps(case["published"]))
        assert identify(case["topic"], 1, case["published"]) == twice
        compared += 1
    assert compared > 90
