"""The stable codes this room gives: why a message is rejected, why there is nothing to send, what to warn about.

They stand in the database, in logs and in metrics, so a code keeps its meaning; docs/reasons.md says what to do
about each one.
"""

from __future__ import annotations

from typing import Final

# Rejections: the stored body is not the JSON that was meant
EMPTY_MESSAGE: Final = "empty_message"
NOT_JSON: Final = "not_json"
NOT_AN_OBJECT: Final = "not_an_object"
NESTED_TOO_DEEPLY: Final = "nested_too_deeply"
INVALID_NUMBER: Final = "invalid_number"
INVALID_TEXT: Final = "invalid_text"

# Rejections: the event does not hold what its request needs
UNKNOWN_TOPIC: Final = "unknown_topic"
MISSING_FIELD: Final = "missing_field"
WRONG_TYPE: Final = "wrong_type"
NOT_A_NUMBER: Final = "not_a_number"
ORDER_WITHOUT_ITEMS: Final = "order_without_items"
INVALID_EVENT_TYPE: Final = "invalid_event_type"
UNKNOWN_CONFIG_ID: Final = "unknown_config_id"

# A rejection or a warning, as the setting [zithara] invented_phone says
INVENTED_PHONE: Final = "invented_phone"

# Skips: the message is complete without a request
CART_WITHOUT_ITEMS: Final = "cart_without_items"
NO_WEBHOOK_URL: Final = "no_webhook_url"

#: Every code above, for whoever lists or checks them.
ALL: Final = frozenset(
    {
        EMPTY_MESSAGE,
        NOT_JSON,
        NOT_AN_OBJECT,
        NESTED_TOO_DEEPLY,
        INVALID_NUMBER,
        INVALID_TEXT,
        UNKNOWN_TOPIC,
        MISSING_FIELD,
        WRONG_TYPE,
        NOT_A_NUMBER,
        ORDER_WITHOUT_ITEMS,
        INVALID_EVENT_TYPE,
        UNKNOWN_CONFIG_ID,
        INVENTED_PHONE,
        CART_WITHOUT_ITEMS,
        NO_WEBHOOK_URL,
    }
)
