"""zithara.customer.events -> POST /customer: the message without the module's flag, its known defects repaired.

The observers CustomerSave, CustomerEdit and CustomerAddressSave publish the customer in the API's own shape.
"""

from __future__ import annotations

from zithara_worker import reasons
from zithara_worker.errors import MessageRejected
from zithara_worker.messages import Event, Request
from zithara_worker.processors import fields, groups
from zithara_worker.processors.context import ShopContext
from zithara_worker.processors.fields import Row
from zithara_worker.processors.phone import INDIA, international, looks_invented, observers_whatsapp
from zithara_worker.topics import CUSTOMER


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
    return Request(target=CUSTOMER.target, method="POST", path=CUSTOMER.path, json=customer, warnings=warnings)


def _country(attributes: Row) -> str:
    """Only CustomerAddressSave publishes the address, and with it the country."""
    country = fields.row_or_nothing(attributes.get("address_data")).get("country_id")
    return country if isinstance(country, str) and country else INDIA
