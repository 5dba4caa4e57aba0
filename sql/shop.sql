-- The shop's settings, and the access token that the PHP module and the workers share. The notation: see queue.sql.

-- shop_config --
SELECT path, value FROM {prefix}core_config_data
WHERE scope = 'default' AND (path LIKE 'zithara\_webhook/%%' OR path LIKE 'system/mysqlmq/%%')

-- webhook_configs --
SELECT config_id, is_active, webhook_url, event_types, client_id, client_secret
FROM {prefix}zithara_webhook_config ORDER BY config_id

-- token_load --
-- The active row is the first with is_active = 1, as in the module's Helper\Data.
SELECT config_id, access_token, UNIX_TIMESTAMP(token_expiry) AS expires_at
FROM {prefix}zithara_webhook_config WHERE is_active = 1 ORDER BY config_id LIMIT 1

-- token_save --
UPDATE {prefix}zithara_webhook_config
SET access_token = %(token)s, token_expiry = FROM_UNIXTIME(%(expires_at)s)
WHERE config_id = %(config_id)s

-- ============================== carts ==============================

-- carts_active --
SELECT entity_id, is_active FROM {prefix}quote WHERE entity_id IN %(ids)s
