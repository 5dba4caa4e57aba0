-- The grants to read the shop's orders, customers and carts, which reconcile and trace need besides grants.sql. {database} is the
-- shop's database, {user} the operator's account ('name'@'host'). Columns by name: no password, no card and no token is among
-- them. An ordinary worker needs none of these.
GRANT SELECT (entity_id, increment_id, store_id, state, status, customer_id, customer_email, customer_firstname, customer_lastname,
  subtotal, tax_amount, discount_amount, grand_total, order_currency_code, created_at, updated_at)
  ON {database}.{prefix}sales_order TO {user};
GRANT SELECT (item_id, order_id, product_id, sku, name, qty_ordered, price, tax_amount, discount_amount)
  ON {database}.{prefix}sales_order_item TO {user};
GRANT SELECT (entity_id, parent_id, method, amount_paid, amount_authorized, last_trans_id)
  ON {database}.{prefix}sales_order_payment TO {user};
GRANT SELECT (entity_id, parent_id, address_type, street, city, region, postcode, country_id, telephone)
  ON {database}.{prefix}sales_order_address TO {user};
GRANT SELECT (entity_id, store_id, email, firstname, lastname, default_billing, default_shipping, created_at, updated_at)
  ON {database}.{prefix}customer_entity TO {user};
GRANT SELECT (entity_id, parent_id, street, city, region, postcode, country_id, telephone, updated_at)
  ON {database}.{prefix}customer_address_entity TO {user};
GRANT SELECT (attribute_id, entity_type_id, attribute_code, backend_type) ON {database}.{prefix}eav_attribute TO {user};
GRANT SELECT (entity_type_id, entity_type_code) ON {database}.{prefix}eav_entity_type TO {user};
-- A grant cannot name rows. Attributes that hold a password or a token, which shops that came from Magento 1 may have, are not
-- asked for.
GRANT SELECT (entity_id, attribute_id, value) ON {database}.{prefix}customer_entity_varchar TO {user};
GRANT SELECT (entity_id, attribute_id, value) ON {database}.{prefix}customer_entity_int TO {user};
GRANT SELECT (entity_id, attribute_id, value) ON {database}.{prefix}customer_entity_text TO {user};
GRANT SELECT (entity_id, attribute_id, value) ON {database}.{prefix}customer_entity_decimal TO {user};
GRANT SELECT (entity_id, attribute_id, value) ON {database}.{prefix}customer_entity_datetime TO {user};
GRANT SELECT (entity_id, store_id, is_active, items_count, customer_id, customer_email, customer_firstname, customer_lastname,
  quote_currency_code, grand_total, reserved_order_id, created_at, updated_at) ON {database}.{prefix}quote TO {user};
GRANT SELECT (item_id, quote_id, parent_item_id, product_id, price, qty) ON {database}.{prefix}quote_item TO {user};
GRANT SELECT (address_id, quote_id, address_type, telephone, country_id, tax_amount)
  ON {database}.{prefix}quote_address TO {user};
