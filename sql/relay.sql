-- What the relay writes, and what operators do with messages that it kept aside. The notation: see queue.sql.

-- ============================== one batch, in one transaction ==============================
-- First lock_keep (database.sql), which holds the row of the queue's lock until COMMIT: nobody takes the queue over
-- meanwhile, so nobody else writes rows of this queue_name.

-- relay_known --
-- The messages that were relayed before. Reads by the first two columns of the primary key.
SELECT message_id, body FROM {prefix}zithara_relayed WHERE queue_name = %(queue)s AND message_id IN %(message_ids)s

-- relay_mark --
INSERT INTO {prefix}zithara_relayed (queue_name, message_id, body, relayed_at) VALUES (%(queue)s, %s, %s, NOW(3))

-- relay_messages --
-- One statement with a known number of rows: InnoDB gives them consecutive ids, in the order of the rows.
INSERT INTO {prefix}queue_message (topic_name, body) VALUES (%s, %s)

-- relay_ids --
-- The first id of the statement before, and the distance between two of them, which a cluster changes with its size.
SELECT LAST_INSERT_ID() AS first, @@auto_increment_increment AS step

-- relay_statuses --
INSERT INTO {prefix}queue_message_status (queue_id, message_id, status) VALUES (%s, %s, %(status)s)

-- relay_aside_put --
INSERT INTO {prefix}zithara_relay_aside
  (id, piece, pieces, queue_name, topic_name, message_id, length, reason_code, detail, kept_at, content)
VALUES (%(id)s, %(piece)s, %(pieces)s, %(queue)s, %(topic)s, %(message_id)s, %(length)s, %(reason)s, %(detail)s, NOW(3),
        %(content)s)

-- ============================== messages that are kept aside ==============================

-- relay_asides --
-- The oldest, or those with these ids. A few rows, whose contents InnoDB stores on pages of their own.
SELECT id, queue_name, topic_name, message_id, length, reason_code, detail, UNIX_TIMESTAMP(kept_at) AS kept_at
FROM {prefix}zithara_relay_aside WHERE piece = 0 AND (%(every)s OR id IN %(ids)s) ORDER BY kept_at, id
LIMIT %(limit)s

-- relay_aside_piece --
SELECT pieces, content FROM {prefix}zithara_relay_aside WHERE id = %(id)s AND piece = %(piece)s

-- relay_aside_delete --
-- The pieces of these messages, by the first column of the primary key.
DELETE FROM {prefix}zithara_relay_aside WHERE id IN %(ids)s

-- ============================== back pressure, upkeep ==============================

-- relay_pending --
-- Pending messages among the newest rows of a queue, by Magento's unique key: reads a bounded number of rows, whatever
-- else is in the table. Workers take the oldest first, so the pending ones are the newest.
SELECT COUNT(*) AS pending FROM (
  SELECT status FROM {prefix}queue_message_status FORCE INDEX ({unique})
  WHERE queue_id = %(queue_id)s ORDER BY message_id DESC LIMIT %(looked_at)s
) AS newest WHERE status IN (2, 5)

-- relayed_forget --
-- A slice of the rows that are old enough, by the index on their age. Locks those rows.
DELETE FROM {prefix}zithara_relayed WHERE relayed_at < NOW(3) - INTERVAL %(days)s DAY ORDER BY relayed_at LIMIT %(limit)s
