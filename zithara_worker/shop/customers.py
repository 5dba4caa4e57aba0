"""Reads the shop's customers. Source of the tables: Magento_Customer's etc/db_schema.xml; of the messages: the module's
observers CustomerSave and CustomerAddressSave, as the messages of `sandbox/real_shop` show them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from zithara_worker.processors.phone import observers_whatsapp
from zithara_worker.shop.attributes import customer_attributes
from zithara_worker.shop.entities import Rebuilt, Row, TableReader, text
from zithara_worker.topics import CUSTOMER

#: The attribute in which CustomerSave looks for a telephone number if the default billing address has none.
_MOBILE_NUMBER = "mobilenumber"


class CustomerReader(TableReader):
    """Every registered customer. A save of one of its addresses counts as a save of the customer."""

    kind = "customers"
    topic = CUSTOMER.name

    def build(self, ids: Collection[int]) -> dict[int, Rebuilt]:
        if not ids:
            return {}
        wanted = sorted(ids)
        addresses = self._parts("customers_addresses", wanted, owner="parent_id", id="entity_id")
        attributes = customer_attributes(self._rows, wanted)
        return {
            int(row["entity_id"]): _rebuilt(
                row, addresses.get(row["entity_id"], ()), attributes.get(row["entity_id"], {})
            )
            for row in self._rows("customers_rows", ids=wanted)
        }

    def times(self, ids: Collection[int]) -> dict[int, str]:
        return {each.id: each.updated_at for each in self._found(sorted(ids))}


def _rebuilt(customer: Row, addresses: Sequence[Row], attributes: Mapping[str, str]) -> Rebuilt:
    """The create with everything, and what the module tells of the same state.

    Its observers publish a customer with the own attributes or without, depending on the event that they follow, and
    with the address that was saved last or with none. An address with another telephone number than the customer's is
    no such message: Zithara would call another number.
    """
    billing = next((each for each in addresses if each["entity_id"] == customer["default_billing"]), None)
    phone_number = _telephone(billing) or attributes.get(_MOBILE_NUMBER, "")
    payload = _message(customer, phone_number, _telephone(billing), attributes, billing)
    told = [None, *(each for each in addresses if not phone_number or _telephone(each) == phone_number)]
    forms = (
        _message(customer, phone_number or _telephone(address), _telephone(address or billing), own, address)
        for own in ((attributes, {}) if attributes else ({},))
        for address in told
    )
    return Rebuilt(
        payload,
        tuple(form for form in forms if form != payload),
        # The save of an address is published with the address: what was published earlier does not tell it.
        also_since=max((text(each["told_since"]) or "" for each in addresses), default=""),
    )


def _telephone(address: Row | None) -> str:
    return text(address["telephone"]) or "" if address else ""


def _message(
    customer: Row, phone_number: str, of_address: str, attributes: Mapping[str, str], address: Row | None
) -> dict[str, Any]:
    """`of_address`: the telephone number of an address, of which alone the module makes a WhatsApp number."""
    first_name, last_name = text(customer["firstname"]) or "", text(customer["lastname"]) or ""
    return {
        "platform_customer_id": str(customer["entity_id"]),
        "phone_number": phone_number,
        "first_name": first_name,
        "last_name": last_name,
        "name": f"{first_name} {last_name}".strip(" \t\n\r\v\0"),
        # The processor knows this form, and makes the right number of phone_number and the address's country.
        "whatsapp_phone_number": observers_whatsapp(of_address),
        "email": text(customer["email"]) or "",
        "custom_attributes": attributes
        if address is None
        else {**attributes, "address_data": _told(customer, address)},
    }


def _told(customer: Row, address: Row) -> dict[str, Any]:
    return {
        "street": (text(address["street"]) or "").split("\n"),
        "city": text(address["city"]),
        "region": text(address["region"]) or "",
        "postcode": text(address["postcode"]),
        "country_id": text(address["country_id"]),
        "is_default_billing": address["entity_id"] == customer["default_billing"],
        "is_default_shipping": address["entity_id"] == customer["default_shipping"],
    }
