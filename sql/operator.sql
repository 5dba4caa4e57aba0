-- What an operator does: publish messages, pause topics, read failed messages, retry and discard them.
-- The notation: see queue.sql.

-- ============================== publish ==============================

-- publish_message --
INSERT INTO {prefix}queue_message (topic_name, body) VALUES (%(topic)s, %(body)s)

-- publish_status --
INSERT INTO {prefix}queue_message_status (queue_id, message_id, status) VALUES (%(queue_id)s, %(message_id)s, %(status)s)

-- ============================== paused topics ==============================

-- pause --
-- A topic that is paused already keeps its row: who paused it first, and when.
INSERT IGNORE INTO {prefix}zithara_topic_control (topic, paused_by, paused_at, reason)
VALUES (%(topic)s, %(paused_by)s, NOW(3), %(reason)s)

-- resume --
DELETE FROM {prefix}zithara_topic_control WHERE topic = %(topic)s

-- paused --
SELECT topic, paused_by, UNIX_TIMESTAMP(paused_at) AS paused_at_utc, reason FROM {prefix}zithara_topic_control ORDER BY topic

-- ============================== failed messages ==============================

-- failed_ids --
-- Messages in ERROR, also those that a PHP consumer rejected: these have no failure row and therefore no reason.
-- Served by Magento's index (status, updated_at). Starts from the message, so that a failure row whose message Magento
-- has deleted is not found.
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
       COALESCE(f.newer_delivered, 0) & 1 AS newer_delivered, f.unwitnessed, f.retries,
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

-- topics_of_messages --
SELECT id, topic_name FROM {prefix}queue_message WHERE id IN %(message_ids)s

-- body_part --
-- One piece of a body that may exceed max_allowed_packet. Positions count characters, from 1.
SELECT SUBSTRING(body, %(start)s, %(length)s) AS part FROM {prefix}queue_message WHERE id = %(message_id)s

-- failed_counts --
-- Messages counted by queue and reason. `since`: the first failure among them.
SELECT s.queue_id, COALESCE(f.reason_code, 'unrecorded') AS reason, COUNT(*) AS messages, MAX(s.message_id) AS newest,
       UNIX_TIMESTAMP(MIN(COALESCE(f.first_failed_at, s.updated_at))) AS since
FROM {prefix}queue_message_status AS s FORCE INDEX (PRIMARY)
LEFT JOIN {prefix}zithara_delivery_failure AS f ON f.id = s.id
WHERE s.id IN %(ids)s
GROUP BY s.queue_id, reason

-- failed_summary --
-- The newest messages in ERROR, counted by queue and reason: `limit` rows are read at most, by Magento's index (status,
-- updated_at).
SELECT s.queue_id, COALESCE(f.reason_code, 'unrecorded') AS reason, COUNT(*) AS messages, MAX(s.message_id) AS newest,
       UNIX_TIMESTAMP(MIN(COALESCE(f.first_failed_at, s.updated_at))) AS since
FROM (SELECT id, queue_id, message_id, updated_at FROM {prefix}queue_message_status {by_status}
      WHERE status = 6 AND queue_id IN %(queue_ids)s ORDER BY updated_at DESC LIMIT %(limit)s) AS s
LEFT JOIN {prefix}zithara_delivery_failure AS f ON f.id = s.id
GROUP BY s.queue_id, reason
ORDER BY s.queue_id, messages DESC, reason

-- failures_lock --
-- Those of the given messages that are in ERROR or discarded. Locks them by primary key, before any row of a group, as a
-- settle does. Locks their failure rows too: a delivery that sets newer_delivered has committed and is seen, or it waits.
SELECT s.id, s.status, COALESCE(f.newer_delivered, 0) & 1 AS newer_delivered
FROM {prefix}queue_message_status AS s FORCE INDEX (PRIMARY)
LEFT JOIN {prefix}zithara_delivery_failure AS f ON f.id = s.id
WHERE s.id IN %(ids)s AND (s.status = 6 OR (s.status = 4 AND f.discarded_at IS NOT NULL))
ORDER BY s.id
FOR UPDATE

-- failed_wake --
-- Makes a message the due head of its group, if the group has no head. The next poll of any worker sees it, and newer
-- messages of the group wait behind it.
INSERT IGNORE INTO {prefix}zithara_message_group (queue_id, group_key, id, message_id, not_before)
VALUES (%s, %s, %s, %s, NOW(3))

-- failed_heads --
-- The heads of these groups, locked by primary key, so that none of them is settled meanwhile. `recorded`: the head has a
-- failure row.
SELECT g.group_key, g.id, g.message_id, g.worker_id, g.supersedes,
       EXISTS (SELECT 1 FROM {prefix}zithara_delivery_failure AS f WHERE f.id = g.id) AS recorded
FROM {prefix}zithara_message_group AS g FORCE INDEX (PRIMARY)
WHERE g.queue_id = %(queue_id)s AND g.group_key IN %(group_keys)s
ORDER BY g.group_key
FOR UPDATE

-- failed_first --
-- Puts an older message in the place of a head that waits for its next attempt. The old head has a failure row, so that
-- whoever settles the older message makes it the head again.
UPDATE {prefix}zithara_message_group
SET id = %(id)s, message_id = %(message_id)s, not_before = NOW(3)
WHERE queue_id = %(queue_id)s AND group_key = %(group_key)s AND worker_id IS NULL

-- failed_retry --
-- ERROR, or COMPLETE where an operator has discarded it, -> RETRY_REQUIRED, with all attempts left.
UPDATE {prefix}queue_message_status AS s FORCE INDEX (PRIMARY)
SET s.status = 5, s.number_of_trials = 0, s.updated_at = NOW()
WHERE s.id IN %(ids)s AND (s.status = 6 OR (s.status = 4 AND EXISTS (
  SELECT 1 FROM {prefix}zithara_delivery_failure AS f WHERE f.id = s.id AND f.discarded_at IS NOT NULL)))

-- failed_discard --
-- ERROR -> COMPLETE. Writes no row of queue_lock: if the discard is taken back, a PHP consumer that finds one would
-- acknowledge the message without processing it.
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET status = 4, updated_at = NOW()
WHERE id IN %(ids)s AND status = 6

-- release_lock --
-- Those of the given messages that are IN_PROGRESS, locked by primary key before any row of a group, as a settle does.
SELECT id FROM {prefix}queue_message_status FORCE INDEX (PRIMARY)
WHERE id IN %(ids)s AND status = 3
ORDER BY id
FOR UPDATE

-- release --
-- IN_PROGRESS -> RETRY_REQUIRED, as Magento's cron does after a day.
UPDATE {prefix}queue_message_status FORCE INDEX (PRIMARY)
SET status = 5, updated_at = NOW()
WHERE id IN %(ids)s AND status = 3

-- failures_unrecorded --
-- A failure row for a message that a PHP consumer rejected, so that the operator's decision can be recorded.
INSERT IGNORE INTO {prefix}zithara_delivery_failure
  (id, queue_id, message_id, topic_name, group_key, attempts, reason_code, detail, first_failed_at, last_failed_at, history)
VALUES (%s, %s, %s, %s, %s, 0, 'unrecorded', '', NOW(3), NOW(3), '')

-- failures_retried --
-- `retries` is part of the Idempotency-Key: an API that remembers keys must not answer the retry with the old failure.
-- newer_delivered + 2 if the operator forces the retry: the claim refuses 1, and a delivery of newer data before the claim
-- does not remove the 2.
UPDATE {prefix}zithara_delivery_failure
SET newer_delivered = (newer_delivered & 1) + 2 * %(force)s, attempts = 0, unwitnessed = 0, retries = retries + 1, discarded_at = NULL,
    history = RIGHT(CONCAT(history, %(line)s, '\n'), 8000)
WHERE id IN %(ids)s

-- failures_discarded --
UPDATE {prefix}zithara_delivery_failure
SET discarded_at = NOW(3), history = RIGHT(CONCAT(history, %(line)s, '\n'), 8000)
WHERE id IN %(ids)s

-- failed_refused --
-- What an operator has discarded of an order, customer or cart, so that reconcile does not publish it again. The ledger keeps it
-- after Magento's cleanup has deleted the message.
INSERT INTO {prefix}zithara_delivery
  (topic_name, group_key, destination, message_id, published_at, covers, first_accepted_at, last_accepted_at, accepted, refused)
VALUES (%s, %s, '', 0, NOW(), '', NOW(3), NOW(3), 0, %s)
ON DUPLICATE KEY UPDATE refused = VALUES(refused)

-- failed_wanted --
-- An operator wants it after all.
UPDATE {prefix}zithara_delivery FORCE INDEX (PRIMARY) SET refused = NULL
WHERE topic_name = %(topic)s AND group_key IN %(group_keys)s

-- failures_without_message --
-- Failure rows of messages that Magento's cleanup has deleted. They are read first and then deleted by primary key, so
-- that the delete locks nothing else.
SELECT f.id FROM {prefix}zithara_delivery_failure AS f
WHERE NOT EXISTS (SELECT 1 FROM {prefix}queue_message_status AS s WHERE s.id = f.id)
LIMIT %(limit)s
