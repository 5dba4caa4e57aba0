-- The grants of a least-privilege account for the worker. {database} is the shop's database, {user} the account
-- ('name'@'host').
-- Read messages, and the shop's settings.
GRANT SELECT ON {database}.{prefix}queue TO {user};
GRANT SELECT ON {database}.{prefix}queue_message TO {user};
GRANT SELECT ON {database}.{prefix}queue_poison_pill TO {user};
-- A grant cannot name rows, so this account can read all settings of the shop in core_config_data.
GRANT SELECT (scope, path, value) ON {database}.{prefix}core_config_data TO {user};
-- Claim and settle: the worker changes only these columns of the status rows, and inserts and deletes none.
GRANT SELECT, UPDATE (status, number_of_trials, updated_at) ON {database}.{prefix}queue_message_status TO {user};
-- Tell a PHP consumer that has selected a message earlier that the message is complete.
GRANT INSERT ON {database}.{prefix}queue_lock TO {user};
-- The access token is shared with the PHP module, and written back after a refresh. Only the columns that the worker uses:
-- not refresh_token.
GRANT SELECT (config_id, is_active, webhook_url, event_types, client_id, client_secret, access_token, token_expiry),
  UPDATE (access_token, token_expiry) ON {database}.{prefix}zithara_webhook_config TO {user};
-- The worker's own tables.
GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.{prefix}zithara_message_group TO {user};
GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.{prefix}zithara_delivery_failure TO {user};
GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.{prefix}zithara_worker TO {user};
GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.{prefix}zithara_topic_control TO {user};
GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.{prefix}zithara_lock TO {user};
GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.{prefix}zithara_delivery TO {user};
GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.{prefix}zithara_ledger TO {user};
GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.{prefix}zithara_reconciliation TO {user};
GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.{prefix}zithara_relayed TO {user};
GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.{prefix}zithara_relay_aside TO {user};
-- Whether a cart is still one: an ordered cart is not reported as abandoned. Without this grant carts are sent all the same.
GRANT SELECT (entity_id, is_active) ON {database}.{prefix}quote TO {user};
