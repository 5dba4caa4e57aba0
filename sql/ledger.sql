-- The delivery ledger: what Zithara last accepted of each entity. The notation: see queue.sql.
-- Those of claim and settle run within their transactions, after every other row of theirs is locked.

-- ledger_read --
-- Once the groups are won nobody else writes these rows, but for operators, who only take away.
SELECT group_key, message_id, CAST(published_at AS CHAR) AS published_at, create_id, covers, request,
       CAST(entity_updated_at AS CHAR) AS entity_updated_at,
       TIMESTAMPDIFF(MICROSECOND, last_accepted_at, NOW(3)) / 1000000 AS accepted_ago
FROM {prefix}zithara_delivery
WHERE topic_name = %(topic)s AND group_key IN %(group_keys)s AND destination = %(destination)s

-- ledger_record --
-- A request was accepted. A row of another destination is written over; while a request of the entity may still arrive, its
-- digest is not kept. What reconcile publishes told a state that had been settled for 15 minutes: whatever a transaction of the
-- shop published since then is later, even if its id is lower. Assignments run from left to right: destination comes last.
INSERT INTO {prefix}zithara_delivery
  (topic_name, group_key, destination, message_id, published_at, create_id, covers, request, content, entity_updated_at,
   first_accepted_at, last_accepted_at, accepted)
VALUES (%(topic)s, %s, %(destination)s, %s, %s, %s, %s, %s, %s, %s, NOW(3), NOW(3), 1)
ON DUPLICATE KEY UPDATE
  message_id = VALUES(message_id),
  published_at = IF(VALUES(message_id) = reconcile_id, VALUES(published_at) - INTERVAL 15 MINUTE, VALUES(published_at)),
  covers = VALUES(covers),
  create_id = IF(destination = VALUES(destination), GREATEST(create_id, VALUES(create_id)), VALUES(create_id)),
  request = IF(doubt_until > NOW(3), NULL, VALUES(request)),
  compared_at = IF(content = VALUES(content) AND destination = VALUES(destination), compared_at, NULL),
  content = VALUES(content), entity_updated_at = VALUES(entity_updated_at),
  first_accepted_at = IF(destination = VALUES(destination), first_accepted_at, VALUES(first_accepted_at)),
  accepted = IF(destination = VALUES(destination), accepted + 1, 1),
  last_accepted_at = VALUES(last_accepted_at), stale = 0, destination = VALUES(destination)

-- ledger_record_older --
-- An older message was accepted after a newer one, since the newer one did not tell all of it: what the CRM holds is a mixture.
UPDATE {prefix}zithara_delivery FORCE INDEX (PRIMARY)
SET create_id = GREATEST(create_id, %(create_id)s), request = NULL, content = NULL, compared_at = NULL,
    last_accepted_at = NOW(3), accepted = accepted + 1, stale = 1
WHERE topic_name = %(topic)s AND group_key = %(group_key)s AND destination = %(destination)s

-- ledger_lock --
-- Before messages complete as unchanged: has anybody taken away the digest since the claim?
SELECT group_key, request FROM {prefix}zithara_delivery FORCE INDEX (PRIMARY)
WHERE topic_name = %(topic)s AND group_key IN %(group_keys)s AND destination = %(destination)s
FOR UPDATE

-- ledger_unchanged --
-- Locked before: none of the rows is inserted. The time of acceptance stays, so that `unchanged_for` counts from a real request.
INSERT INTO {prefix}zithara_delivery
  (topic_name, group_key, destination, message_id, published_at, covers, first_accepted_at, last_accepted_at, accepted)
VALUES (%(topic)s, %s, %(destination)s, %s, %s, '', NOW(3), NOW(3), 0)
ON DUPLICATE KEY UPDATE
  published_at = IF(VALUES(message_id) > message_id AND VALUES(message_id) <> reconcile_id, VALUES(published_at), published_at),
  message_id = GREATEST(message_id, VALUES(message_id))

-- ledger_doubt --
-- A request may have left and may still arrive, or an operator wants one to be sent: no digest proves anything until then. An
-- entity of which nothing is known gets a row that belongs to no destination.
INSERT INTO {prefix}zithara_delivery
  (topic_name, group_key, destination, message_id, published_at, covers, first_accepted_at, last_accepted_at, accepted, doubt_until)
VALUES (%(topic)s, %s, '', 0, NOW(), '', NOW(3), NOW(3), 0, NOW(3) + INTERVAL %(seconds)s SECOND)
ON DUPLICATE KEY UPDATE request = NULL, doubt_until = VALUES(doubt_until)

-- ledger_allow --
-- A message whose id is lower, though it was published later, has failed: its retry is not to be taken for an older one.
UPDATE {prefix}zithara_delivery FORCE INDEX (PRIMARY) SET message_id = LEAST(message_id, %(message_id)s)
WHERE topic_name = %(topic)s AND group_key = %(group_key)s

-- ledger_stale --
UPDATE {prefix}zithara_delivery FORCE INDEX (PRIMARY) SET stale = 1
WHERE topic_name = %(topic)s AND group_key IN %(group_keys)s

-- ledger_newest --
SELECT COALESCE(MAX(message_id), 0) AS newest FROM {prefix}zithara_delivery

-- ledger_next_id --
-- The id that the next message gets. MySQL would answer with what it has cached: the session sets
-- information_schema_stats_expiry to 0.
SELECT COALESCE(AUTO_INCREMENT, 0) AS next_id FROM information_schema.TABLES
WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = '{prefix}queue_message'

-- ledger_renumbered --
-- Ids have begun again: no row tells any more which message is older. In slices.
UPDATE {prefix}zithara_delivery SET message_id = 0, create_id = 0 WHERE message_id > 0 OR create_id > 0 LIMIT %(limit)s

-- ledger_old --
-- Carts that nothing was accepted of for so long, in slices.
DELETE FROM {prefix}zithara_delivery
WHERE topic_name = %(topic)s AND last_accepted_at < NOW(3) - INTERVAL %(days)s DAY LIMIT %(limit)s

-- ledger_count --
SELECT COUNT(*) AS entities FROM {prefix}zithara_delivery

-- ledger_of_old_ids --
-- Entities whose message ids were taken back, because ids began again.
SELECT COUNT(*) AS entities FROM {prefix}zithara_delivery FORCE INDEX (newest) WHERE message_id = 0 AND destination <> ''

-- ledger_forget --
-- By primary key: rows of other entities are neither read nor locked.
DELETE d FROM {prefix}zithara_delivery AS d FORCE INDEX (PRIMARY)
WHERE topic_name IN %(topics)s AND group_key IN %(group_keys)s

-- ledger_forget_slice --
DELETE FROM {prefix}zithara_delivery LIMIT %(limit)s

-- ledger_show --
SELECT topic_name, group_key, destination, message_id, create_id, CAST(entity_updated_at AS CHAR) AS entity_updated_at,
       UNIX_TIMESTAMP(first_accepted_at) AS first_accepted_at_utc, UNIX_TIMESTAMP(last_accepted_at) AS last_accepted_at_utc,
       accepted, CAST(published_at AS CHAR) AS published_at, content, request IS NOT NULL AS is_sure, stale
FROM {prefix}zithara_delivery
WHERE topic_name IN %(topics)s AND group_key = %(group_key)s AND destination <> ''

-- ledger_at_work --
-- The versions of the workers that live: those without a ledger record nothing of what they deliver.
SELECT version, topics FROM {prefix}zithara_worker WHERE last_seen_at > NOW(3) - INTERVAL 60 SECOND

-- ledger_php_at_work --
-- Queues with messages that are IN_PROGRESS for less than ten minutes and that no worker holds: PHP consumers deliver them, and
-- record nothing. One statement, and so one view of both tables.
SELECT DISTINCT queue_id FROM {prefix}queue_message_status {by_status}
WHERE status = 3 AND updated_at > NOW() - INTERVAL 10 MINUTE AND queue_id IN %(queue_ids)s
  AND id NOT IN (SELECT id FROM {prefix}zithara_message_group FORCE INDEX (lease)
                 WHERE queue_id IN %(queue_ids)s AND lease_until IS NOT NULL)
