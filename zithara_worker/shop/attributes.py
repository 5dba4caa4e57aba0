"""Reads the customers' own attributes, which Magento keeps in one table for each type of value (EAV).

Source: Magento_Eav's and Magento_Customer's etc/db_schema.xml.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any


def customer_attributes(
    read: Callable[..., list[dict[str, Any]]], customer_ids: Collection[int]
) -> dict[int, dict[str, str]]:
    """Customer id -> attribute code -> value as the module's observers publish it: of a select the option's id, of a
    multiselect the ids with commas between them, of a decimal all places ('12.5000'). Without those that have no
    value.

    `read`: the rows of a statement of sql/entities.sql. It is called twice at most. An attribute that holds a password
    or a token is not read.
    """
    codes = {
        (int(each["attribute_id"]), str(each["backend_type"])): str(each["attribute_code"])
        for each in read("customers_attributes")
    }
    if not codes:
        return {}
    values: dict[int, dict[str, str]] = {}
    attribute_ids = sorted({attribute_id for attribute_id, _ in codes})
    rows = read("customers_values", ids=sorted(customer_ids), attributes=attribute_ids)
    for row in sorted(rows, key=lambda each: int(each["attribute_id"])):
        # A value of another type is left over from before the attribute changed its type.
        code = codes.get((int(row["attribute_id"]), str(row["backend_type"])))
        if code and row["value"] is not None:
            values.setdefault(int(row["entity_id"]), {})[code] = str(row["value"])
    return values
