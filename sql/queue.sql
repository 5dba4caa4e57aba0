-- The delivery protocol, statement by statement; the other files of statements are written in the same way.
-- `-- name --` opens a statement; what follows it up to the next name is its text. No two statements share a name.
-- {prefix} is the shop's validated table prefix, {unique} the name of the index over (queue_id, message_id), {pending} that of
-- the optional index over (queue_id, status, message_id), {skip_locked} 'SKIP LOCKED' where the server knows it.
-- Values are always parameters. Every session: READ COMMITTED, time zone UTC, autocommit on; only claim and settle open
-- transactions, and those are short and lock rows of queue_message_status by primary key only, before rows of ours.
-- FORCE INDEX (PRIMARY): with few rows in status 3 the planner otherwise takes (status, updated_at), locks rows of other
-- workers and waits for them (measured on MariaDB 10.11 and MySQL 9.7).

-- ============================== what is there ==============================

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
-- What has failed before: how often with us, and what an operator decided. `overtaken`: newer data of the group was delivered
-- since, and no operator wants this message sent all the same.
SELECT id, attempts, unwitnessed, retries, newer_delivered = 1 AS overtaken,
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
-- A group row, locked by this transaction, whose head is no longer pending and which has no next one.
DELETE FROM {prefix}zithara_message_group
WHERE queue_id = %(queue_id)s AND group_key = %(group_key)s AND id = %(id)s AND (worker_id IS NULL OR lease_until < NOW(3))

-- group_yield --
-- A free group gets another head: an older message that became visible late, behind which the head of now comes; or the next
-- message, where the head of now is no longer pending.
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
-- Not what is overtaken already, unless an operator wants it sent all the same.
SELECT f.id, f.group_key, f.message_id, s.status
FROM {prefix}zithara_delivery_failure AS f FORCE INDEX (message_group)
JOIN {prefix}queue_message_status AS s FORCE INDEX (PRIMARY) ON s.id = f.id
WHERE f.queue_id = %(queue_id)s AND f.group_key IN %(group_keys)s AND f.newer_delivered <> 1
ORDER BY f.message_id

-- failures_overtaken --
UPDATE {prefix}zithara_delivery_failure SET newer_delivered = newer_delivered | 1 WHERE id IN %(ids)s

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
