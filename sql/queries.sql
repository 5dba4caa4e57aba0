-- The protocol, statement by statement. `-- name --` opens a statement; what follows it up to the next name is its text.
-- {prefix} is the shop's validated table prefix, {unique} the name of the index over (queue_id, message_id), {pending} that of
-- the optional index over (queue_id, status, message_id), {skip_locked} 'SKIP LOCKED' where the server knows it.
-- Values are always parameters. Every session: READ COMMITTED, time zone UTC, autocommit on; only claim and settle open
-- transactions, and those are short and lock rows of queue_message_status by primary key only, before rows of ours.
-- FORCE INDEX (PRIMARY): with few rows in status 3 the planner otherwise takes (status, updated_at), locks rows of other
-- workers and waits for them (measured on MariaDB 10.11 and MySQL 9.7).

-- ============================== what is there ==============================

-- server --
SELECT VERSION() AS version, @@max_allowed_packet AS max_allowed_packet

-- indexes_of_status --
-- Names of the indexes are Magento's or the administrator's business; we go by their columns.
SELECT index_name AS name, GROUP_CONCAT(column_name ORDER BY seq_in_index) AS column_names
FROM information_schema.statistics
WHERE table_schema = DATABASE() AND table_name = %(table)s
GROUP BY index_name

-- queues_by_name --
SELECT id, name FROM {prefix}queue WHERE name IN %(names)s

-- pulse --
-- One light statement a poll: is there anything newer, due or expired, what is paused, has the shop asked for a restart?
-- Each part reads one entry of an index.
SELECT q.id AS queue_id,
       (SELECT s.message_id FROM {prefix}queue_message_status AS s FORCE INDEX ({unique})
        WHERE s.queue_id = q.id ORDER BY s.message_id DESC LIMIT 1) AS newest,
       EXISTS (SELECT 1 FROM {prefix}zithara_message_group AS g WHERE g.queue_id = q.id AND g.not_before <= NOW(3)) AS due,
       EXISTS (SELECT 1 FROM {prefix}zithara_message_group AS g WHERE g.queue_id = q.id AND g.lease_until < NOW(3)) AS expired,
       (SELECT GROUP_CONCAT(c.topic) FROM {prefix}zithara_topic_control AS c) AS paused,
       (SELECT p.version FROM {prefix}queue_poison_pill AS p LIMIT 1) AS poison_pill
FROM {prefix}queue AS q
WHERE q.id IN %(queue_ids)s

-- ============================== candidates (no locks) ==============================

-- first_pending --
-- Where a worker that starts begins to read, with the optional index. Without it, it begins at zero.
SELECT MIN(message_id) AS message_id FROM (
  (SELECT message_id FROM {prefix}queue_message_status FORCE INDEX ({pending})
   WHERE queue_id = %(queue_id)s AND status = 2 ORDER BY message_id LIMIT 1)
  UNION ALL
  (SELECT message_id FROM {prefix}queue_message_status FORCE INDEX ({pending})
   WHERE queue_id = %(queue_id)s AND status = 5 ORDER BY message_id LIMIT 1)
) AS firsts

-- read_forward --
-- The next pending messages behind the worker's cursor, in the order of delivery. Reads only what lies behind the cursor:
-- flat in completed rows and in other queues' rows. A plain read: it waits for nobody and nobody waits for it.
SELECT id, message_id
FROM {prefix}queue_message_status FORCE INDEX ({unique})
WHERE queue_id = %(queue_id)s AND message_id > %(after)s AND status IN (2, 5)
ORDER BY message_id
LIMIT %(limit)s

-- sweep_range --
-- Pending messages that became visible behind the cursor: a publisher takes its ids inside the shop's transaction, so a lower
-- id can be committed later than a higher one; and Magento's cron or an operator puts old messages back to RETRY_REQUIRED.
-- Read in short ranges, so that no sweep holds the loop up.
SELECT id, message_id
FROM {prefix}queue_message_status FORCE INDEX ({unique})
WHERE queue_id = %(queue_id)s AND message_id > %(after)s AND message_id <= %(up_to)s AND status IN (2, 5)
ORDER BY message_id

-- sweep_pending --
-- The same with the optional index: reads pending rows only.
(SELECT id, message_id FROM {prefix}queue_message_status FORCE INDEX ({pending})
 WHERE queue_id = %(queue_id)s AND status = 2 AND message_id > %(after)s AND message_id <= %(up_to)s
 ORDER BY message_id LIMIT %(limit)s)
UNION ALL
(SELECT id, message_id FROM {prefix}queue_message_status FORCE INDEX ({pending})
 WHERE queue_id = %(queue_id)s AND status = 5 AND message_id > %(after)s AND message_id <= %(up_to)s
 ORDER BY message_id LIMIT %(limit)s)
ORDER BY message_id

-- sweep_first --
SELECT message_id FROM {prefix}queue_message_status FORCE INDEX ({unique})
WHERE queue_id = %(queue_id)s ORDER BY message_id LIMIT 1

-- claim_due --
-- Heads whose retry is due, and released ones.
SELECT group_key, id, message_id, supersedes, 0 AS expired
FROM {prefix}zithara_message_group FORCE INDEX (due)
WHERE queue_id = %(queue_id)s AND not_before <= NOW(3)
ORDER BY not_before
LIMIT %(limit)s

-- claim_expired --
-- Heads whose worker has not renewed its lease.
SELECT group_key, id, message_id, supersedes, 1 AS expired
FROM {prefix}zithara_message_group FORCE INDEX (lease)
WHERE queue_id = %(queue_id)s AND lease_until < NOW(3)
ORDER BY lease_until
LIMIT %(limit)s

-- bodies --
-- Bodies above %(large)s bytes are left out and read one at a time: a hundred 20 MB bodies at once would not fit in memory.
SELECT id, topic_name, LENGTH(body) AS bytes, IF(LENGTH(body) > %(large)s, NULL, body) AS body
FROM {prefix}queue_message
WHERE id IN %(message_ids)s

-- body --
SELECT body FROM {prefix}queue_message WHERE id = %(message_id)s

-- groups_busy --
SELECT group_key FROM {prefix}zithara_message_group WHERE queue_id = %(queue_id)s AND group_key IN %(group_keys)s

-- statuses --
SELECT id, status, number_of_trials FROM {prefix}queue_message_status FORCE INDEX (PRIMARY) WHERE id IN %(ids)s

-- ============================== claim (one transaction) ==============================

-- claim_lock --
-- By primary key only, in its order: locks exactly the rows returned. A single locking search on status, even with SKIP LOCKED,
-- locks the whole backlog and, on MariaDB, rows of other queues.
SELECT id, status, number_of_trials, updated_at
FROM {prefix}queue_message_status FORCE INDEX (PRIMARY)
WHERE id IN %(ids)s AND status IN %(statuses)s
ORDER BY id
LIMIT %(limit)s
FOR UPDATE {skip_locked}

-- claim_lock_groups --
-- The group rows of due and expired heads, re-read under lock: another worker may have been faster.
SELECT group_key, id, worker_id, supersedes,
       COALESCE(not_before <= NOW(3), 0) AS due, COALESCE(lease_until < NOW(3), 0) AS expired
FROM {prefix}zithara_message_group FORCE INDEX (PRIMARY)
WHERE queue_id = %(queue_id)s AND group_key IN %(group_keys)s
ORDER BY group_key
FOR UPDATE {skip_locked}

-- claim_groups --
-- Winning the group: the primary key decides.
INSERT IGNORE INTO {prefix}zithara_message_group
  (queue_id, group_key, id, message_id, supersedes, worker_id, lease_until)
VALUES (%s, %s, %s, %s, %s, %s, NOW(3) + INTERVAL %s MICROSECOND)

-- claim_groups_won --
SELECT group_key FROM {prefix}zithara_message_group FORCE INDEX (PRIMARY)
WHERE queue_id = %(queue_id)s AND group_key IN %(group_keys)s AND worker_id = %(worker_id)s AND id IN %(ids)s

-- claim_group_again --
-- Taking a waiting or expired group. The head changes only where a newer snapshot supersedes it.
UPDATE {prefix}zithara_message_group
SET id = %(id)s, message_id = %(message_id)s, supersedes = %(supersedes)s, worker_id = %(worker_id)s,
    lease_until = NOW(3) + INTERVAL %(lease_us)s MICROSECOND, not_before = NULL
WHERE queue_id = %(queue_id)s AND group_key = %(group_key)s

-- claim_take --
-- Guarded by status: a PHP consumer may have been faster.
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET status = 3, updated_at = NOW()
WHERE id IN %(ids)s AND status IN (2, 5)

-- claim_take_over --
-- The worker that held them died. One more trial, so that (id, number_of_trials) fences the dead one off, should it wake.
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET number_of_trials = number_of_trials + 1, updated_at = NOW()
WHERE id IN %(ids)s AND status = 3

-- group_forget --
-- A group row whose head is no longer pending: completed by PHP, or deleted by Magento's cleanup.
DELETE FROM {prefix}zithara_message_group
WHERE queue_id = %(queue_id)s AND group_key = %(group_key)s AND id = %(id)s AND (worker_id IS NULL OR lease_until < NOW(3))

-- group_defer --
-- A PHP consumer holds the head of a waiting group: look again later.
UPDATE {prefix}zithara_message_group SET not_before = NOW(3) + INTERVAL 5 SECOND
WHERE queue_id = %(queue_id)s AND group_key = %(group_key)s AND id = %(id)s AND worker_id IS NULL

-- ============================== leases ==============================

-- lease_renew --
-- All leases of this worker at once. Found by KEY worker; under READ COMMITTED locks our own rows only.
UPDATE {prefix}zithara_message_group
SET lease_until = NOW(3) + INTERVAL %(lease_us)s MICROSECOND
WHERE worker_id = %(worker_id)s

-- leases_held --
SELECT queue_id, group_key, id, message_id FROM {prefix}zithara_message_group WHERE worker_id = %(worker_id)s

-- ============================== settle (one transaction) ==============================

-- settle_lock --
-- Only after a doubt (a lost lease, a lost connection): which of our messages are still as we claimed them?
SELECT id, status, number_of_trials
FROM {prefix}queue_message_status FORCE INDEX (PRIMARY)
WHERE id IN %(ids)s
ORDER BY id
FOR UPDATE

-- settle_groups_held --
SELECT group_key, id FROM {prefix}zithara_message_group FORCE INDEX (PRIMARY)
WHERE queue_id = %(queue_id)s AND group_key IN %(group_keys)s AND worker_id = %(worker_id)s
FOR UPDATE

-- php_locks --
-- A PHP consumer that read the row before we claimed it looks this code up and then acknowledges without processing.
INSERT IGNORE INTO {prefix}queue_lock (message_code) VALUES (%s)

-- settle_complete --
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET status = 4, updated_at = NOW()
WHERE id IN %(ids)s AND status = 3 AND (id, number_of_trials) IN %(fences)s

-- settle_superseded --
-- Older snapshots, still pending, whose newer one has been delivered.
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET status = 4, updated_at = NOW()
WHERE id IN %(ids)s AND status IN (2, 5)

-- settle_retry --
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET status = 5, number_of_trials = number_of_trials + 1, updated_at = NOW()
WHERE id IN %(ids)s AND status = 3 AND (id, number_of_trials) IN %(fences)s

-- settle_error --
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET status = 6, number_of_trials = number_of_trials + 1, updated_at = NOW()
WHERE id IN %(ids)s AND status = 3 AND (id, number_of_trials) IN %(fences)s

-- settle_release --
-- Not the message's fault: status, updated_at and trials as they were.
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET status = %(status)s, updated_at = %(updated_at)s
WHERE id IN %(ids)s AND status = 3 AND (id, number_of_trials) IN %(fences)s

-- group_done --
DELETE FROM {prefix}zithara_message_group
WHERE queue_id = %(queue_id)s AND group_key IN %(group_keys)s AND worker_id = %(worker_id)s

-- group_wait --
-- The group keeps its head: nothing newer of it may pass.
UPDATE {prefix}zithara_message_group
SET worker_id = NULL, lease_until = NULL, not_before = NOW(3) + INTERVAL %(delay_us)s MICROSECOND
WHERE queue_id = %(queue_id)s AND group_key IN %(group_keys)s AND worker_id = %(worker_id)s

-- refund --
-- Attempts that turned out to be the first signs of an outage are given back.
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET number_of_trials = number_of_trials - 1, updated_at = updated_at
WHERE id = %(id)s AND status = 5 AND number_of_trials = %(number_of_trials)s

-- refund_group --
UPDATE {prefix}zithara_message_group SET not_before = NOW(3)
WHERE queue_id = %(queue_id)s AND group_key = %(group_key)s AND id = %(id)s AND worker_id IS NULL

-- refund_failure --
UPDATE {prefix}zithara_delivery_failure SET attempts = attempts - 1 WHERE id = %(id)s AND attempts > 0

-- refund_failure_gone --
DELETE FROM {prefix}zithara_delivery_failure WHERE id = %(id)s AND attempts = 0

-- ============================== failures ==============================

-- failure_record --
INSERT INTO {prefix}zithara_delivery_failure
  (id, queue_id, message_id, topic_name, group_key, attempts, reason_code, http_status, detail,
   first_failed_at, last_failed_at, history)
VALUES (%(id)s, %(queue_id)s, %(message_id)s, %(topic)s, %(group_key)s, 1, %(reason)s, %(http_status)s, %(detail)s,
        NOW(3), NOW(3), CONCAT(%(history)s, '\n'))
ON DUPLICATE KEY UPDATE attempts = attempts + 1, reason_code = VALUES(reason_code), http_status = VALUES(http_status),
  detail = VALUES(detail), last_failed_at = VALUES(last_failed_at), history = RIGHT(CONCAT(history, VALUES(history)), 8000)

-- failures_gone --
DELETE FROM {prefix}zithara_delivery_failure WHERE id IN %(ids)s

-- failures_of_groups --
SELECT id, group_key, message_id FROM {prefix}zithara_delivery_failure FORCE INDEX (message_group)
WHERE queue_id = %(queue_id)s AND group_key IN %(group_keys)s AND newer_delivered = 0

-- failures_overtaken --
UPDATE {prefix}zithara_delivery_failure SET newer_delivered = 1 WHERE id IN %(ids)s

-- ============================== the expiry guard ==============================

-- expiring --
-- NEW messages of ours that Magento's cleanup would delete as too old: found through Magento's own (status, updated_at).
SELECT id FROM {prefix}queue_message_status
WHERE status = 2 AND updated_at < NOW() - INTERVAL %(age)s SECOND AND queue_id IN %(queue_ids)s
ORDER BY id
LIMIT %(limit)s

-- keep_from_expiry --
-- updated_at plays no part in our order, so it may be touched.
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET updated_at = NOW()
WHERE id IN %(ids)s AND status = 2

-- ============================== the fleet ==============================

-- worker_seen --
INSERT INTO {prefix}zithara_worker
  (id, host, pid, version, topics, started_at, last_seen_at, metrics_address, in_flight, state, minutes)
VALUES (%(id)s, %(host)s, %(pid)s, %(version)s, %(topics)s, NOW(3), NOW(3), %(metrics_address)s, %(in_flight)s, %(state)s,
        %(minutes)s)
ON DUPLICATE KEY UPDATE last_seen_at = VALUES(last_seen_at), in_flight = VALUES(in_flight), state = VALUES(state),
  minutes = VALUES(minutes), metrics_address = VALUES(metrics_address)

-- worker_gone --
DELETE FROM {prefix}zithara_worker WHERE id = %(id)s

-- workers_forget --
DELETE FROM {prefix}zithara_worker WHERE last_seen_at < NOW(3) - INTERVAL 1 DAY

-- ============================== the shop's settings ==============================

-- shop_config --
SELECT path, value FROM {prefix}core_config_data
WHERE scope = 'default' AND (path LIKE 'zithara\_webhook/%%' OR path LIKE 'system/mysqlmq/%%')

-- webhook_configs --
SELECT config_id, is_active, webhook_url, event_types, client_id, client_secret
FROM {prefix}zithara_webhook_config ORDER BY config_id

-- token_load --
-- The active row is the first with is_active = 1 (the module's Helper\Data).
SELECT config_id, access_token, UNIX_TIMESTAMP(token_expiry) AS expires_at
FROM {prefix}zithara_webhook_config WHERE is_active = 1 ORDER BY config_id LIMIT 1

-- token_save --
UPDATE {prefix}zithara_webhook_config
SET access_token = %(token)s, token_expiry = FROM_UNIXTIME(%(expires_at)s)
WHERE config_id = %(config_id)s

-- token_lock --
-- Held by the connection, so a worker that dies frees it. Lower case and short: MySQL folds case and cuts at 64.
SELECT GET_LOCK(%(name)s, %(seconds)s) AS got

-- token_unlock --
SELECT RELEASE_LOCK(%(name)s) AS released

-- ============================== publish ==============================

-- publish_message --
INSERT INTO {prefix}queue_message (topic_name, body) VALUES (%(topic)s, %(body)s)

-- publish_status --
INSERT INTO {prefix}queue_message_status (queue_id, message_id, status) VALUES (%(queue_id)s, %(message_id)s, %(status)s)

-- ============================== paused topics ==============================

-- pause --
-- Pausing again keeps who was first, and since when.
INSERT IGNORE INTO {prefix}zithara_topic_control (topic, paused_by, paused_at, reason)
VALUES (%(topic)s, %(paused_by)s, NOW(3), %(reason)s)

-- resume --
DELETE FROM {prefix}zithara_topic_control WHERE topic = %(topic)s

-- paused --
SELECT topic, paused_by, paused_at, reason FROM {prefix}zithara_topic_control ORDER BY topic
