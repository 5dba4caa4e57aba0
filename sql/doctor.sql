-- What `doctor` checks. Plain reads, and statements that find no row: nothing here locks a row. The notation: see queue.sql.

-- session_variables --
SHOW SESSION VARIABLES WHERE Variable_name IN
  ('transaction_isolation', 'tx_isolation', 'binlog_format', 'log_bin', 'time_zone', 'read_only', 'innodb_read_only')

-- cluster_variables --
SHOW VARIABLES WHERE Variable_name IN
  ('innodb_flush_log_at_trx_commit', 'innodb_autoinc_lock_mode', 'auto_increment_increment', 'pxc_strict_mode',
   'group_replication_group_name', 'group_replication_single_primary_mode')

-- cluster_status --
SHOW STATUS WHERE Variable_name IN
  ('wsrep_cluster_size', 'wsrep_cluster_status', 'wsrep_ready', 'wsrep_local_state_comment', 'wsrep_local_recv_queue')

-- group_members --
SELECT MEMBER_HOST AS host, MEMBER_PORT AS port, MEMBER_STATE AS state
FROM performance_schema.replication_group_members

-- who_answers --
SELECT @@hostname AS host, @@port AS port, @@server_id AS server_id

-- newest_ids --
SELECT id FROM {prefix}queue_message ORDER BY id DESC LIMIT %(limit)s

-- newest_of_queue --
SELECT message_id, status, UNIX_TIMESTAMP(updated_at) AS updated_at
FROM {prefix}queue_message_status FORCE INDEX ({unique})
WHERE queue_id = %(queue_id)s ORDER BY message_id DESC LIMIT 1

-- newest_message --
SELECT COALESCE(MAX(id), 0) AS id FROM {prefix}queue_message

-- unlinked_messages --
-- Messages of our topics that are on no queue: they were published while the topology had no binding to a database exchange.
-- Reads a range of ids, because topic_name has no index. A message and its link become visible within one request of the shop.
SELECT m.id, m.topic_name FROM {prefix}queue_message AS m
WHERE m.id > %(after)s AND m.topic_name IN %(topics)s
  AND NOT EXISTS (SELECT 1 FROM {prefix}queue_message_status AS s WHERE s.message_id = m.id)
ORDER BY m.id
LIMIT %(limit)s

-- in_progress --
SELECT id, queue_id, message_id, UNIX_TIMESTAMP(updated_at) AS updated_at
FROM {prefix}queue_message_status {by_status}
WHERE status = 3 AND queue_id IN %(queue_ids)s
LIMIT %(limit)s

-- heads_leased --
SELECT id FROM {prefix}zithara_message_group WHERE queue_id IN %(queue_ids)s AND worker_id IS NOT NULL

-- php_lock_codes --
SELECT message_code FROM {prefix}queue_lock WHERE message_code IN %(codes)s

-- rejected_elsewhere --
-- ERROR rows of the last day without a failure row: a PHP consumer rejected them.
SELECT s.queue_id, COUNT(*) AS messages FROM {prefix}queue_message_status AS s {by_status}
WHERE s.status = 6 AND s.updated_at > NOW() - INTERVAL 1 DAY AND s.queue_id IN %(queue_ids)s
  AND NOT EXISTS (SELECT 1 FROM {prefix}zithara_delivery_failure AS f WHERE f.id = s.id)
GROUP BY s.queue_id

-- old_new_messages --
SELECT COUNT(*) AS messages, UNIX_TIMESTAMP(MIN(updated_at)) AS oldest
FROM {prefix}queue_message_status {by_status}
WHERE status = 2 AND updated_at < NOW() - INTERVAL %(age)s SECOND AND queue_id IN %(queue_ids)s

-- privilege_queue_select --
-- Each privilege_ statement needs one privilege and finds no row: the server checks privileges before it reads rows.
SELECT id, name FROM {prefix}queue WHERE 1 = 0

-- privilege_queue_message_select --
SELECT id, topic_name, body FROM {prefix}queue_message WHERE 1 = 0

-- privilege_queue_poison_pill_select --
SELECT version FROM {prefix}queue_poison_pill WHERE 1 = 0

-- privilege_core_config_data_select --
SELECT scope, path, value FROM {prefix}core_config_data WHERE 1 = 0

-- privilege_publish_message --
-- Of an account that publishes: `relay`, `publish`, and `reconcile --publish`.
INSERT INTO {prefix}queue_message (topic_name, body) SELECT '', '' FROM DUAL WHERE 1 = 0

-- privilege_publish_status --
INSERT INTO {prefix}queue_message_status (queue_id, message_id, status) SELECT 1, 1, 2 FROM DUAL WHERE 1 = 0

-- privilege_queue_message_status_select --
SELECT id, queue_id, message_id, updated_at, status, number_of_trials FROM {prefix}queue_message_status WHERE 1 = 0

-- privilege_queue_message_status_update --
UPDATE {prefix}queue_message_status SET status = 3, number_of_trials = 0, updated_at = NOW() WHERE 1 = 0

-- privilege_queue_lock_insert --
INSERT INTO {prefix}queue_lock (message_code) SELECT 'zithara-worker doctor' FROM DUAL WHERE 1 = 0

-- privilege_zithara_webhook_config_select --
SELECT config_id, is_active, webhook_url, event_types, client_id, client_secret, access_token, token_expiry
FROM {prefix}zithara_webhook_config WHERE 1 = 0

-- privilege_zithara_webhook_config_update --
UPDATE {prefix}zithara_webhook_config SET access_token = NULL, token_expiry = NULL WHERE 1 = 0

-- privilege_zithara_message_group_select --
SELECT id FROM {prefix}zithara_message_group WHERE 1 = 0

-- privilege_zithara_message_group_insert --
INSERT INTO {prefix}zithara_message_group (queue_id, group_key, id, message_id) SELECT 1, '', 1, 1 FROM DUAL WHERE 1 = 0

-- privilege_zithara_message_group_update --
UPDATE {prefix}zithara_message_group SET not_before = NULL WHERE 1 = 0

-- privilege_zithara_message_group_delete --
DELETE FROM {prefix}zithara_message_group WHERE 1 = 0

-- privilege_zithara_delivery_failure_select --
SELECT id FROM {prefix}zithara_delivery_failure WHERE 1 = 0

-- privilege_zithara_delivery_failure_insert --
INSERT INTO {prefix}zithara_delivery_failure
  (id, queue_id, message_id, topic_name, group_key, attempts, reason_code, detail, first_failed_at, last_failed_at, history)
SELECT 1, 1, 1, '', '', 0, '', '', NOW(3), NOW(3), '' FROM DUAL WHERE 1 = 0

-- privilege_zithara_delivery_failure_update --
UPDATE {prefix}zithara_delivery_failure SET newer_delivered = 0 WHERE 1 = 0

-- privilege_zithara_delivery_failure_delete --
DELETE FROM {prefix}zithara_delivery_failure WHERE 1 = 0

-- privilege_zithara_delivery_select --
SELECT group_key FROM {prefix}zithara_delivery WHERE 1 = 0

-- privilege_zithara_delivery_insert --
INSERT INTO {prefix}zithara_delivery
  (topic_name, group_key, destination, message_id, published_at, covers, first_accepted_at, last_accepted_at, accepted)
SELECT '', '', '', 0, NOW(), '', NOW(3), NOW(3), 0 FROM DUAL WHERE 1 = 0

-- privilege_zithara_delivery_update --
UPDATE {prefix}zithara_delivery SET stale = 0 WHERE 1 = 0

-- privilege_zithara_delivery_delete --
DELETE FROM {prefix}zithara_delivery WHERE 1 = 0

-- privilege_zithara_worker_select --
SELECT id FROM {prefix}zithara_worker WHERE 1 = 0

-- privilege_zithara_worker_insert --
INSERT INTO {prefix}zithara_worker
  (id, host, pid, version, topics, started_at, last_seen_at, in_flight, state, minutes)
SELECT '', '', 0, '', '', NOW(3), NOW(3), 0, '', '' FROM DUAL WHERE 1 = 0

-- privilege_zithara_worker_update --
UPDATE {prefix}zithara_worker SET in_flight = 0 WHERE 1 = 0

-- privilege_zithara_worker_delete --
DELETE FROM {prefix}zithara_worker WHERE 1 = 0

-- privilege_zithara_topic_control_select --
SELECT topic FROM {prefix}zithara_topic_control WHERE 1 = 0

-- privilege_zithara_topic_control_insert --
INSERT INTO {prefix}zithara_topic_control (topic, paused_by, paused_at, reason)
SELECT '', '', NOW(3), '' FROM DUAL WHERE 1 = 0

-- privilege_zithara_topic_control_update --
UPDATE {prefix}zithara_topic_control SET reason = '' WHERE 1 = 0

-- privilege_zithara_topic_control_delete --
DELETE FROM {prefix}zithara_topic_control WHERE 1 = 0

-- privilege_zithara_lock_select --
SELECT name FROM {prefix}zithara_lock WHERE 1 = 0

-- privilege_zithara_lock_insert --
INSERT INTO {prefix}zithara_lock (name, owner, lease_until) SELECT '', '', NOW(3) FROM DUAL WHERE 1 = 0

-- privilege_zithara_lock_update --
UPDATE {prefix}zithara_lock SET owner = '' WHERE 1 = 0

-- privilege_zithara_lock_delete --
DELETE FROM {prefix}zithara_lock WHERE 1 = 0

-- privilege_zithara_ledger_select --
SELECT topic FROM {prefix}zithara_ledger WHERE 1 = 0

-- privilege_zithara_ledger_insert --
INSERT INTO {prefix}zithara_ledger (topic, id_epoch, looked_until, sure_since) SELECT '', 0, NOW(3), NOW(3) FROM DUAL WHERE 1 = 0

-- privilege_zithara_ledger_update --
UPDATE {prefix}zithara_ledger SET id_epoch = 0 WHERE 1 = 0

-- privilege_zithara_ledger_delete --
DELETE FROM {prefix}zithara_ledger WHERE 1 = 0

-- privilege_zithara_reconciliation_select --
SELECT kind FROM {prefix}zithara_reconciliation WHERE 1 = 0

-- privilege_zithara_reconciliation_insert --
INSERT INTO {prefix}zithara_reconciliation (kind, started_at, result) SELECT '', NOW(3), '' FROM DUAL WHERE 1 = 0

-- privilege_zithara_reconciliation_update --
UPDATE {prefix}zithara_reconciliation SET result = '' WHERE 1 = 0

-- privilege_zithara_reconciliation_delete --
DELETE FROM {prefix}zithara_reconciliation WHERE 1 = 0

-- privilege_zithara_relayed_select --
SELECT queue_name FROM {prefix}zithara_relayed WHERE 1 = 0

-- privilege_zithara_relayed_insert --
INSERT INTO {prefix}zithara_relayed (queue_name, message_id, body, relayed_at) SELECT '', '', '', NOW(3) FROM DUAL WHERE 1 = 0

-- privilege_zithara_relayed_update --
UPDATE {prefix}zithara_relayed SET relayed_at = NOW(3) WHERE 1 = 0

-- privilege_zithara_relayed_delete --
DELETE FROM {prefix}zithara_relayed WHERE 1 = 0

-- privilege_zithara_relay_aside_select --
SELECT id FROM {prefix}zithara_relay_aside WHERE 1 = 0

-- privilege_zithara_relay_aside_insert --
INSERT INTO {prefix}zithara_relay_aside
  (id, piece, pieces, queue_name, topic_name, message_id, length, reason_code, detail, kept_at, content)
SELECT '', 0, 0, '', '', '', 0, '', '', NOW(3), '' FROM DUAL WHERE 1 = 0

-- privilege_zithara_relay_aside_update --
UPDATE {prefix}zithara_relay_aside SET detail = '' WHERE 1 = 0

-- privilege_zithara_relay_aside_delete --
DELETE FROM {prefix}zithara_relay_aside WHERE 1 = 0
