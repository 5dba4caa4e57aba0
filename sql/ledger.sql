-- The delivery ledger: what Zithara last accepted of each entity. The notation: see queue.sql.
-- Those of claim and settle run within their transactions, after every other row of theirs is locked.

-- ledger_read --
-- Once the groups are won nobody else writes these rows, but for operators and `ledger_doubt`, which only take away. One row
-- more where nothing is known, so that the epoch is always told.
SELECT l.id_epoch, d.group_key, IF(d.id_epoch = l.id_epoch, d.message_id, 0) AS message_id,
       CAST(d.published_at AS CHAR) AS published_at, IF(d.id_epoch = l.id_epoch, d.create_id, 0) AS create_id, d.covers,
       IF(d.confirmed_at > l.sure_since, d.request, NULL) AS request, CAST(d.entity_updated_at AS CHAR) AS entity_updated_at,
       TIMESTAMPDIFF(MICROSECOND, d.last_accepted_at, NOW(3)) / 1000000 AS accepted_ago
FROM {prefix}zithara_ledger AS l
LEFT JOIN {prefix}zithara_delivery AS d FORCE INDEX (PRIMARY)
  ON d.topic_name = l.topic AND d.group_key IN %(group_keys)s AND d.destination = %(destination)s
WHERE l.topic = %(topic)s

-- ledger_record --
-- A request was accepted. A row of another destination is written over; while a request of the entity may still arrive, its
-- digest is not kept. What reconcile publishes told a state that had been settled for 15 minutes: whatever a transaction of the
-- shop published since then is later, even if its id is lower. Assignments run from left to right: destination comes last.
INSERT INTO {prefix}zithara_delivery
  (topic_name, group_key, destination, message_id, id_epoch, published_at, create_id, covers, request, content,
   entity_updated_at, first_accepted_at, last_accepted_at, confirmed_at, accepted)
VALUES (%(topic)s, %s, %(destination)s, %s, %(epoch)s, %s, %s, %s, %s, %s, %s, NOW(3), NOW(3), NOW(3), 1)
ON DUPLICATE KEY UPDATE
  message_id = VALUES(message_id),
  published_at = IF(VALUES(message_id) = reconcile_id, VALUES(published_at) - INTERVAL 15 MINUTE, VALUES(published_at)),
  covers = VALUES(covers),
  create_id = IF(destination = VALUES(destination) AND id_epoch = VALUES(id_epoch),
                 GREATEST(create_id, VALUES(create_id)), VALUES(create_id)),
  request = IF(doubt_until > NOW(3), NULL, VALUES(request)),
  compared_at = IF(content = VALUES(content) AND destination = VALUES(destination), compared_at, NULL),
  content = VALUES(content), entity_updated_at = VALUES(entity_updated_at),
  first_accepted_at = IF(destination = VALUES(destination), first_accepted_at, VALUES(first_accepted_at)),
  accepted = IF(destination = VALUES(destination), accepted + 1, 1),
  last_accepted_at = VALUES(last_accepted_at), confirmed_at = VALUES(confirmed_at),
  stale = IF(VALUES(covers) = '' OR reconcile_id = VALUES(message_id), 0, stale), id_epoch = VALUES(id_epoch),
  destination = VALUES(destination)

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
-- An equal request of a create is a create. An order's own time is not known here: until the next acceptance ids tell the order.
INSERT INTO {prefix}zithara_delivery
  (topic_name, group_key, destination, message_id, id_epoch, published_at, covers, first_accepted_at, last_accepted_at,
   confirmed_at, accepted)
VALUES (%(topic)s, %s, %(destination)s, %s, %(epoch)s, %s, '', NOW(3), NOW(3), NOW(3), 0)
ON DUPLICATE KEY UPDATE
  published_at = IF((id_epoch <> VALUES(id_epoch) OR message_id < VALUES(message_id)) AND VALUES(message_id) <> reconcile_id,
                    VALUES(published_at), published_at),
  entity_updated_at = IF(id_epoch <> VALUES(id_epoch) OR message_id < VALUES(message_id), NULL, entity_updated_at),
  create_id = IF(create_id = message_id, GREATEST(IF(id_epoch <> VALUES(id_epoch), 0, create_id), VALUES(message_id)),
                 IF(id_epoch <> VALUES(id_epoch), 0, create_id)),
  message_id = IF(id_epoch <> VALUES(id_epoch), VALUES(message_id), GREATEST(message_id, VALUES(message_id))),
  confirmed_at = VALUES(confirmed_at), id_epoch = VALUES(id_epoch)

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

-- ============================== message ids that begin again ==============================

-- ledger_begin --
-- A row for each topic, by whichever worker starts first. The epoch is one that no row of zithara_delivery is above.
INSERT IGNORE INTO {prefix}zithara_ledger (topic, id_epoch, looked_until, sure_since)
SELECT %(topic)s, COALESCE(MAX(id_epoch), 0), NOW(3), '1970-01-02 00:00:00' FROM {prefix}zithara_delivery

-- ledger_newest --
-- The newest message of which something was accepted, among ids that count still. Reads one entry of KEY newest.
SELECT l.id_epoch, (SELECT COALESCE(MAX(d.message_id), 0) FROM {prefix}zithara_delivery AS d FORCE INDEX (newest)
                    WHERE d.id_epoch = l.id_epoch) AS newest
FROM {prefix}zithara_ledger AS l ORDER BY l.id_epoch DESC LIMIT 1

-- ledger_next_id --
-- The id that the next message gets; no row if the server gives out none. MySQL would answer with what it has cached: the
-- session sets information_schema_stats_expiry to 0. It says NULL before a table's first row, and a number
-- of the past where ids are no longer given out.
SELECT COALESCE(t.AUTO_INCREMENT, (SELECT COALESCE(MAX(id), 0) + 1 FROM {prefix}queue_message)) AS next_id
FROM information_schema.TABLES AS t, information_schema.COLUMNS AS c
WHERE t.TABLE_SCHEMA = DATABASE() AND t.TABLE_NAME = '{prefix}queue_message'
AND c.TABLE_SCHEMA = DATABASE() AND c.TABLE_NAME = '{prefix}queue_message' AND c.COLUMN_NAME = 'id'
AND c.EXTRA = 'auto_increment'

-- ledger_new_epoch --
-- Ids have begun again: no row tells any more which message is older. Only one of several workers that notice it changes rows.
UPDATE {prefix}zithara_ledger SET id_epoch = %(epoch)s + 1 WHERE topic IN %(topics)s AND id_epoch = %(epoch)s

-- ledger_of_old_ids --
-- Entities whose message ids count no more. Served by KEY newest.
SELECT COUNT(*) AS entities FROM {prefix}zithara_delivery FORCE INDEX (newest)
WHERE id_epoch < (SELECT MAX(id_epoch) FROM {prefix}zithara_ledger) AND destination <> ''

-- ============================== what others deliver ==============================

-- ledger_looked --
-- How far workers have looked which messages others ended. Times: seconds since the epoch.
SELECT topic, id_epoch, UNIX_TIMESTAMP(looked_until) AS looked_until, UNIX_TIMESTAMP(NOW(3)) AS now
FROM {prefix}zithara_ledger WHERE topic IN %(topics)s

-- ledger_ended --
-- The messages that ended or failed in a stretch of time, but for those that a worker recorded as the last of their entity.
-- Served by Magento's index (status, updated_at), by which the stretch is chosen, and KEY newest. Sets no lock.
SELECT s.id, s.message_id, s.queue_id, UNIX_TIMESTAMP(s.updated_at) AS ended_at
FROM {prefix}queue_message_status AS s {by_status}
LEFT JOIN {prefix}zithara_delivery AS d FORCE INDEX (newest) ON d.id_epoch = %(epoch)s AND d.message_id = s.message_id
WHERE s.status IN (4, 5, 6) AND s.updated_at > FROM_UNIXTIME(%(after)s) AND s.updated_at <= FROM_UNIXTIME(%(up_to)s)
  AND s.queue_id IN %(queue_ids)s AND d.message_id IS NULL

-- ledger_confirmed --
-- Of entities with a digest: up to which message it was confirmed, when, and whether a worker holds a message of it now. One
-- statement, and so one view of both tables.
SELECT d.group_key, IF(d.id_epoch = l.id_epoch, d.message_id, 0) AS message_id,
       COALESCE(UNIX_TIMESTAMP(d.confirmed_at), 0) AS confirmed_at, g.lease_until IS NOT NULL AS is_held
FROM {prefix}zithara_ledger AS l
JOIN {prefix}zithara_delivery AS d FORCE INDEX (PRIMARY) ON d.topic_name = l.topic AND d.group_key IN %(group_keys)s
LEFT JOIN {prefix}zithara_message_group AS g FORCE INDEX (PRIMARY) ON g.queue_id = %(queue_id)s AND g.group_key = d.group_key
WHERE l.topic = %(topic)s AND d.request IS NOT NULL

-- ledger_looked_until --
-- Never back, as another worker may have looked further; but a clock that went back must not stop the looks.
UPDATE {prefix}zithara_ledger SET looked_until = FROM_UNIXTIME(%(up_to)s)
WHERE topic IN %(topics)s AND (looked_until < FROM_UNIXTIME(%(up_to)s) OR looked_until > NOW(3))

-- ledger_unsure --
-- Nobody looked for too long, or the newest messages have vanished: each entity is sent once more.
UPDATE {prefix}zithara_ledger SET looked_until = NOW(3), sure_since = NOW(3) WHERE topic IN %(topics)s

-- ============================== upkeep, and operators ==============================

-- ledger_old --
-- Carts that nothing was accepted of for so long, in slices.
DELETE FROM {prefix}zithara_delivery
WHERE topic_name = %(topic)s AND last_accepted_at < NOW(3) - INTERVAL %(days)s DAY LIMIT %(limit)s

-- ledger_count --
SELECT COUNT(*) AS entities FROM {prefix}zithara_delivery

-- ledger_forget --
-- By primary key: rows of other entities are neither read nor locked.
DELETE d FROM {prefix}zithara_delivery AS d FORCE INDEX (PRIMARY)
WHERE topic_name IN %(topics)s AND group_key IN %(group_keys)s

-- ledger_forget_slice --
DELETE FROM {prefix}zithara_delivery LIMIT %(limit)s

-- ledger_show --
SELECT d.topic_name, d.group_key, d.destination, IF(d.id_epoch = l.id_epoch, d.message_id, 0) AS message_id,
       IF(d.id_epoch = l.id_epoch, d.create_id, 0) AS create_id, CAST(d.entity_updated_at AS CHAR) AS entity_updated_at,
       UNIX_TIMESTAMP(d.first_accepted_at) AS first_accepted_at_utc, UNIX_TIMESTAMP(d.last_accepted_at) AS last_accepted_at_utc,
       d.accepted, CAST(d.published_at AS CHAR) AS published_at, d.content,
       d.request IS NOT NULL AND d.confirmed_at > l.sure_since AS is_sure, d.stale
FROM {prefix}zithara_delivery AS d
JOIN {prefix}zithara_ledger AS l ON l.topic = d.topic_name
WHERE d.topic_name IN %(topics)s AND d.group_key = %(group_key)s AND d.destination <> ''

-- ledger_at_work --
-- The versions of the workers that live: those without a ledger record nothing of what they deliver.
SELECT version, topics FROM {prefix}zithara_worker
WHERE last_seen_at > NOW(3) - INTERVAL 60 SECOND AND role = 'consume'

-- ledger_php_at_work --
-- Queues with messages that are IN_PROGRESS for less than ten minutes and that no worker holds: PHP consumers deliver them, and
-- record nothing. One statement, and so one view of both tables.
SELECT DISTINCT queue_id FROM {prefix}queue_message_status {by_status}
WHERE status = 3 AND updated_at > NOW() - INTERVAL 10 MINUTE AND queue_id IN %(queue_ids)s
  AND id NOT IN (SELECT id FROM {prefix}zithara_message_group FORCE INDEX (lease)
                 WHERE queue_id IN %(queue_ids)s AND lease_until IS NOT NULL)
