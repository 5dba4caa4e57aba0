-- What a session needs to know of the server, of Magento's indexes and of the worker's tables, and the locks of the fleet.
-- The notation: see queue.sql.

-- ============================== server and tables ==============================

-- server --
-- SHOW, because a SELECT of a variable that another kind of server does not have is an error there.
SHOW SESSION VARIABLES WHERE Variable_name IN
  ('version', 'max_allowed_packet', 'auto_increment_increment', 'read_only', 'super_read_only', 'wsrep_on',
   'group_replication_group_name')

-- galera_node --
SHOW STATUS WHERE Variable_name IN ('wsrep_ready', 'wsrep_cluster_status')

-- group_member --
-- Whether the server has joined its replication group. Needs SELECT on this table, which the worker goes without if it must.
SELECT MEMBER_STATE AS state FROM performance_schema.replication_group_members WHERE MEMBER_ID = @@server_uuid

-- sync_wait --
-- Which statements of this session wait until this node has applied what others have committed. Galera only.
SET SESSION wsrep_sync_wait = %(statements)s

-- indexes_of_status --
-- Indexes are found by their columns, because Magento or an administrator chose their names.
SELECT index_name AS name, GROUP_CONCAT(column_name ORDER BY seq_in_index) AS column_names
FROM information_schema.statistics
WHERE table_schema = DATABASE() AND table_name = %(table)s
GROUP BY index_name

-- index_progress --
-- MariaDB's InnoDB, in hundredths of a percent; MySQL has no such variable.
SHOW GLOBAL STATUS WHERE Variable_name = 'Innodb_onlineddl_pct_progress'

-- end_session --
KILL %(id)s

-- cipher --
SHOW SESSION STATUS WHERE Variable_name = 'Ssl_cipher'

-- tables_present --
SELECT table_name AS name, engine AS engine, table_comment AS comment FROM information_schema.tables
WHERE table_schema = DATABASE() AND table_name IN %(tables)s

-- other_prefixes --
-- Tables that end like Magento's, under whatever prefix: names one that was configured wrongly.
SELECT table_name AS name FROM information_schema.tables
WHERE table_schema = DATABASE() AND table_name REGEXP 'queue_message_status$' ORDER BY table_name LIMIT 5

-- column_present --
SELECT column_name AS name FROM information_schema.columns
WHERE table_schema = DATABASE() AND table_name = %(table)s AND column_name = %(column)s

-- ============================== locks of the fleet ==============================

-- lock_take --
-- Like the two statements below, it locks one row of our own table by primary key, and only while it runs.
INSERT IGNORE INTO {prefix}zithara_lock (name, owner, lease_until)
VALUES (%(name)s, %(owner)s, NOW(3) + INTERVAL %(lease_us)s MICROSECOND)

-- lock_take_over --
UPDATE {prefix}zithara_lock SET owner = %(owner)s, lease_until = NOW(3) + INTERVAL %(lease_us)s MICROSECOND
WHERE name = %(name)s AND (owner = %(owner)s OR lease_until < NOW(3))

-- lock_look --
-- Locks the row until COMMIT, or fails at once where another transaction has it.
SELECT owner, lease_until >= NOW(3) AS is_alive FROM {prefix}zithara_lock WHERE name = %(name)s FOR UPDATE NOWAIT

-- lock_keep --
UPDATE {prefix}zithara_lock SET lease_until = NOW(3) + INTERVAL %(lease_us)s MICROSECOND
WHERE name = %(name)s AND owner = %(owner)s

-- lock_free --
DELETE FROM {prefix}zithara_lock WHERE name = %(name)s AND owner = %(owner)s

-- turns_first --
-- The row of a rate limit. Its lease_until is the time of the fleet's next turn.
INSERT IGNORE INTO {prefix}zithara_lock (name, owner, lease_until) VALUES (%(name)s, %(owner)s, NOW(3))

-- turns_take --
-- Takes the next turns of the fleet. Turns that nobody took lapse, but for those of the last credit_ms. A time more than line_ms
-- ahead is not the fleet's. It locks one row of our own table by primary key until COMMIT, one statement later.
UPDATE {prefix}zithara_lock
SET owner = %(owner)s,
    lease_until = GREATEST(LEAST(lease_until, NOW(3) + INTERVAL %(line_ms)s * 1000 MICROSECOND),
                           NOW(3) - INTERVAL %(credit_ms)s * 1000 MICROSECOND)
                  + INTERVAL %(ms)s * 1000 MICROSECOND
WHERE name = %(name)s

-- turns_taken --
SELECT TIMESTAMPDIFF(MICROSECOND, NOW(3), lease_until) / 1000 AS ends_ms FROM {prefix}zithara_lock WHERE name = %(name)s
