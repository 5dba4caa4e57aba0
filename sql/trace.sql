-- Everything that the tables know of one order, customer or cart. Plain reads. The notation: see queue.sql.

-- search_slice --
-- The next %(limit)s messages of a queue below one message id, the newest first. Returns a row for each whose body holds %(text)s,
-- and a row with message_id 0 for all others together. No index knows what a body holds, so each is read, but none is sent.
-- By bytes, which takes a seventh of the time of a comparison by the column's collation (measured on MariaDB 10.11).
SELECT IF(found, message_id, 0) AS message_id, MIN(message_id) AS lowest, COUNT(*) AS seen, SUM(bytes) AS bytes
FROM (SELECT s.message_id, COALESCE(LENGTH(m.body), 0) AS bytes,
             COALESCE(INSTR(m.body, CAST(%(text)s AS BINARY)), 0) > 0 AS found
      FROM {prefix}queue_message_status AS s FORCE INDEX ({unique})
      JOIN {prefix}queue_message AS m ON m.id = s.message_id
      WHERE s.queue_id = %(queue_id)s AND s.message_id > %(above)s AND s.message_id < %(below)s
      ORDER BY s.message_id DESC
      LIMIT %(limit)s) AS next_rows
GROUP BY IF(found, message_id, 0)

-- search_bounds --
-- The newest and the oldest message of a queue. Each part reads one entry of the index.
SELECT (SELECT s.message_id FROM {prefix}queue_message_status AS s FORCE INDEX ({unique})
        WHERE s.queue_id = %(queue_id)s ORDER BY s.message_id DESC LIMIT 1) AS newest,
       (SELECT s.message_id FROM {prefix}queue_message_status AS s FORCE INDEX ({unique})
        WHERE s.queue_id = %(queue_id)s ORDER BY s.message_id LIMIT 1) AS oldest

-- entity_group --
-- The group of an entity in one queue, by primary key.
SELECT id, message_id, supersedes, worker_id, suspect, UNIX_TIMESTAMP(lease_until) AS lease_until_utc,
       UNIX_TIMESTAMP(not_before) AS not_before_utc
FROM {prefix}zithara_message_group FORCE INDEX (PRIMARY)
WHERE queue_id = %(queue_id)s AND group_key = %(group_key)s

-- entity_failures --
-- The messages of an entity that have a failure row, the newest first. Served by KEY message_group.
SELECT message_id FROM {prefix}zithara_delivery_failure FORCE INDEX (message_group)
WHERE queue_id = %(queue_id)s AND group_key = %(group_key)s
ORDER BY id DESC
LIMIT %(limit)s

-- entity_of_message --
-- Of a message that may have been deleted. Served by KEY newest.
SELECT topic_name, group_key FROM {prefix}zithara_delivery FORCE INDEX (newest) WHERE message_id = %(message_id)s LIMIT 1
