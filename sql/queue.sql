-- The delivery protocol, statement by statement.
--
-- Notation of this file and of the other files of named statements (`QUERIES` in zithara_worker/database/statements.py):
-- `-- name --` begins a statement, which ends at the next name. A name is used once in all these files.
-- {prefix}       the shop's validated table prefix
-- {unique}       the index over (queue_id, message_id)
-- {pending}      the optional index over (queue_id, status, message_id)
-- {by_status}    FORCE INDEX of Magento's index over (status, updated_at), where the shop has it
-- {skip_locked}  'SKIP LOCKED', where the server knows it
-- Values are always parameters. Every session runs with READ COMMITTED, time zone UTC and autocommit.
--
-- Only claim, settle and an operator's commands open transactions. These are short; they lock rows of queue_message_status
-- by primary key only, and before rows of our own tables.
-- FORCE INDEX (PRIMARY): when few rows have status 3, the planner otherwise takes (status, updated_at), locks rows of other
-- workers and waits for them (measured on MariaDB 10.11 and MySQL 9.7).

-- ============================== queues, and the poll ==============================

-- queues_by_name --
SELECT id, name FROM {prefix}queue WHERE name IN %(names)s

-- poll --
-- The poll: the newest message of each queue, whether a group is due or its lease has expired, which topics are paused, and
-- the poison pill, by which the shop asks its consumers to restart. Each part reads one entry of an index.
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
-- Looks at the next %(limit)s messages of the queue in the order of delivery. Returns a row for each pending one, and a row
-- with id 0 for all others together, with the last message id among them. The sum of `seen` is the number of messages read.
-- Bounded in rows of this queue, so its cost depends neither on other queues' rows nor on the number of completed ones.
-- Serves the reads at the cursor and the sweep. The sweep is needed because a publisher takes its ids inside the shop's
-- transaction, so a lower id can be committed later than a higher one, and because Magento's cron or an operator sets old
-- messages back to RETRY_REQUIRED. A plain read: it sets no lock and waits for none.
SELECT IF(status IN (2, 5), id, 0) AS id, MAX(message_id) AS message_id, COUNT(*) AS seen
FROM (SELECT id, message_id, status
      FROM {prefix}queue_message_status FORCE INDEX ({unique})
      WHERE queue_id = %(queue_id)s AND message_id > %(after)s AND message_id <= %(up_to)s
      ORDER BY message_id
      LIMIT %(limit)s) AS next_rows
GROUP BY IF(status IN (2, 5), id, 0)

-- pending_slice --
-- The same by the optional index, which reads pending rows only.
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
-- The pending ones among the last %(limit)s messages that the cursor has passed: found if they were committed late.
SELECT id, message_id
FROM (SELECT id, message_id, status
      FROM {prefix}queue_message_status FORCE INDEX ({unique})
      WHERE queue_id = %(queue_id)s AND message_id > %(after)s AND message_id <= %(up_to)s
      ORDER BY message_id DESC
      LIMIT %(limit)s) AS last_rows
WHERE status IN (2, 5)

-- pending_of --
-- Which of these messages are still pending. For groups of which the worker remembers only message ids.
SELECT id, message_id
FROM {prefix}queue_message_status FORCE INDEX ({unique})
WHERE queue_id = %(queue_id)s AND message_id IN %(message_ids)s AND status IN (2, 5)

-- claim_due --
-- Heads whose retry is due, and released ones. Served by KEY due.
SELECT group_key, id, message_id, supersedes
FROM {prefix}zithara_message_group FORCE INDEX (due)
WHERE queue_id = %(queue_id)s AND not_before <= NOW(3)
ORDER BY not_before
LIMIT %(limit)s

-- claim_expired --
-- Heads whose worker has not renewed its lease. Not this worker's own heads: it renews them, or gives them back. Served by
-- KEY lease.
SELECT group_key, id, message_id, supersedes
FROM {prefix}zithara_message_group FORCE INDEX (lease)
WHERE queue_id = %(queue_id)s AND lease_until < NOW(3) AND worker_id <> %(worker_id)s
ORDER BY lease_until
LIMIT %(limit)s

-- bodies --
-- The lengths of all bodies, and the bodies up to %(large)s bytes. Larger ones are read when the memory budget has room.
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
-- By primary key only, and in its order: locks exactly the rows that it returns. A locking search by status, even with SKIP
-- LOCKED, would lock the whole backlog and, on MariaDB, rows of other queues. updated_at as text, because it is only written
-- back.
SELECT id, status, number_of_trials, CAST(updated_at AS CHAR) AS updated_at
FROM {prefix}queue_message_status FORCE INDEX (PRIMARY)
WHERE id IN %(ids)s AND status IN %(statuses)s
ORDER BY id
LIMIT %(limit)s
FOR UPDATE {skip_locked}

-- claim_lock_groups --
-- The group rows of due and expired heads, read again under lock, because another worker may have claimed them meanwhile.
SELECT group_key, id, worker_id, suspect, supersedes,
       COALESCE(not_before <= NOW(3), 0) AS due, COALESCE(lease_until < NOW(3), 0) AS expired
FROM {prefix}zithara_message_group FORCE INDEX (PRIMARY)
WHERE queue_id = %(queue_id)s AND group_key IN %(group_keys)s
ORDER BY group_key
FOR UPDATE {skip_locked}

-- claim_groups --
-- Claims groups that have no row. The primary key decides: IGNORE leaves out a group that another worker has claimed.
INSERT IGNORE INTO {prefix}zithara_message_group
  (queue_id, group_key, id, message_id, supersedes, worker_id, claim, lease_until)
VALUES (%(queue_id)s, %s, %s, %s, %s, %(worker_id)s, %(claim)s, NOW(3) + INTERVAL %(lease_us)s MICROSECOND)

-- claim_groups_won --
SELECT group_key, id FROM {prefix}zithara_message_group FORCE INDEX (PRIMARY)
WHERE queue_id = %(queue_id)s AND group_key IN %(group_keys)s AND worker_id = %(worker_id)s AND claim = %(claim)s

-- claim_failures --
-- What is recorded of messages that have failed before. `overtaken`: newer data of the group has been delivered since, and no
-- operator forced the retry.
SELECT id, group_key, attempts, unwitnessed, retries, newer_delivered = 1 AS overtaken,
       TIMESTAMPDIFF(MICROSECOND, last_failed_at, NOW(3)) / 1000000 AS failed_ago
FROM {prefix}zithara_delivery_failure WHERE id IN %(ids)s

-- claim_group_again --
-- Claims a group whose head waits, or whose lease has expired. The head changes only if a newer snapshot supersedes it.
UPDATE {prefix}zithara_message_group
SET id = %(id)s, message_id = %(message_id)s, supersedes = %(supersedes)s, worker_id = %(worker_id)s, claim = %(claim)s,
    suspect = %(suspect)s, lease_until = NOW(3) + INTERVAL %(lease_us)s MICROSECOND, not_before = NULL
WHERE queue_id = %(queue_id)s AND group_key = %(group_key)s

-- claim_take --
-- Guarded by status, because a PHP consumer sets IN_PROGRESS without our locks.
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET status = 3, updated_at = NOW()
WHERE id IN %(ids)s AND status IN (2, 5)

-- claim_take_over --
-- Messages whose worker died. Adds a trial, so that the fence (id, number_of_trials) stops that worker if it wakes up.
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET number_of_trials = number_of_trials + 1, updated_at = NOW()
WHERE id IN %(ids)s AND status = 3

-- group_forget --
-- Deletes the row of a group whose head is no longer pending and which has no other message. This transaction has locked it.
DELETE FROM {prefix}zithara_message_group
WHERE queue_id = %(queue_id)s AND group_key = %(group_key)s AND id = %(id)s AND (worker_id IS NULL OR lease_until < NOW(3))

-- group_yield --
-- Gives a group that nobody holds another head: an older message that became visible late, which goes before the present head;
-- or the next message, if the present head is no longer pending.
UPDATE {prefix}zithara_message_group FORCE INDEX (PRIMARY)
SET id = %(id)s, message_id = %(message_id)s, supersedes = %(behind)s, worker_id = NULL, suspect = 0,
    lease_until = NULL, not_before = NOW(3)
WHERE queue_id = %(queue_id)s AND group_key = %(group_key)s AND id = %(head)s AND (worker_id IS NULL OR lease_until < NOW(3))

-- group_defer --
-- A PHP consumer holds the head of a waiting group: try again in 5 seconds.
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
-- What this worker holds according to the tables; a plain read. FORCE INDEX, because with few workers the planner would read
-- the whole table.
SELECT queue_id, group_key, id, message_id, claim FROM {prefix}zithara_message_group FORCE INDEX (worker)
WHERE worker_id = %(worker_id)s

-- ============================== settle (one transaction) ==============================

-- settle_lock --
-- Only after a lost lease or a lost connection: which messages still have the status and the trials of our claim?
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
-- The history of a failure names the claim of each attempt, which proves that an earlier attempt to settle was committed.
SELECT id, history FROM {prefix}zithara_delivery_failure WHERE id IN %(ids)s

-- php_locks --
-- A PHP consumer that selected the message before our claim looks this code up, and then acknowledges it without processing.
INSERT IGNORE INTO {prefix}queue_lock (message_code) VALUES (%s)

-- settle_complete --
-- Fenced by number_of_trials, like the other settle statements: one statement for each number.
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET status = 4, updated_at = NOW()
WHERE id IN %(ids)s AND status = 3 AND number_of_trials = %(number_of_trials)s

-- settle_superseded --
-- Older snapshots, after the newer one has been delivered. This transaction has locked them as pending.
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
-- Gives a message back without an attempt: status and updated_at as they were before the claim.
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET status = %(status)s, updated_at = %(updated_at)s
WHERE id IN %(ids)s AND status = 3 AND number_of_trials = %(number_of_trials)s

-- group_done --
-- Fenced by worker and claim, like the statements below: a group that was taken over or claimed again is left alone.
-- This form of DELETE, because only it accepts FORCE INDEX: the planner would read a small table whole and wait for locked rows.
DELETE g FROM {prefix}zithara_message_group AS g FORCE INDEX (PRIMARY)
WHERE queue_id = %(queue_id)s AND group_key IN %(group_keys)s AND worker_id = %(worker_id)s
  AND (group_key, claim) IN %(claims)s

-- group_wait --
-- The group keeps its head, so that no newer message of it is delivered first.
UPDATE {prefix}zithara_message_group FORCE INDEX (PRIMARY)
SET worker_id = NULL, suspect = 0, lease_until = NULL, not_before = NOW(3) + INTERVAL %(delay_us)s MICROSECOND
WHERE queue_id = %(queue_id)s AND group_key IN %(group_keys)s AND worker_id = %(worker_id)s
  AND (group_key, claim) IN %(claims)s

-- group_hand_over --
-- The newest snapshot was not delivered. The oldest of the messages that it stood for becomes the head again.
UPDATE {prefix}zithara_message_group FORCE INDEX (PRIMARY)
SET id = %(id)s, message_id = %(message_id)s, supersedes = %(behind)s, worker_id = NULL, suspect = 0,
    lease_until = NULL, not_before = NOW(3)
WHERE queue_id = %(queue_id)s AND group_key IN %(group_keys)s AND worker_id = %(worker_id)s
  AND (group_key, claim) IN %(claims)s

-- refund --
-- Gives back an attempt that turned out to belong to an outage.
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET number_of_trials = number_of_trials - 1, updated_at = updated_at
WHERE id = %(id)s AND status = 5 AND number_of_trials = %(number_of_trials)s

-- refund_failure --
UPDATE {prefix}zithara_delivery_failure
SET attempts = attempts - 1, unwitnessed = GREATEST(unwitnessed, %(unwitnessed)s) - %(unwitnessed)s
WHERE id = %(id)s AND attempts > 0

-- group_wake --
-- Ends the wait of the groups whose heads are these messages.
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
  reason_code = VALUES(reason_code), http_status = VALUES(http_status), detail = VALUES(detail),
  last_failed_at = VALUES(last_failed_at), history = RIGHT(CONCAT(history, VALUES(history)), 8000)

-- failures_gone --
DELETE FROM {prefix}zithara_delivery_failure WHERE id IN %(ids)s

-- failure_over --
-- Of a message that is complete and that no worker of ours delivered: a PHP consumer did, or an operator discarded it, who may
-- take that back.
DELETE FROM {prefix}zithara_delivery_failure WHERE id = %(id)s AND discarded_at IS NULL

-- failures_of_groups --
-- The recorded failures of these groups: messages that the newer delivery overtakes, and pending ones, of which the oldest is the
-- next head. Without those that are overtaken already, unless an operator forced their retry. Served by KEY message_group.
SELECT f.id, f.group_key, f.message_id, s.status
FROM {prefix}zithara_delivery_failure AS f FORCE INDEX (message_group)
JOIN {prefix}queue_message_status AS s FORCE INDEX (PRIMARY) ON s.id = f.id
WHERE f.queue_id = %(queue_id)s AND f.group_key IN %(group_keys)s AND f.newer_delivered <> 1
ORDER BY f.message_id

-- failures_overtaken --
UPDATE {prefix}zithara_delivery_failure SET newer_delivered = newer_delivered | 1 WHERE id IN %(ids)s

-- ============================== the expiry guard ==============================

-- expiring --
-- The next %(limit)s NEW messages, of all queues, that Magento's cleanup will soon delete as too old; the oldest first. Served by
-- Magento's index (status, updated_at), to which InnoDB appends the primary key. Two parts, so that a slice begins where the last
-- one ended, however many rows have the same updated_at.
(SELECT id, queue_id, CAST(updated_at AS CHAR) AS updated_at FROM {prefix}queue_message_status {by_status}
 WHERE status = 2 AND updated_at = %(updated_at)s AND id > %(after)s
 ORDER BY id LIMIT %(limit)s)
UNION ALL
(SELECT id, queue_id, CAST(updated_at AS CHAR) AS updated_at FROM {prefix}queue_message_status {by_status}
 WHERE status = 2 AND updated_at > %(updated_at)s AND updated_at < NOW() - INTERVAL %(age)s SECOND
 ORDER BY {prefix}queue_message_status.updated_at, id LIMIT %(limit)s)
LIMIT %(limit)s

-- keep_from_expiry --
-- The order of delivery does not depend on updated_at, so it may change.
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET updated_at = NOW()
WHERE id IN %(ids)s AND status = 2
