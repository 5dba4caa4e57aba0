-- What `reconcile` reads of the queue and the ledger, and what it writes. The notation: see queue.sql.
-- Only reconcile_published and reconcile_resent run within a transaction, which also stores the messages; nothing here locks
-- a row of the shop.

-- ============================== compare (no locks) ==============================

-- reconcile_clock --
SELECT CAST(NOW() AS CHAR) AS now, CAST(NOW() - INTERVAL %(seconds)s SECOND AS CHAR) AS settled_before,
       UNIX_TIMESTAMP(NOW(3)) AS now_utc

-- reconcile_ledger --
-- By primary key. A row of another destination tells what an operator refused, and no more.
-- `is_sure`: no doubt has come up since the acceptance.
SELECT d.group_key, d.destination = %(destination)s AND d.accepted > 0 AS is_here, d.create_id, d.content, d.stale,
       IF(d.id_epoch < COALESCE(l.id_epoch, 0), 0, d.message_id) AS message_id, CAST(d.compared_at AS CHAR) AS compared_at,
       d.refused, COALESCE(d.doubt_until > NOW(3), 0) AS in_doubt,
       d.request IS NOT NULL OR COALESCE(d.last_accepted_at >= d.doubt_until - INTERVAL %(doubt_seconds)s SECOND, 1) AS is_sure,
       UNIX_TIMESTAMP(d.last_accepted_at) AS last_accepted_at, CAST(d.published_at AS CHAR) AS published_at
FROM {prefix}zithara_delivery AS d FORCE INDEX (PRIMARY)
LEFT JOIN {prefix}zithara_ledger AS l ON l.topic = d.topic_name
WHERE d.topic_name = %(topic)s AND d.group_key IN %(group_keys)s

-- reconcile_pending --
-- The next %(limit)s messages of the queue: a row for each that is pending or in progress, and one with message_id 0 for all
-- others. `last`: the last message id among them. Bounded in rows of this queue.
SELECT IF(status IN (2, 3, 5), message_id, 0) AS message_id, MAX(message_id) AS last
FROM (SELECT message_id, status
      FROM {prefix}queue_message_status FORCE INDEX ({unique})
      WHERE queue_id = %(queue_id)s AND message_id > %(after)s
      ORDER BY message_id
      LIMIT %(limit)s) AS next_rows
GROUP BY IF(status IN (2, 3, 5), message_id, 0)

-- reconcile_failures --
-- The newest message in ERROR of each of these groups. Served by KEY message_group.
SELECT f.group_key, MAX(f.message_id) AS message_id
FROM {prefix}zithara_delivery_failure AS f FORCE INDEX (message_group)
JOIN {prefix}queue_message_status AS s FORCE INDEX (PRIMARY) ON s.id = f.id
WHERE f.queue_id = %(queue_id)s AND f.group_key IN %(group_keys)s AND s.status = 6
GROUP BY f.group_key

-- reconcile_new --
-- How many messages of the queue are NEW, %(limit)s at most, and the oldest of them.
SELECT COUNT(*) AS messages, MIN(message_id) AS oldest
FROM (SELECT message_id FROM {prefix}queue_message_status {by_status}
      WHERE status = 2 AND queue_id = %(queue_id)s LIMIT %(limit)s) AS new_rows

-- ============================== the ledger ==============================

-- reconcile_compared --
-- The rows of the shop equal `content`: until their time moves they need no rebuilding. A row whose content has changed since
-- it was read stays as it is. One that an operator removed meanwhile comes back without a destination, which counts as absent.
INSERT INTO {prefix}zithara_delivery
  (topic_name, group_key, destination, message_id, published_at, covers, content, compared_at, first_accepted_at, last_accepted_at,
   accepted)
VALUES (%(topic)s, %s, '', 0, NOW(), '', %s, %s, NOW(3), NOW(3), 0)
ON DUPLICATE KEY UPDATE
  compared_at = IF(content = VALUES(content), VALUES(compared_at), compared_at),
  stale = IF(content = VALUES(content), 0, stale)

-- reconcile_published --
-- The message that reconcile has published of an entity: ledger_record treats its time accordingly.
INSERT INTO {prefix}zithara_delivery
  (topic_name, group_key, destination, message_id, published_at, covers, first_accepted_at, last_accepted_at, accepted, reconcile_id)
VALUES (%(topic)s, %s, '', 0, NOW(), '', NOW(3), NOW(3), 0, %s)
ON DUPLICATE KEY UPDATE reconcile_id = VALUES(reconcile_id)

-- reconcile_resent --
-- The same; the message is sent even if Zithara has accepted the same before. Whoever is about to complete it as unchanged looks
-- at the digest again, under lock.
INSERT INTO {prefix}zithara_delivery
  (topic_name, group_key, destination, message_id, published_at, covers, first_accepted_at, last_accepted_at, accepted, reconcile_id)
VALUES (%(topic)s, %s, '', 0, NOW(), '', NOW(3), NOW(3), 0, %s)
ON DUPLICATE KEY UPDATE reconcile_id = VALUES(reconcile_id), request = NULL, compared_at = NULL

-- ============================== results ==============================

-- reconcile_begin --
-- The last result stays until there is a new one.
INSERT INTO {prefix}zithara_reconciliation (kind, started_at, result) VALUES (%(kind)s, NOW(3), %(result)s)
ON DUPLICATE KEY UPDATE started_at = NOW(3), finished_at = NULL, result = VALUES(result)

-- reconcile_end --
UPDATE {prefix}zithara_reconciliation SET finished_at = NOW(3), result = %(result)s WHERE kind = %(kind)s
