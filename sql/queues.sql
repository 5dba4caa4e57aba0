-- Registers the module's four queues, as Magento's setup:upgrade does from a topology. Existing rows stay.
-- NOT EXISTS and not INSERT IGNORE, because an ignored duplicate would still use up a value of queue.id.
INSERT INTO {prefix}queue (name) SELECT 'zithara_order_queue' FROM DUAL
WHERE NOT EXISTS (SELECT 1 FROM {prefix}queue AS present WHERE present.name = 'zithara_order_queue');
INSERT INTO {prefix}queue (name) SELECT 'zithara_customer_queue' FROM DUAL
WHERE NOT EXISTS (SELECT 1 FROM {prefix}queue AS present WHERE present.name = 'zithara_customer_queue');
INSERT INTO {prefix}queue (name) SELECT 'zithara_cart_queue' FROM DUAL
WHERE NOT EXISTS (SELECT 1 FROM {prefix}queue AS present WHERE present.name = 'zithara_cart_queue');
INSERT INTO {prefix}queue (name) SELECT 'zithara_webhook_queue' FROM DUAL
WHERE NOT EXISTS (SELECT 1 FROM {prefix}queue AS present WHERE present.name = 'zithara_webhook_queue');
