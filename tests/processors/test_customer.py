"""Customers: what the recorded cases do not show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from zithara_worker import reasons
from zithara_worker.messages import Event, Rejection, Request
from zithara_worker.processors import ShopContext, process
from zithara_worker.settings.sections import InventedPhone
from zithara_worker.topics import TOPIC_CUSTOMER


def message(**fields: Any) -> dict[str, Any]:
    return {
        "platform_customer_id": "301",
        "phone_number": "9876543210",
        "first_name": "Meera",
        "last_name": "Nair",
        "name": "Meera Nair",
        "whatsapp_phone_number": "",
        "email": "c301@example.com",
        "custom_attributes": [],
        **fields,
    }


def outcome(shop: ShopContext, payload: dict[str, Any]) -> Request | Rejection:
    result = process(Event(topic=TOPIC_CUSTOMER, payload=payload), shop)
    assert isinstance(result, (Request, Rejection))
    return result


def sent(shop: ShopContext, **fields: Any) -> Request:
    result = outcome(shop, message(**fields))
    assert isinstance(result, Request), result
    return result


def test_the_message_is_sent_as_it_is_less_its_flag(shop: ShopContext) -> None:
    request = sent(shop, is_update=True, loyalty={"tier": ["gold"]}, gender=None)
    assert (request.method, request.path, request.idempotent) == ("POST", "/customer", True)
    assert request.json == message(custom_attributes={}, loyalty={"tier": ["gold"]}, gender=None)
    assert request.warnings == ()


@pytest.mark.parametrize("field", ["platform_customer_id", "email"])
@pytest.mark.parametrize("value", [None, "", "0", False, 0])
def test_id_and_email_are_required(shop: ShopContext, field: str, value: Any) -> None:
    result = outcome(shop, message(**{field: value}))
    assert isinstance(result, Rejection)
    assert (result.code, result.detail.split()[0]) == (reasons.MISSING_FIELD, field)


def test_only_an_update_requires_a_telephone(shop: ShopContext) -> None:
    assert sent(shop, phone_number="").json["phone_number"] == ""
    result = outcome(shop, message(phone_number="", is_update=True))
    assert isinstance(result, Rejection)
    assert "phone_number" in result.detail


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [([], {}), ({}, {}), ({"a": 1}, {"a": 1}), ([{"code": "a"}], {"0": {"code": "a"}}), (None, None)],
)
def test_custom_attributes_are_an_object(shop: ShopContext, attributes: Any, expected: Any) -> None:
    assert sent(shop, custom_attributes=attributes).json["custom_attributes"] == expected


def test_absent_custom_attributes_stay_absent(shop: ShopContext) -> None:
    payload = message()
    del payload["custom_attributes"]
    result = outcome(shop, payload)
    assert isinstance(result, Request)
    assert "custom_attributes" not in result.json


@pytest.mark.parametrize(
    ("phone_number", "whatsapp", "country", "expected"),
    [
        ("9876543210", "91876543210", None, "919876543210"),
        ("8012345678", "918012345678", None, "918012345678"),
        ("+44 20 7946 0958", "9144 20 7946 0958", None, "442079460958"),
        ("020 7946 0958", "91020 7946 0958", "GB", "442079460958"),
        ("4155550132", "914155550132", "US", "14155550132"),
        # Another number than the formula gives: somebody meant it.
        ("9876543210", "919876543210", None, "919876543210"),
        ("9876543210", "14155550132", None, "14155550132"),
        ("9876543210", "", None, ""),
        ("", "91", None, "91"),
    ],
)
def test_the_whatsapp_number_is_rebuilt_exactly_when_the_observers_formula_made_it(
    shop: ShopContext, phone_number: str, whatsapp: str, country: str | None, expected: str
) -> None:
    attributes = {"address_data": {"country_id": country}} if country else []
    request = sent(shop, phone_number=phone_number, whatsapp_phone_number=whatsapp, custom_attributes=attributes)
    assert request.json["whatsapp_phone_number"] == expected
    assert request.json["phone_number"] == phone_number


INVENTED = "+919912345678"


@pytest.mark.parametrize(("policy", "number"), [("send", INVENTED), ("omit", None)])
def test_an_invented_number_is_sent_or_omitted_with_a_warning(
    shop: ShopContext, policy: InventedPhone, number: str | None
) -> None:
    request = sent(replace(shop, invented_phone=policy), phone_number=INVENTED)
    assert request.warnings == (reasons.INVENTED_PHONE,)
    assert request.json.get("phone_number") == number
    assert ("phone_number" in request.json) == (number is not None)


def test_an_invented_number_is_rejected_if_the_shop_wants_that(shop: ShopContext) -> None:
    result = outcome(replace(shop, invented_phone="reject"), message(phone_number=INVENTED))
    assert isinstance(result, Rejection)
    assert result.code == reasons.INVENTED_PHONE
    assert INVENTED not in result.detail


@pytest.mark.parametrize(
    "fields",
    [
        {"phone_number": "+919876543210"},
        {"phone_number": INVENTED, "whatsapp_phone_number": "919912345678"},
        {"phone_number": INVENTED, "custom_attributes": {"mobilenumber": "99123 45678"}},
    ],
)
def test_a_number_the_customer_gave_is_never_taken_for_invented(shop: ShopContext, fields: dict[str, Any]) -> None:
    request = sent(replace(shop, invented_phone="reject"), **fields)
    assert request.warnings == ()
    assert request.json["phone_number"] == fields["phone_number"]
