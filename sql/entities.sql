-- The shop's orders, customers and carts, as reconcile and trace read them. The notation: see queue.sql.
-- Columns after Magento 2.4 (Sales, Customer, Quote and Eav, etc/db_schema.xml). Each statement names the columns it reads: no
-- password, card or token is among them. Plain reads without locks.
--
-- A page reads the next %(limit)s rows of the kind in the order of the primary key, whatever the window, and returns a row for
-- each that lies in the window, and one with entity_id 0 for all others together; where %(each)s is 0, that one for all. The sum
-- of `seen` is the number of rows read, that of `found` how many lie in the window; the greatest last_id is where the next page
-- begins. By primary key though orders have an index on updated_at: in the order of time an entity that is saved meanwhile would
-- move behind the page, and customers and carts have no such index.

-- ============================== orders ==============================

-- orders_page --
SELECT IF(in_window AND %(each)s, entity_id, 0) AS entity_id, MAX(entity_id) AS last_id, COUNT(*) AS seen,
       SUM(in_window) AS found, MAX(increment_id) AS label, MAX(store_id) AS store_id, MAX(created_at) AS created_at,
       MAX(updated_at) AS updated_at
FROM (SELECT entity_id, increment_id, store_id, CAST(created_at AS CHAR) AS created_at, CAST(updated_at AS CHAR) AS updated_at,
             (%(since)s IS NULL OR updated_at >= %(since)s) AND (%(until)s IS NULL OR updated_at < %(until)s) AS in_window
      FROM {prefix}sales_order FORCE INDEX (PRIMARY)
      WHERE entity_id > %(after)s
      ORDER BY entity_id
      LIMIT %(limit)s) AS next_rows
GROUP BY IF(in_window AND %(each)s, entity_id, 0)

-- orders_newest --
SELECT COALESCE(MAX(entity_id), 0) AS newest FROM {prefix}sales_order

-- orders_times --
SELECT entity_id, CAST(updated_at AS CHAR) AS updated_at FROM {prefix}sales_order WHERE entity_id IN %(ids)s

-- orders_find --
-- By the index over (increment_id, store_id).
SELECT entity_id, increment_id AS label, store_id, CAST(created_at AS CHAR) AS created_at, CAST(updated_at AS CHAR) AS updated_at
FROM {prefix}sales_order WHERE increment_id IN %(labels)s ORDER BY entity_id

-- orders_ambiguous --
-- Order numbers are unique within a store only. By the index over (increment_id, store_id). Zithara tells 'a-1' from 'A-1'.
SELECT MAX(increment_id) AS label FROM {prefix}sales_order
WHERE increment_id IN %(labels)s GROUP BY CAST(increment_id AS BINARY) HAVING COUNT(*) > 1

-- orders_rows --
SELECT entity_id, increment_id, state, status, customer_id, customer_email, customer_firstname, customer_lastname, subtotal,
       tax_amount, discount_amount, grand_total, order_currency_code, CAST(created_at AS CHAR) AS created_at,
       CAST(updated_at AS CHAR) AS updated_at
FROM {prefix}sales_order WHERE entity_id IN %(ids)s

-- orders_items --
-- Children of configurable products and bundles included, as the module's OrderCreate has them.
SELECT order_id, item_id, product_id, sku, name, qty_ordered, price, tax_amount, discount_amount
FROM {prefix}sales_order_item WHERE order_id IN %(ids)s LIMIT %(limit)s

-- orders_payments --
SELECT parent_id, method, amount_paid, amount_authorized, last_trans_id
FROM {prefix}sales_order_payment WHERE parent_id IN %(ids)s ORDER BY entity_id

-- orders_addresses --
SELECT parent_id, address_type, street, city, region, postcode, country_id, telephone
FROM {prefix}sales_order_address WHERE parent_id IN %(ids)s ORDER BY entity_id

-- ============================== customers ==============================

-- customers_page --
-- A customer is as old as the newest of its own row and its addresses: an address is saved without the customer.
SELECT IF(in_window AND %(each)s, entity_id, 0) AS entity_id, MAX(entity_id) AS last_id, COUNT(*) AS seen,
       SUM(in_window) AS found, MAX(store_id) AS store_id, MAX(created_at) AS created_at, MAX(updated_at) AS updated_at
FROM (SELECT entity_id, store_id, CAST(created_at AS CHAR) AS created_at, CAST(changed_at AS CHAR) AS updated_at,
             (%(since)s IS NULL OR changed_at >= %(since)s) AND (%(until)s IS NULL OR changed_at < %(until)s) AS in_window
      FROM (SELECT c.entity_id, MAX(c.store_id) AS store_id, MAX(c.created_at) AS created_at,
                   GREATEST(MAX(c.updated_at), COALESCE(MAX(a.updated_at), MAX(c.updated_at))) AS changed_at
            FROM (SELECT entity_id, store_id, created_at, updated_at
                  FROM {prefix}customer_entity FORCE INDEX (PRIMARY)
                  WHERE entity_id > %(after)s
                  ORDER BY entity_id
                  LIMIT %(limit)s) AS c
            LEFT JOIN {prefix}customer_address_entity AS a ON a.parent_id = c.entity_id
            GROUP BY c.entity_id) AS aged) AS next_rows
GROUP BY IF(in_window AND %(each)s, entity_id, 0)

-- customers_newest --
SELECT COALESCE(MAX(entity_id), 0) AS newest FROM {prefix}customer_entity

-- customers_find --
SELECT c.entity_id, MAX(c.store_id) AS store_id, CAST(MAX(c.created_at) AS CHAR) AS created_at,
       CAST(GREATEST(MAX(c.updated_at), COALESCE(MAX(a.updated_at), MAX(c.updated_at))) AS CHAR) AS updated_at
FROM {prefix}customer_entity AS c LEFT JOIN {prefix}customer_address_entity AS a ON a.parent_id = c.entity_id
WHERE c.entity_id IN %(labels)s GROUP BY c.entity_id ORDER BY c.entity_id

-- customers_rows --
SELECT entity_id, email, firstname, lastname, default_billing, default_shipping
FROM {prefix}customer_entity WHERE entity_id IN %(ids)s

-- customers_addresses --
-- told_since: when the message of its last save was published, or a little earlier, as clocks may differ by seconds.
SELECT entity_id, parent_id, street, city, region, postcode, country_id, telephone,
       CAST(updated_at - INTERVAL 5 SECOND AS CHAR) AS told_since
FROM {prefix}customer_address_entity WHERE parent_id IN %(ids)s LIMIT %(limit)s

-- customers_attributes --
-- The customers' own attributes. Those that are columns of customer_entity ('static') are Magento's. Shops that came from
-- Magento 1 may hold password and token as attributes.
SELECT a.attribute_id, a.attribute_code, a.backend_type
FROM {prefix}eav_attribute AS a JOIN {prefix}eav_entity_type AS t ON t.entity_type_id = a.entity_type_id
WHERE t.entity_type_code = 'customer' AND a.backend_type IN ('varchar', 'int', 'text', 'decimal', 'datetime')
  AND a.attribute_code NOT LIKE '%%password%%' AND a.attribute_code NOT LIKE 'rp\_token%%'
ORDER BY a.attribute_id

-- customers_values --
-- By the index over (entity_id, attribute_id) of each table.
SELECT entity_id, attribute_id, 'varchar' AS backend_type, CAST(value AS CHAR) AS value FROM {prefix}customer_entity_varchar
WHERE entity_id IN %(ids)s AND attribute_id IN %(attributes)s
UNION ALL
SELECT entity_id, attribute_id, 'int', CAST(value AS CHAR) FROM {prefix}customer_entity_int
WHERE entity_id IN %(ids)s AND attribute_id IN %(attributes)s
UNION ALL
SELECT entity_id, attribute_id, 'text', CAST(value AS CHAR) FROM {prefix}customer_entity_text
WHERE entity_id IN %(ids)s AND attribute_id IN %(attributes)s
UNION ALL
SELECT entity_id, attribute_id, 'decimal', CAST(value AS CHAR) FROM {prefix}customer_entity_decimal
WHERE entity_id IN %(ids)s AND attribute_id IN %(attributes)s
UNION ALL
SELECT entity_id, attribute_id, 'datetime', CAST(value AS CHAR) FROM {prefix}customer_entity_datetime
WHERE entity_id IN %(ids)s AND attribute_id IN %(attributes)s

-- ============================== carts ==============================

-- carts_page --
-- A cart is active, with items and an email address, as the module's cron CheckAbandonedCarts selects them.
SELECT IF(in_window AND %(each)s, entity_id, 0) AS entity_id, MAX(entity_id) AS last_id, COUNT(*) AS seen,
       SUM(in_window) AS found, MAX(store_id) AS store_id, MAX(created_at) AS created_at, MAX(updated_at) AS updated_at
FROM (SELECT entity_id, store_id, CAST(created_at AS CHAR) AS created_at, CAST(updated_at AS CHAR) AS updated_at,
             is_active = 1 AND items_count > 0 AND customer_email IS NOT NULL
             AND (%(since)s IS NULL OR updated_at >= %(since)s) AND (%(until)s IS NULL OR updated_at < %(until)s) AS in_window
      FROM {prefix}quote FORCE INDEX (PRIMARY)
      WHERE entity_id > %(after)s
      ORDER BY entity_id
      LIMIT %(limit)s) AS next_rows
GROUP BY IF(in_window AND %(each)s, entity_id, 0)

-- carts_newest --
SELECT COALESCE(MAX(entity_id), 0) AS newest FROM {prefix}quote

-- carts_times --
SELECT entity_id, CAST(updated_at AS CHAR) AS updated_at FROM {prefix}quote
WHERE entity_id IN %(ids)s AND is_active = 1 AND items_count > 0 AND customer_email IS NOT NULL

-- carts_find --
SELECT entity_id, store_id, CAST(created_at AS CHAR) AS created_at, CAST(updated_at AS CHAR) AS updated_at
FROM {prefix}quote WHERE entity_id IN %(labels)s ORDER BY entity_id

-- carts_rows --
SELECT entity_id, customer_id, customer_email, customer_firstname, customer_lastname, quote_currency_code, grand_total,
       reserved_order_id, CAST(created_at AS CHAR) AS created_at
FROM {prefix}quote WHERE entity_id IN %(ids)s AND is_active = 1 AND items_count > 0 AND customer_email IS NOT NULL

-- carts_items --
SELECT quote_id, item_id, parent_item_id, product_id, price, qty
FROM {prefix}quote_item WHERE quote_id IN %(ids)s LIMIT %(limit)s

-- carts_addresses --
SELECT quote_id, address_type, telephone, country_id, tax_amount
FROM {prefix}quote_address WHERE quote_id IN %(ids)s ORDER BY address_id
