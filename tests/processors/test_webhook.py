"""Webhooks: what the recorded cases do not show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from zithara_worker import reasons
from zithara_worker.messages import Event, Rejection, Request, Skip, Target
from zithara_worker.processors import ShopContext, process
from zithara_worker.topics import TOPIC_WEBHOOK


def message(**fields: Any) -> dict[str, Any]:
    return {"config_id": 1, "event_type": "customer_login", "payload": {"customer_id": "1"}, "timestamp": 1, **fields}


def outcome(shop: ShopContext, payload: dict[str, Any]) -> Request | Skip | Rejection:
    return process(Event(topic=TOPIC_WEBHOOK, payload=payload), shop)


def sent(shop: ShopContext, **fields: Any) -> Request:
    result = outcome(shop, message(**fields))
    assert isinstance(result, Request), result
    return result


def test_the_payload_goes_to_the_webhook_url_and_must_not_be_sent_twice_blindly(shop: ShopContext) -> None:
    request = sent(shop)
    assert (request.target, request.method, request.path) == (Target.WEBHOOK, "POST", shop.webhook_url)
    assert request.json == {"customer_id": "1"}
    assert request.headers == {"X-Webhook-Event": "customer_login"}
    assert request.idempotent is False


@pytest.mark.parametrize("url", [None, ""])
def test_without_a_webhook_url_there_is_nothing_to_send(shop: ShopContext, url: str | None) -> None:
    assert outcome(replace(shop, webhook_url=url), message()) == Skip(reason=reasons.NO_WEBHOOK_URL)


@pytest.mark.parametrize("config_id", [1, "1", 1.0, None, "", 2, "2"])
def test_a_known_or_absent_config_id_means_the_active_row(shop: ShopContext, config_id: Any) -> None:
    assert sent(replace(shop, config_ids=frozenset({1, 2})), config_id=config_id).path == shop.webhook_url


def test_a_message_without_a_config_id_is_sent(shop: ShopContext) -> None:
    payload = message()
    del payload["config_id"]
    assert isinstance(outcome(shop, payload), Request)


@pytest.mark.parametrize("config_id", [3, "3", 0, -1, "1 OR 1=1", 1.5, "9" * 5000])
def test_a_config_id_that_names_no_row_is_rejected(shop: ShopContext, config_id: Any) -> None:
    result = outcome(shop, message(config_id=config_id))
    assert isinstance(result, Rejection)
    assert result.code == reasons.UNKNOWN_CONFIG_ID
    assert len(result.detail) < 200


def test_any_config_id_is_accepted_while_the_rows_are_unknown(shop: ShopContext) -> None:
    assert sent(replace(shop, config_ids=None, active_config_id=None), config_id=99).json == {"customer_id": "1"}


def test_the_active_row_is_known_even_if_the_list_is_older(shop: ShopContext) -> None:
    assert sent(replace(shop, config_ids=frozenset({1}), active_config_id=2), config_id=2).path == shop.webhook_url


@pytest.mark.parametrize(
    ("fields", "code", "named"),
    [
        ({"config_id": True}, reasons.WRONG_TYPE, "config_id"),
        ({"event_type": None}, reasons.MISSING_FIELD, "event_type"),
        ({"event_type": ""}, reasons.MISSING_FIELD, "event_type"),
        ({"event_type": ["x"]}, reasons.WRONG_TYPE, "event_type"),
        ({"event_type": "login\r\nAuthorization: x"}, reasons.INVALID_EVENT_TYPE, "event_type"),
        ({"event_type": "लॉगिन"}, reasons.INVALID_EVENT_TYPE, "event_type"),
        ({"event_type": " "}, reasons.INVALID_EVENT_TYPE, "event_type"),
        ({"event_type": "x" * 256}, reasons.INVALID_EVENT_TYPE, "event_type"),
        ({"payload": None}, reasons.MISSING_FIELD, "payload"),
        ({"payload": "text"}, reasons.WRONG_TYPE, "payload"),
        ({"payload": 0}, reasons.WRONG_TYPE, "payload"),
    ],
)
def test_what_is_wrong_is_rejected_by_name_even_without_a_webhook_url(
    shop: ShopContext, fields: dict[str, Any], code: str, named: str
) -> None:
    for context in (shop, replace(shop, webhook_url=None)):
        result = outcome(context, message(**fields))
        assert isinstance(result, Rejection)
        assert (result.code, result.detail.split()[0]) == (code, named)


def test_only_the_payloads_own_custom_attributes_become_an_object(shop: ShopContext) -> None:
    payload = {"custom_attributes": [], "current_data": {"custom_attributes": []}, "n": 18446744073709551616}
    expected = {"custom_attributes": {}, "current_data": {"custom_attributes": []}, "n": 18446744073709551616}
    assert sent(shop, payload=payload).json == expected
    assert payload["custom_attributes"] == []


@pytest.mark.parametrize("payload", [[], [{"a": 1}], {}])
def test_an_empty_payload_or_a_list_is_sent_as_it_is(shop: ShopContext, payload: Any) -> None:
    assert sent(shop, payload=payload).json == payload
