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

-- slice --
-- The pending ones of the next %(limit)s messages of the queue, in the order of delivery, and in the row with id 0 the last of the
-- others; `seen` counts them all. Bounded in rows of this queue, whatever the ids: flat in other queues' rows, and however many
-- completed rows there are, no statement lasts. Serves the read behind the cursor and the sweep: a publisher takes its ids inside
-- the shop's transaction, so a lower id can be committed later than a higher one; and Magento's cron or an operator puts old
-- messages back to RETRY_REQUIRED. A plain read: it waits for nobody and nobody waits for it.
SELECT IF(status IN (2, 5), id, 0) AS id, MAX(message_id) AS message_id, COUNT(*) AS seen
FROM (SELECT id, message_id, status
      FROM {prefix}queue_message_status FORCE INDEX ({unique})
      WHERE queue_id = %(queue_id)s AND message_id > %(after)s AND message_id <= %(up_to)s
      ORDER BY message_id
      LIMIT %(limit)s) AS next_rows
GROUP BY IF(status IN (2, 5), id, 0)

-- pending_slice --
-- The same with the optional index: reads pending rows only.
(SELECT id, message_id FROM {prefix}queue_message_status FORCE INDEX ({pending})
 WHERE queue_id = %(queue_id)s AND status = 2 AND message_id > %(after)s AND message_id <= %(up_to)s
 ORDER BY message_id LIMIT %(limit)s)
UNION ALL
(SELECT id, message_id FROM {prefix}queue_message_status FORCE INDEX ({pending})
 WHERE queue_id = %(queue_id)s AND status = 5 AND message_id > %(after)s AND message_id <= %(up_to)s
 ORDER BY message_id LIMIT %(limit)s)
ORDER BY message_id
LIMIT %(limit)s

-- look_back --
-- The pending ones of the last %(limit)s messages of the queue that the cursor has passed in the last seconds.
SELECT id, message_id
FROM (SELECT id, message_id, status
      FROM {prefix}queue_message_status FORCE INDEX ({unique})
      WHERE queue_id = %(queue_id)s AND message_id > %(after)s AND message_id <= %(up_to)s
      ORDER BY message_id DESC
      LIMIT %(limit)s) AS last_rows
WHERE status IN (2, 5)

-- pending_of --
-- Which of these messages are still pending: those of a group of which only the message ids were kept in memory.
SELECT id, message_id
FROM {prefix}queue_message_status FORCE INDEX ({unique})
WHERE queue_id = %(queue_id)s AND message_id IN %(message_ids)s AND status IN (2, 5)

-- claim_due --
-- Heads whose retry is due, and released ones.
SELECT group_key, id, message_id, supersedes
FROM {prefix}zithara_message_group FORCE INDEX (due)
WHERE queue_id = %(queue_id)s AND not_before <= NOW(3)
ORDER BY not_before
LIMIT %(limit)s

-- claim_expired --
-- Heads whose worker has not renewed its lease. Not this worker's own: those are renewed, or given back, by their owner.
SELECT group_key, id, message_id, supersedes
FROM {prefix}zithara_message_group FORCE INDEX (lease)
WHERE queue_id = %(queue_id)s AND lease_until < NOW(3) AND worker_id <> %(worker_id)s
ORDER BY lease_until
LIMIT %(limit)s

-- bodies --
-- The lengths of all, and the bodies of up to %(large)s bytes; the others are read once it is known that there is room for them.
SELECT id, topic_name, LENGTH(body) AS bytes, IF(LENGTH(body) > %(large)s, NULL, body) AS body
FROM {prefix}queue_message
WHERE id IN %(message_ids)s

-- groups_busy --
SELECT group_key, id, message_id, supersedes, worker_id FROM {prefix}zithara_message_group
WHERE queue_id = %(queue_id)s AND group_key IN %(group_keys)s

-- statuses --
SELECT id, status, number_of_trials FROM {prefix}queue_message_status FORCE INDEX (PRIMARY) WHERE id IN %(ids)s

-- ============================== claim (one transaction) ==============================

-- claim_lock --
-- By primary key only, in its order: locks exactly the rows returned. A single locking search on status, even with SKIP LOCKED,
-- locks the whole backlog and, on MariaDB, rows of other queues. updated_at as text: it is only ever written back.
SELECT id, status, number_of_trials, CAST(updated_at AS CHAR) AS updated_at
FROM {prefix}queue_message_status FORCE INDEX (PRIMARY)
WHERE id IN %(ids)s AND status IN %(statuses)s
ORDER BY id
LIMIT %(limit)s
FOR UPDATE {skip_locked}

-- claim_lock_groups --
-- The group rows of due and expired heads, re-read under lock: another worker may have been faster.
SELECT group_key, id, worker_id, suspect, supersedes,
       COALESCE(not_before <= NOW(3), 0) AS due, COALESCE(lease_until < NOW(3), 0) AS expired
FROM {prefix}zithara_message_group FORCE INDEX (PRIMARY)
WHERE queue_id = %(queue_id)s AND group_key IN %(group_keys)s
ORDER BY group_key
FOR UPDATE {skip_locked}

-- claim_groups --
-- Winning the group: the primary key decides.
INSERT IGNORE INTO {prefix}zithara_message_group
  (queue_id, group_key, id, message_id, supersedes, worker_id, claim, lease_until)
VALUES (%(queue_id)s, %s, %s, %s, %s, %(worker_id)s, %(claim)s, NOW(3) + INTERVAL %(lease_us)s MICROSECOND)

-- claim_groups_won --
SELECT group_key, id FROM {prefix}zithara_message_group FORCE INDEX (PRIMARY)
WHERE queue_id = %(queue_id)s AND group_key IN %(group_keys)s AND worker_id = %(worker_id)s AND claim = %(claim)s

-- claim_failures --
-- What has failed before: how often with us, and what an operator decided.
SELECT id, attempts, unwitnessed, retries, newer_delivered,
       TIMESTAMPDIFF(MICROSECOND, last_failed_at, NOW(3)) / 1000000 AS failed_ago
FROM {prefix}zithara_delivery_failure WHERE id IN %(ids)s

-- claim_group_again --
-- Taking a waiting or expired group. The head changes only where a newer snapshot supersedes it.
UPDATE {prefix}zithara_message_group
SET id = %(id)s, message_id = %(message_id)s, supersedes = %(supersedes)s, worker_id = %(worker_id)s, claim = %(claim)s,
    suspect = %(suspect)s, lease_until = NOW(3) + INTERVAL %(lease_us)s MICROSECOND, not_before = NULL
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

-- group_yield --
-- An older message became visible late while the head waits: it goes first, and the head of now comes behind it.
UPDATE {prefix}zithara_message_group FORCE INDEX (PRIMARY)
SET id = %(id)s, message_id = %(message_id)s, supersedes = %(behind)s, worker_id = NULL, suspect = 0,
    lease_until = NULL, not_before = NOW(3)
WHERE queue_id = %(queue_id)s AND group_key = %(group_key)s AND id = %(head)s AND (worker_id IS NULL OR lease_until < NOW(3))

-- group_defer --
-- A PHP consumer holds the head of a waiting group: look again later.
UPDATE {prefix}zithara_message_group SET not_before = NOW(3) + INTERVAL 5 SECOND
WHERE queue_id = %(queue_id)s AND group_key = %(group_key)s AND id = %(id)s AND worker_id IS NULL

-- ============================== leases ==============================

-- lease_renew --
-- By primary key, like every statement that writes groups.
UPDATE {prefix}zithara_message_group FORCE INDEX (PRIMARY)
SET lease_until = NOW(3) + INTERVAL %(lease_us)s MICROSECOND
WHERE queue_id = %(queue_id)s AND group_key IN %(group_keys)s AND worker_id = %(worker_id)s
  AND (group_key, claim) IN %(claims)s

-- leases_held --
-- A plain read: what the tables say that this worker holds. By KEY worker, which the planner leaves for the whole table
-- when few workers share it.
SELECT queue_id, group_key, id, message_id, claim FROM {prefix}zithara_message_group FORCE INDEX (worker)
WHERE worker_id = %(worker_id)s

-- ============================== settle (one transaction) ==============================

-- settle_lock --
-- Only after a doubt (a lost lease, a lost connection): which of our messages are still as we claimed them?
SELECT id, status, number_of_trials
FROM {prefix}queue_message_status FORCE INDEX (PRIMARY)
WHERE id IN %(ids)s
ORDER BY id
FOR UPDATE

-- settle_groups --
SELECT group_key, id, worker_id, claim FROM {prefix}zithara_message_group FORCE INDEX (PRIMARY)
WHERE queue_id = %(queue_id)s AND group_key IN %(group_keys)s
FOR UPDATE

-- settle_evidence --
-- A failure's history names the claim of each attempt: proof that an earlier try to settle was committed.
SELECT id, history FROM {prefix}zithara_delivery_failure WHERE id IN %(ids)s

-- php_locks --
-- A PHP consumer that read the row before we claimed it looks this code up and then acknowledges without processing.
INSERT IGNORE INTO {prefix}queue_lock (message_code) VALUES (%s)

-- settle_complete --
-- Fenced, like its neighbours: those of one number of trials at a time.
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET status = 4, updated_at = NOW()
WHERE id IN %(ids)s AND status = 3 AND number_of_trials = %(number_of_trials)s

-- settle_superseded --
-- Older snapshots whose newer one has been delivered; locked as pending in this transaction.
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET status = 4, updated_at = NOW()
WHERE id IN %(ids)s AND status IN (2, 5)

-- settle_retry --
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET status = 5, number_of_trials = number_of_trials + 1, updated_at = NOW()
WHERE id IN %(ids)s AND status = 3 AND number_of_trials = %(number_of_trials)s

-- settle_error --
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET status = 6, number_of_trials = number_of_trials + 1, updated_at = NOW()
WHERE id IN %(ids)s AND status = 3 AND number_of_trials = %(number_of_trials)s

-- settle_release --
-- Not the message's fault: status, updated_at and trials as they were.
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET status = %(status)s, updated_at = %(updated_at)s
WHERE id IN %(ids)s AND status = 3 AND number_of_trials = %(number_of_trials)s

-- group_done --
-- Fenced by worker and claim, like its neighbours: a group that was taken over, or claimed again, is another claim's.
-- FORCE INDEX, which only this form of DELETE takes: a small table would be read whole, and its locked rows waited for.
DELETE g FROM {prefix}zithara_message_group AS g FORCE INDEX (PRIMARY)
WHERE queue_id = %(queue_id)s AND group_key IN %(group_keys)s AND worker_id = %(worker_id)s
  AND (group_key, claim) IN %(claims)s

-- group_wait --
-- The group keeps its head: nothing newer of it may pass.
UPDATE {prefix}zithara_message_group FORCE INDEX (PRIMARY)
SET worker_id = NULL, suspect = 0, lease_until = NULL, not_before = NOW(3) + INTERVAL %(delay_us)s MICROSECOND
WHERE queue_id = %(queue_id)s AND group_key IN %(group_keys)s AND worker_id = %(worker_id)s
  AND (group_key, claim) IN %(claims)s

-- group_hand_over --
-- The newest snapshot did not arrive. The oldest of those that it stood for is the head again, before anything newer.
UPDATE {prefix}zithara_message_group FORCE INDEX (PRIMARY)
SET id = %(id)s, message_id = %(message_id)s, supersedes = %(behind)s, worker_id = NULL, suspect = 0,
    lease_until = NULL, not_before = NOW(3)
WHERE queue_id = %(queue_id)s AND group_key IN %(group_keys)s AND worker_id = %(worker_id)s
  AND (group_key, claim) IN %(claims)s

-- refund --
-- Attempts that turned out to be the first signs of an outage are given back.
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET number_of_trials = number_of_trials - 1, updated_at = updated_at
WHERE id = %(id)s AND status = 5 AND number_of_trials = %(number_of_trials)s

-- refund_failure --
UPDATE {prefix}zithara_delivery_failure
SET attempts = attempts - 1, unwitnessed = GREATEST(unwitnessed, %(unwitnessed)s) - %(unwitnessed)s
WHERE id = %(id)s AND attempts > 0

-- group_wake --
-- Groups that wait for the retry of these messages need not wait any longer.
UPDATE {prefix}zithara_message_group FORCE INDEX (PRIMARY) SET not_before = NOW(3)
WHERE queue_id = %(queue_id)s AND group_key IN %(group_keys)s AND id IN %(ids)s AND worker_id IS NULL AND not_before > NOW(3)

-- ============================== failures ==============================

-- failure_record --
INSERT INTO {prefix}zithara_delivery_failure
  (id, queue_id, message_id, topic_name, group_key, attempts, unwitnessed, reason_code, http_status, detail,
   first_failed_at, last_failed_at, history)
VALUES (%(id)s, %(queue_id)s, %(message_id)s, %(topic)s, %(group_key)s, %(paid)s, %(unwitnessed)s, %(reason)s, %(http_status)s,
        %(detail)s, NOW(3), NOW(3), CONCAT(%(history)s, '\n'))
ON DUPLICATE KEY UPDATE attempts = attempts + VALUES(attempts), unwitnessed = unwitnessed + VALUES(unwitnessed),
  reason_code = VALUES(reason_code), http_status = VALUES(http_status), detail = VALUES(detail), last_failed_at = VALUES(last_failed_at), history = RIGHT(CONCAT(history, VALUES(history)), 8000)

-- failures_gone --
DELETE FROM {prefix}zithara_delivery_failure WHERE id IN %(ids)s

-- failures_of_groups --
-- What has failed of these groups: messages that newer data overtakes, and pending ones, the oldest of which is the next head.
SELECT f.id, f.group_key, f.message_id, s.status
FROM {prefix}zithara_delivery_failure AS f FORCE INDEX (message_group)
JOIN {prefix}queue_message_status AS s FORCE INDEX (PRIMARY) ON s.id = f.id
WHERE f.queue_id = %(queue_id)s AND f.group_key IN %(group_keys)s AND f.newer_delivered = 0
ORDER BY f.message_id

-- failures_overtaken --
UPDATE {prefix}zithara_delivery_failure SET newer_delivered = 1 WHERE id IN %(ids)s

-- ============================== the expiry guard ==============================

-- expiring --
-- The next %(limit)s NEW messages that Magento's cleanup will delete as too old, oldest first, of all queues: through Magento's own
-- (status, updated_at), behind which InnoDB keeps the primary key. In two parts, so that each begins where the last slice ended,
-- however many rows have one and the same updated_at.
(SELECT id, queue_id, CAST(updated_at AS CHAR) AS updated_at FROM {prefix}queue_message_status {by_status}
 WHERE status = 2 AND updated_at = %(updated_at)s AND id > %(after)s
 ORDER BY id LIMIT %(limit)s)
UNION ALL
(SELECT id, queue_id, CAST(updated_at AS CHAR) AS updated_at FROM {prefix}queue_message_status {by_status}
 WHERE status = 2 AND updated_at > %(updated_at)s AND updated_at < NOW() - INTERVAL %(age)s SECOND
 ORDER BY {prefix}queue_message_status.updated_at, id LIMIT %(limit)s)
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

-- ============================== what one process of the fleet may do at a time ==============================

-- lock_take --
-- Locks one row of ours, by its primary key, and only within this statement; so do the two below.
INSERT IGNORE INTO {prefix}zithara_lock (name, owner, lease_until)
VALUES (%(name)s, %(owner)s, NOW(3) + INTERVAL %(lease_us)s MICROSECOND)

-- lock_take_over --
UPDATE {prefix}zithara_lock SET owner = %(owner)s, lease_until = NOW(3) + INTERVAL %(lease_us)s MICROSECOND
WHERE name = %(name)s AND (owner = %(owner)s OR lease_until < NOW(3))

-- lock_free --
DELETE FROM {prefix}zithara_lock WHERE name = %(name)s AND owner = %(owner)s

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
SELECT topic, paused_by, UNIX_TIMESTAMP(paused_at) AS paused_at_utc, reason FROM {prefix}zithara_topic_control ORDER BY topic

-- ============================== what an operator sees ==============================

-- clock --
SELECT UNIX_TIMESTAMP(NOW(3)) AS now

-- queue_counts --
-- All but the completed messages. Through Magento's own (status, updated_at), so that millions of completed rows are not
-- read; pending rows of other queues are.
SELECT queue_id, status, COUNT(*) AS messages, UNIX_TIMESTAMP(MIN(updated_at)) AS oldest
FROM {prefix}queue_message_status {by_status}
WHERE status IN (2, 3, 5, 6) AND queue_id IN %(queue_ids)s
GROUP BY queue_id, status

-- queue_counts_indexed --
-- The same with the optional index, which alone answers it; the oldest is then the one with the lowest message id.
SELECT c.queue_id, c.status, c.messages,
       (SELECT UNIX_TIMESTAMP(s.updated_at) FROM {prefix}queue_message_status AS s FORCE INDEX ({unique})
        WHERE s.queue_id = c.queue_id AND s.message_id = c.first) AS oldest
FROM (SELECT queue_id, status, COUNT(*) AS messages, MIN(message_id) AS first
      FROM {prefix}queue_message_status FORCE INDEX ({pending})
      WHERE queue_id IN %(queue_ids)s AND status IN (2, 3, 5, 6)
      GROUP BY queue_id, status) AS c

-- complete_counts --
-- Reads every row of the queues: only when somebody asks for it.
SELECT queue_id, COUNT(*) AS messages FROM {prefix}queue_message_status
WHERE queue_id IN %(queue_ids)s AND status = 4
GROUP BY queue_id

-- group_counts --
-- Busy groups only, however long the backlog is.
SELECT queue_id,
       COALESCE(SUM(lease_until >= NOW(3)), 0) AS in_flight,
       COALESCE(SUM(lease_until < NOW(3)), 0) AS expired,
       COALESCE(SUM(not_before > NOW(3)), 0) AS waiting,
       UNIX_TIMESTAMP(MIN(not_before)) AS next_due
FROM {prefix}zithara_message_group
WHERE queue_id IN %(queue_ids)s
GROUP BY queue_id

-- leases_by_worker --
SELECT worker_id, queue_id, COUNT(*) AS messages, MIN(message_id) AS first_message_id,
       UNIX_TIMESTAMP(MIN(lease_until)) AS lease_until
FROM {prefix}zithara_message_group
WHERE worker_id IS NOT NULL
GROUP BY worker_id, queue_id

-- workers --
SELECT id, host, pid, version, topics, UNIX_TIMESTAMP(started_at) AS started_at,
       UNIX_TIMESTAMP(last_seen_at) AS last_seen_at, metrics_address, in_flight, state, minutes
FROM {prefix}zithara_worker
ORDER BY host, started_at, id

-- ============================== failed messages, as an operator asks for them ==============================

-- failed_ids --
-- ERROR rows of all makers, also those that a PHP consumer rejected: they have no row of ours, and no reason.
-- Through Magento's (status, updated_at). A failure row without its message, which Magento has deleted, is not found.
SELECT s.id
FROM {prefix}queue_message_status AS s {by_status}
LEFT JOIN {prefix}zithara_delivery_failure AS f ON f.id = s.id
WHERE s.status IN %(statuses)s AND s.queue_id IN %(queue_ids)s AND s.id > %(after)s
  AND (s.status <> 5 OR f.id IS NOT NULL)
  AND (%(any_reason)s OR COALESCE(f.reason_code, 'unrecorded') IN %(reasons)s)
  AND (%(group_key)s IS NULL OR f.group_key = %(group_key)s)
  AND (%(older)s IS NULL OR COALESCE(f.last_failed_at, s.updated_at) <= NOW(3) - INTERVAL %(older)s SECOND)
  AND (%(newer)s IS NULL OR COALESCE(f.last_failed_at, s.updated_at) >= NOW(3) - INTERVAL %(newer)s SECOND)
ORDER BY s.id
LIMIT %(limit)s

-- failed_by_ids --
SELECT s.id, s.queue_id, q.name AS queue_name, s.message_id, s.status, s.number_of_trials,
       UNIX_TIMESTAMP(s.updated_at) AS updated_at, f.topic_name, f.group_key, f.attempts, f.reason_code, f.http_status,
       f.detail, UNIX_TIMESTAMP(f.first_failed_at) AS first_failed_at, UNIX_TIMESTAMP(f.last_failed_at) AS last_failed_at,
       COALESCE(f.newer_delivered, 0) AS newer_delivered, f.unwitnessed, f.retries,
       UNIX_TIMESTAMP(f.discarded_at) AS discarded_at, f.history
FROM {prefix}queue_message_status AS s FORCE INDEX (PRIMARY)
JOIN {prefix}queue AS q ON q.id = s.queue_id
LEFT JOIN {prefix}zithara_delivery_failure AS f ON f.id = s.id
WHERE s.id IN %(ids)s
ORDER BY s.id

-- relations_of_messages --
SELECT id, message_id FROM {prefix}queue_message_status FORCE INDEX ({unique})
WHERE queue_id IN %(queue_ids)s AND message_id IN %(message_ids)s
ORDER BY id

-- messages_after --
-- What came to a queue after a message, in order; without bodies that are large.
SELECT s.message_id, s.status, UNIX_TIMESTAMP(s.updated_at) AS updated_at, m.topic_name,
       IF(LENGTH(m.body) > %(large)s, NULL, m.body) AS body
FROM {prefix}queue_message_status AS s FORCE INDEX ({unique})
JOIN {prefix}queue_message AS m ON m.id = s.message_id
WHERE s.queue_id = %(queue_id)s AND s.message_id > %(after)s
ORDER BY s.message_id
LIMIT %(limit)s

-- body_part --
-- A body that may exceed max_allowed_packet, piece by piece. Positions count characters, from 1.
SELECT SUBSTRING(body, %(start)s, %(length)s) AS part FROM {prefix}queue_message WHERE id = %(message_id)s

-- failed_counts --
-- A selection by queue and reason; the topic is the queue's. `since`: the first failure among them.
SELECT s.queue_id, COALESCE(f.reason_code, 'unrecorded') AS reason, COUNT(*) AS messages, MAX(s.message_id) AS newest,
       UNIX_TIMESTAMP(MIN(COALESCE(f.first_failed_at, s.updated_at))) AS since
FROM {prefix}queue_message_status AS s FORCE INDEX (PRIMARY)
LEFT JOIN {prefix}zithara_delivery_failure AS f ON f.id = s.id
WHERE s.id IN %(ids)s
GROUP BY s.queue_id, reason

-- failures_lock --
-- The rows of an operator's command that are in ERROR or discarded, locked by primary key before any row of a group. Their
-- failure rows are locked too: a delivery that sets newer_delivered is seen, or waits.
SELECT s.id, s.status, COALESCE(f.newer_delivered, 0) AS newer_delivered
FROM {prefix}queue_message_status AS s FORCE INDEX (PRIMARY)
LEFT JOIN {prefix}zithara_delivery_failure AS f ON f.id = s.id
WHERE s.id IN %(ids)s AND (s.status = 6 OR (s.status = 4 AND f.discarded_at IS NOT NULL))
ORDER BY s.id
FOR UPDATE

-- failed_wake --
-- A due head for each group that has none: the next poll of any worker sees it, and nothing newer of the group passes it.
INSERT IGNORE INTO {prefix}zithara_message_group (queue_id, group_key, id, message_id, not_before)
VALUES (%s, %s, %s, %s, NOW(3))

-- failed_heads --
-- The heads of these groups. Locked by primary key: none of them ends meanwhile. `recorded`: its message has failed before.
SELECT g.group_key, g.id, g.message_id, g.worker_id, g.supersedes,
       EXISTS (SELECT 1 FROM {prefix}zithara_delivery_failure AS f WHERE f.id = g.id) AS recorded
FROM {prefix}zithara_message_group AS g FORCE INDEX (PRIMARY)
WHERE g.queue_id = %(queue_id)s AND g.group_key IN %(group_keys)s
ORDER BY g.group_key
FOR UPDATE

-- failed_first --
-- An older message takes the place of a head that only waits for its next attempt. That one has a failure row, so whoever
-- settles the older one makes it the head again.
UPDATE {prefix}zithara_message_group
SET id = %(id)s, message_id = %(message_id)s, not_before = NOW(3)
WHERE queue_id = %(queue_id)s AND group_key = %(group_key)s AND worker_id IS NULL

-- failed_retry --
-- ERROR, or COMPLETE where an operator discarded it, to RETRY_REQUIRED, with all attempts before it.
UPDATE {prefix}queue_message_status AS s FORCE INDEX (PRIMARY)
SET s.status = 5, s.number_of_trials = 0, s.updated_at = NOW()
WHERE s.id IN %(ids)s AND (s.status = 6 OR (s.status = 4 AND EXISTS (
  SELECT 1 FROM {prefix}zithara_delivery_failure AS f WHERE f.id = s.id AND f.discarded_at IS NOT NULL)))

-- failed_discard --
-- No row of queue_lock comes with it: a PHP consumer would acknowledge the message without processing, should it be taken back.
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET status = 4, updated_at = NOW()
WHERE id IN %(ids)s AND status = 6

-- failures_unrecorded --
-- A row for what a PHP consumer rejected, so that what an operator decides about it has a place.
INSERT IGNORE INTO {prefix}zithara_delivery_failure
  (id, queue_id, message_id, topic_name, group_key, attempts, reason_code, detail, first_failed_at, last_failed_at, history)
VALUES (%s, %s, %s, %s, %s, 0, 'unrecorded', '', NOW(3), NOW(3), '')

-- failures_retried --
-- `retries` is part of the Idempotency-Key: what an operator asks for is sent, also where the API remembers keys.
UPDATE {prefix}zithara_delivery_failure
SET attempts = 0, unwitnessed = 0, retries = retries + 1, discarded_at = NULL,
    history = RIGHT(CONCAT(history, %(line)s, '\n'), 8000)
WHERE id IN %(ids)s

-- failures_discarded --
UPDATE {prefix}zithara_delivery_failure
SET discarded_at = NOW(3), history = RIGHT(CONCAT(history, %(line)s, '\n'), 8000)
WHERE id IN %(ids)s

-- failures_without_message --
-- What is left of messages that Magento's cleanup has deleted. Read first, then deleted by primary key.
SELECT f.id FROM {prefix}zithara_delivery_failure AS f
WHERE NOT EXISTS (SELECT 1 FROM {prefix}queue_message_status AS s WHERE s.id = f.id)
LIMIT %(limit)s

-- ============================== doctor ==============================

-- session_variables --
SHOW SESSION VARIABLES WHERE Variable_name IN
  ('transaction_isolation', 'tx_isolation', 'binlog_format', 'log_bin', 'time_zone', 'read_only', 'innodb_read_only')

-- cipher --
SHOW SESSION STATUS WHERE Variable_name = 'Ssl_cipher'

-- tables_present --
SELECT table_name AS name, engine AS engine, table_comment AS comment FROM information_schema.tables
WHERE table_schema = DATABASE() AND table_name IN %(tables)s

-- column_present --
SELECT column_name AS name FROM information_schema.columns
WHERE table_schema = DATABASE() AND table_name = %(table)s AND column_name = %(column)s

-- newest_of_queue --
SELECT message_id, status, UNIX_TIMESTAMP(updated_at) AS updated_at
FROM {prefix}queue_message_status FORCE INDEX ({unique})
WHERE queue_id = %(queue_id)s ORDER BY message_id DESC LIMIT 1

-- newest_message --
SELECT COALESCE(MAX(id), 0) AS id FROM {prefix}queue_message

-- unlinked_messages --
-- Messages of our topics that no queue has: published while the topology had no binding on a database exchange.
-- topic_name has no index, so a range of ids is read; a message and its link become visible within one request of the shop.
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
-- ERROR rows of the last day without a reason of ours: only a PHP consumer writes those.
SELECT s.queue_id, COUNT(*) AS messages FROM {prefix}queue_message_status AS s {by_status}
WHERE s.status = 6 AND s.updated_at > NOW() - INTERVAL 1 DAY AND s.queue_id IN %(queue_ids)s
  AND NOT EXISTS (SELECT 1 FROM {prefix}zithara_delivery_failure AS f WHERE f.id = s.id)
GROUP BY s.queue_id

-- old_new_messages --
SELECT COUNT(*) AS messages, UNIX_TIMESTAMP(MIN(updated_at)) AS oldest
FROM {prefix}queue_message_status {by_status}
WHERE status = 2 AND updated_at < NOW() - INTERVAL %(age)s SECOND AND queue_id IN %(queue_ids)s

-- privilege_queue_select --
-- The privileges, each tried on no row: the server checks them before it looks for rows.
SELECT id, name FROM {prefix}queue WHERE 1 = 0

-- privilege_queue_message_select --
SELECT id, topic_name, body FROM {prefix}queue_message WHERE 1 = 0

-- privilege_queue_poison_pill_select --
SELECT version FROM {prefix}queue_poison_pill WHERE 1 = 0

-- privilege_core_config_data_select --
SELECT scope, path, value FROM {prefix}core_config_data WHERE 1 = 0

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
