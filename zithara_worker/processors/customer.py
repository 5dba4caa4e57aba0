"""zithara.customer.events -> POST /customer: the message without the module's flag, its known defects repaired.

The observers CustomerSave, CustomerEdit and CustomerAddressSave publish the customer in the API's own shape.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from zithara_worker import reasons
from zithara_worker.errors import MessageRejected
from zithara_worker.messages import Entity, Event, Request
from zithara_worker.processors import fields, groups
from zithara_worker.processors.context import ShopContext
from zithara_worker.processors.fields import Row
from zithara_worker.processors.phone import INDIA, international, looks_invented, observers_whatsapp
from zithara_worker.topics import CUSTOMER

#: A column of Magento's decimal tables after a load.
_DECIMAL = re.compile(r"-?[0-9]+\.[0-9]{4}")
_ADDRESS_FIELDS = ("street", "city", "region", "postcode", "country_id")
#: Characters of names that the delivery ledger keeps; its column holds 65,535.
_NAMES_LENGTH = 60_000


def group_key(event: Event, message_id: int) -> str:
    return groups.entity_key(CUSTOMER.entity, event.payload.get("platform_customer_id")) or groups.own_key(message_id)


def process(event: Event, shop: ShopContext) -> Request:
    """Raises MessageRejected: missing_field, wrong_type, and invented_phone if the shop wants that."""
    message = event.payload
    customer = {name: value for name, value in message.items() if name != "is_update"}
    # The API takes the id as text only.
    customer["platform_customer_id"] = fields.required_text(message, "platform_customer_id", "")
    fields.required_text(message, "email", "")
    is_update = not fields.is_empty(message.get("is_update"))
    phone_number = (fields.required_text if is_update else fields.text)(message, "phone_number", "")
    whatsapp = fields.text(message, "whatsapp_phone_number", "")
    attributes = fields.row_or_nothing(message.get("custom_attributes"))
    if "custom_attributes" in customer:
        customer["custom_attributes"] = fields.as_object(customer["custom_attributes"])

    if whatsapp and whatsapp == observers_whatsapp(phone_number):
        customer["whatsapp_phone_number"] = international(phone_number, _country(attributes))

    warnings: tuple[str, ...] = ()
    if looks_invented(phone_number) and not whatsapp and not attributes.get("mobilenumber"):
        warnings = (reasons.INVENTED_PHONE,)
        if shop.invented_phone == "reject":
            raise MessageRejected(
                reasons.INVENTED_PHONE,
                "phone_number was made up by the shop's module, because the customer gave none; "
                "[zithara] invented_phone = reject refuses such messages",
            )
        if shop.invented_phone == "omit":
            del customer["phone_number"]
    return Request(
        target=CUSTOMER.target,
        method="POST",
        path=CUSTOMER.path,
        json=customer,
        warnings=warnings,
        entity=Entity(names=_names(customer), state=_state(customer, phone_number if not warnings else "")),
    )


def _names(customer: Row) -> str:
    """Every name that the request tells, those within the attributes too, a line each: what `coalescing` compares.

    Names without end are told by their digest, which no other set of names covers.
    """
    paths = [[name] for name in customer]
    for name, value in fields.row_or_nothing(customer.get("custom_attributes")).items():
        paths.append(["custom_attributes", name])
        paths += [["custom_attributes", name, inner] for inner in fields.row_or_nothing(value)]
    names = "\n".join(sorted(json.dumps(path) for path in paths))
    return names if len(names) <= _NAMES_LENGTH else hashlib.sha256(names.encode()).hexdigest()


def _state(customer: Row, phone_number: str) -> dict[str, Any]:
    """What the message says of the customer, in one form for all of the module's observers.

    `name` and `whatsapp_phone_number` follow from the rest. CustomerAddressSave tells whether the address was saved
    *as* the default one, which the next save of the same address denies. An invented telephone number is none.
    """
    attributes = {
        name: _plain(value)
        for name, value in fields.row_or_nothing(customer.get("custom_attributes")).items()
        if name != "address_data" and value is not None
    }
    address = fields.row_or_nothing(fields.row_or_nothing(customer.get("custom_attributes")).get("address_data"))
    return {
        "id": customer["platform_customer_id"],
        "phone_number": phone_number,
        **{name: _plain(customer.get(name)) for name in ("first_name", "last_name", "email")},
        "attributes": dict(sorted(attributes.items())),
        "address": {name: _plain(address.get(name)) for name in _ADDRESS_FIELDS} if address else None,
    }


def _plain(value: Any) -> Any:
    """One form for a value that Magento has in several: before a save 5, 5.0 or true, after a load '5', '5.0000' or
    '1'; a street as a list of lines or as text with line breaks."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, (int, float)):
        return fields.number_text(fields.as_stored(value))
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        return value.rstrip("0").rstrip(".")
    return value


def _country(attributes: Row) -> str:
    """Only CustomerAddressSave publishes the address, and with it the country."""
    country = fields.row_or_nothing(attributes.get("address_data")).get("country_id")
    return country if isinstance(country, str) and country else INDIA
