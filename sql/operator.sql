-- What an operator does: puts messages on a queue, pauses topics, reads failed messages and decides about them.
-- The notation: see queue.sql.

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
SELECT s.id, s.status, COALESCE(f.newer_delivered, 0) & 1 AS newer_delivered
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
-- newer_delivered + 2 where the operator forces the retry: the claim refuses 1, and newer data that is delivered before the claim
-- does not take the 2 away.
UPDATE {prefix}zithara_delivery_failure
SET newer_delivered = (newer_delivered & 1) + 2 * %(force)s, attempts = 0, unwitnessed = 0, retries = retries + 1, discarded_at = NULL,
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
